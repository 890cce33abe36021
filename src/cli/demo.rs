//! `immunise demo`: the whole pipeline on the bundled model.

use std::path::PathBuf;

use super::arguments::Compute;
use super::harden;
use super::interrupt::stop_on_ctrl_c;
use super::render::Screen;
use crate::Result;
use crate::pipeline::bundled::REFERENCE;
use crate::pipeline::harden::default_run;
use crate::pipeline::plan::plan;
use crate::pipeline::{Request, harden as run_pipeline};
use crate::recipe::Recipe;
use crate::sign::SigningKey;

/// Run the whole pipeline on the bundled model: CPU, minutes, no network.
///
/// Measures a small chat model under attack, hardens it, measures what was written, signs it with a throw-away key, and
/// prints before and after. The recipe is `immunise recipe show demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the hardened model is to appear.
    #[arg(long, value_name = "DIR", default_value = "tiny-chat-immunised")]
    out: PathBuf,
    /// Change a value of the recipe, such as `seed=1`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Publish even if the verdict is not a pass; report and card say so.
    #[arg(long)]
    allow_fail: bool,
    /// Forget what a former run left in the run folder.
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    compute: Compute,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let recipe = Recipe::embedded("demo")?.with_overrides(&args.overrides)?;
    // A key of its own for this run only: written after the run, beside the journal.
    let key = SigningKey::generate()?;
    let (run, machine) = (default_run(&args.out), args.compute.machine()?);
    let plan = plan(&recipe, Some(REFERENCE), &machine, true, screen)?;
    screen.announce("plan", &plan, &harden::plan_text(&plan));
    let request = Request {
        model: Some(REFERENCE.into()),
        run: Some(run.clone()),
        key: Some(key.clone()),
        allow_fail: args.allow_fail,
        fresh: args.fresh,
        stop: stop_on_ctrl_c()?,
        ..Request::new(args.out.clone(), machine)
    };
    let outcome = run_pipeline(&recipe, &request, screen)?;
    harden::show(&outcome, true, screen);
    if let Some(out) = &outcome.published {
        let path = run.join(format!("demo-{}.pem", &key.verifying_key().hint()[..8]));
        let public = key.write_pair(&path, None)?;
        screen.say(&format!("next: immunise verify {} --key {}", out.display(), public.display()));
    }
    Ok(outcome.report.verdict.exit_code())
}
