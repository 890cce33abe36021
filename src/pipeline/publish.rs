//! What is published beside the weights, and the order of it: card, report, recipe, evidence, signature, rename.
//!
//! The signature covers everything else, so it is last, and it is checked once more before the folder appears at its
//! place. Nothing that varies between runs of the same inputs is written here.

use std::fs;
use std::path::Path;

use super::model::{CARD, Located};
use crate::checkpoint::Staged;
use crate::recipe::Recipe;
use crate::report::{Approved, Report, Severity, Verdict, bom, card, html};
use crate::sign::attestation::{self, Evidence, Material, Outcome};
use crate::sign::{Digest, Manifest, Resource, SigningKey, sign_folder_as, verify_folder};
use crate::{Error, Result};

/// Where the recipe lies in a published folder.
pub const RECIPE: &str = "immunisation/recipe.yaml";

/// The recipe as it is published: every default written out, the prompts pinned by their digest.
#[must_use]
pub fn recipe_text(recipe: &Recipe, data_digest: &str) -> String {
    format!("# Prompts: sha256 {data_digest}.\n{}", recipe.show())
}

/// Writes everything beside the weights into `staged` and moves it to `out`; `family` is the base's model type.
///
/// # Errors
/// [`Error::Io`]; those of signing.
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
    let evidence = evidence(&staged, report, recipe, base)?;
    attestation::write(staged.path(), &evidence, key)?;
    if let Some(key) = key {
        let name = out.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(out, "expected a folder with a name in UTF-8"))?;
        sign_folder_as(staged.path(), name, key)?;
        verify_folder(staged.path(), &key.verifying_key())?;
    }
    staged.publish(out)
}

fn evidence(staged: &Staged, report: &Report, recipe: &str, base: &Located) -> Result<Evidence> {
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
    // Not the card: people edit it after the run, and sign again.
    let files = Manifest::of_folder_as(staged.path(), "model")?.resources().to_vec();
    Ok(Evidence {
        version: report.tool.version.clone(),
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
