//! `et`: block-local neutralisation of learned edits, with the mathematics that the paper intends.
//!
//! *Source*: E.T. (2026), METHOD §1. For block l with original outputs `a(H)`, `m(H + a(H))` on clean inputs `H`, and a
//! learned edit `Φ`: adapters on its seven maps are trained so that the adapted block computes on `Φ(H)` what the
//! original computes on `H`, plus `λ` times the same on clean inputs. Deliberate differences from the reference: no
//! dropout, scale 1 in training as in the merge, zero start, f32 factors, targets always from the ORIGINAL weights, both
//! losses in one step, padding and the first token masked, every token divided by its target's squared norm, benign and
//! answer tokens among the anchors, and acceptance only after a fresh edit has been fitted against the trained block.
//!
//! Blocks are independent of one another (each is attacked and trained in the otherwise original model), so they run in
//! parallel, and any subset gives the same adapters.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::anchor::batch_of;
use super::spec::EtSpec;
use super::trainable::{Trainable, merge};
use super::{Adversary, BlockOutcome, DefenceData, Dialogue, StageOutcome, UnitStore};
use crate::adapter::Adapter;
use crate::event::{Event, Observer};
use crate::intervention::Placed;
use crate::math::seed::Stream;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients};
use crate::model::{Decoder, Hooks, Intervention as _, Point, Site, TokenBatch};
use crate::{Error, Result};

/// Added to a target's squared norm, relative to the mean over tokens, so that tiny targets do not dominate.
const RELATIVE_FLOOR: f64 = 1e-2;

/// Whether faults 1–4 of the reference are avoided, or reproduced for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// The mathematics that the paper intends.
    Avoided,
    /// As the reference: dropout over the whole residual vector, factors trained at half the scale at which they are
    /// merged, no factor zero at the start, factors rounded to bf16 after every step.
    Reproduced,
}

/// Scale of the reference's adapters in training; they are merged at 1.
const FAITHFUL_SCALE: f64 = 0.5;

/// Dropout of the reference.
const FAITHFUL_DROPOUT: f64 = 0.1;

/// Hardens each of `layers` against edits of its own input.
///
/// # Errors
/// Those of the adversary, of [`Decoder::run`] and of the store.
#[allow(clippy::too_many_arguments)]
pub fn run(
    spec: &EtSpec,
    faults: Faults,
    layers: &[usize],
    decoder: &Decoder,
    data: &DefenceData,
    adversary: &dyn Adversary,
    seed: u64,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    let kept: BTreeMap<usize, Unit> = layers
        .iter()
        .filter_map(|layer| {
            store.get(&key(*layer)).and_then(|bytes| Some((*layer, serde_json::from_slice(&bytes).ok()?)))
        })
        .collect();
    let store = Mutex::new((store, 0));
    let units: Vec<Unit> = layers
        .par_iter()
        .map(|layer| {
            let unit = match kept.get(layer) {
                Some(unit) => unit.clone(),
                None => harden_block(spec, faults, *layer, decoder, data, adversary, seed)?,
            };
            let bytes = serde_json::to_vec(&unit).map_err(|error| Error::input(key(*layer), error.to_string()))?;
            let mut guard = store.lock().map_err(|_| Error::input(key(*layer), "another block's worker panicked"))?;
            guard.0.put(&key(*layer), &bytes)?;
            guard.1 += 1;
            let o = &unit.outcome;
            observer.event(Event::UnitFinished {
                stage: "et".into(),
                done: guard.1,
                units: layers.len(),
                detail: format!(
                    "block {layer}: asr {:.2}, after training {:.2}, re-fitted {:.2}{}",
                    o.asr_before,
                    o.asr_frozen,
                    o.asr_refitted,
                    if o.reverted { ", reverted" } else { "" }
                ),
            });
            drop(guard);
            Ok(unit)
        })
        .collect::<Result<_>>()?;
    let mut outcome = StageOutcome::default();
    for unit in units {
        if !unit.outcome.reverted {
            for (name, stored) in unit.adapters {
                outcome.adapters.insert(name, stored.adapter()?);
            }
        }
        outcome.blocks.push(unit.outcome);
    }
    Ok(outcome)
}

fn key(layer: usize) -> String {
    format!("et/block-{layer}")
}

/// A finished block as the store keeps it.
#[derive(Clone, Serialize, Deserialize)]
struct Unit {
    outcome: BlockOutcome,
    adapters: BTreeMap<String, Stored>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    scale: f32,
}

impl Stored {
    fn new(adapter: &Adapter) -> Self {
        Self {
            rank: adapter.rank(),
            a: adapter.a.iter().copied().collect(),
            b: adapter.b.iter().copied().collect(),
            scale: adapter.scale,
        }
    }

    fn adapter(self) -> Result<Adapter> {
        let (rank, broken) = (self.rank.max(1), |e: ndarray::ShapeError| Error::input("stored adapter", e.to_string()));
        let (columns, rows) = (self.a.len() / rank, self.b.len() / rank);
        let a = ndarray::Array2::from_shape_vec((rank, columns), self.a).map_err(broken)?;
        let b = ndarray::Array2::from_shape_vec((rows, rank), self.b).map_err(broken)?;
        Adapter::new(a, b, self.scale)
    }
}

fn harden_block(
    spec: &EtSpec,
    faults: Faults,
    layer: usize,
    decoder: &Decoder,
    data: &DefenceData,
    adversary: &dyn Adversary,
    seed: u64,
) -> Result<Unit> {
    let mut stream = Stream::new(seed, &format!("et/block-{layer}"));
    let task = Neutralisation::new(layer, decoder, data, spec, &mut stream)?;
    let trainable = match faults {
        Faults::Avoided => Trainable::fresh(decoder, &[layer], spec.rank, &mut stream)?,
        Faults::Reproduced => Trainable::without_zero(decoder, &[layer], spec.rank, FAITHFUL_SCALE, &mut stream)?,
    };
    let adapted = trainable.attach(decoder)?;
    // Nothing is dropped from the bank between rounds.
    let mut bank = vec![adversary.fit(decoder, layer, 0)?];
    let asr_before = adversary.success(decoder, &bank[0])?;
    let mut placed = vec![bank[0].place(decoder.device())?];
    let infected = task.infection(decoder, &placed[0])?;
    let mut outcome = BlockOutcome {
        layer,
        rounds: 0,
        asr_before,
        asr_frozen: asr_before,
        asr_refitted: asr_before,
        infection: (infected, infected),
        accepted: false,
        reverted: false,
    };
    for round in 1..=spec.rounds {
        task.train(spec, faults, &trainable, &adapted, &placed, &mut stream)?;
        let hardened = merge(decoder, &trainable.export()?)?;
        outcome.rounds = round;
        outcome.infection.1 = task.infection(&hardened, &placed[0])?;
        let mut worst = 0_f64;
        for edit in &bank {
            worst = worst.max(adversary.success(&hardened, edit)?);
        }
        outcome.asr_frozen = worst;
        let refitted = adversary.fit(&hardened, layer, round)?;
        outcome.asr_refitted = adversary.success(&hardened, &refitted)?;
        outcome.accepted = outcome.asr_refitted < spec.accept_below;
        if outcome.accepted {
            break;
        }
        placed.push(refitted.place(decoder.device())?);
        bank.push(refitted);
    }
    outcome.reverted = spec.revert && !outcome.accepted;
    let adapters = trainable.export()?.iter().map(|(name, adapter)| (name.clone(), Stored::new(adapter))).collect();
    Ok(Unit { outcome, adapters })
}

/// The training problem of one block: cached clean inputs and original targets of hazards and anchors.
struct Neutralisation {
    layer: usize,
    hazards: Vec<Cached>,
    anchors: Vec<Cached>,
}

/// One batch of block inputs with the original block's outputs and per-token weights.
struct Cached {
    batch: TokenBatch,
    input: Tensor,
    attention: Target,
    mlp: Target,
}

/// A target with weights `mask / (‖target‖² + ε) / tokens`, `[tokens, 1]`.
struct Target {
    value: Tensor,
    weight: Tensor,
}

impl Target {
    fn new(value: Tensor, mask: &Tensor) -> Result<Self> {
        let width = value.dim(2)?;
        let value = value.detach().reshape(((), width))?;
        let squares = value.sqr()?.sum_keepdim(1)?;
        let tokens = f64::from(mask.sum_all()?.to_scalar::<f32>()?).max(1.0);
        let mean = f64::from((&squares * mask)?.sum_all()?.to_scalar::<f32>()?) / tokens;
        let weight = (mask / (squares + RELATIVE_FLOOR * mean)?)?;
        Ok(Self { value, weight: (weight / tokens)? })
    }

    /// Mean over real tokens of the squared error relative to the target's squared norm.
    fn error(&self, output: &Tensor) -> Result<Tensor> {
        let output = output.reshape(self.value.shape())?;
        Ok((output - &self.value)?.sqr()?.broadcast_mul(&self.weight)?.sum_all()?)
    }
}

impl Neutralisation {
    fn new(layer: usize, original: &Decoder, data: &DefenceData, spec: &EtSpec, stream: &mut Stream) -> Result<Self> {
        let cache = |dialogues: &[Dialogue], count: usize, stream: &mut Stream| -> Result<Vec<Cached>> {
            let mut rows = stream.sample(dialogues.len(), count);
            rows.sort_by_key(|row| dialogues[*row].prompt.len() + dialogues[*row].answer.len());
            rows.chunks(spec.batch.max(1))
                .map(|rows| cached(original, layer, batch_of(dialogues, rows, data.pad)))
                .collect()
        };
        let hazards = cache(&data.hazards, spec.prompts, stream)?;
        let anchors = cache(&data.anchors, spec.anchors, stream)?;
        if hazards.is_empty() {
            return Err(Error::input("defence data", "expected hazardous prompts, got none"));
        }
        Ok(Self { layer, hazards, anchors })
    }

    /// `error(a) + error(m)` of `decoder`'s block on an input, against the original's clean outputs.
    fn error(&self, decoder: &Decoder, cached: &Cached, input: &Tensor) -> Result<Tensor> {
        let (attention, mlp) = decoder.block_outputs(self.layer, input, &cached.batch)?;
        Ok((cached.attention.error(&attention)? + cached.mlp.error(&mlp)?)?)
    }

    fn edited(&self, edit: &Placed, cached: &Cached) -> Result<Tensor> {
        edit.apply(Site::new(self.layer, Point::ResidPre), &cached.input)
    }

    fn train(
        &self,
        spec: &EtSpec,
        faults: Faults,
        trainable: &Trainable,
        adapted: &Decoder,
        bank: &[Placed],
        stream: &mut Stream,
    ) -> Result<()> {
        let mut adam = AdamW::new(trainable.vars(), AdamSettings::default());
        for step in 0..spec.steps {
            let cached = &self.hazards[stream.below(self.hazards.len())];
            let edit = &bank[step % bank.len()];
            let anchor = if self.anchors.is_empty() { None } else { Some(stream.below(self.anchors.len())) };
            let dropout = match faults {
                Faults::Avoided => None,
                Faults::Reproduced => Some(dropout_mask(&cached.input, stream)?),
            };
            let drop =
                |x: Tensor| -> Result<Tensor> { dropout.as_ref().map_or(Ok(x.clone()), |mask| Ok((&x * mask)?)) };
            let (gradients, _) = sharded_gradients(adam.vars(), 1, |_| {
                let infected = self.error(adapted, cached, &drop(self.edited(edit, cached)?)?)?;
                let mut stable = self.error(adapted, cached, &drop(cached.input.clone())?)?;
                if let Some(anchor) = anchor {
                    let anchor = &self.anchors[anchor];
                    stable = (stable + self.error(adapted, anchor, &anchor.input)?)?;
                }
                Ok((infected + (stable * spec.lambda)?)?)
            })?;
            adam.step(&gradients, spec.learning_rate * (1.0 - step as f64 / spec.steps as f64))?;
            if faults == Faults::Reproduced {
                trainable.round_to_bf16()?;
            }
        }
        Ok(())
    }

    /// Mean relative error of the block's outputs on hazards under `edit`: 0 is complete neutralisation.
    fn infection(&self, decoder: &Decoder, edit: &Placed) -> Result<f64> {
        let mut total = 0.0;
        for cached in &self.hazards {
            total += f64::from(self.error(decoder, cached, &self.edited(edit, cached)?)?.to_scalar::<f32>()?);
        }
        Ok(total / self.hazards.len() as f64)
    }
}

/// 0 with probability [`FAITHFUL_DROPOUT`], else the factor that keeps the mean, shaped as `like`.
fn dropout_mask(like: &Tensor, stream: &mut Stream) -> Result<Tensor> {
    let keep = (1.0 / (1.0 - FAITHFUL_DROPOUT)) as f32;
    let mask: Vec<f32> =
        (0..like.elem_count()).map(|_| if stream.unit() < FAITHFUL_DROPOUT { 0.0 } else { keep }).collect();
    Ok(Tensor::from_vec(mask, like.shape(), like.device())?)
}

fn cached(original: &Decoder, layer: usize, batch: TokenBatch) -> Result<Cached> {
    let input = original.run(0..layer, &original.embed(&batch)?, &batch, &mut Hooks::none(), None)?.detach();
    let (attention, mlp) = original.block_outputs(layer, &input, &batch)?;
    let mask = batch.token_mask(1, original.device())?;
    Ok(Cached { attention: Target::new(attention, &mask)?, mlp: Target::new(mlp, &mask)?, batch, input })
}
