//! Utility tasks and their bounds, as recipes write them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::Kind;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Perplexity on held-out text; the bound is the relative increase.
    Perplexity,
    /// KL divergence to the base on benign prompts and answers, nats per token; the bound is absolute.
    Kl,
    /// Exact match on maths; the bound is the drop, as a fraction of 1.
    Maths,
    /// Exact match on copying and facts; the bound is the drop.
    Recall,
    /// Benign requests answered (not refused, on topic, not degenerate); the bound is the drop.
    Benign,
    /// Benign twins refused; the bound is the increase.
    OverRefusal,
    /// Benign twins answered (not refused, on topic, not degenerate): what broke is no refusal either; the bound is the drop.
    Twins,
    /// Mean answer length in tokens on benign prompts; the bound is the relative change.
    AnswerLength,
    /// A task file of lm-evaluation-harness, `file`, with a row per metric; the bound is the drop.
    Imported,
}

impl Task {
    /// Whether its bound is on a difference of rates, as a fraction of 1.
    #[must_use]
    pub const fn is_rate(self) -> bool {
        match self {
            Self::Maths | Self::Recall | Self::Benign | Self::OverRefusal | Self::Twins | Self::Imported => true,
            Self::Perplexity | Self::Kl | Self::AnswerLength => false,
        }
    }

    /// Kinds of the prompt set's rows that it is measured on; none for an imported task, which brings its own.
    #[must_use]
    pub const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Perplexity => &[Kind::Text],
            Self::Maths => &[Kind::Maths],
            Self::Recall => &[Kind::Copy, Kind::Fact],
            Self::Kl | Self::Benign | Self::AnswerLength => &[Kind::Benign],
            Self::OverRefusal | Self::Twins => &[Kind::Twin],
            Self::Imported => &[],
        }
    }

    /// Every task, in the order in which they are listed.
    pub const ALL: [Self; 9] = [
        Self::Perplexity,
        Self::Kl,
        Self::Maths,
        Self::Recall,
        Self::Benign,
        Self::OverRefusal,
        Self::Twins,
        Self::AnswerLength,
        Self::Imported,
    ];

    /// The name that recipes and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::Kl => "kl",
            Self::Maths => "maths",
            Self::Recall => "recall",
            Self::Benign => "benign",
            Self::OverRefusal => "over-refusal",
            Self::Twins => "twins",
            Self::AnswerLength => "answer-length",
            Self::Imported => "imported",
        }
    }
}

/// One task of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What is measured.
    pub task: Task,
    /// Items measured at most; absent: all of the evaluation split.
    #[serde(default)]
    pub items: Option<usize>,
    /// The most it may cost, in the task's unit; absent: reported, not gated.
    #[serde(default)]
    pub bound: Option<f64>,
    /// `imported`: the task file, YAML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// `imported`: JSON lines to measure instead of the data that the file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// `imported`: the metric that the bound is for, such as `acc_norm`, or a filter such as `strict-match`; absent: all of the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// `imported`: ask in the model's chat template, as the harness does with `--apply_chat_template`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
}

impl TaskSpec {
    /// A task of the prompt set, on all of its items and without a bound.
    #[must_use]
    pub fn new(task: Task) -> Self {
        Self { task, items: None, bound: None, file: None, data: None, metric: None, chat: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_the_name_that_recipes_write() {
        for task in Task::ALL {
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
    }
}
