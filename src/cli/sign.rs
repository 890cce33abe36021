//! `immunise sign`: signs a model folder.

use std::path::PathBuf;

use serde_json::json;

use super::passphrase::Key;
use super::render::Screen;
use crate::checkpoint::refuse_private_keys;
use crate::sign::{Chain, SIGNATURE_FILE, sign_folder, sign_folder_certified};
use crate::{Error, Result};

/// Sign a model folder as OpenSSF Model Signing v1.0, and write `model.sig` into it.
///
/// An older signature is replaced, so this is also how to sign again after an edit of the card. What is signed is not
/// measured: `immunise verify --policy` does that.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  immunise sign ./Llama-immunised --key publisher.pem
  immunise sign ./Llama-immunised --key release.pem --passphrase-env PASS --certificate chain.pem")]
pub struct Args {
    /// The model's folder.
    dir: PathBuf,
    #[command(flatten)]
    key: Key,
    /// Certificates of the key in PEM, the signing one first, then those between it and a root: who verifies names the roots
    /// that they trust instead of a key.
    #[arg(long, value_name = "CHAIN.pem", requires = "key")]
    certificate: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let key = args.key.read()?;
    let key = key.ok_or_else(|| {
        Error::usage("expected a key to sign with")
            .hint("`immunise keygen --out KEY.pem` makes one, `--key KEY.pem` gives it")
    })?;
    // What is signed is about to be published.
    refuse_private_keys(&args.dir)?;
    args.key.refuse_within(&args.dir)?;
    let manifest = match &args.certificate {
        None => sign_folder(&args.dir, &key)?,
        Some(path) => sign_folder_certified(&args.dir, &key, &Chain::read(path, &key.verifying_key())?)?,
    };
    let (files, root, hint) = (manifest.resources().len(), manifest.root().to_string(), key.verifying_key().hint());
    if screen.json() {
        screen.value(&json!({"files": files, "root": root, "key": hint}));
    } else {
        let path = args.dir.join(SIGNATURE_FILE);
        screen.out(&format!("signed {files} files: {} (root {root}, key {hint})\n", path.display()));
    }
    Ok(0)
}
