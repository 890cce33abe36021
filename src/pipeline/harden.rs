//! The whole of it: a recipe and a model in, a report and, if it passes, a published folder out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::bench::Units;
use super::corpus::{Corpus, prompts_of};
use super::device::{self, Demand, Machine};
use super::examiner::Examiner;
use super::journal::{Found, Inputs, Journal, Scoped, Stop};
use super::metrics::{Cast, Metrics};
use super::model::{EVIDENCE, Located, Model, locate};
pub use super::needs::check_targets;
use super::publish::{publish, recipe_text};
use super::rank::check_ranks;
use super::stage::StageData;
use super::train::{Part, Training};
use super::verify::Trial;
use super::window::Window;
use crate::adapter::{AdapterSet, merge};
use crate::checkpoint::staging::{check_target, check_writable, parent_of};
use crate::checkpoint::{Checkpoint, Staged, files, patch, refuse_private_keys};
use crate::data::PromptSet;
use crate::defence::spec::AdversarialSpec;
use crate::event::{Event, Observer};
use crate::recipe::{Recipe, Stage};
use crate::report::wording::percent;
use crate::report::{Approved, Report, Shard, html};
use crate::sign::{SIGNATURE_FILE, SigningKey};
use crate::{Error, Result};

/// What to harden, and where the result goes.
pub struct Request {
    /// The model; absent: the recipe's.
    pub model: Option<String>,
    /// Where the published folder is to appear.
    pub out: PathBuf,
    /// The run folder; absent: [`default_run`].
    pub run: Option<PathBuf>,
    /// Signs the result.
    pub key: Option<SigningKey>,
    /// Publish whatever the verdict; the report and the card say so.
    pub allow_fail: bool,
    /// Forget what a former run left in the run folder.
    pub fresh: bool,
    /// Run folders of [`harden_part`] whose finished units are taken over.
    pub assemble: Vec<PathBuf>,
    /// Where to compute.
    pub machine: Machine,
    /// Asks the run to stop at the next unit's end.
    pub stop: Stop,
}

impl Request {
    /// To harden the recipe's model into `out` on `machine`: unsigned, published only on a pass, resumed where a run was stopped.
    #[must_use]
    pub fn new(out: PathBuf, machine: Machine) -> Self {
        Self {
            model: None,
            out,
            run: None,
            key: None,
            allow_fail: false,
            fresh: false,
            assemble: vec![],
            machine,
            stop: Stop::default(),
        }
    }

    /// The run folder of the whole, or of one part of the blocks.
    fn run_folder(&self, shard: Option<Shard>) -> PathBuf {
        let own = || shard.map_or_else(|| default_run(&self.out), |shard| part_run(&self.out, shard));
        self.run.clone().unwrap_or_else(own)
    }
}

/// What came of it.
pub struct Outcome {
    /// The report, concluded.
    pub report: Report,
    /// The published folder, if there is one.
    pub published: Option<PathBuf>,
    /// The run folder.
    pub run: PathBuf,
    /// What the cast to the stored type lost of the change.
    pub cast: Cast,
}

/// The run folder that belongs to `out` unless another is given: beside it, never inside.
#[must_use]
pub fn default_run(out: &Path) -> PathBuf {
    beside(out, ".run")
}

/// The run folder of one part of the blocks unless another is given: parts may run at the same time.
fn part_run(out: &Path, shard: Shard) -> PathBuf {
    beside(out, &format!(".part-{}-of-{}", shard.index, shard.count))
}

fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    out.with_file_name(name)
}

/// The model that a request and a recipe name, and whether the recipe is made for it.
///
/// # Errors
/// [`Error::Usage`] when neither names one; [`Error::Input`] when the recipe is made for other models.
pub fn locate_for(recipe: &Recipe, model: Option<&str>, observer: &dyn Observer) -> Result<Located> {
    let reference = model.or(recipe.model.as_deref()).ok_or_else(|| {
        Error::usage(format!("recipe `{}` names no model", recipe.name)).hint("give one with `--model DIR`")
    })?;
    locate(reference, observer)
}

/// Checks that `recipe` is made for a model of this type and size.
///
/// # Errors
/// [`Error::Input`] when it is not.
pub fn check_match(recipe: &Recipe, model_type: &str, parameters: usize) -> Result<()> {
    match &recipe.matches {
        Some(matches) if !matches.holds(model_type, Some(parameters as u64)) => Err(Error::input(
            format!("recipe `{}`", recipe.name),
            format!(
                "expected a model of type `{}` within the recipe's sizes, got `{model_type}` with {parameters} parameters",
                matches.model_type
            ),
        )
        .hint("`--set match=null` uses the recipe all the same")),
        _ => Ok(()),
    }
}

/// Checks that a model in the folder `model`, or part `shard` of its blocks, can be hardened from where it lies to where
/// `request` says, before anything is read; nothing is made.
///
/// # Errors
/// [`Error::Input`] when something is at the output or, other than a run, at the run folder, one of them lies in the model or in
/// the other, or a private key lies in the model; [`Error::Io`] when one of them can't be made.
pub fn check_places(request: &Request, shard: Option<Shard>, model: &Path) -> Result<()> {
    let (out, run) = (&request.out, request.run_folder(shard));
    files::apart(out, model)?;
    files::apart(&run, model)?;
    if files::is_inside(&run, out) || files::is_inside(out, &run) {
        let problem =
            format!("expected a run folder apart from the output {}, got one inside of the other", out.display());
        return Err(Error::file(&run, problem).hint("beside the output is a place for it, as without `--run`"));
    }
    check_target(out)?;
    check_writable(parent_of(out))?;
    Journal::check_place(&run)?;
    refuse_private_keys(model)
}

/// Hardens a model.
///
/// # Errors
/// [`Error::Input`] for an unusable model, data or target; [`Error::Interrupted`] at a unit's end, to be resumed by the
/// same call; those of stages and attacks.
pub fn harden(recipe: &Recipe, request: &Request, observer: &dyn Observer) -> Result<Outcome> {
    let mut metrics = Metrics::start();
    let Opened { base, stages, data, demand } = Opened::new(recipe, request, None, observer)?;
    let trial = Trial::of(recipe, &data);
    let bench = trial.bench(&base)?;
    trial.check_rows(&bench, &base, true)?;
    // Nobody should learn after hours of work that nothing can be made at the target.
    drop(Staged::beside(&request.out)?);
    let run = request.run_folder(None);
    let (mut journal, taken) = begin(recipe, request, &run, &base, &data, observer)?;
    metrics.lap("open");

    let findings = trial.measure_base(&bench, &base, &Units::new(&mut journal), observer)?;
    metrics.lap("measure base");

    let stage_data = stage_data(recipe, &base, &data, &bench.examiner, &mut journal, observer)?;
    let training =
        Training { recipe, layers: &stages, base: &base, data: &stage_data, data_digest: &data.digest, taken };
    let sets = training.run(&mut journal, &mut metrics, observer)?;
    drop(stage_data);

    let (staged, cast) = write_weights(&base.checkpoint, &request.out, &sets, observer)?;
    metrics.cast(cast.clone());
    drop(sets);
    metrics.lap("write");

    // From here on only what is on disk counts.
    let located = Located::staged(staged.path(), &request.out);
    let hardened = Model::load(located, &request.machine, demand, &Quiet(observer))?;
    let report = {
        let units = Units::new(&mut journal);
        trial.report(&bench, Some((&base, &findings)), &hardened, &units, observer)?
    };
    metrics.lap("measure hardened");
    drop(hardened);

    let approved = match Approved::from_verdict(&report, &recipe.thresholds) {
        None if request.allow_fail => Some(Approved::allow_fail(&report, &recipe.thresholds)),
        approved => approved,
    };
    let report = approved.as_ref().map_or(report, |approved| approved.report().clone());
    let text = recipe_text(recipe, &data.digest);
    journal.write("report.json", report.to_json().as_bytes())?;
    journal.write("report.html", html::render(&report, Some(&text)).as_bytes())?;
    let published = match &approved {
        Some(approved) => {
            let family = &base.checkpoint.config().model_type;
            publish(staged, &request.out, approved, &text, &base.located, family, request.key.as_ref())?;
            Some(request.out.clone())
        }
        None => None,
    };
    metrics.lap("publish");
    journal.write("metrics.json", format!("{:#}\n", metrics.to_json()).as_bytes())?;
    Ok(Outcome { report, published, run, cast })
}

/// Trains one part of the blocks of the first stage that is not finished, for [`harden`] to assemble; nothing is measured or
/// published. A further stage can be parted once all parts of the one before it are given to assemble.
///
/// # Errors
/// As [`harden`]; [`Error::Input`] when the stage's blocks are not independent of one another.
pub fn harden_part(recipe: &Recipe, request: &Request, shard: Shard, observer: &dyn Observer) -> Result<Part> {
    let Opened { base, stages, data, .. } = Opened::new(recipe, request, Some(shard), observer)?;
    let bench = Trial::of(recipe, &data).bench(&base)?;
    let run = request.run_folder(Some(shard));
    let (mut journal, taken) = begin(recipe, request, &run, &base, &data, observer)?;
    let stage_data = stage_data(recipe, &base, &data, &bench.examiner, &mut journal, observer)?;
    let training =
        Training { recipe, layers: &stages, base: &base, data: &stage_data, data_digest: &data.digest, taken };
    training.run_part(shard, run, &mut journal, observer)
}

/// What the stages of `recipe` train on; answers of the base's own that a former run has given are taken from its journal.
fn stage_data(
    recipe: &Recipe,
    base: &Model,
    data: &PromptSet,
    examiner: &Examiner,
    journal: &mut Journal,
    observer: &dyn Observer,
) -> Result<StageData> {
    let system = recipe.data.system.as_deref();
    let corpus = Corpus { set: data, encoder: &base.encoder, system, seed: recipe.seed };
    let means = base.placement.means(journal.dir());
    let (decoder, asked) = (&base.decoder, recipe.data.own_requests);
    // All that an answer depends on beside what is asked.
    let device = decoder.device();
    let scope = serde_json::json!([super::BUILD, base.identity(), device::kind(device), device::simd()]);
    let data =
        corpus.stages(examiner, decoder, asked, means, &mut Scoped::new(journal, scope.to_string()), observer)?;
    if asked > 0 {
        let (kept, anchors) = (data.own_requests, data.defence.anchors.len());
        observer.event(Event::Note(format!(
            "{kept} of {asked} requests that the model made up are new; {anchors} anchors in all"
        )));
    }
    Ok(data)
}

/// What a recipe and a request name, read and checked.
struct Opened {
    base: Model,
    /// Blocks of every stage.
    stages: Vec<Vec<usize>>,
    data: PromptSet,
    /// Of the machine's memory.
    demand: Demand,
}

impl Opened {
    fn new(recipe: &Recipe, request: &Request, shard: Option<Shard>, observer: &dyn Observer) -> Result<Self> {
        let located = locate_for(recipe, request.model.as_deref(), observer)?;
        check_places(request, shard, &located.dir)?;
        let data = prompts_of(&recipe.data)?;
        let demand = Demand::of_hardening(recipe, &data, &request.machine.device);
        let base = Model::load(located, &request.machine, demand, observer)?;
        check_match(recipe, &base.checkpoint.config().model_type, base.decoder.blueprint().parameters())?;
        let stages = stage_layers(recipe, base.decoder.n_layers())?;
        check_ranks(&recipe.stages, &recipe.suite, base.decoder.blueprint())?;
        check_targets(&recipe.stages, &recipe.suite, &data)?;
        let system = recipe.data.system.as_deref();
        let corpus = Corpus { set: &data, encoder: &base.encoder, system, seed: recipe.seed };
        Window::new(&corpus, base.decoder.blueprint())?.check_stages(&recipe.stages)?;
        Ok(Self { base, stages, data, demand })
    }
}

/// Opens the run folder, says what is in it, and takes the units of the parts to assemble; gives their keys too.
fn begin(
    recipe: &Recipe,
    request: &Request,
    run: &Path,
    base: &Model,
    data: &PromptSet,
    observer: &dyn Observer,
) -> Result<(Journal, BTreeSet<String>)> {
    if let Some(part) = request.assemble.iter().find(|part| !Journal::is_in(part)) {
        return Err(Error::file(part, "expected the run folder of a part, got none")
            .hint("`immunise harden ... --shard I/N` makes it, as OUT.part-I-of-N unless `--run` names it"));
    }
    let mut journal = Journal::open(run, request.fresh, request.stop.clone())?;
    let inputs = inputs(recipe, base, &data.digest, &request.machine.device);
    announce(&journal.begin(&inputs)?, run, observer);
    let mut taken = BTreeSet::new();
    for part in &request.assemble {
        let units = journal.take(part, &inputs)?;
        observer.event(Event::Note(format!("{} finished units taken from {}", units.len(), part.display())));
        taken.extend(units);
    }
    if let (Some(first), true) = (request.assemble.first(), taken.is_empty()) {
        return Err(Error::file(first, "expected parts with finished blocks, got none")
            .hint("run the parts first: `--shard I/N`"));
    }
    Ok((journal, taken))
}

/// The blocks of every stage of `recipe` on a model of `n_layers`.
///
/// # Errors
/// When a stage names a block that the model does not have.
pub fn stage_layers(recipe: &Recipe, n_layers: usize) -> Result<Vec<Vec<usize>>> {
    let blocks = |(i, stage): (usize, &Stage)| {
        if let Stage::Adversarial(AdversarialSpec { pool_layers: Some(blocks), .. }, _) = stage {
            blocks.resolve(n_layers, &format!("stages.{i}.pool_layers"))?;
        }
        stage.layers().resolve(n_layers, &format!("stages.{i}.layers"))
    };
    recipe.stages.iter().enumerate().map(blocks).collect()
}

fn inputs(recipe: &Recipe, base: &Model, data: &str, device: &Device) -> Inputs {
    Inputs(BTreeMap::from([
        ("tool".into(), super::BUILD.into()),
        ("recipe".into(), recipe.digest()),
        ("base".into(), base.identity()),
        ("data".into(), data.into()),
        ("device".into(), format!("{} {}", device::kind(device), device::simd())),
    ]))
}

fn announce(found: &Found, run: &Path, observer: &dyn Observer) {
    match found {
        Found::Nothing => observer.event(Event::Note(format!("run folder {}", run.display()))),
        Found::Same(units) => {
            observer.event(Event::Note(format!("resuming in {}: {units} finished units are kept", run.display())));
        }
        Found::Other(names) => observer.event(Event::Warning(format!(
            "{} holds a run with another {}; only units that do not depend on it are used (`--fresh` forgets them all)",
            run.display(),
            names.join(", ")
        ))),
    }
}

/// Writes the base with `sets` merged in beside `out`.
fn write_weights(
    base: &Checkpoint,
    out: &Path,
    sets: &[AdapterSet],
    observer: &dyn Observer,
) -> Result<(Staged, Cast)> {
    let others = base.other_weights()?;
    // A second copy of the weights would be published un-hardened.
    let mut omit = vec![SIGNATURE_FILE, EVIDENCE];
    omit.extend(others.iter().map(String::as_str));
    let plan = merge::plan(base, sets)?;
    let (staged, report) = patch(base, out, &plan, &[], &omit)?;
    for file in &others {
        observer.event(Event::Warning(format!("{file} holds un-hardened weights and is not published")));
    }
    let cast = Cast::of(&report);
    let kept = percent(1.0 - cast.mean_loss);
    observer
        .event(Event::Note(format!("{} tensors changed; the stored type keeps {kept} of the change", cast.tensors)));
    Ok((staged, cast))
}

/// Passes everything on but warnings about a checkpoint that were given for the base already.
struct Quiet<'a>(&'a dyn Observer);

impl Observer for Quiet<'_> {
    fn event(&self, event: Event) {
        if !matches!(event, Event::Warning(_)) {
            self.0.event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_folder_is_beside_the_output() {
        assert_eq!(default_run(Path::new("a/b")), Path::new("a/b.run"));
        assert_eq!(default_run(Path::new("b")), Path::new("b.run"));
    }

    #[test]
    fn a_recipe_for_other_models_is_refused() {
        let recipe = Recipe::embedded("demo").unwrap();
        assert!(check_match(&recipe, "llama", 1_000_000).is_ok());
        for (family, size) in [("qwen2", 1_000_000), ("llama", 1_000_000_000)] {
            let error = check_match(&recipe, family, size).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("match=null"), "{error}");
        }
    }
}
