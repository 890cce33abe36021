//! A changed copy of a checkpoint: planned tensors rewritten in place, everything else byte for byte.
//!
//! Headers are copied verbatim and data keeps its type, shape and offset, so an unchanged shard keeps its hash. New
//! values are computed in f32 and cast once. One tensor is held at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::private_key::refuse_private_keys;
use super::reader::{Checkpoint, Float, Shard};
use super::staging::{Staged, set_file_mode};
use crate::{Error, Result};

/// Elements cast per task.
const CHUNK: usize = 1 << 18;
/// Tasks whose output is held at a time.
const CHUNKS_HELD: usize = 16;

/// New values for some of a checkpoint's tensors.
pub trait Patches: Sync {
    /// Names of the tensors that change.
    fn names(&self) -> Vec<String>;

    /// Changes `values`, which hold the tensor `name` widened to f32, flat and row-major, into the new ones.
    ///
    /// *Errors*: whatever keeps the new values from being computed.
    fn apply(&self, name: &str, values: &mut [f32]) -> Result<()>;
}

/// Replaces whole tensors.
impl Patches for BTreeMap<String, Vec<f32>> {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn apply(&self, name: &str, values: &mut [f32]) -> Result<()> {
        let new = self.get(name).map_or(&[][..], Vec::as_slice);
        if new.len() != values.len() {
            let problem = format!("expected {} new values, got {}", values.len(), new.len());
            return Err(Error::input(format!("tensor `{name}`"), problem));
        }
        values.copy_from_slice(new);
        Ok(())
    }
}

/// What a patch did to one tensor: Δ is the change asked for, W the base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorPatch {
    /// The tensor.
    pub name: String,
    /// Its number of elements.
    pub elements: usize,
    /// Elements whose stored value changed.
    pub changed: usize,
    /// Largest |Δ| before the cast.
    pub max_abs: f64,
    /// ‖Δ‖ / ‖W‖ (Frobenius) before the cast; infinite where W is zero and Δ is not.
    pub relative_norm: f64,
    /// ‖cast(W + Δ) − (W + Δ)‖ / ‖Δ‖: the part of the change that the cast to the stored type lost; 0 without change.
    pub cast_loss: f64,
}

/// What a patch did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PatchReport {
    /// Planned tensors in the order of the files.
    pub tensors: Vec<TensorPatch>,
    /// Files copied that hold weights which the patch did not touch, such as a second copy in another format.
    pub other_weights: Vec<String>,
}

/// Writes a copy of `base` with `patches` applied into a new folder beside `out`, to be published there.
///
/// Every file of [`Checkpoint::files`] is copied (links become files) except those under a path of `omit`; `extra` files are
/// written last and may replace copied ones, but not weights or the index.
///
/// *Errors*: [`Error::Input`] for an unknown or twice planned tensor, one that is not F32, BF16 or F16, a new value that
/// is not finite in f32 or in the stored type (the tensor is named), a target that is in use, a private key among the files;
/// [`Error::Io`].
pub fn patch(
    base: &Checkpoint,
    out: &Path,
    patches: &dyn Patches,
    extra: &[(&str, &[u8])],
    omit: &[&str],
) -> Result<(Staged, PatchReport)> {
    let mut planned = BTreeSet::new();
    for name in patches.names() {
        let info = base.info(&name)?;
        Float::of(info.dtype).ok_or_else(|| base.not_float(&name, info))?;
        if !planned.insert(name.clone()) {
            return Err(Error::input(format!("tensor `{name}`"), "expected one change, got two"));
        }
    }
    let is_model = |file: &str| file == super::index::INDEX || base.weight_files().any(|shard| shard == file);
    for file in extra.iter().map(|(file, _)| *file).chain(omit.iter().copied()) {
        if is_model(file) {
            return Err(Error::input(file, "expected a file that is not part of the weights"));
        }
    }
    refuse_private_keys(base.dir())?;
    let mut files = base.files()?;
    files.retain(|file| !omit.iter().any(|omitted| is_under(file, omitted)));
    let (rewritten, copied): (Vec<&Shard>, Vec<&String>) = {
        let touched = |shard: &&Shard| shard.header.entries.iter().any(|entry| planned.contains(&entry.name));
        let shards: Vec<&Shard> = base.shards.iter().filter(touched).collect();
        let copied = files.iter().filter(|file| !shards.iter().any(|shard| shard.name == **file)).collect();
        (shards, copied)
    };

    let staged = Staged::beside(out)?;
    copied.par_iter().try_for_each(|file| copy(&base.dir().join(file), &staged.place(file)?))?;
    let mut report = PatchReport::default();
    for shard in rewritten {
        rewrite(base, shard, &planned, patches, &staged.place(&shard.name)?, &mut report.tensors)?;
    }
    report.other_weights = base.other_weights()?.into_iter().filter(|file| files.contains(file)).collect();
    for (file, bytes) in extra {
        staged.write(file, bytes)?;
    }
    Ok((staged, report))
}

fn is_under(file: &str, folder: &str) -> bool {
    file.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    File::open(from).map_err(|error| Error::io(from, error))?;
    // What can be opened can mostly be read: a failure is one of writing. `fs::copy` follows links and lets the file system
    // share blocks where it can.
    let copied = fs::copy(from, to).map_err(|error| Error::io(to, error))?;
    let length = fs::metadata(from).map_err(|error| Error::io(from, error))?.len();
    if copied != length {
        return Err(Error::file(from, format!("expected to copy {length} bytes, got {copied}"))
            .hint("another program is changing the folder"));
    }
    set_file_mode(to)
}

/// Streams one shard, replacing the planned tensors' data.
fn rewrite(
    base: &Checkpoint,
    shard: &Shard,
    planned: &BTreeSet<String>,
    patches: &dyn Patches,
    path: &Path,
    reports: &mut Vec<TensorPatch>,
) -> Result<()> {
    let mut file = File::create_new(path).map_err(|error| Error::io(path, error))?;
    let failed = |error| Error::io(path, error);
    let mut written = 0;
    for entry in shard.header.entries.iter().filter(|entry| planned.contains(&entry.name)) {
        file.write_all(&shard.map[written..entry.begin]).map_err(failed)?;
        let mut values = base.read_f32(&entry.name)?;
        patches.apply(&entry.name, &mut values)?;
        let old = &shard.map[entry.begin..entry.end];
        // Checked for every planned tensor before anything was written.
        let Some(float) = Float::of(entry.dtype) else {
            return Err(base.not_float(&entry.name, base.info(&entry.name)?));
        };
        reports.push(cast(&entry.name, float, old, &values, |bytes| file.write_all(bytes).map_err(failed))?);
        written = entry.end;
    }
    file.write_all(&shard.map[written..]).map_err(failed)?;
    set_file_mode(path)
}

/// Sums over one chunk; chunks are added in order, so the result does not depend on the number of threads.
#[derive(Default)]
struct Sums {
    changed: usize,
    max_abs: f64,
    delta: f64,
    weight: f64,
    loss: f64,
    finite: bool,
}

/// Casts the new values piece by piece, hands each piece's bytes to `write`, and measures what happened.
fn cast(
    name: &str,
    float: Float,
    old: &[u8],
    values: &[f32],
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<TensorPatch> {
    let size = float.size();
    let mut total = Sums::default();
    for (values, old) in values.chunks(CHUNK * CHUNKS_HELD).zip(old.chunks(CHUNK * CHUNKS_HELD * size)) {
        let pieces: Vec<(Vec<u8>, Sums)> = values
            .par_chunks(CHUNK)
            .zip(old.par_chunks(CHUNK * size))
            .map(|(values, old)| cast_chunk(float, old, values))
            .collect();
        for (bytes, sums) in pieces {
            if !sums.finite {
                return Err(Error::input(
                    format!("tensor `{name}`"),
                    "expected finite new values, got NaN or infinity",
                ));
            }
            write(&bytes)?;
            total.changed += sums.changed;
            total.max_abs = total.max_abs.max(sums.max_abs);
            total.delta += sums.delta;
            total.weight += sums.weight;
            total.loss += sums.loss;
        }
    }
    Ok(TensorPatch {
        name: name.to_owned(),
        elements: values.len(),
        changed: total.changed,
        max_abs: total.max_abs,
        relative_norm: norm_ratio(total.delta, total.weight),
        cast_loss: norm_ratio(total.loss, total.delta),
    })
}

/// √(a / b) of two sums of squares, 0 when there is nothing to compare.
pub(super) fn norm_ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { (a / b).sqrt() }
}

fn cast_chunk(float: Float, old: &[u8], values: &[f32]) -> (Vec<u8>, Sums) {
    let mut before = vec![0.0; values.len()];
    float.widen(old, &mut before);
    let mut after = values.to_vec();
    let mut bytes = vec![0; old.len()];
    float.narrow(&mut after, &mut bytes);
    let mut sums = Sums { finite: true, ..Sums::default() };
    for ((&value, &before), &stored) in values.iter().zip(&before).zip(&after) {
        sums.finite &= stored.is_finite();
        sums.changed += usize::from(stored.to_bits() != before.to_bits());
        let (wanted, base) = (f64::from(value), f64::from(before));
        let (delta, loss) = (wanted - base, f64::from(stored) - wanted);
        sums.max_abs = sums.max_abs.max(delta.abs());
        sums.delta += delta * delta;
        sums.weight += base * base;
        sums.loss += loss * loss;
    }
    (bytes, sums)
}
