//! Keys and values of the columns that a decoder has already seen, as a value.

use candle_core::{Device, Tensor};

use super::blueprint::Blueprint;
use crate::Result;

/// Rotated keys and values of every block, `[batch, capacity, n_kv_heads · head_dim]` each.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    past: usize,
}

impl KvCache {
    /// Room for `capacity` columns of `batch` rows.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(blueprint: &Blueprint, batch: usize, capacity: usize, device: &Device) -> Result<Self> {
        let width = blueprint.n_kv_heads * blueprint.head_dim;
        let zeros = || Tensor::zeros((batch, capacity, width), candle_core::DType::F32, device);
        let layers =
            (0..blueprint.n_layers).map(|_| Ok((zeros()?, zeros()?))).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Self { layers, past: 0 })
    }

    /// Columns held.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Stores the next columns of one block and returns that block's whole buffers.
    pub(super) fn extend(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 1, self.past)?;
        values.slice_set(&v.contiguous()?, 1, self.past)?;
        Ok((keys.clone(), values.clone()))
    }

    /// Counts `columns` as seen, once every block has stored them.
    pub(super) fn advance(&mut self, columns: usize) {
        self.past += columns;
    }

    /// Keeps the listed rows only, in that order.
    pub(super) fn keep_rows(&mut self, rows: &[u32], device: &Device) -> Result<()> {
        let rows = Tensor::from_slice(rows, rows.len(), device)?;
        for (k, v) in &mut self.layers {
            (*k, *v) = (k.index_select(&rows, 0)?, v.index_select(&rows, 0)?);
        }
        Ok(())
    }
}
