//! A map's weight: held in memory, or left in the checkpoint's files and widened whenever it is used.
//!
//! A stored weight costs no memory of its own: the files are mapped, so what was read lately stays in the system's page
//! cache, and the rest is read again. On the CPU's way forward it is widened part by part inside the product; backwards, and
//! where something has been added, in one pass over the matrix per use (benches/README.md has what that costs). What hardening
//! has added so far is kept beside it in low-rank form and summed in at every use, with the arithmetic of the merge into
//! files. An accelerator is sent what is stored as bf16 in that type, as where it is held.

use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use super::blueprint::WeightLocation;
use crate::adapter::{Adapter, merge};
use crate::checkpoint::reader::Float;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::math::gemm::product_by_parts;
use crate::{Error, Result};

/// A matrix `[d_out, d_in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// In memory: f32, or bf16 on an accelerator, which multiplies that type faster.
    Held(Tensor),
    /// In the checkpoint's files.
    Stored(Stored),
}

/// Some rows of a tensor of a checkpoint, and what has been added to them.
#[derive(Clone)]
pub struct Stored {
    checkpoint: Arc<Checkpoint>,
    location: WeightLocation,
    width: usize,
    device: Device,
    changes: Vec<Arc<Adapter>>,
    /// Set once all of its values are known to be finite.
    finite: Arc<OnceLock<()>>,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({:?}, {} changes)", self.location, self.changes.len())
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Held(tensor)
    }
}

impl Weight {
    /// The rows of `location` in `checkpoint`, which are `width` wide.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, or, for an accelerator, values that are not finite.
    pub fn stored(
        checkpoint: &Arc<Checkpoint>,
        location: WeightLocation,
        width: usize,
        device: &Device,
    ) -> Result<Self> {
        checkpoint.require_shape(&location.tensor, &[location.of, width])?;
        let (checkpoint, device) = (checkpoint.clone(), device.clone());
        let stored = Stored { checkpoint, location, width, device, changes: vec![], finite: Arc::default() };
        if !stored.device.is_cpu() {
            // What is not finite is an error here: what is sent as it is stored is not looked at again.
            stored.widened()?;
        }
        Ok(Self::Stored(stored))
    }

    /// `(d_out, d_in)`.
    ///
    /// # Errors
    /// When a held tensor is no matrix.
    pub fn dims2(&self) -> candle_core::Result<(usize, usize)> {
        match self {
            Self::Held(tensor) => tensor.dims2(),
            Self::Stored(stored) => Ok((stored.location.rows.len(), stored.width)),
        }
    }

    /// A matrix of `checkpoint` in memory: f32 for the CPU; as it is stored where that is bf16 and an accelerator multiplies.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn read(checkpoint: &Checkpoint, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let bf16 = checkpoint.require_shape(name, shape)?.dtype == Dtype::BF16;
        let values = checkpoint.read_f32(name)?;
        if device.is_cpu() || !bf16 || shape.len() != 2 {
            return Ok(Tensor::from_vec(values, shape, device)?);
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::BF16)?.to_device(device)?)
    }

    /// Whether gradients with respect to the weight itself are wanted.
    pub fn is_variable(&self) -> bool {
        matches!(self, Self::Held(tensor) if tensor.track_op())
    }

    /// The values: shared where they are held, read where they are stored.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Held(tensor) => Ok(tensor.clone()),
            Self::Stored(stored) => stored.read(),
        }
    }

    /// As [`Weight::tensor`], inside an operation of candle's.
    pub(super) fn values(&self) -> candle_core::Result<Tensor> {
        self.tensor().map_err(candle_core::Error::wrap)
    }

    /// `x Wᵀ` on the CPU for rows `x` `[rows, d_in]`, with the bits of the product with all of the matrix, which then need not be written
    /// out: a stored one is widened part by part on the way. Absent where that serves nothing.
    pub(super) fn product_by_parts(&self, x: &[f32]) -> Result<Option<Vec<f32>>> {
        let Self::Stored(stored) = self else { return Ok(None) };
        let Stored { checkpoint, location: WeightLocation { tensor, rows, .. }, width, device, changes, finite } =
            stored;
        let Some(float) = Float::of(checkpoint.info(tensor)?.dtype).filter(|_| device.is_cpu() && changes.is_empty())
        else {
            return Ok(None);
        };
        if finite.get().is_none() {
            stored.widened()?;
        }
        let (row, bytes) = (width * float.size(), checkpoint.bytes(tensor)?);
        Ok(product_by_parts((x.len() / width, *width, rows.len()), x, |range, values| {
            float.widen(&bytes[(rows.start + range.start) * row..(rows.start + range.end) * row], values);
        }))
    }

    /// Some of the rows, as an embedding is read: `[rows, d_in]`.
    ///
    /// # Errors
    /// When a row lies outside, or the device is out of memory.
    pub fn rows(&self, rows: &Tensor) -> Result<Tensor> {
        match self {
            Self::Held(tensor) => Ok(tensor.index_select(rows, 0)?.to_dtype(DType::F32)?),
            Self::Stored(stored) => {
                let rows = rows.to_vec1::<u32>()?;
                let mut values = vec![0.0; rows.len() * stored.width];
                for (row, values) in rows.iter().zip(values.chunks_exact_mut(stored.width)) {
                    let at = stored.location.rows.start + *row as usize;
                    stored.checkpoint.read_rows_f32_into(&stored.location.tensor, at..at + 1, values)?;
                }
                Ok(Tensor::from_vec(values, (rows.len(), stored.width), &stored.device)?)
            }
        }
    }

    /// The weight with a change added, frozen.
    ///
    /// # Errors
    /// When the shapes differ, or the device is out of memory.
    pub fn plus(&self, change: Adapter) -> Result<Self> {
        let shape = self.dims2()?;
        if change.shape() != shape {
            let problem = format!("expected an adapter of shape {shape:?}, got {:?}", change.shape());
            return Err(Error::input("adapter", problem));
        }
        Ok(match self {
            Self::Held(tensor) => {
                // Summed on the host as the files are, and rounded once.
                let delta: Vec<f32> = change.delta().into_iter().collect();
                let delta = Tensor::from_vec(delta, shape, tensor.device())?;
                Self::Held((tensor.detach().to_dtype(DType::F32)? + delta)?.to_dtype(tensor.dtype())?)
            }
            Self::Stored(stored) => {
                let mut stored = stored.clone();
                stored.changes.push(Arc::new(change));
                Self::Stored(stored)
            }
        })
    }
}

impl Stored {
    /// Its rows in the file, without changes.
    fn widened(&self) -> Result<Vec<f32>> {
        let WeightLocation { tensor, rows, .. } = &self.location;
        let mut values = vec![0.0; rows.len() * self.width];
        self.checkpoint.read_rows_f32_into(tensor, rows.clone(), &mut values)?;
        let _ = self.finite.set(());
        Ok(values)
    }

    fn read(&self) -> Result<Tensor> {
        let Self { checkpoint, location: WeightLocation { tensor, rows, .. }, width, device, changes, .. } = self;
        let shape = (rows.len(), *width);
        let narrow = !device.is_cpu() && checkpoint.info(tensor)?.dtype == Dtype::BF16;
        if narrow && changes.is_empty() {
            let row = width * DType::BF16.size_in_bytes();
            let bytes = &checkpoint.bytes(tensor)?[rows.start * row..rows.end * row];
            return Ok(Tensor::from_raw_buffer(bytes, DType::BF16, &[shape.0, shape.1], device)?);
        }
        let mut values = self.widened()?;
        let changes: Vec<&Adapter> = changes.iter().map(Arc::as_ref).collect();
        merge::accumulate(&changes, &mut values);
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let values = if narrow { values.to_dtype(DType::BF16)? } else { values };
        Ok(if device.is_cpu() { values } else { values.to_device(device)? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::model::linear::Linear;
    use crate::model::optimiser::host_values;

    fn noise(shape: (usize, usize), step: f32) -> Tensor {
        let values = (0..shape.0 * shape.1).map(|i| (i as f32 * step).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A checkpoint of one matrix `[300, 3000]` in bf16, and its rows from 50 to 250, stored and held.
    fn stored_and_held(matrix: &Tensor) -> (tempfile::TempDir, Weight, Weight) {
        let (folder, name) = (tempfile::tempdir().unwrap(), "model.layers.0.fused.weight");
        let config = include_str!("../../fixtures/tiny-chat/config.json");
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let tensors = HashMap::from([(name, matrix.to_dtype(DType::BF16).unwrap())]);
        safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors")).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
        let location = WeightLocation { tensor: name.to_owned(), rows: 50..250, of: 300 };
        let stored = Weight::stored(&checkpoint, location, 3000, &Device::Cpu).unwrap();
        let held = matrix.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        (folder, stored, held.narrow(0, 50, 200).unwrap().contiguous().unwrap().into())
    }

    #[test]
    fn a_stored_matrix_maps_few_rows_and_many_as_a_held_one() {
        let (_folder, stored, held) = stored_and_held(&noise((300, 3000), 0.013));
        for rows in [1, 32, 33, 150] {
            let x = noise((rows, 3000), 0.37);
            let [a, b] = [&stored, &held]
                .map(|weight| host_values(&Linear::new(weight.clone(), None).forward(&x).unwrap()).unwrap());
            assert!(a == b, "{rows} rows");
            let parted = stored.product_by_parts(&host_values(&x).unwrap()).unwrap();
            assert!(parted == Some(a), "{rows} rows are not mapped part by part");
        }
        assert!(held.product_by_parts(&[0.0; 3000]).unwrap().is_none(), "nothing has to be widened");
    }

    #[test]
    fn a_value_that_is_not_finite_is_an_error_however_many_rows_meet_it() {
        let mut values = host_values(&noise((300, 3000), 0.013)).unwrap();
        values[200 * 3000 + 7] = f32::NAN;
        let (_folder, stored, _) = stored_and_held(&Tensor::from_vec(values, (300, 3000), &Device::Cpu).unwrap());
        for rows in [1, 40] {
            let error = Linear::new(stored.clone(), None).forward(&noise((rows, 3000), 0.1)).unwrap_err().to_string();
            assert!(error.contains("fused.weight") && error.contains("NaN"), "{error}");
        }
    }
}
