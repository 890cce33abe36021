//! NoReFT: a low-rank edit of one block's input, trained until the model answers hazards affirmatively.
//!
//! *Source*: E.T. (2026), the paper's attack: `Φ(h) = h + W2ᵀ(W1−W2)h`, factors uniform in `±1/√d`, AdamW without weight
//! decay, step size decayed linearly, gradient norm clipped at 1, next-token loss on the answer's tokens, the last of
//! which are cut off so that the edit never learns to stop. The inputs of the attacked block do not change while the
//! edit is trained, so they are computed once, and every step runs only the blocks above.

use std::collections::BTreeSet;

use candle_core::{Tensor, Var};

use super::{AttackData, Found, Pair};
use crate::intervention::{Edit, Placed, Positions};
use crate::math::seed::Stream;
use crate::model::loss::cross_entropy;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients};
use crate::model::{Decoder, Hooks, TokenBatch};
use crate::{Error, Result};

/// Ids at an answer's end that the attacker does not train on.
const CUT: usize = 2;

/// Settings of one fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Block whose input is edited.
    pub layer: usize,
    /// Rank of the edit.
    pub rank: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Pairs per step.
    pub batch: usize,
    /// Peak step size.
    pub learning_rate: f64,
    /// Where the edit acts, in training as in evaluation.
    pub positions: Positions,
}

/// The paper's number of steps for a number of pairs: attempts of 20 more pairs each, 10 epochs in the first, 15 later.
pub fn paper_steps(pairs: usize, batch: usize) -> usize {
    let epochs = if pairs <= 20 { 10 } else { 15 };
    epochs * pairs.div_ceil(batch.max(1))
}

/// A frozen decoder's view of some pairs from one block on: everything below is computed once.
///
/// All pairs are padded to one width; a batch drops the columns that are padding in all of its rows.
pub struct Prefix<'a> {
    decoder: &'a Decoder,
    layer: usize,
    inputs: Tensor,
    prompts: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    pads: Vec<usize>,
    pad: u32,
}

impl<'a> Prefix<'a> {
    /// Runs blocks `0..layer` of `decoder` on `pairs`, answers cut for the attacker's loss.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn new(decoder: &'a Decoder, layer: usize, pairs: &[&Pair], pad: u32) -> Result<Self> {
        if layer >= decoder.n_layers() {
            return Err(Error::input(
                format!("block {layer}"),
                format!("expected a block below {}", decoder.n_layers()),
            ));
        }
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|p| p.prompt.clone()).collect();
        let targets: Vec<Vec<u32>> = pairs.iter().map(|p| p.target[..cut(p.target.len())].to_vec()).collect();
        let batch = TokenBatch::dialogues(&prompts, &targets, pad);
        // Chunks bound the memory of the pass below; nothing is tracked there.
        let rows: Vec<usize> = (0..pairs.len()).collect();
        let mut parts = Vec::new();
        for chunk in rows.chunks(64) {
            let pick = |rows: &[Vec<u32>]| chunk.iter().map(|i| rows[*i].clone()).collect::<Vec<_>>();
            let part = TokenBatch::dialogues_of_width(&pick(&prompts), &pick(&targets), pad, batch.cols());
            parts.push(decoder.run(0..layer, &decoder.embed(&part)?, &part, &mut Hooks::none(), None)?.detach());
        }
        let inputs = Tensor::cat(&parts, 0)?;
        Ok(Self { decoder, layer, inputs, prompts, targets, pads: batch.pads().to_vec(), pad })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// The block inputs of the chosen pairs and their token batch.
    ///
    /// # Errors
    /// When an index lies outside.
    pub fn select(&self, rows: &[usize]) -> Result<(Tensor, TokenBatch)> {
        let pick = |all: &[Vec<u32>]| rows.iter().map(|i| all[*i].clone()).collect::<Vec<_>>();
        let batch = TokenBatch::dialogues(&pick(&self.prompts), &pick(&self.targets), self.pad);
        let index: Vec<u32> = rows.iter().map(|i| *i as u32).collect();
        let skip = rows.iter().map(|i| self.pads[*i]).min().unwrap_or(0);
        let inputs = self.inputs.index_select(&Tensor::from_slice(&index, index.len(), self.decoder.device())?, 0)?;
        Ok((inputs.narrow(1, skip, batch.cols())?.contiguous()?, batch))
    }

    /// Mean nats per target token of the chosen pairs under `edit`; differentiable in the edit.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn loss(&self, rows: &[usize], edit: &Placed, positions: Positions) -> Result<Tensor> {
        let (inputs, batch) = self.select(rows)?;
        let mut hooks = Hooks::edit(edit, positions);
        let hidden = self.decoder.run(self.layer..self.decoder.n_layers(), &inputs, &batch, &mut hooks, None)?;
        let (positions, targets) = batch.answer_targets();
        let weights = vec![1.0 / targets.len().max(1) as f32; targets.len()];
        cross_entropy(&self.decoder.logits_at(&hidden, &positions)?, &targets, &weights)
    }
}

/// Tokens of an answer of `len` that the attacker trains on.
fn cut(len: usize) -> usize {
    if len > CUT { len - CUT } else { len }
}

/// A learned edit with its optimiser: what a pool keeps warm between the steps of a joint defence.
pub struct Learner {
    w1: Var,
    w2: Var,
    layer: usize,
    adam: AdamW,
}

impl Learner {
    /// Fresh factors, uniform in `±1/√d`, or those of `start`.
    ///
    /// # Errors
    /// When `start` is not a learned edit of this block.
    pub fn new(
        decoder: &Decoder,
        layer: usize,
        rank: usize,
        start: Option<&Edit>,
        stream: &mut Stream,
    ) -> Result<Self> {
        let d = decoder.blueprint().d_model;
        let bound = (d as f64).powf(-0.5);
        let (rank, w1, w2) = match start {
            None => (rank, stream.uniform(rank * d, bound), stream.uniform(rank * d, bound)),
            Some(Edit::LowRank { layer: at, rank, w1, w2 }) if *at == layer => (*rank, w1.clone(), w2.clone()),
            Some(_) => {
                return Err(Error::input(
                    "start of a learned edit",
                    format!("expected a low-rank edit of block {layer}"),
                ));
            }
        };
        let var = |values: Vec<f32>| -> Result<Var> {
            Ok(Var::from_tensor(&Tensor::from_vec(values, (rank, d), decoder.device())?)?)
        };
        let (w1, w2) = (var(w1)?, var(w2)?);
        let settings = AdamSettings { clip: Some(1.0), ..AdamSettings::default() };
        let adam = AdamW::new(vec![w1.clone(), w2.clone()], settings);
        Ok(Self { w1, w2, layer, adam })
    }

    /// The edit as it stands, connected to its variables.
    pub fn edit(&self) -> Placed {
        Placed::LowRank { layer: self.layer, w1: self.w1.as_tensor().clone(), w2: self.w2.as_tensor().clone() }
    }

    /// The edit as it stands, detached.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn snapshot(&self) -> Result<Placed> {
        let copy = |var: &Var| -> Result<Tensor> { Ok(var.as_tensor().copy()?.detach()) };
        Ok(Placed::LowRank { layer: self.layer, w1: copy(&self.w1)?, w2: copy(&self.w2)? })
    }

    /// One optimiser step on the chosen pairs; returns the loss before it.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn step(&mut self, prefix: &Prefix<'_>, rows: &[usize], positions: Positions, rate: f64) -> Result<f64> {
        let edit = self.edit();
        let (gradients, losses) = sharded_gradients(self.adam.vars(), 1, |_| prefix.loss(rows, &edit, positions))?;
        self.adam.step(&gradients, rate)?;
        Ok(losses[0])
    }
}

/// Trains an edit on the first `pairs` of the attacker's data from `start` or from fresh factors.
///
/// # Errors
/// When there is no data, or `start` belongs to another block.
pub fn fit(
    decoder: &Decoder,
    data: &AttackData,
    pairs: usize,
    settings: &Fit,
    opening: Option<&str>,
    start: Option<&Edit>,
    stream: &mut Stream,
) -> Result<Found> {
    let of_opening = |p: &&Pair| opening.is_none_or(|name| p.opening.as_deref() == Some(name));
    let chosen: Vec<&Pair> = data.pairs.iter().filter(of_opening).take(pairs).collect();
    if chosen.is_empty() {
        let openings: BTreeSet<&str> = data.pairs.iter().filter_map(|p| p.opening.as_deref()).collect();
        return Err(Error::input("attack data", format!("expected pairs with opening {opening:?}, got {openings:?}")));
    }
    let prefix = Prefix::new(decoder, settings.layer, &chosen, data.pad)?;
    let mut learner = Learner::new(decoder, settings.layer, settings.rank, start, stream)?;
    let mut order: Vec<usize> = Vec::new();
    let (mut evaluations, mut recent) = (0, Vec::new());
    for step in 0..settings.steps {
        let mut rows = Vec::with_capacity(settings.batch);
        while rows.len() < settings.batch.min(prefix.len()) {
            if order.is_empty() {
                order = stream.sample(prefix.len(), prefix.len());
            }
            rows.extend(order.pop());
        }
        let rate = settings.learning_rate * (1.0 - step as f64 / settings.steps as f64);
        let loss = learner.step(&prefix, &rows, settings.positions, rate)?;
        evaluations += rows.len();
        if step + 8 >= settings.steps {
            recent.push(loss);
        }
    }
    let loss = if recent.is_empty() { None } else { Some(recent.iter().sum::<f64>() / recent.len() as f64) };
    Ok(Found { edit: learner.edit().edit()?, gradient_evaluations: evaluations, loss })
}
