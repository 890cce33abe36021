//! The fixed part of a measurement: prompts, judge, seed and the store of finished units. Only the model under it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use candle_core::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::corpus::Corpus;
use super::device::{self, Demand, Machine};
use super::examiner::{Counts, Examiner, Judgements, Questions};
use super::model::{Model, digests, identity, locate};
use crate::attack::AttackData;
use crate::attack::spec::AttackSpec;
use crate::checkpoint::{Checkpoint, Digest};
use crate::data::{Kind, PromptSet, Split};
use crate::defence::UnitStore;
use crate::event::Silent;
use crate::intervention::{Edit, Positions};
use crate::judge::guard::{Guard, GuardSpec};
use crate::model::Decoder;
use crate::recipe::{EarlyStop, Suite};
use crate::report::sequential::Looks;
use crate::report::threshold::MIN_BASE_ASR;
use crate::report::{Calibration, Rate, Thresholds};
use crate::utility::harness::HarnessTask;
use crate::{Error, Result};

/// A model that is measured.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Its weights.
    pub decoder: &'a Decoder,
    /// Digest over its files: what units are keyed by.
    pub identity: &'a str,
}

/// Which of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The un-hardened model.
    Base,
    /// The hardened one.
    Hardened,
}

impl Side {
    /// `base` or `hardened`: part of the names of random streams.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Hardened => "hardened",
        }
    }
}

/// What is measured on, the same for base and hardened model.
pub struct Bench {
    /// The attacker's data.
    pub attack: AttackData,
    /// Hazards that choices are made on.
    pub validation: Questions,
    /// Hazards that figures are measured on.
    pub evaluation: Questions,
    /// Benign twins of hazards.
    pub twins: Questions,
    /// Benign requests.
    pub benign: Questions,
    /// Generates and judges.
    pub examiner: Examiner,
    /// When a cell may stop before all evaluation hazards.
    pub looks: Option<Looks>,
    /// Root of the random streams.
    pub seed: u64,
    /// What labels say of the first judge, where rates are corrected.
    pub calibration: Option<Calibration>,
    /// Utility tasks from files, in the recipe's order.
    pub tasks: Vec<HarnessTask>,
    /// The second judge.
    pub guard: Option<SecondJudge>,
    /// Models that edits are transferred from, by reference.
    sources: BTreeMap<String, Source>,
    /// Digest of all of this, of the tool and of the kind of machine.
    scope: String,
}

/// A guard model and what reports call it.
pub struct SecondJudge {
    /// The guard.
    pub model: Guard,
    /// Its name and frame.
    pub name: String,
    identity: String,
}

impl SecondJudge {
    fn open(spec: &GuardSpec, device: &Device) -> Result<Self> {
        let located = locate(&spec.model, &Silent)?;
        let model = Guard::open(&located.dir, spec.frame, device)?;
        let name = format!("{} ({})", located.source, spec.frame.name());
        Ok(Self { identity: identity(&digests(&Checkpoint::open(&located.dir)?)?), model, name })
    }
}

/// Another model, and the attacker's data as it reads them: the same requests in the same order.
pub struct Source {
    /// Its weights.
    pub decoder: Decoder,
    /// The attacker's data.
    pub attack: AttackData,
    /// Digest over its files.
    pub identity: String,
}

impl Source {
    fn open(reference: &str, data: &PromptSet, system: Option<&str>, seed: u64, like: &Model) -> Result<Self> {
        let machine = Machine::new(like.decoder.device().clone(), None);
        let model = Model::open(reference, &machine, Demand::of_measuring(&machine.device), &Silent)?;
        let attack = Corpus { set: data, encoder: &model.encoder, system, seed }.attack()?;
        Ok(Self { identity: model.identity(), attack, decoder: model.decoder })
    }
}

impl Bench {
    /// Prepares the prompts of `data` for `model`, and the models that edits are transferred from; the hardened model must have
    /// the same tokenizer as the base.
    ///
    /// # Errors
    /// As [`Corpus::questions`] and [`Model::open`]; [`Error::Input`] without hazards to evaluate on.
    pub fn new(
        suite: &Suite,
        thresholds: &Thresholds,
        data: &PromptSet,
        system: Option<&str>,
        seed: u64,
        model: &Model,
    ) -> Result<Self> {
        let corpus = Corpus { set: data, encoder: &model.encoder, system, seed };
        let limit = suite.evaluation_prompts;
        let examiner = Examiner::new(&model.encoder, suite.max_new_tokens, model.decoder.blueprint().parameters());
        let device = model.decoder.device();
        let guard = suite.guard.as_ref().map(|spec| SecondJudge::open(spec, device)).transpose()?;
        let scope = serde_json::json!({
            "tool": [env!("CARGO_PKG_NAME"), super::BUILD],
            "data": data.digest,
            "encoder": model.encoder_digests(),
            "system": system,
            "seed": seed,
            "prompts": [limit, suite.validation_prompts],
            "tokens": suite.max_new_tokens,
            "judge": examiner.judge_name(),
            "guard": guard.as_ref().map(|guard| (&guard.identity, &guard.name)),
            "device": device::kind(device),
            "simd": device::simd(),
        });
        let named = suite.attacks.iter().filter_map(|spec| spec.source.clone());
        let open = |name: String| Ok((name.clone(), Source::open(&name, data, system, seed, model)?));
        Ok(Self {
            sources: named.collect::<BTreeSet<_>>().into_iter().map(open).collect::<Result<_>>()?,
            attack: corpus.attack()?,
            validation: corpus.validation(suite.validation_prompts)?,
            evaluation: corpus.evaluation(limit)?,
            twins: corpus.questions(Split::Evaluation, Kind::Twin, limit)?,
            benign: corpus.questions(Split::Evaluation, Kind::Benign, limit)?,
            examiner,
            calibration: suite.calibration.clone(),
            tasks: vec![],
            guard,
            looks: suite.early_stop.as_ref().map(|stop| Looks { count: stop.looks, bounds: bounds(stop, thresholds) }),
            seed,
            scope: scope.to_string(),
        })
    }

    /// The model that an edit of these settings is transferred from.
    #[must_use]
    pub fn source(&self, spec: &AttackSpec) -> Option<&Source> {
        self.sources.get(spec.source.as_deref()?)
    }

    /// Judges the evaluation hazards under `edit`, as far as it takes to decide.
    ///
    /// # Errors
    /// As [`Examiner::counts`].
    pub fn evaluate(&self, decoder: &Decoder, edit: Option<(&Edit, Positions)>) -> Result<Counts> {
        let guard = self.guard.as_ref().map(|guard| &guard.model);
        let judged = |questions: &Questions| self.examiner.judgements(decoder, questions, edit, guard);
        let Some(looks) = &self.looks else { return Ok(judged(&self.evaluation)?.counts()) };
        let (mut seen, mut counts) = (Judgements::default(), Counts::default());
        for number in 0..looks.count {
            let part = self.evaluation.every(looks.count, number);
            if !part.is_empty() {
                seen = seen.and(judged(&part)?);
            }
            counts = Counts { error: looks.error(number), ..seen.counts() };
            if looks.decides(Rate::new(counts.successes, counts.n), number, counts.design()) {
                break;
            }
        }
        Ok(counts)
    }

    /// What a judgement of the evaluation hazards depends on besides model and edit.
    #[must_use]
    pub fn rule(&self) -> Option<serde_json::Value> {
        self.looks.as_ref().map(|looks| serde_json::json!([looks.count, looks.bounds]))
    }

    /// A key for a unit that depends on this bench and on `what`; `name` is for the reader of the run folder.
    #[must_use]
    pub fn key(&self, name: &str, what: &impl Serialize) -> String {
        let what = serde_json::to_string(what).expect("plain data with string keys: cannot fail");
        format!("{name}/{}", Digest::of(format!("{}\n{what}", self.scope).as_bytes()))
    }
}

/// Rates that a cell must be on one side of: the recipe's own, those that gate single rows, and the one from which on an attack on the
/// base counts.
fn bounds(stop: &EarlyStop, thresholds: &Thresholds) -> Vec<f64> {
    let gates = [thresholds.frozen_asr.max_worst, thresholds.adaptive_asr.max_worst, thresholds.control_asr.max];
    let gates = gates.into_iter().flatten().chain([MIN_BASE_ASR]);
    let mut bounds: Vec<f64> = stop.at.iter().copied().chain(gates).collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    bounds
}

/// Finished units, shared by the cells that run at the same time.
pub struct Units<'a>(Mutex<&'a mut (dyn UnitStore + Send)>);

impl<'a> Units<'a> {
    /// Shares `store`.
    pub fn new(store: &'a mut (dyn UnitStore + Send)) -> Self {
        Self(Mutex::new(store))
    }

    /// The unit kept under `key`, or a new one, which is kept.
    ///
    /// A new unit is returned as it reads back, so that a resumed run goes on with the very same numbers.
    ///
    /// # Errors
    /// Those of `make`, and of keeping the result.
    pub fn cached<T: Serialize + DeserializeOwned>(&self, key: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = self.store().get(key);
        if let Some(unit) = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(unit);
        }
        let broken = |error: serde_json::Error| Error::input(format!("unit `{key}`"), error.to_string());
        let bytes = serde_json::to_vec(&make()?).map_err(broken)?;
        self.store().put(key, &bytes)?;
        serde_json::from_slice(&bytes).map_err(broken)
    }

    fn store(&self) -> std::sync::MutexGuard<'_, &'a mut (dyn UnitStore + Send)> {
        // A store has no state that a panic elsewhere could leave half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defence::Forgetful;

    #[test]
    fn a_unit_is_made_once() {
        let mut store = Forgetful::default();
        let units = Units::new(&mut store);
        let first: Vec<f64> = units.cached("k", || Ok(vec![0.1, 1.0 / 3.0])).unwrap();
        let again: Vec<f64> = units.cached("k", || Err(Error::usage("made twice"))).unwrap();
        assert_eq!(first, again);
        let other: Result<f64> = units.cached("other", || Err(Error::usage("failed")));
        assert!(other.is_err());
        assert_eq!(units.cached("other", || Ok(1.0)).unwrap(), 1.0, "a failure is not kept");
    }
}
