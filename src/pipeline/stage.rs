//! Runs one defence stage of a recipe with everything that it may see.

use super::examiner::{Examiner, Questions};
use crate::Result;
use crate::attack::AttackData;
use crate::defence::{DefenceData, StageOutcome, UnitStore};
use crate::event::{Event, Observer};
use crate::model::Decoder;
use crate::recipe::Stage;

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
}

/// Runs `stage` on the blocks `layers` of `decoder`.
///
/// # Errors
/// Those of the stage.
pub fn run_stage(
    stage: &Stage,
    _layers: &[usize],
    _decoder: &Decoder,
    _data: &StageData,
    _seed: u64,
    observer: &dyn Observer,
    _store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    observer.event(Event::Warning(format!("stage `{}` changes nothing in this build", stage.kind())));
    Ok(StageOutcome::default())
}
