//! The command line: what a person types, and which part of the library answers it. Results go to stdout, everything that
//! is said on the way to stderr; only `render` writes to either.

mod arguments;
mod attack;
mod completions;
mod demo;
mod detect;
mod diff;
mod harden;
mod import;
mod interrupt;
mod keygen;
mod list;
mod man;
mod merge;
mod pace;
mod passphrase;
mod recipe;
mod render;
mod report;
mod sign;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};

use crate::Result;
use crate::math::float::start_workers;
use arguments::Global;
use render::Screen;

/// Hardens open-weights language models against inference-time interventions, proves it from the written files, and signs
/// the result.
#[derive(Debug, Parser)]
#[command(
    name = "immunise",
    version,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 passed, 1 measured and failed the gate, 2 usage, 3 input unusable or damaged, 4 signature invalid, \
5 inconclusive (too few samples, or nothing to defend), 130 interrupted (state kept).

Start with `immunise demo`: the whole pipeline on the bundled model, on a CPU, without network."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What each does is said by its own arguments: a comment here would take the place of theirs.
#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Harden(harden::Args),
    Attack(attack::Args),
    Verify(verify::Args),
    Sign(sign::Args),
    Keygen(keygen::Args),
    Merge(merge::Args),
    Diff(diff::Args),
    Recipe(recipe::Args),
    Report(report::Args),
    Detect(detect::Args),
    List(list::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> u8 {
    let cli = Cli::parse();
    start_workers(cli.global.threads);
    let screen = Screen::new(&cli.global);
    match dispatch(&cli.command, &screen).and_then(|code| screen.written().map(|()| code)) {
        Ok(code) => code,
        Err(error) => {
            screen.error(&error);
            error.exit_code()
        }
    }
}

fn dispatch(command: &Command, screen: &Screen) -> Result<u8> {
    match command {
        Command::Demo(args) => demo::run(args, screen),
        Command::Harden(args) => harden::run(args, screen),
        Command::Attack(args) => attack::run(args, screen),
        Command::Verify(args) => verify::run(args, screen),
        Command::Sign(args) => sign::run(args, screen),
        Command::Keygen(args) => keygen::run(args, screen),
        Command::Merge(args) => merge::run(args, screen),
        Command::Diff(args) => diff::run(args, screen),
        Command::Recipe(args) => recipe::run(args, screen),
        Command::Report(args) => report::run(args, screen),
        Command::Detect(args) => detect::run(args, screen),
        Command::List(args) => list::run(args, screen),
        Command::Completions(args) => completions::run(args, screen, Cli::command()),
        Command::Man(args) => man::run(args, screen, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
