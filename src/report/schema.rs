//! The structs of `immunisation/report.json`, schema version 1.
//!
//! Fields are written in declaration order and maps are sorted, so equal facts give equal bytes. Times, memory, paths and
//! host names have no place here: they vary between runs of the same inputs and belong to the run folder.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::agreement::{Agreement, JudgeAgreement};
use super::interval::{Measured, Rate};
use super::prevalence::Calibration;
use super::threshold::Rates;
use crate::error::{Error, Result};

/// The version of the layout below.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything that was measured on one hardened model and its base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Layout version: 1.
    pub schema_version: u32,
    /// The program that measured.
    pub tool: Tool,
    /// SHA-256 of the resolved recipe's canonical JSON.
    pub recipe_digest: String,
    /// The run's seed.
    pub seed: u64,
    /// Device kind, such as `cpu` or `cuda`.
    pub device: String,
    /// SIMD level of host arithmetic, such as `avx2`.
    pub simd: String,
    /// Present in one part of a sharded measurement only; such a part can never be approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The un-hardened model.
    pub base: BaseModel,
    /// The hardened model.
    pub hardened: Hardened,
    /// Who judged the answers; rates are the first judge's.
    pub judges: Vec<JudgeInfo>,
    /// Behaviour without any attack.
    pub clean: Clean,
    /// One row per attack cell.
    pub attacks: Vec<AttackRow>,
    /// Random edits that move activations as far, and no edit.
    pub controls: Vec<AttackRow>,
    /// Attack and control cells that were asked for and not measured; any of them keeps the verdict from being a pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedRow>,
    /// What hardening cost.
    pub utility: Vec<UtilityRow>,
    /// Headline figures, derived from the rows.
    pub summary: Summary,
    /// What the thresholds make of it.
    pub findings: Vec<Finding>,
    /// The decision.
    pub verdict: Verdict,
}

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Program name.
    pub name: String,
    /// Program version.
    pub version: String,
}

impl Tool {
    /// This build.
    #[must_use]
    pub fn this() -> Self {
        Self { name: env!("CARGO_PKG_NAME").into(), version: env!("CARGO_PKG_VERSION").into() }
    }
}

/// Part `index` of `count`, 1-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// 1-based number of this part.
    pub index: u32,
    /// Number of parts.
    pub count: u32,
}

/// Whether an attacker can get the un-hardened base, and with it the whole delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Anybody can download the base.
    #[default]
    Public,
    /// The publisher keeps the base.
    Private,
}

/// The un-hardened model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// Hub id, or the folder's own name.
    pub source: String,
    /// Commit, where there is one.
    pub revision: Option<String>,
    /// Who can get it.
    pub access: Access,
    /// SHA-256 by file name.
    pub digests: BTreeMap<String, String>,
}

/// The hardened model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hardened {
    /// SHA-256 by file name, of the files that were re-opened and measured.
    pub digests: BTreeMap<String, String>,
    /// How far the weights moved.
    pub delta: Delta,
}

/// How far the weights moved.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Tensors whose bytes differ.
    pub tensors_changed: u64,
    /// Largest `‖ΔW‖ / ‖W‖` of a tensor (Frobenius).
    pub max_relative_norm: f64,
    /// Largest effective rank of a matrix's delta where it was computed: `‖ΔW‖²` (Frobenius) over its largest squared
    /// singular value, which is 1 for a change along one direction and the number of directions for an even one.
    pub effective_rank: Option<f64>,
    /// Per block, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockDelta>,
}

/// How far one block's weights moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockDelta {
    /// 0-based block.
    pub layer: usize,
    /// `‖ΔW‖ / ‖W‖` over all the block's matrices taken together (Frobenius).
    pub relative_norm: f64,
    /// Share of the block's squared change that its matrices' first, second, … singular vectors carry, fractions of 1 in
    /// falling order, as far as computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spectrum: Vec<f64>,
}

/// Who judged the answers, and how well it does on labelled answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeInfo {
    /// Registry name.
    pub kind: String,
    /// Fraction of harmful answers it recognises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<f64>,
    /// Fraction of harmless answers it lets pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specificity: Option<f64>,
    /// The labelled answers behind the two, where rates are corrected with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// The same measurement on both models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// On the un-hardened base; absent when it was not at hand.
    pub base: Option<Measured>,
    /// On the hardened model.
    pub hardened: Measured,
}

/// Behaviour without any attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Clean {
    /// Hazardous requests refused.
    pub refusal: Pair,
    /// Benign twins refused.
    pub over_refusal: Pair,
    /// Degenerate answers among all of these.
    pub degenerate: Pair,
}

/// One attack cell, or one control cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackRow {
    /// Row name, unique together with layers, positions and knowledge.
    pub name: String,
    /// Attack kind in the registry.
    pub family: String,
    /// 0-based blocks.
    pub layers: Vec<usize>,
    /// `prompt`, `all` or `last`.
    pub positions: String,
    /// Re-fitted on the hardened weights; otherwise fitted on the base and carried over.
    pub adaptive: bool,
    /// The adversary holds the un-hardened base.
    pub attacker_has_base: bool,
    /// A control, not an attack.
    pub control: bool,
    /// Shown and never gated: what no hardening can prevent, or what is no attack.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ungated: bool,
    /// Independent repetitions behind the figures.
    pub seeds: u64,
    /// What the adversary spent.
    pub budget: Budget,
    /// The most attack success that a gate allows this row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// Whether there was something to defend; set by [`Report::conclude`].
    pub applicable: bool,
    /// The attack success that decides; set by [`Report::conclude`].
    #[serde(default, skip_serializing_if = "Rates::is_raw")]
    pub rates: Rates,
    /// On the un-hardened base, same prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Outcome>,
    /// On the hardened model.
    pub hardened: Outcome,
    /// The hardened model under each of several repetitions, whose mean `hardened` is; empty where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repetitions: Vec<Outcome>,
    /// The hardened model's answers by what both judges say, where there is a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// The command that repeats this row.
    pub reproduce: String,
}

/// One attack or control cell that was asked for and not measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkippedRow {
    /// Row name.
    pub name: String,
    /// `prompt`, `all` or `last`.
    pub positions: String,
    /// 0-based blocks.
    pub layers: Vec<usize>,
    /// Attack kind in the registry.
    pub family: String,
    /// A control, not an attack.
    pub control: bool,
    /// Why.
    pub reason: SkipReason,
    /// Sequences forward and backward that it would have taken at most, with what belongs to it.
    pub gradient_evaluations: u64,
    /// Tokens of scored answers that it would have taken at most, with what belongs to it.
    pub generated_tokens: u64,
}

/// Why a cell was not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// The suite's budget, or the row's, did not pay for it.
    Budget,
}

impl SkipReason {
    /// `budget`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Budget => "budget",
        }
    }
}

/// What an adversary spent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Training pairs.
    pub pairs: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Rank of the edit.
    pub rank: u64,
    /// Norm of the edit relative to the residual stream's, where measured.
    pub relative_norm: Option<f64>,
    /// Sequences run forward and backward, over the whole search.
    pub gradient_evaluations: u64,
    /// What was searched over, in words; empty: nothing.
    pub search: String,
    /// The setting that was taken of those that were tried (a strength, a direction, a step size), in words, of several repetitions that of the most successful;
    /// where the row has an un-hardened value, that of the un-hardened model as well. Empty: there was no choice.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub choice: String,
    /// Whether one of the two is the smallest or largest strength or step size that was tried and succeeds more often than the next one:
    /// finer steps or a wider range may find a better one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_edge: bool,
}

/// How a model answered the hazardous requests of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Complies, on topic and not degenerate: attack success rate.
    pub asr: f64,
    /// Fraction refused.
    pub refused: f64,
    /// Fraction of broken answers.
    pub degenerate: f64,
    /// Prompts.
    pub n: u64,
    /// Lower end of the 95% interval of `asr`.
    pub low: f64,
    /// Upper end of the 95% interval of `asr`.
    pub high: f64,
    /// Attack success corrected for the judge, where it is calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<Measured>,
    /// As many independent answers as the interval is worth, where it is fewer than `n`: phrasings of one request are answered alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_n: Option<f64>,
}

impl Outcome {
    /// Rates of the three counts among `n` answers, with the Wilson interval of attack success.
    #[must_use]
    pub fn from_counts(successes: u64, refused: u64, degenerate: u64, n: u64) -> Self {
        let asr = Rate::new(successes, n);
        let (low, high) = asr.wilson();
        Self {
            asr: asr.value(),
            refused: Rate::new(refused, n).value(),
            degenerate: Rate::new(degenerate, n).value(),
            n,
            low,
            high,
            corrected: None,
            effective_n: None,
        }
    }

    /// The same with attack success as `rates` asks for; as it was seen where it is not corrected.
    #[must_use]
    pub fn by(&self, rates: Rates) -> Self {
        match (rates, self.corrected) {
            (Rates::Corrected, Some(m)) => Self { asr: m.value, low: m.low, high: m.high, ..*self },
            _ => *self,
        }
    }

    /// Attack success alone.
    #[must_use]
    pub fn measured(&self) -> Measured {
        Measured { value: self.asr, n: self.n, low: self.low, high: self.high }
    }
}

/// Which way a utility metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// A fall costs.
    HigherIsBetter,
    /// A rise costs.
    LowerIsBetter,
    /// Any change costs.
    Unchanged,
}

/// One utility task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UtilityRow {
    /// Task name.
    pub task: String,
    /// What was computed, such as `exact match`.
    pub metric: String,
    /// Unit of the values, such as `fraction`, `nats/token`, `tokens`.
    pub unit: String,
    /// Which way is better.
    pub direction: Direction,
    /// On the un-hardened base; absent when it was not at hand or the metric compares the two itself.
    pub base: Option<Measured>,
    /// On the hardened model.
    pub hardened: Measured,
    /// `delta` and `bound` are fractions of the base's value instead of differences in `unit`.
    #[serde(default)]
    pub relative: bool,
    /// Change from base to hardened, from paired items.
    pub delta: Option<Measured>,
    /// The most that the change may cost; absent: not gated.
    pub bound: Option<f64>,
    /// Whether it keeps the bound; absent: not gated, or not decided by this many items.
    pub ok: Option<bool>,
    /// A task from a file: SHA-256 over the digests of the file and its data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Headline figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Mean attack success over the applicable re-fitted rows.
    pub mean_asr: Option<MeanAsr>,
    /// Mean attack success over the applicable frozen rows.
    pub frozen_asr: Option<MeanAsr>,
    /// The row with the highest attack success on the hardened model, of those that count and those that hardening opened.
    pub worst: Option<WorstCell>,
    /// Gradient evaluations to 50% attack success.
    pub budget_to_half: BudgetToHalf,
    /// How far the second judge agrees with the first, over all rows; absent: there is one judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<JudgeAgreement>,
    /// Attack success over budget, where rows differ in nothing but their budget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<super::curve::Curve>,
}

/// Mean attack success over a set of rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeanAsr {
    /// On the un-hardened base.
    pub base: f64,
    /// On the hardened model.
    pub hardened: f64,
}

/// Where the hardened model fails most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorstCell {
    /// Row name.
    pub name: String,
    /// 0-based blocks.
    pub layers: Vec<usize>,
    /// Attack success rate.
    pub asr: f64,
}

/// Gradient evaluations that the cheapest successful rung of the ladder needed; absent: not measured or never reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetToHalf {
    /// On the un-hardened base.
    pub base: Option<u64>,
    /// On the hardened model.
    pub hardened: Option<u64>,
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// For information.
    Info,
    /// Leaves a gate undecided, or should be read before publishing.
    Warning,
    /// Breaks a gate.
    Error,
}

/// One thing that the thresholds make of the measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Stable name, such as `asr-above-bound`.
    pub code: String,
    /// How much it weighs.
    pub severity: Severity,
    /// One line for a reader.
    pub message: String,
    /// The value that was measured.
    pub observed: Option<f64>,
    /// The bound that it was held against.
    pub bound: Option<f64>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every gate holds with its interval.
    Pass,
    /// A gate is broken with its interval.
    Fail,
    /// No gate is broken, but one at least could not be decided.
    Inconclusive,
}

impl Verdict {
    /// Process exit code: 0 passed, 1 failed, 5 inconclusive.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Inconclusive => 5,
        }
    }

    /// `pass`, `fail` or `inconclusive`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl Report {
    /// Pretty JSON with a final newline: the bytes of `immunisation/report.json`.
    ///
    /// Numbers are rounded to nine significant digits: far finer than anything measured, few enough that every JSON reader
    /// gets the same double back, so reading and writing again gives the same bytes.
    #[must_use]
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).expect("string keys and no custom serialisers: cannot fail");
        let mut text = serde_json::to_string_pretty(&rounded(value)).expect("a JSON value always serialises");
        text.push('\n');
        text
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// [`Error::Input`] naming `subject` when the text is no report, has unknown fields, another schema version or figures that no
    /// measurement gives, such as a rate outside of its interval.
    pub fn from_json(text: &str, subject: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u32,
        }
        let problem = |e: serde_json::Error| Error::input(subject, format!("not a report: {e}"));
        let version: Version = serde_json::from_str(text).map_err(problem)?;
        if version.schema_version != SCHEMA_VERSION {
            return Err(Error::input(
                subject,
                format!("expected schema_version {SCHEMA_VERSION}, got {}", version.schema_version),
            )
            .hint("it was written by another version of immunise"));
        }
        let report: Self = serde_json::from_str(text).map_err(problem)?;
        match super::sense::problem(&report) {
            Some(problem) => Err(Error::input(subject, problem)),
            None => Ok(report),
        }
    }

    /// The JSON Schema of a report.
    #[must_use]
    pub fn schema() -> Value {
        schemars::schema_for!(Report).to_value()
    }

    /// The rows of one knowledge that gates are about, attacks only.
    pub fn rows(&self, adaptive: bool) -> impl Iterator<Item = &AttackRow> {
        self.attacks.iter().filter(move |row| row.adaptive == adaptive && !row.ungated)
    }

    /// The control beside `row`: on the same blocks and positions the random edit of its own, or weights that are only rounded beside
    /// those that are rounded and edited; else one that is no other attack's.
    #[must_use]
    pub fn control_of(&self, row: &AttackRow) -> Option<&AttackRow> {
        let here = |c: &&AttackRow| c.layers == row.layers && c.positions == row.positions;
        let of = |c: &&AttackRow| c.name.strip_prefix("random like ").map(str::to_owned);
        let free = |c: &&AttackRow| here(c) && of(c).is_none();
        let rounded =
            row.name.strip_prefix("quantised ").and_then(|rest| Some(format!("identity {}", rest.split(' ').next()?)));
        let own = |c: &&AttackRow| of(c).is_some_and(|name| name == row.name) || rounded.as_ref() == Some(&c.name);
        let named = self.controls.iter().filter(here).find(own);
        let random = || self.controls.iter().filter(free).find(|c| c.family == "random");
        named.or_else(random).or_else(|| self.controls.iter().find(|c| free(c) && !c.ungated))
    }
}

fn rounded(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Number(number) if number.is_f64() => {
            // Rust's own conversions are exact in both directions, so this rounds the same everywhere.
            let short = number.as_f64().and_then(|v| format!("{v:.8e}").parse::<f64>().ok());
            short.and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::curve::{Curve, Reach};
    use super::super::sample;
    use super::*;

    #[test]
    fn writing_what_was_read_gives_the_same_bytes() {
        let report = sample::report();
        let text = report.to_json();
        assert!(text.ends_with("}\n") && text.starts_with("{\n  \"schema_version\": 1,"));
        let back = Report::from_json(&text, "report.json").unwrap();
        assert_eq!(back.to_json(), text);
        assert_eq!(back.findings.len(), report.findings.len());
        assert!((back.attacks[0].hardened.high - report.attacks[0].hardened.high).abs() < 1e-9);
    }

    #[test]
    fn concluding_what_was_read_gives_the_same_bytes() {
        let text = sample::report().to_json();
        let mut back = Report::from_json(&text, "report.json").unwrap();
        back.conclude(&sample::thresholds());
        assert_eq!(back.to_json(), text);
    }

    #[test]
    fn another_schema_version_is_refused_by_name() {
        let text = sample::report().to_json().replacen("\"schema_version\": 1", "\"schema_version\": 2", 1);
        let error = Report::from_json(&text, "report.json").unwrap_err().to_string();
        assert!(error.starts_with("report.json: expected schema_version 1, got 2"), "{error}");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = sample::report().to_json().replacen("\"seed\"", "\"host\": \"x\", \"seed\"", 1);
        assert!(Report::from_json(&text, "report.json").unwrap_err().to_string().contains("host"));
    }

    #[test]
    fn a_curve_without_points_is_refused() {
        let mut report = sample::report();
        let reach = Reach::default();
        let (family, positions) = ("noreft".into(), "all".into());
        report.summary.curves =
            vec![Curve { family, layers: vec![0], positions, points: vec![], base: reach, hardened: reach }];
        let error = Report::from_json(&report.to_json(), "report.json").unwrap_err().to_string();
        assert!(error.starts_with("report.json: `summary.curves.0.points`: expected one point"), "{error}");
    }

    #[test]
    fn every_field_of_a_report_is_in_its_schema() {
        let schema = Report::schema();
        let report: serde_json::Value = serde_json::from_str(&sample::report().to_json()).unwrap();
        for key in report.as_object().unwrap().keys() {
            assert!(schema["properties"].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_row_finds_the_random_control_of_its_block() {
        let report = sample::report();
        let row = &report.attacks[4];
        assert_eq!(report.control_of(row).map(|c| c.layers.clone()), Some(row.layers.clone()));
        // That of another attack at the same block is not beside it, wherever it stands in the list; one of its own is.
        let free = report.control_of(row).unwrap().clone();
        let like = |name: &str| AttackRow { name: format!("random like {name}"), ..free.clone() };
        let row = row.clone();
        let with = |controls: Vec<AttackRow>| Report { controls, ..sample::report() };
        let beside = |report: &Report| report.control_of(&row).map(|control| control.name.clone());
        assert_eq!(beside(&with(vec![like("another"), free.clone()])), Some(free.name.clone()));
        assert_eq!(beside(&with(vec![like("another")])), None);
        assert_eq!(beside(&with(vec![free.clone(), like(&row.name)])), Some(like(&row.name).name));
    }
}
