//! What block-local stages share: attack a block, train it, attack it anew, accept or go on, keep what is finished.
//!
//! Blocks are independent of one another (each is attacked and trained in the otherwise unchanged model), so they run in
//! parallel, and any subset gives the same adapters, unless a block is to meet edits of the subset's earlier blocks as well.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cache::{Cache, CacheType};
use super::neutralise::Neutralisation;
use super::trainable::merge;
use super::{BlockOutcome, Given, StageOutcome, UnitStore, Weighed};
use crate::adapter::{Adapter, AdapterSet};
use crate::event::{Event, Observer};
use crate::intervention::{Edit, Placed};
use crate::math::seed::Stream;
use crate::{Error, Result};

/// The edits that a block is trained against.
#[derive(Clone, Copy)]
pub(super) struct Bank<'a> {
    /// Of its own input.
    pub own: &'a [Placed],
    /// Of the inputs of blocks before it.
    pub earlier: &'a [Placed],
}

/// How a stage trains one block.
pub(super) trait BlockTrainer {
    /// Adapts the block against all edits of `bank`; called again with a longer bank in the next round.
    fn train(&mut self, task: &Neutralisation, bank: Bank<'_>, stream: &mut Stream) -> Result<()>;

    /// The block's adapters as they stand.
    fn export(&self) -> Result<AdapterSet>;
}

/// Settings that all block-local stages have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local {
    /// Name of the stage: of its streams, its units and its events.
    pub name: &'static str,
    /// Whether a block also meets the first edit of each of the stage's blocks before it.
    pub earlier: bool,
    /// Edits fitted before the first round.
    pub bank: usize,
    /// Attack–train rounds per block at most.
    pub rounds: usize,
    /// Attack success below which a fresh re-attack counts as failed.
    pub accept_below: f64,
    /// Whether adapters of a block that was not accepted are dropped.
    pub revert: bool,
    /// Hazards per batch, hazards and anchors in all.
    pub sizes: (usize, usize, usize),
    /// Type that the blocks' activations are kept in.
    pub cache: CacheType,
}

/// Hardens each of `layers` with the trainer that `make(layer, stream)` gives.
///
/// # Errors
/// Those of the adversary, of [`crate::model::Decoder::run`] and of the store.
pub(super) fn run<T: BlockTrainer>(
    settings: Local,
    layers: &[usize],
    given: &Given<'_>,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
    make: impl Fn(usize, &mut Stream) -> Result<T> + Sync,
) -> Result<StageOutcome> {
    let name = settings.name;
    let kept: BTreeMap<usize, Unit> = layers
        .iter()
        .filter_map(|layer| {
            store.get(&block_unit(name, *layer)).and_then(|bytes| Some((*layer, serde_json::from_slice(&bytes).ok()?)))
        })
        .collect();
    let last = layers.iter().filter(|layer| !kept.contains_key(layer)).max();
    let firsts: BTreeMap<usize, Vec<Edit>> = if let (true, Some(last)) = (settings.earlier, last) {
        let needed = layers.par_iter().filter(|layer| *layer <= last);
        let fits = needed.map(|layer| Ok((*layer, first_edits(settings, *layer, given)?)));
        fits.collect::<Result<_>>()?
    } else {
        BTreeMap::new()
    };
    let store = Mutex::new((store, 0));
    let harden = |layer: &usize| -> Result<Unit> {
        let (unit, fresh) = match kept.get(layer) {
            Some(unit) => (unit.clone(), false),
            None => (harden_block(settings, *layer, given, &firsts, &make)?, true),
        };
        let key = block_unit(name, *layer);
        let mut guard = store.lock().map_err(|_| Error::input(&key, "another block's worker panicked"))?;
        if fresh {
            let bytes = serde_json::to_vec(&unit).map_err(|error| Error::input(&key, error.to_string()))?;
            guard.0.put(&key, &bytes)?;
        }
        guard.1 += 1;
        let o = &unit.outcome;
        observer.event(Event::UnitFinished {
            stage: name.into(),
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
    };
    let mut units = Vec::with_capacity(layers.len());
    for together in layers.chunks(given.means.at_once.max(1)) {
        units.extend(together.par_iter().map(harden).collect::<Result<Vec<_>>>()?);
    }
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

/// Name of the unit, and of the random stream, of one block in the local stage `name`.
#[must_use]
pub fn block_unit(name: &str, layer: usize) -> String {
    format!("{name}/block-{layer}")
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

/// The edits of block `layer` that a stage begins with.
fn first_edits(settings: Local, layer: usize, given: &Given<'_>) -> Result<Vec<Edit>> {
    (0..settings.bank.max(1)).map(|attempt| given.adversary.fit(given.weights.current, layer, attempt)).collect()
}

/// Hardens one block; `firsts` has the first edits of others by block, or nothing.
fn harden_block<T: BlockTrainer>(
    settings: Local,
    layer: usize,
    given: &Given<'_>,
    firsts: &BTreeMap<usize, Vec<Edit>>,
    make: &(impl Fn(usize, &mut Stream) -> Result<T> + Sync),
) -> Result<Unit> {
    let Given { weights: Weighed { original, current: decoder }, data, adversary, means, seed } = *given;
    let mut stream = Stream::new(seed, &block_unit(settings.name, layer));
    let cache = Cache::new(&means.room, settings.cache)?;
    let task = Neutralisation::new(layer, original, data, settings.sizes, cache, &mut stream)?;
    let mut trainer = make(layer, &mut stream)?;
    // Nothing is dropped from the bank between rounds.
    let mut bank = firsts.get(&layer).cloned().map_or_else(|| first_edits(settings, layer, given), Ok)?;
    let first = bank.len();
    let asr_before = adversary.success(decoder, &bank[0])?;
    let place = |edit: &Edit| edit.place(decoder.device());
    let earlier = firsts.range(..layer).filter_map(|(_, edits)| edits.first());
    let earlier = earlier.map(place).collect::<Result<Vec<_>>>()?;
    let mut placed = bank.iter().map(place).collect::<Result<Vec<_>>>()?;
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
    for round in 1..=settings.rounds {
        trainer.train(&task, Bank { own: &placed, earlier: &earlier }, &mut stream)?;
        let hardened = merge(decoder, &trainer.export()?)?;
        outcome.rounds = round;
        outcome.infection.1 = task.infection(&hardened, &placed[0])?;
        let mut worst = 0_f64;
        for edit in &bank {
            worst = worst.max(adversary.success(&hardened, edit)?);
        }
        outcome.asr_frozen = worst;
        let refitted = adversary.fit(&hardened, layer, first + round - 1)?;
        outcome.asr_refitted = adversary.success(&hardened, &refitted)?;
        outcome.accepted = outcome.asr_refitted < settings.accept_below;
        if outcome.accepted {
            break;
        }
        placed.push(refitted.place(decoder.device())?);
        bank.push(refitted);
    }
    outcome.reverted = settings.revert && !outcome.accepted;
    let adapters = trainer.export()?.iter().map(|(name, adapter)| (name.clone(), Stored::new(adapter))).collect();
    Ok(Unit { outcome, adapters })
}
