//! The model inside the binary: `builtin:tiny-chat`, unpacked where a checkpoint can be opened.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How references name the bundled model.
pub const REFERENCE: &str = "builtin:tiny-chat";

/// Variable that names a folder to take the bundled model from instead.
pub const OVERRIDE: &str = "IMMUNISE_DEMO_MODEL";

macro_rules! embedded {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-chat/", $name)))
    };
}

/// Files of the bundled model by name.
const FILES: &[(&str, &[u8])] = &[
    embedded!("config.json"),
    embedded!("generation_config.json"),
    embedded!("model.safetensors"),
    embedded!("tokenizer.json"),
    embedded!("tokenizer_config.json"),
    embedded!("special_tokens_map.json"),
    embedded!("chat_template.jinja"),
];

/// Writes the bundled model's files into the existing folder `dir`.
///
/// # Errors
/// [`Error::Io`].
pub fn unpack(dir: &Path) -> Result<()> {
    if let Some(folder) = env::var_os(OVERRIDE).filter(|value| !value.is_empty()) {
        return copy(&PathBuf::from(folder), dir);
    }
    for (name, bytes) in FILES {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(|error| Error::io(&path, error))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).map_err(|error| Error::io(from, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(from, error))?;
        if entry.path().is_file() {
            let target = to.join(entry.file_name());
            fs::copy(entry.path(), &target).map_err(|error| Error::io(&target, error))?;
        }
    }
    Ok(())
}
