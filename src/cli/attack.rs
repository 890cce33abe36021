//! `immunise attack`: how well attacks work on a model.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::arguments::{self, Compute};
use super::harden::recipe_for;
use super::import;
use super::interrupt::stop_on_ctrl_c;
use super::render::Screen;
use crate::checkpoint::staging::write_atomically;
use crate::checkpoint::{Config, Digest, files};
use crate::defence::{Forgetful, UnitStore};
use crate::event::Event;
use crate::event::Observer as _;
use crate::intervention::Positions;
use crate::judge::guard::{Frame, GuardSpec};
use crate::model::families;
use crate::pipeline::device::Demand;
use crate::pipeline::harden::check_targets;
use crate::pipeline::publish::published;
use crate::pipeline::suite::{Grid, Selection};
use crate::pipeline::{Journal, Located, Model, Trial, assess, locate, prompts_of};
use crate::recipe::{Data, MAX_BYTES, Recipe, Suite};
use crate::report::{Report, Shard, Thresholds, html};
use crate::sign::SIGNATURE_FILE;
use crate::{Error, Result};

/// The suite that is measured where nothing is asked for.
const QUICK: &str = "quick";

/// Suites inside the binary.
pub(super) const SUITES: [(&str, &str); 3] = [
    (QUICK, include_str!("../pipeline/suites/quick.yaml")),
    ("standard", include_str!("../pipeline/suites/standard.yaml")),
    ("full", include_str!("../pipeline/suites/full.yaml")),
];

/// Measure how well attacks work on a model; nothing is changed and nothing is gated.
///
/// With `--base` every row has its un-hardened value, edits fitted on the base are carried over, and a search may start from
/// them. Without it every edit is fitted on the model itself. `--import` measures what other tools made: control vectors,
/// ReFT interventions, refusal directions, steering vectors, LoRAs and edited checkpoints; alone unless there is `--suite`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  immunise attack ./Llama-immunised --base ./Llama --suite full --report ./attack
  immunise attack ./Llama --suite quick --block 12
  immunise attack ./Llama-immunised --base ./Llama --import control.gguf,scale=-1.5
  immunise attack ./Llama-immunised --base ./Llama --import ./reft,positions=prompt
  immunise attack hardened --base Llama --suite hardened/immunisation/recipe.yaml --only ablation")]
pub struct Args {
    /// The model: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    model: String,
    /// `quick`, `standard`, `full`, a suite file, or a recipe whose suite and prompts are used; `quick` unless there is
    /// something to import.
    #[arg(long, value_name = "NAME|FILE")]
    suite: Option<String>,
    /// An attack artefact of another tool; may be repeated. Keys: op (add, ablate, affine, replace), scale, layers (such as
    /// `0+2-4`), positions (prompt, all, last), layer_offset.
    #[arg(long, value_name = "FILE[,KEY=VALUE]…")]
    import: Vec<String>,
    /// A guard model that judges the answers under attack too, and how far it agrees: Llama Guard's checkpoints by their own
    /// `template` or `llama-guard-1` to `llama-guard-4`, HarmBench's classifiers by `harmbench`.
    #[arg(long, value_name = "REF|DIR[,frame=NAME]")]
    guard: Option<String>,
    /// The un-hardened model that it was made from.
    #[arg(long, value_name = "REF|DIR")]
    base: Option<String>,
    /// Write report.json and report.html into this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Prompts: `builtin:tiny-chat`, `builtin:prompts` or a JSONL file; the model family's unless given.
    #[arg(long, value_name = "SET")]
    data: Option<String>,
    /// Root of the random streams.
    #[arg(long)]
    seed: Option<u64>,
    /// Rows of this name only, such as `noreft r2 p80`; may be repeated.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Cells at this block only, from 0; may be repeated.
    #[arg(long, value_name = "N")]
    block: Vec<usize>,
    /// Cells at these tokens only: `all`, those of the `prompt`, or from its `last` on; may be repeated.
    #[arg(long, value_name = "WHERE", value_parser = positions())]
    positions: Vec<Positions>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    compute: Compute,
}

/// Token positions by the names that recipes give them.
fn positions() -> impl TypedValueParser<Value = Positions> {
    PossibleValuesParser::new(["all", "prompt", "last"]).try_map(|name| serde_json::from_value(name.into()))
}

/// Parts of a measurement, and where its state is kept.
#[derive(Debug, clap::Args)]
pub struct Part {
    /// Keep finished cells in this folder, so that a stopped measurement resumes.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Forget what a former measurement left in the run folder.
    #[arg(long, requires = "run")]
    pub fresh: bool,
    /// Measure part I of N only.
    #[arg(long, value_name = "I/N", value_parser = arguments::shard)]
    pub shard: Option<Shard>,
}

impl Part {
    /// Refuses a run folder that lies in one of the models, or has other files in it.
    pub fn check_place(&self, base: Option<&Located>, model: &Located) -> Result<()> {
        let Some(run) = &self.run else { return Ok(()) };
        base.into_iter().chain([model]).try_for_each(|model| files::apart(run, &model.dir))?;
        Journal::check_place(run)
    }

    /// Measures with the run folder, or in memory.
    pub fn measure(&self, trial: &Trial<'_>, base: Option<&Model>, model: &Model, screen: &Screen) -> Result<Report> {
        let mut forgetful = Forgetful::default();
        let mut journal;
        let store: &mut (dyn UnitStore + Send) = match &self.run {
            Some(run) => {
                journal = Journal::open(run, self.fresh, stop_on_ctrl_c()?)?;
                &mut journal
            }
            None => &mut forgetful,
        };
        assess(trial, base, model, store, screen)
    }
}

/// The options that decide what is measured, for whoever repeats a row.
fn options(args: &Args) -> String {
    let mut options = vec![];
    let suite = args.suite.as_deref().or(args.import.is_empty().then_some(QUICK));
    options.extend(suite.map(|suite| {
        let published = "immunisation/recipe.yaml";
        format!("--suite {}", if suite.ends_with(published) { published } else { file_name(suite) })
    }));
    options.extend(args.import.iter().map(|text| import::option(text)));
    options.extend(args.guard.as_ref().map(|text| format!("--guard {}", file_name(text))));
    options.extend(args.seed.map(|seed| format!("--seed {seed}")));
    options.join(" ")
}

/// A path's last part: reports hold no folders.
fn file_name(text: &str) -> &str {
    text.trim_end_matches('/').rsplit('/').next().unwrap_or(text)
}

/// The guard that `--guard` means.
fn guard_of(text: &str) -> Result<GuardSpec> {
    let (model, frame) = match text.split_once(",frame=") {
        Some((model, frame)) => (model, serde_json::from_value(frame.into())),
        None => (text, Ok(Frame::default())),
    };
    let wrong = |_| {
        let names = Frame::ALL.map(|frame| format!("`{}`", frame.name())).join(", ");
        Error::usage(format!("--guard {text}: unknown frame")).hint(format!("there are {names}"))
    };
    Ok(GuardSpec { model: model.to_owned(), frame: frame.map_err(wrong)? })
}

/// What to attack with.
struct Plan {
    suite: Suite,
    data: Data,
    seed: u64,
    digest: String,
}

impl Plan {
    /// The same prompts and lengths of answers, and nothing to attack with yet.
    fn without_rows(mut self) -> Self {
        self.suite.attacks.clear();
        self
    }

    /// Other prompts or fewer cells are another measurement, and no part of the suite's own.
    fn narrow(&mut self, args: &Args) {
        let narrowed = !args.only.is_empty() || !args.block.is_empty() || !args.positions.is_empty();
        if args.data.is_some() || narrowed {
            let narrowing = (&args.data, &args.only, &args.block, &args.positions);
            let what = format!("{}\n{narrowing:?}", self.digest);
            self.digest = Digest::of(what.as_bytes()).to_string();
        }
    }

    /// Adds the artefacts of `--import`.
    fn import(&mut self, texts: &[String]) -> Result<()> {
        for text in texts {
            self.suite.attacks.push(import::row(text)?);
            self.digest = Digest::of(format!("{}\n{}", self.digest, import::option(text)).as_bytes()).to_string();
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    check_report(args.report.as_deref(), [Some(args.model.as_str()), args.base.as_deref()])?;
    let machine = args.compute.machine()?;
    let demand = Demand::of_measuring(&machine.device);
    let located = locate(&args.model, screen)?;
    let family = || recipe_for(&located).map(|recipe| recipe.data);
    let mut plan = match &args.suite {
        Some(suite) => plan(suite, family)?,
        None if args.import.is_empty() => plan(QUICK, family)?,
        None => plan(QUICK, family)?.without_rows(),
    };
    plan.import(&args.import)?;
    if let Some(guard) = &args.guard {
        plan.suite.guard = Some(guard_of(guard)?);
    }
    if let Some(data) = &args.data {
        plan.data.prompts.clone_from(data);
    }
    plan.narrow(args);
    let data = prompts_of(&plan.data)?;
    check_targets(&[], &plan.suite, &data)?;
    report_folder(args.report.as_deref(), &located.dir)?;
    let base = args.base.as_deref().map(|base| locate(base, screen)).transpose()?;
    args.part.check_place(base.as_ref(), &located)?;
    check_others(base.as_ref(), &plan.suite, screen)?;
    let blueprint = families::blueprint(&Config::read(&located.dir)?)?;
    let trial = Trial {
        suite: &plan.suite,
        utility: &[],
        thresholds: &Thresholds::default(),
        data: &data,
        system: plan.data.system.as_deref(),
        seed: args.seed.unwrap_or(plan.seed),
        access: crate::report::Access::Public,
        recipe_digest: plan.digest,
        selection: Selection {
            names: args.only.clone(),
            blocks: args.block.clone(),
            positions: args.positions.clone(),
            shard: args.part.shard,
        },
        plan: options(args),
    };
    let n_layers = blueprint.n_layers;
    if let Some(block) = args.block.iter().find(|block| **block >= n_layers) {
        return Err(Error::usage(format!("--block: expected a block from 0 to {}, got {block}", n_layers - 1)));
    }
    let all = Grid::new(&plan.suite, n_layers)?;
    let mut names: Vec<&str> = all.attacks.iter().chain(&all.controls).map(|cell| cell.name.as_str()).collect();
    names.dedup();
    let rows = || names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = args.only.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(
            Error::usage(format!("--only: no row `{unknown}` in the suite")).hint(format!("its rows are {}", rows()))
        );
    }
    let grid = trial.grid(&blueprint, base.is_some())?;
    if grid.is_empty() && grid.skipped.is_empty() {
        let blocks = n_layers - 1;
        return Err(Error::usage("no cell of the suite is chosen")
            .hint(format!("its rows are {}, the model's blocks 0 to {blocks}", rows())));
    }
    forget_report(args.report.as_deref())?;
    let base = base.map(|base| Model::load(base, &machine, demand, screen)).transpose()?;
    let model = Model::load(located, &machine, demand, screen)?;
    if base.is_none() {
        screen.event(Event::Warning("without `--base` no row has an un-hardened value".into()));
    }
    let report = args.part.measure(&trial, base.as_ref(), &model, screen)?;
    write_report(args.report.as_deref(), &report, None)?;
    screen.report(&report);
    Ok(0)
}

/// The suite, prompts and seed that `--suite` means.
fn plan(text: &str, family: impl Fn() -> Result<Data>) -> Result<Plan> {
    let alone = |suite: Suite, source: &str| -> Result<Plan> {
        Ok(Plan { suite, data: family()?, seed: 0, digest: Digest::of(source.as_bytes()).to_string() })
    };
    if let Some((name, source)) = SUITES.iter().find(|(name, _)| *name == text) {
        return alone(Suite::parse(source, Path::new(&format!("<{name}>")))?, source);
    }
    if !Path::new(text).exists() {
        return Err(
            Error::usage(format!("no suite `{text}`")).hint("there are `quick`, `standard`, `full`, or give a file")
        );
    }
    let source = files::read_text(Path::new(text), MAX_BYTES as u64)?;
    let is_recipe = source.lines().any(|line| line.starts_with("stages:"));
    if is_recipe {
        let recipe = Recipe::load(Path::new(text))?;
        let digest = published(&recipe).digest();
        return Ok(Plan { suite: recipe.suite, data: recipe.data, seed: recipe.seed, digest });
    }
    alone(Suite::parse(&source, Path::new(text))?, &source)
}

/// Files of a report's folder.
pub const REPORT_FILES: [&str; 2] = ["report.json", "report.html"];

/// Refuses a folder that is a model's or lies in one, whichever: a report there could take the place of its evidence, and any new
/// file breaks its signature.
///
/// # Errors
/// [`Error::Input`] naming the folder and the model's.
pub fn outside_of_models(dir: &Path) -> Result<()> {
    match files::resolved(dir).ancestors().find(|dir| is_of_a_model(dir)) {
        None => Ok(()),
        Some(model) => {
            let problem = format!("expected a place outside of a model's folder, got one in {}", model.display());
            Err(Error::file(dir, problem).hint("choose another folder"))
        }
    }
}

/// Whether a folder has a model's signature, or its `config.json`: other programs' files of that name know no model type.
fn is_of_a_model(dir: &Path) -> bool {
    let config = || files::read(&dir.join("config.json"), files::MAX_DESCRIPTION).ok();
    let read = || serde_json::from_slice::<serde_json::Value>(&config()?).ok();
    dir.join(SIGNATURE_FILE).is_file() || read().is_some_and(|config| config.get("model_type").is_some())
}

/// Refuses the folder of a report that lies in one of `models` (folders, or names that are none) or in any other model.
pub fn check_report(dir: Option<&Path>, models: [Option<&str>; 2]) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    models.into_iter().flatten().try_for_each(|model| files::apart(dir, Path::new(model)))?;
    outside_of_models(dir)
}

/// Finds what is loaded beside the model, as far as that needs no work.
pub fn check_others(base: Option<&Located>, suite: &Suite, screen: &Screen) -> Result<()> {
    base.map(|base| Config::read(&base.dir)).transpose()?;
    suite.guard.as_ref().map(|guard| locate(&guard.model, screen)).transpose()?;
    Ok(())
}

/// Takes an earlier run's report out of the folder for this one's, so that a run that fails is not taken for it. Called once nothing
/// is left to check but by working: a mistyped argument costs nobody a report.
pub fn forget_report(dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    for name in REPORT_FILES {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::io(path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the folder of a report before anything is measured for it, and outside of the model that is measured.
pub fn report_folder(dir: Option<&Path>, model: &Path) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    files::apart(dir, model)?;
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    tempfile::tempfile_in(dir).map(drop).map_err(|error| Error::io(dir, error))
}

/// Writes the report into a folder outside of every model, if one is asked for.
pub fn write_report(dir: Option<&Path>, report: &Report, recipe: Option<&str>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    outside_of_models(dir)?;
    let texts = [report.to_json(), html::render(report, recipe)];
    REPORT_FILES.into_iter().zip(texts).try_for_each(|(name, text)| write_atomically(&dir.join(name), text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_in_the_binary_is_valid() {
        for (name, _) in SUITES {
            let plan = plan(name, || Ok(Data::default())).unwrap();
            assert!(!plan.suite.attacks.is_empty(), "{name}");
        }
        assert_eq!(guard_of("ORG/NAME,frame=harmbench").unwrap().frame, Frame::Harmbench);
        assert_eq!(guard_of("a,frame=best").map_err(|e| e.exit_code()), Err(2));
        assert_eq!(plan("fast", || Ok(Data::default())).err().map(|e| e.exit_code()), Some(2));
    }

    #[test]
    fn a_model_s_folder_is_known_by_its_signature_or_configuration() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (file, text) in
            [("signed/model.sig", ""), ("model/config.json", r#"{"model_type":"x"}"#), ("other/config.json", "{}")]
        {
            fs::create_dir(at(file).parent().unwrap()).unwrap();
            fs::write(at(file), text).unwrap();
        }
        for inside in ["signed", "signed/immunisation", "model", "model/a/b", "other/../model/new"] {
            let error = outside_of_models(&at(inside)).unwrap_err().to_string();
            assert!(error.contains("expected a place outside of a model's folder, got one in"), "{inside}: {error}");
        }
        for outside in [".", "other", "other/new", "model/../new", "none/new"] {
            assert!(outside_of_models(&at(outside)).is_ok(), "{outside}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_report_is_renamed_to_its_place_and_never_written_into_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let (mine, report) = (root.path().join("mine"), root.path().join("report"));
        fs::create_dir(&report).unwrap();
        fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, report.join("report.json")).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports/smollm2-one-block.json");
        let measured = Report::from_json(&fs::read_to_string(path).unwrap(), "report").unwrap();
        write_report(Some(&report), &measured, None).unwrap();
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
        assert_eq!(fs::read_to_string(report.join("report.json")).unwrap(), measured.to_json());
    }
}
