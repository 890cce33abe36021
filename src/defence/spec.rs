//! The settings of defence stages, as recipes write them.

use serde::{Deserialize, Serialize};

pub use super::cache::CacheType;
use crate::data::Kind;
use crate::intervention::{Layers, Positions};

/// Settings of `et`, E.T.'s block-local neutralisation with its intended mathematics, and of `et-faithful`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtSpec {
    /// Rank of the adapters on all seven matrices.
    pub rank: usize,
    /// Rank of the learned edit that each block is trained against.
    pub attack_rank: usize,
    /// Pairs that the learned edit is fitted on.
    pub attack_pairs: usize,
    /// Weight of the stability term on clean inputs.
    pub lambda: f64,
    /// Adam step size of the adapters.
    pub learning_rate: f64,
    /// Optimiser steps per block and round.
    pub steps: usize,
    /// Prompts per step.
    pub batch: usize,
    /// Hazard prompts whose block inputs are cached.
    pub prompts: usize,
    /// Benign, maths and copy dialogues among the anchors of the stability term.
    pub anchors: usize,
    /// Attack–train rounds per block at most.
    pub rounds: usize,
    /// Attack success below which a fresh re-attack counts as failed and the block as accepted.
    pub accept_below: f64,
    /// Drop a block's adapters when the last round's re-attack still succeeds.
    pub revert: bool,
    /// Type that a block's inputs and targets are kept in while it is trained; `bf16` halves what they take and rounds them, so
    /// figures change.
    pub cache: CacheType,
}

impl Default for EtSpec {
    fn default() -> Self {
        Self {
            rank: 2,
            attack_rank: 2,
            attack_pairs: 80,
            lambda: 0.01,
            learning_rate: 3e-3,
            steps: 150,
            batch: 16,
            prompts: 160,
            anchors: 160,
            rounds: 3,
            accept_below: 0.5,
            revert: false,
            cache: CacheType::F32,
        }
    }
}

/// Settings of `et-closed`, the same neutralisation in closed form, and of `et-propagated`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtClosedSpec {
    /// Rank of the change of each matrix; 0: any.
    pub rank: usize,
    /// Learned edits per block that are neutralised together, before those that rounds add.
    pub bank: usize,
    /// Rank of the learned edits.
    pub attack_rank: usize,
    /// Pairs that a learned edit is fitted on.
    pub attack_pairs: usize,
    /// Weight of clean hazards and anchors.
    pub lambda: f64,
    /// Ridge, in units of the mean squared input.
    pub mu: f64,
    /// Hazard prompts whose block inputs are used.
    pub prompts: usize,
    /// Benign, maths and copy dialogues among the anchors.
    pub anchors: usize,
    /// Attack–train rounds per block at most.
    pub rounds: usize,
    /// Attack success below which a fresh re-attack counts as failed and the block as accepted.
    pub accept_below: f64,
    /// Drop a block's adapters when the last round's re-attack still succeeds.
    pub revert: bool,
    /// Type that a block's inputs and targets are kept in while it is trained; `bf16` halves what they take and rounds them, so
    /// figures change.
    pub cache: CacheType,
}

impl Default for EtClosedSpec {
    fn default() -> Self {
        Self {
            rank: 16,
            bank: 2,
            attack_rank: 2,
            attack_pairs: 80,
            lambda: 0.1,
            mu: 1e-4,
            prompts: 160,
            anchors: 320,
            rounds: 2,
            accept_below: 0.5,
            revert: false,
            cache: CacheType::F32,
        }
    }
}

/// Settings of `hdr-taskvec` and `hdr-topk`, which take out of the weights what complying with hazards adds to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HarmVectorSpec {
    /// Optimiser steps of complying.
    pub steps: usize,
    /// Hazards per step.
    pub batch: usize,
    /// Adam step size of the weights.
    pub learning_rate: f64,
    /// Share of the changed numbers that is taken out, the largest ones; all for `hdr-taskvec`, a tenth for `hdr-topk`
    /// unless given.
    pub keep: Option<f64>,
    /// How often the change is taken out.
    pub scale: f64,
}

impl Default for HarmVectorSpec {
    fn default() -> Self {
        Self { steps: 100, batch: 16, learning_rate: 1e-4, keep: None, scale: 2.0 }
    }
}

/// Blocks that a joint defence meets more edits of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Focus {
    /// None.
    #[default]
    None,
    /// The first and the last one, which lag behind the others: they have twice as many.
    Ends,
    /// Those whose edits reached most lately: each edit is drawn by that, half of the chance being every one's.
    Strongest,
}

/// What of the weights a joint defence trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Parameters {
    /// Factors of a change of each map, of the stage's rank.
    #[default]
    Factors,
    /// The maps themselves.
    Weights,
}

/// An edit that an adversary takes from activations without any learning; each is described with the attack of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Vector {
    /// The difference of class means, at one block.
    MeanDifference,
    /// The leading principal component of pair differences, at all blocks.
    PrincipalComponent,
    /// Safety Arithmetic's vector, at all blocks.
    InContextVector,
    /// A difference of class means, projected out of every block: the one of several blocks and contrasts that serves the attacker best.
    Ablation,
    /// Shifts of the heads that part the classes best, of all blocks.
    ItiHeads,
    /// Affine maps of the heads of all blocks from where hazards are to where harmless requests are, of few heads or of all.
    OptimalTransport,
    /// A direction that knows nothing, at one block: what controls are, and some of them work.
    Random,
}

/// How often one anchor of each kind is drawn, in proportion to the others; clean hazards are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorWeights {
    /// Harmless requests in hazardous words.
    pub twin: f64,
    /// Ordinary harmless requests, those that the model made up among them.
    pub benign: f64,
    /// Arithmetic.
    pub maths: f64,
    /// Words to be repeated.
    pub copy: f64,
    /// Facts.
    pub fact: f64,
}

impl Default for AnchorWeights {
    fn default() -> Self {
        Self { twin: 1.0, benign: 1.0, maths: 1.0, copy: 1.0, fact: 1.0 }
    }
}

impl AnchorWeights {
    /// That of an anchor of `kind`; 0 of kinds that are no anchors.
    #[must_use]
    pub const fn of(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Twin => self.twin,
            Kind::Benign => self.benign,
            Kind::Maths => self.maths,
            Kind::Copy => self.copy,
            Kind::Fact => self.fact,
            Kind::Hazard | Kind::Text => 0.0,
        }
    }
}

/// Settings of `adversarial`: adapters on the chosen blocks trained so that the model keeps refusing under edits that
/// keep being re-trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdversarialSpec {
    /// Factors of a change, or the weights themselves.
    pub train: Parameters,
    /// Rank of the factors; 0: the full rank of each map.
    pub rank: usize,
    /// Outer steps, each against `edits_per_step` edits.
    pub steps: usize,
    /// Adam step size of the adapters, decayed by a cosine to a tenth.
    pub learning_rate: f64,
    /// Share of the steps, the last ones, whose weights are averaged into the result, one of every twenty: what they have in common
    /// stays, what each learned against the edits of its moment does not. 0: the weights of the last step.
    pub average: f64,
    /// Gradient steps that a pool edit takes before each outer step.
    pub inner_steps: usize,
    /// Step sizes that pool edits use, one each, in turn.
    pub inner_learning_rates: Vec<f64>,
    /// Ranks of the pool's edits, in turn.
    pub ranks: Vec<usize>,
    /// Learned edits kept warm per block; none only where there are `joint` ones or `vectors`.
    pub pool: usize,
    /// Blocks that these edits are of; absent: those that the stage changes. An edit of one block is met by all blocks behind it, and
    /// on a model of real size there is no time for edits of each.
    pub pool_layers: Option<Layers>,
    /// Which blocks' edits are met more often: [`Focus`].
    pub focus: Focus,
    /// Learned edits of all blocks at once kept warm.
    pub joint: usize,
    /// Factors on what an edit adds to the stream, one drawn at every use: an attacker with a larger step size finds
    /// larger edits than the pool does in its few steps. Projections and maps of heads stay as they are.
    pub amplify: Vec<f64>,
    /// Edits that need no learning, at the strength that serves the attacker best; one that is named twice is kept twice.
    pub vectors: Vec<Vector>,
    /// Uses after which such an edit is taken anew from the present weights: on a model of real size that costs as much as
    /// several outer steps.
    pub vector_life: usize,
    /// Tokens that the pool's edits act at: a learned one's lives go through these in turn, for every other edit one is drawn when it is
    /// taken. An attacker chooses freely, and holding against edits at all tokens is not holding against those that act on the prompt's
    /// alone, or from its last one on.
    pub positions: Vec<Positions>,
    /// Outer uses after which a pool edit is restarted.
    pub restart_after: usize,
    /// Factor on the gradient steps of a pool edit's first use after a start.
    pub warm_up: usize,
    /// Edits resisted in one outer step, of different pool members, in parallel.
    pub edits_per_step: usize,
    /// Hazards per inner and per outer batch.
    pub batch: usize,
    /// Anchors (benign, twins, maths, copying, clean refusals) per outer batch.
    pub anchor_batch: usize,
    /// Which kinds of them are drawn more often than their number gives.
    pub anchor_weights: AnchorWeights,
    /// Weight of the KL divergence to the original on anchors, per nat.
    pub kl_weight: f64,
    /// Harmless anchors per edit and step that are to be answered under the edit as without it, with the weight of the refusals:
    /// else "refuse whatever looks edited" is an answer to every attack, and spreads to requests that are not.
    pub attacked_anchors: usize,
    /// Share of hazards, attacked or clean, that come with the beginning of a compliant answer already given, which the
    /// model must leave for a refusal.
    pub begun: f64,
    /// Hazards per edit and step that come with a whole compliant answer: before each of its tokens the next one is to be that which
    /// begins a refusal, so that one answer shows as many ways out of it as it has tokens. A recipe is refused where no hazard has such an answer.
    pub interrupted: usize,
    /// Weight of these beside refusals under the edit, per nat.
    pub interrupted_weight: f64,
    /// Share of an anchor's prompt that is dropped or replaced by tokens of other prompts, in half of all anchors. What the
    /// original answers there is asked for: it is right by definition on text that is in no set.
    pub prompt_noise: f64,
    /// Tokens at the beginning of a refusal that an edit may not change; 0: all. Nothing holds what comes later, attacked or
    /// clean: a short refusal is better held whole.
    pub refusal_tokens: usize,
    /// Whether every other life of a pool edit begins from an edit that was fitted on the weights that the stage began with.
    pub starts_from_base: bool,
    /// Openings whose answers the injected adversary aims for; empty: all. Attacks of a suite can use others.
    pub openings: Vec<String>,
}

impl Default for AdversarialSpec {
    fn default() -> Self {
        Self {
            train: Parameters::default(),
            rank: 16,
            steps: 400,
            learning_rate: 1e-3,
            average: 0.0,
            inner_steps: 4,
            inner_learning_rates: vec![1e-2],
            ranks: vec![2, 4, 8],
            pool: 2,
            pool_layers: None,
            focus: Focus::default(),
            joint: 0,
            amplify: vec![1.0],
            vectors: vec![],
            vector_life: 1,
            positions: vec![Positions::All],
            restart_after: 12,
            warm_up: 4,
            edits_per_step: 2,
            batch: 16,
            anchor_batch: 24,
            anchor_weights: AnchorWeights::default(),
            kl_weight: 20.0,
            attacked_anchors: 0,
            begun: 0.25,
            interrupted: 0,
            interrupted_weight: 0.1,
            prompt_noise: 0.0,
            refusal_tokens: 0,
            starts_from_base: true,
            openings: vec![],
        }
    }
}
