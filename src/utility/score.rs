//! Log-likelihoods of given tokens, and divergences between two models on them, item by item.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use crate::model::loss::log_probabilities;
use crate::model::{Decoder, Hooks, TokenBatch};
use crate::{Error, Result};

/// Rows of a batch of passages.
const ROWS: usize = 16;
/// Positions whose logits are held at a time: a large vocabulary costs half a megabyte each.
const POSITIONS: usize = 64;

/// Tokens to be scored, after tokens that are only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passage {
    /// Read and not scored; one token at least.
    pub context: Vec<u32>,
    /// Scored.
    pub scored: Vec<u32>,
}

impl Passage {
    /// A text by itself: its first token is context, as nothing predicts it.
    pub fn text(ids: &[u32]) -> Self {
        let (context, scored) = ids.split_at(ids.len().min(1));
        Self { context: context.to_vec(), scored: scored.to_vec() }
    }
}

/// How likely a model takes given tokens to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Log-likelihood, nats summed over the tokens.
    pub nats: f64,
    /// Whether each token is the model's likeliest.
    pub greedy: bool,
}

/// Negative log-likelihood of each passage's scored tokens, nats summed over its tokens.
pub(super) fn losses(decoder: &Decoder, passages: &[Passage]) -> Result<Vec<f64>> {
    let sums = per_passage(passages, |batch, positions, targets| {
        let hidden = decoder.hidden(batch, &mut Hooks::none(), None)?;
        chunks(positions, targets, |positions, targets| {
            let log = log_probabilities(&decoder.logits_at(&hidden, positions)?)?;
            Ok(of_targets(&log, targets)?.into_iter().map(|log| [-log]).collect())
        })
    })?;
    Ok(sums.into_iter().map(|[nats]| nats).collect())
}

/// Log-likelihood of each passage's scored tokens, and whether greedy decoding would have written them.
pub(super) fn likelihoods(decoder: &Decoder, passages: &[Passage]) -> Result<Vec<Likelihood>> {
    let sums = per_passage(passages, |batch, positions, targets| {
        let hidden = decoder.hidden(batch, &mut Hooks::none(), None)?;
        chunks(positions, targets, |positions, targets| {
            let log = log_probabilities(&decoder.logits_at(&hidden, positions)?)?;
            let likeliest = log.argmax(D::Minus1)?.to_vec1::<u32>()?;
            let misses = likeliest.iter().zip(targets).map(|(best, target)| f32::from(u8::from(best != target)));
            Ok(of_targets(&log, targets)?.into_iter().zip(misses).map(|(log, miss)| [log, miss]).collect())
        })
    })?;
    Ok(sums.into_iter().map(|[nats, misses]| Likelihood { nats, greedy: misses == 0.0 }).collect())
}

/// The entry of each row of `[rows, vocab]` that its target names.
fn of_targets(log: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let index = Tensor::from_slice(targets, (targets.len(), 1), log.device())?;
    Ok(log.gather(&index, 1)?.flatten_all()?.to_vec1::<f32>()?)
}

/// `KL(base ‖ hardened)` of the next token at each passage's scored tokens, nats summed over its tokens.
pub(super) fn divergences(base: &Decoder, hardened: &Decoder, passages: &[Passage]) -> Result<Vec<f64>> {
    let sums = per_passage(passages, |batch, positions, targets| {
        let before = base.hidden(batch, &mut Hooks::none(), None)?;
        let after = hardened.hidden(batch, &mut Hooks::none(), None)?;
        chunks(positions, targets, |positions, _| {
            let p = log_probabilities(&base.logits_at(&before, positions)?)?;
            let q = log_probabilities(&hardened.logits_at(&after, positions)?)?;
            let divergences = p.exp()?.mul(&(p - q)?)?.sum(D::Minus1)?.to_vec1::<f32>()?;
            Ok(divergences.into_iter().map(|nats| [nats]).collect())
        })
    })?;
    Ok(sums.into_iter().map(|[nats]| nats).collect())
}

fn chunks<T>(positions: &[u32], targets: &[u32], values: impl Fn(&[u32], &[u32]) -> Result<Vec<T>>) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(positions.len());
    for (positions, targets) in positions.chunks(POSITIONS).zip(targets.chunks(POSITIONS)) {
        all.extend(values(positions, targets)?);
    }
    Ok(all)
}

/// What a model is fed of passages, the flat positions that predict their scored tokens, and these tokens. The last scored
/// token is not fed: it predicts nothing that is scored, and would cost a position that the model may not have.
fn fed(rows: &[&Passage]) -> (TokenBatch, Vec<u32>, Vec<u32>) {
    let contexts: Vec<Vec<u32>> = rows.iter().map(|row| row.context.clone()).collect();
    let but_last = |row: &&Passage| row.scored.split_last().map_or(vec![], |(_, others)| others.to_vec());
    let batch = TokenBatch::dialogues(&contexts, &rows.iter().map(but_last).collect::<Vec<_>>(), 0);
    let (mut positions, mut targets) = (vec![], vec![]);
    for (i, row) in rows.iter().enumerate() {
        let first = (i * batch.cols() + batch.pads()[i] + row.context.len()).saturating_sub(1);
        positions.extend((first..first + row.scored.len()).map(|position| position as u32));
        targets.extend(&row.scored);
    }
    (batch, positions, targets)
}

/// Sums of the `N` figures of `values(batch, flat positions, targets)` over each passage's scored tokens, in the passages'
/// order.
fn per_passage<const N: usize>(
    passages: &[Passage],
    values: impl Fn(&TokenBatch, &[u32], &[u32]) -> Result<Vec<[f32; N]>> + Sync,
) -> Result<Vec<[f64; N]>> {
    let mut order: Vec<usize> = (0..passages.len()).collect();
    order.sort_by_key(|i| (passages[*i].context.len() + passages[*i].scored.len(), *i));
    let parts: Vec<Vec<[f64; N]>> = order
        .par_chunks(ROWS)
        .map(|rows| {
            let rows: Vec<&Passage> = rows.iter().map(|i| &passages[*i]).collect();
            let (batch, positions, targets) = fed(&rows);
            let mut sums = vec![[0.0; N]; rows.len()];
            for (position, figures) in positions.iter().zip(values(&batch, &positions, &targets)?) {
                for (sum, value) in sums[*position as usize / batch.cols()].iter_mut().zip(figures) {
                    if !value.is_finite() {
                        return Err(Error::input("decoder", format!("expected finite log-probabilities, got {value}"))
                            .hint("the weights are broken or overflow"));
                    }
                    *sum += f64::from(value);
                }
            }
            Ok(sums)
        })
        .collect::<Result<_>>()?;
    let mut sums = vec![[0.0; N]; passages.len()];
    for (index, sum) in order.into_iter().zip(parts.into_iter().flatten()) {
        sums[index] = sum;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_scored_token_is_predicted_and_not_fed() {
        let passage = |context: &[u32], scored: &[u32]| Passage { context: context.into(), scored: scored.into() };
        let rows = [passage(&[1, 2], &[7, 8]), passage(&[3], &[9])];
        let (batch, positions, targets) = fed(&rows.each_ref());
        assert_eq!((batch.ids(), batch.pads()), ([1, 2, 7, 0, 0, 3].as_slice(), [0, 2].as_slice()));
        assert_eq!((positions, targets), (vec![1, 2, 5], vec![7, 8, 9]));
    }
}
