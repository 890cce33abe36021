//! How attack success grows with what the attacker spends: a curve for every attack that was measured at several budgets.

use std::fmt::Write as _;

use super::curve::Curve;
use super::html::{escape, framed};
use super::html_chart::{BOTTOM, LEFT, Series, TOP, frame, svg, whisker};
use super::interval::Measured;
use super::schema::Report;
use super::wording::{blocks, grouped, percent};

const TALL: f64 = 200.0;
const WIDE: f64 = 560.0;

/// The section: what half success costs, and a picture for every curve; empty when the report has neither.
pub fn section(report: &Report) -> String {
    let (half, curves) = (report.summary.budget_to_half, &report.summary.curves);
    let mut out = String::new();
    if half.base.is_none() && half.hardened.is_none() && curves.is_empty() {
        return out;
    }
    out.push_str("<h2>What an attacker has to spend</h2>\n");
    let words = |budget: Option<u64>| budget.map_or_else(|| "never, within what was tried".into(), grouped);
    if half.base.is_some() || half.hardened.is_some() {
        let _ = writeln!(
            out,
            "<p>Gradient evaluations that the cheapest edit needs to succeed half of the time: <b>{}</b> before, <b>{}</b> after.</p>",
            words(half.base),
            words(half.hardened)
        );
    }
    for (i, curve) in curves.iter().enumerate() {
        let most = curve.points.last().map_or(0, |point| point.gradient_evaluations);
        let label = format!("{}, re-fitted, {} positions, {}", curve.family, curve.positions, blocks(&curve.layers));
        let _ = writeln!(
            out,
            "<p class=\"soft\">{}: 50% success at {} gradient evaluations before, {} after (95% interval in brackets).</p>",
            escape(&label),
            curve.base.words(most),
            curve.hardened.words(most)
        );
        let picture = picture(curve, &format!("budget-{i}"));
        out.push_str(&framed(&escape(&label), &format!("budget curve {}", i + 1), &picture));
    }
    out
}

fn picture(curve: &Curve, id: &str) -> String {
    let cost = |at: usize| curve.points[at].gradient_evaluations as f64;
    let (first, last) = (cost(0), cost(curve.points.len() - 1));
    let width = LEFT + WIDE + 20.0;
    let x = |spent: u64| LEFT + 24.0 + (WIDE - 40.0) * (spent as f64 / first).ln() / (last / first).ln().max(1e-9);
    let y = |value: f64| TOP + TALL * (1.0 - value);
    let mut body = frame(width, &[(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100%")], y);
    let _ = write!(body, r#"<line class="limit" x1="{LEFT}" x2="{width:.1}" y1="{0:.1}" y2="{0:.1}"/>"#, y(0.5));
    let mut words = String::new();
    let rungs: Vec<(f64, Option<Measured>, Measured)> = curve
        .points
        .iter()
        .map(|p| (x(p.gradient_evaluations), p.base.map(|base| base.measured()), p.hardened.measured()))
        .collect();
    for (point, (at, base, after)) in curve.points.iter().zip(&rungs) {
        let spent = grouped(point.gradient_evaluations);
        let _ = write!(body, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{spent}</text>"#, TOP + TALL + 18.0);
        let before = base.map_or_else(String::new, |base| format!("{} before, ", percent(base.value)));
        let _ = write!(words, "{spent} gradient evaluations: {before}{} after. ", percent(after.value));
    }
    let before: Vec<(f64, Measured)> = rungs.iter().filter_map(|(at, base, _)| Some((*at, (*base)?))).collect();
    let after: Vec<(f64, Measured)> = rungs.iter().map(|(at, _, after)| (*at, *after)).collect();
    for (series, points) in [(Series::Base, before), (Series::Refitted, after)] {
        let steps = points
            .iter()
            .enumerate()
            .map(|(i, (at, m))| format!("{}{at:.1} {:.1}", if i == 0 { "M" } else { "L" }, y(m.value)));
        let _ = write!(
            body,
            r#"<path class="line {}" style="fill:none" d="{}"/>"#,
            series.class(),
            steps.collect::<String>()
        );
        for (at, m) in &points {
            body.push_str(&(whisker(series, *at, m, y) + &series.mark(*at, y(m.value))));
        }
    }
    let _ = write!(
        body,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">gradient evaluations of the attacker</text>"#,
        LEFT + WIDE / 2.0,
        TOP + TALL + 38.0
    );
    svg(id, width, TOP + TALL + BOTTOM, "Attack success by budget", &words, &body)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_curve_of_the_summary_is_drawn_and_said() {
        let mut report = sample::report();
        let rung = |spent: u64, hits: u64| {
            let mut row = sample::row("ladder", 2, true, 190, hits);
            (row.seeds, row.budget.gradient_evaluations, row.budget.steps) = (1, spent, spent);
            row
        };
        report.attacks = vec![rung(9600, 90), rung(1200, 4), rung(38_400, 130)];
        report.summary.curves = super::super::curve::curves(&report);
        report.summary.budget_to_half = super::super::curve::cheapest(&report.summary.curves);
        let section = section(&report);
        for part in [
            "1200 gradient evaluations: 95.0% before, 2.0% after. 9600",
            "noreft, re-fitted",
            "<b>1200</b> before",
            "50% success at 1200 (1200 to 1200) gradient evaluations before, 38400 (9600 to 38400) after",
        ] {
            assert!(section.contains(part), "{part} in {section}");
        }
    }

    #[test]
    fn a_report_without_budgets_says_nothing_of_them() {
        let mut report = sample::report();
        report.summary.budget_to_half = super::super::BudgetToHalf::default();
        assert_eq!(section(&report), "");
    }
}
