//! `immunise report`: joins the parts of a sharded measurement, and shows a report in other forms.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};

use super::arguments;
use super::attack::{REPORT_FILES, write_report};
use super::render::Screen;
use crate::checkpoint::files;
use crate::event::{Event, Observer as _};
use crate::pipeline::policy;
use crate::pipeline::publish::published;
use crate::report::{Report, Thresholds, compare, html, junit, merge, sarif, svg};
use crate::{Error, Result};

/// Join the parts of a sharded measurement, or show a report in another form.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join the reports of all shards into the one that a single run would have written.
    Merge {
        /// The parts: report.json files, or the folders that hold them.
        #[arg(required = true, value_name = "PART")]
        parts: Vec<PathBuf>,
        /// Recipe whose thresholds decide; without one the verdict is undecided at best.
        #[arg(long, value_name = "RECIPE")]
        policy: Option<String>,
        /// Change a value of the recipe; may be repeated.
        #[arg(long = "set", value_name = "KEY=VALUE", requires = "policy")]
        overrides: Vec<String>,
        /// Write report.json and report.html into this folder.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Print several reports of one base side by side, as Markdown: attacks by method, and what each method costs.
    Compare {
        /// Reports with the name of their column: report.json files, or the folders that hold them.
        #[arg(required = true, value_name = "NAME=REPORT", value_parser = named)]
        reports: Vec<(String, PathBuf)>,
    },
    /// Print a report as text, HTML, a picture, JUnit XML or SARIF.
    Show {
        /// report.json, or the folder that holds it.
        report: PathBuf,
        /// The form.
        #[arg(long = "as", value_enum, default_value = "text")]
        form: Form,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// Tables for a terminal.
    Text,
    /// One self-contained page.
    Html,
    /// The before/after picture alone.
    Svg,
    /// JUnit XML, for the test views of CI systems.
    Junit,
    /// SARIF 2.1.0, for code-scanning views.
    Sarif,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    match &args.command {
        Command::Merge { parts, policy, overrides, out } => {
            let reports = parts.iter().map(|part| read(part)).collect::<Result<Vec<_>>>()?;
            if let Some(out) = out {
                parts.iter().try_for_each(|part| keep_apart(part, out))?;
            }
            let recipe = policy.as_ref().map(|policy| arguments::recipe(policy, overrides)).transpose()?;
            let mut whole = merge::merge(&reports, &Thresholds::default())?;
            if let Some(recipe) = &recipe {
                policy::conclude(&mut whole, recipe)?;
            }
            let recipe = recipe.as_ref().map(published);
            if recipe.as_ref().is_some_and(|recipe| recipe.digest() != whole.recipe_digest) {
                let text =
                    "the parts were measured by another recipe; the thresholds of this one are held against their rows";
                screen.event(Event::Warning(text.into()));
            }
            write_report(out.as_deref(), &whole, recipe.map(|recipe| recipe.show()).as_deref())?;
            screen.report(&whole);
            Ok(whole.verdict.exit_code())
        }
        Command::Compare { reports } => {
            if let Some((name, _)) = reports
                .iter()
                .enumerate()
                .find_map(|(i, report)| reports[..i].iter().find(|(other, _)| *other == report.0))
            {
                return Err(Error::usage(format!("expected a name for each column, got `{name}` twice")));
            }
            let reports = reports.iter().map(|(name, path)| Ok((name.clone(), read(path)?)));
            let reports = reports.collect::<Result<Vec<_>>>()?;
            if let Some((name, _)) = reports.iter().find(|(_, report)| report.base.digests != reports[0].1.base.digests)
            {
                let text = format!("`{name}` is about another base than `{}`", reports[0].0);
                return Err(Error::input("report", text).hint("one table has one un-hardened model"));
            }
            screen.out(&compare::markdown(&reports));
            Ok(0)
        }
        Command::Show { report, form } => {
            if screen.json() && !matches!(form, Form::Text) {
                return Err(Error::usage("expected one form, got `--as` and `--format json`")
                    .hint("`--format json` prints the report as it is; `--as` shows it in another form"));
            }
            let report = read(report)?;
            match form {
                Form::Text => screen.report(&report),
                Form::Html => screen.out(&html::render(&report, None)),
                Form::Svg => screen.out(&svg::render(&report)),
                Form::Junit => screen.out(&junit::render(&report)?),
                Form::Sarif => screen.out(&sarif::render(&report)),
            }
            Ok(0)
        }
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected `NAME=REPORT`, such as `et=out-et`")?;
    Ok((name.to_owned(), PathBuf::from(path)))
}

/// The file that a report is read from: the path itself, or that of a folder's report.
fn file_of(path: &Path) -> PathBuf {
    let inside = [path.join("immunisation/report.json"), path.join("report.json")];
    inside.into_iter().find(|file| file.is_file()).unwrap_or_else(|| path.to_owned())
}

fn read(path: &Path) -> Result<Report> {
    let path = file_of(path);
    if path.is_dir() {
        return Err(Error::file(&path, "expected report.json or immunisation/report.json in it, got neither"));
    }
    let text = files::read_text(&path, files::MAX_DESCRIPTION)?;
    Report::from_json(&text, &path.display().to_string())
}

/// Refuses a part that the report in the folder `out` would take the place of, by whatever path it is given.
fn keep_apart(part: &Path, out: &Path) -> Result<()> {
    if REPORT_FILES.iter().any(|name| is_same(&file_of(part), &out.join(name))) {
        let problem = format!("expected a part apart from the output, got one that `--out {}` replaces", out.display());
        return Err(Error::file(part, problem).hint("choose another folder: the part would be lost"));
    }
    Ok(())
}

/// Whether two paths lead to one file that is there.
fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(a), Ok(b)) = (fs::metadata(one), fs::metadata(other)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    }
    #[cfg(not(unix))]
    {
        a.is_file() && b.is_file() && one.canonicalize().ok() == other.canonicalize().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_in_the_place_of_the_output_is_known_by_every_path_to_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("out/sub")).unwrap();
        fs::create_dir(at("part")).unwrap();
        fs::write(at("out/report.json"), "{}").unwrap();
        fs::write(at("part/report.json"), "{}").unwrap();
        fs::hard_link(at("out/report.json"), at("hard.json")).unwrap();
        let mut same = vec!["out", "out/report.json", "out/sub/../report.json", "part/../out", "hard.json"];
        #[cfg(unix)]
        for (to, from) in [("out", "folder"), ("out/report.json", "soft.json")] {
            std::os::unix::fs::symlink(at(to), at(from)).unwrap();
            same.push(from);
        }
        if cfg!(not(unix)) {
            same.retain(|part| *part != "hard.json");
        }
        for part in same {
            let error = keep_apart(&at(part), &at("out")).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(&at(part).display().to_string()), "{error}");
        }
        for (part, out) in [("part", "out"), ("part", "new"), ("out", "part"), ("hard.json", "part")] {
            assert!(keep_apart(&at(part), &at(out)).is_ok(), "{part} {out}");
        }
    }
}
