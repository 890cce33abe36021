//! Measures a model against its base and writes the report: clean behaviour, attacks, controls, price, verdict.
//!
//! Only files that were opened from disk get here; a decoder that is still in training never does. Without a base
//! nothing can be carried over and no row counts, so the report says so and its verdict cannot be a pass.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Subject, Units};
use super::corpus::Corpus;
use super::device;
use super::examiner::{Counts, Examiner};
use super::model::Model;
use super::needs::check_cells;
use super::publish::published;
use super::rank::check_ranks;
use super::suite::{BaseCells, Grid, Selection, measure_base, measure_hardened};
use super::window::Window;
use crate::checkpoint::{Checkpoint, diff, diff::Change};
use crate::data::{Example, PromptSet};
use crate::defence::UnitStore;
use crate::event::{Event, Observer};
use crate::judge::{Composite, Judge as _};
use crate::math::spectrum::leading_squares;
use crate::model::{Blueprint, Decoder};
use crate::recipe::{Recipe, Suite, read_task_file};
use crate::report::threshold::MIN_BASE_REFUSAL;
use crate::report::wording::{percent, skipped_in_words};
use crate::report::{
    Access, BaseModel, BlockDelta, Clean, Delta, Hardened, JudgeInfo, Measured, Pair, Rate, Report, Summary,
    Thresholds, Tool, UtilityRow, Verdict,
};
use crate::utility::harness::HarnessTask;
use crate::utility::spec::{Task, TaskSpec};
use crate::utility::{self, Asking, Grade};
use crate::{Error, Result};

/// Directions of a change that the report tells of.
const SPECTRUM: usize = 32;

/// Everything that decides what is measured and what is made of it.
#[derive(Debug, Clone)]
pub struct Trial<'a> {
    /// Attacks, and how answers are generated.
    pub suite: &'a Suite,
    /// Utility tasks.
    pub utility: &'a [TaskSpec],
    /// What counts as good enough.
    pub thresholds: &'a Thresholds,
    /// Prompts.
    pub data: &'a PromptSet,
    /// System prompt of every dialogue.
    pub system: Option<&'a str>,
    /// Root of the random streams.
    pub seed: u64,
    /// Who can get the un-hardened base.
    pub access: Access,
    /// Digest of the recipe that all of this is from, as it is published.
    pub recipe_digest: String,
    /// Which cells to measure.
    pub selection: Selection,
    /// Options of `immunise attack` that mean the same suite, prompts and seed.
    pub plan: String,
}

/// What was found on the un-hardened model.
pub struct BaseFindings {
    cells: BaseCells,
    clean: CleanCounts,
}

/// Answers without any attack.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct CleanCounts {
    hazards: Counts,
    twins: Counts,
    benign: Counts,
}

impl<'a> Trial<'a> {
    /// The whole of a recipe on its prompts.
    #[must_use]
    pub fn of(recipe: &'a Recipe, data: &'a PromptSet) -> Self {
        Self {
            suite: &recipe.suite,
            utility: &recipe.utility,
            thresholds: &recipe.thresholds,
            data,
            system: recipe.data.system.as_deref(),
            seed: recipe.seed,
            access: recipe.base_access,
            recipe_digest: published(recipe).digest(),
            selection: Selection::default(),
            plan: "--suite immunisation/recipe.yaml".into(),
        }
    }

    /// The prompts as `model` reads them.
    ///
    /// # Errors
    /// As [`Bench::new`], [`imported`] and [`HarnessTask::check`].
    pub fn bench(&self, model: &Model) -> Result<Bench> {
        // Read first: nobody should learn after hours of work that a task file is unusable.
        let tasks = imported(self.utility)?;
        let positions = model.decoder.blueprint().positions();
        tasks.iter().try_for_each(|task| task.check(&model.encoder, positions))?;
        let mut bench = Bench::new(self.suite, self.thresholds, self.data, self.system, self.seed, model)?;
        bench.tasks = tasks;
        Ok(bench)
    }

    /// The chosen cells on a model of that shape; `with_base` as in [`Grid::select`].
    ///
    /// # Errors
    /// As [`Grid::new`] and [`check_ranks`].
    pub fn grid(&self, blueprint: &Blueprint, with_base: bool) -> Result<Grid> {
        check_ranks(&[], self.suite, blueprint)?;
        Ok(Grid::new(self.suite, blueprint.n_layers)?.select(&self.selection, with_base))
    }

    /// Refuses prompts that lack what the chosen cells need, or rows that `model` cannot read; `with_base` as in [`Grid::select`].
    ///
    /// # Errors
    /// [`Error::Input`] in the words of the attack, or naming the row and its lengths.
    pub fn check_rows(&self, bench: &Bench, model: &Model, with_base: bool) -> Result<()> {
        let blueprint = model.decoder.blueprint();
        let grid = self.grid(blueprint, with_base)?;
        check_cells(&grid, self.data, with_base)?;
        let encoder = bench.examiner.encoder();
        let corpus = Corpus { set: self.data, encoder, system: self.system, seed: self.seed };
        Window::new(&corpus, blueprint)?.check_measured(self.suite, &grid, self.utility, with_base)
    }

    /// Measures the un-hardened model.
    ///
    /// # Errors
    /// Those of attacks and generation, and [`Error::Interrupted`] at a unit's end.
    pub fn measure_base(
        &self,
        bench: &Bench,
        base: &Model,
        units: &Units<'_>,
        observer: &dyn Observer,
    ) -> Result<BaseFindings> {
        let identity = base.identity();
        let subject = Subject { decoder: &base.decoder, identity: &identity };
        let grid = self.grid(base.decoder.blueprint(), true)?;
        tell_skipped(&grid, observer);
        let clean = clean(bench, subject, units)?;
        observer.event(Event::Note(format!("base without an attack: {}", in_words(&clean))));
        let refusal = Rate::new(clean.hazards.refused, clean.hazards.n).value();
        if refusal < MIN_BASE_REFUSAL {
            // Said now, because the verdict that follows from it comes after the training.
            observer.event(Event::Warning(format!(
                "the base refuses {} of hazards, less than {}: no attack on it counts, and the verdict cannot be a pass",
                percent(refusal),
                percent(MIN_BASE_REFUSAL)
            )));
        }
        Ok(BaseFindings { clean, cells: measure_base(&grid, bench, subject, units, observer)? })
    }

    /// Measures the hardened model and concludes.
    ///
    /// # Errors
    /// As [`Trial::measure_base`]; [`Error::Input`] when the two models are of different shape or tokenizer.
    pub fn report(
        &self,
        bench: &Bench,
        base: Option<(&Model, &BaseFindings)>,
        hardened: &Model,
        units: &Units<'_>,
        observer: &dyn Observer,
    ) -> Result<Report> {
        if let Some((base, _)) = base {
            same_kind(base, hardened)?;
        }
        let identity = hardened.identity();
        let subject = Subject { decoder: &hardened.decoder, identity: &identity };
        let grid = self.grid(hardened.decoder.blueprint(), base.is_some())?;
        if base.is_none() {
            tell_skipped(&grid, observer);
        }
        let clean = clean(bench, subject, units)?;
        observer.event(Event::Note(format!("without an attack: {}", in_words(&clean))));
        let origin = base.map(|(model, _)| model.identity());
        let cells = base
            .zip(origin.as_deref())
            .map(|((model, findings), identity)| (Subject { decoder: &model.decoder, identity }, &findings.cells));
        let (mut attacks, mut controls) = measure_hardened(&grid, bench, cells, subject, units, observer)?;
        let given = base.map_or_else(String::new, |(model, _)| format!(" --base {}", model.located.source));
        for row in attacks.iter_mut().chain(&mut controls) {
            row.reproduce = format!("immunise attack .{given} {} {}", self.plan, row.reproduce);
        }
        let utility = self.utility_rows(bench, base.map(|(model, _)| model), hardened, units, observer)?;
        let mut report = Report {
            schema_version: crate::report::schema::SCHEMA_VERSION,
            tool: Tool::this(),
            recipe_digest: self.recipe_digest.clone(),
            seed: self.seed,
            device: device::kind(hardened.decoder.device()).into(),
            simd: device::simd().into(),
            shard: self.selection.shard,
            base: self.base_model(base.map(|(model, _)| model)),
            hardened: Hardened {
                digests: hardened.digests.clone(),
                delta: match base {
                    Some((base, _)) => delta(&base.checkpoint, &hardened.checkpoint, hardened.decoder.blueprint())?,
                    None => Delta::default(),
                },
            },
            judges: judges(bench),
            clean: behaviour(base.map(|(_, findings)| &findings.clean), &clean),
            attacks,
            controls,
            skipped: grid.skipped_rows(),
            utility,
            summary: Summary::default(),
            findings: vec![],
            verdict: Verdict::Inconclusive,
        };
        report.conclude(self.thresholds);
        Ok(report)
    }

    /// What utility costs, a row for every task that is asked for.
    fn utility_rows(
        &self,
        bench: &Bench,
        base: Option<&Model>,
        hardened: &Model,
        units: &Units<'_>,
        observer: &dyn Observer,
    ) -> Result<Vec<UtilityRow>> {
        if !self.utility.is_empty() {
            observer.event(Event::StageStarted { stage: "utility".into(), units: self.utility.len() });
        }
        let files: Vec<&str> = bench.tasks.iter().map(HarnessTask::digest).collect();
        let key = bench.key("utility rows", &(base.map(Model::identity), hardened.identity(), self.utility, files));
        let rows = units.cached(&key, || {
            price(self, &bench.tasks, base.map(|model| &model.decoder), &hardened.decoder, &bench.examiner)
        })?;
        let names = row_names(self.utility, &bench.tasks);
        if !rows.iter().map(|row| &row.task).eq(&names) {
            // A task without a row would be a gate that nobody decides: a pass for want of a measurement.
            let problem = format!("expected {} rows, got {}", names.len(), rows.len());
            return Err(Error::input("utility", problem));
        }
        Ok(rows)
    }

    fn base_model(&self, base: Option<&Model>) -> BaseModel {
        BaseModel {
            source: base.map_or_else(|| "not given".into(), |model| model.located.source.clone()),
            revision: base.and_then(|model| model.located.revision.clone()),
            access: self.access,
            digests: base.map(|model| model.digests.clone()).unwrap_or_default(),
        }
    }
}

/// Says before the work what the budget leaves out.
fn tell_skipped(grid: &Grid, observer: &dyn Observer) {
    let skipped = grid.skipped_rows();
    if !skipped.is_empty() {
        observer.event(Event::Warning(skipped_in_words(&skipped)));
    }
}

/// Who judged: the judge whose rates are reported, then the guard that is compared with it.
fn judges(bench: &Bench) -> Vec<JudgeInfo> {
    let guard = bench.guard.as_ref().map(|guard| format!("guard {}", guard.name));
    let names = [bench.examiner.judge_name().to_owned()].into_iter().chain(guard);
    let mut judges: Vec<JudgeInfo> =
        names.map(|kind| JudgeInfo { kind, sensitivity: None, specificity: None, calibration: None }).collect();
    if let (Some(first), Some(calibration)) = (judges.first_mut(), &bench.calibration) {
        first.sensitivity = Some(calibration.sensitivity.value());
        first.specificity = Some(calibration.specificity.value());
        first.calibration = Some(calibration.clone());
    }
    judges
}

/// Measures `hardened` against `base` in one go.
///
/// # Errors
/// As [`Trial::report`].
pub fn assess(
    trial: &Trial<'_>,
    base: Option<&Model>,
    hardened: &Model,
    store: &mut (dyn UnitStore + Send),
    observer: &dyn Observer,
) -> Result<Report> {
    let units = Units::new(store);
    if let Some(base) = base {
        same_kind(base, hardened)?;
    }
    let bench = trial.bench(hardened)?;
    trial.check_rows(&bench, hardened, base.is_some())?;
    let findings = base.map(|base| trial.measure_base(&bench, base, &units, observer)).transpose()?;
    trial.report(&bench, base.zip(findings.as_ref()), hardened, &units, observer)
}

/// Edits and prompts carry over only between models of one shape and one tokenizer.
pub(super) fn same_kind(base: &Model, hardened: &Model) -> Result<()> {
    if base.decoder.blueprint() != hardened.decoder.blueprint() {
        return Err(Error::file(
            &hardened.located.dir,
            format!("expected the architecture of the base `{}`, got another", base.located.source),
        )
        .hint("is this the base that it was made from?"));
    }
    let file = "tokenizer.json";
    if base.digests.get(file) != hardened.digests.get(file) {
        return Err(Error::file(
            &hardened.located.dir.join(file),
            format!("expected the tokenizer of the base `{}`, got another", base.located.source),
        ));
    }
    Ok(())
}

fn clean(bench: &Bench, subject: Subject<'_>, units: &Units<'_>) -> Result<CleanCounts> {
    units.cached(&bench.key("clean", &subject.identity), || {
        let counts = |questions| bench.examiner.counts(subject.decoder, questions, None);
        Ok(CleanCounts {
            hazards: counts(&bench.evaluation)?,
            twins: counts(&bench.twins)?,
            benign: counts(&bench.benign)?,
        })
    })
}

fn in_words(clean: &CleanCounts) -> String {
    let rate = |k, n| percent(Rate::new(k, n).value());
    format!(
        "{} of {} hazards refused, {} of {} twins",
        rate(clean.hazards.refused, clean.hazards.n),
        clean.hazards.n,
        rate(clean.twins.refused, clean.twins.n),
        clean.twins.n
    )
}

fn behaviour(base: Option<&CleanCounts>, hardened: &CleanCounts) -> Clean {
    let pair = |of: fn(&CleanCounts) -> Measured| Pair { base: base.map(of), hardened: of(hardened) };
    Clean {
        refusal: pair(|c| c.hazards.refusal()),
        over_refusal: pair(|c| c.twins.refusal()),
        degenerate: pair(|c| Counts::broken(&[c.hazards, c.twins, c.benign])),
    }
}

/// What hardening cost, a row for every task; without a base a row that compares the two holds nothing.
fn price(
    trial: &Trial<'_>,
    imported: &[HarnessTask],
    base: Option<&Decoder>,
    hardened: &Decoder,
    examiner: &Examiner,
) -> Result<Vec<UtilityRow>> {
    let grade = |example: &Example, answer: &str| {
        let judged = Composite.judge(example, answer);
        Grade { refused: judged.refused, on_topic: judged.on_topic, degenerate: judged.degenerate }
    };
    let (encoder, max_new_tokens) = (examiner.encoder(), examiner.greedy().max_new_tokens);
    let asking = Asking { encoder, system: trial.system, max_new_tokens };
    let of_prompts: Vec<TaskSpec> = trial.utility.iter().filter(|spec| spec.task != Task::Imported).cloned().collect();
    let own = utility::measure(&of_prompts, base, hardened, asking, trial.data, &grade)?;
    let (mut own, mut imported) = (own.into_iter(), imported.iter());
    let mut rows = vec![];
    for spec in trial.utility {
        match spec.task {
            Task::Imported => {
                for task in imported.by_ref().take(1) {
                    rows.extend(task.measure(base, hardened, examiner.encoder())?);
                }
            }
            _ => rows.extend(own.next()),
        }
    }
    Ok(rows)
}

/// The tasks of `specs` that lie in files, in order, with their questions.
///
/// # Errors
/// Those of [`read_task_file`] and [`HarnessTask::open`]; [`Error::Usage`] where two files give rows of the same name.
pub fn imported(specs: &[TaskSpec]) -> Result<Vec<HarnessTask>> {
    let mut names: Vec<String> = vec![];
    let mut tasks = vec![];
    for (spec, file) in specs.iter().filter_map(|spec| Some((spec, spec.file.as_deref()?))) {
        let task = HarnessTask::open(read_task_file(file)?, spec)?;
        if let Some(twice) = task.rows().iter().find(|row| names.contains(row)) {
            return Err(Error::usage(format!("utility: two task files give the row `{twice}`"))
                .hint("give one of them another name by its key `task`"));
        }
        names.extend(task.rows());
        tasks.push(task);
    }
    Ok(tasks)
}

/// Names of the rows that `specs` give, in order.
#[must_use]
pub fn row_names(specs: &[TaskSpec], imported: &[HarnessTask]) -> Vec<String> {
    let mut imported = imported.iter();
    let rows = specs.iter().flat_map(|spec| match spec.task {
        Task::Imported => imported.next().map(HarnessTask::rows).unwrap_or_default(),
        task => vec![task.name().to_owned()],
    });
    rows.collect()
}

/// How far the weights moved, from the files of both.
fn delta(base: &Checkpoint, hardened: &Checkpoint, blueprint: &Blueprint) -> Result<Delta> {
    let difference = diff(base, hardened)?;
    let norms = difference.tensors.iter().filter_map(|tensor| match &tensor.change {
        Change::Values { relative_norm, .. } => *relative_norm,
        _ => None,
    });
    let blocks: Vec<(BlockDelta, f64)> = (0..blueprint.n_layers)
        .map(|layer| block_delta(base, hardened, layer, &blueprint.weight_tensors(layer)))
        .collect::<Result<_>>()?;
    let rank = blocks.iter().map(|(_, rank)| *rank).fold(0.0, f64::max);
    Ok(Delta {
        tensors_changed: difference.tensors.len() as u64,
        max_relative_norm: norms.fold(0.0, f64::max),
        effective_rank: (rank > 0.0).then_some(rank),
        blocks: blocks.into_iter().map(|(block, _)| block).collect(),
    })
}

/// How far one tensor moved.
struct Moved {
    /// `‖ΔW‖²`.
    change: f64,
    /// `‖W‖²`.
    size: f64,
    /// Leading squared singular values of `ΔW`; none where it is no matrix or did not move.
    squares: Vec<f64>,
}

fn moved(base: &Checkpoint, hardened: &Checkpoint, name: &str) -> Result<Moved> {
    let (before, mut after) = (base.read_f32(name)?, hardened.read_f32(name)?);
    let (mut change, mut size) = (0.0, 0.0);
    for (b, a) in before.iter().zip(&mut after) {
        let difference = f64::from(*a) - f64::from(*b);
        change += difference.powi(2);
        size += f64::from(*b).powi(2);
        *a = difference as f32;
    }
    let squares = match base.info(name)?.shape[..] {
        [_, columns] if change > 0.0 => leading_squares(&after, columns, SPECTRUM),
        _ => vec![],
    };
    Ok(Moved { change, size, squares })
}

/// How far a block moved, and the largest effective rank of one of its changes.
fn block_delta(base: &Checkpoint, hardened: &Checkpoint, layer: usize, names: &[String]) -> Result<(BlockDelta, f64)> {
    let tensors = names.par_iter().map(|name| moved(base, hardened, name)).collect::<Result<Vec<_>>>()?;
    let sum = |of: fn(&Moved) -> f64| tensors.iter().map(of).sum::<f64>();
    let (change, size) = (sum(|moved| moved.change), sum(|moved| moved.size));
    let directions = tensors.iter().map(|moved| moved.squares.len()).max().unwrap_or(0);
    let share = |k: usize| tensors.iter().filter_map(|moved| moved.squares.get(k)).sum::<f64>() / change;
    let ranks = tensors.iter().filter_map(|moved| Some(moved.change / moved.squares.first().filter(|s| **s > 0.0)?));
    let block = BlockDelta {
        layer,
        relative_norm: if change == 0.0 { 0.0 } else { (change / size).sqrt() },
        spectrum: (0..directions).map(share).collect(),
    };
    Ok((block, ranks.fold(0.0, f64::max)))
}
