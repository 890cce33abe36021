//! How the weights are changed so that interventions lose their effect. Never imports an attack: the adversary that a
//! defence trains against is handed in as a trait object.

pub mod adversarial;
mod anchor;
pub mod cache;
pub mod et;
pub mod et_closed;
pub mod finetune;
pub mod harm_vector;
mod local;
mod neutralise;
mod noise;
pub mod spec;
pub mod trainable;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::adapter::AdapterSet;
use crate::data::Kind;
use crate::intervention::Edit;
use crate::model::Decoder;
pub use cache::Room;
pub use finetune::Dialogue;
pub use local::block_unit;

/// The weights before any stage, and as the stages so far left them.
#[derive(Debug, Clone, Copy)]
pub struct Weighed<'a> {
    /// The un-hardened model: where targets come from, so that no stage inherits another's drift.
    pub original: &'a Decoder,
    /// What this stage changes.
    pub current: &'a Decoder,
}

impl<'a> From<&'a Decoder> for Weighed<'a> {
    /// A first stage.
    fn from(decoder: &'a Decoder) -> Self {
        Self { original: decoder, current: decoder }
    }
}

/// What block-local stages may use of the machine; results do not depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    /// Blocks that are trained at once.
    pub at_once: usize,
    /// Where activations of those blocks lie.
    pub room: Room,
}

impl Means {
    /// So many blocks, with all that they need in the device's memory.
    #[must_use]
    pub const fn in_memory(at_once: usize) -> Self {
        Self { at_once, room: Room::Device }
    }
}

/// Everything that a block-local stage is given.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// Targets and the weights that are changed.
    pub weights: Weighed<'a>,
    /// What it trains on.
    pub data: &'a DefenceData,
    /// Who attacks it.
    pub adversary: &'a dyn Adversary,
    /// What of the machine it may use.
    pub means: &'a Means,
    /// Root of its random streams.
    pub seed: u64,
}

/// What a defence trains on, in token ids. None of it is in a split that anything is measured on.
#[derive(Debug, Clone, Default)]
pub struct DefenceData {
    /// Hazardous requests with the answer of an aligned model.
    pub hazards: Vec<Dialogue>,
    /// For each hazard the compliant answer that an attacker aims for, where the data has one.
    pub compliant: Vec<Option<Compliant>>,
    /// Benign, twin, maths, copying and fact dialogues: the model must stay as it is here.
    pub anchors: Vec<Dialogue>,
    /// What each of them is, in their order.
    pub anchor_kinds: Vec<Kind>,
    /// Id that fills padding.
    pub pad: u32,
}

/// A compliant answer to a hazard: a defence learns to leave it, an attacker to give it.
#[derive(Debug, Clone)]
pub struct Compliant {
    /// Token ids, without an end.
    pub answer: Vec<u32>,
    /// Name of the way in which it opens, where the data names one.
    pub opening: Option<String>,
}

/// What a local defence needs of an adversary: an edit of one block's input, and how well it works.
pub trait Adversary: Sync {
    /// Fits an edit of block `layer`'s input against `decoder`; `attempt` selects a fresh random start.
    ///
    /// # Errors
    /// As the attack's.
    fn fit(&self, decoder: &Decoder, layer: usize, attempt: usize) -> Result<Edit>;

    /// Attack success rate of `edit` on hazards that nothing is trained on, as a fraction of 1.
    ///
    /// # Errors
    /// As generation's.
    fn success(&self, decoder: &Decoder, edit: &Edit) -> Result<f64>;
}

/// Keeps finished units of a long stage, so that a killed run goes on where it stopped.
pub trait UnitStore: Send {
    /// The bytes kept under `key`, if that unit was finished.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Keeps a finished unit durably.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put(&mut self, key: &str, bytes: &[u8]) -> Result<()>;
}

/// Keeps units in memory only.
#[derive(Debug, Clone, Default)]
pub struct Forgetful(BTreeMap<String, Vec<u8>>);

impl UnitStore for Forgetful {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    fn put(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
        self.0.insert(key.to_owned(), bytes.to_vec());
        Ok(())
    }
}

/// What a block-local stage did to one block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockOutcome {
    /// Block index.
    pub layer: usize,
    /// Attack–train rounds run.
    pub rounds: usize,
    /// Success of the first edit before training.
    pub asr_before: f64,
    /// Success of the block's own edits that were trained against, after training; the worst of them.
    pub asr_frozen: f64,
    /// Success of a fresh re-attack after training: what acceptance rests on.
    pub asr_refitted: f64,
    /// Relative change of the block's outputs under its first edit, before and after training.
    pub infection: (f64, f64),
    /// Whether the re-attack failed.
    pub accepted: bool,
    /// Whether the block's adapters were dropped again.
    pub reverted: bool,
}

/// Result of a stage: the change to the weights, and what happened on the way.
#[derive(Debug, Clone, Default)]
pub struct StageOutcome {
    /// Low-rank deltas by tensor name.
    pub adapters: AdapterSet,
    /// Per block, for local stages.
    pub blocks: Vec<BlockOutcome>,
    /// Further figures by name, such as final losses.
    pub figures: BTreeMap<String, f64>,
}
