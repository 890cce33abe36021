//! `immunise completions`: scripts for shells.

use clap_complete::{Shell, generate};

use super::render::Screen;
use crate::Result;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: immunise completions bash > ~/.local/share/bash-completion/completions/immunise")]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command for the command line `command`.
pub fn run(args: &Args, screen: &Screen, mut command: clap::Command) -> Result<u8> {
    let mut script = vec![];
    generate(args.shell, &mut command, "immunise", &mut script);
    screen.out(&String::from_utf8_lossy(&script));
    Ok(0)
}
