//! `immunise keygen`: makes a key pair.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::attack::outside_of_models;
use super::passphrase::{self, Passphrase};
use super::render::Screen;
use crate::sign::{Curve, SigningKey};
use crate::{Error, Result};

/// Make a key pair: `KEY.pem` (PKCS#8, readable by you only) and `KEY.pub.pem`.
///
/// No key is ever overwritten. Keep the private key out of the model's folder; publish the public one where your readers
/// will look for it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  immunise keygen --out publisher.pem
  immunise keygen --out publisher.pem --encrypt
  immunise keygen --out publisher.pem --curve p384 --passphrase-file secret.txt")]
pub struct Args {
    /// Where to write the private key.
    #[arg(long, value_name = "KEY.pem")]
    out: PathBuf,
    /// The curve.
    #[arg(long, value_enum, default_value = "p256")]
    curve: CurveName,
    /// Encrypt the private key with a passphrase that is asked for; so do `--passphrase-env` and `--passphrase-file`.
    #[arg(long)]
    encrypt: bool,
    #[command(flatten)]
    passphrase: Passphrase,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CurveName {
    /// NIST P-256, with SHA-256.
    P256,
    /// NIST P-384, with SHA-384.
    P384,
    /// NIST P-521, with SHA-512.
    P521,
}

impl From<CurveName> for Curve {
    fn from(name: CurveName) -> Self {
        match name {
            CurveName::P256 => Self::P256,
            CurveName::P384 => Self::P384,
            CurveName::P521 => Self::P521,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, screen: &Screen) -> Result<u8> {
    outside_of_models(&args.out)
        .map_err(|error| error.hint("what lies in that folder is published with the model; keep the key elsewhere"))?;
    let mut passphrase = args.passphrase.given()?;
    if args.encrypt && passphrase.is_none() {
        if !passphrase::at_terminal() {
            return Err(Error::usage("there is no terminal to ask for a passphrase")
                .hint("give it with `--passphrase-env VARIABLE` or `--passphrase-file FILE`"));
        }
        let (first, again) = (passphrase::ask("new passphrase: ")?, passphrase::ask("again: ")?);
        if first != again || first.is_empty() {
            return Err(Error::usage("expected the same passphrase twice"));
        }
        passphrase = Some(first);
    }
    let key = SigningKey::generate_on(args.curve.into())?;
    let public = key.write_pair(&args.out, passphrase.as_deref().map(String::as_str))?;
    let hint = key.verifying_key().hint();
    if screen.json() {
        screen.value(&json!({"private": args.out, "public": public, "key": hint}));
    } else {
        screen.out(&format!("{}\n{} (sha256 {hint})\n", args.out.display(), public.display()));
    }
    Ok(0)
}
