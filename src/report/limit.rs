//! What a report does not show, in sentences: the part of every rendering that nobody may leave out.

use super::schema::{Access, AttackRow, Report};
use super::wording::{percent, sentence};

/// Attack kinds of the catalogue with what they are, to name those that a report lacks.
const CATALOGUE: [(&str, &str); 12] = [
    ("noreft", "learned low-rank edits of a block's input"),
    ("loreft", "learned edits within an orthonormal subspace"),
    ("mean-difference", "steering along the difference of class means"),
    ("principal-component", "control vectors at all blocks at once"),
    ("in-context-vector", "vectors that keep every token's norm"),
    ("iti-heads", "shifts of single attention heads"),
    ("optimal-transport", "maps of attention heads onto the harmless class"),
    ("ablation", "projecting the refusal direction out"),
    ("subspace-ablation", "projecting a whole subspace out"),
    ("abliteration", "projecting the refusal direction out of the weights"),
    ("transferred", "edits fitted on another model and carried over"),
    ("delta-strip", "subtracting the hardening with the un-hardened weights at hand"),
];

/// What an attack of this kind is, where the catalogue has it.
#[must_use]
pub fn described(family: &str) -> Option<&'static str> {
    CATALOGUE.iter().find(|(kind, _)| *kind == family).map(|(_, what)| *what)
}

/// What was not tested here.
#[must_use]
pub fn not_tested(report: &Report) -> Vec<String> {
    let mut gaps: Vec<String> =
        report.skipped.iter().map(|row| format!("{}: {}.", sentence(&row.title()), row.why())).collect();
    for (family, what) in CATALOGUE {
        let relevant = family != "delta-strip" || report.base.access == Access::Public;
        if relevant && !report.attacks.iter().any(|row| row.family == family) {
            gaps.push(format!("{} ({family}).", sentence(what)));
        }
    }
    if report.rows(true).next().is_none() {
        gaps.push("Edits fitted on the hardened weights; every row was fitted on the un-hardened model.".into());
    } else if !report.rows(true).any(AttackRow::is_searched) {
        gaps.push(
            "A search by the attacker over step sizes, starting points and target answers: the re-fitted rows use one setting \
             each, so they are a lower bound on what an attacker reaches."
                .into(),
        );
    }
    let missing: Vec<&str> = ["prompt", "all", "last"]
        .into_iter()
        .filter(|p| !report.attacks.iter().any(|row| row.positions == *p))
        .collect();
    for positions in missing {
        let what = match positions {
            "all" => "every token, generated ones included",
            "prompt" => "the prompt's tokens only",
            _ => "the prompt's last token and generated ones only",
        };
        gaps.push(format!("Edits that act on {what}."));
    }
    gaps.push(
        "Edits of several blocks at once, beyond those listed; other languages; long conversations; tool use.".into(),
    );
    gaps
}

/// What the method cannot do, whatever was measured.
#[must_use]
pub fn limits(report: &Report) -> Vec<String> {
    let mut limits = vec![];
    limits.push(match report.base.access {
        Access::Public => {
            "The un-hardened base is public. Whoever has both can subtract one from the other and is back where \
                           they started; hardening protects those who are handed this checkpoint, not the base."
                .into()
        }
        Access::Private => "The un-hardened base is private. Should it leak, the hardening can be subtracted.".into(),
    });
    limits.push(
        "An attacker with a larger budget than the ones tested, in pairs, steps, rank or search, may succeed where these failed."
            .into(),
    );
    limits.push("Fine-tuning the weights, or editing logits and sampled tokens, is not stopped by any of this.".into());
    limits.push(
        "It does not make the model safer in what it answers of its own accord: it keeps the refusals that were there."
            .into(),
    );
    let judge = report.judges.first().map(|judge| match (judge.sensitivity, judge.specificity) {
        (Some(se), Some(sp)) => {
            format!("`{}` (sensitivity {se:.2}, specificity {sp:.2} on labelled answers)", judge.kind)
        }
        _ => format!("`{}` (not calibrated here)", judge.kind),
    });
    limits.extend(judge.map(|judge| format!("Answers were judged by {judge}; its mistakes are in every rate.")));
    if let Some(calibration) = report.judges.first().and_then(|judge| judge.calibration.as_ref()) {
        limits.push(format!(
            "Corrected rates undo the judge's mistakes as far as answers under attack are like the labelled ones: {}.",
            calibration.words()
        ));
    }
    limits.extend(second_judge(report));
    limits
}

/// How far a second judge agrees with the first, where one was asked.
#[must_use]
pub fn second_judge(report: &Report) -> Option<String> {
    let (second, agreement) = (&report.judges.get(1)?.kind, report.summary.agreement.as_ref()?);
    let unparsed = agreement.table.unparsed;
    if agreement.n == 0 {
        return Some(format!(
            "A second judge, `{second}`, gave no verdict: of {unparsed} answers under attack it said neither of its two words."
        ));
    }
    let beyond = agreement.kappa.map_or_else(|| "undefined".into(), |kappa| format!("{kappa:.2}"));
    let silent = match unparsed {
        0 => String::new(),
        more => format!(", and of {more} more it said neither of its two words"),
    };
    Some(format!(
        "A second judge, `{second}`, says the same of {} of {} answers under attack (Cohen's kappa {beyond}){silent}; it decides \
         nothing.",
        percent(agreement.raw),
        agreement.n
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Agreement, JudgeInfo, sample};
    use super::*;

    #[test]
    fn answers_that_the_second_judge_left_open_are_told_apart() {
        let mut report = sample::report();
        assert_eq!(second_judge(&report), None);
        report.judges.push(JudgeInfo { kind: "guard".into(), sensitivity: None, specificity: None, calibration: None });
        let mut told = |table: Agreement| {
            report.summary.agreement = Some(table.into());
            second_judge(&report).unwrap()
        };
        let table = Agreement { both: 3, neither: 1, ..Agreement::default() };
        assert!(told(table).contains("100.0% of 4 answers under attack (Cohen's kappa 1.00); it decides nothing"));
        assert!(told(Agreement { unparsed: 2, ..table }).contains(", and of 2 more it said neither of its two words;"));
        let silent = told(Agreement { unparsed: 9, ..Agreement::default() });
        assert!(silent.contains("gave no verdict: of 9 answers") && !silent.contains('%'), "{silent}");
    }

    #[test]
    fn what_was_measured_is_not_listed_as_a_gap() {
        let gaps = not_tested(&sample::report()).join("\n");
        assert!(gaps.contains("(mean-difference)") && gaps.contains("(delta-strip)"), "{gaps}");
        assert!(!gaps.contains("(noreft)") && !gaps.contains("(ablation)"), "{gaps}");
    }

    #[test]
    fn only_rows_that_count_and_searches_of_this_model_close_a_gap() {
        let gaps = |change: &dyn Fn(&mut Report)| {
            let mut report = sample::report();
            change(&mut report);
            not_tested(&report).join("\n")
        };
        let (fitted, searched) = ("Edits fitted on the hardened weights", "A search by the attacker");
        let frozen = gaps(&|report| {
            for row in report.attacks.iter_mut().filter(|row| row.adaptive) {
                row.ungated = true;
            }
        });
        assert!(frozen.contains(fitted) && !frozen.contains(searched), "{frozen}");
        let carried_over = gaps(&|report| {
            let mut row = sample::row("transferred noreft", 0, true, 190, 10);
            row.budget.search = "ridge 0.1 of 3".into();
            report.attacks.push(row);
        });
        assert!(!carried_over.contains(fitted) && carried_over.contains(searched), "{carried_over}");
        let found = gaps(&|report| report.attacks.push(sample::row("noreft r2 p80 search", 0, true, 190, 10)));
        assert!(!found.contains(fitted) && !found.contains(searched), "{found}");
    }

    #[test]
    fn a_private_base_is_described_as_one() {
        let mut report = sample::report();
        report.base.access = Access::Private;
        assert!(limits(&report)[0].contains("private"));
        assert!(!not_tested(&report).join("\n").contains("delta-strip"));
    }
}
