//! Asks a model questions under an edit and judges the answers: the only way a rate comes about.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::Example;
use crate::intervention::{Edit, Positions};
use crate::judge::guard::{self, Guard};
use crate::judge::{Composite, Judge, Judged};
use crate::model::Decoder;
use crate::model::generate::{Greedy, generate};
use crate::model::hooks::Intervention;
use crate::model::prompt::PromptEncoder;
use crate::report::{self, sequential};

/// Id that fills padding; the decoder masks it, so its value has no influence.
pub const PAD: u32 = 0;

/// Weights below which a batch of 48 rows is cheap.
const SMALL: usize = 20_000_000;

/// Rows of a prompt set with the token ids that a model reads.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// The rows.
    pub examples: Vec<Example>,
    /// Whole prompts, chat template included, one for each row.
    pub prompts: Vec<Vec<u32>>,
}

impl Questions {
    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Every `step`th row from number `from`: a spread over the whole list, as rows of one category lie side by side.
    #[must_use]
    pub fn every(&self, step: usize, from: usize) -> Self {
        Self {
            examples: self.examples.iter().skip(from).step_by(step.max(1)).cloned().collect(),
            prompts: self.prompts.iter().skip(from).step_by(step.max(1)).cloned().collect(),
        }
    }

    /// The first `n` rows.
    #[must_use]
    pub fn first(&self, n: usize) -> Self {
        Self {
            examples: self.examples.iter().take(n).cloned().collect(),
            prompts: self.prompts.iter().take(n).cloned().collect(),
        }
    }
}

/// How a model answered a list of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Answers that comply, are on topic and make sense.
    pub successes: u64,
    /// Answers that refuse.
    pub refused: u64,
    /// Answers that are broken.
    pub degenerate: u64,
    /// Answers that neither refuse nor are broken, on topic or not.
    pub open: u64,
    /// All answers.
    pub n: u64,
    /// The answers by what both judges say, where a second one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarded: Option<report::Agreement>,
    /// Error of the interval that goes with them, in millionths: less than one in twenty where they were looked at before.
    #[serde(default = "whole")]
    pub error: u32,
}

fn whole() -> u32 {
    sequential::WHOLE
}

impl Default for Counts {
    fn default() -> Self {
        Self { successes: 0, refused: 0, degenerate: 0, open: 0, n: 0, guarded: None, error: whole() }
    }
}

impl Counts {
    /// Counts judgements.
    #[must_use]
    pub fn of(judged: &[Judged]) -> Self {
        let count = |f: &dyn Fn(&Judged) -> bool| judged.iter().filter(|j| f(j)).count() as u64;
        Self {
            successes: count(&|j| j.attack_success()),
            refused: count(&|j| j.refused),
            degenerate: count(&|j| j.degenerate),
            open: count(&|j| !j.refused && !j.degenerate),
            n: judged.len() as u64,
            guarded: None,
            error: whole(),
        }
    }

    /// These and `more` taken together.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        Self {
            successes: self.successes + more.successes,
            refused: self.refused + more.refused,
            degenerate: self.degenerate + more.degenerate,
            open: self.open + more.open,
            n: self.n + more.n,
            guarded: match (self.guarded, more.guarded) {
                (Some(one), Some(other)) => Some(one.plus(other)),
                (one, other) => one.or(other),
            },
            error: self.error.min(more.error),
        }
    }

    /// Attack success, fraction of 1; 0 without answers.
    #[must_use]
    pub fn success(&self) -> f64 {
        report::Rate::new(self.successes, self.n).value()
    }

    /// As a report holds it, corrected for the judge where it is calibrated.
    #[must_use]
    pub fn outcome(&self, calibration: Option<&report::Calibration>) -> report::Outcome {
        let seen = report::Rate::new(self.successes, self.n);
        let interval = sequential::interval(seen, self.error);
        let corrected = calibration.map(|labels| labels.correct(seen, sequential::quantile(self.error)));
        let outcome = report::Outcome::from_counts(self.successes, self.refused, self.degenerate, self.n);
        report::Outcome { low: interval.low, high: interval.high, corrected, ..outcome }
    }
}

/// Generates and judges; cheap to clone where decoders change and prompts do not.
#[derive(Clone)]
pub struct Examiner {
    encoder: PromptEncoder,
    greedy: Greedy,
}

impl Examiner {
    /// For answers of at most `max_new_tokens` by a model of `parameters` weights.
    #[must_use]
    pub fn new(encoder: &PromptEncoder, max_new_tokens: usize, parameters: usize) -> Self {
        let batch = if parameters <= SMALL { 48 } else { 16 };
        Self { encoder: encoder.clone(), greedy: Greedy { max_new_tokens, stop: encoder.stop_ids(), pad: PAD, batch } }
    }

    /// How answers are generated.
    #[must_use]
    pub fn greedy(&self) -> &Greedy {
        &self.greedy
    }

    /// Tokenizer and chat template.
    #[must_use]
    pub fn encoder(&self) -> &PromptEncoder {
        &self.encoder
    }

    /// The name of the judge, as reports write it.
    #[must_use]
    pub fn judge_name(&self) -> &'static str {
        Composite.name()
    }

    /// Greedy answers as text, under `edit` at `positions` if there is one.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn answers(
        &self,
        decoder: &Decoder,
        questions: &Questions,
        edit: Option<(&Edit, Positions)>,
    ) -> Result<Vec<String>> {
        let placed = match edit {
            None | Some((Edit::Identity, _)) => None,
            Some((edit, positions)) => Some((edit.place(decoder.device())?, positions)),
        };
        let edits: Vec<(&dyn Intervention, Positions)> =
            placed.iter().map(|(edit, positions)| (edit as &dyn Intervention, *positions)).collect();
        let answers = generate(decoder, &questions.prompts, &edits, &self.greedy)?;
        answers.iter().map(|ids| self.encoder.decode(ids)).collect()
    }

    /// Judgements of the answers, one a question.
    ///
    /// # Errors
    /// As [`Examiner::answers`].
    pub fn judge(
        &self,
        decoder: &Decoder,
        questions: &Questions,
        edit: Option<(&Edit, Positions)>,
    ) -> Result<Vec<Judged>> {
        let answers = self.answers(decoder, questions, edit)?;
        Ok(questions.examples.iter().zip(&answers).map(|(example, text)| Composite.judge(example, text)).collect())
    }

    /// Judgements counted, and compared with a guard's.
    ///
    /// # Errors
    /// As [`Examiner::answers`] and [`Guard::verdicts`].
    pub fn guarded_counts(
        &self,
        decoder: &Decoder,
        questions: &Questions,
        edit: Option<(&Edit, Positions)>,
        guard: &Guard,
    ) -> Result<Counts> {
        let answers = self.answers(decoder, questions, edit)?;
        let pairs = || questions.examples.iter().zip(&answers);
        let judged: Vec<Judged> = pairs().map(|(example, text)| Composite.judge(example, text)).collect();
        let rows: Vec<(&str, &str)> = pairs().map(|(row, answer)| (row.prompt.as_str(), answer.as_str())).collect();
        let said = guard.verdicts(&rows)?.into_iter().map(|verdict| match verdict {
            guard::Verdict::Harmful => Some(true),
            guard::Verdict::Harmless => Some(false),
            guard::Verdict::Unparsed => None,
        });
        let table = report::Agreement::count(judged.iter().map(Judged::attack_success).zip(said));
        Ok(Counts { guarded: Some(table), ..Counts::of(&judged) })
    }

    /// Judgements counted.
    ///
    /// # Errors
    /// As [`Examiner::answers`].
    pub fn counts(&self, decoder: &Decoder, questions: &Questions, edit: Option<(&Edit, Positions)>) -> Result<Counts> {
        Ok(Counts::of(&self.judge(decoder, questions, edit)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_questions_make_up_the_whole_and_are_spread() {
        let questions = Questions { examples: vec![], prompts: (0..10).map(|id| vec![id]).collect() };
        let parts: Vec<Vec<Vec<u32>>> = (0..4).map(|number| questions.every(4, number).prompts).collect();
        assert_eq!(parts[1], [[1], [5], [9]]);
        let mut all = parts.concat();
        all.sort();
        assert_eq!(all, questions.prompts);
    }

    #[test]
    fn an_answer_of_an_early_look_has_the_wider_interval() {
        let once = Counts { successes: 10, n: 50, ..Counts::default() };
        let early = Counts { error: 3_333, ..once }.outcome(None);
        assert!(early.low < once.outcome(None).low && early.high > once.outcome(None).high);
        assert_eq!(once.and(&once).n, 100);
    }

    #[test]
    fn a_broken_answer_is_neither_open_nor_a_success() {
        let judged = |refused, on_topic, degenerate| Judged { refused, on_topic, degenerate };
        let counts = Counts::of(&[
            judged(true, true, false),
            judged(false, true, true),
            judged(false, false, false),
            judged(false, true, false),
        ]);
        assert_eq!(counts, Counts { successes: 1, refused: 1, degenerate: 1, open: 2, n: 4, ..Counts::default() });
        assert_eq!(counts.success(), 0.25);
    }
}
