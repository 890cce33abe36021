//! One picture of the whole: a row per attack, from its success on the un-hardened model to that on the hardened one.

use std::fmt::Write as _;

use super::group::{Group, mean_outcome};
use super::html::escape;
use super::html_chart::{Series, axis, svg};
use super::interval::Measured;
use super::schema::Report;
use super::wording::{blocks, percent};

/// Width of the picture, pixels.
pub const WIDTH: f64 = 868.0;
const LEFT: f64 = 268.0;
const RIGHT: f64 = 178.0;
const TOP: f64 = 8.0;
const ROW: f64 = 46.0;
const BOTTOM: f64 = 26.0;
/// Characters of a name that fit beside the picture.
const NAME: usize = 36;

/// A picture and its height, pixels.
pub struct Overview {
    /// What is drawn, without the `svg` element around it.
    pub body: String,
    /// The same in words, every figure named.
    pub words: String,
    /// Pixels.
    pub height: f64,
}

/// The rows of the picture; `None` without attacks.
pub fn overview(report: &Report) -> Option<Overview> {
    let groups = report.groups();
    if groups.is_empty() {
        return None;
    }
    let tall = ROW * groups.len() as f64;
    let mut body = axis(&[0.0, 0.25, 0.5, 0.75, 1.0], x, (TOP, TOP + tall));
    let mut words = String::new();
    for (i, group) in groups.iter().enumerate() {
        row(&mut body, &mut words, group, TOP + ROW * (i as f64 + 0.5));
    }
    Some(Overview { body, words, height: TOP + tall + BOTTOM })
}

/// The picture for the page.
pub fn picture(report: &Report, id: &str) -> Option<String> {
    let Overview { body, words, height } = overview(report)?;
    Some(svg(id, WIDTH, height, "Attack success before and after hardening", &words, &body))
}

fn x(value: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * value
}

fn row(body: &mut String, words: &mut String, group: &Group<'_>, y: f64) {
    let first = group.first();
    let counts = group.applicable().next().is_some();
    // What doesn't count is shown all the same, faded.
    let (base, after) = if counts {
        (group.base(), group.hardened())
    } else {
        let of = |rows: &[&super::AttackRow]| mean_outcome(rows.iter().filter_map(|row| row.base.as_ref()));
        (of(&group.rows), mean_outcome(group.rows.iter().map(|row| &row.hardened)))
    };
    let Some(after) = after else { return };
    let series = if first.adaptive { Series::Refitted } else { Series::Frozen };
    let mut layers: Vec<usize> = group.rows.iter().flat_map(|row| row.layers.iter().copied()).collect();
    layers.sort_unstable();
    layers.dedup();
    let note = format!("{}, {} positions, {}", first.knowledge(), first.positions, blocks(&layers));
    let (class, edge) = (if counts { "" } else { r#" class="faded""# }, LEFT - 16.0);
    let _ = write!(
        body,
        r#"<g{class}><text class="name" x="{edge}" y="{:.1}" text-anchor="end">{}</text><text x="{edge}" y="{:.1}" text-anchor="end">{}</text>"#,
        y - 3.0,
        escape(&clipped(&first.name)),
        y + 13.0,
        escape(&clipped(&note))
    );
    if let Some(base) = base {
        let (from, to) = (x(base.value), x(after.value));
        let _ = write!(body, r#"<path class="gap" d="M{from:.1} {y:.1}H{to:.1}"/>"#);
        body.push_str(&(whisker(Series::Base, &base, y) + &Series::Base.mark(from, y)));
    }
    body.push_str(&(whisker(series, &after, y) + &series.mark(x(after.value), y)));
    let change = base.map_or_else(String::new, |base| format!("{} → ", percent(base.value))) + &percent(after.value);
    let side = WIDTH - RIGHT + 22.0;
    let _ = write!(body, r#"<text class="name" x="{side}" y="{:.1}">{change}</text>"#, y - 3.0);
    let worst = group.worst().filter(|_| group.rows.len() > 1);
    let below = match worst {
        _ if !counts => "does not count".to_owned(),
        Some(worst) => format!("{} at worst, {}", percent(worst.worst_repetition().asr), blocks(&worst.layers)),
        None => format!("95%: {:.1} to {:.1}", after.low * 100.0, after.high * 100.0),
    };
    let _ = write!(body, r#"<text x="{side}" y="{:.1}">{below}</text></g>"#, y + 13.0);
    if let Some(worst) = worst {
        let at = x(worst.worst_repetition().asr);
        let _ = write!(body, r#"<path class="mark {}" d="M{at:.1} {:.1}v12"/>"#, series.class(), y - 6.0);
    }
    let _ = write!(words, "{} ({note}): {change}, {below}. ", first.name);
}

fn whisker(series: Series, m: &Measured, y: f64) -> String {
    let (low, high) = (x(m.low), x(m.high));
    format!(
        r#"<path class="mark {}" style="fill:none" d="M{low:.1} {y:.1}H{high:.1}M{low:.1} {a:.1}v6M{high:.1} {a:.1}v6"/>"#,
        series.class(),
        a = y - 3.0
    )
}

fn clipped(text: &str) -> String {
    if text.chars().count() <= NAME { text.into() } else { text.chars().take(NAME - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_attack_has_a_row_with_its_figures() {
        let report = sample::report();
        let overview = overview(&report).unwrap();
        assert_eq!(overview.words.matches(". ").count(), report.groups().len());
        let part = "noreft r2 p80 (frozen, all positions, blocks 0–5): 96.2% → 4.2%, 15.5% at worst, block 5";
        assert!(overview.words.contains(part), "{part} in {}", overview.words);
        assert!((overview.height - (TOP + 3.0 * ROW + BOTTOM)).abs() < 1e-9);
    }

    #[test]
    fn a_report_without_attacks_has_no_picture() {
        let mut report = sample::report();
        report.attacks.clear();
        assert!(picture(&report, "o").is_none());
    }

    #[test]
    fn names_that_are_too_long_are_cut_in_the_picture_and_whole_in_words() {
        let mut report = sample::report();
        let name = "n".repeat(80);
        report.attacks.iter_mut().for_each(|row| row.name.clone_from(&name));
        let overview = overview(&report).unwrap();
        assert!(!overview.body.contains(&name) && overview.words.contains(&name));
    }
}
