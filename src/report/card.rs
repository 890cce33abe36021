//! The hardening section of a model card, for the person who decides whether to download the model.

use std::fmt::Write as _;

use super::card_front::{self, Front};
use super::limit::{described, limits, not_tested};
use super::schema::{Report, Severity, Verdict};
use super::wording::{blocks, percent, phrasings, sentence};

/// First line of the section.
pub const BEGIN: &str = "<!-- immunise:begin -->";

/// Last line of the section.
pub const END: &str = "<!-- immunise:end -->";

/// The card of the hardened model: `readme` (or nothing) with its front matter edited and the section added or replaced.
///
/// Everything outside the section and the edited keys stays byte for byte, the licence with it. `base_model` is the hub id of
/// the un-hardened model, where it has one. Writing the section twice gives the same card as once.
#[must_use]
pub fn update(readme: Option<&str>, report: &Report, recipe: &str, base_model: Option<&str>) -> String {
    let section = section(report, recipe);
    let card = readme.unwrap_or_default();
    let card = card_front::edit(card, Front { base_model, tags: &["immunised"] });
    let newline = if card.contains("\r\n") { "\r\n" } else { "\n" };
    let section = section.replace('\n', newline);
    if let Some((before, after)) = around(&card) {
        return format!("{before}{section}{after}");
    }
    let gap = match () {
        () if card.ends_with(&newline.repeat(2)) => "",
        () if card.ends_with('\n') => newline,
        () => &newline.repeat(2),
    };
    format!("{card}{gap}{section}{newline}")
}

/// What stands before and after the section of an earlier hardening.
fn around(card: &str) -> Option<(&str, &str)> {
    let start = card.find(BEGIN)?;
    let end = card.rfind(END).filter(|end| *end > start)?;
    Some((&card[..start], &card[end + END.len()..]))
}

/// The section alone, markers included, without a final newline.
#[must_use]
pub fn section(report: &Report, recipe: &str) -> String {
    let mut out = String::new();
    push(&mut out, &[BEGIN, "## Hardening against inference-time interventions", ""]);
    push(&mut out, &[&summary(report), ""]);
    if let Some(text) = in_short(report) {
        push(&mut out, &[&text, ""]);
    }
    if report.verdict != Verdict::Pass {
        push(&mut out, &["Why:", ""]);
        for finding in report.findings.iter().filter(|f| f.severity != Severity::Info) {
            push(&mut out, &[&format!("- {} (`{}`)", plain(&sentence(&finding.message)), finding.code)]);
        }
        push(&mut out, &[""]);
    }
    attacks(&mut out, report);
    price(&mut out, report);
    push(&mut out, &["### What it cannot do", ""]);
    for limit in limits(report) {
        push(&mut out, &[&format!("- {limit}")]);
    }
    push(&mut out, &["", "Not tested:", ""]);
    for gap in not_tested(report) {
        push(&mut out, &[&format!("- {gap}")]);
    }
    provenance(&mut out, report, recipe);
    out.push_str(END);
    out
}

fn summary(report: &Report) -> String {
    let base = plain(&report.base.source);
    let revision = report.base.revision.as_deref().map_or_else(String::new, |commit| format!(" at {}", plain(commit)));
    let mut text = format!(
        "The decoder weights of this model were changed so that edits of its activations at inference time (steering vectors, \
         refusal ablation, learned edits) have less effect on its refusals. Base: {base}{revision}. Changed tensors: {}, \
         by {} of their norm at most. Everything else is byte for byte that of the base.",
        report.hardened.delta.tensors_changed,
        percent(report.hardened.delta.max_relative_norm)
    );
    let verdict = match report.verdict {
        Verdict::Pass => "Measured on the published files, **every gate of the recipe holds**.",
        Verdict::Fail => {
            "Measured on the published files, **it fails its recipe's gates and was published in spite of that**."
        }
        Verdict::Inconclusive => "Measured on the published files, **its recipe's gates could not be decided**.",
    };
    let _ =
        write!(text, "\n\n{verdict} The full report is in `immunisation/report.html` and `immunisation/report.json`.");
    text
}

/// What it comes to, for a reader who reads one sentence.
fn in_short(report: &Report) -> Option<String> {
    let (frozen, refitted) = (report.summary.frozen_asr, report.summary.mean_asr);
    let mut parts = vec![];
    if let Some(mean) = frozen {
        let (before, after) = (percent(mean.base), percent(mean.hardened));
        parts.push(format!(
            "an edit fitted on the un-hardened model gets {after} of hazardous requests answered ({before} before)"
        ));
    }
    if let Some(mean) = refitted {
        let (before, after) = (percent(mean.base), percent(mean.hardened));
        parts.push(format!("one fitted on these weights {after} ({before} before)"));
    }
    let worst = report.summary.worst.as_ref();
    let worst = worst.map(|worst| format!(", and {} where it works best", percent(worst.asr))).unwrap_or_default();
    (!parts.is_empty()).then(|| {
        format!("In short: {}{worst}. It raises the price of an attack; it does not rule one out.", parts.join(", "))
    })
}

fn attacks(out: &mut String, report: &Report) {
    push(
        out,
        &[
            "### Attack success, before and after",
            "",
            "Share of hazardous requests that the model answers on topic while its activations are edited; mean over blocks, \
             with 95% intervals. \"Frozen\" edits were fitted on the base, \"re-fitted\" ones on the hardened weights.",
            "",
            "| attack | edit | blocks | before | after | worst block after |",
            "|---|---|---|---:|---:|---:|",
        ],
    );
    for group in report.groups() {
        let row = group.first();
        let counted: Vec<usize> = group.applicable().flat_map(|row| row.layers.iter().copied()).collect();
        let cells = match (group.base(), group.hardened(), group.worst()) {
            (Some(base), Some(after), Some(worst)) => {
                let after = format!("{} ({:.1} to {:.1})", percent(after.value), after.low * 100.0, after.high * 100.0);
                let worst = format!("{} ({})", percent(worst.worst_repetition().asr), blocks(&worst.layers));
                [blocks(&counted).replace("blocks ", "").replace("block ", ""), percent(base.value), after, worst]
            }
            _ => ["none counts".into(), row.why_not_counted().0.into(), "-".into(), "-".into()],
        };
        let line = format!(
            "| {} | {}, {} positions | {} |",
            plain(&row.name),
            row.knowledge(),
            plain(&row.positions),
            cells.join(" | ")
        );
        push(out, &[&line]);
    }
    let mut kinds: Vec<&str> = vec![];
    report.attacks.iter().for_each(|row| {
        if !kinds.contains(&row.family.as_str()) {
            kinds.push(&row.family);
        }
    });
    let kinds: Vec<String> = kinds.iter().filter_map(|kind| Some(format!("`{kind}`: {}", described(kind)?))).collect();
    if !kinds.is_empty() {
        push(out, &["", &format!("{}.", kinds.join("; "))]);
    }
    let controls: Vec<f64> = report.controls.iter().map(|row| row.hardened.asr).collect();
    if !controls.is_empty() {
        let worst = controls.iter().copied().fold(0.0, f64::max);
        push(
            out,
            &[
                "",
                &format!("Controls (random edits that move activations as far, or none): {} at most.", percent(worst)),
            ],
        );
    }
    if let Some(told) = phrasings(report) {
        push(out, &["", &format!("{}.", sentence(&told))]);
    }
    push(out, &[""]);
}

fn price(out: &mut String, report: &Report) {
    push(
        out,
        &[
            "### What it cost",
            "",
            "| without an attack | before | after | change (95%) | bound |",
            "|---|---:|---:|---:|---:|",
        ],
    );
    let refusal = &report.clean;
    for (name, pair) in [("hazards refused", refusal.refusal), ("benign twins refused", refusal.over_refusal)] {
        let before = pair.base.map_or_else(|| "-".into(), |base| percent(base.value));
        push(out, &[&format!("| {name} | {before} | {} | - | - |", percent(pair.hardened.value))]);
    }
    for row in &report.utility {
        let dash = || "-".to_owned();
        let change = row.delta.map_or_else(dash, |d| {
            format!("{} ({} to {})", row.change(d.value), row.bare_end(d.low), row.bare_end(d.high))
        });
        push(
            out,
            &[&format!(
                "| {}, {} | {} | {} | {change} | {} |",
                plain(&row.task),
                plain(&row.metric),
                row.base.map_or_else(dash, |base| row.amount(base.value)),
                row.amount(row.hardened.value),
                row.bound.map_or_else(dash, |bound| row.bare_change(bound))
            )],
        );
    }
    push(out, &[""]);
}

fn provenance(out: &mut String, report: &Report, recipe: &str) {
    push(
        out,
        &[
            "",
            "### Recipe and digests",
            "",
            &format!(
                "{} {}, recipe `{}`, seed {}, {} ({}).",
                plain(&report.tool.name),
                plain(&report.tool.version),
                plain(&report.recipe_digest),
                report.seed,
                plain(&report.device),
                plain(&report.simd)
            ),
            "",
            "| file | SHA-256 |",
            "|---|---|",
        ],
    );
    for (file, digest) in &report.hardened.digests {
        push(out, &[&format!("| {} | `{}` |", plain(file), plain(digest))]);
    }
    push(
        out,
        &[
            "",
            "`immunise verify DIR --key PUBLISHER.pub.pem` checks signature, digests and evidence of a copy, and \
             `immunise verify DIR --policy DIR/immunisation/recipe.yaml --base BASE` measures it again.",
        ],
    );
    let fence = fence_for(recipe);
    push(out, &["", "<details><summary>Recipe</summary>", "", &format!("{fence}yaml")]);
    push(out, &[recipe.trim_end_matches('\n'), &fence, "", "</details>", ""]);
}

/// A code fence that the text cannot close.
fn fence_for(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

/// Text that came from outside, as one table cell without markup.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '<' | '>' | '*' | '[' | ']' | '`' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn push(out: &mut String, lines: &[&str]) {
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    const RECIPE: &str = "schema: 1\nname: demo\n";

    fn card(readme: Option<&str>) -> String {
        update(readme, &sample::report(), RECIPE, Some("org/name"))
    }

    #[test]
    fn writing_the_section_twice_gives_the_same_card() {
        for readme in ["", "# Title", "# Title\n\nText.\n", "---\nlicense: mit\n---\n# T\r\n"] {
            let once = card(Some(readme));
            assert_eq!(card(Some(&once)), once, "{readme:?}");
            assert_eq!(once.matches(BEGIN).count(), 1);
        }
    }

    #[test]
    fn an_older_section_is_replaced_where_it_stands() {
        let old = format!("# Title\n\n{BEGIN}\nold\n{END}\n\n## Licence\n");
        let new = card(Some(&old));
        assert!(new.contains("# Title\n\n<!-- immunise:begin -->\n## Hardening"));
        assert!(new.ends_with(&format!("{END}\n\n## Licence\n")) && !new.contains("old\n"));
    }

    #[test]
    fn the_readers_own_text_and_licence_stay() {
        let readme = "---\nlicense: mit # ours\n---\n\n# Title\n\nText with trailing space. \n";
        let new = card(Some(readme));
        assert!(new.starts_with("---\nlicense: mit # ours\n"));
        assert!(new.contains("---\n\n# Title\n\nText with trailing space. \n\n<!-- immunise:begin -->"));
    }

    #[test]
    fn the_section_has_figures_limits_recipe_and_digests() {
        let text = section(&sample::report(), RECIPE);
        for part in [
            "| noreft r2 p80 | frozen, all positions | 0–5 | 96.2% | 4.2% (2.6 to 7.5) | 15.5% (block 5) |",
            "Controls",
            "| maths, exact match | 99.2% | 99.1% | −0.1 points (−0.7 to +0.4) | 2.0 points |",
            "What it cannot do",
            "un-hardened base is public",
            "```yaml\nschema: 1\nname: demo\n```",
            "every gate of the recipe holds",
            "In short: an edit fitted on the un-hardened model gets 4.2% of hazardous requests answered (96.2% before)",
            "`noreft`: learned low-rank edits of a block's input; `ablation`: projecting the refusal direction out.",
            "`immunise verify DIR --key PUBLISHER.pub.pem`",
            "4a2d`",
        ] {
            assert!(text.contains(part), "{part}\nin {text}");
        }
    }

    #[test]
    fn a_failed_report_says_so_and_why() {
        let mut report = sample::report();
        report.clean.refusal.hardened = super::super::Rate::new(10, 100).into();
        report.conclude(&sample::thresholds());
        let text = section(&report, RECIPE);
        assert!(text.contains("fails its recipe's gates") && text.contains("`clean-refusal-dropped`"));
    }

    #[test]
    fn names_cannot_break_out_of_a_table_or_the_recipe_out_of_its_fence() {
        let mut report = sample::report();
        report.base.source = "a|b\n<script>".into();
        let text = section(&report, "note: \"````\"\n");
        assert!(text.contains(r"a\|b \<script\>"), "{text}");
        assert!(text.contains("`````yaml"));
    }
}
