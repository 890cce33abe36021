//! `immunise keygen`: makes a key pair.

use std::path::PathBuf;

use serde_json::json;

use super::render::Screen;
use crate::Result;
use crate::sign::SigningKey;

/// Make a P-256 key pair: `KEY.pem` (PKCS#8, readable by you only) and `KEY.pub.pem`.
///
/// No key is ever overwritten. Keep the private key out of the model's folder; publish the public one where your readers
/// will look for it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write the private key.
    #[arg(long, value_name = "KEY.pem")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    let key = SigningKey::generate()?;
    let public = key.write_pair(&args.out)?;
    let hint = key.verifying_key().hint();
    if screen.json() {
        screen.value(&json!({"private": args.out, "public": public, "key": hint}));
    } else {
        screen.out(&format!("{}\n{} (sha256 {hint})\n", args.out.display(), public.display()));
    }
    Ok(0)
}
