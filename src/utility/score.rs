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

/// Negative log-likelihood of each passage's scored tokens, nats summed over its tokens.
pub(super) fn losses(decoder: &Decoder, passages: &[Passage]) -> Result<Vec<f64>> {
    per_passage(passages, |batch, positions, targets| {
        let hidden = decoder.hidden(batch, &mut Hooks::none(), None)?;
        chunks(positions, targets, |positions, targets| {
            let log = log_probabilities(&decoder.logits_at(&hidden, positions)?)?;
            let index = Tensor::from_slice(targets, (targets.len(), 1), decoder.device())?;
            Ok(log.gather(&index, 1)?.neg()?.flatten_all()?.to_vec1::<f32>()?)
        })
    })
}

/// `KL(base ‖ hardened)` of the next token at each passage's scored tokens, nats summed over its tokens.
pub(super) fn divergences(base: &Decoder, hardened: &Decoder, passages: &[Passage]) -> Result<Vec<f64>> {
    per_passage(passages, |batch, positions, targets| {
        let before = base.hidden(batch, &mut Hooks::none(), None)?;
        let after = hardened.hidden(batch, &mut Hooks::none(), None)?;
        chunks(positions, targets, |positions, _| {
            let p = log_probabilities(&base.logits_at(&before, positions)?)?;
            let q = log_probabilities(&hardened.logits_at(&after, positions)?)?;
            Ok(p.exp()?.mul(&(p - q)?)?.sum(D::Minus1)?.to_vec1::<f32>()?)
        })
    })
}

fn chunks(positions: &[u32], targets: &[u32], values: impl Fn(&[u32], &[u32]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(positions.len());
    for (positions, targets) in positions.chunks(POSITIONS).zip(targets.chunks(POSITIONS)) {
        all.extend(values(positions, targets)?);
    }
    Ok(all)
}

/// Sums of `values(batch, flat positions, targets)` over each passage's scored tokens, in the passages' order.
fn per_passage(
    passages: &[Passage],
    values: impl Fn(&TokenBatch, &[u32], &[u32]) -> Result<Vec<f32>> + Sync,
) -> Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..passages.len()).collect();
    order.sort_by_key(|i| (passages[*i].context.len() + passages[*i].scored.len(), *i));
    let parts: Vec<Vec<f64>> = order
        .par_chunks(ROWS)
        .map(|rows| {
            let contexts: Vec<Vec<u32>> = rows.iter().map(|i| passages[*i].context.clone()).collect();
            let scored: Vec<Vec<u32>> = rows.iter().map(|i| passages[*i].scored.clone()).collect();
            let batch = TokenBatch::dialogues(&contexts, &scored, 0);
            let (positions, targets) = batch.answer_targets();
            let mut sums = vec![0.0; rows.len()];
            for (position, value) in positions.iter().zip(values(&batch, &positions, &targets)?) {
                if !value.is_finite() {
                    return Err(Error::input("decoder", format!("expected finite log-probabilities, got {value}"))
                        .hint("the weights are broken or overflow"));
                }
                sums[*position as usize / batch.cols()] += f64::from(value);
            }
            Ok(sums)
        })
        .collect::<Result<_>>()?;
    let mut sums = vec![0.0; passages.len()];
    for (index, sum) in order.into_iter().zip(parts.into_iter().flatten()) {
        sums[index] = sum;
    }
    Ok(sums)
}
