//! Batched greedy generation.
//!
//! Prompts are sorted by length into batches, batches run on all workers, rows that have ended are dropped from the batch
//! once half of them have, and only the last column meets the unembedding.

use candle_core::Tensor;
use rayon::prelude::*;

use super::batch::TokenBatch;
use super::decoder::Decoder;
use super::hooks::{Hooks, Intervention, Positions};
use super::kv_cache::KvCache;
use crate::Result;

/// Whether an answer of these ids has ended.
pub type Ended<'a> = dyn Fn(&[u32]) -> Result<bool> + Sync + 'a;

/// How to generate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greedy {
    /// Tokens generated at most.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; not part of the result.
    pub stop: Vec<u32>,
    /// Id that fills the padding; its value has no influence.
    pub pad: u32,
    /// Rows per batch.
    pub batch: usize,
}

/// Greedy answers to `prompts` under `edits`, in the prompts' order.
///
/// The result does not depend on the batch size but for the order of f32 additions in matrix products.
///
/// # Errors
/// As [`Decoder::run`].
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    edits: &[(&dyn Intervention, Positions)],
    options: &Greedy,
) -> Result<Vec<Vec<u32>>> {
    generate_until(decoder, prompts, edits, options, &|_| Ok(false))
}

/// As [`generate`], where an answer also ends with the first token after which `ended` holds for its ids so far; that token
/// is part of the result.
///
/// # Errors
/// As [`Decoder::run`], and those of `ended`.
pub fn generate_until(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    edits: &[(&dyn Intervention, Positions)],
    options: &Greedy,
    ended: &Ended<'_>,
) -> Result<Vec<Vec<u32>>> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|i| (prompts[*i].len(), *i));
    let parts: Vec<Vec<Vec<u32>>> = order
        .par_chunks(options.batch.max(1))
        .map(|indices| {
            let rows: Vec<Vec<u32>> = indices.iter().map(|i| prompts[*i].clone()).collect();
            generate_batch(decoder, &rows, edits, options, ended)
        })
        .collect::<Result<_>>()?;
    let mut answers = vec![Vec::new(); prompts.len()];
    for (index, answer) in order.into_iter().zip(parts.into_iter().flatten()) {
        answers[index] = answer;
    }
    Ok(answers)
}

fn generate_batch(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    edits: &[(&dyn Intervention, Positions)],
    options: &Greedy,
    ended: &Ended<'_>,
) -> Result<Vec<Vec<u32>>> {
    let hooks = || edits.iter().fold(Hooks::none(), |hooks, (edit, positions)| hooks.and_edit(*edit, *positions));
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut batch = TokenBatch::prompts(prompts, options.pad);
    let capacity = batch.cols() + options.max_new_tokens;
    let mut cache = KvCache::new(decoder.blueprint(), prompts.len(), capacity, decoder.device())?;
    // Which answer each row of the current batch belongs to, and whether it goes on.
    let mut rows: Vec<usize> = (0..prompts.len()).collect();
    let mut live = vec![true; prompts.len()];
    for step in 0..options.max_new_tokens {
        let hidden = decoder.hidden(&batch, &mut hooks(), Some(&mut cache))?;
        cache.advance(batch.cols());
        let last: Vec<u32> = (1..=batch.rows()).map(|row| (row * batch.cols() - 1) as u32).collect();
        let mut next = argmax(&decoder.logits_at(&hidden, &last)?)?;
        for (row, token) in next.iter().enumerate() {
            if live[row] && options.stop.contains(token) {
                live[row] = false;
            } else if live[row] {
                answers[rows[row]].push(*token);
                live[row] = !ended(&answers[rows[row]])?;
            }
        }
        let going = live.iter().filter(|live| **live).count();
        if going == 0 || step + 1 == options.max_new_tokens {
            break;
        }
        let mut pads = batch.pads().to_vec();
        if going * 2 <= rows.len() {
            let kept: Vec<usize> = (0..rows.len()).filter(|row| live[*row]).collect();
            cache.keep_rows(&kept.iter().map(|row| *row as u32).collect::<Vec<_>>(), decoder.device())?;
            rows = kept.iter().map(|row| rows[*row]).collect();
            next = kept.iter().map(|row| next[*row]).collect();
            pads = kept.iter().map(|row| pads[*row]).collect();
            live = vec![true; rows.len()];
        }
        batch = TokenBatch::step(next, pads);
    }
    Ok(answers)
}

/// Index of the largest logit of each row of `[rows, vocab]`; the first of equals.
fn argmax(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(candle_core::D::Minus1)?.to_vec1::<u32>()?)
}
