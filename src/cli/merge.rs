//! `immunise merge`: adapters into weights.

use std::path::PathBuf;

use super::attack::outside_of_models;
use super::render::Screen;
use crate::adapter::{merge, peft};
use crate::checkpoint::staging::parent_of;
use crate::checkpoint::{Checkpoint, files, patch};
use crate::event::{Event, Observer as _};
use crate::pipeline::locate;
use crate::pipeline::metrics::Cast;
use crate::pipeline::model::EVIDENCE;
use crate::report::wording::percent;
use crate::sign::SIGNATURE_FILE;
use crate::{Error, Result};

/// Merge PEFT adapters into a checkpoint's weights: summed in f64, rounded once, everything else byte for byte.
///
/// The result is neither measured nor signed; a signature and evidence of the base are left out, as they are not about it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`.
    base: String,
    /// Folders with `adapter_config.json` and `adapter_model.safetensors`.
    #[arg(required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// Where the merged checkpoint is to appear.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let located = locate(&args.base, screen)?;
    files::apart(&args.out, &located.dir)?;
    outside_of_models(parent_of(&args.out))?;
    let base = Checkpoint::open(&located.dir)?;
    let sets = args.adapters.iter().map(|dir| peft::load(dir)).collect::<Result<Vec<_>, Error>>()?;
    let plan = merge::plan(&base, &sets)?;
    let others = base.other_weights()?;
    let mut omit = vec![SIGNATURE_FILE, EVIDENCE];
    omit.extend(others.iter().map(String::as_str));
    let (staged, report) = patch(&base, &args.out, &plan, &[], &omit)?;
    for file in &others {
        screen.event(Event::Warning(format!("{file} holds un-merged weights and is left out")));
    }
    staged.publish(&args.out)?;
    if screen.json() {
        screen.value(&report);
    } else {
        let cast = Cast::of(&report);
        let kept = percent(1.0 - cast.mean_loss);
        screen.out(&format!(
            "{}: {} tensors changed; the stored type keeps {kept} of the change\n",
            args.out.display(),
            cast.tensors
        ));
    }
    Ok(0)
}
