//! What hardening must not cost: the same held-out items on the base and on the hardened model.
//!
//! Every task measures both models on the same items of the evaluation split, so that the change is a paired difference
//! and its interval is that of the change and not of two unrelated samples. Rows carry the recipe's bound; whether they
//! keep it is for [`crate::report::Report::conclude`] to say.
//!
//! Answers are graded by a function that the caller hands in: this module knows no judge.

mod behaviour;
mod bench;
mod divergence;
pub mod exact;
pub mod harness;
mod length;
pub mod perplexity;
mod ratio;
mod score;
pub mod spec;

use crate::data::{Example, PromptSet};
use crate::model::Decoder;
use crate::model::prompt::PromptEncoder;
use crate::report::UtilityRow;
use crate::{Error, Result};
use bench::Bench;
use spec::{Task, TaskSpec};

pub use score::Likelihood;

/// What one answer is, as a judge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grade {
    /// Declines all or part of the request.
    pub refused: bool,
    /// Mentions what the request is about.
    pub on_topic: bool,
    /// Is empty, loops or is not text.
    pub degenerate: bool,
}

/// How a request is put to a model.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// The model's view of text.
    pub encoder: &'a PromptEncoder,
    /// System prompt of every dialogue.
    pub system: Option<&'a str>,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
}

/// Grades the answer to one request.
pub type Grader<'a> = dyn Fn(&Example, &str) -> Grade + Sync + 'a;

/// The rows of `data` that a task is measured on; none for one from a file.
#[must_use]
pub fn items<'a>(spec: &TaskSpec, data: &'a PromptSet) -> Vec<&'a Example> {
    bench::items(data, spec.task, spec.items)
}

/// Measures `tasks` of the prompt set on both models, one row per task in the same order; tasks from files are measured by
/// [`harness::HarnessTask::measure`].
///
/// Without a base (`None`) rows have the hardened model's value alone, and a task that compares the two has `n = 0`. A task
/// without items in `data` has `n = 0` too: a gate on it stays undecided. Benign requests are answered in as many tokens as
/// `asking` allows; tasks with one right answer allow three times their longest reference answer where that is more.
///
/// # Errors
/// As [`Decoder::run`] and the encoder's, when a model gives probabilities that are no numbers, and for a task from a file.
pub fn measure<'a>(
    tasks: &[TaskSpec],
    base: impl Into<Option<&'a Decoder>>,
    hardened: &'a Decoder,
    asking: Asking<'a>,
    data: &'a PromptSet,
    grade: &'a Grader<'a>,
) -> Result<Vec<UtilityRow>> {
    let mut bench = Bench::new(base.into(), hardened, asking, data);
    tasks
        .iter()
        .map(|spec| {
            let mut row = match spec.task {
                Task::Perplexity => perplexity::measure(&bench, spec.items),
                Task::Kl => divergence::measure(&mut bench, spec.items),
                Task::Maths => exact::maths(&mut bench, spec.items),
                Task::Recall => exact::recall(&mut bench, spec.items),
                task @ (Task::Benign | Task::Twins) => behaviour::answered(&mut bench, task, spec.items, grade),
                Task::OverRefusal => behaviour::over_refusal(&mut bench, spec.items, grade),
                Task::AnswerLength => length::measure(&mut bench, spec.items),
                Task::Imported => Err(Error::input("utility", "a task from a file is no task of the prompt set")),
            }?;
            row.bound = spec.bound;
            Ok(row)
        })
        .collect()
}

#[cfg(test)]
mod tests;
