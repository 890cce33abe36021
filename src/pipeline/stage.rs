//! Runs one defence stage of a recipe with everything that it may see.

use super::examiner::{Examiner, Questions};
use super::pool::Pool;
use crate::attack::AttackData;
use crate::attack::form::Form;
use crate::attack::learned::{Fit, fit, paper_steps};
use crate::defence::spec::{EtClosedSpec, EtSpec, HarmVectorSpec};
use crate::defence::{
    Adversary, DefenceData, Given, Means, StageOutcome, UnitStore, Weighed, adversarial, block_unit, et, et_closed,
    harm_vector,
};
use crate::event::Observer;
use crate::intervention::{Edit, Positions};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::recipe::Stage;
use crate::{Error, Result};

/// Pairs per step of the paper's attack.
const PAPER_BATCH: usize = 10;

/// The paper's step size.
const PAPER_RATE: f64 = 4e-3;

/// What stages train on and choose by.
pub struct StageData {
    /// What the weights are trained on.
    pub defence: DefenceData,
    /// What the stage's own adversary trains on: pairs of the training split.
    pub attack: AttackData,
    /// Hazards that choices are made on.
    pub validation: Questions,
    /// Generates and judges.
    pub examiner: Examiner,
    /// Requests among the anchors that the un-hardened model made up.
    pub own_requests: usize,
    /// What of the machine stages may use that train blocks apart.
    pub means: Means,
}

/// Runs `stage` on the blocks `layers` of the current weights.
///
/// # Errors
/// Those of the stage.
pub fn run_stage(
    stage: &Stage,
    layers: &[usize],
    weights: Weighed<'_>,
    data: &StageData,
    seed: u64,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    let local = |spec: &EtSpec, faults: et::Faults, store: &mut dyn UnitStore| {
        let adversary = PaperAdversary { rank: spec.attack_rank, pairs: spec.attack_pairs, data, seed };
        et::run(
            spec,
            faults,
            layers,
            &Given { weights, data: &data.defence, adversary: &adversary, means: &data.means, seed },
            observer,
            store,
        )
    };
    let closed = |spec: &EtClosedSpec, reach: et_closed::Reach, store: &mut dyn UnitStore| {
        let adversary = PaperAdversary { rank: spec.attack_rank, pairs: spec.attack_pairs, data, seed };
        let given = Given { weights, data: &data.defence, adversary: &adversary, means: &data.means, seed };
        et_closed::run(spec, reach, layers, &given, observer, store)
    };
    let removal = |spec: &HarmVectorSpec, keep: f64| {
        let terms = (stage.kind(), spec.keep.unwrap_or(keep));
        harm_vector::run(spec, terms, layers, weights, &data.defence, seed, observer)
    };
    match stage {
        Stage::Et(spec, _) => local(spec, et::Faults::Avoided, store),
        Stage::EtFaithful(spec, _) => local(spec, et::Faults::Reproduced, store),
        Stage::EtClosed(spec, _) => closed(spec, et_closed::Reach::Own, store),
        Stage::EtPropagated(spec, _) => closed(spec, et_closed::Reach::Earlier, store),
        Stage::HdrTaskvec(spec, _) => removal(spec, 1.0),
        Stage::HdrTopk(spec, _) => removal(spec, 0.1),
        Stage::Adversarial(spec, _) => {
            let of_pool = match &spec.pool_layers {
                Some(blocks) => blocks.resolve(weights.current.n_layers(), "pool_layers")?,
                None => layers.to_vec(),
            };
            let mut pool = Pool::new(spec, layers, &of_pool, &data.attack, seed)?;
            adversarial::run(spec, layers, weights, &data.defence, &mut pool, seed, observer, store)
        }
    }
}

/// Names of the units that `stage` keeps, one a block of `layers`; absent when it trains its blocks together.
#[must_use]
pub fn block_units(stage: &Stage, layers: &[usize]) -> Option<Vec<String>> {
    let name = match stage {
        Stage::Et(..) | Stage::EtFaithful(..) => et::NAME,
        Stage::EtClosed(..) => et_closed::NAME,
        // Blocks share edits, or are trained together.
        Stage::EtPropagated(..) | Stage::HdrTaskvec(..) | Stage::HdrTopk(..) | Stage::Adversarial(..) => return None,
    };
    Some(layers.iter().map(|layer| block_unit(name, *layer)).collect())
}

/// The paper's learned edit, fitted on the training split and judged on the validation split.
struct PaperAdversary<'a> {
    rank: usize,
    pairs: usize,
    data: &'a StageData,
    seed: u64,
}

impl Adversary for PaperAdversary<'_> {
    fn fit(&self, decoder: &Decoder, layer: usize, attempt: usize) -> Result<Edit> {
        let settings = Fit {
            form: Form::Noreft,
            layers: vec![layer],
            rank: self.rank,
            pairs: self.pairs,
            steps: paper_steps(self.pairs, PAPER_BATCH),
            batch: PAPER_BATCH,
            learning_rate: PAPER_RATE,
            positions: Positions::All,
        };
        let mut stream = Stream::new(self.seed, &format!("et/adversary/block-{layer}/{attempt}"));
        Ok(fit(decoder, &self.data.attack, &settings, &mut stream)?.edit)
    }

    fn success(&self, decoder: &Decoder, edit: &Edit) -> Result<f64> {
        if self.data.validation.is_empty() {
            return Err(Error::input("prompts", "expected hazards of split `validation` to choose by, got none"));
        }
        let edit = Some((edit, Positions::All));
        Ok(self.data.examiner.counts(decoder, &self.data.validation, edit)?.success())
    }
}
