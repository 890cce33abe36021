//! What differs between two checkpoints: tensors by value, other files by content.

use std::collections::BTreeSet;
use std::fs;

use rayon::prelude::*;
use serde::Serialize;

use super::files::Digest;
use super::reader::{Checkpoint, Float};
use super::writer::norm_ratio;
use crate::{Error, Result};

/// Elements compared per task.
const CHUNK: usize = 1 << 18;

/// Everything that differs between a first and a second checkpoint; both lists are sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Diff {
    /// Tensors that differ.
    pub tensors: Vec<TensorDiff>,
    /// Files that differ, weight files included.
    pub files: Vec<FileDiff>,
}

/// A tensor that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// The tensor.
    pub name: String,
    /// How it differs.
    #[serde(flatten)]
    pub change: Change,
}

/// How a tensor differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// Same type and shape, other values.
    Values {
        /// Number of elements.
        elements: usize,
        /// Elements whose stored value differs.
        changed: usize,
        /// Largest absolute difference, for F32, BF16 and F16.
        max_abs: Option<f64>,
        /// ‖second − first‖ / ‖first‖ (Frobenius), for F32, BF16 and F16.
        relative_norm: Option<f64>,
    },
    /// Another type or shape, each in the form `BF16 [2, 3]`.
    Layout {
        /// In the first checkpoint.
        first: String,
        /// In the second checkpoint.
        second: String,
    },
    /// Missing in the second checkpoint.
    OnlyInFirst,
    /// Missing in the first checkpoint.
    OnlyInSecond,
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileDiff {
    /// Relative to the folder.
    pub path: String,
    /// How it differs.
    pub change: FileChange,
}

/// How a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileChange {
    /// Other bytes.
    Content,
    /// Missing in the second checkpoint.
    OnlyInFirst,
    /// Missing in the first checkpoint.
    OnlyInSecond,
}

/// Compares two checkpoints.
///
/// *Errors*: [`Error::Input`] or [`Error::Io`] when a file of either cannot be read.
pub fn diff(first: &Checkpoint, second: &Checkpoint) -> Result<Diff> {
    let names: BTreeSet<&str> = first.names().chain(second.names()).collect();
    let tensors = names
        .into_par_iter()
        .map(|name| {
            let change = match (first.contains(name), second.contains(name)) {
                (true, false) => Some(Change::OnlyInFirst),
                (false, true) => Some(Change::OnlyInSecond),
                _ => compare(first, second, name)?,
            };
            Ok(change.map(|change| TensorDiff { name: name.to_owned(), change }))
        })
        .filter_map(Result::transpose)
        .collect::<Result<Vec<_>>>()?;
    let files = diff_files(first, second, &tensors)?;
    Ok(Diff { tensors, files })
}

fn compare(first: &Checkpoint, second: &Checkpoint, name: &str) -> Result<Option<Change>> {
    let (a, b) = (first.info(name)?, second.info(name)?);
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        return Ok(Some(Change::Layout {
            first: format!("{} {:?}", a.dtype, a.shape),
            second: format!("{} {:?}", b.dtype, b.shape),
        }));
    }
    let (bytes_a, bytes_b) = (first.bytes(name)?, second.bytes(name)?);
    if bytes_a == bytes_b {
        return Ok(None);
    }
    let elements = a.elements();
    let Some(float) = Float::of(a.dtype) else {
        let size = bytes_a.len() / elements.max(1);
        let changed = bytes_a.chunks(size.max(1)).zip(bytes_b.chunks(size.max(1))).filter(|(a, b)| a != b).count();
        return Ok(Some(Change::Values { elements, changed, max_abs: None, relative_norm: None }));
    };
    let chunk = CHUNK * float.size();
    let sums: Vec<(usize, f64, f64, f64)> = bytes_a
        .par_chunks(chunk)
        .zip(bytes_b.par_chunks(chunk))
        .map(|(a, b)| {
            let count = a.len() / float.size();
            let (mut x, mut y) = (vec![0.0; count], vec![0.0; count]);
            float.widen(a, &mut x);
            float.widen(b, &mut y);
            x.iter().zip(&y).fold((0, 0.0f64, 0.0, 0.0), |(changed, max, delta, norm), (&x, &y)| {
                let (base, difference) = (f64::from(x), f64::from(y) - f64::from(x));
                let changed = changed + usize::from(x.to_bits() != y.to_bits());
                (changed, max.max(difference.abs()), delta + difference * difference, norm + base * base)
            })
        })
        .collect();
    let (changed, max_abs, delta, norm) =
        sums.into_iter().fold((0, 0.0f64, 0.0, 0.0), |a, b| (a.0 + b.0, a.1.max(b.1), a.2 + b.2, a.3 + b.3));
    let relative_norm = norm_ratio(delta, norm);
    Ok(Some(Change::Values { elements, changed, max_abs: Some(max_abs), relative_norm: Some(relative_norm) }))
}

fn diff_files(first: &Checkpoint, second: &Checkpoint, tensors: &[TensorDiff]) -> Result<Vec<FileDiff>> {
    let (a, b): (BTreeSet<String>, BTreeSet<String>) =
        (first.files()?.into_iter().collect(), second.files()?.into_iter().collect());
    a.union(&b)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|path| {
            let change = match (a.contains(path), b.contains(path)) {
                (true, false) => Some(FileChange::OnlyInFirst),
                (false, true) => Some(FileChange::OnlyInSecond),
                _ => differs(first, second, path, tensors)?.then_some(FileChange::Content),
            };
            Ok(change.map(|change| FileDiff { path: path.clone(), change }))
        })
        .filter_map(Result::transpose)
        .collect()
}

fn differs(first: &Checkpoint, second: &Checkpoint, path: &str, tensors: &[TensorDiff]) -> Result<bool> {
    let shard = |checkpoint: &Checkpoint| checkpoint.shards.iter().position(|shard| shard.name == path);
    if let (Some(a), Some(b)) = (shard(first), shard(second)) {
        let (a, b) = (&first.shards[a], &second.shards[b]);
        // Same header: the bytes differ exactly where a tensor, already compared, does.
        if a.map[..a.header.data_start] == b.map[..b.header.data_start] {
            let changed: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            return Ok(a.header.entries.iter().any(|entry| changed.contains(entry.name.as_str())));
        }
        return Ok(true);
    }
    let (a, b) = (first.dir().join(path), second.dir().join(path));
    let length = |path: &std::path::PathBuf| fs::metadata(path).map(|m| m.len()).map_err(|e| Error::io(path, e));
    Ok(length(&a)? != length(&b)? || Digest::of_file(&a)? != Digest::of_file(&b)?)
}
