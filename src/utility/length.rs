//! How long the model's answers are: a model that has become terse or rambling shows it here first.

use crate::Result;
use crate::report::{Direction, Measured, UtilityRow};

use super::bench::Bench;
use super::ratio::ratio;
use super::spec::Task;

/// Mean length of greedy answers to benign requests, in tokens without the one that ends them; the change is relative.
pub(super) fn measure(bench: &mut Bench<'_>, items: Option<usize>) -> Result<UtilityRow> {
    let requests = bench.items(Task::AnswerLength, items);
    let lengths = bench.answers(&requests, 0)?.map(|a| a.iter().map(|ids| ids.len() as f64).collect::<Vec<f64>>());
    let means = lengths.map(|lengths| Measured::mean(lengths));
    let delta = lengths.base.as_ref().map(|base| {
        let change: Vec<f64> = base.iter().zip(&lengths.hardened).map(|(base, hardened)| hardened - base).collect();
        ratio(&change, base)
    });
    Ok(UtilityRow {
        task: Task::AnswerLength.name().into(),
        metric: "mean answer length".into(),
        unit: "tokens".into(),
        direction: Direction::Unchanged,
        base: means.base,
        hardened: means.hardened,
        relative: true,
        delta,
        bound: None,
        ok: None,
        digest: None,
    })
}
