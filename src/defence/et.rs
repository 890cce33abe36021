//! `et`: block-local neutralisation of learned edits, with the mathematics that the paper intends.
//!
//! *Source*: E.T. (2026). For block l with original outputs `a(H)`, `m(H + a(H))` on clean inputs `H`, and a
//! learned edit `Φ`: adapters on its seven maps are trained so that the adapted block computes on `Φ(H)` what the
//! original computes on `H`, plus `λ` times the same on clean inputs. Deliberate differences from the reference: no
//! dropout, scale 1 in training as in the merge, zero start, f32 factors, targets always from the ORIGINAL weights, both
//! losses in one step, padding and the first token masked, every token divided by its target's squared norm, benign and
//! answer tokens among the anchors, and acceptance only after a fresh edit has been fitted against the trained block.

use candle_core::Tensor;

use super::local::{self, Bank, BlockTrainer, Local};
use super::neutralise::Neutralisation;
use super::spec::EtSpec;
use super::trainable::Trainable;
use super::{Given, StageOutcome, UnitStore};
use crate::Result;
use crate::adapter::AdapterSet;
use crate::event::Observer;
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients};

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

/// Name of its units, streams and events.
pub const NAME: &str = "et";

/// Hardens each of `layers` against edits of its own input.
///
/// # Errors
/// Those of the adversary, of [`Decoder::run`] and of the store.
pub fn run(
    spec: &EtSpec,
    faults: Faults,
    layers: &[usize],
    given: &Given<'_>,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    let settings = Local {
        name: NAME,
        earlier: false,
        bank: 1,
        rounds: spec.rounds,
        accept_below: spec.accept_below,
        revert: spec.revert,
        sizes: (spec.batch, spec.prompts, spec.anchors),
        cache: spec.cache,
    };
    let decoder = given.weights.current;
    local::run(settings, layers, given, observer, store, |layer, stream| {
        let trainable = match faults {
            Faults::Avoided => Trainable::fresh(decoder, &[layer], spec.rank, stream)?,
            Faults::Reproduced => Trainable::without_zero(decoder, &[layer], spec.rank, FAITHFUL_SCALE, stream)?,
        };
        let adapted = trainable.attach(decoder)?;
        Ok(Descent { spec, faults, trainable, adapted })
    })
}

/// Adam on the relative errors of a block's outputs.
struct Descent<'a> {
    spec: &'a EtSpec,
    faults: Faults,
    trainable: Trainable,
    adapted: Decoder,
}

impl BlockTrainer for Descent<'_> {
    fn train(&mut self, task: &Neutralisation, bank: Bank<'_>, stream: &mut Stream) -> Result<()> {
        let Self { spec, faults, trainable, adapted } = self;
        let mut adam = AdamW::new(trainable.vars(), AdamSettings::default());
        for step in 0..spec.steps {
            let hazard = task.hazards[stream.below(task.hazards.len())].take()?;
            let edit = &bank.own[step % bank.own.len()];
            let anchor = match task.anchors.len() {
                0 => None,
                count => Some(task.anchors[stream.below(count)].take()?),
            };
            let dropout = match *faults {
                Faults::Avoided => None,
                Faults::Reproduced => Some(dropout_mask(&hazard.input, stream)?),
            };
            let drop =
                |x: Tensor| -> Result<Tensor> { dropout.as_ref().map_or(Ok(x.clone()), |mask| Ok((&x * mask)?)) };
            let (gradients, _) = sharded_gradients(adam.vars(), 1, |_| {
                let infected =
                    task.error(adapted, &hazard, &drop(task.edited(edit, &hazard.input, &hazard.batch)?)?)?;
                let mut stable = task.error(adapted, &hazard, &drop(hazard.input.clone())?)?;
                if let Some(anchor) = &anchor {
                    stable = (stable + task.error(adapted, anchor, &anchor.input)?)?;
                }
                Ok((infected + (stable * spec.lambda)?)?)
            })?;
            adam.step(&gradients, spec.learning_rate * (1.0 - step as f64 / spec.steps as f64))?;
            if *faults == Faults::Reproduced {
                trainable.round_to_bf16()?;
            }
        }
        Ok(())
    }

    fn export(&self) -> Result<AdapterSet> {
        self.trainable.export()
    }
}

/// 0 with probability [`FAITHFUL_DROPOUT`], else the factor that keeps the mean, shaped as `like`.
fn dropout_mask(like: &Tensor, stream: &mut Stream) -> Result<Tensor> {
    let keep = (1.0 / (1.0 - FAITHFUL_DROPOUT)) as f32;
    let mask: Vec<f32> =
        (0..like.elem_count()).map(|_| if stream.unit() < FAITHFUL_DROPOUT { 0.0 } else { keep }).collect();
    Ok(Tensor::from_vec(mask, like.shape(), like.device())?)
}
