//! Low-rank edits of the inputs of one block or several, trained until the model answers hazards affirmatively.
//!
//! *Source*: E.T. (2026), the paper's attack: `Φ(h) = h + W2ᵀ(W1−W2)h` (other forms: [`Form`]), factors uniform in `±1/√d`, AdamW without weight
//! decay, step size decayed linearly, gradient norm clipped at 1, next-token loss on the answer's tokens, the last of
//! which are cut off so that the edit never learns to stop. The inputs of the attacked block do not change while the
//! edit is trained, so they are computed once, and every step runs only the blocks above.

use std::collections::BTreeSet;

use candle_core::Tensor;

use super::form::{Factors, Form};
use super::{AttackData, Found, Pair};
use crate::intervention::{Edit, Placed, Positions};
use crate::math::seed::Stream;
use crate::math::snapshot::Snapshot;
use crate::model::batch::sum_by_length;
use crate::model::loss::cross_entropy;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients, whole_loss};
use crate::model::{Decoder, Hooks, TokenBatch};
use crate::{Error, Result};

/// Ids at an answer's end that the attacker does not train on.
const CUT: usize = 2;

/// Settings of one fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// What is learned.
    pub form: Form,
    /// Blocks whose inputs are edited, all at once.
    pub layers: Vec<usize>,
    /// Rank of the edit of each block.
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
        let tokens: usize = rows.iter().map(|row| self.targets[*row].len()).sum();
        let weight = 1.0 / tokens.max(1) as f32;
        let lengths: Vec<usize> = rows.iter().map(|row| self.prompts[*row].len() + self.targets[*row].len()).collect();
        sum_by_length(&lengths, |group| {
            let group: Vec<usize> = group.iter().map(|i| rows[*i]).collect();
            self.loss_of(&group, edit, positions, weight)
        })
    }

    /// Sum over target tokens, each with `weight`.
    fn loss_of(&self, rows: &[usize], edit: &Placed, positions: Positions, weight: f32) -> Result<Tensor> {
        let (inputs, batch) = self.select(rows)?;
        let mut hooks = Hooks::edit(edit, positions);
        let hidden = self.decoder.run(self.layer..self.decoder.n_layers(), &inputs, &batch, &mut hooks, None)?;
        let (positions, targets) = batch.answer_targets();
        let weights = vec![weight; targets.len()];
        cross_entropy(&self.decoder.logits_at(&hidden, &positions)?, &targets, &weights)
    }
}

/// Tokens of an answer of `len` that the attacker trains on.
fn cut(len: usize) -> usize {
    if len > CUT { len - CUT } else { len }
}

/// A learned edit with its optimiser: what a pool keeps warm between the steps of a joint defence.
pub struct Learner {
    factors: Vec<Factors>,
    adam: AdamW,
}

impl Learner {
    /// Fresh factors, uniform in `±1/√d`, or those of `start`.
    ///
    /// # Errors
    /// When `start` is not an edit of this form and these blocks, or there is no block.
    pub fn new(
        decoder: &Decoder,
        form: Form,
        layers: &[usize],
        rank: usize,
        start: Option<&Edit>,
        stream: &mut Stream,
    ) -> Result<Self> {
        let (d, device) = (decoder.blueprint().d_model, decoder.device());
        let factors: Vec<Factors> = match start {
            None => layers.iter().map(|l| Factors::fresh(form, *l, rank, d, device, stream)).collect::<Result<_>>()?,
            Some(start) => {
                let starts = match start {
                    Edit::Several { edits } => edits.as_slice(),
                    one => std::slice::from_ref(one),
                };
                if starts.len() != layers.len() {
                    let expected = format!("expected edits of {} blocks, got {}", layers.len(), starts.len());
                    return Err(Error::input("start of a learned edit", expected));
                }
                let pairs = layers.iter().zip(starts);
                pairs.map(|(layer, edit)| Factors::starting_from(form, *layer, edit, device)).collect::<Result<_>>()?
            }
        };
        if factors.is_empty() {
            return Err(Error::input("learned edit", "expected one block at least, got none"));
        }
        let vars = factors.iter().flat_map(|factors| factors.vars().iter().cloned()).collect();
        let adam = AdamW::new(vars, AdamSettings { clip: Some(1.0), ..AdamSettings::default() });
        Ok(Self { factors, adam })
    }

    /// Keeps the edit and its optimiser under `name`.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        self.adam.save(name, into)
    }

    /// Goes back to what [`Learner::save`] kept of an edit of the same block and rank.
    ///
    /// # Errors
    /// When something is missing or of another size.
    pub fn restore(&mut self, name: &str, from: &Snapshot) -> Result<()> {
        self.adam.restore(name, from)
    }

    /// The edit as it stands, connected to its variables.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn edit(&self) -> Result<Placed> {
        self.placed(false)
    }

    /// The edit as it stands, detached.
    ///
    /// # Errors
    /// As [`Learner::edit`].
    pub fn snapshot(&self) -> Result<Placed> {
        self.placed(true)
    }

    fn placed(&self, detached: bool) -> Result<Placed> {
        match self.factors.as_slice() {
            [one] => one.placed(detached),
            several => Ok(Placed::Several(several.iter().map(|f| f.placed(detached)).collect::<Result<_>>()?)),
        }
    }

    /// One optimiser step on the chosen pairs; returns the loss before it, as it lies on its device.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn step(
        &mut self,
        prefix: &Prefix<'_>,
        rows: &[usize],
        positions: Positions,
        rate: f64,
    ) -> Result<Vec<Tensor>> {
        let edit = self.edit()?;
        let (gradients, losses) = sharded_gradients(self.adam.vars(), 1, |_| prefix.loss(rows, &edit, positions))?;
        self.adam.step(&gradients, rate)?;
        self.factors.iter().try_for_each(Factors::retract)?;
        Ok(losses)
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
    // Nothing below the first edited block changes while the edit is trained.
    let first = settings.layers.iter().copied().min().unwrap_or(0);
    let prefix = Prefix::new(decoder, first, &chosen, data.pad)?;
    let mut learner = Learner::new(decoder, settings.form, &settings.layers, settings.rank, start, stream)?;
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
            recent.push(whole_loss(&loss)?);
        }
    }
    let loss = if recent.is_empty() { None } else { Some(recent.iter().sum::<f64>() / recent.len() as f64) };
    Ok(Found { edit: learner.snapshot()?.edit()?, gradient_evaluations: evaluations, loss })
}
