//! The evidence beside the weights: how they were made and what was measured, as two in-toto statements.
//!
//! The schema of the signature's own statement forbids extra keys, so evidence gets a file of its own, which the
//! signature then covers like any other. One JSON object per line: SLSA provenance v1, in-toto test-result v0.1; with a
//! key, each is wrapped in an envelope. Both leave out their optional times, because a published folder has to come out
//! the same, byte for byte, whenever it is made. What was measured is the caller's to say; nothing is judged here.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::digest::Digest;
use super::dsse::Envelope;
use super::key::SigningKey;
use super::manifest::Resource;
use super::write_atomically;
use crate::error::{Error, Result};

/// Where the evidence lies in a model folder.
pub const ATTESTATION_FILE: &str = "immunisation/attestation.intoto.jsonl";

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
