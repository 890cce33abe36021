//! `immunise detect`: a detector of hazardous requests and a safety switch for whoever hosts a model; part of no verdict.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::arguments::Compute;
use super::harden::recipe_for;
use super::render::Screen;
use crate::checkpoint::files;
use crate::checkpoint::staging::write_new;
use crate::detect::{Loss, Monitor};
use crate::event::{Event, Observer as _};
use crate::pipeline::detect::{Detected, Settings, fit, flags, score};
use crate::pipeline::device::Demand;
use crate::pipeline::model::keep_apart;
use crate::pipeline::{Model, locate, prompt_set, switch};
use crate::report::Measured;
use crate::report::wording::percent;
use crate::{Error, Result};

/// Fit or measure a detector of hazardous requests, for whoever hosts a model.
///
/// Probes on the outputs of attention heads at the prompt's last token, a vote of one block's heads, and the least movement
/// that silences the heads that fire (RADIANT). Whoever holds the weights can leave a monitor out: no verdict counts it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Fit a detector and write it as a safetensors file.
    Fit(Fit),
    /// Measure a detector on a prompt set, or ask it about requests.
    Score(Score),
    /// Fit the map that makes a base behave as the model that was tuned from it, and measure it.
    ///
    /// For whoever hosts a base beside its tuned model: one set of weights, and a map at one block's input that turns the tuned
    /// model's behaviour on. The map leads to the tuned model only: it is never fitted away from hardened weights, and not written
    /// into a published model.
    Switch(Switch),
}

#[derive(Debug, clap::Args)]
struct Source {
    /// The model: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    model: String,
    /// Prompts: `builtin:tiny-chat`, `builtin:prompts` or a JSONL file; the model family's unless given.
    #[arg(long, value_name = "SET")]
    data: Option<String>,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Debug, clap::Args)]
struct Fit {
    #[command(flatten)]
    source: Source,
    /// Where the monitor is written.
    #[arg(long, value_name = "FILE", default_value = "monitor.safetensors")]
    out: PathBuf,
    /// What a missed hazard costs, in false alarms.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    beta: f64,
    /// Standard deviations of a flagged head's score that its movement takes to the harmless side.
    #[arg(long, default_value_t = 1.645, value_parser = positive)]
    margin: f64,
    /// Root of the random streams.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
struct Score {
    #[command(flatten)]
    source: Source,
    /// The monitor.
    #[arg(long, value_name = "FILE")]
    monitor: PathBuf,
    /// Requests to ask about, instead of the prompt set.
    #[arg(long, value_name = "TEXT")]
    request: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Switch {
    #[command(flatten)]
    source: Source,
    /// The model that it shall behave as: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    #[arg(long, value_name = "REF|DIR")]
    to: String,
    /// The block whose input is mapped, from 0.
    #[arg(long, value_name = "N")]
    layer: usize,
    /// Where the map is written.
    #[arg(long, value_name = "FILE", default_value = "switch.safetensors")]
    out: PathBuf,
    /// Requests of each class that it is fitted on, at most.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(5..))]
    pairs: u32,
    /// Requests of each class that it is measured on, at most.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Root of the random streams.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(v) if v > 0.0 && v <= 1e6 => Ok(v),
        _ => Err("expected a number above 0".into()),
    }
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    match &args.what {
        What::Fit(args) => run_fit(args, screen),
        What::Score(args) => run_score(args, screen),
        What::Switch(args) => run_switch(args, screen),
    }
}

fn run_switch(args: &Switch, screen: &Screen) -> Result<u8> {
    has_a_place(&args.out)?;
    switch::keep_apart(&args.out)?;
    let (base, prompts, system) = open(&args.source, screen)?;
    let machine = args.source.compute.machine()?;
    let tuned = Model::open(&args.to, &machine, Demand::of_measuring(&machine.device), screen)?;
    [&base, &tuned].into_iter().try_for_each(|model| files::apart(&args.out, &model.located.dir))?;
    let settings = switch::Settings {
        layer: args.layer,
        pairs: args.pairs as usize,
        prompts: args.prompts as usize,
        max_new_tokens: args.max_new_tokens as usize,
        seed: args.seed,
    };
    let fitted = switch::fit(&base, &tuned, &prompt_set(&prompts)?, system.as_deref(), settings)?;
    write_new(&args.out, &fitted.switch.to_bytes()?)?;
    if screen.json() {
        screen.value(&json!({"switch": fitted.switch.about, "behaves": fitted.behaves}));
        return Ok(0);
    }
    let about = &fitted.switch.about;
    let mut text =
        format!("map at {} explains {} of the tuned model's variance\n", about.site, percent(about.explained));
    for one in &fitted.behaves {
        let _ = writeln!(
            text,
            "{:<23} hazards refused {}, benign answered {}",
            one.who,
            rate(&one.refused),
            rate(&one.answered)
        );
    }
    screen.out(&text);
    screen.event(Event::Note(format!("wrote {}", args.out.display())));
    Ok(0)
}

/// Refuses a file that could not be written, before anything is fitted.
fn has_a_place(out: &Path) -> Result<()> {
    let folder = match out.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return Err(Error::file(out, "expected a file to write, got a root folder")),
    };
    if out.is_dir() {
        return Err(Error::file(out, "expected a file to write, got a folder"));
    }
    if fs::symlink_metadata(out).is_ok() {
        let problem = "expected no file of this name, got one";
        return Err(Error::file(out, problem).hint("nothing is overwritten; choose another or remove this one"));
    }
    if !folder.is_dir() {
        return Err(Error::file(folder, "expected a folder to write into, got none"));
    }
    Ok(())
}

/// The model, the name of its prompts and its system prompt.
fn open(source: &Source, screen: &Screen) -> Result<(Model, String, Option<String>)> {
    let machine = source.compute.machine()?;
    let located = locate(&source.model, screen)?;
    let own = || recipe_for(&located).map(|recipe| (recipe.data.prompts, recipe.data.system));
    let (prompts, system) = match &source.data {
        Some(data) => (data.clone(), own().ok().and_then(|(_, system)| system)),
        None => own()?,
    };
    let model = Model::load(located, &machine, Demand::of_measuring(&machine.device), screen)?;
    Ok((model, prompts, system))
}

fn run_fit(args: &Fit, screen: &Screen) -> Result<u8> {
    has_a_place(&args.out)?;
    keep_apart(&args.out)?;
    let (model, prompts, system) = open(&args.source, screen)?;
    files::apart(&args.out, &model.located.dir)?;
    let settings = Settings { beta: args.beta, margin: args.margin, seed: args.seed };
    let fitted = fit(&model, &prompt_set(&prompts)?, system.as_deref(), settings)?;
    write_new(&args.out, &fitted.monitor.to_bytes()?)?;
    if screen.json() {
        let about = &fitted.monitor.about;
        screen.value(&json!({"monitor": about, "detected": fitted.detected, "silenced": fitted.silenced}));
        return Ok(0);
    }
    let mut text = fitted.detected.iter().map(line).collect::<String>();
    let _ = writeln!(text, "silenced by the movement: {}", rate(&fitted.silenced));
    screen.out(&text);
    screen.event(Event::Note(format!("wrote {}", args.out.display())));
    Ok(0)
}

fn run_score(args: &Score, screen: &Screen) -> Result<u8> {
    let monitor = Monitor::read(&args.monitor)?;
    let (model, prompts, system) = open(&args.source, screen)?;
    if monitor.about.model != model.identity() {
        screen.event(Event::Warning("the monitor was fitted on other weights than these".into()));
    }
    if args.request.is_empty() {
        let detected = score(&monitor, &model, &prompt_set(&prompts)?, system.as_deref())?;
        if screen.json() {
            screen.value(&detected);
        } else {
            screen.out(&line(&detected));
        }
        return Ok(0);
    }
    let flagged = flags(&monitor, &model, &args.request, system.as_deref())?;
    if screen.json() {
        screen.value(&flagged);
    } else {
        let words = flagged.iter().map(|flagged| if *flagged { "flagged\n" } else { "not flagged\n" });
        screen.out(&words.collect::<String>());
    }
    Ok(0)
}

fn line(detected: &Detected) -> String {
    let loss = match detected.loss {
        Loss::RiskAware { beta } => format!("risk-aware, beta {beta}"),
        Loss::Logistic => "logistic".into(),
    };
    let [threshold, heads] = detected.threshold;
    format!(
        "{loss}: block {}, {threshold} of {heads} heads; hazards missed {}, harmless requests flagged {}\n",
        detected.layer,
        rate(&detected.missed),
        rate(&detected.alarms)
    )
}

fn rate(measured: &Measured) -> String {
    format!("{} ({} to {}, n = {})", percent(measured.value), percent(measured.low), percent(measured.high), measured.n)
}
