//! Questions as the model is asked them: rendered once, before anything is measured.

use std::collections::BTreeSet;

use serde_json::Value;

use super::documents::Documents;
use super::template::{Document, Templates, as_text};
use super::{Choices, Scoring, Shots, Target, TaskFile};
use crate::{Error, Result};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    /// `description`; the system turn where the chat template is used.
    pub description: String,
    /// Solved examples and the question.
    pub prompt: String,
    /// What is right.
    pub right: Right,
}

/// What is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Right {
    /// One of these continuations.
    Choice {
        /// The continuations without the delimiter.
        choices: Vec<String>,
        /// Index of the right one.
        gold: usize,
    },
    /// This text.
    Text(String),
}

/// Every question of `documents`, in order.
pub(super) fn items(file: &TaskFile, documents: &Documents, shots: Option<&Documents>) -> Result<Vec<Item>> {
    let render = Renderer::new(file, &documents.fields);
    let solved = match (&file.shots, shots) {
        (Shots::Of(count, path), Some(shots)) => {
            // One more than asked for, in case the question itself is among them.
            let same = *path == documents.path;
            let wanted = count + usize::from(same);
            let examples = Renderer::new(file, &shots.fields);
            let rows = shots.rows.iter().take(wanted);
            let solved = rows
                .map(|(line, row)| {
                    Ok((row.clone(), examples.solved(row).map_err(|e| at_line(&shots.path, *line, &e))?))
                })
                .collect::<Result<Vec<_>>>()?;
            Solved { count: *count, leave_out: same, examples: solved }
        }
        (Shots::Listed(rows), _) => {
            let fields = rows.iter().flat_map(|row| row.keys().cloned()).collect();
            let examples = Renderer::new(file, &fields);
            let solved = rows.iter().enumerate().map(|(i, row)| {
                let wrong = |error: String| Error::file(&file.path, format!("fewshot_config.samples.{i}: {error}"));
                Ok((row.clone(), examples.solved(row).map_err(wrong)?))
            });
            Solved { count: rows.len(), leave_out: false, examples: solved.collect::<Result<_>>()? }
        }
        _ => Solved { count: 0, leave_out: false, examples: vec![] },
    };
    documents
        .rows
        .iter()
        .map(|(line, row)| render.item(row, &solved).map_err(|error| at_line(&documents.path, *line, &error)))
        .collect()
}

fn at_line(path: &std::path::Path, line: usize, error: &str) -> Error {
    Error::file(path, format!("line {line}: {error}"))
}

/// Solved examples, each with the row that it was made from.
struct Solved {
    count: usize,
    leave_out: bool,
    examples: Vec<(Document, String)>,
}

impl Solved {
    /// The text before the question `row`.
    fn before(&self, row: &Document) -> Result<String, String> {
        let others = self.examples.iter().filter(|(example, _)| !self.leave_out || example != row);
        let texts: Vec<&str> = others.take(self.count).map(|(_, text)| text.as_str()).collect();
        if texts.len() < self.count {
            return Err(format!("expected {} solved examples, got {}", self.count, texts.len()));
        }
        Ok(texts.concat())
    }
}

struct Renderer<'a> {
    file: &'a TaskFile,
    templates: Templates,
}

impl<'a> Renderer<'a> {
    fn new(file: &'a TaskFile, fields: &BTreeSet<String>) -> Self {
        Self { file, templates: Templates::new(fields.clone()) }
    }

    fn item(&self, row: &Document, solved: &Solved) -> Result<Item, String> {
        let right = match &self.file.scoring {
            Scoring::Choice { choices, .. } => {
                let choices = self.choices(choices, row)?;
                let gold = self.gold(&choices, row)?;
                Right::Choice { choices, gold }
            }
            Scoring::Generation { .. } => Right::Text(self.right_text(row)?),
        };
        let description = self.templates.value(&self.file.description, row).and_then(|value| as_text(&value));
        Ok(Item {
            description: description.map_err(|error| format!("description: {error}"))?,
            prompt: solved.before(row)? + &self.question(row)?,
            right,
        })
    }

    /// A question with its right answer and what separates it from the next.
    fn solved(&self, row: &Document) -> Result<String, String> {
        let answer = match &self.file.scoring {
            Scoring::Choice { choices, .. } => {
                let choices = self.choices(choices, row)?;
                let gold = self.gold(&choices, row)?;
                choices[gold].clone()
            }
            Scoring::Generation { .. } => self.right_text(row)?,
        };
        if answer.is_empty() {
            return Err("doc_to_target: a solved example has an empty answer".into());
        }
        Ok([&self.question(row)?, &self.file.target_delimiter, &answer, &self.file.fewshot_delimiter]
            .map(String::as_str)
            .concat())
    }

    fn question(&self, row: &Document) -> Result<String, String> {
        let wrong = |error: String| format!("doc_to_text: {error}");
        let value = self.templates.value(&self.file.text, row).map_err(wrong)?;
        let Value::String(text) = value else { return Err(wrong(format!("expected a text, got `{value}`"))) };
        // The harness takes a number here for the index of a context among several, which is another kind of task.
        let choice = matches!(self.file.scoring, Scoring::Choice { .. });
        if choice && !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
            return Err(wrong(format!(
                "expected a question, got the number `{text}`: several contexts are not supported"
            )));
        }
        Ok(text)
    }

    fn choices(&self, choices: &Choices, row: &Document) -> Result<Vec<String>, String> {
        let wrong = |error: String| format!("doc_to_choice: {error}");
        let choices = match choices {
            Choices::Listed(choices) => choices.clone(),
            Choices::Source(source) => self.templates.list(source, row).map_err(wrong)?,
        };
        if choices.len() < 2 || choices.iter().any(String::is_empty) {
            return Err(wrong(format!("expected two choices at least, none of them empty, got {choices:?}")));
        }
        Ok(choices)
    }

    fn gold(&self, choices: &[String], row: &Document) -> Result<usize, String> {
        let wrong = |error: String| format!("doc_to_target: {error}");
        let source = match &self.file.target {
            Target::Index(index) => return in_range(*index as u64, choices).map_err(wrong),
            Target::Source(source) => source,
        };
        let of_field = self.templates.is_field(source);
        let gold = match self.templates.value(source, row).map_err(wrong)? {
            Value::Bool(second) => in_range(u64::from(second), choices),
            Value::Number(number) if number.is_u64() => in_range(number.as_u64().unwrap_or(u64::MAX), choices),
            Value::String(text) => match text.parse::<u64>() {
                Ok(index) if !of_field && text.chars().all(|c| c.is_ascii_digit()) => in_range(index, choices),
                _ => choices
                    .iter()
                    .position(|choice| *choice == text)
                    .ok_or_else(|| format!("expected the index or text of a choice of {choices:?}, got `{text}`")),
            },
            other => Err(format!("expected the index or text of one choice, got `{other}`")),
        };
        gold.map_err(wrong)
    }

    fn right_text(&self, row: &Document) -> Result<String, String> {
        let wrong = |error: String| format!("doc_to_target: {error}");
        let Target::Source(source) = &self.file.target else {
            return Err(wrong("expected a field or template".into()));
        };
        let text = self.templates.value(source, row).and_then(|value| as_text(&value)).map_err(wrong)?;
        if text.len() >= 2 && text.starts_with('[') && text.ends_with(']') && !self.templates.is_field(source) {
            return Err(wrong(format!("expected one right answer, got the list `{text}`")));
        }
        Ok(text)
    }
}

fn in_range(index: u64, choices: &[String]) -> Result<usize, String> {
    let found = usize::try_from(index).ok().filter(|index| *index < choices.len());
    found.ok_or_else(|| format!("expected the index of one of {} choices, got {index}", choices.len()))
}
