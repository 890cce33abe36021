//! A report's findings as SARIF 2.1.0, for code-scanning views: one rule a finding code, one result a finding.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::schema::{Report, Severity};

/// Where a finding points to: the report itself, which lies in every published folder.
const LOCATION: &str = "immunisation/report.json";

/// The findings as a SARIF log.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut rules: BTreeMap<&str, Value> = BTreeMap::new();
    for finding in &report.findings {
        let text = finding.code.replace('-', " ");
        rules.insert(&finding.code, json!({"id": finding.code, "shortDescription": {"text": text}}));
    }
    let index: BTreeMap<&str, usize> = rules.keys().enumerate().map(|(i, code)| (*code, i)).collect();
    let results: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            let level = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Info => "note",
            };
            json!({
                "ruleId": finding.code,
                "ruleIndex": index[finding.code.as_str()],
                "level": level,
                "message": {"text": finding.message},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": LOCATION}}}],
                "properties": {"observed": finding.observed, "bound": finding.bound},
            })
        })
        .collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": report.tool.name,
                "version": report.tool.version,
                "rules": rules.into_values().collect::<Vec<_>>(),
            }},
            "results": results,
            "properties": {"verdict": report.verdict.word()},
        }],
    });
    format!("{log:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_finding_is_a_result_of_a_known_rule() {
        let report = sample::report();
        let log: Value = serde_json::from_str(&render(&report)).unwrap();
        let run = &log["runs"][0];
        let results = run["results"].as_array().unwrap();
        assert_eq!(results.len(), report.findings.len());
        assert!(!results.is_empty(), "the sample has findings");
        for result in results {
            let rule = &run["tool"]["driver"]["rules"][result["ruleIndex"].as_u64().unwrap() as usize];
            assert_eq!(rule["id"], result["ruleId"]);
            assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
        }
    }
}
