//! Tasks in the form of EleutherAI's Language Model Evaluation Harness: a YAML file over a data set of JSON lines.
//!
//! Two kinds are understood: `multiple_choice`, scored by the log-likelihood of each choice, and `generate_until`, scored by
//! exact match after filters. Prompts, tokens, scores and ties are those of the harness (compared with version 0.4.13,
//! `tests/interop/harness.py`), so that a figure here means what it means there. Reading the YAML is the recipe's business;
//! what a file asks for and this module does not do is refused there and never skipped. No network and no Python.

mod dialect;
mod documents;
pub mod filter;
mod item;
pub mod pattern;
mod score;
pub mod template;

use std::path::PathBuf;

use super::bench::{Both, rate_row, spread};
use super::spec::TaskSpec;
use crate::checkpoint::Digest;
use crate::model::Decoder;
use crate::model::prompt::PromptEncoder;
use crate::report::{Direction, UtilityRow};
use crate::{Error, Result};

use documents::Documents;
use filter::{ExactMatch, Filter};
use item::Item;
use template::Document;

pub use score::{Evaluated, Response};

/// What a task file says, complete and valid.
#[derive(Debug, Clone)]
pub struct TaskFile {
    /// `task`.
    pub name: String,
    /// The file itself.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// JSON lines of the split that is measured.
    pub documents: PathBuf,
    /// Solved examples before each question.
    pub shots: Shots,
    /// `description`, a template before everything else.
    pub description: String,
    /// `doc_to_text`, a field or template.
    pub text: String,
    /// `doc_to_target`.
    pub target: Target,
    /// Between question and answer.
    pub target_delimiter: String,
    /// After each solved example.
    pub fewshot_delimiter: String,
    /// How answers are scored.
    pub scoring: Scoring,
}

/// Solved examples, taken in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Shots {
    /// None.
    None,
    /// The first ones of a data set, the question itself left out where it is in it.
    Of(usize, PathBuf),
    /// These.
    Listed(Vec<Document>),
}

/// The right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A field or template.
    Source(String),
    /// The choice of this index, whatever the question.
    Index(usize),
}

/// How answers are scored.
#[derive(Debug, Clone)]
pub enum Scoring {
    /// The likeliest of several continuations.
    Choice {
        /// The continuations.
        choices: Choices,
        /// What is reported.
        metrics: Vec<ChoiceMetric>,
    },
    /// A greedy answer, compared as text.
    Generation {
        /// Texts that end an answer.
        until: Vec<String>,
        /// Longest answer, tokens.
        max_new_tokens: usize,
        /// Ways to read an answer, one metric each.
        filters: Vec<Filter>,
        /// The comparison.
        exact: ExactMatch,
    },
}

/// The continuations of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choices {
    /// The same for every question.
    Listed(Vec<String>),
    /// A field, or a template of one expression.
    Source(String),
}

/// Which choice counts as the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceMetric {
    /// The likeliest.
    Acc,
    /// The likeliest per character of the choice.
    AccNorm,
    /// The likeliest per byte of the choice.
    AccBytes,
}

impl Shots {
    /// Whether a question has solved examples before it.
    fn any(&self) -> bool {
        match self {
            Self::None => false,
            Self::Of(count, _) => *count > 0,
            Self::Listed(rows) => !rows.is_empty(),
        }
    }
}

impl ChoiceMetric {
    /// Every metric with its name in task files.
    pub const ALL: [(&'static str, Self); 3] =
        [("acc", Self::Acc), ("acc_norm", Self::AccNorm), ("acc_bytes", Self::AccBytes)];

    fn words(self) -> &'static str {
        match self {
            Self::Acc => "right choice by log-likelihood",
            Self::AccNorm => "right choice by log-likelihood per character",
            Self::AccBytes => "right choice by log-likelihood per byte",
        }
    }
}

impl Scoring {
    /// Names of the metrics with what they are: `acc`, `exact_match`, or the names of the filters by which answers are read.
    #[must_use]
    pub fn metrics(&self) -> Vec<(String, String)> {
        match self {
            Self::Choice { metrics, .. } => metrics
                .iter()
                .filter_map(|metric| Some((ChoiceMetric::ALL.iter().find(|(_, m)| m == metric)?.0, metric.words())))
                .map(|(name, words)| (name.to_owned(), words.to_owned()))
                .collect(),
            Self::Generation { filters, .. } if filters.iter().all(|filter| filter.name == NO_FILTER) => {
                vec![("exact_match".into(), "exact match".into())]
            }
            Self::Generation { filters, .. } => {
                filters.iter().map(|filter| (filter.name.clone(), format!("exact match, {}", filter.name))).collect()
            }
        }
    }
}

/// Name of the filter that does nothing.
pub const NO_FILTER: &str = "none";

/// A task with its questions, ready to be measured.
#[derive(Debug)]
pub struct HarnessTask {
    file: TaskFile,
    items: Vec<Item>,
    digest: String,
    chat: bool,
    gated: Option<String>,
    bound: Option<f64>,
}

impl HarnessTask {
    /// Reads the data of a task file and renders every question that is asked.
    ///
    /// `spec` may name another data set, the number of questions (spread evenly over the data), and what is gated.
    ///
    /// # Errors
    /// [`Error::Io`] for data that cannot be read; [`Error::Input`] naming file, line and key of a question that cannot be
    /// rendered; [`Error::Usage`] where the gated metric is none of the task's, and for solved examples in the chat template.
    pub fn open(file: TaskFile, spec: &TaskSpec) -> Result<Self> {
        let names = file.scoring.metrics();
        if let Some(metric) = spec.metric.as_ref().filter(|metric| !names.iter().any(|(name, _)| name == *metric)) {
            let listed: Vec<String> = names.iter().map(|(name, _)| format!("`{name}`")).collect();
            let problem = format!("`{}` has no metric `{metric}`", file.path.display());
            return Err(Error::usage(problem).hint(format!("it has {}", listed.join(", "))));
        }
        if spec.chat && file.shots.any() {
            let problem = format!("`{}`: `chat` with solved examples is not supported", file.path.display());
            return Err(Error::usage(problem).hint("leave `chat` out, or the solved examples (`num_fewshot: 0`)"));
        }
        let mut documents = Documents::read(spec.data.as_deref().unwrap_or(&file.documents))?;
        documents.rows = spread(documents.rows, spec.items);
        let shots = match &file.shots {
            Shots::Of(_, path) => Some(Documents::read(path)?),
            _ => None,
        };
        let items = item::items(&file, &documents, shots.as_ref())?;
        let parts = [Some(file.digest), Some(documents.digest), shots.map(|shots| shots.digest)];
        let parts: Vec<String> = parts.into_iter().flatten().map(|digest| digest.to_string()).collect();
        Ok(Self {
            digest: Digest::of(parts.join("\n").as_bytes()).to_string(),
            items,
            chat: spec.chat,
            gated: spec.metric.clone(),
            bound: spec.bound,
            file,
        })
    }

    /// Names of the rows, in order.
    #[must_use]
    pub fn rows(&self) -> Vec<String> {
        self.file.scoring.metrics().into_iter().map(|(metric, _)| self.row_name(&metric)).collect()
    }

    /// Names of the rows with the bound that each is held to, in order.
    #[must_use]
    pub fn bounds(&self) -> Vec<(String, Option<f64>)> {
        let metrics = self.file.scoring.metrics().into_iter();
        metrics.map(|(metric, _)| (self.row_name(&metric), self.bound_of(&metric))).collect()
    }

    /// A bound is for one metric where the recipe names it, else for all of the file's.
    fn bound_of(&self, metric: &str) -> Option<f64> {
        self.bound.filter(|_| self.gated.as_ref().is_none_or(|gated| gated == metric))
    }

    fn row_name(&self, metric: &str) -> String {
        format!("{} {metric}", self.file.name)
    }

    /// SHA-256 over the digests of the task file, its data and its solved examples.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Refuses a task that models with that tokenizer and so many positions could not do, before hours of work.
    ///
    /// # Errors
    /// [`Error::Input`] for a question or choice that is empty or does not fit, for an answer longer than the positions, and for
    /// a right answer that a pattern takes too long to read.
    pub fn check(&self, encoder: &PromptEncoder, positions: usize) -> Result<()> {
        score::check(&self.file, &self.items, self.chat, encoder, positions)
    }

    /// What one model answers, question by question.
    ///
    /// # Errors
    /// Those of [`HarnessTask::check`] and [`Decoder::run`].
    pub fn evaluate(&self, decoder: &Decoder, encoder: &PromptEncoder) -> Result<Evaluated> {
        score::evaluate(&self.file, &self.items, self.chat, decoder, encoder)
    }

    /// A row per metric, both models on the same questions.
    ///
    /// # Errors
    /// As [`HarnessTask::evaluate`].
    pub fn measure(
        &self,
        base: Option<&Decoder>,
        hardened: &Decoder,
        encoder: &PromptEncoder,
    ) -> Result<Vec<UtilityRow>> {
        let base = base.map(|base| self.evaluate(base, encoder)).transpose()?;
        let hardened = self.evaluate(hardened, encoder)?;
        let rows = self.file.scoring.metrics().into_iter().enumerate().map(|(i, (metric, words))| {
            let outcomes = Both {
                base: base.as_ref().map(|base| base.outcomes[i].clone()),
                hardened: hardened.outcomes[i].clone(),
            };
            // A file of items does not say which are alike.
            let own: Vec<usize> = (0..outcomes.hardened.len()).collect();
            UtilityRow {
                bound: self.bound_of(&metric),
                digest: Some(self.digest.clone()),
                ..rate_row(&self.row_name(&metric), &words, Direction::HigherIsBetter, &outcomes, &own)
            }
        });
        Ok(rows.collect())
    }
}
