//! Options that several subcommands share, and how their values are read.

use std::path::Path;

use clap::{Args, ValueEnum};

use crate::pipeline::device::{self, Machine};
use crate::recipe::{EMBEDDED, RawRecipe, Recipe};
use crate::report::Shard;
use crate::{Error, Result};

/// How results are written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for a reader.
    Text,
    /// JSON for a program.
    Json,
}

/// How progress, warnings and errors are written to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// One live line on a terminal, plain lines elsewhere.
    Auto,
    /// A line for every finished unit.
    Plain,
    /// A JSON object a line: `event` is `plan`, `stage`, `unit`, `note`, `warning` or `error`.
    Json,
}

/// Options of every subcommand.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How results are written to stdout.
    #[arg(long, global = true, value_enum, default_value = "text", help_heading = "Output")]
    pub format: Format,
    /// How progress, warnings and errors are written to stderr.
    #[arg(long, global = true, value_enum, default_value = "auto", help_heading = "Output")]
    pub progress: Progress,
    /// Write no colours; so does the variable NO_COLOR, and so do pipes.
    #[arg(long, global = true, help_heading = "Output")]
    pub no_color: bool,
    /// Say nothing but warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,
    /// Say more: a line for every finished unit, a row for every block.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// Worker threads; as many as the machine has unless given. Figures may differ in their last digits.
    #[arg(long, global = true, value_name = "N", value_parser = threads, help_heading = "Output")]
    pub threads: Option<usize>,
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a number from 1 to 1024".into()),
    }
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct Compute {
    /// `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU where build and machine have one.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Memory that may be taken, such as `24GiB`: of the GPU where one computes, else of the host, whose free memory is the limit
    /// unless given. Weights that do not fit stay in their files and are read at every use.
    #[arg(long, value_name = "SIZE", value_parser = device::parse_memory)]
    memory: Option<u64>,
}

impl Compute {
    /// Device and memory.
    pub fn machine(&self) -> Result<Machine> {
        Ok(Machine::new(device::parse(&self.device)?, self.memory))
    }
}

/// The recipe that `text` means: a file, or the name of one inside the binary, or of the family that one is made for.
pub fn recipe(text: &str, overrides: &[String]) -> Result<Recipe> {
    raw_recipe(text)?.with_overrides(overrides)?.validate()
}

/// As [`recipe`], before it is checked.
pub fn raw_recipe(text: &str) -> Result<RawRecipe> {
    let path = Path::new(text);
    let embedded = embedded_name(text).filter(|_| !path.exists());
    if path.is_dir() {
        let hint = format!("`immunise recipe new {text}` makes a recipe for a model");
        return Err(Error::file(path, "expected a recipe, got a folder").hint(hint));
    }
    match embedded {
        Some(name) => RawRecipe::embedded(name),
        None if path.exists() || looks_like_file(path) => RawRecipe::load(path),
        None => RawRecipe::embedded(text),
    }
}

/// The recipe inside the binary that `text` names: by its own name, or by the `model_type` that it is made for, as
/// `immunise list families` has it.
pub fn embedded_name(text: &str) -> Option<&'static str> {
    let named = |wanted: &str| EMBEDDED.iter().map(|(name, _)| *name).find(|name| *name == wanted);
    named(text).or_else(|| named(&Recipe::for_model_type(text)?.name))
}

/// Whether `text` means a recipe rather than a model.
pub fn means_recipe(text: &str) -> bool {
    let path = Path::new(text);
    path.is_file() || (!path.is_dir() && (looks_like_file(path) || embedded_name(text).is_some()))
}

fn looks_like_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml"].iter().any(|known| extension == *known))
}

/// Reads `I/N`.
pub fn shard(text: &str) -> Result<Shard, String> {
    let parse = || -> Option<Shard> {
        let (index, count) = text.split_once('/')?;
        Some(Shard { index: index.parse().ok()?, count: count.parse().ok()? })
    };
    match parse() {
        Some(shard) if (1..=shard.count).contains(&shard.index) => Ok(shard),
        Some(Shard { count: 0, .. }) => Err("expected one part at least".into()),
        Some(Shard { index, count }) => Err(format!("expected a part from 1 to {count}, got {index}")),
        None => Err("expected a part such as `2/4`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(shard("2/4").unwrap(), Shard { index: 2, count: 4 });
        for text in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(shard(text).is_err(), "{text}");
        }
    }

    #[test]
    fn recipes_are_files_or_names() {
        assert!(means_recipe("demo") && means_recipe("my/own.yaml"));
        assert!(!means_recipe("org/name") && !means_recipe("."));
        assert_eq!(recipe("demo", &["seed=7".into()]).unwrap().seed, 7);
        assert_eq!(recipe("dmeo", &[]).unwrap_err().exit_code(), 2);
        assert_eq!(recipe("missing.yaml", &[]).unwrap_err().exit_code(), 3);
    }

    #[test]
    fn every_family_that_is_listed_names_its_recipe() {
        for family in crate::model::families::names() {
            let recipe = recipe(family, &[]).unwrap();
            assert_eq!(recipe.matches.map(|matches| matches.model_type).as_deref(), Some(family));
            assert!(means_recipe(family), "{family}");
        }
        assert_eq!(embedded_name("gemma3_text"), Some("gemma3"));
        assert_eq!(embedded_name("gemma3"), Some("gemma3"));
    }
}
