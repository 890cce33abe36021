//! Which safetensors files hold the weights of a folder: the single file, or the shards that an index names.
//!
//! The index only locates files here; that each tensor lies where the index says, exactly once, is checked against the
//! shards' own headers by the reader.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use serde::Deserialize;

use super::files;
use super::header::UniqueMap;
use crate::{Error, Result};

/// File name of unsharded weights.
pub const SINGLE: &str = "model.safetensors";
/// File name of the map from tensors to shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where a folder's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Weight files relative to the folder, sorted.
    pub shards: Vec<String>,
    /// The index's claim about each tensor, when there is an index.
    pub weight_map: Option<BTreeMap<String, String>>,
    /// `metadata.total_size` of the index, in bytes of tensor data.
    pub total_size: Option<u64>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<RawMetadata>,
    weight_map: UniqueMap,
}

#[derive(Deserialize)]
struct RawMetadata {
    // A float in some writers' output.
    #[serde(default)]
    total_size: Option<f64>,
}

impl Layout {
    /// Finds the weights of the checkpoint in `dir`.
    ///
    /// *Errors*: [`Error::Input`] when there are none, when only pickles are found, when the index is damaged or points
    /// outside the folder, or when both a single file and a differing index would let two loaders see two models.
    pub fn find(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        match (single.exists(), index.exists()) {
            (true, false) => Ok(Self { shards: vec![SINGLE.into()], weight_map: None, total_size: None }),
            (false, true) => Self::read(&index),
            (true, true) => {
                let layout = Self::read(&index)?;
                if layout.shards == [SINGLE] {
                    return Ok(layout);
                }
                Err(Error::file(dir, format!("expected either `{SINGLE}` or `{INDEX}`, got both"))
                    .hint("loaders disagree on which one counts; remove the one that does not belong"))
            }
            (false, false) => Err(nothing_usable(dir)),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &files::read(path, files::MAX_LIST)?)
    }

    /// Reads the index whose bytes are `bytes`; `path` only names it in errors.
    ///
    /// *Errors*: [`Error::Input`] for a damaged index, or one that points outside the folder.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let raw: RawIndex = serde_json::from_slice(bytes).map_err(|error| Error::file(path, error.to_string()))?;
        let weight_map = raw.weight_map.0;
        if weight_map.is_empty() {
            return Err(Error::file(path, "expected tensors in `weight_map`, got none"));
        }
        for (tensor, file) in &weight_map {
            check_shard_name(file).map_err(|problem| {
                Error::file(path, format!("`weight_map` entry `{tensor}`: {problem}, got {file:?}"))
            })?;
        }
        let shards: BTreeSet<String> = weight_map.values().cloned().collect();
        // Exact below 2^53 bytes; only ever compared, to warn.
        let total_size = raw.metadata.and_then(|m| m.total_size).filter(|size| *size >= 0.0).map(|size| size as u64);
        Ok(Self { shards: shards.into_iter().collect(), weight_map: Some(weight_map), total_size })
    }
}

/// A shard lies in the folder: relative, made of plain names, no way up or out.
fn check_shard_name(file: &str) -> Result<(), &'static str> {
    if file.contains('\\') || file.chars().any(files::is_invisible) {
        return Err("expected a file name without backslashes and invisible characters");
    }
    let path = Path::new(file);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    // `components` drops inner `.` and doubled slashes; a name is its own normal form or it is refused.
    let normal = file.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !plain || !normal || file.contains(':') {
        return Err("expected a file inside the folder");
    }
    if files::is_left_out(path) {
        return Err("expected a file that a signature covers");
    }
    if !file.ends_with(".safetensors") {
        return Err("expected a `.safetensors` file");
    }
    Ok(())
}

fn nothing_usable(dir: &Path) -> Error {
    let names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let found = |suffixes: &[&str]| {
        let mut found: Vec<_> =
            names.iter().filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix))).collect();
        found.sort();
        found.first().map(|name| name.as_str())
    };
    if let Some(pickle) = found(&[".bin", ".pt", ".pth"]) {
        return Error::file(dir, format!("expected `{SINGLE}`, got only pickled weights (`{pickle}`)"))
            .hint("pickles can run code when they are read; convert to safetensors first, for example with `save_pretrained` of transformers");
    }
    if let Some(gguf) = found(&[".gguf"]) {
        return Error::file(dir, format!("expected `{SINGLE}`, got only GGUF weights (`{gguf}`)"))
            .hint("harden the original safetensors checkpoint, then convert the result");
    }
    Error::file(dir, format!("expected `{SINGLE}` or `{INDEX}`, got neither"))
        .hint("is this the folder of a Hugging Face checkpoint?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_inside_the_folder() {
        for good in
            ["model-00001-of-00002.safetensors", "weights/a.safetensors", "..a.safetensors", ".gitx/a.safetensors"]
        {
            assert_eq!(check_shard_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "../a.safetensors",
            "x/../a.safetensors",
            "./a.safetensors",
            "x//a.safetensors",
            "/etc/a.safetensors",
            "..\\a.safetensors",
            "C:a.safetensors",
            "a.bin",
            "a\n.safetensors",
            ".git/a.safetensors",
            ".cache/huggingface/a.safetensors",
        ] {
            assert!(check_shard_name(bad).is_err(), "{bad:?}");
        }
    }
}
