//! Batched generation: the likeliest token every time, or one drawn from the model's distribution.
//!
//! Prompts are sorted by length into batches, batches run on all workers, rows that have ended are dropped from the batch
//! once half of them have, and only the last column meets the unembedding. Where the model's window ends an answer ends too, as one
//! that was cut at its limit: only a prompt that does not fit is an error.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::batch::TokenBatch;
use super::decoder::Decoder;
use super::hooks::{Hooks, Intervention, Positions};
use super::kv_cache::KvCache;
use crate::Result;
use crate::math::seed::Stream;

/// Whether an answer of these ids has ended.
pub type Ended<'a> = dyn Fn(&[u32]) -> Result<bool> + Sync + 'a;

/// The next token of each row of logits `[rows, vocab]`, given the rows' numbers among the prompts and the tokens before it.
type Choose<'a> = dyn Fn(&[usize], usize, &Tensor) -> Result<Vec<u32>> + Sync + 'a;

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
    generate_by(decoder, prompts, edits, options, ended, &|_, _, logits| argmax(logits))
}

/// Answers drawn token by token from the model's own distribution, in the prompts' order.
///
/// Prompt number `i` draws from the stream `name/i` under `seed`, so that a draw depends on nothing but the logits.
///
/// # Errors
/// As [`Decoder::run`].
pub fn sample(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    options: &Greedy,
    seed: u64,
    name: &str,
) -> Result<Vec<Vec<u32>>> {
    generate_by(decoder, prompts, &[], options, &|_| Ok(false), &|rows, step, logits| {
        let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        // A draw takes two words of its stream.
        let place = |row: usize| Stream::new(seed, &format!("{name}/{row}")).at(2 * step as u64).unit();
        Ok(rows.iter().zip(&logits).map(|(row, logits)| draw(logits, place(*row))).collect())
    })
}

fn generate_by(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    edits: &[(&dyn Intervention, Positions)],
    options: &Greedy,
    ended: &Ended<'_>,
    choose: &Choose<'_>,
) -> Result<Vec<Vec<u32>>> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|i| (prompts[*i].len(), *i));
    let parts: Vec<Vec<Vec<u32>>> = order
        .par_chunks(options.batch.max(1))
        .map(|indices| {
            let rows: Vec<Vec<u32>> = indices.iter().map(|i| prompts[*i].clone()).collect();
            let choose = |rows: &[usize], step: usize, logits: &Tensor| {
                let rows: Vec<usize> = rows.iter().map(|row| indices[*row]).collect();
                choose(&rows, step, logits)
            };
            generate_batch(decoder, &rows, edits, options, ended, &choose)
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
    choose: &Choose<'_>,
) -> Result<Vec<Vec<u32>>> {
    let hooks = || edits.iter().fold(Hooks::none(), |hooks, (edit, positions)| hooks.and_edit(*edit, *positions));
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut batch = TokenBatch::prompts(prompts, options.pad);
    // Tokens of each answer at most: the last one is not read. A prompt that does not fit is left to the decoder to refuse.
    let room = |prompt: &Vec<u32>| (decoder.reach(prompt.len()) + 1).saturating_sub(prompt.len()).max(1);
    let rooms: Vec<usize> = prompts.iter().map(|prompt| room(prompt).min(options.max_new_tokens)).collect();
    let most = rooms.iter().copied().max().unwrap_or(0);
    let capacity = batch.cols() + most;
    let mut cache = KvCache::new(decoder.blueprint(), prompts.len(), capacity, decoder.device())?;
    // Which answer each row of the current batch belongs to, and whether it goes on.
    let mut rows: Vec<usize> = (0..prompts.len()).collect();
    let mut live = vec![true; prompts.len()];
    for step in 0..most {
        let hidden = decoder.hidden(&batch, &mut hooks(), Some(&mut cache))?;
        cache.advance(batch.cols());
        let last: Vec<u32> = (1..=batch.rows()).map(|row| (row * batch.cols() - 1) as u32).collect();
        let mut next = choose(&rows, step, &decoder.logits_at(&hidden, &last)?)?;
        for (row, token) in next.iter().enumerate() {
            if live[row] && options.stop.contains(token) {
                live[row] = false;
            } else if live[row] {
                let answer = &mut answers[rows[row]];
                answer.push(*token);
                live[row] = !ended(answer)? && answer.len() < rooms[rows[row]];
            }
        }
        let going = live.iter().filter(|live| **live).count();
        if going == 0 || step + 1 == most {
            break;
        }
        // A row at the window's end has no further position, ended or not.
        let full = rows.iter().any(|row| step + 1 >= rooms[*row]);
        let mut pads = batch.pads().to_vec();
        if full || going * 2 <= rows.len() {
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

/// The token at `place`, from 0 to 1, of the distribution's cumulated probabilities.
fn draw(logits: &[f32], place: f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| f64::from(logit - largest).exp();
    let mut left = place * logits.iter().map(weight).sum::<f64>();
    let token = logits.iter().position(|logit| {
        left -= weight(logit);
        left < 0.0
    });
    // What rounding leaves at the very end falls to the last token.
    token.unwrap_or(logits.len() - 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let logits: Vec<f32> = [0.5, 0.2, 0.3].iter().map(|p: &f32| p.ln() + 7.0).collect();
        let mut stream = Stream::new(0, "draw");
        let mut counts = [0_u32; 3];
        for _ in 0..10_000 {
            counts[draw(&logits, stream.unit()) as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([5_000.0, 2_000.0, 3_000.0]) {
            assert!((f64::from(*count) - expected).abs() < 200.0, "{counts:?}");
        }
        assert_eq!(draw(&[0.0, f32::NEG_INFINITY], 1.0 - f64::EPSILON), 0);
    }
}
