//! `immunise recipe`: makes, checks and shows recipes.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::arguments;
use super::render::Screen;
use crate::recipe::{EMBEDDED, RawRecipe, Recipe};
use crate::report::Report;
use crate::{Error, Result};

/// Make, check and show recipes.
///
/// A recipe says what to harden, by which stages, against which attacks, at what price, and what counts as good enough.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the commented recipe of a model family, to start from.
    New {
        /// Family: `demo`, `llama` or `qwen2`.
        #[arg(long, default_value = "llama")]
        family: String,
        /// Write it to this file instead; nothing is overwritten.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a recipe and report every problem at once.
    Check {
        /// A file, or the name of a recipe inside the binary.
        recipe: String,
        /// Change a value first; may be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Print a recipe with every default written out.
    Show {
        /// A file, or the name of a recipe inside the binary.
        recipe: String,
        /// Change a value first; may be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Print the JSON Schema of recipes, for editors and CI.
    Schema {
        /// The schema of reports instead.
        #[arg(long)]
        report: bool,
    },
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    match &args.command {
        Command::New { family, out } => {
            // Validates the name with its suggestions; the text itself keeps its comments.
            RawRecipe::embedded(family)?;
            let text = EMBEDDED.iter().find(|(name, _)| name == family).map_or("", |(_, text)| text);
            match out {
                None => screen.out(text),
                Some(path) => {
                    let file = fs::OpenOptions::new().write(true).create_new(true).open(path);
                    file.and_then(|mut file| file.write_all(text.as_bytes()))
                        .map_err(|error| Error::io(path, error))?;
                    screen.say(&format!("next: immunise recipe check {}", path.display()));
                }
            }
        }
        Command::Check { recipe, overrides } => {
            let recipe = arguments::recipe(recipe, overrides)?;
            if screen.json() {
                screen.value(&json!({"name": recipe.name, "digest": recipe.digest()}));
            } else {
                screen.out(&format!("recipe `{}` is valid, digest {}\n", recipe.name, recipe.digest()));
            }
        }
        Command::Show { recipe, overrides } => {
            let recipe = arguments::recipe(recipe, overrides)?;
            if screen.json() { screen.value(&recipe) } else { screen.out(&recipe.show()) }
        }
        Command::Schema { report } => screen.value(&if *report { Report::schema() } else { Recipe::schema() }),
    }
    Ok(0)
}
