//! Changes of the weights themselves: what artefacts and the out-of-scope rows of a suite do, and what rounding does.
//!
//! A change is kept as what it is made from and never as weights: its numbers exist in memory while a cell is measured, and
//! no file of any folder holds them. Each is a function of one model, of the base where it needs it, and of a named random
//! stream, so a resumed run makes the same ones.

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::bench::Bench;
use crate::adapter::{Adapter, AdapterSet};
use crate::attack::abliteration::Abliteration;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::block_quant::{Q4_0, Q8_0};
use crate::defence::Dialogue;
use crate::defence::finetune::{FineTune, tune_adapters};
use crate::defence::trainable::merge;
use crate::intervention::import::{self, Change, Terms};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::model::optimiser::host_values;
use crate::report::wording::percent;
use crate::{Error, Result};

/// Steps of power iteration, from a fixed start: two digits of a leading singular value.
const POWER_STEPS: usize = 20;

/// A change of weights, as plain settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reweighting {
    /// A LoRA of PEFT is merged in.
    Adapters {
        /// Its folder.
        file: PathBuf,
        /// Digest of the folder's content.
        digest: String,
        /// Factor on its own scale.
        scale: Option<f64>,
    },
    /// A checkpoint's weights take the place of the model's, or their difference from the base is added.
    Checkpoint {
        /// Its folder.
        file: PathBuf,
        /// Digest of the folder's content.
        digest: String,
        /// Factor on the difference; absent: the weights are taken as they are.
        delta: Option<f64>,
    },
    /// `W − t(W − W_base)`.
    Strip {
        /// The part t that is subtracted.
        amount: f64,
    },
    /// Block maps are stored and read again in a format of llama.cpp, embedding and unembedding in Q8_0.
    Rounded {
        /// 8: Q8_0; 4: Q4_0.
        bits: u32,
    },
    /// A direction is projected out of what writes into the residual stream.
    Abliterated(Abliteration),
    /// A LoRA is trained on the attacker's compliant answers.
    Tuned {
        /// Rank on every map of every block.
        rank: usize,
        /// Pairs trained on.
        pairs: usize,
        /// Optimiser steps.
        steps: usize,
        /// Pairs per step.
        batch: usize,
        /// Peak step size.
        learning_rate: f64,
        /// Name of the random stream.
        stream: String,
    },
    /// Control: every weight that `like` changes is changed as much in a random direction, at the same rank where it has one.
    Random {
        /// The change whose size is taken.
        like: Box<Reweighting>,
        /// Name of the random stream.
        stream: String,
    },
}

impl Reweighting {
    /// Whether it is defined by the un-hardened base.
    #[must_use]
    pub fn needs_base(&self) -> bool {
        match self {
            Self::Strip { .. } | Self::Checkpoint { delta: Some(_), .. } => true,
            Self::Random { like, .. } => like.needs_base(),
            _ => false,
        }
    }

    /// Whether no hardening can be held to withstand it.
    #[must_use]
    pub fn is_out_of_scope(&self) -> bool {
        match self {
            Self::Abliterated(_) => false,
            Self::Random { like, .. } => like.is_out_of_scope(),
            _ => true,
        }
    }

    /// Whether the model that it is applied to has no part in the result.
    #[must_use]
    pub fn replaces(&self) -> bool {
        match self {
            Self::Checkpoint { delta: None, .. } => true,
            Self::Random { like, .. } => like.replaces(),
            _ => false,
        }
    }

    /// `decoder` with its weights changed, frozen.
    ///
    /// # Errors
    /// [`Error::Input`] when an artefact doesn't fit the model or changed since it was looked at, or when there is no base
    /// and the change needs it.
    pub fn apply(&self, decoder: &Decoder, base: Option<&Decoder>, bench: &Bench) -> Result<Decoder> {
        let required = || base.ok_or_else(|| Error::usage("this change of weights needs the un-hardened base"));
        match self {
            Self::Adapters { file, digest, scale } => {
                let terms = Terms { scale: *scale, ..Terms::default() };
                let imported = import::load(file, &terms, decoder.blueprint())?;
                unchanged(file, digest)?;
                match imported.change {
                    Change::Adapters(adapters) => merge(decoder, &adapters),
                    _ => Err(Error::file(file, "expected a LoRA, got something else")),
                }
            }
            Self::Checkpoint { file, digest, delta } => {
                let edited = Decoder::load(&Checkpoint::open(file)?, decoder.device())?;
                unchanged(file, digest)?;
                if edited.blueprint() != decoder.blueprint() {
                    return Err(Error::file(
                        file,
                        "expected the architecture of the model that it is for, got another",
                    ));
                }
                match delta {
                    None => Ok(edited),
                    Some(scale) => combined(decoder, &edited, required()?, *scale),
                }
            }
            Self::Strip { amount } => combined(decoder, required()?, decoder, *amount),
            Self::Rounded { bits } => rounded(decoder, *bits),
            Self::Abliterated(abliteration) => abliteration.apply(decoder),
            Self::Tuned { rank, pairs, steps, batch, learning_rate, stream } => {
                let data = &bench.attack;
                let pairs = &data.pairs[..data.pairs.len().min(*pairs)];
                if pairs.is_empty() {
                    return Err(Error::input("attack data", "expected pairs to train on, got none"));
                }
                let settings = FineTune {
                    steps: *steps,
                    batch: *batch,
                    learning_rate: *learning_rate,
                    weight_decay: 0.0,
                    prompt_weight: 0.0,
                    pad: data.pad,
                };
                let draw = |stream: &mut Stream| {
                    let pair = &pairs[stream.below(pairs.len())];
                    Dialogue { prompt: pair.prompt.clone(), answer: pair.target.clone() }
                };
                let stream = &mut Stream::new(bench.seed, stream);
                merge(decoder, &tune_adapters(decoder, *rank, &settings, stream, draw, |_, _| ())?)
            }
            Self::Random { like, stream } => {
                let mut stream = Stream::new(bench.seed, stream);
                match like.as_ref() {
                    // Of the same rank too.
                    Self::Adapters { file, digest, scale } => {
                        let terms = Terms { scale: *scale, ..Terms::default() };
                        let imported = import::load(file, &terms, decoder.blueprint())?;
                        unchanged(file, digest)?;
                        let Change::Adapters(adapters) = imported.change else {
                            return Err(Error::file(file, "expected a LoRA, got something else"));
                        };
                        merge(decoder, &random_adapters(&adapters, &mut stream)?)
                    }
                    Self::Abliterated(abliteration) => abliteration.randomised(&mut stream).apply(decoder),
                    other => random(decoder, &other.apply(decoder, base, bench)?, &mut stream),
                }
            }
        }
    }
}

/// An artefact may have been written anew between two looks at it; a unit is kept under the digest of one of them.
fn unchanged(file: &std::path::Path, digest: &str) -> Result<()> {
    if import::digest(file)?.to_string() == digest {
        return Ok(());
    }
    Err(Error::file(file, "expected it to stay as it was while it is measured, got other content"))
}

/// `W + s(A − B)`.
fn combined(decoder: &Decoder, a: &Decoder, b: &Decoder, scale: f64) -> Result<Decoder> {
    let (a, b) = (a.weights()?, b.weights()?);
    decoder.map_weights(|name, weight| match (a.get(name), b.get(name)) {
        (Some(a), Some(b)) => {
            let moved = (weight.to_dtype(DType::F32)? + (difference(a, b)? * scale)?)?;
            Ok(moved.to_dtype(weight.dtype())?.detach())
        }
        _ => Err(Error::input(name, "expected a weight of all models, got none")),
    })
}

fn rounded(decoder: &Decoder, bits: u32) -> Result<Decoder> {
    decoder.map_weights(|name, weight| {
        if weight.rank() != 2 {
            return Ok(weight.clone());
        }
        let mut values = host_values(&weight.to_dtype(DType::F32)?)?;
        let width = weight.dim(1)?;
        for row in values.chunks_mut(width) {
            if bits == 4 && name.starts_with("model.layers.") { Q4_0::round_trip(row) } else { Q8_0::round_trip(row) }
        }
        Ok(Tensor::from_vec(values, weight.dims(), weight.device())?.to_dtype(weight.dtype())?)
    })
}

fn random(decoder: &Decoder, changed: &Decoder, stream: &mut Stream) -> Result<Decoder> {
    let changed = changed.weights()?;
    decoder.map_weights(|name, weight| {
        let Some(other) = changed.get(name) else { return Ok(weight.clone()) };
        let size = frobenius(&difference(other, weight)?)?;
        if size == 0.0 {
            return Ok(weight.clone());
        }
        let noise = Tensor::from_vec(stream.gaussian(weight.elem_count(), 1.0), weight.dims(), weight.device())?;
        let factor = size / frobenius(&noise)?.max(f64::MIN_POSITIVE);
        Ok((weight.to_dtype(DType::F32)? + (noise * factor)?)?.to_dtype(weight.dtype())?.detach())
    })
}

fn random_adapters(like: &AdapterSet, stream: &mut Stream) -> Result<AdapterSet> {
    let norm = |adapter: &Adapter| adapter.delta().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    like.iter()
        .map(|(name, adapter)| {
            let mut noise = adapter.clone();
            let values = stream.gaussian(noise.a.len() + noise.b.len(), 1.0);
            noise.a.iter_mut().chain(&mut noise.b).zip(values).for_each(|(old, new)| *old = new);
            let factor = norm(adapter) / norm(&noise).max(f64::MIN_POSITIVE);
            Ok((name.clone(), Adapter::new(noise.a, noise.b, (f64::from(noise.scale) * factor) as f32)?))
        })
        .collect()
}

/// `A − B` in f32: on an accelerator matrices may be held as bf16.
fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?)
}

fn frobenius(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
}

/// What a change of weights looks like, in words: how many tensors, how large, and how many directions it takes.
///
/// The rank is the stable one, `‖Δ‖² / σ₁²`: of the largest change of a matrix, by power iteration.
///
/// # Errors
/// When the two models differ in shape.
pub fn spectrum(before: &Decoder, after: &Decoder) -> Result<String> {
    let (before, after) = (before.weights()?, after.weights()?);
    let (mut tensors, mut change, mut size) = (0, 0.0, 0.0);
    let mut ranks = vec![];
    for (name, weight) in &before {
        let other = after.get(name).ok_or_else(|| Error::input(name, "expected a weight of both models, got none"))?;
        let delta = difference(other, weight)?;
        let norm = frobenius(&delta)?;
        size += frobenius(weight)?.powi(2);
        change += norm.powi(2);
        if norm > 0.0 {
            tensors += 1;
            if delta.rank() == 2 {
                ranks.push((norm / leading(&delta)?.max(f64::MIN_POSITIVE)).powi(2));
            }
        }
    }
    let relative = percent((change / f64::max(size, f64::MIN_POSITIVE)).sqrt());
    let mean = ranks.iter().sum::<f64>() / ranks.len().max(1) as f64;
    let largest = ranks.iter().fold(0.0_f64, |a, b| a.max(*b));
    Ok(format!("{tensors} tensors, relative norm {relative}, stable rank {mean:.1} (at most {largest:.1})"))
}

/// The leading singular value of a matrix.
fn leading(matrix: &Tensor) -> Result<f64> {
    let columns = matrix.dim(1)?;
    let start = Stream::new(0, "spectrum").gaussian(columns, 1.0);
    let mut vector = Tensor::from_vec(start, (columns, 1), matrix.device())?;
    let mut value = 0.0;
    for _ in 0..POWER_STEPS {
        vector = (&vector / frobenius(&vector)?.max(f64::MIN_POSITIVE))?;
        let image = matrix.matmul(&vector)?;
        value = frobenius(&image)?;
        vector = matrix.t()?.matmul(&image)?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{random_decoder, tiny};

    #[test]
    fn matrices_that_an_accelerator_holds_as_bf16_change_like_others() {
        let decoder = random_decoder(tiny(), 0.4, Stream::new(1, "decoder"));
        let half = |decoder: &Decoder| {
            decoder.map_weights(|_, weight| match weight.rank() {
                2 => Ok(weight.to_dtype(DType::BF16)?),
                _ => Ok(weight.clone()),
            })
        };
        let base = half(&decoder).unwrap();
        let changed = half(&rounded(&decoder, 4).unwrap()).unwrap();
        let words = spectrum(&base, &changed).unwrap();
        assert!(words.contains("tensors, relative norm") && !words.starts_with("0 "), "{words}");
        for other in [
            rounded(&base, 8).unwrap(),
            random(&base, &changed, &mut Stream::new(2, "noise")).unwrap(),
            combined(&base, &changed, &base, 1.0).unwrap(),
        ] {
            let kinds = |decoder: &Decoder| decoder.weights().unwrap().values().map(Tensor::dtype).collect::<Vec<_>>();
            assert_eq!(kinds(&other), kinds(&base));
            assert_ne!(spectrum(&base, &other).unwrap().split(' ').next(), Some("0"));
        }
    }
}
