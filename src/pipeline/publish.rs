//! What is published beside the weights, and the order of it: card, report, recipe, evidence, signature, rename.
//!
//! The signature covers everything else, so it is last, and it is checked once more before the folder appears at its
//! place. Nothing that varies between runs of the same inputs is written here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::model::{CARD, EVIDENCE, Located};
use crate::checkpoint::Staged;
use crate::hub::RepoId;
use crate::recipe::Recipe;
use crate::report::{Approved, Report, Severity, Verdict, bom, card, html};
use crate::sign::attestation::{self, Evidence, Material, Outcome};
use crate::sign::{Digest, Manifest, Resource, SigningKey, sign_folder_as, verify_folder};
use crate::{Error, Result};

/// Where the recipe lies in a published folder.
pub const RECIPE: &str = "immunisation/recipe.yaml";

/// The recipe with file names instead of paths: where its publisher keeps things is nobody's business, and no published byte
/// depends on it. What is built in and models of the hub keep their names.
#[must_use]
pub fn published(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    let (suite, prompts) = (&mut recipe.suite, &mut recipe.data.prompts);
    let guard = suite.guard.iter_mut().map(|guard| &mut guard.model);
    let sources = suite.attacks.iter_mut().filter_map(|attack| attack.source.as_mut());
    recipe.model.iter_mut().chain(guard).chain(sources).filter(|model| is_folder(model)).for_each(to_file_name);
    Some(prompts).filter(|prompts| !prompts.starts_with("builtin:")).into_iter().for_each(to_file_name);
    let files = recipe.suite.attacks.iter_mut().filter_map(|attack| attack.file.as_mut());
    let tasks = recipe.utility.iter_mut().flat_map(|task| [task.file.as_mut(), task.data.as_mut()]).flatten();
    files.chain(tasks).for_each(|file| *file = file_name(file).into());
    recipe
}

/// Whether a reference to a model is a folder's path, be it there or not.
fn is_folder(model: &str) -> bool {
    !model.starts_with("builtin:") && (Path::new(model).is_dir() || RepoId::parse(model).is_err())
}

fn to_file_name(text: &mut String) {
    *text = file_name(Path::new(text));
}

/// The last part of a path; of `.` and the like, that of what it is.
fn file_name(path: &Path) -> String {
    let real = || path.canonicalize().ok()?.file_name().map(ToOwned::to_owned);
    let name = path.file_name().map(ToOwned::to_owned).or_else(real);
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The recipe as it is published: every default written out, without paths, the prompts pinned by their digest.
#[must_use]
pub fn recipe_text(recipe: &Recipe, data_digest: &str) -> String {
    format!("# Prompts: sha256 {data_digest}.\n{}", published(recipe).show())
}

/// Writes everything beside the weights into `staged` and moves it to `out`; `family` is the base's model type.
///
/// # Errors
/// [`Error::Input`] naming a file that is not as it was measured; [`Error::Io`]; those of signing. Nothing is published then.
pub fn publish(
    staged: Staged,
    out: &Path,
    approved: &Approved,
    recipe: &str,
    base: &Located,
    family: &str,
    key: Option<&SigningKey>,
) -> Result<()> {
    let report = approved.report();
    let readme = match fs::read(base.dir.join(CARD)) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(base.dir.join(CARD), error)),
    };
    let card = card::update(readme.as_deref(), report, recipe, base.hub_id());
    staged.write(CARD, card.as_bytes())?;
    staged.write("immunisation/report.json", report.to_json().as_bytes())?;
    staged.write("immunisation/report.html", html::render(report, Some(recipe)).as_bytes())?;
    staged.write(RECIPE, recipe.as_bytes())?;
    let recipe_digest = Digest::of_bytes(recipe.as_bytes()).to_string();
    staged.write(bom::BOM_FILE, bom::bom(report, family, &recipe_digest).as_bytes())?;
    let files = Manifest::of_folder_as(staged.path(), "model")?.resources().to_vec();
    check_measured(report, &files)?;
    let evidence = evidence(files, report, recipe, base)?;
    attestation::write(staged.path(), &evidence, key)?;
    if let Some(key) = key {
        let name = out.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(out, "expected a folder with a name in UTF-8"))?;
        let signed = sign_folder_as(staged.path(), name, key)?;
        attestation::check(staged.path(), &signed, &key.verifying_key())?;
        verify_folder(staged.path(), &key.verifying_key())?;
    }
    staged.publish(out)
}

/// Refuses a folder whose files, the card and the evidence aside, are not exactly those that were measured: measuring takes
/// hours, in which the folder lies where other programs reach it.
fn check_measured(report: &Report, files: &[Resource]) -> Result<()> {
    let beside = |name: &str| name == CARD || Path::new(name).starts_with(EVIDENCE);
    let mut here: BTreeMap<&str, String> = files.iter().map(|f| (f.name.as_str(), f.digest.to_string())).collect();
    let hint = "another program changed the folder since; the same command goes on from what is finished";
    for (name, expected) in &report.hardened.digests {
        let got = here.remove(name.as_str()).unwrap_or_else(|| "no such file".into());
        if got != *expected {
            return Err(Error::input(name, format!("expected sha256 {expected} as measured, got {got}")).hint(hint));
        }
    }
    match here.keys().find(|name| !beside(name)) {
        Some(name) => Err(Error::input(name, "expected a file that was measured, got a new one").hint(hint)),
        None => Ok(()),
    }
}

fn evidence(files: Vec<Resource>, report: &Report, recipe: &str, base: &Located) -> Result<Evidence> {
    let uri = |file: &str| {
        let (id, commit) = (base.hub_id()?, base.revision.as_deref()?);
        Some(format!("https://huggingface.co/{id}/resolve/{commit}/{file}"))
    };
    let material = |(name, digest): (&String, &String)| -> Result<Material> {
        let digest = digest.parse::<Digest>().map_err(|_| Error::input(name, "expected a SHA-256 digest"))?;
        Ok(Material { uri: uri(name), name: name.clone(), digest })
    };
    let findings = |severity: Severity| -> Vec<String> {
        let chosen = report.findings.iter().filter(|finding| finding.severity == severity);
        chosen.map(|finding| format!("{}: {}", finding.code, finding.message)).collect()
    };
    Ok(Evidence {
        version: report.tool.version.clone(),
        // Not the card: people edit it after the run, and sign again.
        files: files.into_iter().filter(|file| file.name != CARD).collect(),
        recipe: Resource { name: RECIPE.into(), digest: Digest::of_bytes(recipe.as_bytes()) },
        base: report.base.digests.iter().map(material).collect::<Result<_>>()?,
        outcome: match report.verdict {
            Verdict::Pass => Outcome::Passed,
            Verdict::Fail => Outcome::Failed,
            Verdict::Inconclusive => Outcome::Warned,
        },
        passed: findings(Severity::Info),
        warned: findings(Severity::Warning),
        failed: findings(Severity::Error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Thresholds;

    #[test]
    fn a_published_recipe_holds_names_and_no_paths() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(at("guard")).unwrap();
        let text = format!(
            "schema: 1\nname: x\nmodel: {}\ndata: {{prompts: {}}}\nstages: [{{kind: et}}]\n\
             suite:\n  guard: {{model: {}}}\n  attacks:\n\
             \x20 - {{kind: imported, file: {}}}\n\
             \x20 - {{kind: transferred, source: {}, of: noreft}}\n\
             utility: [{{task: imported, file: {}, data: {}}}]\n",
            at("Llama/"),
            at("my.jsonl"),
            at("guard"),
            at("v.gguf"),
            "~/donor",
            at("task.yaml"),
            at("rows.jsonl")
        );
        let recipe = Recipe::parse(&text, Path::new("x")).unwrap();
        let public = published(&recipe);
        let shown = recipe_text(&recipe, "00");
        assert!(!shown.contains(&folder.path().display().to_string()) && !shown.contains('~'), "{shown}");
        for part in [
            "model: Llama\n",
            "prompts: my.jsonl\n",
            "model: guard\n",
            "file: v.gguf\n",
            "source: donor\n",
            "file: task.yaml\n",
            "data: rows.jsonl\n",
        ] {
            assert!(shown.contains(part), "{part} not in {shown}");
        }
        assert_eq!(Recipe::parse(&shown, Path::new("x")).unwrap(), public, "the text is the recipe's");
        assert_eq!(published(&public), public);
        assert_ne!(recipe.digest(), public.digest(), "a run resumes by the paths as they are");
    }

    #[test]
    fn only_what_was_measured_is_published() {
        type Spoil = fn(&Staged) -> Result<()>;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reports/smollm2-one-block.json");
        let mut report = Report::from_json(&fs::read_to_string(path).unwrap(), "report").unwrap();
        let measured = [("config.json", "{}"), ("model.safetensors", "weights")];
        let digest = |(name, text): (&str, &str)| (name.to_owned(), Digest::of_bytes(text.as_bytes()).to_string());
        report.hardened.digests = measured.map(digest).into();
        let key = SigningKey::generate().unwrap();
        let cases: [(Spoil, &str); 4] = [
            (|staged| staged.write(CARD, b"an older card"), ""),
            (|staged| staged.write("model.safetensors", b"others"), "model.safetensors: expected sha256 "),
            (|staged| staged.write("tokenizer.json", b"{}"), "tokenizer.json: expected a file that was measured"),
            (
                |staged| fs::remove_file(staged.path().join("config.json")).map_err(|e| Error::io("config.json", e)),
                "as measured, got no such file",
            ),
        ];
        for (spoil, problem) in cases {
            for key in [Some(&key), None] {
                let root = tempfile::tempdir().unwrap();
                let (base, out) = (root.path().join("base"), root.path().join("out"));
                fs::create_dir(&base).unwrap();
                let staged = Staged::beside(&out).unwrap();
                measured.iter().for_each(|(name, text)| staged.write(name, text.as_bytes()).unwrap());
                spoil(&staged).unwrap();
                let approved = Approved::allow_fail(&report, &Thresholds::default());
                let base = Located::staged(&base, &base);
                match publish(staged, &out, &approved, "schema: 1\n", &base, "llama", key) {
                    Ok(()) => assert!(problem.is_empty() && out.join("model.safetensors").is_file(), "{problem}"),
                    Err(error) => {
                        assert!(!problem.is_empty() && error.to_string().contains(problem), "{problem:?}: {error}");
                        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only the base is there");
                    }
                }
            }
        }
    }

    #[test]
    fn names_that_mean_the_same_everywhere_are_published_as_they_are() {
        for model in ["builtin:tiny-chat", "org/name", "org/name@refs/pr/1", "name"] {
            let overrides = [format!("model={model}"), "data.prompts=builtin:tiny-chat".into()];
            let recipe = Recipe::embedded("demo").unwrap().with_overrides(&overrides).unwrap();
            assert_eq!(published(&recipe), recipe, "{model}");
        }
        let here = file_name(Path::new("."));
        assert!(!here.is_empty() && here != "." && !here.contains('/'), "{here}");
    }
}
