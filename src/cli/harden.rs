//! `immunise harden`: a recipe and a model in, a published folder out if it passes.

use std::path::{Path, PathBuf};

use super::arguments::{self, Compute};
use super::interrupt::stop_on_ctrl_c;
use super::passphrase::Key;
use super::render::Screen;
use crate::checkpoint::{Checkpoint, Config};
use crate::model::families;
use crate::pipeline::harden::{check_places, locate_for};
use crate::pipeline::plan::{Plan, plan};
use crate::pipeline::rank::check_ranks;
use crate::pipeline::{Located, Outcome, Part, Request, Stop, harden, harden_part, locate};
use crate::recipe::Recipe;
use crate::report::wording::blocks;
use crate::report::{Shard, Verdict};
use crate::{Error, Result};

/// Harden a model by a recipe, measure the result from the written files, and publish it if it passes.
///
/// The output folder appears complete or not at all. A second call with the same inputs resumes a run that was stopped.
/// Without a recipe the one for the model's family is used; `immunise recipe show NAME` prints it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  immunise harden my.yaml --model ./Llama --out ./Llama-immunised --key signing.pem
  immunise harden ./Llama --set seed=1 --set stages.0.rank=4
  immunise harden my.yaml --dry-run
  immunise harden my.yaml --out hardened --shard 2/2
  immunise harden my.yaml --out hardened --assemble hardened.part-1-of-2 hardened.part-2-of-2")]
pub struct Args {
    /// A recipe (a file, or a name such as `demo` or `llama`) or a model (a folder, `ORG/NAME@REVISION`, `builtin:tiny-chat`).
    #[arg(value_name = "RECIPE|MODEL")]
    subject: String,
    /// Where the published folder is to appear; `NAME-immunised` in the current folder unless given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The model; replaces the recipe's.
    #[arg(long, value_name = "REF|DIR")]
    model: Option<String>,
    /// Run folder with journal, adapters and metrics; `OUT.run` beside the output unless given.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Change a value of the recipe, such as `stages.0.rank=4`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    #[command(flatten)]
    key: Key,
    /// Refuse to publish without a signature.
    #[arg(long)]
    require_signature: bool,
    /// Publish even if the verdict is not a pass; report and card say so.
    #[arg(long)]
    allow_fail: bool,
    /// Print what would be done, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Forget what a former run left in the run folder.
    #[arg(long)]
    fresh: bool,
    /// Train only every N-th block of the first stage, beginning with the I-th, and publish nothing: for job arrays. Needs a
    /// stage whose blocks are independent (`et`, `et-faithful`, `et-closed`).
    #[arg(long, value_name = "I/N", value_parser = arguments::shard)]
    shard: Option<Shard>,
    /// Run folders of all parts that `--shard` trained; the output has the bytes of a run without parts.
    #[arg(long, value_name = "PART", num_args = 1..)]
    assemble: Vec<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let (machine, key) = (args.compute.machine()?, args.key.read()?);
    if args.require_signature && key.is_none() {
        return Err(Error::usage("a signature is required, but there is no key").hint("give one with `--key KEY.pem`"));
    }
    let (recipe, model) = if arguments::means_recipe(&args.subject) {
        (arguments::recipe(&args.subject, &args.overrides)?, args.model.clone())
    } else {
        if args.model.is_some() {
            return Err(Error::usage(format!("got two models, `{}` and `--model`", args.subject)));
        }
        (
            recipe_for(&locate_subject(&args.subject, screen)?)?.with_overrides(&args.overrides)?,
            Some(args.subject.clone()),
        )
    };
    let located = locate_for(&recipe, model.as_deref(), screen)?;
    let name = located.source.rsplit(['/', ':']).next().unwrap_or(&located.source);
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}-immunised")));
    let mut request = Request {
        model,
        out,
        run: args.run.clone(),
        key,
        allow_fail: args.allow_fail,
        fresh: args.fresh,
        assemble: args.assemble.clone(),
        machine,
        stop: Stop::default(),
    };
    check_places(&request, args.shard, &located.dir)?;
    args.key.refuse_within(&located.dir)?;
    let plan = plan(&recipe, request.model.as_deref(), &request.machine, args.shard.is_none(), screen)?;
    check_ranks(&recipe.stages, &recipe.suite, &families::blueprint(&Config::read(&located.dir)?)?)?;
    if args.dry_run {
        if screen.json() {
            screen.value(&plan)
        } else {
            screen.out(&plan_text(&plan))
        }
        return Ok(0);
    }
    screen.announce("plan", &plan, &plan_text(&plan));
    request.stop = stop_on_ctrl_c()?;
    if let Some(shard) = args.shard {
        screen.say(&part_text(&harden_part(&recipe, &request, shard, screen)?));
        return Ok(0);
    }
    let outcome = harden(&recipe, &request, screen)?;
    show(&outcome, request.key.is_some(), screen);
    Ok(outcome.report.verdict.exit_code())
}

/// As [`locate`], for what may have been meant as the name of a recipe.
fn locate_subject(subject: &str, screen: &Screen) -> Result<Located> {
    locate(subject, screen).map_err(|error| match Recipe::nearest(subject) {
        Some(name) if !Path::new(subject).exists() => error.hint(format!("did you mean the recipe `{name}`?")),
        _ => error,
    })
}

/// The recipe inside the binary for a model.
pub fn recipe_for(located: &Located) -> Result<Recipe> {
    let checkpoint = Checkpoint::open(&located.dir)?;
    let family = checkpoint.config().model_type.clone();
    let parameters = families::blueprint(checkpoint.config())?.parameters() as u64;
    Recipe::for_model(&family, Some(parameters)).ok_or_else(|| {
        Error::input(&located.source, format!("no recipe in this build is made for `{family}`"))
            .hint("write one: `immunise recipe new --out my.yaml`")
    })
}

/// Shows the report and what became of it.
pub fn show(outcome: &Outcome, signed: bool, screen: &Screen) {
    screen.report(&outcome.report);
    match &outcome.published {
        Some(out) => {
            let how = if signed { "signed" } else { "not signed; give `--key KEY.pem`" };
            screen.say(&format!("published in {} ({how})", out.display()));
            screen.say(&format!("next: hf upload REPO {}", quoted(out)));
        }
        None => {
            screen.say(&format!("nothing is published; the report is {}", outcome.run.join("report.html").display()));
            if outcome.report.verdict != Verdict::Pass {
                screen.say("`--allow-fail` publishes all the same, and says so in report and card");
            }
        }
    }
}

/// What became of one part, and what comes next.
fn part_text(part: &Part) -> String {
    let Shard { index, count } = part.shard;
    let of = match part.stage {
        Some((number, kind)) if part.layers.is_empty() => {
            format!("has no block of stage {number} `{kind}`: there are fewer blocks than parts")
        }
        Some((number, kind)) => {
            format!("of stage {number} `{kind}`, {}, is in {}", blocks(&part.layers), part.run.display())
        }
        None => "has nothing to do: every stage is finished".into(),
    };
    format!("part {index} of {count} {of}\nnext, with the folders of all parts: immunise harden ... --assemble PART...")
}

fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains(' ') { format!("'{text}'") } else { text }
}

/// What a run would do, for a reader.
pub fn plan_text(plan: &Plan) -> String {
    let mut text = format!("model     {}\nprompts   {}\n", plan.model, plan.data);
    let mut list = |title: &str, items: &[String]| {
        for (i, item) in items.iter().enumerate() {
            let title = if i == 0 { title } else { "" };
            text += &format!("{title:<9} {item}\n");
        }
    };
    list("stages", &plan.stages);
    list("attacks", &plan.attacks);
    list("budget", &plan.budget);
    list("measured", &plan.measured);
    list("lacking", &plan.shortages);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    text += &format!("cells     {}\n", plan.cells);
    let beyond = plan.memory_allowed.filter(|allowed| *allowed < plan.memory_bytes);
    let beyond =
        beyond.map_or_else(String::new, |allowed| format!(", more than the {} MiB that are allowed", mib(allowed)));
    let apart = plan.apart.as_ref().map_or_else(String::new, |apart| format!("apart     {apart}\n"));
    text += &format!(
        "weights   {}\npasses    {}\n{apart}memory    about {} MiB{beyond}\ndisk      {} MiB, and about {} MiB in the run folder\n",
        plan.weights,
        plan.activations,
        mib(plan.memory_bytes),
        mib(plan.disk_bytes),
        mib(plan.run_bytes)
    );
    text
}
