//! Utility tasks and their bounds, as recipes write them.

use serde::{Deserialize, Serialize};

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
    /// Mean answer length in tokens on benign prompts; the bound is the relative change.
    AnswerLength,
}

impl Task {
    /// Every task, in the order in which they are listed.
    pub const ALL: [Self; 7] =
        [Self::Perplexity, Self::Kl, Self::Maths, Self::Recall, Self::Benign, Self::OverRefusal, Self::AnswerLength];

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
            Self::AnswerLength => "answer-length",
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
