//! Trains the stages of a recipe, each on the weights that the one before left, and keeps every finished one in the run folder.
//!
//! The blocks of a local stage (`et`, `et-faithful`, `et-closed`) are trained each in the otherwise unchanged model, so parts of
//! them can be trained by several processes: a part keeps its blocks as units of its own run folder, under the keys that a
//! whole run would use. A run that has taken the units of all parts therefore ends in the bytes of a run without parts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::device;
use super::journal::{Journal, Scoped, remove};
use super::metrics::Metrics;
use super::model::Model;
use super::stage::{StageData, block_units, run_stage};
use crate::adapter::{AdapterSet, peft};
use crate::checkpoint::Digest;
use crate::defence::{BlockOutcome, UnitStore, Weighed, trainable};
use crate::event::{Event, Observer};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::recipe::{Recipe, Stage};
use crate::report::{Shard, wording};
use crate::{Error, Result};

/// A recipe's stages on a model.
pub(super) struct Training<'a> {
    pub recipe: &'a Recipe,
    /// Blocks of every stage.
    pub layers: &'a [Vec<usize>],
    pub base: &'a Model,
    pub data: &'a StageData,
    /// Digest of the prompts.
    pub data_digest: &'a str,
    /// Keys of the units that were taken from parts: a stage that some of them are of must be complete.
    pub taken: BTreeSet<String>,
}

/// A finished part of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which one.
    pub shard: Shard,
    /// Number of the stage in the recipe, from 1, and its kind; absent: all stages were finished already.
    pub stage: Option<(usize, &'static str)>,
    /// The blocks that it trained.
    pub layers: Vec<usize>,
    /// The run folder, to be given to `--assemble`.
    pub run: PathBuf,
}

/// What a finished stage leaves in the journal; its adapters lie in the run folder beside it.
#[derive(Serialize, Deserialize)]
struct Finished {
    blocks: Vec<BlockOutcome>,
    figures: BTreeMap<String, f64>,
    /// Digests of the adapter's two files; absent when nothing was adapted.
    adapters: Option<[String; 2]>,
}

/// One stage with all that its result depends on.
struct Step<'a> {
    /// From 1.
    number: usize,
    stage: &'a Stage,
    layers: &'a [usize],
    /// Prefix of its units' keys.
    scope: String,
}

impl Training<'_> {
    /// Runs all stages and gives what each changed.
    pub fn run(
        &self,
        journal: &mut Journal,
        metrics: &mut Metrics,
        observer: &dyn Observer,
    ) -> Result<Vec<AdapterSet>> {
        let (mut decoder, mut sets) = (self.base.decoder.clone(), vec![]);
        for step in self.steps()? {
            let set = self.finish(&step, &decoder, journal, observer)?;
            decoder = trainable::merge(&decoder, &set)?;
            sets.push(set);
            metrics.lap(format!("stage {} {}", step.number, step.stage.kind()));
        }
        Ok(sets)
    }

    /// Trains this part's share of the first stage that is not finished.
    pub fn run_part(&self, shard: Shard, run: PathBuf, journal: &mut Journal, observer: &dyn Observer) -> Result<Part> {
        let mut decoder = self.base.decoder.clone();
        for step in self.steps()? {
            if self.kept(&step, journal).is_some() || step.lacks(journal).is_some_and(|lacking| lacking.is_empty()) {
                let set = self.finish(&step, &decoder, journal, observer)?;
                decoder = trainable::merge(&decoder, &set)?;
                continue;
            }
            let kind = step.stage.kind();
            if step.lacks(journal).is_none() {
                return Err(Error::input(
                    format!("recipe `{}`", self.recipe.name),
                    format!(
                        "expected stage {} to be one whose blocks are trained apart (`et`, `et-faithful`, `et-closed`), got `{kind}`",
                        step.number
                    ),
                )
                .hint("give all parts to one process: `--assemble PART...` without `--shard`"));
            }
            let layers = share(step.layers, shard);
            if !layers.is_empty() {
                let weights = Weighed { original: &self.base.decoder, current: &decoder };
                let mut store = Scoped::new(journal, &step.scope);
                run_stage(step.stage, &layers, weights, self.data, self.seed(&step), observer, &mut store)?;
            }
            return Ok(Part { shard, stage: Some((step.number, kind)), layers, run });
        }
        Ok(Part { shard, stage: None, layers: vec![], run })
    }

    /// A stage that comes a second time draws other numbers than the first time: it would meet the same batches and edits again.
    fn seed(&self, step: &Step<'_>) -> u64 {
        let before = self.recipe.stages[..step.number - 1].iter();
        match before.filter(|other| other.kind() == step.stage.kind()).count() {
            0 => self.recipe.seed,
            times => {
                let name = format!("stage/{}/{times}", step.stage.kind());
                Stream::new(self.recipe.seed, &name).below(usize::MAX) as u64
            }
        }
    }

    fn steps(&self) -> Result<Vec<Step<'_>>> {
        // A stage depends on everything before it.
        let mut scope = serde_json::json!([
            super::BUILD,
            self.base.identity(),
            self.data_digest,
            self.recipe.data.system,
            self.recipe.data.own_requests,
            self.recipe.seed,
            self.recipe.suite.max_new_tokens,
            device::kind(self.base.decoder.device()),
            device::simd(),
        ])
        .to_string();
        let numbered = self.recipe.stages.iter().zip(self.layers).enumerate();
        numbered
            .map(|(i, (stage, layers))| {
                scope = stage_scope(&scope, stage, layers)?;
                Ok(Step { number: i + 1, stage, layers, scope: format!("stage/{scope}") })
            })
            .collect()
    }

    /// What the run folder has of a finished stage, if its files are as they were written.
    fn kept(&self, step: &Step<'_>, journal: &Journal) -> Option<AdapterSet> {
        let bytes = journal.get(&step.done())?;
        reload(&serde_json::from_slice(&bytes).ok()?, &step.folder(journal))
    }

    fn finish(
        &self,
        step: &Step<'_>,
        decoder: &Decoder,
        journal: &mut Journal,
        observer: &dyn Observer,
    ) -> Result<AdapterSet> {
        if let Some(set) = self.kept(step, journal) {
            let note = format!("stage {} `{}` is finished already", step.number, step.stage.kind());
            observer.event(Event::Note(note));
            return Ok(set);
        }
        self.require_all_parts(step, journal)?;
        let weights = Weighed { original: &self.base.decoder, current: decoder };
        let mut store = Scoped::new(journal, &step.scope);
        let outcome = run_stage(step.stage, step.layers, weights, self.data, self.seed(step), observer, &mut store)?;
        let folder = step.folder(journal);
        remove(&folder)?;
        let adapters = if outcome.adapters.is_empty() {
            None
        } else {
            peft::save(&outcome.adapters, &folder, &self.base.located.source)?;
            Some(digests(&folder)?)
        };
        let finished = Finished { blocks: outcome.blocks, figures: outcome.figures, adapters };
        let bytes = serde_json::to_vec(&finished).map_err(|e| Error::input(step.done(), e.to_string()))?;
        journal.put(&step.done(), &bytes)?;
        Ok(outcome.adapters)
    }

    /// Refuses to train what a part should have brought; what this run itself has left unfinished goes on.
    fn require_all_parts(&self, step: &Step<'_>, journal: &Journal) -> Result<()> {
        let parted = step.units().is_some_and(|units| units.iter().any(|unit| self.taken.contains(unit)));
        match step.lacks(journal) {
            Some(lacking) if parted && !lacking.is_empty() => Err(Error::input(
                journal.dir().display().to_string(),
                format!(
                    "expected the parts to have all blocks of stage {} `{}`, got none of {}",
                    step.number,
                    step.stage.kind(),
                    wording::blocks(&lacking)
                ),
            )
            .hint("name the run folders of all parts: `--assemble PART-1 PART-2 ...`")),
            _ => Ok(()),
        }
    }
}

impl Step<'_> {
    /// Keys of its units, one a block; absent when the stage trains its blocks together.
    fn units(&self) -> Option<Vec<String>> {
        let units = block_units(self.stage, self.layers)?;
        Some(units.into_iter().map(|unit| format!("{}/{unit}", self.scope)).collect())
    }

    fn done(&self) -> String {
        format!("{}/done", self.scope)
    }

    fn folder(&self, journal: &Journal) -> PathBuf {
        journal.dir().join("adapters").join(format!("{:02}-{}", self.number, self.stage.kind()))
    }

    /// Blocks whose units the run folder lacks; absent when the stage trains its blocks together.
    fn lacks(&self, journal: &Journal) -> Option<Vec<usize>> {
        let units = self.units()?;
        let lacking = self.layers.iter().zip(&units).filter(|(_, unit)| journal.get(unit).is_none());
        Some(lacking.map(|(layer, _)| *layer).collect())
    }
}

/// Every `shard.count`-th block, beginning with the `shard.index`-th.
fn share(layers: &[usize], shard: Shard) -> Vec<usize> {
    let (first, step) = (shard.index as usize - 1, shard.count as usize);
    layers.iter().skip(first).step_by(step).copied().collect()
}

fn stage_scope(before: &str, stage: &Stage, layers: &[usize]) -> Result<String> {
    let stage = serde_json::to_string(stage).map_err(|error| Error::input(stage.kind(), error.to_string()))?;
    Ok(Digest::of(format!("{before}\n{stage}\n{layers:?}").as_bytes()).to_string())
}

/// The adapters of a finished stage, if their files are still those that it wrote.
fn reload(finished: &Finished, folder: &Path) -> Option<AdapterSet> {
    match &finished.adapters {
        None => Some(AdapterSet::new()),
        Some(expected) => {
            let unchanged = digests(folder).ok().is_some_and(|found| found == *expected);
            if unchanged { peft::load(folder).ok() } else { None }
        }
    }
}

fn digests(folder: &Path) -> Result<[String; 2]> {
    let of = |file: &str| Ok::<_, Error>(Digest::of_file(&folder.join(file))?.to_string());
    Ok([of(peft::CONFIG)?, of(peft::WEIGHTS)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_depends_on_all_before_it() {
        let recipe = Recipe::embedded("demo").unwrap();
        let [first, second] = &recipe.stages[..] else { panic!("two stages") };
        let chain = |a: &Stage, b: &Stage| stage_scope(&stage_scope("base", a, &[0]).unwrap(), b, &[0]).unwrap();
        assert_eq!(chain(first, second), chain(first, second));
        assert_ne!(chain(first, second), chain(second, second));
    }

    #[test]
    fn shares_are_disjoint_and_complete() {
        let layers = [0, 2, 3, 5, 7];
        let mut all: Vec<usize> = (1..=3).flat_map(|index| share(&layers, Shard { index, count: 3 })).collect();
        assert_eq!(share(&layers, Shard { index: 2, count: 3 }), [2, 7]);
        assert_eq!(share(&layers, Shard { index: 7, count: 9 }), [0; 0]);
        all.sort_unstable();
        assert_eq!(all, layers);
    }
}
