//! `immunise recipe`: makes, checks and shows recipes.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::arguments;
use super::attack::outside_of_models;
use super::render::Screen;
use crate::checkpoint::Config;
use crate::checkpoint::staging::write_new;
use crate::model::families;
use crate::pipeline::harden::check_targets;
use crate::pipeline::{bundled, locate, prompts_of};
use crate::recipe::fit::{fitted, for_another};
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
    /// Print a commented recipe to start from: a family's, or one fitted to a model.
    New {
        /// Model (a folder, `ORG/NAME[@REVISION]` or `builtin:tiny-chat`): its family's recipe, with its blocks and a budget
        /// for its size.
        #[arg(conflicts_with = "family")]
        model: Option<String>,
        /// Recipe of a family: `demo`, or a name of `immunise list families`.
        #[arg(long, default_value = "llama")]
        family: String,
        /// Write it to this file instead; nothing is overwritten.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a recipe and report every problem at once; its prompts are read too.
    Check {
        /// A file, or the name of a recipe inside the binary or of a family (`immunise list families`).
        recipe: String,
        /// Change a value first; may be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Print a recipe with every default written out, and where each value came from.
    Show {
        /// A file, or the name of a recipe inside the binary or of a family (`immunise list families`).
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
        Command::New { model, family, out } => {
            out.as_deref().map(outside_of_models).transpose()?;
            let text = match model {
                Some(model) => fitted_to(model, screen)?,
                None => {
                    // Validates the name with its suggestions; the text itself keeps its comments.
                    let name = arguments::embedded_name(family).unwrap_or(family);
                    RawRecipe::embedded(name)?;
                    EMBEDDED.iter().find(|(known, _)| *known == name).map_or(String::new(), |(_, text)| (*text).into())
                }
            };
            match out {
                None => screen.out(&text),
                Some(path) => {
                    write_new(path, text.as_bytes())?;
                    screen.say(&format!("next: immunise recipe check {}", path.display()));
                }
            }
        }
        Command::Check { recipe, overrides } => {
            let (given, recipe) = (recipe, arguments::recipe(recipe, overrides)?);
            check_targets(&recipe.stages, &recipe.suite, &prompts_of(&recipe.data)?)?;
            if screen.json() {
                screen.value(&json!({"name": recipe.name, "digest": recipe.digest()}));
            } else {
                screen.out(&format!("{given}: recipe `{}` is valid, digest {}\n", recipe.name, recipe.digest()));
            }
        }
        Command::Show { recipe, overrides } => {
            let raw = arguments::raw_recipe(recipe)?.with_overrides(overrides)?;
            let recipe = raw.validate()?;
            if screen.json() { screen.value(&recipe) } else { screen.out(&recipe.show_origins(&raw)) }
        }
        Command::Schema { report } => screen.value(&if *report { Report::schema() } else { Recipe::schema() }),
    }
    Ok(0)
}

/// The text of the recipe for a model's family, with its blocks and a budget for its size.
fn fitted_to(model: &str, screen: &Screen) -> Result<String> {
    let located = locate(model, screen)?;
    let config = Config::read(&located.dir)?;
    let blueprint = families::blueprint(&config)?;
    let parameters = blueprint.parameters() as u64;
    let chosen = Recipe::for_model(&config.model_type, Some(parameters));
    let text = chosen.and_then(|recipe| fitted(&recipe.name, blueprint.n_layers, parameters)).ok_or_else(|| {
        Error::input(&located.source, format!("no recipe in this build is made for `{}`", config.model_type))
    })?;
    Ok(if located.source == bundled::REFERENCE { text } else { for_another(&text) })
}
