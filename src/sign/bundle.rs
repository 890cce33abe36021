//! The signature file `model.sig`: a Sigstore bundle of the key method, with exactly the fields that it needs.
//!
//! A bundle says which public key to use and holds one envelope. It knows what an envelope is, not what the statement
//! inside means; [`super::manifest`] does. Anything beyond the known fields is refused, so that two verifiers cannot
//! read two different things from one file.

use serde::{Deserialize, Serialize};

use super::dsse::Envelope;
use super::key::{SigningKey, VerifyingKey};
use super::manifest::SIGNATURE_FILE;
use crate::error::{Error, Result};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A signed statement and the fingerprint of the key that verifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    hint: String,
    envelope: Envelope,
}

impl Bundle {
    /// Signs a statement.
    #[must_use]
    pub fn sign(statement: Vec<u8>, key: &SigningKey) -> Self {
        Self { hint: key.verifying_key().hint(), envelope: Envelope::seal(statement, key) }
    }

    /// The statement's bytes, verbatim, once the signature over them has been verified.
    ///
    /// *Errors* [`Error::Signature`] on `model.sig` when the bundle was made with another key or the signature does
    /// not hold.
    pub fn verify(&self, key: &VerifyingKey) -> Result<&[u8]> {
        let hint = key.hint();
        if self.hint != hint {
            let problem = format!("expected a signature by key {hint}, got one by key {}", self.hint);
            return Err(Error::signature(SIGNATURE_FILE, problem));
        }
        let edited = "the signature does not hold: payload or signature was edited";
        self.envelope.open(key).ok_or_else(|| Error::signature(SIGNATURE_FILE, edited))
    }

    /// Reads the content of a `model.sig`. Nothing is verified yet.
    ///
    /// *Errors* [`Error::Signature`] on `model.sig` for an empty file, another media type, another method than `key`,
    /// or any field too many, too few or repeated.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let invalid = |problem: String| Error::signature(SIGNATURE_FILE, problem);
        if content.trim_ascii().is_empty() {
            return Err(invalid("expected a signature bundle, got an empty file".into()));
        }
        if let Ok(Peek { media_type: Some(got) }) = serde_json::from_slice(content)
            && got != MEDIA_TYPE
        {
            return Err(invalid(format!("expected mediaType `{MEDIA_TYPE}`, got `{got}`")));
        }
        let wire: Wire = serde_json::from_slice(content)
            .map_err(|error| invalid(format!("expected a signature bundle of the key method: {error}")))?;
        let entries = wire.verification_material.tlog_entries.len();
        if entries != 0 {
            return Err(invalid(format!("expected no tlogEntries, got {entries}")));
        }
        Ok(Self { hint: wire.verification_material.public_key.hint, envelope: wire.dsse_envelope })
    }

    /// The content of the `model.sig`; equal bundles give equal text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let wire = Wire {
            media_type: MEDIA_TYPE.into(),
            verification_material: VerificationMaterial {
                public_key: PublicKey { hint: self.hint.clone() },
                tlog_entries: Vec::new(),
            },
            dsse_envelope: self.envelope.clone(),
        };
        let mut text = serde_json::to_string(&wire).expect("strings and lists always serialise");
        text.push('\n');
        text
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wire {
    media_type: String,
    verification_material: VerificationMaterial,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VerificationMaterial {
    public_key: PublicKey,
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKey {
    hint: String,
}

/// The field that says which kind of bundle this is, whatever surrounds it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Peek {
    media_type: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_undoes_writing() {
        let bundle = Bundle::sign(b"{}".to_vec(), &SigningKey::generate().unwrap());
        assert_eq!(Bundle::parse(bundle.to_json().as_bytes()).unwrap(), bundle);
    }

    #[test]
    fn a_bundle_of_another_shape_is_refused_with_exit_code_4() {
        let text = Bundle::sign(b"{}".to_vec(), &SigningKey::generate().unwrap()).to_json();
        let cases = [
            ("empty file", String::new()),
            ("empty file", "\n".into()),
            ("key method", "{}".into()),
            ("key method", text[..text.len() / 2].into()),
            ("mediaType", text.replace("v0.3", "v0.2")),
            ("`certificate`", text.replace("\"publicKey\"", "\"certificate\"")),
            ("tlogEntries", text.replace("\"tlogEntries\":[]", "\"tlogEntries\":[{}]")),
            ("`extra`", text.replacen('{', "{\"extra\":1,", 1)),
            ("duplicate field", text.replacen('{', "{\"mediaType\":\"\",", 1)),
        ];
        for (expected, content) in cases {
            let error = Bundle::parse(content.as_bytes()).expect_err(expected);
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().starts_with("model.sig: "), "{error}");
            assert!(error.to_string().contains(expected), "expected {expected}, got {error}");
        }
    }
}
