//! `immunise sign`: signs a model folder.

use std::path::PathBuf;

use serde_json::json;

use super::arguments::Key;
use super::render::Screen;
use crate::sign::{SIGNATURE_FILE, sign_folder};
use crate::{Error, Result};

/// Sign a model folder as OpenSSF Model Signing v1.0, and write `model.sig` into it.
///
/// An older signature is replaced. What is signed is not measured: `immunise verify --policy` does that.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's folder.
    dir: PathBuf,
    #[command(flatten)]
    key: Key,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let key = args.key.read()?;
    let key = key.ok_or_else(|| {
        Error::usage("expected a key to sign with")
            .hint("`immunise keygen --out KEY.pem` makes one, `--key KEY.pem` gives it")
    })?;
    let manifest = sign_folder(&args.dir, &key)?;
    let (files, root, hint) = (manifest.resources().len(), manifest.root().to_string(), key.verifying_key().hint());
    if screen.json() {
        screen.value(&json!({"files": files, "root": root, "key": hint}));
    } else {
        let path = args.dir.join(SIGNATURE_FILE);
        screen.out(&format!("signed {files} files: {} (root {root}, key {hint})\n", path.display()));
    }
    Ok(0)
}
