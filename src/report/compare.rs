//! Several reports of one base side by side, as Markdown: what each method does to each attack, and what it costs.
//!
//! A cell lists the blocks in their order; every value carries the upper end of its 95% interval, because that is what a
//! claim of robustness has to bear.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::schema::{AttackRow, Outcome, Report};
use super::wording::ranges;

/// Renders `reports`, each with the name of its method.
#[must_use]
pub fn markdown(reports: &[(String, Report)]) -> String {
    let names: Vec<&str> = reports.iter().map(|(name, _)| name.as_str()).collect();
    let rule = "|---".repeat(names.len());
    let mut out =
        format!("| attack | blocks | fitted on | un-hardened | {} |\n|---|---|---|---{rule}|\n", names.join(" | "));
    for key in keys(reports) {
        let all: Vec<Vec<&AttackRow>> = reports.iter().map(|(_, report)| rows(report, &key)).collect();
        let Some(first) = all.iter().find(|rows| !rows.is_empty()) else { continue };
        let mut layers: Vec<usize> = first.iter().flat_map(|row| row.layers.iter().copied()).collect();
        layers.sort_unstable();
        layers.dedup();
        let base: Vec<(Option<&Outcome>, String)> =
            first.iter().map(|row| (row.base.as_ref(), String::new())).collect();
        let _ = write!(out, "| {} | {} | {} | {} |", attack(&key), ranges(&layers), key.1, outcomes(&base));
        for rows in &all {
            let hardened: Vec<(Option<&Outcome>, String)> =
                rows.iter().map(|row| (Some(&row.hardened), by_seed(row))).collect();
            let _ = write!(out, " {} |", outcomes(&hardened));
        }
        out.push('\n');
    }
    if reports.iter().all(|(_, report)| report.utility.is_empty()) {
        return out;
    }
    let _ = write!(out, "\n| without an attack | un-hardened | {} |\n|---|---{rule}|\n", names.join(" | "));
    let mut tasks: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (at, (_, report)) in reports.iter().enumerate() {
        for row in &report.utility {
            let cells = tasks.entry(&row.task).or_insert_with(|| vec![String::new(); reports.len() + 1]);
            if let Some(base) = &row.base {
                cells[0] = row.amount(base.value);
            }
            cells[at + 1] = match &row.delta {
                Some(delta) => {
                    format!("{} ({} to {})", row.change(delta.value), row.bare_end(delta.low), row.bare_end(delta.high))
                }
                None => row.amount(row.hardened.value),
            };
        }
    }
    for (task, cells) in tasks {
        let _ = writeln!(out, "| {task} | {} |", cells.join(" | "));
    }
    out
}

/// What the rows of one line have in common: name, knowledge and positions.
type Key = (String, &'static str, String);

fn key(row: &AttackRow) -> Key {
    (row.name.clone(), row.knowledge(), row.positions.clone())
}

/// Its name, and where it isn't at all tokens the tokens that it acts at.
fn attack((name, _, positions): &Key) -> String {
    if positions == "all" { name.clone() } else { format!("{name} ({positions})") }
}

/// The keys of every row of any report, controls last, in the order in which they first come.
fn keys(reports: &[(String, Report)]) -> Vec<Key> {
    let mut keys = Vec::new();
    let rows = reports.iter().flat_map(|(_, report)| &report.attacks);
    for row in rows.chain(reports.iter().flat_map(|(_, report)| &report.controls)) {
        let key = key(row);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn rows<'a>(report: &'a Report, of: &Key) -> Vec<&'a AttackRow> {
    let all = report.attacks.iter().chain(&report.controls);
    all.filter(|row| key(row) == *of).collect()
}

/// The range of several repetitions, in words that follow the upper end.
fn by_seed(row: &AttackRow) -> String {
    row.spread().map_or_else(String::new, |(low, high)| format!("; by seed {low:.2} to {high:.2}"))
}

fn outcomes(outcomes: &[(Option<&Outcome>, String)]) -> String {
    let cell = |(outcome, by_seed): &(Option<&Outcome>, String)| match outcome {
        Some(outcome) => format!("{:.2} (≤ {:.2}{by_seed})", outcome.asr, outcome.high),
        None => "–".into(),
    };
    if outcomes.is_empty() { "–".into() } else { outcomes.iter().map(cell).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn methods_stand_side_by_side_and_what_one_lacks_is_a_dash() {
        let report = sample::report();
        let mut other = report.clone();
        other.attacks.clear();
        let text = markdown(&[("a".into(), report.clone()), ("b".into(), other)]);
        let row = &report.attacks[0];
        let line = text.lines().find(|line| line.contains(&row.name) && line.contains(row.knowledge())).unwrap();
        assert!(line.contains(&format!("{:.2} (≤ {:.2})", row.hardened.asr, row.hardened.high)), "{line}");
        assert!(line.trim_end().ends_with("– |"), "{line}");
        assert!(text.contains(&report.utility[0].task), "{text}");
        let widths: Vec<usize> = text.lines().take(3).map(|line| line.matches('|').count()).collect();
        assert!(widths.iter().all(|n| *n == widths[0]), "{text}");
        let mut elsewhere = report.clone();
        elsewhere.attacks.push(AttackRow { positions: "prompt".into(), ..row.clone() });
        let lines = |text: &str| text.lines().filter(|line| line.contains(&row.name)).count();
        let (once, twice) = (markdown(&[("a".into(), report.clone())]), markdown(&[("a".into(), elsewhere)]));
        assert_eq!(lines(&twice), lines(&once) + 1, "one line for each choice of positions: {twice}");
        assert!(twice.contains(&format!("| {} (prompt) |", row.name)), "{twice}");
        let mut attacks_only = report.clone();
        attacks_only.utility.clear();
        assert!(!markdown(&[("a".into(), attacks_only)]).contains("without an attack"));
    }
}
