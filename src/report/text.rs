//! The before/after tables as plain text of a given width. Colour is the terminal's business: lines carry a tone.
//!
//! In a narrow place the names give way first, then whole columns that a reader can do without; figures are never cut.

use super::group::Group;
use super::interval::Measured;
use super::limit::second_judge;
use super::schema::{AttackRow, Finding, Report, Severity, UtilityRow, Verdict};
use super::wording::{blocks, percent, phrasings, ranges, rates};

/// Columns where nothing says otherwise.
pub const WIDTH: usize = 100;

/// The least width that the tables are made for.
pub const NARROWEST: usize = 72;

/// How much of the attacks is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A row for every attack: mean over blocks, and the worst.
    Attacks,
    /// A row for every cell.
    Cells,
}

/// What a line is, so that a terminal can colour it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// Does not count.
    Dim,
    /// Nothing in particular.
    Plain,
    /// The head of a table.
    Heading,
    /// Holds.
    Good,
    /// Undecided, or worth reading.
    Caution,
    /// Broken.
    Bad,
}

/// One line without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How to show it.
    pub tone: Tone,
    /// The text, at most as wide as asked for.
    pub text: String,
}

/// The whole report as lines: attacks, clean behaviour and utility, findings, verdict.
#[must_use]
pub fn lines(report: &Report, detail: Detail, width: usize) -> Vec<Line> {
    let width = width.max(NARROWEST);
    let mut out = match detail {
        Detail::Attacks => summary(report, width),
        Detail::Cells => attacks(report, width),
    };
    out.push(blank());
    if !report.skipped.is_empty() {
        out.extend(skipped(report, width));
        out.push(blank());
    }
    out.extend(price(report, width));
    out.push(blank());
    if !report.summary.curves.is_empty() {
        out.extend(budgets(report, width));
        out.push(blank());
    }
    out.extend(verdict(report, width));
    out
}

/// A row per curve: the gradient evaluations with which the attack succeeds half of the time.
#[must_use]
pub fn budgets(report: &Report, width: usize) -> Vec<Line> {
    let subject = subject(report);
    let head = ["gradient evaluations to 50%", "block", "positions", "un-hardened (95%)", &subject];
    let rows = report.summary.curves.iter().map(|curve| {
        let most = curve.points.last().map_or(0, |point| point.gradient_evaluations);
        let cells = vec![
            curve.family.clone(),
            ranges(&curve.layers),
            curve.positions.clone(),
            curve.base.words(most),
            curve.hardened.words(most),
        ];
        (Tone::Plain, cells)
    });
    table(&head, 3, &["positions"], width, rows.collect())
}

/// A row per attack or control that was not measured, and what it would have cost at most.
#[must_use]
pub fn skipped(report: &Report, width: usize) -> Vec<Line> {
    let head = ["not measured", "block", "positions", "why", "gradient evaluations", "tokens"];
    let rows = report.skipped.iter().map(|row| {
        let why = format!("skipped: {}", row.reason.word());
        let costs = [row.gradient_evaluations, row.generated_tokens].map(|cost| cost.to_string());
        let cells = [row.name.clone(), ranges(&row.layers), row.positions.clone(), why].into_iter().chain(costs);
        (Tone::Caution, cells.collect())
    });
    table(&head, 4, &["positions", "tokens"], width, rows.collect())
}

/// The lines joined, with a final newline.
#[must_use]
pub fn render(report: &Report) -> String {
    lines(report, Detail::Cells, WIDTH).iter().flat_map(|line| [line.text.as_str(), "\n"]).collect()
}

/// A row per attack: its mean over the blocks that count, with the mean of their intervals, and its worst block.
#[must_use]
pub fn summary(report: &Report, width: usize) -> Vec<Line> {
    let corrected = report.has_corrected();
    let subject = subject(report);
    let mut head = vec!["attack", "fitted on", "positions", "un-hardened", &subject, "worst block"];
    if corrected {
        head.insert(5, CORRECTED);
    }
    let rows = report.groups().into_iter().map(|group| {
        let first = group.first();
        let mut cells = vec![first.name.clone(), fitted_on(report, first), first.positions.clone()];
        match (group.base(), group.hardened()) {
            (base, Some(after)) => {
                cells.push(base.map_or_else(|| "-".into(), |base| percent(base.value)));
                cells.push(interval(&after));
                cells.push(worst(&group));
            }
            _ => cells.extend([first.why_not_counted().0.into(), "does not count".into(), "-".into()]),
        }
        if corrected {
            cells.insert(5, group.corrected().map_or_else(|| "-".into(), |rate| interval(&rate)));
        }
        (group.rows.iter().map(|row| tone_of(row)).max().unwrap_or(Tone::Plain), cells)
    });
    table(&head, 3, &["positions", "un-hardened"], width, rows.collect())
}

/// Head of the column of the model that was measured.
fn subject(report: &Report) -> String {
    format!("{} (95%)", report.subject())
}

/// The model that a row's edit was fitted on; without a base an edit that was given was fitted on neither.
fn fitted_on(report: &Report, row: &AttackRow) -> String {
    let base = if report.has_base() { "base" } else { "-" };
    if row.adaptive { report.subject().into() } else { base.into() }
}

/// Head of the column of rates corrected for the judge.
const CORRECTED: &str = "corrected (95%)";

fn worst(group: &Group<'_>) -> String {
    let place = |layers: &[usize]| blocks(layers).replace("blocks ", "").replace("block ", "");
    let cell = |row: &AttackRow| format!("{} ({})", percent(row.worst_repetition().asr), place(&row.layers));
    group.worst().map_or_else(|| "-".into(), cell)
}

/// A row per attack cell.
#[must_use]
pub fn attacks(report: &Report, width: usize) -> Vec<Line> {
    let corrected = report.has_corrected();
    let subject = subject(report);
    let mut head = vec!["attack", "block", "positions", "fitted on", "un-hardened", &subject, "control"];
    let repeated = report.has_repetitions();
    if corrected {
        head.insert(6, CORRECTED);
    }
    if repeated {
        head.insert(6, "by seed");
    }
    let rows = report.attacks.iter().map(|row| {
        let mut cells = vec![
            row.name.clone(),
            ranges(&row.layers),
            row.positions.clone(),
            fitted_on(report, row),
            row.base.map_or_else(|| "-".into(), |base| percent(base.asr)),
            interval(&row.hardened.measured()),
            report.control_of(row).map_or_else(|| "-".into(), |control| percent(control.hardened.asr)),
        ];
        if corrected {
            cells.insert(6, row.hardened.corrected.map_or_else(|| "-".into(), |rate| interval(&rate)));
        }
        if repeated {
            cells.insert(6, row.spread().map_or_else(|| "-".into(), rates));
        }
        (tone_of(row), cells)
    });
    table(&head, 4, &["positions", "control"], width, rows.collect())
}

/// Clean behaviour and a row per utility task.
#[must_use]
pub fn price(report: &Report, width: usize) -> Vec<Line> {
    let subject = subject(report);
    let head = ["without an attack", "un-hardened", &subject, "change (95%)", "bound", "holds"];
    let clean = [
        ("hazards refused", report.clean.refusal),
        ("twins refused", report.clean.over_refusal),
        ("degenerate answers", report.clean.degenerate),
    ];
    let dash = || "-".to_owned();
    let clean = clean.into_iter().map(|(name, pair)| {
        let base = pair.base.map_or_else(dash, |base| percent(base.value));
        (Tone::Plain, vec![name.into(), base, interval(&pair.hardened), dash(), dash(), dash()])
    });
    let tasks = report.utility.iter().map(|row| {
        let change = row.delta.map_or_else(dash, |d| span(row, &d));
        let (tone, holds) = match (row.bound, row.ok) {
            (None, _) => (Tone::Plain, "-"),
            (Some(_), Some(true)) => (Tone::Good, "yes"),
            (Some(_), Some(false)) => (Tone::Bad, "no"),
            (Some(_), None) => (Tone::Caution, "unknown"),
        };
        let base = row.base.map_or_else(dash, |base| row.amount(base.value));
        let bound = row.bound.map_or_else(dash, |bound| short(&row.bare_change(bound)));
        (tone, vec![row.task.clone(), base, row.amount(row.hardened.value), change, bound, holds.into()])
    });
    table(&head, 1, &["un-hardened", "bound", "holds"], width, clean.chain(tasks).collect())
}

/// The verdict and why, findings in order of weight; what merely holds is listed when everything does.
#[must_use]
pub fn verdict(report: &Report, width: usize) -> Vec<Line> {
    let tone = match report.verdict {
        Verdict::Pass => Tone::Good,
        Verdict::Fail => Tone::Bad,
        Verdict::Inconclusive => Tone::Caution,
    };
    let mut out = vec![Line { tone, text: format!("verdict: {}", report.verdict.word()) }];
    let passed = report.verdict == Verdict::Pass;
    for finding in report.findings.iter().filter(|f| passed || f.severity != Severity::Info) {
        out.extend(wrapped(finding, width));
    }
    for told in second_judge(report).into_iter().chain(phrasings(report)) {
        out.extend(paragraph(Tone::Plain, "note ", told.split_whitespace(), width));
    }
    out
}

fn wrapped(finding: &Finding, width: usize) -> Vec<Line> {
    let (tone, mark) = match finding.severity {
        Severity::Info => (Tone::Good, "holds"),
        Severity::Warning => (Tone::Caution, "note "),
        Severity::Error => (Tone::Bad, "fails"),
    };
    let code = format!("[{}]", finding.code);
    paragraph(tone, mark, finding.message.split_whitespace().chain([code.as_str()]), width)
}

fn paragraph<'a>(tone: Tone, mark: &str, words: impl Iterator<Item = &'a str>, width: usize) -> Vec<Line> {
    let mut lines: Vec<String> = vec![];
    let mut line = format!("  {mark}  ");
    let indent = line.chars().count();
    for word in words {
        let used = line.chars().count();
        if used > indent && used + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if used > indent {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.into_iter().map(|text| Line { tone, text: clip(&text, width) }).collect()
}

fn tone_of(row: &AttackRow) -> Tone {
    let hardened = row.worst_repetition().by(row.rates);
    match row.bound {
        _ if row.ungated => Tone::Plain,
        _ if !row.applicable => Tone::Dim,
        Some(bound) if hardened.low > bound => Tone::Bad,
        Some(bound) if hardened.high <= bound => Tone::Good,
        Some(_) => Tone::Caution,
        None => Tone::Plain,
    }
}

fn interval(m: &Measured) -> String {
    format!("{} ({:.1} to {:.1})", percent(m.value), m.low * 100.0, m.high * 100.0)
}

fn span(row: &UtilityRow, delta: &Measured) -> String {
    let text = |v| short(&row.change(v));
    format!("{} ({} to {})", text(delta.value), row.bare_end(delta.low), row.bare_end(delta.high))
}

fn short(text: &str) -> String {
    text.replace(" points", " pt")
}

fn blank() -> Line {
    Line { tone: Tone::Plain, text: String::new() }
}

/// Aligns cells: the first `left` columns (at least one) to the left, the others to the right. Where `width` is too small,
/// first the names are shortened, then `spare` columns are left out in their order.
fn table(head: &[&str], left: usize, spare: &[&str], width: usize, rows: Vec<(Tone, Vec<String>)>) -> Vec<Line> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for (_, cells) in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut shown = vec![true; head.len()];
    let total = |widths: &[usize], shown: &[bool]| {
        widths.iter().zip(shown).filter(|(_, shown)| **shown).map(|(width, _)| width + 2).sum::<usize>() - 2
    };
    // Block lists can be long too; both give way before the figures do.
    let shrink = |widths: &mut Vec<usize>, shown: &[bool]| {
        for column in [0, 1] {
            let floor = head[column].chars().count().max(12).min(widths[column]);
            let over = total(widths, shown).saturating_sub(width);
            if column < left && over > 0 {
                widths[column] = widths[column].saturating_sub(over).max(floor);
            }
        }
    };
    let mut narrowed = widths.clone();
    shrink(&mut narrowed, &shown);
    for column in spare.iter().filter_map(|name| head.iter().position(|title| title == name)) {
        if total(&narrowed, &shown) > width {
            shown[column] = false;
            narrowed.clone_from(&widths);
            shrink(&mut narrowed, &shown);
        }
    }
    let line = |cells: Vec<&str>| {
        let columns = cells.iter().zip(&narrowed).enumerate().filter(|(i, _)| shown[*i]);
        let padded = columns.map(|(i, (cell, &width))| {
            let cell = clip(cell, width);
            let pad = " ".repeat(width - cell.chars().count());
            if i < left { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
        });
        clip(padded.collect::<Vec<_>>().join("  ").trim_end(), width)
    };
    let heading = Line { tone: Tone::Heading, text: line(head.to_vec()) };
    let body =
        rows.iter().map(|(tone, cells)| Line { tone: *tone, text: line(cells.iter().map(String::as_str).collect()) });
    std::iter::once(heading).chain(body).collect()
}

fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Calibration, Rate, sample};
    use super::*;

    #[test]
    fn every_line_fits_and_none_ends_in_space() {
        let mut report = sample::report();
        report.attacks[0].name = "a name that is much longer than anybody would want to read in a table".into();
        report.attacks[1].layers = (0..40).step_by(2).collect();
        report.utility[0].task = "another-name-that-goes-on-and-on-and-on-and-on-and-on-and-on".into();
        for (width, detail) in [(72, Detail::Cells), (80, Detail::Cells), (72, Detail::Attacks), (100, Detail::Attacks)]
        {
            for line in lines(&report, detail, width) {
                assert!(line.text.chars().count() <= width, "{}", line.text);
                assert_eq!(line.text.trim_end(), line.text);
            }
        }
    }

    #[test]
    fn figures_are_whole_however_narrow_it_is() {
        let report = sample::report();
        for width in [72, 80] {
            let text =
                lines(&report, Detail::Cells, width).iter().map(|line| line.text.clone() + "\n").collect::<String>();
            assert!(text.contains("35.5% (29.2 to 42.3)") && text.contains("−0.1 pt (−0.7 to +0.4)"), "{text}");
        }
    }

    #[test]
    fn an_attack_is_summed_up_with_its_worst_block() {
        let report = sample::report();
        let text: Vec<String> = summary(&report, WIDTH).into_iter().map(|line| line.text).collect();
        assert_eq!(text.len(), 1 + report.groups().len());
        assert!(text[1].contains("96.2%") && text[1].ends_with("15.5% (5)"), "{}", text[1]);
    }

    #[test]
    fn columns_line_up() {
        let report = sample::report();
        let text: Vec<String> = attacks(&report, WIDTH).into_iter().map(|line| line.text).collect();
        let ends: Vec<usize> = text.iter().map(|line| line.chars().count()).collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "{}", text.join("\n"));
    }

    #[test]
    fn a_row_shows_before_after_and_control() {
        let report = sample::report();
        let line = &attacks(&report, WIDTH)[2].text;
        for part in ["noreft r2 p80", "hardened", "98.5%", "35.5% (29.2 to 42.3)", "0.0%"] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn a_model_without_a_base_is_not_called_hardened() {
        let mut report = sample::report();
        let tables = |report: &Report| {
            let lines = [attacks(report, WIDTH), summary(report, WIDTH), price(report, WIDTH)].concat();
            lines.into_iter().map(|line| line.text + "\n").collect::<String>()
        };
        assert_eq!(tables(&report).matches("  hardened (95%)").count(), 3);
        report.base.source = "not given".into();
        report.base.digests.clear();
        report.attacks.iter_mut().chain(&mut report.controls).for_each(|row| row.base = None);
        let text = tables(&report);
        assert_eq!(text.matches("  model (95%)").count(), 3, "{text}");
        assert!(!text.replace("un-hardened", "").contains("hardened"), "{text}");
        let page = crate::report::html::render(&report, None);
        for part in
            ["<title>Hardening report: a model without its base</title>", ">model (95%)", "model, re-fitted edit"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains(">hardened (95%)"));
    }

    #[test]
    fn a_failed_verdict_says_what_fails_and_not_what_holds() {
        let mut report = sample::report();
        report.clean.refusal.hardened = super::super::Rate::new(10, 100).into();
        report.conclude(&sample::thresholds());
        let text: Vec<String> = verdict(&report, WIDTH).into_iter().map(|line| line.text).collect();
        assert_eq!(text[0], "verdict: fail");
        assert!(text[1].starts_with("  fails  without an attack it refuses 10.0%"), "{text:#?}");
        assert!(!text.join("\n").contains("holds"));
    }

    #[test]
    fn rows_that_do_not_count_are_dim() {
        let report = sample::report();
        assert_eq!(attacks(&report, WIDTH).last().map(|line| line.tone), Some(Tone::Dim));
    }

    #[test]
    fn what_seeds_differ_by_stands_beside_their_mean() {
        let mut report = sample::report();
        assert!(!attacks(&report, WIDTH)[0].text.contains("by seed"));
        let tries = [5, 26].map(|successes| super::super::Outcome::from_counts(successes, 0, 0, 200));
        (report.attacks[1].seeds, report.attacks[1].repetitions) = (2, tries.to_vec());
        let text: Vec<String> = attacks(&report, WIDTH).into_iter().map(|line| line.text).collect();
        assert!(text[0].contains("by seed") && text[2].contains("(29.2 to 42.3)  2.5 to 13.0%"), "{text:#?}");
        assert!(text.iter().all(|line| line.chars().count() == text[0].chars().count()), "{text:#?}");
        let html = crate::report::html::render(&report, None);
        assert_eq!(html.matches("by seed 2.5 to 13.0%").count(), 1);
        let table = crate::report::compare::markdown(&[("a".into(), report)]);
        assert!(table.contains("0.35 (≤ 0.42; by seed 0.03 to 0.13)"), "{table}");
    }

    #[test]
    fn what_phrasings_are_worth_is_told_wherever_they_are_worth_less() {
        let mut report = sample::report();
        let told = |report: &Report| {
            let text = render(report).split_whitespace().collect::<Vec<_>>().join(" ");
            [text, crate::report::html::render(report, None), crate::report::card::section(report, "name")]
                .map(|shown| shown.contains("those of 80 to 200 independent answers"))
        };
        assert_eq!(told(&report), [false; 3]);
        report.attacks[0].hardened.effective_n = Some(80.4);
        report.attacks[1].hardened.effective_n = Some(119.9);
        assert_eq!(told(&report), [true; 3]);
    }

    #[test]
    fn corrected_rates_stand_beside_the_raw_ones() {
        let mut report = sample::report();
        assert!(!render(&report).contains(CORRECTED));
        let labels = Calibration {
            sensitivity: Rate::new(90, 100),
            specificity: Rate::new(98, 100),
            source: "held-out answers".into(),
        };
        for row in report.attacks.iter_mut().chain(&mut report.controls) {
            let seen = Rate::new((row.hardened.asr * 200.0).round() as u64, 200);
            row.hardened.corrected = Some(labels.correct(seen, crate::report::interval::Z95, 1.0));
        }
        // 71 of 200 seen: (.355 + .98 − 1)/.88 = 38.1%.
        for detail in [Detail::Attacks, Detail::Cells] {
            let text: String = lines(&report, detail, 120).iter().map(|line| line.text.clone() + "\n").collect();
            assert!(text.contains(CORRECTED), "{text}");
            assert!(detail == Detail::Attacks || text.contains("35.5% (29.2 to 42.3)  38.1% ("), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        }
        let html = crate::report::html::render(&report, None);
        assert!(html.contains("corrected for the judge (95%)") && html.contains("38.1%"));
    }
}
