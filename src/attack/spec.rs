//! The settings of one row of an attack suite, as recipes write them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::form::Form;
use super::transfer::MapKind;
use crate::intervention::import::Op;
use crate::intervention::{Layers, Positions};

/// What kind of adversary a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AttackKind {
    /// A learned low-rank edit `h + W2ᵀ(W1−W2)h` of one block's input.
    Noreft,
    /// The same as `h + Rᵀ(Wh + b − Rh)` with orthonormal `R`.
    Loreft,
    /// The same as `h + Rᵀ(Wh + b)` with orthonormal `R`.
    Direft,
    /// The same as `h + Rᵀb` with orthonormal `R`: a learned vector.
    Lobireft,
    /// `h ± c·v`, `v` the difference of class means.
    MeanDifference,
    /// `h ± c·v` at every block at once, `v` the leading principal component of pair differences there.
    PrincipalComponent,
    /// The same, mean added and every token's norm restored (Safety Arithmetic's vector, sign flipped or not).
    InContextVector,
    /// Shifts of the attention heads that tell the classes apart best, towards the other class.
    ItiHeads,
    /// Maps of the attention heads that tell the classes apart best: mean and covariance of the harmless class.
    OptimalTransport,
    /// The refusal direction projected out everywhere.
    Ablation,
    /// A subspace of `rank` directions projected out everywhere.
    SubspaceAblation,
    /// The refusal direction projected out of the weights, wholly or by a searched kernel over blocks.
    Abliteration,
    /// An edit fitted on another model, `source`, and carried over by a map between the two models' activations.
    Transferred,
    /// What another tool made: vectors, a ReFT, a LoRA, an edited checkpoint; read from `file`, never re-fitted.
    Imported,
    /// The change that hardening made subtracted again, `scale` of it, then ablation; needs the base and is never gated.
    DeltaStrip,
    /// Not an attack: weights rounded to `bits` (llama.cpp's Q8_0 or Q4_0), then ablation; never gated.
    Quantised,
    /// Out of scope: a LoRA trained on compliant answers, in memory; never gated.
    Lora,
    /// Control: a random edit that moves activations as far.
    Random,
    /// Control: no edit at all.
    Identity,
}

/// How an adversary finds its edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By gradient descent on an edit of this form.
    Learned(Form),
    /// By a sweep over strengths, chosen on validation hazards.
    Swept,
    /// By projecting out what was found at one of the blocks, chosen on validation hazards.
    Projected,
    /// As `Projected`, out of the weights that write into the residual stream.
    Abliterated,
    /// On another model, then by a map that is fitted on this one.
    Mapped,
    /// Not at all: somebody else did.
    Given,
    /// By changing the weights; then, but for `lora`, as `ablation` does.
    Weights,
    /// Not at all: it is a control.
    Control,
}

impl AttackKind {
    /// How its edit is found.
    #[must_use]
    pub fn method(self) -> Method {
        match self {
            Self::Noreft => Method::Learned(Form::Noreft),
            Self::Loreft => Method::Learned(Form::Loreft),
            Self::Direft => Method::Learned(Form::Direft),
            Self::Lobireft => Method::Learned(Form::Lobireft),
            Self::MeanDifference
            | Self::PrincipalComponent
            | Self::InContextVector
            | Self::ItiHeads
            | Self::OptimalTransport => Method::Swept,
            Self::Ablation | Self::SubspaceAblation => Method::Projected,
            Self::Abliteration => Method::Abliterated,
            Self::Transferred => Method::Mapped,
            Self::Imported => Method::Given,
            Self::DeltaStrip | Self::Quantised | Self::Lora => Method::Weights,
            Self::Random | Self::Identity => Method::Control,
        }
    }

    /// Whether its edit is of all its blocks at once, whatever the recipe says.
    fn acts_on_all(self) -> bool {
        matches!(self.method(), Method::Projected | Method::Abliterated | Method::Given | Method::Weights)
            || matches!(self, Self::PrincipalComponent | Self::InContextVector | Self::ItiHeads)
    }

    /// What an adversary of this kind can know: an artefact stays as it is, and weights are changed where they are.
    #[must_use]
    pub fn knowledge(self) -> &'static [Knowledge] {
        match self.method() {
            Method::Given => &[Knowledge::Frozen],
            Method::Weights => &[Knowledge::Adaptive],
            _ => &[Knowledge::Frozen, Knowledge::Adaptive],
        }
    }
}

/// Whether the adversary saw the hardened weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Knowledge {
    /// Fitted on the un-hardened base, applied to the hardened model.
    Frozen,
    /// Re-fitted on the hardened weights with fresh seeds.
    Adaptive,
}

/// The grid that a searched, re-fitted learned edit is the worst case of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Step sizes tried.
    pub learning_rates: Vec<f64>,
    /// Also start from the edit fitted on the un-hardened base.
    pub start_from_base: bool,
    /// Target openings tried beside the data's own mixture of them, by name.
    pub openings: Vec<String>,
    /// Fresh initialisations tried for every setting.
    pub seeds: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self { learning_rates: vec![1e-3, 4e-3, 1e-2, 3e-2, 1e-1], start_from_base: true, openings: vec![], seeds: 3 }
    }
}

/// The most that something may cost, in units that no machine changes; absent bounds allow anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Allowance {
    /// Sequences run forward and backward to find edits, on both models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_evaluations: Option<u64>,
    /// Tokens of the answers that are scored, on both models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generated_tokens: Option<u64>,
}

impl Allowance {
    /// Such as `5000 gradient evaluations`.
    #[must_use]
    pub fn words(&self) -> String {
        let part = |most: Option<u64>, unit: &str| most.map(|most| format!("{most} {unit}"));
        let parts =
            [part(self.gradient_evaluations, "gradient evaluations"), part(self.generated_tokens, "tokens of answers")];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

/// One row of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackSpec {
    /// The adversary.
    pub kind: AttackKind,
    /// Blocks attacked, one cell each (`ablation` and `abliteration` take their direction there and act everywhere).
    #[serde(default)]
    pub layers: Layers,
    /// Learned edits, `optimal-transport`: one edit of all these blocks at once instead of a cell for each.
    #[serde(default)]
    pub joint: bool,
    /// Where the edit acts.
    #[serde(default)]
    pub positions: Positions,
    /// Frozen, adaptive or both.
    #[serde(default = "both")]
    pub knowledge: Vec<Knowledge>,
    /// Rank of a learned edit or of a subspace.
    #[serde(default = "two")]
    pub rank: usize,
    /// Pairs of request and affirmative answer that the adversary trains on (`mean-difference`, `ablation`: per class).
    #[serde(default = "eighty")]
    pub pairs: usize,
    /// Optimiser steps; absent: the paper's schedule for this many pairs.
    #[serde(default)]
    pub steps: Option<usize>,
    /// Pairs per step.
    #[serde(default = "ten")]
    pub batch: usize,
    /// Peak step size, decayed linearly to zero.
    #[serde(default = "paper_rate")]
    pub learning_rate: f64,
    /// Strengths swept, of either sign: in multiples of the mean residual norm, for `iti-heads` of a head's spread; for
    /// `optimal-transport` parts of the way to the harmless class, for `transferred` of the edit that arrives.
    #[serde(default)]
    pub coefficients: Vec<f64>,
    /// Search of a learned edit over its own settings; the row is the worst case.
    #[serde(default)]
    pub search: Option<Search>,
    /// Independent repetitions, each a cell; 1 for what draws nothing at random.
    #[serde(default = "one")]
    pub seeds: usize,
    /// The most that one cell may cost; one that would cost more is skipped, and said to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Allowance>,
    /// `imported`: the artefact, a file or folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// `imported`: what it is used for; absent: what its format says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// `imported`: factor on the artefact; `delta-strip`: part of the change that is subtracted; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// `imported`: added to the artefact's block numbers; absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_offset: Option<i64>,
    /// `abliteration`: kernels over blocks that are tried; absent: the whole direction leaves all blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_trials: Option<usize>,
    /// `transferred`: the model that the edit is fitted on: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `transferred`: what is fitted there: a learned edit, `mean-difference` or `ablation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<AttackKind>,
    /// `transferred`: the map that carries it over; absent: `affine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<MapKind>,
    /// `quantised`: bits of a weight, 8 or 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
}

impl AttackSpec {
    /// Whether its edit is of all its blocks at once, or takes its direction from one of them.
    #[must_use]
    pub fn acts_on_all(&self) -> bool {
        self.joint || self.kind.acts_on_all() || self.of.is_some_and(AttackKind::acts_on_all)
    }

    /// The form of the edit that is learned, on this model or on another.
    #[must_use]
    pub fn form(&self) -> Option<Form> {
        match self.of.unwrap_or(self.kind).method() {
            Method::Learned(form) => Some(form),
            _ => None,
        }
    }

    /// Whether a re-fitted row tries what was fitted on the base too, as nothing keeps an attacker from doing.
    #[must_use]
    pub fn tries_base(&self) -> bool {
        match self.kind.method() {
            Method::Learned(_) => self.search.as_ref().is_some_and(|search| search.start_from_base),
            Method::Swept | Method::Projected | Method::Abliterated | Method::Mapped => true,
            // What is trained is no edit of the model below.
            Method::Weights => self.kind != AttackKind::Lora,
            Method::Given | Method::Control => false,
        }
    }

    /// Whether it draws random numbers, so that a repetition is another attack.
    #[must_use]
    pub fn draws(&self) -> bool {
        match self.kind.method() {
            Method::Learned(_) => true,
            Method::Abliterated => self.search_trials.is_some(),
            Method::Mapped => self.form().is_some() || self.map == Some(MapKind::Relu),
            Method::Weights => self.kind == AttackKind::Lora,
            Method::Control => self.kind == AttackKind::Random,
            Method::Swept | Method::Projected | Method::Given => false,
        }
    }

    /// Settings of a training that are not at their defaults, of an attack that trains nothing and has no use for them.
    #[must_use]
    pub fn without_use(&self) -> Vec<&'static str> {
        if self.form().is_some() || matches!(self.kind, AttackKind::Lora | AttackKind::Random) {
            return vec![];
        }
        let given = [
            ("rank", self.rank != two() && self.kind != AttackKind::SubspaceAblation),
            ("steps", self.steps.is_some()),
            ("batch", self.batch != ten()),
            ("learning_rate", self.learning_rate.to_bits() != paper_rate().to_bits()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect()
    }

    /// Whether its rows inform and can neither hold nor break a gate: what no hardening can prevent, or what is no attack.
    #[must_use]
    pub fn is_ungated(&self) -> bool {
        self.kind.method() == Method::Weights || self.bits.is_some()
    }
}

fn both() -> Vec<Knowledge> {
    vec![Knowledge::Frozen, Knowledge::Adaptive]
}
fn one() -> usize {
    1
}
fn two() -> usize {
    2
}
fn ten() -> usize {
    10
}
fn eighty() -> usize {
    80
}
fn paper_rate() -> f64 {
    4e-3
}
