//! The evidence beside the weights: how they were made and what was measured, as two in-toto statements.
//!
//! The schema of the signature's own statement forbids extra keys, so evidence gets a file of its own, which the
//! signature then covers like any other. One JSON object per line: SLSA provenance v1, in-toto test-result v0.1; with a
//! key, each is wrapped in an envelope. Both leave out their optional times, because a published folder has to come out
//! the same, byte for byte, whenever it is made. What was measured is the caller's to say; nothing is judged here.
//!
//! Evidence is bound to its files by their digests, and [`check`] holds a signed folder against it. The model card is
//! signed and not attested: people edit it after the run, and sign again without measuring again.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::digest::Digest;
use super::dsse::Envelope;
use super::key::{SigningKey, VerifyingKey};
use super::manifest::{Manifest, Resource};
use super::write_atomically;
use crate::error::{Error, Result};

/// Where the evidence lies in a model folder.
pub const ATTESTATION_FILE: &str = "immunisation/attestation.intoto.jsonl";

/// What evidence can't be about: itself, and the model card.
const UNATTESTED: [&str; 2] = [ATTESTATION_FILE, "README.md"];

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PROVENANCE_TYPE: &str = "https://slsa.dev/provenance/v1";
const TEST_RESULT_TYPE: &str = "https://in-toto.io/attestation/test-result/v0.1";
/// What the external parameters mean; the version changes when their meaning does.
const BUILD_TYPE: &str = "pkg:cargo/immunise#harden/v1";

/// Everything that the two statements say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Version of `immunise` that made the model.
    pub version: String,
    /// The files that the evidence is about.
    pub files: Vec<Resource>,
    /// Name of the recipe, such as `immunisation/recipe.yaml`, and its digest.
    pub recipe: Resource,
    /// The files of the model that was hardened.
    pub base: Vec<Material>,
    /// The verdict.
    pub outcome: Outcome,
    /// Names of the tests (attacks, utility tasks) within their bounds.
    pub passed: Vec<String>,
    /// Names of the tests that could not be decided, or have no bound.
    pub warned: Vec<String>,
    /// Names of the tests beyond their bounds.
    pub failed: Vec<String>,
}

/// One file that went in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// Where it came from, such as `https://huggingface.co/o/m/resolve/<commit>/model.safetensors`, if it is public.
    pub uri: Option<String>,
    /// Its name in the base's folder.
    pub name: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// The verdict in in-toto's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    /// Every bound is held.
    Passed,
    /// Nothing failed, but not everything could be decided.
    Warned,
    /// A bound is exceeded.
    Failed,
}

impl Evidence {
    /// The content of the file; equal evidence and key give equal text.
    ///
    /// *Errors* [`Error::Input`] when there are no files to speak about.
    pub fn to_jsonl(&self, key: Option<&SigningKey>) -> Result<String> {
        if self.files.is_empty() {
            return Err(Error::input(ATTESTATION_FILE, "expected at least one file to attest, got none"));
        }
        let lines = [self.provenance(), self.test_result()].map(|statement| match key {
            None => statement.to_string(),
            Some(key) => {
                let envelope = Envelope::seal(statement.to_string().into_bytes(), key);
                serde_json::to_string(&envelope).expect("strings and lists always serialise")
            }
        });
        Ok(lines.map(|line| line + "\n").concat())
    }

    /// *Source* slsa.dev/spec/v1.0/provenance.
    fn provenance(&self) -> Value {
        let base: Vec<Value> = self
            .base
            .iter()
            .map(|material| {
                let mut descriptor = descriptor(&material.name, material.digest);
                if let Some(uri) = &material.uri {
                    descriptor["uri"] = json!(uri);
                }
                descriptor
            })
            .collect();
        let predicate = json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": { "recipe": descriptor(&self.recipe.name, self.recipe.digest) },
                "resolvedDependencies": base,
            },
            "runDetails": {
                "builder": {
                    "id": format!("pkg:cargo/immunise@{}", self.version),
                    "version": { "immunise": self.version },
                },
            },
        });
        self.statement(PROVENANCE_TYPE, &predicate)
    }

    /// *Source* in-toto/attestation, spec/predicates/test-result.md.
    fn test_result(&self) -> Value {
        let predicate = json!({
            "result": self.outcome,
            "configuration": [descriptor(&self.recipe.name, self.recipe.digest)],
            "passedTests": self.passed,
            "warnedTests": self.warned,
            "failedTests": self.failed,
        });
        self.statement(TEST_RESULT_TYPE, &predicate)
    }

    fn statement(&self, predicate_type: &str, predicate: &Value) -> Value {
        let subject: Vec<Value> = self.files.iter().map(|file| descriptor(&file.name, file.digest)).collect();
        json!({
            "_type": STATEMENT_TYPE,
            "subject": subject,
            "predicateType": predicate_type,
            "predicate": predicate,
        })
    }
}

/// Writes the evidence into the model folder `dir`, to be signed with it, and returns the file's path.
///
/// *Errors* [`Error::Input`] when there are no files to speak about; [`Error::Io`] when the file cannot be written.
pub fn write(dir: &Path, evidence: &Evidence, key: Option<&SigningKey>) -> Result<PathBuf> {
    let path = dir.join(ATTESTATION_FILE);
    write_atomically(&path, evidence.to_jsonl(key)?.as_bytes())?;
    Ok(path)
}

/// What the evidence of a signed folder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// Statements about the files.
    pub statements: usize,
    /// Result of the measurement, where a statement has one.
    pub result: Option<Outcome>,
    /// Whether the key that was asked about sealed every statement; absent when they are not sealed.
    pub sealed: Option<bool>,
}

/// Holds the evidence in `dir` against its signed files: every file that a statement is about is there with the digest
/// it was measured with, and every signed file is one of them, the card and the evidence aside. `None` when there is no
/// evidence. Weights in any format, an adapter, a template, tokens or code beside what was measured would be read by one loader
/// or another, so that no kind of file is taken for harmless.
///
/// The signature over `manifest` covers the evidence itself, so a seal adds who measured to who published; the two keys
/// may differ.
///
/// *Errors* [`Error::Signature`] naming the file that the evidence is not about, or the evidence when it cannot be read;
/// [`Error::Io`].
pub fn check(dir: &Path, manifest: &Manifest, key: &VerifyingKey) -> Result<Option<Attested>> {
    let signed: BTreeMap<&str, Digest> = manifest.resources().iter().map(|r| (r.name.as_str(), r.digest)).collect();
    if !signed.contains_key(ATTESTATION_FILE) {
        return Ok(None);
    }
    let path = dir.join(ATTESTATION_FILE);
    let text = fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
    let mut attested = Attested { statements: 0, result: None, sealed: None };
    for line in text.lines() {
        let (statement, sealed) = open(line, key)?;
        for Subject { name, digest } in &statement.subject {
            match signed.get(name.as_str()) {
                None => return Err(Error::signature(name, "attested, but not in the folder")),
                Some(here) if *here != digest.sha256 => {
                    let problem =
                        format!("expected the attested sha256 {}, got {here}: it was not measured", digest.sha256);
                    return Err(Error::signature(name, problem));
                }
                Some(_) => {}
            }
        }
        let about: HashSet<&str> = statement.subject.iter().map(|subject| subject.name.as_str()).collect();
        if let Some(name) = signed.keys().find(|name| !about.contains(*name) && !UNATTESTED.contains(name)) {
            return Err(Error::signature(name, format!("expected evidence about it in {ATTESTATION_FILE}, got none")));
        }
        attested.statements += 1;
        attested.result = statement.predicate.result.or(attested.result);
        attested.sealed = sealed.map(|sealed| sealed && attested.sealed.unwrap_or(true)).or(attested.sealed);
    }
    Ok(Some(attested))
}

/// The statement of a line, and whether `key` sealed it where it is sealed.
fn open(line: &str, key: &VerifyingKey) -> Result<(Statement, Option<bool>)> {
    let unreadable = |error: serde_json::Error| Error::signature(ATTESTATION_FILE, format!("not a statement: {error}"));
    let value: Value = serde_json::from_str(line).map_err(unreadable)?;
    if value.get("payload").is_none() {
        return Ok((serde_json::from_value(value).map_err(unreadable)?, None));
    }
    let envelope: Envelope = serde_json::from_value(value).map_err(unreadable)?;
    let sealed = envelope.open(key).is_some();
    Ok((serde_json::from_slice(envelope.unverified()).map_err(unreadable)?, Some(sealed)))
}

/// What binds a statement to files; the rest of it is for readers.
#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: Digest,
}

#[derive(Deserialize)]
struct Predicate {
    result: Option<Outcome>,
}

fn descriptor(name: &str, digest: Digest) -> Value {
    json!({ "name": name, "digest": { "sha256": digest } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        let digest = |text: &str| Digest::of_bytes(text.as_bytes());
        Evidence {
            version: "0.1.0".into(),
            files: vec![Resource { name: "model.safetensors".into(), digest: digest("hardened") }],
            recipe: Resource { name: "immunisation/recipe.yaml".into(), digest: digest("recipe") },
            base: vec![Material { uri: None, name: "model.safetensors".into(), digest: digest("base") }],
            outcome: Outcome::Passed,
            passed: vec!["ablation".into()],
            warned: vec![],
            failed: vec![],
        }
    }

    #[test]
    fn two_statements_speak_about_the_same_files() {
        let text = evidence().to_jsonl(None).unwrap();
        let [provenance, tests] = &text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()[..]
        else {
            panic!("expected two lines, got {text}")
        };
        assert_eq!(provenance["subject"], tests["subject"]);
        assert_eq!(provenance["subject"][0]["digest"]["sha256"], json!(Digest::of_bytes(b"hardened")));
        assert_eq!(provenance["predicateType"], PROVENANCE_TYPE);
        let build = &provenance["predicate"]["buildDefinition"];
        assert_eq!(build["resolvedDependencies"][0]["digest"]["sha256"], json!(Digest::of_bytes(b"base")));
        assert_eq!(tests["predicateType"], TEST_RESULT_TYPE);
        assert_eq!(tests["predicate"]["result"], "PASSED");
        assert_eq!(tests["predicate"]["passedTests"], json!(["ablation"]));
    }

    #[test]
    fn a_signed_line_opens_with_its_key_only_and_to_the_same_statement() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let (plain, signed) = (evidence().to_jsonl(None).unwrap(), evidence().to_jsonl(Some(&key)).unwrap());
        assert_eq!(signed.lines().count(), 2);
        for (plain, signed) in plain.lines().zip(signed.lines()) {
            let envelope: Envelope = serde_json::from_str(signed).unwrap();
            assert_eq!(envelope.open(&key.verifying_key()), Some(plain.as_bytes()));
            assert_eq!(envelope.open(&other.verifying_key()), None);
        }
    }

    #[test]
    fn the_same_evidence_gives_the_same_bytes() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(evidence().to_jsonl(Some(&key)).unwrap(), evidence().to_jsonl(Some(&key)).unwrap());
    }

    #[test]
    fn evidence_about_nothing_is_refused() {
        let error = Evidence { files: vec![], ..evidence() }.to_jsonl(None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
    }
}
