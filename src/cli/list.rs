//! `immunise list`: what recipes can name, read from the registries themselves.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde_json::{Value, json};

use super::attack::SUITES;
use super::render::Screen;
use crate::Result;
use crate::attack::spec::AttackKind;
use crate::judge::JUDGES;
use crate::model::families;
use crate::recipe::{EMBEDDED, Stage};
use crate::utility::spec::Task;

/// List what recipes can name, and who judges answers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which registry.
    #[arg(value_enum)]
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Model families that can be hardened.
    Families,
    /// Attacks and controls of a suite.
    Attacks,
    /// Defence stages.
    Defences,
    /// Judges of answers: every rate is the first one's, whatever the recipe.
    Judges,
    /// Recipes inside the binary.
    Recipes,
    /// Suites of attacks inside the binary.
    Suites,
    /// Utility tasks.
    Tasks,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let entries = match args.what {
        What::Families => families::names().map(|name| (name.to_owned(), String::new())).collect(),
        What::Attacks => documented::<AttackKind>(),
        What::Defences => documented::<Stage>(),
        What::Judges => JUDGES.iter().map(|(name, about, _)| ((*name).to_owned(), (*about).to_owned())).collect(),
        What::Recipes => commented(&EMBEDDED),
        What::Suites => commented(&SUITES),
        What::Tasks => documented::<Task>(),
    };
    if screen.json() {
        let values: Vec<Value> = entries
            .iter()
            .map(
                |(name, about)| {
                    if about.is_empty() { json!({"name": name}) } else { json!({"name": name, "about": about}) }
                },
            )
            .collect();
        screen.value(&values);
    } else {
        let width = entries.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = entries.iter().map(|(name, about)| format!("{name:<width$}  {about}").trim_end().to_owned() + "\n");
        screen.out(&lines.collect::<String>());
    }
    Ok(0)
}

/// Names of embedded files, with the first sentence of the comment that each begins with.
fn commented(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let about = |text: &str| {
        let comment = text.lines().map_while(|line| line.strip_prefix("# ")).collect::<Vec<_>>().join(" ");
        // A sentence ends where another begins, not within "Llama 3.2" or "e.g. this".
        let end = comment.match_indices(". ").find(|(at, _)| comment[at + 2..].starts_with(char::is_uppercase));
        end.map_or(comment.clone(), |(at, _)| comment[..=at].to_owned())
    };
    files.iter().map(|(name, text)| ((*name).to_owned(), about(text))).collect()
}

/// Names and first lines of a registry's entries, from its JSON Schema.
fn documented<T: JsonSchema>() -> Vec<(String, String)> {
    let schema = schemars::schema_for!(T).to_value();
    let entries = schema["oneOf"].as_array().into_iter().flatten();
    let entry = |entry: &Value| {
        let name = entry["const"].as_str().or_else(|| entry["properties"]["kind"]["const"].as_str())?;
        let about = entry["description"].as_str().unwrap_or_default().split('\n').next().unwrap_or_default();
        Some((name.to_owned(), about.to_owned()))
    };
    entries.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::STAGE_KINDS;

    #[test]
    fn every_embedded_file_says_what_it_is_for() {
        for (name, about) in [commented(&EMBEDDED), commented(&SUITES)].concat() {
            assert!(about.ends_with('.') && about.len() > 20, "{name}: `{about}` is no sentence");
        }
    }

    #[test]
    fn every_registry_is_listed_with_what_its_entries_are() {
        let names: Vec<String> = documented::<Stage>().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, STAGE_KINDS);
        let all = [documented::<Stage>(), documented::<AttackKind>(), documented::<Task>()].concat();
        for (i, (name, about)) in all.iter().enumerate() {
            assert!(about.ends_with('.'), "{name}: `{about}` is no sentence");
            assert!(all[..i].iter().all(|(_, other)| other != about), "{name} is described as another is: {about}");
        }
        assert!(documented::<AttackKind>().iter().any(|(name, _)| name == "ablation"));
    }
}
