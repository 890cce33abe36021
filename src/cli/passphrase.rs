//! Where the passphrase of a private key comes from: a variable, a file, or the person at the terminal.
//!
//! Never the command line, which every other process can read.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use pkcs8::der::zeroize::Zeroizing;

use crate::checkpoint::files;
use crate::sign::SigningKey;
use crate::{Error, Result};

/// A longer passphrase is another kind of file: 4 KiB.
const LONGEST: u64 = 4 << 10;

/// The passphrase of an encrypted key.
#[derive(Debug, Clone, Args)]
pub struct Passphrase {
    /// Variable that holds the passphrase of an encrypted key.
    #[arg(long, value_name = "VARIABLE")]
    passphrase_env: Option<String>,
    /// File whose first line is the passphrase of an encrypted key.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_env")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    /// What a variable or a file gives, if either is named.
    pub fn given(&self) -> Result<Option<Zeroizing<String>>> {
        match (&self.passphrase_env, &self.passphrase_file) {
            (Some(name), _) => {
                let value = env::var(name)
                    .map_err(|_| Error::usage(format!("expected a passphrase in the variable `{name}`, got none")))?;
                if value.is_empty() {
                    let problem = format!("expected a passphrase in the variable `{name}`, got an empty one");
                    return Err(Error::usage(problem));
                }
                Ok(Some(Zeroizing::new(value)))
            }
            (None, Some(path)) => from_file(path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The key that signs.
#[derive(Debug, Clone, Args)]
pub struct Key {
    /// Private EC key (P-256, P-384 or P-521; PKCS#8, encrypted PKCS#8 or SEC1 PEM) that signs the result. The passphrase of
    /// an encrypted one comes from `--passphrase-env`, `--passphrase-file` or, on a terminal, a prompt.
    #[arg(long, value_name = "KEY.pem")]
    pub key: Option<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
}

impl Key {
    /// Reads the key, if one is given.
    pub fn read(&self) -> Result<Option<SigningKey>> {
        let given = self.passphrase.given()?;
        let Some(path) = &self.key else {
            return match given {
                Some(_) => Err(Error::usage("got a passphrase and no key").hint("give the key with `--key KEY.pem`")),
                None => Ok(None),
            };
        };
        let passphrase = match given {
            None if SigningKey::is_encrypted(path)? && at_terminal() => {
                Some(ask(&format!("passphrase of {}: ", path.display()))?)
            }
            given => given,
        };
        SigningKey::read(path, passphrase.as_deref().map(String::as_str)).map(Some)
    }

    /// Refuses a key or a passphrase among the files of `dir`, which are about to be published.
    pub fn refuse_within(&self, dir: &Path) -> Result<()> {
        // Links of a model in the shared cache lead out of its folder, and are followed by whoever copies it.
        let listed: HashSet<PathBuf> =
            files::list(dir)?.iter().filter_map(|file| dir.join(file).canonicalize().ok()).collect();
        for path in [&self.key, &self.passphrase.passphrase_file].into_iter().flatten() {
            // What has no place, such as a pipe, is in no folder.
            if path.canonicalize().is_ok_and(|place| listed.contains(&place)) {
                let problem =
                    "expected a place outside of the model's folder for a key and its passphrase, got one inside";
                return Err(Error::file(path, problem)
                    .hint("what lies in that folder is published with the model; move it away"));
            }
        }
        Ok(())
    }
}

/// Whether somebody is there to answer.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a passphrase without showing it.
pub fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|error| Error::io("terminal", error))
}

fn from_file(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |error| Error::io(path, error);
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path).map_err(failed)?.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || text.len() as u64 > LONGEST {
        let got = if line.is_empty() { "an empty one".to_owned() } else { format!("more than {LONGEST} bytes") };
        return Err(Error::file(path, format!("expected a passphrase on the first line, got {got}")));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_key_nor_its_passphrase_may_lie_in_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let (model, beside) = (dir.path().join("model"), dir.path().join("model.txt"));
        fs::create_dir_all(model.join("below")).unwrap();
        let inside = [model.join("below/secret"), model.join("below/../secret")];
        for path in inside.iter().chain([&beside]) {
            fs::write(path, "correct horse").unwrap();
        }
        let refused = |key: &Path, passphrase: &Path| {
            let passphrase = Passphrase { passphrase_env: None, passphrase_file: Some(passphrase.to_owned()) };
            Key { key: Some(key.to_owned()), passphrase }.refuse_within(&model).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&beside, &beside), Ok(()));
        for path in &inside {
            for error in [refused(path, &beside), refused(&beside, path)] {
                let error = error.unwrap_err();
                assert!(error.contains(&path.display().to_string()) && error.contains("outside"), "{error}");
            }
        }
    }

    #[test]
    fn a_file_gives_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        for text in ["correct horse", "correct horse\n", "correct horse\r\nanother line\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(from_file(&path).unwrap().as_str(), "correct horse");
        }
        for text in [String::new(), "\nsecond".into(), "x".repeat(5000)] {
            fs::write(&path, text).unwrap();
            assert_eq!(from_file(&path).unwrap_err().exit_code(), 3);
        }
    }
}
