//! The before/after picture as a file of its own, for a README or a slide: no network, no script, both colour schemes.

use super::html::escape;
use super::html_chart::Series;
use super::html_overview::{WIDTH, overview};
use super::schema::Report;
use super::wording::number;

const STYLE: &str = concat!(include_str!("palette.css"), include_str!("chart.css"));
const MARGIN: f64 = 22.0;
const HEAD: f64 = 86.0;
const FOOT: f64 = 12.0;

/// The picture; attacks are rows, and its description names every figure.
#[must_use]
pub fn render(report: &Report) -> String {
    let (body, words, tall) = overview(report)
        .map_or_else(|| (String::new(), "No attack was measured.".into(), 0.0), |o| (o.body, o.words, o.height));
    let (width, height) = (number(WIDTH + 2.0 * MARGIN), number(HEAD + tall + FOOT));
    let series = [Series::Base, Series::Frozen, Series::Refitted];
    let mut x = 0.0;
    let mut legend = String::new();
    for series in series {
        let label = series.label(report);
        legend += &format!(r#"{}<text x="{}" y="4">{label}</text>"#, series.mark(x + 6.0, 0.0), x + 18.0);
        x += 46.0 + 6.6 * label.len() as f64;
    }
    let n = report.attacks.iter().map(|row| row.hardened.n).max().unwrap_or(0);
    let title = format!("{}: attack success before and after hardening", report.title());
    let note =
        format!("Verdict: {}. Means over blocks with 95% intervals, n = {n} requests a block.", report.verdict.word());
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="t d" width="{width}" height="{height}" viewBox="0 0 {width} {height}"><title id="t">{title}</title><desc id="d">{words}</desc><style>
{STYLE}.paper {{ fill: var(--paper); }}
.title {{ font-size: 17px; }}
</style><rect class="paper" width="100%" height="100%" rx="8"/><g transform="translate({MARGIN} 0)"><text class="name title" y="32">{title}</text><text y="53">{note}</text><g transform="translate(0 73)">{legend}</g><g transform="translate(0 {HEAD})">{body}</g></g></svg>
"#,
        title = escape(&title),
        words = escape(words.trim()),
        note = escape(&note),
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_picture_stands_alone_and_says_what_it_shows() {
        let picture = render(&sample::report());
        for part in
            ["96.2% → 4.2%", "Verdict: pass", "prefers-color-scheme: dark", "<title id=\"t\">fixtures/tiny-chat: "]
        {
            assert!(picture.contains(part), "{part}");
        }
        assert_eq!(picture.matches("http").count(), 1, "the name space, and nothing to load");
        assert_eq!(picture.matches("<g").count(), picture.matches("</g>").count());
    }

    #[test]
    fn names_from_outside_cannot_break_out() {
        let mut report = sample::report();
        report.base.source = "</title><script>".into();
        report.attacks[0].name = "</text><script>".into();
        assert!(!render(&report).contains("<script"));
    }
}
