//! What the tasks share: the two models, the items that both are measured on, and the answers given so far.

use std::collections::BTreeMap;

use super::Asking;
use super::spec::Task;
use crate::Result;
use crate::data::{Example, PromptSet, Split};
use crate::model::Decoder;
use crate::model::generate::{Greedy, generate};
use crate::model::prompt::PromptEncoder;
use crate::report::{Direction, Measured, Pairs, Rate, UtilityRow, cluster};

/// Rows of a batch: enough to keep matrix products wide, few enough for the logits of a large vocabulary.
pub(super) const BATCH: usize = 32;

/// The same figure on both models; the base may not be at hand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Both<T> {
    pub base: Option<T>,
    pub hardened: T,
}

impl<T> Both<T> {
    pub fn map<U>(&self, change: impl Fn(&T) -> U) -> Both<U> {
        Both { base: self.base.as_ref().map(&change), hardened: change(&self.hardened) }
    }
}

/// A model with the answers it has given.
struct Subject<'a> {
    decoder: &'a Decoder,
    answers: BTreeMap<&'a str, Vec<u32>>,
}

/// Both models on one prompt set.
pub(super) struct Bench<'a> {
    asking: Asking<'a>,
    data: &'a PromptSet,
    base: Option<Subject<'a>>,
    hardened: Subject<'a>,
}

impl<'a> Bench<'a> {
    pub fn new(base: Option<&'a Decoder>, hardened: &'a Decoder, asking: Asking<'a>, data: &'a PromptSet) -> Self {
        let subject = |decoder| Subject { decoder, answers: BTreeMap::new() };
        Self { asking, data, base: base.map(subject), hardened: subject(hardened) }
    }

    /// The model's view of text.
    pub fn encoder(&self) -> &'a PromptEncoder {
        self.asking.encoder
    }

    /// Both decoders.
    pub fn decoders(&self) -> Both<&'a Decoder> {
        Both { base: self.base.as_ref().map(|subject| subject.decoder), hardened: self.hardened.decoder }
    }

    /// Evaluation rows of `task`, at most `items` of them.
    pub fn items(&self, task: Task, items: Option<usize>) -> Vec<&'a Example> {
        self::items(self.data, task, items)
    }

    /// The ids of a request.
    pub fn prompt(&self, example: &Example) -> Result<Vec<u32>> {
        self.asking.prompt(example)
    }

    /// Greedy answers of both models to `items` in at most `max_new_tokens` tokens, or `at_least` if that is more.
    pub fn answers(&mut self, items: &[&'a Example], at_least: usize) -> Result<Both<Vec<Vec<u32>>>> {
        let asking = Asking { max_new_tokens: self.asking.max_new_tokens.max(at_least), ..self.asking };
        let base = self.base.as_mut().map(|subject| subject.answer(asking, items)).transpose()?;
        Ok(Both { base, hardened: self.hardened.answer(asking, items)? })
    }

    /// As [`Bench::answers`], decoded to text.
    pub fn texts(&mut self, items: &[&'a Example], at_least: usize) -> Result<Both<Vec<String>>> {
        let answers = self.answers(items, at_least)?;
        let decode = |answers: &Vec<Vec<u32>>| answers.iter().map(|ids| self.encoder().decode(ids)).collect();
        Ok(Both { base: answers.base.as_ref().map(decode).transpose()?, hardened: decode(&answers.hardened)? })
    }
}

/// Evaluation rows of `data` that `task` is measured on, at most `items` of them.
pub(super) fn items(data: &PromptSet, task: Task, items: Option<usize>) -> Vec<&Example> {
    let rows = task.kinds().iter().flat_map(|kind| data.select(Split::Evaluation, *kind));
    let exact = matches!(task, Task::Maths | Task::Recall);
    spread(rows.filter(|row| !exact || row.expected.is_some()).collect(), items)
}

impl Asking<'_> {
    /// The ids of a request.
    fn prompt(&self, example: &Example) -> Result<Vec<u32>> {
        self.encoder.encode_chat(&example.prompt, self.system)
    }
}

impl<'a> Subject<'a> {
    fn answer(&mut self, asking: Asking<'_>, items: &[&'a Example]) -> Result<Vec<Vec<u32>>> {
        let new: Vec<&'a Example> =
            items.iter().filter(|item| !self.answers.contains_key(item.id.as_str())).copied().collect();
        let answers = greedy(self.decoder, asking, &new)?;
        self.answers.extend(new.into_iter().map(|item| item.id.as_str()).zip(answers));
        Ok(items.iter().map(|item| self.answers[item.id.as_str()].clone()).collect())
    }
}

/// Greedy answers to `items`, in their order, without the token that ends them.
fn greedy(decoder: &Decoder, asking: Asking<'_>, items: &[&Example]) -> Result<Vec<Vec<u32>>> {
    let prompts = items.iter().map(|item| asking.prompt(item)).collect::<Result<Vec<_>>>()?;
    let Asking { encoder, max_new_tokens, .. } = asking;
    let options = Greedy { max_new_tokens, stop: encoder.stop_ids(), pad: 0, batch: BATCH };
    generate(decoder, &prompts, &[], &options)
}

/// At most `items` rows, evenly spread: rows of one object lie side by side, so the first ones would be all alike.
pub(super) fn spread<T>(rows: Vec<T>, items: Option<usize>) -> Vec<T> {
    let (total, wanted) = (rows.len(), items.unwrap_or(rows.len()));
    if wanted >= total {
        return rows;
    }
    // Row i stays where the running share i·wanted/total reaches a new whole number.
    let keeps = |i: usize| (i + 1) * wanted / total > i * wanted / total;
    rows.into_iter().enumerate().filter(|(i, _)| keeps(*i)).map(|(_, row)| row).collect()
}

/// The row of a task whose items succeed or fail, `requests` being what each is a phrasing of.
pub(super) fn rate_row<G: Ord>(
    task: &str,
    metric: &str,
    direction: Direction,
    outcomes: &Both<Vec<bool>>,
    requests: &[G],
) -> UtilityRow {
    let values = |outcomes: &[bool]| -> Vec<f64> { outcomes.iter().map(|success| f64::from(*success)).collect() };
    let rate = |outcomes: &Vec<bool>| -> Measured {
        Rate::of(outcomes, |success| *success).over(cluster::of_rate(&values(outcomes), requests))
    };
    let change = |base: &Vec<bool>| {
        let change: Vec<f64> = values(&outcomes.hardened).iter().zip(values(base)).map(|(h, b)| h - b).collect();
        Pairs::count(base, &outcomes.hardened).difference(cluster::of_change(&change, requests))
    };
    UtilityRow {
        task: task.into(),
        metric: metric.into(),
        unit: "fraction".into(),
        direction,
        base: outcomes.base.as_ref().map(rate),
        hardened: rate(&outcomes.hardened),
        relative: false,
        delta: outcomes.base.as_ref().map(change),
        bound: None,
        ok: None,
        digest: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_rows_is_spread_over_all_of_them() {
        assert_eq!(spread((0..10).collect(), Some(4)), [2, 4, 7, 9]);
        assert_eq!(spread((0..3).collect(), Some(9)), [0, 1, 2]);
        assert!(spread((0..3).collect::<Vec<i32>>(), Some(0)).is_empty());
        for wanted in 0..=57 {
            assert_eq!(spread((0..57).collect::<Vec<i32>>(), Some(wanted)).len(), wanted);
        }
    }

    #[test]
    fn items_that_change_together_widen_the_change() {
        let lost = |which: fn(usize) -> bool| Both {
            base: Some(vec![true; 90]),
            hardened: (0..90).map(|i| !which(i)).collect::<Vec<bool>>(),
        };
        let requests: Vec<usize> = (0..90).map(|i| i / 3).collect();
        let row = |outcomes| rate_row("benign", "answered", Direction::HigherIsBetter, &outcomes, &requests);
        let (together, apart) = (row(lost(|i| i < 9)), row(lost(|i| i % 10 == 0)));
        let (together, apart) = (together.delta.unwrap(), apart.delta.unwrap());
        assert_eq!((together.value, together.n), (apart.value, 90));
        assert!(together.low < apart.low - 0.04, "{} {}", together.low, apart.low);
    }

    #[test]
    fn rows_without_a_base_have_no_change() {
        let outcomes = Both { base: None, hardened: vec![true, false] };
        let row = rate_row("maths", "exact match", Direction::HigherIsBetter, &outcomes, &["a", "b"]);
        assert_eq!((row.base, row.delta, row.hardened.value), (None, None, 0.5));
    }
}
