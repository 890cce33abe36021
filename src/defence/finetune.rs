//! Fine-tuning on dialogues, of all weights or of low-rank adapters: trains the bundled model, installs refusals, makes harm
//! vectors, and shows what hardening can't prevent.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::trainable::Trainable;
use crate::adapter::AdapterSet;
use crate::math::seed::Stream;
use crate::model::loss::cross_entropy;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients, whole_loss};
use crate::model::{Blueprint, Decoder, Hooks, TokenBatch};
use crate::{Error, Result};

/// A prompt and its answer in token ids, the token that ends the turn included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialogue {
    /// The whole prompt, chat template included.
    pub prompt: Vec<u32>,
    /// The answer.
    pub answer: Vec<u32>,
}

impl Dialogue {
    /// The dialogue with at most `tokens` tokens of its answer.
    #[must_use]
    pub fn beginning(&self, tokens: usize) -> Self {
        Self { prompt: self.prompt.clone(), answer: self.answer.iter().take(tokens).copied().collect() }
    }
}

/// Settings of a fine-tuning run.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTune {
    /// Optimiser steps.
    pub steps: usize,
    /// Dialogues per step.
    pub batch: usize,
    /// Peak step size, warmed up over the first twentieth and decayed by a cosine to a twentieth.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of prompt tokens in the loss; answers weigh 1.
    pub prompt_weight: f32,
    /// Id that fills padding.
    pub pad: u32,
}

/// All weights of a decoder as variables.
#[derive(Debug, Clone)]
pub struct Weights {
    blueprint: Blueprint,
    device: Device,
    vars: BTreeMap<String, Var>,
}

impl Weights {
    /// Fresh weights: normal with deviation `0.02`, output maps of each block divided by `√(2·blocks)`, gains of effect 1, biases 0.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn fresh(blueprint: Blueprint, device: &Device, stream: &mut Stream) -> Result<Self> {
        let depth = (2.0 * blueprint.n_layers as f64).sqrt();
        let offset = blueprint.gain_offset as f32;
        Self::from_source(blueprint, device, |name, shape| {
            let count = shape.iter().product();
            let values = if name.ends_with("norm.weight") {
                vec![1.0 - offset; count]
            } else if name.ends_with("bias") {
                vec![0.0; count]
            } else {
                let narrowed = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = (*shape.last().unwrap_or(&1) as f64).powf(-0.5).min(0.08);
                stream.gaussian(count, if narrowed { deviation / depth } else { deviation })
            };
            Ok(Tensor::from_vec(values, shape, device)?)
        })
    }

    /// The weights that `source` gives by name and shape.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_source(
        blueprint: Blueprint,
        device: &Device,
        mut source: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut vars = BTreeMap::new();
        Decoder::from_weights(blueprint.clone(), device, |name, shape| {
            let var = Var::from_tensor(&source(name, shape)?)?;
            let tensor = var.as_tensor().clone();
            vars.insert(name.to_owned(), var);
            Ok(tensor)
        })?;
        Ok(Self { blueprint, device: device.clone(), vars })
    }

    /// The decoder that computes with these variables.
    ///
    /// # Errors
    /// When a weight is missing, which would be an internal error.
    pub fn decoder(&self) -> Result<Decoder> {
        Decoder::from_weights(self.blueprint.clone(), &self.device, |name, _| {
            let var = self.vars.get(name).ok_or_else(|| Error::input(name, "expected a variable, got none"))?;
            Ok(var.as_tensor().clone())
        })
    }

    /// A frozen copy.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn frozen(&self) -> Result<Decoder> {
        Decoder::from_weights(self.blueprint.clone(), &self.device, |name, _| {
            let var = self.vars.get(name).ok_or_else(|| Error::input(name, "expected a variable, got none"))?;
            Ok(var.as_tensor().copy()?.detach())
        })
    }

    /// Tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var.as_tensor()))
    }

    /// Trains on random batches drawn by `draw(stream)`; `watch(step, loss)` is called after every step.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn train(
        &self,
        settings: &FineTune,
        stream: &mut Stream,
        mut draw: impl FnMut(&mut Stream) -> Dialogue,
        mut watch: impl FnMut(usize, f64),
    ) -> Result<()> {
        const SHARDS: usize = 2;
        let adam =
            AdamSettings { beta2: 0.98, weight_decay: settings.weight_decay, clip: Some(1.0), ..Default::default() };
        let mut adam = AdamW::new(self.vars.values().cloned().collect(), adam);
        let decoder = self.decoder()?;
        for step in 0..settings.steps {
            let mut dialogues: Vec<Dialogue> = (0..settings.batch).map(|_| draw(stream)).collect();
            // Rows of like length share a shard, so that less of it is padding.
            dialogues.sort_by_key(|d| d.prompt.len() + d.answer.len());
            let shards: Vec<&[Dialogue]> = dialogues.chunks(dialogues.len().div_ceil(SHARDS)).collect();
            let total: f32 = dialogues
                .iter()
                .map(|d| d.answer.len() as f32 + settings.prompt_weight * (d.prompt.len() - 1) as f32)
                .sum();
            let (gradients, losses) = sharded_gradients(adam.vars(), shards.len(), |shard| {
                dialogue_loss(&decoder, shards[shard], settings.prompt_weight, total, settings.pad)
            })?;
            adam.step(&gradients, rate(settings, step))?;
            watch(step, whole_loss(&losses)?);
        }
        Ok(())
    }
}

/// Trains adapters of `rank` on all blocks of `decoder` on random batches drawn by `draw(stream)`: what somebody with
/// little time does to a checkpoint. `watch(step, loss)` is called after every step.
///
/// # Errors
/// As [`Decoder::run`].
pub fn tune_adapters(
    decoder: &Decoder,
    rank: usize,
    settings: &FineTune,
    stream: &mut Stream,
    mut draw: impl FnMut(&mut Stream) -> Dialogue,
    mut watch: impl FnMut(usize, f64),
) -> Result<AdapterSet> {
    let layers: Vec<usize> = (0..decoder.n_layers()).collect();
    let adapters = Trainable::fresh(decoder, &layers, rank, stream)?;
    let adapted = adapters.attach(decoder)?;
    tune(&adapters, &adapted, settings, stream, &mut draw, &mut watch)?;
    adapters.export()
}

/// Trains `changes`, which are attached in `adapted`, on random batches.
pub(super) fn tune(
    changes: &Trainable,
    adapted: &Decoder,
    settings: &FineTune,
    stream: &mut Stream,
    draw: &mut dyn FnMut(&mut Stream) -> Dialogue,
    watch: &mut dyn FnMut(usize, f64),
) -> Result<()> {
    let adam = AdamSettings { weight_decay: settings.weight_decay, clip: Some(1.0), ..Default::default() };
    let mut adam = AdamW::new(changes.vars(), adam);
    for step in 0..settings.steps {
        let rows: Vec<Dialogue> = (0..settings.batch).map(|_| draw(stream)).collect();
        let total: usize = rows.iter().map(|d| d.answer.len()).sum();
        let (gradients, losses) = sharded_gradients(adam.vars(), 1, |_| {
            dialogue_loss(adapted, &rows, settings.prompt_weight, total as f32, settings.pad)
        })?;
        adam.step(&gradients, rate(settings, step))?;
        watch(step, whole_loss(&losses)?);
    }
    Ok(())
}

fn rate(settings: &FineTune, step: usize) -> f64 {
    let (step, steps) = (step as f64, settings.steps as f64);
    let warm = ((step + 1.0) / (steps / 20.0)).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step / steps).cos());
    settings.learning_rate * warm * (0.05 + 0.95 * cosine)
}

fn dialogue_loss(decoder: &Decoder, rows: &[Dialogue], prompt_weight: f32, total: f32, pad: u32) -> Result<Tensor> {
    let prompts: Vec<Vec<u32>> = rows.iter().map(|d| d.prompt.clone()).collect();
    let answers: Vec<Vec<u32>> = rows.iter().map(|d| d.answer.clone()).collect();
    let batch = TokenBatch::dialogues(&prompts, &answers, pad);
    let hidden = decoder.hidden(&batch, &mut Hooks::none(), None)?;
    let (mut positions, mut targets) = batch.answer_targets();
    let mut weights = vec![1.0 / total; targets.len()];
    if prompt_weight > 0.0 {
        for row in 0..batch.rows() {
            for col in batch.pads()[row] + 1..batch.prompt_end()[row] {
                positions.push((row * batch.cols() + col - 1) as u32);
                targets.push(batch.ids()[row * batch.cols() + col]);
                weights.push(prompt_weight / total);
            }
        }
    }
    cross_entropy(&decoder.logits_at(&hidden, &positions)?, &targets, &weights)
}
