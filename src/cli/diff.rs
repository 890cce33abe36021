//! `immunise diff`: what differs between two checkpoints.

use super::render::Screen;
use crate::Result;
use crate::checkpoint::diff::{Change, FileChange};
use crate::checkpoint::{Checkpoint, diff};
use crate::pipeline::locate;
use crate::report::wording::percent;

/// Compare two checkpoints: tensors by value, other files by content.
///
/// Exits with 0 when they are the same and with 1 when they differ, as `diff` does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The first checkpoint.
    first: String,
    /// The second checkpoint.
    second: String,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let (first, second) = (locate(&args.first, screen)?, locate(&args.second, screen)?);
    let difference = diff(&Checkpoint::open(&first.dir)?, &Checkpoint::open(&second.dir)?)?;
    let same = difference.tensors.is_empty() && difference.files.is_empty();
    if screen.json() {
        screen.value(&difference);
        return Ok(u8::from(!same));
    }
    let mut text = String::new();
    for tensor in &difference.tensors {
        let change = match &tensor.change {
            Change::Values { elements, changed, max_abs, relative_norm } => {
                let norm = relative_norm.map_or_else(String::new, |norm| format!(", {} of the norm", percent(norm)));
                let max = max_abs.map_or_else(String::new, |max| format!(", at most {max:.3e}"));
                format!("{changed} of {elements} values{norm}{max}")
            }
            Change::Layout { first, second } => format!("{first} became {second}"),
            Change::OnlyInFirst => "only in the first".into(),
            Change::OnlyInSecond => "only in the second".into(),
        };
        text += &format!("tensor {}: {change}\n", tensor.name);
    }
    for file in &difference.files {
        let change = match file.change {
            FileChange::Content => "other content",
            FileChange::OnlyInFirst => "only in the first",
            FileChange::OnlyInSecond => "only in the second",
        };
        text += &format!("file {}: {change}\n", file.path);
    }
    if same {
        text += "no difference\n";
    }
    screen.out(&text);
    Ok(u8::from(!same))
}
