//! A checkpoint opened for reading: every header checked, every shard mapped, no tensor loaded.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use super::config::Config;
use super::files::{self, Digest};
use super::header::Header;
use super::index::{INDEX, Layout};
use crate::{Error, Result};

/// Elements widened per task.
const CHUNK: usize = 1 << 20;

/// Where a tensor is, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Weight file, relative to the checkpoint's folder.
    pub file: String,
    /// First byte and one past the last, from the start of the file.
    pub offsets: (usize, usize),
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // The header's check has already multiplied them without overflow.
        self.shape.iter().product()
    }
}

/// One mapped weight file.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) header: Header,
    pub(super) map: Mmap,
}

/// A checkpoint on disk.
///
/// The weight files stay mapped while it lives: a file that is cut short by another program in that time ends the
/// process. Nothing in this crate changes a checkpoint in place.
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    pub(super) shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("dir", &self.dir)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`, validating its configuration, index and all headers.
    ///
    /// *Errors*: [`Error::Input`] that names the folder, file, key or tensor that is missing or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            let got = if dir.exists() { "a file" } else { "nothing" };
            return Err(Error::file(dir, format!("expected a folder, got {got}"))
                .hint("give the folder that holds `config.json` and the weights"));
        }
        let config = Config::read(dir)?;
        let layout = Layout::find(dir)?;
        let mut shards = Vec::with_capacity(layout.shards.len());
        for name in &layout.shards {
            shards.push(open_shard(dir, name)?);
        }
        let tensors = locate(dir, &shards)?;
        let mut warnings = config.warnings.clone();
        if let Some(weight_map) = &layout.weight_map {
            check_index(&dir.join(INDEX), weight_map, &tensors)?;
            let total: usize = tensors.values().map(|(_, info)| info.offsets.1 - info.offsets.0).sum();
            if let Some(claimed) = layout.total_size.filter(|claimed| usize::try_from(*claimed) != Ok(total)) {
                warnings.push(format!("{INDEX}: `total_size` is {claimed}, but the tensors take {total} bytes"));
            }
        }
        let mut checkpoint = Self { dir: dir.to_owned(), config, shards, tensors, warnings };
        for file in checkpoint.other_weights()? {
            checkpoint.warnings.push(format!("{file}: holds weights too, but is no part of this checkpoint"));
        }
        Ok(checkpoint)
    }

    /// The folder, as given.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a person should know about this checkpoint, the configuration's warnings included.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Weight files relative to the folder, sorted.
    pub fn weight_files(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// Looks a tensor up.
    ///
    /// *Errors*: [`Error::Input`] when there is none of that name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).map(|(_, info)| info)
    }

    /// Looks a tensor up and checks its shape.
    ///
    /// *Errors*: [`Error::Input`] that names the tensor, the expected and the actual shape.
    pub fn require_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(Error::input(
                format!("{}: tensor `{name}`", self.dir.join(&info.file).display()),
                format!("expected shape {shape:?}, got {:?}", info.shape),
            ));
        }
        Ok(info)
    }

    /// The tensor's bytes as stored: little endian, row-major, not necessarily aligned.
    ///
    /// *Errors*: [`Error::Input`] when there is none of that name.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (shard, info) = self.find(name)?;
        Ok(&self.shards[*shard].map[info.offsets.0..info.offsets.1])
    }

    /// Reads a tensor, widened to f32 (exact for F32, BF16 and F16).
    ///
    /// *Shapes*: flat, row-major. *Errors*: [`Error::Input`] for an unknown name, another element type, NaN or infinity.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let mut values = vec![0.0; info.elements()];
        self.read_f32_into(name, &mut values)?;
        Ok(values)
    }

    /// As [`read_f32`](Self::read_f32), into a buffer of the tensor's number of elements.
    ///
    /// *Errors*: as `read_f32`, and a buffer of another length.
    pub fn read_f32_into(&self, name: &str, values: &mut [f32]) -> Result<()> {
        let rows = self.info(name)?.shape.first().copied().unwrap_or(1);
        self.read_rows_f32_into(name, 0..rows, values)
    }

    /// As [`read_f32_into`](Self::read_f32_into), some rows of a tensor: stretches of its first dimension.
    ///
    /// *Errors*: as there, and rows that the tensor does not have.
    pub fn read_rows_f32_into(&self, name: &str, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        let info = self.info(name)?;
        let float = Float::of(info.dtype).ok_or_else(|| self.not_float(name, info))?;
        let count = info.shape.first().copied().unwrap_or(1);
        let width = info.elements() / count.max(1);
        if rows.end > count || values.len() != rows.len() * width {
            let problem = format!(
                "expected rows below {count} of {width} elements, got {rows:?} and a buffer of {} elements",
                values.len()
            );
            return Err(Error::input(format!("tensor `{name}`"), problem));
        }
        let bytes = &self.bytes(name)?[rows.start * width * float.size()..rows.end * width * float.size()];
        values
            .par_chunks_mut(CHUNK)
            .zip(bytes.par_chunks(CHUNK * float.size()))
            .try_for_each(|(values, bytes)| {
                float.widen(bytes, values);
                // One such value makes every answer garbage, which must not be taken for a refusal.
                if values.iter().all(|value| value.is_finite()) { Some(()) } else { None }
            })
            .ok_or_else(|| {
                Error::input(format!("{}: tensor `{name}`", info.file), "expected finite values, got NaN or infinity")
            })
    }

    /// SHA-256 of a tensor's bytes.
    ///
    /// *Errors*: [`Error::Input`] when there is none of that name.
    pub fn tensor_digest(&self, name: &str) -> Result<Digest> {
        Ok(Digest::of(self.bytes(name)?))
    }

    /// All regular files of the folder that are of the model, relative with `/` separators, sorted.
    ///
    /// *Errors*: see [`files::list`].
    pub fn files(&self) -> Result<Vec<String>> {
        files::list(&self.dir)
    }

    /// SHA-256 of every file of [`files`](Self::files).
    ///
    /// *Errors*: [`Error::Io`] when one cannot be read.
    pub fn digests(&self) -> Result<BTreeMap<String, Digest>> {
        files::digests(&self.dir, &self.files()?)
    }

    /// Files of the folder that hold weights but are not this checkpoint's, such as a second copy in another format, by
    /// their names.
    ///
    /// *Errors*: see [`files::list`].
    pub fn other_weights(&self) -> Result<Vec<String>> {
        let mut files = self.files()?;
        files.retain(|file| is_of_weights(file) && !self.shards.iter().any(|shard| shard.name == *file));
        Ok(files)
    }

    fn find(&self, name: &str) -> Result<&(usize, TensorInfo)> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.dir, format!("expected a tensor `{name}`, got none of that name")))
    }

    pub(super) fn not_float(&self, name: &str, info: &TensorInfo) -> Error {
        let subject = format!("{}: tensor `{name}`", self.dir.join(&info.file).display());
        let error = Error::input(subject, format!("expected F32, BF16 or F16, got {}", info.dtype));
        match info.dtype {
            Dtype::F64 => error.hint("convert the checkpoint to F32 or BF16 first"),
            _ => error.hint("packed or quantised weights are never cast; use the checkpoint they were made from"),
        }
    }
}

/// The element types that weights are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    Bf16,
    F16,
}

impl Float {
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// Bytes per element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Widens stored elements, whatever their alignment.
    pub(crate) fn widen(self, bytes: &[u8], values: &mut [f32]) {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || self.widen_here(bytes, values),
        );
    }

    #[inline(always)]
    fn widen_here(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Self::F16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
        }
    }

    /// Rounds each value to the nearest stored one, ties to even: its bytes go to `bytes`, and the stored value, widened
    /// again, replaces it in `values`.
    pub(crate) fn narrow(self, values: &mut [f32], bytes: &mut [u8]) {
        match self {
            Self::F32 => {
                for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    *bytes = value.to_le_bytes();
                }
            }
            Self::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks_mut::<2>().0) {
                    let stored = bf16::from_f32(*value);
                    *bytes = stored.to_le_bytes();
                    *value = stored.to_f32();
                }
            }
            Self::F16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks_mut::<2>().0) {
                    let stored = f16::from_f32(*value);
                    *bytes = stored.to_le_bytes();
                    *value = stored.to_f32();
                }
            }
        }
    }
}

/// Whether a name is one of weights, in capitals or not; a copy put aside (`model.safetensors.bak`) is one too.
fn is_of_weights(file: &str) -> bool {
    const SUFFIXES: [&str; 14] = [
        ".bin",
        ".pt",
        ".pth",
        ".gguf",
        ".onnx",
        ".onnx_data",
        ".h5",
        ".msgpack",
        ".npz",
        ".npy",
        ".ot",
        ".ckpt",
        ".pkl",
        ".tflite",
    ];
    let file = file.to_lowercase();
    let copy = file.contains(".safetensors") && !file.ends_with(".index.json");
    copy || SUFFIXES.iter().any(|suffix| file.ends_with(suffix))
}

fn open_shard(dir: &Path, name: &str) -> Result<Shard> {
    let path = dir.join(name);
    let missing = || Error::file(&path, "expected a weight file, got nothing").hint("the download is incomplete");
    let file = File::open(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing(),
        _ => Error::io(&path, error),
    })?;
    let metadata = file.metadata().map_err(|error| Error::io(&path, error))?;
    if !metadata.is_file() {
        return Err(Error::file(&path, "expected a regular file"));
    }
    if metadata.len() == 0 {
        return Err(Error::file(&path, "expected a weight file, got an empty one").hint("the download is incomplete"));
    }
    // SAFETY: the map is only read. Its length is the file's at this moment, and every offset used later was checked
    // against that length; a file that is changed while it is mapped is outside the contract stated on `Checkpoint`.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| Error::io(&path, error))?;
    let header = Header::parse(&path, &map).map_err(|error| {
        if map.starts_with(b"version https://git-lfs") {
            Error::file(&path, "expected weights, got a git LFS pointer").hint("run `git lfs pull` in the folder")
        } else if map.starts_with(b"PK\x03\x04") || map.starts_with(b"\x80\x02\x8a\x0a") {
            Error::file(&path, "expected safetensors, got a pickle under another name")
                .hint("pickles can run code when they are read; convert to safetensors first")
        } else {
            error
        }
    })?;
    if let Some(entry) = header.entries.iter().find(|entry| is_quantised(entry.dtype)) {
        let problem = format!("expected unquantised weights, got {} for tensor `{}`", entry.dtype, entry.name);
        return Err(Error::file(&path, problem)
            .hint("quantised weights cannot be patched without loss; use the checkpoint they were made from"));
    }
    Ok(Shard { name: name.to_owned(), header, map })
}

/// Element types that only quantised weights use; integer tensors may be buffers and pass.
fn is_quantised(dtype: Dtype) -> bool {
    dtype.bitsize() < 8
        || matches!(dtype, Dtype::F8_E5M2 | Dtype::F8_E4M3 | Dtype::F8_E8M0 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ)
}

/// Maps every tensor to its shard; a tensor in two shards is refused.
fn locate(dir: &Path, shards: &[Shard]) -> Result<BTreeMap<String, (usize, TensorInfo)>> {
    let mut tensors: BTreeMap<String, (usize, TensorInfo)> = BTreeMap::new();
    for (at, shard) in shards.iter().enumerate() {
        for entry in &shard.header.entries {
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                file: shard.name.clone(),
                offsets: (entry.begin, entry.end),
            };
            if let Some((_, first)) = tensors.insert(entry.name.clone(), (at, info)) {
                return Err(Error::file(
                    &dir.join(&shard.name),
                    format!("expected tensor `{}` once, got it in `{}` too", entry.name, first.file),
                ));
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::file(dir, "expected weights, got no tensor"));
    }
    Ok(tensors)
}

/// Checks that index and headers say the same.
fn check_index(
    index: &Path,
    weight_map: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (usize, TensorInfo)>,
) -> Result<()> {
    for (name, file) in weight_map {
        match tensors.get(name) {
            Some((_, info)) if info.file == *file => {}
            Some((_, info)) => {
                let problem = format!("tensor `{name}`: expected it in `{file}`, got it in `{}`", info.file);
                return Err(Error::file(index, problem));
            }
            None => return Err(Error::file(index, format!("tensor `{name}`: expected it in `{file}`, got none"))),
        }
    }
    if let Some((name, (_, info))) = tensors.iter().find(|(name, _)| !weight_map.contains_key(*name)) {
        return Err(Error::file(
            index,
            format!("expected tensor `{name}` of `{}` in `weight_map`, got none", info.file),
        ));
    }
    Ok(())
}
