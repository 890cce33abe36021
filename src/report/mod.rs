//! What was measured, what it means against a recipe's thresholds, and how it is shown. Knows nothing of tensors.
//!
//! [`Report`] is `immunisation/report.json`: facts only, in a fixed order, without times, paths or hosts, so that the same
//! run writes the same bytes. [`Report::conclude`] turns it and a [`Thresholds`] into [`Finding`]s and a [`Verdict`];
//! [`Approved`] can be had from a passed verdict only. The renderings ([`text`], [`card`], [`html`]) read a concluded report
//! and add nothing to it.

pub mod agreement;
pub mod approved;
pub mod bom;
pub mod card;
mod card_front;
pub mod cluster;
pub mod compare;
mod court;
pub mod curve;
pub mod group;
pub mod html;
mod html_budget;
mod html_chart;
mod html_overview;
mod html_spectrum;
pub mod interval;
pub mod junit;
pub mod limit;
pub mod merge;
pub mod prevalence;
#[cfg(test)]
mod sample;
pub mod sarif;
pub mod schema;
mod sense;
pub mod sequential;
pub mod svg;
pub mod text;
pub mod threshold;
pub mod verdict;
pub mod wording;

pub use agreement::{Agreement, JudgeAgreement};
pub use approved::Approved;
pub use interval::{Interval, Measured, Pairs, Rate};
pub use prevalence::Calibration;
pub use schema::{
    Access, AttackRow, BaseModel, BlockDelta, Budget, BudgetToHalf, Clean, Delta, Direction, Finding, Hardened,
    JudgeInfo, MeanAsr, Outcome, Pair, Report, Severity, Shard, SkipReason, SkippedRow, Summary, Tool, UtilityRow,
    Verdict, WorstCell,
};
pub use threshold::{AsrBound, MaxBound, MinBound, Rates, Thresholds};
