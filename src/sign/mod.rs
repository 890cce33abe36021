//! Signs a model folder and verifies one: OpenSSF Model Signing v1.0, key and certificate methods, interoperable with the
//! reference implementation (`model-signing` on PyPI) in both directions.
//!
//! Owned here: manifests, envelopes, bundles, keys, attestations. Not owned: whether a model deserves a signature (the
//! pipeline decides that, and signs last) and what its files mean. Only these methods and whole-file SHA-256 are
//! spoken; keyless signing needs the network, and the reference verifier cannot check anything finer than files.
//!
//! Whatever fails while a signature is verified is [`Error::Signature`], exit code 4, named after the differing file, or
//! `model.sig` when the signature itself is at fault. A folder without a signature fails the same way: removing the
//! signature must not be the way around it.

pub mod attestation;
pub mod bundle;
pub mod certificate;
pub mod digest;
pub mod dsse;
pub mod folder;
pub mod key;
pub mod manifest;
mod pem;

use std::fs;
use std::io;
use std::path::Path;

pub use bundle::Bundle;
pub use certificate::{Chain, Signer, Trust};
pub use digest::Digest;
pub use key::{Curve, SigningKey, VerifyingKey};
pub use manifest::{Manifest, Resource, SIGNATURE_FILE};

use self::folder::Links;
use crate::checkpoint::staging::write_atomically;
use crate::error::{Error, Result};

/// A signature file larger than this is something else: 64 MiB, some 300,000 files.
const MAX_SIGNATURE_FILE: u64 = 64 << 20;

/// Signs every file in `dir` under the folder's name and writes `dir/model.sig`; an older signature is replaced.
///
/// *Errors* as [`Manifest::of_folder`], and [`Error::Io`] when the signature cannot be written; then nothing changed.
///
/// *Example*
/// ```
/// use immunise::sign::{SigningKey, sign_folder, verify_folder};
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path();
/// std::fs::write(dir.join("config.json"), "{}").unwrap();
/// let key = SigningKey::generate()?;
/// let manifest = sign_folder(dir, &key)?;
/// assert_eq!(verify_folder(dir, &key.verifying_key())?, manifest);
///
/// std::fs::write(dir.join("config.json"), "{ }").unwrap();
/// assert_eq!(verify_folder(dir, &key.verifying_key()).unwrap_err().exit_code(), 4);
/// # Ok::<(), immunise::Error>(())
/// ```
pub fn sign_folder(dir: &Path, key: &SigningKey) -> Result<Manifest> {
    sign(dir, Manifest::of_folder(dir)?, |statement| Bundle::sign(statement, key))
}

/// As [`sign_folder`], with certificates of the key beside the signature.
///
/// *Errors* as [`sign_folder`].
pub fn sign_folder_certified(dir: &Path, key: &SigningKey, chain: &Chain) -> Result<Manifest> {
    sign(dir, Manifest::of_folder(dir)?, |statement| Bundle::sign_certified(statement, key, chain))
}

/// Signs every file in `dir` under `name`: for a folder that is still in its temporary place, whose own name would
/// make every signature different.
///
/// *Errors* as [`sign_folder`].
pub fn sign_folder_as(dir: &Path, name: &str, key: &SigningKey) -> Result<Manifest> {
    sign(dir, Manifest::of_folder_as(dir, name)?, |statement| Bundle::sign(statement, key))
}

fn sign(dir: &Path, manifest: Manifest, seal: impl FnOnce(Vec<u8>) -> Bundle) -> Result<Manifest> {
    let bundle = seal(manifest.to_statement());
    write_atomically(&dir.join(SIGNATURE_FILE), bundle.to_json().as_bytes())?;
    Ok(manifest)
}

/// Verifies `dir/model.sig` with `key`, then that the files in `dir` are exactly the signed ones; `dir` may be a snapshot of the
/// hub's cache, which is made of links.
///
/// *Errors* [`Error::Signature`] for a missing or invalid signature, or as [`Manifest::check_folder`]; [`Error::Io`]
/// when something cannot be read.
pub fn verify_folder(dir: &Path, key: &VerifyingKey) -> Result<Manifest> {
    let bundle = Bundle::parse(&read_signature(dir)?)?;
    let manifest = Manifest::from_statement(bundle.verify(key)?)?;
    manifest.check_folder(dir)?;
    Ok(manifest)
}

/// As [`verify_folder`], with the key of a certificate that `trust` accepts; who it names is returned too.
///
/// *Errors* as [`verify_folder`], and [`Error::Signature`] when no authority vouches for the certificate or its name is none
/// of those that are asked for.
pub fn verify_folder_certified(dir: &Path, trust: &Trust) -> Result<(Manifest, Signer)> {
    let bundle = Bundle::parse(&read_signature(dir)?)?;
    let (statement, signer) = bundle.verify_certified(trust)?;
    let manifest = Manifest::from_statement(statement)?;
    manifest.check_folder(dir)?;
    Ok((manifest, signer))
}

fn read_signature(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(SIGNATURE_FILE);
    let failed = |problem: String| Error::signature(SIGNATURE_FILE, problem);
    fs::read_dir(dir).map_err(|source| Error::io(dir, source))?;
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed(format!("expected a signature in {}, got none", dir.display())));
        }
        Err(source) => return Err(Error::io(path, source)),
    };
    let metadata = if metadata.is_symlink() {
        Links::of_cached(dir).check(&path).map_err(|problem| failed(problem.into()))?;
        fs::metadata(&path).map_err(|source| Error::io(&path, source))?
    } else {
        metadata
    };
    if !metadata.is_file() {
        return Err(failed("expected a regular file, got a folder or a special file".into()));
    }
    if metadata.len() > MAX_SIGNATURE_FILE {
        return Err(failed(format!("expected at most {MAX_SIGNATURE_FILE} bytes, got {}", metadata.len())));
    }
    fs::read(&path).map_err(|source| Error::io(path, source))
}
