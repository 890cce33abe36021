//! The report as one page: no network, no script, both colour schemes, fit for paper.

use std::fmt::Write as _;

use super::html_chart::{self, Series};
use super::limit::{limits, not_tested};
use super::schema::{Access, AttackRow, Outcome, Report, Severity, Verdict};
use super::threshold::Rates;
use super::wording::{blocks, grouped, number, percent, phrasings, rates, sentence};
use super::{html_budget, html_overview, html_spectrum};

const STYLE: &str = concat!(include_str!("palette.css"), include_str!("html.css"), include_str!("chart.css"));

/// Rows up to which the full table starts unfolded.
const UNFOLDED: usize = 16;

/// The page; `recipe` is shown as text at its end.
#[must_use]
pub fn render(report: &Report, recipe: Option<&str>) -> String {
    let title = format!("Hardening report: {}", report.title());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en-GB\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&title)
    );
    for section in [
        head(report),
        attacks(report),
        html_budget::section(report),
        price(report),
        change(report),
        findings(report),
        gaps(report),
        provenance(report, recipe),
    ] {
        page.push_str(&section);
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Text as HTML text or attribute value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A sentence as HTML: what stands between backticks is code.
fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.fold(
        String::new(),
        |out, (i, part)| {
            if i % 2 == 1 { out + "<code>" + &escape(part) + "</code>" } else { out + &escape(part) }
        },
    )
}

fn head(report: &Report) -> String {
    let mut out = format!(
        "<p class=\"eyebrow\">Hardening report</p>\n<h1>{}</h1>\n<p class=\"soft\">{}</p>\n",
        escape(report.title()),
        report.base.revision.as_deref().map_or_else(
            || "Measured on the files as written.".into(),
            |commit| format!("Base revision <code>{}</code>. Measured on the files as written.", escape(commit))
        )
    );
    out.push_str(&banner(report));
    out.push_str("<dl class=\"figures\">\n");
    let clean = report.clean.refusal;
    if let Some(mean) = report.summary.frozen_asr {
        figure(&mut out, "Frozen edits succeed", Some(percent(mean.base)), &percent(mean.hardened), "mean over blocks");
    }
    if let Some(mean) = report.summary.mean_asr {
        figure(
            &mut out,
            "Re-fitted edits succeed",
            Some(percent(mean.base)),
            &percent(mean.hardened),
            "mean over blocks",
        );
    }
    if let Some(worst) = &report.summary.worst {
        let note = format!("{}, {}", worst.name, blocks(&worst.layers));
        figure(&mut out, "Weakest spot", None, &percent(worst.asr), &note);
    }
    let before = clean.base.map(|base| percent(base.value));
    figure(
        &mut out,
        "Hazards refused, no attack",
        before,
        &percent(clean.hardened.value),
        &format!("n = {}", clean.hardened.n),
    );
    out.push_str("</dl>\n");
    out
}

fn banner(report: &Report) -> String {
    let (word, icon, why) = match report.verdict {
        Verdict::Pass => (
            "Pass",
            r#"<circle cx="12" cy="12" r="10"/><path d="M7 12.5l3.4 3.5L17 8.5"/>"#,
            "Every gate of the recipe holds with its 95% interval.",
        ),
        Verdict::Fail => (
            "Fail",
            r#"<path d="M8 2h8l6 6v8l-6 6H8l-6-6V8z"/><path d="M8.5 8.5l7 7m0-7l-7 7"/>"#,
            "One gate of the recipe at least is broken with its 95% interval.",
        ),
        Verdict::Inconclusive => (
            "Inconclusive",
            r#"<path d="M12 2l10 18H2z"/><path d="M12 9v5m0 2.5v.5"/>"#,
            "No gate is broken, but one at least could not be decided.",
        ),
    };
    let reasons = report.findings.iter().filter(|f| match report.verdict {
        Verdict::Pass => false,
        Verdict::Fail => f.severity == Severity::Error,
        Verdict::Inconclusive => f.severity == Severity::Warning,
    });
    let mut text = format!("<p>{why}</p>");
    for finding in reasons.take(3) {
        let _ = write!(text, "<p>{}</p>", escape(&sentence(&finding.message)));
    }
    format!(
        "<div class=\"verdict {}\"><svg viewBox=\"0 0 24 24\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.8\" \
         stroke-linecap=\"round\" stroke-linejoin=\"round\" aria-hidden=\"true\">{icon}</svg><div><strong>{word}</strong>{text}</div></div>\n",
        report.verdict.word()
    )
}

fn figure(out: &mut String, name: &str, before: Option<String>, after: &str, note: &str) {
    let before = before.map_or_else(String::new, |b| format!("<span class=\"was\">{b} → </span>"));
    let _ = writeln!(
        out,
        "<div><dt>{name}</dt><dd class=\"big\">{before}{after}</dd><dd class=\"soft\">{}</dd></div>",
        escape(note)
    );
}

fn attacks(report: &Report) -> String {
    let mut out = String::from(
        "<h2>Attack success, before and after</h2>\n<p>Share of hazardous requests that are answered on topic while an edit \
         acts on the model's activations.",
    );
    out.push_str(if report.has_base() {
        " Base and hardened model see the same prompts; whiskers are 95% intervals. What is faded does not count: the attack \
         does not break the un-hardened model there.</p>\n"
    } else {
        " Whiskers are 95% intervals.</p>\n"
    });
    if let Some(told) = phrasings(report) {
        let _ = writeln!(out, "<p class=\"soft\">{}.</p>", escape(&sentence(&told)));
    }
    out.push_str(&legend(report));
    if let Some(picture) = html_overview::picture(report, "overview") {
        let caption = "Means over blocks with the mean of their intervals; the tick is the worst block";
        out.push_str(&framed(caption, "attack success before and after", &picture));
    }
    let mut shown: Vec<&AttackRow> = vec![];
    for (i, row) in report.attacks.iter().enumerate() {
        if shown.iter().any(|seen| seen.same_attack(row)) {
            continue;
        }
        shown.push(row);
        let rows: Vec<&AttackRow> = report.attacks.iter().filter(|other| other.same_attack(row)).collect();
        if rows.iter().all(|other| other.layers == row.layers) {
            // One place only: the overview shows it.
            continue;
        }
        if let Some(picture) = html_chart::attack(report, &rows, &format!("attack-{i}")) {
            let name = escape(&row.name);
            let caption = format!("<b>{name}</b> by block, {} positions{}", escape(&row.positions), budget(row));
            out.push_str(&framed(&caption, &format!("{name} by block"), &picture));
        }
    }
    if report.attacks.is_empty() {
        out.push_str("<p>No attack was measured.</p>\n");
    }
    out.push_str(&every_row(report));
    out
}

/// A picture that scrolls where it is too wide; `caption` is HTML.
pub fn framed(caption: &str, name: &str, picture: &str) -> String {
    format!("<figure><figcaption>{caption}</figcaption>{}{picture}</div></figure>\n", scroll(name))
}

/// The opening tag of a part of the page that scrolls on its own, by keyboard too.
fn scroll(name: &str) -> String {
    format!("<div class=\"scroll\" role=\"region\" aria-label=\"{name}\" tabindex=\"0\">")
}

fn legend(report: &Report) -> String {
    let key = |mark: &str, label: &str| {
        format!("<li><svg viewBox=\"0 0 16 16\" aria-hidden=\"true\">{mark}</svg>{label}</li>\n")
    };
    let mut out = String::from("<ul class=\"legend\">\n");
    for series in Series::ALL {
        out.push_str(&key(&series.mark(8.0, 8.0), &series.label(report)));
    }
    if report.attacks.iter().any(|row| row.bound.is_some()) {
        out.push_str(&key(r#"<line class="limit" x1="0" x2="16" y1="8" y2="8"/>"#, "bound"));
    }
    out + "</ul>\n"
}

fn budget(row: &AttackRow) -> String {
    let mut parts = vec![];
    for (value, name) in [(row.budget.rank, "rank"), (row.budget.pairs, "pairs"), (row.budget.steps, "steps")] {
        if value > 0 {
            parts.push(format!("{} {name}", grouped(value)));
        }
    }
    if let Some(rank) = parts.first_mut().filter(|_| row.budget.rank > 0) {
        *rank = format!("rank {}", row.budget.rank);
    }
    if !row.budget.search.is_empty() {
        parts.push(format!("worst of a search over {}", escape(&row.budget.search)));
    }
    parts.iter().fold(String::new(), |text, part| text + " · " + part)
}

fn every_row(report: &Report) -> String {
    let all: Vec<&AttackRow> = report.attacks.iter().chain(&report.controls).collect();
    let corrected = report.has_corrected();
    let open = if all.len() <= UNFOLDED { " open" } else { "" };
    let mut out = format!(
        "<details{open}><summary>All {} rows</summary>{}<table><thead><tr><th scope=\"col\">attack</th>\
         <th scope=\"col\">block</th><th scope=\"col\">positions</th><th scope=\"col\">fitted on</th><th scope=\"col\" class=\"n\">\
         un-hardened (95%)</th><th scope=\"col\" class=\"n\">{} (95%)</th>{}<th scope=\"col\" \
         class=\"n\">degenerate</th><th scope=\"col\" class=\"n\">n</th></tr></thead><tbody>\n",
        all.len(),
        scroll("every row"),
        report.subject(),
        if corrected { "<th scope=\"col\" class=\"n\">corrected for the judge (95%)</th>" } else { "" }
    );
    for row in all {
        let dim = if row.applicable || row.ungated { "" } else { " class=\"dim\"" };
        let fitted = match (row.control, row.adaptive) {
            (true, _) => "control",
            (_, true) => report.subject(),
            _ if report.has_base() => "base",
            _ => "–",
        };
        let after = row.hardened;
        let _ = writeln!(
            out,
            "<tr{dim}><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{fitted}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>{}\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&row.name),
            blocks(&row.layers).replace("blocks ", "").replace("block ", ""),
            escape(&row.positions),
            row.base.map_or_else(|| "–".into(), |base| with_ends(&base)),
            with_ends(&after) + &row.spread().map_or_else(String::new, by_seed),
            match after.corrected {
                Some(_) => format!("<td class=\"n\">{}</td>", with_ends(&after.by(Rates::Corrected))),
                None if corrected => "<td class=\"n\">–</td>".into(),
                None => String::new(),
            },
            percent(after.degenerate),
            after.n
        );
    }
    out.push_str("</tbody></table></div></details>\n");
    out
}

/// A rate with its interval, the latter small.
fn with_ends(outcome: &Outcome) -> String {
    format!("{} <small>({:.1} to {:.1})</small>", percent(outcome.asr), outcome.low * 100.0, outcome.high * 100.0)
}

/// The lowest and highest of several repetitions, small.
fn by_seed(spread: (f64, f64)) -> String {
    format!("<br><small>by seed {}</small>", rates(spread))
}

fn price(report: &Report) -> String {
    let mut out = format!(
        "<h2>What it cost</h2>\n<p>The same items on both models, without any attack; changes are paired, item by item. The \
         dashed line is the bound, the thin one no change.</p>\n{}<table><thead><tr><th scope=\"col\">task</th>\
         <th scope=\"col\" class=\"n\">un-hardened</th><th scope=\"col\" class=\"n\">{}</th><th scope=\"col\" class=\"n\">change \
         (95%)</th><td></td><th scope=\"col\" class=\"n\">bound</th><th scope=\"col\">gate</th></tr></thead><tbody>\n",
        scroll("what it cost"),
        report.subject()
    );
    let dash = || "–".to_owned();
    for (name, pair) in [
        ("hazards refused", report.clean.refusal),
        ("benign twins refused", report.clean.over_refusal),
        ("degenerate answers", report.clean.degenerate),
    ] {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{name}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">–</td><td></td><td class=\"n\">–</td><td></td></tr>",
            pair.base.map_or_else(dash, |base| percent(base.value)),
            percent(pair.hardened.value)
        );
    }
    for row in &report.utility {
        let change = row.delta.map_or_else(dash, |d| {
            format!("{} <small>({} to {})</small>", row.change(d.value), row.bare_end(d.low), row.bare_end(d.high))
        });
        let gate = match (row.bound, row.ok) {
            (None, _) => "",
            (Some(_), Some(true)) => "<span class=\"tag pass\">holds</span>",
            (Some(_), Some(false)) => "<span class=\"tag fail\">fails</span>",
            (Some(_), None) => "<span class=\"tag inconclusive\">undecided</span>",
        };
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}<br><small class=\"soft\">{}, n = {}</small></th><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{change}</td><td>{}</td><td class=\"n\">{}</td><td>{gate}</td></tr>",
            escape(&row.task),
            escape(&row.metric),
            row.hardened.n,
            row.base.map_or_else(dash, |base| row.amount(base.value)),
            row.amount(row.hardened.value),
            html_chart::forest(row).unwrap_or_default(),
            row.bound.map_or_else(dash, |bound| row.bare_change(bound)),
        );
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn change(report: &Report) -> String {
    let delta = &report.hardened.delta;
    let rank = delta.effective_rank.map_or_else(String::new, |rank| {
        format!(
            " Their changes have an effective rank of {} at most (the squared norm over the largest squared singular value).",
            number(rank)
        )
    });
    let mut out = format!(
        "<h2>What changed in the weights</h2>\n<p>{} tensors differ from the base, the one that moved furthest by {} of its norm.{rank} \
         All other bytes are the base's.</p>\n",
        delta.tensors_changed,
        percent(delta.max_relative_norm)
    );
    if let Some(picture) = html_chart::norms(&delta.blocks, "norms") {
        let caption = "Size of the change relative to each block's weights (Frobenius)";
        out.push_str(&framed(caption, "size of the change", &picture));
    }
    if let Some(picture) = html_spectrum::picture(&delta.blocks, "spectrum") {
        let caption = "Spectrum: share of the squared change that the leading directions carry, mean over blocks in the band of \
                       all. A change along few directions is easier to find and to take back.";
        out.push_str(&framed(caption, "spectrum of the change", &picture));
    }
    out
}

fn findings(report: &Report) -> String {
    let mut out = String::from("<h2>Findings</h2>\n<ul class=\"findings\">\n");
    for finding in &report.findings {
        let (class, word) = match finding.severity {
            Severity::Info => ("pass", "holds"),
            Severity::Warning => ("inconclusive", "note"),
            Severity::Error => ("fail", "fails"),
        };
        let _ = writeln!(
            out,
            "<li><span class=\"tag {class}\">{word}</span><span>{}<code>{}</code></span></li>",
            escape(&sentence(&finding.message)),
            escape(&finding.code)
        );
    }
    out.push_str("</ul>\n");
    out
}

fn gaps(report: &Report) -> String {
    let list = |items: Vec<String>| {
        items.iter().fold(String::from("<ul class=\"plain\">\n"), |out, item| out + "<li>" + &prose(item) + "</li>\n")
            + "</ul>\n"
    };
    format!(
        "<h2>What was not tested</h2>\n{}<h2>What it cannot do</h2>\n{}",
        list(not_tested(report)),
        list(limits(report))
    )
}

fn provenance(report: &Report, recipe: Option<&str>) -> String {
    let access = match report.base.access {
        Access::Public => "public",
        Access::Private => "private",
    };
    let mut out = format!("<h2>Provenance</h2>\n{}<table><tbody>\n", scroll("provenance"));
    let facts = [
        ("tool", format!("{} {}", report.tool.name, report.tool.version)),
        ("recipe", report.recipe_digest.clone()),
        ("seed", report.seed.to_string()),
        ("device", format!("{}, {}", report.device, report.simd)),
        ("un-hardened base", access.to_owned()),
    ];
    let files = |which: &str, digests: &std::collections::BTreeMap<String, String>| {
        digests.iter().map(|(file, digest)| (format!("{which}: {file}"), digest.clone())).collect::<Vec<_>>()
    };
    let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value));
    let all = facts.chain(files("base", &report.base.digests)).chain(files(report.subject(), &report.hardened.digests));
    for (name, value) in all {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"digest\"><code>{}</code></td></tr>",
            escape(&name),
            escape(&value)
        );
    }
    out.push_str("</tbody></table></div>\n");
    if let Some(recipe) = recipe {
        let _ = writeln!(out, "<details><summary>Recipe</summary><pre>{}</pre></details>", escape(recipe));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        let page = render(&sample::report(), Some("schema: 1\n"));
        for forbidden in ["http://", "https://", "<script", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn the_page_shows_verdict_pictures_findings_and_gaps() {
        let report = sample::report();
        let page = render(&report, None);
        for part in
            ["verdict pass", "96.2% → ", "aria-labelledby=\"attack-0-t", "What was not tested", "asr-within-bound"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<figure>").count(), 5, "overview, two attacks by block, norms and spectrum");
        assert_eq!(page.matches("role=\"region\"").count(), page.matches("tabindex=").count());
        assert_eq!(page.matches("<tr").count(), page.matches("</tr>").count());
    }

    /// WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for marks.
    #[test]
    fn both_palettes_have_contrast() {
        let palette = include_str!("palette.css");
        let (light, dark) = palette.split_once("@media").unwrap();
        for scheme in [light, dark] {
            let luminance = |name: &str| {
                let hex = scheme.split(&format!("--{name}: #")).nth(1).unwrap();
                let linear = |at: usize| {
                    let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
                    if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
                };
                0.2126 * linear(0) + 0.7152 * linear(2) + 0.0722 * linear(4)
            };
            let contrast = |a: &str, b: &str| {
                let (a, b) = (luminance(a), luminance(b));
                (a.max(b) + 0.05) / (a.min(b) + 0.05)
            };
            let text = [
                ("ink", "paper"),
                ("soft", "paper"),
                ("ink", "panel"),
                ("good", "good-wash"),
                ("caution", "caution-wash"),
                ("bad", "bad-wash"),
                ("ink", "good-wash"),
                ("ink", "caution-wash"),
                ("ink", "bad-wash"),
            ];
            let marks = ["base", "frozen", "refit", "control", "bad"].map(|mark| (mark, "paper"));
            for (least, pairs) in [(4.5, &text[..]), (3.0, &marks[..])] {
                for (a, b) in pairs {
                    assert!(contrast(a, b) >= least, "{a} on {b}: {:.2}", contrast(a, b));
                }
            }
        }
    }

    #[test]
    fn what_came_from_outside_is_escaped() {
        let mut report = sample::report();
        report.base.source = "<img src=x onerror=alert(1)>".into();
        report.attacks[0].name = "\"><script>".into();
        report.attacks[0].positions = "<i>".into();
        report.conclude(&sample::thresholds());
        let page = render(&report, Some("</pre><script>"));
        assert!(!page.contains("<img") && !page.contains("<script") && !page.contains("<i>"));
        assert!(page.contains("&lt;img src=x"));
    }

    #[test]
    fn a_failed_banner_says_why() {
        let mut report = sample::report();
        report.clean.refusal.hardened = super::super::Rate::new(10, 100).into();
        report.conclude(&sample::thresholds());
        let page = render(&report, None);
        assert!(page.contains("verdict fail") && page.contains("<p>Without an attack it refuses 10.0%"));
    }

    #[test]
    fn the_same_report_renders_to_the_same_bytes() {
        assert_eq!(render(&sample::report(), None), render(&sample::report(), None));
    }
}
