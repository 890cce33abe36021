//! Rotary position embedding in the half-split layout of Hugging Face checkpoints, with its own backward pass.
//!
//! The rotation is orthogonal, so the gradient is the rotation by the opposite angle.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, for_rows, tensor_like};
use crate::Result;

/// Cosines and sines of all positions up to a limit, `[positions, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Arc<Vec<f32>>,
    sin: Arc<Vec<f32>>,
    half: usize,
}

/// Which position each row of a batch starts at: `position = column − pad` (columns in the padding get 0).
#[derive(Debug, Clone)]
pub struct RowPositions {
    /// Masked columns of each batch row.
    pub pads: Arc<Vec<usize>>,
    /// Columns already in the cache.
    pub past: usize,
}

impl RopeTable {
    /// Angles `position · theta^(−2i / head_dim)`, computed in f64.
    pub fn new(theta: f64, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let angles = |f: fn(f64) -> f64| {
            // transformers builds the angles in f32; so do we, or logits drift apart at high positions.
            let angle = |p: usize, w: f64| f64::from(p as f32 * w as f32);
            Arc::new((0..positions).flat_map(|p| frequencies.iter().map(move |w| f(angle(p, *w)) as f32)).collect())
        };
        Self { cos: angles(f64::cos), sin: angles(f64::sin), half }
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Rotates every head of `x`.
    ///
    /// *Shapes*: `x` `[batch, pos, heads · head_dim]`. Differentiable in `x`.
    ///
    /// # Errors
    /// When a position lies beyond the table or shapes disagree.
    pub fn rotate(&self, x: &Tensor, rows: &RowPositions) -> Result<Tensor> {
        let (_, cols, _) = x.dims3()?;
        if cols + rows.past > self.positions() {
            return Err(crate::Error::input(
                "position embedding",
                format!("expected at most {} tokens, got {}", self.positions(), cols + rows.past),
            ));
        }
        if x.device().is_cpu() {
            let op = Rotate { table: self.clone(), rows: rows.clone(), cols, sign: 1.0 };
            return Ok(x.contiguous()?.apply_op1(op)?);
        }
        self.rotate_plain(x, rows)
    }

    /// The same from candle's own differentiable operations.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn rotate_plain(&self, x: &Tensor, rows: &RowPositions) -> Result<Tensor> {
        let (batch, cols, width) = x.dims3()?;
        let (half, device) = (self.half, x.device());
        let gather = |table: &[f32]| {
            let values: Vec<f32> = (0..batch)
                .flat_map(|row| (0..cols).map(move |col| (col + rows.past).saturating_sub(rows.pads[row])))
                .flat_map(|p| table[p * half..][..half].iter().copied())
                .collect();
            Tensor::from_vec(values, (batch, cols, 1, half), device)
        };
        let (cos, sin) = (gather(&self.cos)?, gather(&self.sin)?);
        let x = x.reshape((batch, cols, width / (2 * half), 2 * half))?;
        let (left, right) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let first = (left.broadcast_mul(&cos)? - right.broadcast_mul(&sin)?)?;
        let second = (right.broadcast_mul(&cos)? + left.broadcast_mul(&sin)?)?;
        Ok(Tensor::cat(&[first, second], 3)?.reshape((batch, cols, width))?)
    }
}

struct Rotate {
    table: RopeTable,
    rows: RowPositions,
    cols: usize,
    sign: f32,
}

impl Rotate {
    fn run(&self, x: &[f32], width: usize, sign: f32) -> Vec<f32> {
        let half = self.table.half;
        let mut out = vec![0.0; x.len()];
        for_rows(&mut out, width, |token, out| {
            let (row, col) = (token / self.cols, token % self.cols);
            let position = (col + self.rows.past).saturating_sub(self.rows.pads[row]);
            let cos = &self.table.cos[position * half..][..half];
            let sin = &self.table.sin[position * half..][..half];
            let x = &x[token * width..][..width];
            for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                let ((left, right), (first, second)) = (x.split_at(half), out.split_at_mut(half));
                for i in 0..half {
                    let sin = sign * sin[i];
                    first[i] = left[i] * cos[i] - right[i] * sin;
                    second[i] = right[i] * cos[i] + left[i] * sin;
                }
            }
        });
        out
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = layout.dims()[2];
        Ok((CpuStorage::F32(self.run(contiguous(x, layout)?, width, self.sign)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let width = x.dim(2)?;
        let grad = flat(grad)?;
        let turned = self.run(&grad.values()?, width, -self.sign);
        Ok(Some(tensor_like(turned, x)?))
    }
}
