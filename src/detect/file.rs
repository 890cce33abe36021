//! The files of what is fitted for hosting: safetensors in f32 with one metadata key that holds JSON.
//!
//! One key only, because the format's writers keep no order of several, and equal facts must give equal bytes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// A tensor's name, shape and values, row by row.
pub(super) type Named = (&'static str, Vec<usize>, Vec<f32>);

/// The bytes of a file with `about` under `key`.
///
/// # Errors
/// [`Error::Input`] naming `key` when a tensor's values are not as many as its shape says.
pub(super) fn bytes(key: &str, about: &impl Serialize, tensors: &[Named]) -> Result<Vec<u8>> {
    let broken = |error: safetensors::SafeTensorError| Error::input(key, error.to_string());
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|(.., values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape, _), data)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), data).map_err(broken)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    let about = serde_json::to_string(about).map_err(|error| Error::input(key, error.to_string()))?;
    safetensors::serialize(views, Some(HashMap::from([(key.to_owned(), about)]))).map_err(broken)
}

/// A file that was read.
pub(super) struct File {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl File {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] for a file that is too large.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let length = fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
        if length > MAX_BYTES {
            return Err(Error::file(path, format!("expected at most {MAX_BYTES} bytes, got {length}")));
        }
        Ok(Self { path: path.to_owned(), bytes: fs::read(path).map_err(|error| Error::io(path, error))? })
    }

    /// An error about this file.
    pub(super) fn wrong(&self, problem: String) -> Error {
        Error::file(&self.path, problem)
    }

    fn unusable(&self, error: &safetensors::SafeTensorError) -> Error {
        self.wrong(format!("expected safetensors, got `{error}`"))
    }

    /// What stands under `key`, which says `schema_version` 1.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and the key.
    pub(super) fn about<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|error| self.unusable(&error))?;
        let about = header.metadata().as_ref().and_then(|metadata| metadata.get(key));
        let about = about.ok_or_else(|| self.wrong(format!("expected metadata `{key}`, got none")))?;
        let broken = |error: serde_json::Error| self.wrong(format!("`{key}`: {error}"));
        let value: serde_json::Value = serde_json::from_str(about).map_err(broken)?;
        let version = value.get("schema_version").cloned().unwrap_or_default();
        if version != 1 {
            return Err(self.wrong(format!("expected schema_version 1, got {version}")));
        }
        serde_json::from_value(value).map_err(broken)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Input`] naming file and tensor when there is none.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| self.unusable(&error))?;
        let tensor = tensors.tensor(name).map_err(|error| self.wrong(format!("tensor `{name}`: {error}")))?;
        Ok(tensor.shape().to_vec())
    }

    /// The values of a tensor of that shape.
    ///
    /// # Errors
    /// [`Error::Input`] naming file and tensor when there is none, or dtype, shape or values are others.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|error| self.unusable(&error))?;
        let tensor = tensors.tensor(name).map_err(|error| self.wrong(format!("tensor `{name}`: {error}")))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let got = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(self.wrong(format!("tensor `{name}`: expected F32 {shape:?}, got {got}")));
        }
        let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let values: Vec<f32> = tensor.data().chunks_exact(4).map(four).collect();
        let finite = values.iter().all(|v| v.is_finite());
        finite.then_some(values).ok_or_else(|| self.wrong(format!("tensor `{name}`: expected finite numbers")))
    }
}
