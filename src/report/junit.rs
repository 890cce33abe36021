//! A report as JUnit XML, for the test views of CI systems: a case for every gated row, task and clean measurement.
//!
//! Valid against the schema that Jenkins enforces (`fixtures/schemas/junit-10.xsd`, held by `tests/interchange.rs`).

use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::schema::{AttackRow, Report, Severity, SkippedRow, UtilityRow, Verdict};
use super::wording::{blocks, percent};
use crate::{Error, Result};

/// The report as JUnit XML. No times: a report holds none.
///
/// The verdict is a case of its own, so that a run whose gates could not be decided is red too.
///
/// # Errors
/// [`Error::Input`] when the document cannot be written.
pub fn render(report: &Report) -> Result<String> {
    let mut document = Document::new("immunise");
    let mut verdict = TestSuite::new("verdict");
    verdict.add_test_case(case("verdict", &verdict_problem(report)));
    let mut attacks = TestSuite::new("attacks");
    attacks.add_test_cases(report.attacks.iter().chain(&report.controls).map(attack));
    attacks.add_test_cases(report.skipped.iter().map(skipped));
    let mut utility = TestSuite::new("utility");
    utility.add_test_cases(report.utility.iter().map(task));
    document.add_test_suites([verdict, attacks, utility]);
    let text = document.to_string().map_err(|error| Error::input("JUnit report", error.to_string()))?;
    // The writer counts the skipped cases on the root too, where the schema has no such attribute and Jenkins refuses it. Of the
    // characters that XML has no room for it leaves two in.
    let text = text.replacen(&format!(" skipped=\"{}\"", document.skipped), "", 1);
    Ok(text.replace(['\u{fffe}', '\u{ffff}'], ""))
}

fn case(name: &str, problem: &Option<(String, String)>) -> TestCase {
    let mut status = TestCaseStatus::success();
    if let Some((kind, message)) = problem {
        status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_type(kind.as_str()).set_message(message.as_str());
    }
    TestCase::new(name, status)
}

fn verdict_problem(report: &Report) -> Option<(String, String)> {
    if report.verdict == Verdict::Pass {
        return None;
    }
    let of = |severity: Severity| -> Vec<&str> {
        let such = report.findings.iter().filter(|finding| finding.severity == severity);
        such.map(|finding| finding.message.as_str()).collect()
    };
    // What leaves a verdict open is a warning.
    let told = Some(of(Severity::Error)).filter(|errors| !errors.is_empty()).unwrap_or_else(|| of(Severity::Warning));
    Some((report.verdict.word().to_owned(), told.join("; ")))
}

fn attack(row: &AttackRow) -> TestCase {
    let knowledge = match (row.control, row.adaptive) {
        (true, _) => "control",
        (false, true) => "re-fitted",
        (false, false) => "frozen",
    };
    let name = format!("{} at {}, {} tokens, {knowledge}", row.name, blocks(&row.layers), row.positions);
    let o = row.worst_repetition().by(row.rates);
    let kind = if row.rates.is_raw() { "asr" } else { "corrected asr" };
    let measured = format!("{kind} {} ({} to {}, n = {})", percent(o.asr), percent(o.low), percent(o.high), o.n);
    let broken = row.bound.is_some_and(|bound| o.low > bound);
    let mut case = if broken {
        case(&name, &Some(("asr-above-bound".into(), format!("{measured}; reproduce: {}", row.reproduce))))
    } else if row.applicable {
        case(&name, &None)
    } else {
        let mut status = TestCaseStatus::skipped();
        status.set_message(row.why_not_counted().1);
        TestCase::new(name, status)
    };
    case.set_system_out(measured);
    case
}

fn skipped(row: &SkippedRow) -> TestCase {
    let mut status = TestCaseStatus::skipped();
    status.set_message(row.why());
    TestCase::new(row.title(), status)
}

fn task(row: &UtilityRow) -> TestCase {
    let measured = format!("{} {}: {}", row.task, row.metric, row.amount(row.hardened.value));
    let problem = (row.ok == Some(false)).then(|| ("utility-below-bound".to_owned(), measured.clone()));
    let mut case = case(&row.task, &problem);
    case.set_system_out(measured);
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::report::schema::Finding;

    #[test]
    fn a_failed_report_has_a_failed_case_and_well_formed_xml() {
        let mut report = sample::report();
        report.verdict = Verdict::Fail;
        let text = render(&report).unwrap();
        assert!(text.starts_with("<?xml") && text.contains("type=\"fail\""), "{text}");
        assert_eq!(text.matches("<testsuite ").count(), 3);
        let cases = 1 + report.attacks.len() + report.controls.len() + report.utility.len();
        assert_eq!(text.matches("<testcase ").count(), cases);
        report.verdict = Verdict::Pass;
        assert!(!render(&report).unwrap().contains("type=\"fail\""));
    }

    #[test]
    fn an_open_verdict_says_why() {
        let mut report = sample::report();
        report.verdict = Verdict::Inconclusive;
        let code = "asr-undecided".to_owned();
        let gated = Finding { code, severity: Severity::Info, message: String::new(), observed: None, bound: None };
        let finding = |severity, message: &str| Finding { severity, message: message.into(), ..gated.clone() };
        report.findings = vec![finding(Severity::Warning, "too few prompts"), finding(Severity::Info, "by the way")];
        let reason = |report: &Report| verdict_problem(report).unwrap();
        assert_eq!(reason(&report), ("inconclusive".to_owned(), "too few prompts".to_owned()));
        report.findings.push(finding(Severity::Error, "above the bound"));
        assert_eq!(reason(&report).1, "above the bound", "errors come first");
    }
}
