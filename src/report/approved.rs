//! Proof that a report passed its gates: what the signing step asks for.

use super::schema::{Finding, Report, Severity, Verdict};
use super::threshold::Thresholds;

/// A report that may be published.
///
/// There is no public constructor: either the thresholds hold ([`Approved::from_verdict`]) or somebody took the
/// responsibility and the report says so ([`Approved::allow_fail`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Approved {
    report: Report,
}

impl Approved {
    /// Approves a report that passes `thresholds`.
    ///
    /// The verdict is derived anew instead of believed, so editing the field buys nothing. `None` when the outcome is not
    /// [`Verdict::Pass`].
    #[must_use]
    pub fn from_verdict(report: &Report, thresholds: &Thresholds) -> Option<Self> {
        let mut report = report.clone();
        report.conclude(thresholds);
        (report.verdict == Verdict::Pass).then_some(Self { report })
    }

    /// Approves a report whatever its verdict, which stays; unless it passed, the finding `fail-allowed` marks it.
    #[must_use]
    pub fn allow_fail(report: &Report, thresholds: &Thresholds) -> Self {
        let mut report = report.clone();
        report.conclude(thresholds);
        if report.verdict != Verdict::Pass {
            report.findings.insert(
                0,
                Finding {
                    code: "fail-allowed".into(),
                    severity: Severity::Error,
                    message: format!("published in spite of its verdict, which is {}", report.verdict.word()),
                    observed: None,
                    bound: None,
                },
            );
        }
        Self { report }
    }

    /// The report, concluded.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}
