//! `immunise verify`: the CI gate.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::{self, Compute};
use super::attack::{Part, check_others, check_report, forget_report, report_folder, write_report};
use super::render::Screen;
use crate::checkpoint::Config;
use crate::event::{Event, Observer as _};
use crate::hub::{Hub, RepoId};
use crate::model::families;
use crate::pipeline::device::Demand;
use crate::pipeline::harden::{check_match, check_targets};
use crate::pipeline::publish::published;
use crate::pipeline::suite::Selection;
use crate::pipeline::verify::imported;
use crate::pipeline::{Model, Trial, locate, prompts_of};
use crate::report::Verdict;
use crate::sign::attestation::{self, Attested, Outcome};
use crate::sign::{Manifest, Trust, VerifyingKey, verify_folder, verify_folder_certified};
use crate::{Error, Result};

/// The CI gate: check a checkpoint's signature, and measure it against a recipe's thresholds.
///
/// With `--key` or `--roots` the signature and every file's digest are checked first, and that the evidence is about these
/// files; without `--policy` it also has to say that they passed. With `--policy` the recipe's suite, utility tasks and
/// thresholds are applied to the files as they are. The base is `--base`, or the model that the recipe names; without it no
/// row has an un-hardened value, and the verdict cannot be a pass.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  immunise verify ./Llama-immunised --key publisher.pub.pem
  immunise verify ./Llama-immunised --roots authority.pem --identity release@example.org
  immunise verify ./candidate --policy my.yaml --base ./Llama --report ./ci")]
pub struct Args {
    /// The checkpoint: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    checkpoint: String,
    /// Recipe whose suite, utility tasks and thresholds decide.
    #[arg(long, value_name = "RECIPE")]
    policy: Option<String>,
    /// Public key that the signature must be made with.
    #[arg(long, value_name = "PUB.pem")]
    key: Option<PathBuf>,
    /// Certificates of the authorities that are trusted, in PEM; instead of `--key` where the signature comes with
    /// certificates.
    #[arg(long, value_name = "ROOTS.pem", conflicts_with = "key")]
    roots: Option<PathBuf>,
    /// Who has to have signed: a URI, e-mail address or host name in the signer's certificate; may be repeated, one must fit.
    #[arg(long, value_name = "NAME", requires = "roots")]
    identity: Vec<String>,
    /// The un-hardened model that it was made from.
    #[arg(long, value_name = "REF|DIR", requires = "policy")]
    base: Option<String>,
    /// Write report.json and report.html into this folder.
    #[arg(long, value_name = "DIR", requires = "policy")]
    report: Option<PathBuf>,
    /// Change a value of the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "policy")]
    overrides: Vec<String>,
    /// Ask for a valid signature and no more: also of files that nobody measured, or that failed.
    #[arg(long, conflicts_with = "policy")]
    signature_only: bool,
    /// Fail without a key to check the signature with.
    #[arg(long)]
    require_signature: bool,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    compute: Compute,
}

impl Args {
    /// Refuses what would be left out: clap does not ask for what an argument requires where another excludes it.
    fn complete(&self) -> Result<()> {
        if !self.identity.is_empty() && self.roots.is_none() {
            return Err(Error::usage("`--identity` needs `--roots`: only a certificate says who signed"));
        }
        let given = [
            ("--base", self.base.is_some()),
            ("--report", self.report.is_some()),
            ("--set", !self.overrides.is_empty()),
            ("--run", self.part.run.is_some()),
            ("--fresh", self.part.fresh),
            ("--shard", self.part.shard.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((option, _)) if self.policy.is_none() => Err(Error::usage(format!("`{option}` needs `--policy`"))),
            _ => Ok(()),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let checked = args.key.is_some() || args.roots.is_some();
    if !checked && (args.policy.is_none() || args.require_signature) {
        return Err(Error::usage("nothing to check the signature with").hint(
            "give the publisher's key with `--key PUB.pem`, trusted authorities with `--roots ROOTS.pem`, a recipe to measure by \
             with `--policy RECIPE`, or a recipe and one of the others",
        ));
    }
    args.complete()?;
    check_report(args.report.as_deref(), [Some(args.checkpoint.as_str()), args.base.as_deref()])?;
    let recipe = args.policy.as_ref().map(|policy| arguments::recipe(policy, &args.overrides)).transpose()?;
    let located = locate(&args.checkpoint, screen)?;
    let signed = match checked.then(|| Signed::check(args, &located.dir, screen)).transpose() {
        Err(error @ Error::Signature { .. }) => {
            // The candidate has failed, so an older report says nothing of it.
            forget_report(args.report.as_deref())?;
            return Err(error);
        }
        signed => signed?,
    };
    let recipe = match (recipe, signed) {
        (None, signed) => return Ok(signed.map_or(0, |signed| signed.show(args.signature_only, screen))),
        (Some(recipe), Some(signed)) => {
            screen.say(signed.text().trim_end());
            recipe
        }
        (Some(recipe), None) => {
            let text = "the signature is not checked; give `--key PUB.pem` or `--roots ROOTS.pem`";
            screen.event(Event::Warning(text.into()));
            recipe
        }
    };
    report_folder(args.report.as_deref(), &located.dir)?;
    let machine = args.compute.machine()?;
    let config = Config::read(&located.dir)?;
    let blueprint = families::blueprint(&config)?;
    check_match(&recipe, &config.model_type, blueprint.parameters())?;
    let base = match args.base.as_deref().or(recipe.model.as_deref()) {
        Some(base) => {
            if args.base.is_none() {
                screen.event(Event::Note(format!("the base is the model that the recipe names, {base}")));
            }
            Some(locate(base, screen)?)
        }
        None => {
            screen.event(Event::Warning("without `--base` nothing can be shown to have improved".into()));
            None
        }
    };
    args.part.check_place(base.as_ref(), &located)?;
    check_others(base.as_ref(), &recipe.suite, screen)?;
    imported(&recipe.utility)?;
    let data = prompts_of(&recipe.data)?;
    check_targets(&[], &recipe.suite, &data)?;
    let selection = Selection { shard: args.part.shard, ..Selection::default() };
    let trial = Trial { selection, ..Trial::of(&recipe, &data) };
    trial.grid(&blueprint, base.is_some())?;
    forget_report(args.report.as_deref())?;
    let demand = Demand::of_measuring(&machine.device);
    let model = Model::load(located, &machine, demand, screen)?;
    let base = base.map(|base| Model::load(base, &machine, demand, screen)).transpose()?;
    let report = args.part.measure(&trial, base.as_ref(), &model, screen)?;
    write_report(args.report.as_deref(), &report, Some(&published(&recipe).show()))?;
    screen.report(&report);
    Ok(report.verdict.exit_code())
}

/// Whether the hub was asked for all files of a commit: of one that is known to the cache, another program may have fetched only
/// what it loads.
fn complete(reference: &str, screen: &Screen) -> bool {
    let id = RepoId::parse(reference).ok().filter(|id| id.is_pinned() && !Path::new(reference).is_dir());
    id.is_some_and(|id| Hub::from_env().complete(&id, screen).is_ok())
}

/// A signature that holds.
struct Signed {
    manifest: Manifest,
    key: VerifyingKey,
    names: Vec<String>,
    attested: Option<Attested>,
}

impl Signed {
    /// Checks signature, digests and evidence, once more where something that the cache lacked has been fetched.
    fn check(args: &Args, dir: &Path, screen: &Screen) -> Result<Self> {
        if args.roots.is_some() && args.identity.is_empty() {
            let text =
                "anybody with a certificate of these authorities may have signed; name the signer with `--identity`";
            screen.event(Event::Warning(text.into()));
        }
        match Self::of_files(args, dir) {
            Err(Error::Signature { .. }) if complete(&args.checkpoint, screen) => Self::of_files(args, dir),
            result => result,
        }
    }

    fn of_files(args: &Args, dir: &Path) -> Result<Self> {
        let (manifest, key, names) = match (&args.key, &args.roots) {
            (_, Some(roots)) => {
                let (manifest, signer) = verify_folder_certified(dir, &Trust::read(roots, args.identity.clone())?)?;
                (manifest, signer.key, signer.names)
            }
            (Some(key), None) => {
                let key = VerifyingKey::read(key)?;
                (verify_folder(dir, &key)?, key, vec![])
            }
            (None, None) => return Err(Error::usage("nothing to check the signature with")),
        };
        let attested = attestation::check(dir, &manifest, &key)?;
        Ok(Self { manifest, key, names, attested })
    }

    /// Says what was found; the exit code is that of the verdict that the evidence tells of, undecided where it tells of none,
    /// unless the signature alone is asked for.
    fn show(&self, signature_only: bool, screen: &Screen) -> u8 {
        if screen.json() {
            screen.value(&self.value());
        } else {
            screen.out(&self.text());
        }
        let verdict = match self.attested.as_ref().and_then(|attested| attested.result) {
            _ if signature_only => Verdict::Pass,
            Some(Outcome::Passed) => Verdict::Pass,
            Some(Outcome::Failed) => Verdict::Fail,
            Some(Outcome::Warned) | None => Verdict::Inconclusive,
        };
        verdict.exit_code()
    }

    fn value(&self) -> Value {
        json!({
            "signature": "valid",
            "name": self.manifest.name(),
            "files": self.manifest.resources().len(),
            "root": self.manifest.root().to_string(),
            "key": self.key.hint(),
            "signer": self.names,
            "attested": self.attested.is_some(),
            "measured": self.attested.as_ref().and_then(|attested| attested.result),
        })
    }

    fn text(&self) -> String {
        let (files, root) = (self.manifest.resources().len(), self.manifest.root());
        let mut text = format!("signature valid: {files} files of `{}`, root {root}\n", self.manifest.name());
        if !self.names.is_empty() {
            text += &format!("signed by {}\n", self.names.join(", "));
        }
        let Some(attested) = &self.attested else {
            return text + "no evidence: nothing says how these files were made or measured\n";
        };
        let result = match attested.result {
            Some(Outcome::Passed) => "passed",
            Some(Outcome::Failed) => "failed",
            Some(Outcome::Warned) => "undecided",
            None => "unknown",
        };
        let by = match attested.sealed {
            Some(true) => ", sealed by the same key",
            Some(false) => ", sealed by another key",
            None => "",
        };
        text + &format!("evidence is about these files: measured as {result}{by}\n")
    }
}
