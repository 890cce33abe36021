//! `immunise man`: the manual page.

use super::render::Screen;
use crate::{Error, Result};

/// Print the manual page of a command, or of the program.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: immunise man harden > immunise-harden.1 && man ./immunise-harden.1")]
pub struct Args {
    /// The command, such as `harden`.
    command: Option<String>,
}

/// Runs the command for the command line `program`.
pub fn run(args: &Args, screen: &Screen, mut program: clap::Command) -> Result<u8> {
    program.build();
    let page = match &args.command {
        None => program,
        Some(name) => program
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Error::usage(format!("no command `{name}`")).hint("`immunise --help` lists them"))?,
    };
    let mut text = vec![];
    clap_mangen::Man::new(page).render(&mut text).map_err(|error| Error::io("manual page", error))?;
    screen.out(&String::from_utf8_lossy(&text));
    Ok(0)
}
