//! `et-closed`: block-local neutralisation map by map, by reduced-rank ridge regression instead of gradient descent.
//!
//! *Source*: our own, E.T.'s aim map by map. For each linear map with clean inputs `x`, edited inputs `x̃` of every edit of the
//! bank and anchors `z`, the change `D` minimises `Σ‖(W+D)x̃ − W₀x‖² + λ‖(W+D)z − W₀z‖² + μ‖D‖²`. Maps are solved in the order in
//! which the block computes (q, k, v; o; gate, up; down), each on what those before it now give: o aims for what it gave in the clean
//! attention and down for what it gave in the clean feed-forward part, so errors that a norm or a softmax leaves are corrected there.
//! Tokens weigh as in `et`: masked, and divided by their target's squared norm.

use candle_core::Tensor;
use ndarray::Array2;
use rayon::prelude::*;

use super::cache::Kept;
use super::local::{self, Bank, BlockTrainer, Local};
use super::neutralise::{Cached, Neutralisation, Target};
use super::spec::EtClosedSpec;
use super::{Given, StageOutcome, UnitStore};
use crate::adapter::{Adapter, AdapterSet};
use crate::event::Observer;
use crate::intervention::Placed;
use crate::math::linalg::{Factors, Ridge};
use crate::math::seed::Stream;
use crate::model::optimiser::host_values;
use crate::model::{BlockParts, Decoder, Module, TokenBatch, WeightLocation};
use crate::{Error, Result};

/// Maps that are solved at once: they read the same input.
const STEPS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

/// Dialogues that are computed with at once.
pub const BATCH: usize = 32;

/// Name of its units, streams and events.
pub const NAME: &str = "et-closed";

/// Which edits a block is trained against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of its own input.
    Own,
    /// `et-propagated`: one of each of the stage's blocks before it as well, as it arrives through the original's blocks. An
    /// edit's own contribution stays in the stream by design, and every later block reads it. The blocks between, once they
    /// are hardened too, will have made less of it.
    Earlier,
}

/// Hardens each of `layers` against edits within `reach`.
///
/// # Errors
/// Those of the adversary, of [`Decoder::run`] and of the store.
pub fn run(
    spec: &EtClosedSpec,
    reach: Reach,
    layers: &[usize],
    given: &Given<'_>,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    let settings = Local {
        name: match reach {
            Reach::Own => NAME,
            Reach::Earlier => "et-propagated",
        },
        earlier: reach == Reach::Earlier,
        bank: spec.bank,
        rounds: spec.rounds,
        accept_below: spec.accept_below,
        revert: spec.revert,
        sizes: (BATCH, spec.prompts, spec.anchors),
        cache: spec.cache,
    };
    let decoder = given.weights.current;
    local::run(settings, layers, given, observer, store, |layer, _| {
        Ok(Closed { spec, layer, start: decoder.clone(), earlier: vec![], adapters: AdapterSet::new() })
    })
}

/// One block's maps, solved for.
struct Closed<'a> {
    spec: &'a EtClosedSpec,
    layer: usize,
    /// The weights that the changes are added to.
    start: Decoder,
    /// Of every batch of hazards what arrives of the edits of blocks before.
    earlier: Vec<Vec<Kept>>,
    adapters: AdapterSet,
}

/// One batch with what the original computes on it as it is: the block's input and those of its maps, `[batch, pos, width]`.
struct Clean<'a> {
    batch: &'a TokenBatch,
    input: Tensor,
    parts: BlockParts,
}

impl<'a> Clean<'a> {
    fn of(task: &Neutralisation, cached: &'a Cached) -> Result<Self> {
        let (batch, input) = (&cached.batch, cached.input()?);
        let parts = task.original.block_parts(task.layer, &input, batch)?;
        Ok(Self { batch, input, parts })
    }
}

impl BlockTrainer for Closed<'_> {
    /// Solves all maps anew, from the weights that the stage began with.
    fn train(&mut self, task: &Neutralisation, bank: Bank<'_>, _: &mut Stream) -> Result<()> {
        self.adapters = AdapterSet::new();
        if self.earlier.is_empty() {
            let arrive = |cached: &Cached| {
                let input = cached.input()?;
                let kept = |edit| task.cache.keep(&task.edited(edit, &input, &cached.batch)?);
                bank.earlier.iter().map(kept).collect::<Result<Vec<_>>>()
            };
            self.earlier = task.hazards.iter().map(arrive).collect::<Result<_>>()?;
        }
        // What comes from blocks before weighs as much together as the block's own edits do.
        let groups = [bank.own, bank.earlier].into_iter().filter(|edits| !edits.is_empty()).count();
        let share = |edits: &[Placed]| 1.0 / (groups * edits.len()) as f64;
        let lambda = self.spec.lambda;
        let mut current = self.start.clone();
        for modules in STEPS {
            let mut ridges: Vec<Ridge> = modules
                .iter()
                .map(|module| {
                    let [d_out, d_in] = current.blueprint().weight_shape(*module);
                    Ridge::new(d_out, d_in)
                })
                .collect();
            let mut add = |clean: &Clean<'_>, input: &Tensor, weight: f64| -> Result<()> {
                let parts = current.block_parts(self.layer, input, clean.batch)?;
                for (module, ridge) in modules.iter().zip(&mut ridges) {
                    accumulate(ridge, *module, (&task.original, &current), self.layer, (clean, weight), &parts)?;
                }
                Ok(())
            };
            for (cached, earlier) in task.hazards.iter().zip(&self.earlier) {
                let clean = Clean::of(task, cached)?;
                for edit in bank.own {
                    add(&clean, &task.edited(edit, &clean.input, clean.batch)?, share(bank.own))?;
                }
                for kept in earlier {
                    add(&clean, &kept.take()?, share(bank.earlier))?;
                }
                if lambda > 0.0 {
                    add(&clean, &clean.input, lambda)?;
                }
            }
            for cached in task.anchors.iter().filter(|_| lambda > 0.0) {
                let clean = Clean::of(task, cached)?;
                add(&clean, &clean.input, lambda)?;
            }
            let solved: Vec<Option<Factors>> =
                ridges.par_iter().map(|ridge| ridge.solve(self.spec.rank, self.spec.mu)).collect();
            for (module, solved) in modules.iter().zip(solved) {
                let WeightLocation { tensor: name, rows, of } =
                    current.blueprint().weight_location(*module, self.layer);
                let broken = || Error::input(&name, "expected a solvable least-squares problem, got a singular one");
                let solved = solved.ok_or_else(broken)?;
                let [d_out, d_in] = current.blueprint().weight_shape(*module);
                let shaped = |rows, columns, values| {
                    Array2::from_shape_vec((rows, columns), values).map_err(|e| Error::input(&name, e.to_string()))
                };
                let adapter =
                    Adapter::new(shaped(solved.rank, d_in, solved.a)?, shaped(d_out, solved.rank, solved.b)?, 1.0)?;
                self.adapters.add(&name, rows, of, adapter)?;
            }
            current = super::trainable::merge(&self.start, &self.adapters)?;
        }
        Ok(())
    }

    fn export(&self) -> Result<AdapterSet> {
        Ok(self.adapters.clone())
    }
}

/// Adds one batch to the sums of one map.
fn accumulate(
    ridge: &mut Ridge,
    module: Module,
    (original, current): (&Decoder, &Decoder),
    layer: usize,
    (clean, weight): (&Clean<'_>, f64),
    parts: &BlockParts,
) -> Result<()> {
    let map = current.block(layer).map(module);
    let Clean { batch, parts: clean, .. } = clean;
    let (input, clean_input) = match module {
        Module::Q | Module::K | Module::V => (&parts.attention_in, &clean.attention_in),
        Module::O => (&parts.z, &clean.z),
        Module::Gate | Module::Up => (&parts.mlp_in, &clean.mlp_in),
        Module::Down => (&parts.active, &clean.active),
    };
    let width = input.dim(2)?;
    let x = input.reshape(((), width))?;
    let target = original.block(layer).map(module).forward(&clean_input.reshape(((), width))?)?;
    let error = (&target - map.forward(&x)?)?;
    let mask = batch.token_mask(1, x.device())?;
    let weight = (Target::new(target, &mask)?.weight * weight)?.sqrt()?;
    ridge.add(&host_values(&x.broadcast_mul(&weight)?)?, &host_values(&error.broadcast_mul(&weight)?)?);
    Ok(())
}
