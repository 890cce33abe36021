//! What a model answers to the questions of a task, and which answers are right.
//!
//! Tokens as in the harness: a text gets the tokenizer's special tokens unless it begins with BOS; spaces at the end of a
//! context belong to the continuation; a continuation's tokens are those of context and continuation together beyond the
//! context's own; what exceeds the model's positions is cut off at the left.

use std::cmp::Ordering;

use super::item::{Item, Right};
use super::{ChoiceMetric, Scoring, TaskFile};
use crate::model::Decoder;
use crate::model::chat_template::Message;
use crate::model::generate::{Greedy, generate_until};
use crate::model::prompt::PromptEncoder;
use crate::utility::bench::BATCH;
use crate::utility::score::{Likelihood, Passage, likelihoods};
use crate::{Error, Result};

/// What one model answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// A response per question.
    pub responses: Vec<Response>,
    /// For every metric, whether each question was answered right.
    pub outcomes: Vec<Vec<bool>>,
}

/// The response to one question.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Log-likelihood of every choice.
    Choices(Vec<Likelihood>),
    /// The answer, up to the text that ends it.
    Text(String),
}

pub(super) fn evaluate(
    file: &TaskFile,
    items: &[Item],
    chat: bool,
    decoder: &Decoder,
    encoder: &PromptEncoder,
) -> Result<Evaluated> {
    let reader = Reader { file, encoder, chat, positions: decoder.blueprint().positions() };
    match &file.scoring {
        Scoring::Choice { metrics, .. } => reader.choose(items, metrics, decoder),
        Scoring::Generation { .. } => reader.generate(items, decoder),
    }
}

/// Refuses what no model of that tokenizer and size could be asked.
pub(super) fn check(
    file: &TaskFile,
    items: &[Item],
    chat: bool,
    encoder: &PromptEncoder,
    positions: usize,
) -> Result<()> {
    let reader = Reader { file, encoder, chat, positions };
    match &file.scoring {
        Scoring::Choice { .. } => reader.passages(items).map(|_| ()),
        Scoring::Generation { max_new_tokens, exact, .. } => {
            reader.prompts(items, *max_new_tokens)?;
            let rights = items.iter().filter_map(|item| match &item.right {
                Right::Text(right) => Some(right),
                Right::Choice { .. } => None,
            });
            rights.into_iter().try_for_each(|right| exact.plain(right).map(|_| ()))
        }
    }
}

struct Reader<'a> {
    file: &'a TaskFile,
    encoder: &'a PromptEncoder,
    chat: bool,
    positions: usize,
}

impl Reader<'_> {
    /// A passage per choice of every question.
    fn passages(&self, items: &[Item]) -> Result<Vec<Passage>> {
        let mut passages = vec![];
        for (item, choices, _) in items.iter().filter_map(of_choice) {
            let context = self.context(item)?;
            let delimiter = if self.chat { "" } else { self.file.target_delimiter.as_str() };
            for choice in choices {
                passages.push(self.passage(&context, &format!("{delimiter}{choice}"))?);
            }
        }
        Ok(passages)
    }

    fn choose(&self, items: &[Item], metrics: &[ChoiceMetric], decoder: &Decoder) -> Result<Evaluated> {
        let mut scored = likelihoods(decoder, &self.passages(items)?)?.into_iter();
        let (mut responses, mut outcomes) = (vec![], vec![vec![]; metrics.len()]);
        for (_, choices, gold) in items.iter().filter_map(of_choice) {
            let scores: Vec<Likelihood> = scored.by_ref().take(choices.len()).collect();
            for (metric, outcomes) in metrics.iter().zip(&mut outcomes) {
                outcomes.push(best(*metric, &scores, choices) == gold);
            }
            responses.push(Response::Choices(scores));
        }
        Ok(Evaluated { responses, outcomes })
    }

    /// Every question, with room for an answer.
    fn prompts(&self, items: &[Item], max_new_tokens: usize) -> Result<Vec<Vec<u32>>> {
        let room = self.positions.checked_sub(max_new_tokens).filter(|room| *room > 0).ok_or_else(|| {
            let problem = format!(
                "generation_kwargs.max_gen_toks: expected less than the model's {} positions, got {max_new_tokens}",
                self.positions
            );
            Error::file(&self.file.path, problem)
        })?;
        items.iter().map(|item| self.prompt(item, room)).collect()
    }

    fn generate(&self, items: &[Item], decoder: &Decoder) -> Result<Evaluated> {
        let Scoring::Generation { until, max_new_tokens, filters, exact } = &self.file.scoring else {
            return Ok(Evaluated { responses: vec![], outcomes: vec![] });
        };
        let prompts = self.prompts(items, *max_new_tokens)?;
        let options = Greedy { max_new_tokens: *max_new_tokens, stop: self.encoder.stop_ids(), pad: 0, batch: BATCH };
        let ended = |ids: &[u32]| {
            let text = self.encoder.tokenizer().decode(ids, false)?;
            Ok(until.iter().any(|end| text.contains(end.as_str())))
        };
        let answers = generate_until(decoder, &prompts, &[], &options, &ended)?;
        let (mut responses, mut outcomes) = (vec![], vec![vec![]; filters.len()]);
        for (item, ids) in items.iter().zip(answers) {
            let answer = cut(self.encoder.decode(&ids)?, until);
            if let Right::Text(right) = &item.right {
                for (filter, outcomes) in filters.iter().zip(&mut outcomes) {
                    outcomes.push(exact.holds(&filter.apply(&answer), right));
                }
            }
            responses.push(Response::Text(answer));
        }
        Ok(Evaluated { responses, outcomes })
    }

    /// The text before the answer.
    fn context(&self, item: &Item) -> Result<String> {
        if !self.chat {
            return Ok(format!("{}{}", item.description, item.prompt));
        }
        let system = Some(&item.description).filter(|text| !text.is_empty());
        let mut messages: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
        messages.push(Message::new("user", &item.prompt));
        self.encoder.template().render(&messages, true)
    }

    fn prompt(&self, item: &Item, room: usize) -> Result<Vec<u32>> {
        let ids = self.encode(&self.context(item)?)?;
        if ids.is_empty() {
            return Err(Error::file(&self.file.path, "doc_to_text: expected a question, got an empty text"));
        }
        Ok(ids[ids.len().saturating_sub(room)..].to_vec())
    }

    /// The ids of a text with what the tokenizer puts around it.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let begun = self.prefix().is_some_and(|prefix| text.starts_with(prefix));
        self.encoder.tokenizer().encode(text, !begun)
    }

    /// The token that a text begins with where nothing else does.
    fn prefix(&self) -> Option<&str> {
        self.encoder.template().bos_token().or_else(|| self.encoder.template().eos_token())
    }

    fn passage(&self, context: &str, continuation: &str) -> Result<Passage> {
        let (mut context, scored) = if context.is_empty() {
            self.alone(continuation)?
        } else {
            let kept = context.trim_end();
            let whole = self.encode(&format!("{context}{continuation}"))?;
            let context = self.encode(kept)?;
            let scored = whole.get(context.len()..).unwrap_or_default().to_vec();
            (context, scored)
        };
        if context.is_empty() || scored.is_empty() || scored.len() > self.positions {
            let problem = format!(
                "expected a context and up to {} tokens of a choice after it, got {} and {} for `{continuation}`",
                self.positions,
                context.len(),
                scored.len()
            );
            return Err(Error::file(&self.file.path, problem));
        }
        // One token more than the positions, as in the harness: the last one is scored and not fed.
        let excess = (context.len() + scored.len()).saturating_sub(self.positions + 1);
        context.drain(..excess.min(context.len() - 1));
        Ok(Passage { context, scored })
    }

    /// A continuation of nothing but the token that texts begin with.
    fn alone(&self, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let scored = self.encoder.tokenizer().encode(continuation, false)?;
        let first = self.prefix().and_then(|token| self.encoder.tokenizer().token_to_id(token));
        Ok(match first {
            Some(first) if scored.first() == Some(&first) => (vec![first], scored[1..].to_vec()),
            Some(first) => (vec![first], scored),
            None => (vec![], scored),
        })
    }
}

fn of_choice(item: &Item) -> Option<(&Item, &[String], usize)> {
    match &item.right {
        Right::Choice { choices, gold } => Some((item, choices, *gold)),
        Right::Text(_) => None,
    }
}

/// Index of the choice with the highest score; the first of equals.
fn best(metric: ChoiceMetric, scores: &[Likelihood], choices: &[String]) -> usize {
    let length = |choice: &String| match metric {
        ChoiceMetric::Acc => 1.0,
        ChoiceMetric::AccNorm => choice.chars().count() as f64,
        ChoiceMetric::AccBytes => choice.len() as f64,
    };
    let values: Vec<f64> = scores.iter().zip(choices).map(|(score, choice)| score.nats / length(choice)).collect();
    let higher = |best: usize, i: usize| if values[i].total_cmp(&values[best]) == Ordering::Greater { i } else { best };
    (0..values.len()).reduce(higher).unwrap_or(0)
}

/// The text before the first of `ends`.
fn cut(mut text: String, ends: &[String]) -> String {
    for end in ends.iter().filter(|end| !end.is_empty()) {
        if let Some(at) = text.find(end.as_str()) {
            text.truncate(at);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(nats: [f64; 3]) -> Vec<Likelihood> {
        nats.into_iter().map(|nats| Likelihood { nats, greedy: false }).collect()
    }

    #[test]
    fn long_choices_gain_by_length_and_ties_go_to_the_first() {
        let choices = ["ab", "abcd", "é"].map(str::to_owned);
        let scores = scores([-2.0, -3.0, -2.0]);
        assert_eq!(best(ChoiceMetric::Acc, &scores, &choices), 0);
        assert_eq!(best(ChoiceMetric::AccNorm, &scores, &choices), 1);
        let even = self::scores([-4.0, -8.0, -4.0]);
        assert_eq!(best(ChoiceMetric::AccBytes, &even, &choices), 0, "all −2 a byte");
    }

    #[test]
    fn an_answer_ends_at_the_first_of_its_ends() {
        let ends = ["Question:", "\n\n"].map(str::to_owned);
        assert_eq!(cut("a\n\nb Question: c".into(), &ends), "a");
        assert_eq!(cut("a".into(), &ends), "a");
    }
}
