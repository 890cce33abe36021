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
use crate::report::{self, cluster, sequential};

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
    /// How alike phrasings of one request were answered.
    #[serde(default)]
    pub designs: Designs,
}

/// How many times as much each rate varies as one of independent answers ([`cluster`]), in thousandths rounded up: whole
/// numbers, so that counts stay comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Designs {
    /// Of [`Counts::successes`].
    pub successes: u32,
    /// Of [`Counts::refused`].
    pub refused: u32,
    /// Of [`Counts::degenerate`].
    pub degenerate: u32,
}

impl Default for Designs {
    fn default() -> Self {
        Self { successes: 1000, refused: 1000, degenerate: 1000 }
    }
}

/// Judged answers, each with the request that it is a phrasing of.
#[derive(Debug, Clone, Default)]
pub struct Judgements {
    judged: Vec<Judged>,
    requests: Vec<String>,
    guarded: Option<report::Agreement>,
}

impl Judgements {
    /// Judgements of the answers to `examples`, in their order.
    #[must_use]
    pub fn new(examples: &[Example], judged: Vec<Judged>) -> Self {
        Self { judged, requests: examples.iter().map(Example::request).collect(), guarded: None }
    }

    /// These and then `more`.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.judged.extend(more.judged);
        self.requests.extend(more.requests);
        self.guarded = match (self.guarded, more.guarded) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        self
    }

    /// Counts them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let is = |f: &dyn Fn(&Judged) -> bool| -> Vec<f64> { self.judged.iter().map(|j| f64::from(f(j))).collect() };
        let of = |f: &dyn Fn(&Judged) -> bool| {
            let values = is(f);
            let design = cluster::of_rate(&values, &self.requests);
            (values.iter().sum::<f64>() as u64, (design * 1000.0).ceil() as u32)
        };
        let (successes, of_successes) = of(&Judged::attack_success);
        let (refused, of_refused) = of(&|j| j.refused);
        let (degenerate, of_degenerate) = of(&|j| j.degenerate);
        Counts {
            successes,
            refused,
            degenerate,
            open: of(&|j| !j.refused && !j.degenerate).0,
            n: self.judged.len() as u64,
            guarded: self.guarded,
            error: whole(),
            designs: Designs { successes: of_successes, refused: of_refused, degenerate: of_degenerate },
        }
    }
}

fn whole() -> u32 {
    sequential::WHOLE
}

impl Default for Counts {
    fn default() -> Self {
        let designs = Designs::default();
        Self { successes: 0, refused: 0, degenerate: 0, open: 0, n: 0, guarded: None, error: whole(), designs }
    }
}

impl Counts {
    /// Attack success, fraction of 1; 0 without answers.
    #[must_use]
    pub fn success(&self) -> f64 {
        report::Rate::new(self.successes, self.n).value()
    }

    /// As a report holds it, corrected for the judge where it is calibrated.
    #[must_use]
    pub fn outcome(&self, calibration: Option<&report::Calibration>) -> report::Outcome {
        let seen = report::Rate::new(self.successes, self.n);
        let design = self.design();
        let interval = sequential::interval(seen, self.error, design);
        let corrected = calibration.map(|labels| labels.correct(seen, sequential::quantile(self.error), design));
        let outcome = report::Outcome::from_counts(self.successes, self.refused, self.degenerate, self.n);
        let effective_n = (self.designs.successes > 1000).then(|| self.n as f64 / design);
        report::Outcome { low: interval.low, high: interval.high, corrected, effective_n, ..outcome }
    }

    /// How many times as much attack success varies as with independent answers.
    #[must_use]
    pub fn design(&self) -> f64 {
        f64::from(self.designs.successes) / 1000.0
    }

    /// Share of refusals with its interval.
    #[must_use]
    pub fn refusal(&self) -> report::Measured {
        report::Rate::new(self.refused, self.n).over(f64::from(self.designs.refused) / 1000.0)
    }

    /// Share of broken answers in all of `parts`, which have no request in common, with its interval.
    #[must_use]
    pub fn broken(parts: &[Self]) -> report::Measured {
        let sum = |of: fn(&Self) -> u64| parts.iter().map(of).sum();
        let rate = report::Rate::new(sum(|p| p.degenerate), sum(|p| p.n));
        let worth: f64 = parts.iter().map(|p| p.n as f64 * 1000.0 / f64::from(p.designs.degenerate)).sum();
        rate.over(if worth > 0.0 { rate.n as f64 / worth } else { 1.0 })
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

    /// Judgements of the answers, compared with a guard's where there is one.
    ///
    /// # Errors
    /// As [`Examiner::answers`] and [`Guard::verdicts`].
    pub fn judgements(
        &self,
        decoder: &Decoder,
        questions: &Questions,
        edit: Option<(&Edit, Positions)>,
        guard: Option<&Guard>,
    ) -> Result<Judgements> {
        let answers = self.answers(decoder, questions, edit)?;
        let pairs = || questions.examples.iter().zip(&answers);
        let judged: Vec<Judged> = pairs().map(|(example, text)| Composite.judge(example, text)).collect();
        let Some(guard) = guard else { return Ok(Judgements::new(&questions.examples, judged)) };
        let rows: Vec<(&str, &str)> = pairs().map(|(row, answer)| (row.prompt.as_str(), answer.as_str())).collect();
        let said = guard.verdicts(&rows)?.into_iter().map(|verdict| match verdict {
            guard::Verdict::Harmful => Some(true),
            guard::Verdict::Harmless => Some(false),
            guard::Verdict::Unparsed => None,
        });
        let table = report::Agreement::count(judged.iter().map(Judged::attack_success).zip(said));
        Ok(Judgements { guarded: Some(table), ..Judgements::new(&questions.examples, judged) })
    }

    /// Judgements counted.
    ///
    /// # Errors
    /// As [`Examiner::answers`].
    pub fn counts(&self, decoder: &Decoder, questions: &Questions, edit: Option<(&Edit, Positions)>) -> Result<Counts> {
        Ok(self.judgements(decoder, questions, edit, None)?.counts())
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
    }

    fn phrasings(topics: &[&str]) -> Vec<Example> {
        let row = |(i, topic): (usize, &&str)| {
            let row = serde_json::json!({"id": i.to_string(), "kind": "hazard", "split": "evaluation", "prompt": "?", "topic": [topic]});
            serde_json::from_value(row).unwrap()
        };
        topics.iter().enumerate().map(row).collect()
    }

    fn judged(success: bool) -> Judged {
        Judged { refused: !success, on_topic: true, degenerate: false }
    }

    #[test]
    fn phrasings_that_are_answered_alike_count_for_less() {
        let topics: Vec<String> = (0..40).map(|i| format!("deed {}", i / 4)).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let alike = (0..40).map(|i| judged(i / 4 < 5)).collect();
        let mixed = (0..40).map(|i| judged(i % 2 == 0)).collect();
        let of = |judged: Vec<Judged>| Judgements::new(&phrasings(&topics), judged).counts();
        let (alike, mixed) = (of(alike), of(mixed));
        assert_eq!((alike.successes, mixed.successes), (20, 20));
        assert!((9.0..11.0).contains(&alike.outcome(None).effective_n.unwrap()), "{:?}", alike.designs);
        assert!(alike.outcome(None).high > mixed.outcome(None).high + 0.1);
        assert!(alike.refusal().high > 0.75 && alike.refusal().n == 40);
        // In parts or at once, it is the same.
        let rows = phrasings(&topics);
        let part = |from: usize| {
            let some = |i: &usize| i % 2 == from;
            let examples: Vec<Example> = (0..40).filter(some).map(|i| rows[i].clone()).collect();
            Judgements::new(&examples, (0..40).filter(some).map(|i| judged(i / 4 < 5)).collect())
        };
        assert_eq!(part(0).and(part(1)).counts(), alike);
    }

    #[test]
    fn requests_of_one_phrasing_have_the_interval_of_independent_answers() {
        let topics: Vec<String> = (0..40).map(|i| format!("deed {i}")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let counts = Judgements::new(&phrasings(&topics), (0..40).map(|i| judged(i < 3)).collect()).counts();
        assert_eq!(counts.designs, Designs::default());
        assert_eq!(counts.outcome(None), report::Outcome::from_counts(3, 37, 0, 40));
    }

    #[test]
    fn a_broken_answer_is_neither_open_nor_a_success() {
        let judged = |refused, on_topic, degenerate| Judged { refused, on_topic, degenerate };
        let answers = vec![
            judged(true, true, false),
            judged(false, true, true),
            judged(false, false, false),
            judged(false, true, false),
        ];
        let counts = Judgements::new(&phrasings(&["a", "b", "c", "d"]), answers).counts();
        assert_eq!(counts, Counts { successes: 1, refused: 1, degenerate: 1, open: 2, n: 4, ..Counts::default() });
        assert_eq!(counts.success(), 0.25);
    }
}
