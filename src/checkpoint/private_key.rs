//! Refuses private keys among a model's files: whatever lies in its folder is copied, signed and published.
//!
//! Looked for is what keys are handed around as, a PEM block, alone or inside another text, and only in files that are
//! short enough to be one: weights are not read. A bare DER key is not told from other bytes.

use std::fs;
use std::path::Path;

use super::files;
use crate::{Error, Result};

/// Longest file that is looked into, bytes.
const LONGEST: u64 = 1 << 20;

/// Refuses a folder with a private key in one of the files that [`files::list`] gives.
///
/// *Errors*: [`Error::Input`] naming the file; [`Error::Io`]; as [`files::list`].
pub fn refuse_private_keys(dir: &Path) -> Result<()> {
    for file in files::list(dir)? {
        let path = dir.join(file);
        let length = fs::metadata(&path).map_err(|error| Error::io(&path, error))?.len();
        if length <= LONGEST && holds_private_key(&files::read(&path, LONGEST)?) {
            return Err(Error::file(&path, "expected no private key in the model's folder, got a PEM block of one")
                .hint("what lies in that folder is published with the model; move the key away"));
        }
    }
    Ok(())
}

fn holds_private_key(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let mut blocks = text.split("-----BEGIN ").skip(1).filter_map(|rest| Some(rest.split_once("-----")?.0));
    blocks.any(|label| label.contains("PRIVATE KEY") && !label.contains('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_of_every_kind_are_found_and_nothing_else_is() {
        for label in ["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            let block = format!("-----BEGIN {label}-----\nAQI=\n-----END {label}-----\n");
            let behind = format!("-----BEGIN EC PARAMETERS-----\nAA==\n-----END EC PARAMETERS-----\n{block}");
            let quoted = serde_json::json!({ "private_key": block }).to_string();
            for text in [block.replace('\n', "\r\n"), behind, quoted] {
                assert!(holds_private_key(text.as_bytes()), "{text}");
                assert!(holds_private_key(&[b"\xff\xfe", text.as_bytes()].concat()), "{text}");
            }
        }
        for text in ["", "-----BEGIN PUBLIC KEY-----\nAQI=\n", "-----BEGIN \na PRIVATE KEY-----", "A PRIVATE KEY-----"]
        {
            assert!(!holds_private_key(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn the_file_is_named_in_whatever_folder_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("old")).unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(refuse_private_keys(dir.path()).is_ok());
        for name in ["old/k.txt", ".gitkeys.pem"] {
            let key = dir.path().join(name);
            fs::write(&key, "-----BEGIN PRIVATE KEY-----\nAQI=\n-----END PRIVATE KEY-----\n").unwrap();
            let error = refuse_private_keys(dir.path()).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(&key.display().to_string()), "{error}");
            fs::remove_file(key).unwrap();
        }
    }
}
