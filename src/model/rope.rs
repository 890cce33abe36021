//! Rotary position embedding in the half-split layout of Hugging Face checkpoints, with its own backward pass.
//!
//! The rotation is orthogonal but for a common factor, so the gradient is the rotation by the opposite angle.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::frequencies::Rope;
use super::kernel::{contiguous, flat, for_rows, tensor_like};
use crate::{Error, Result};

/// Cosines and sines of positions, `[positions, frequencies]` each.
#[derive(Debug, Clone)]
struct Angles {
    cos: Arc<Vec<f32>>,
    sin: Arc<Vec<f32>>,
}

/// Cosines and sines of all positions up to a limit.
#[derive(Debug, Clone)]
pub struct RopeTable {
    angles: Angles,
    /// Angles of sequences longer than a first context, and that context's length.
    beyond: Option<(usize, Angles)>,
    positions: usize,
    head_dim: usize,
    /// Frequencies of a head.
    half: usize,
    /// Cosines, then sines, on the GPU that asked for them first.
    #[cfg(feature = "cuda")]
    there: Arc<std::sync::OnceLock<Tensor>>,
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
    /// Angles `position · frequency` of a head, the frequencies computed in f64.
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let table = |beyond: bool| {
            let (frequencies, amplitude) = rope.frequencies(head_dim, beyond);
            let values = |f: fn(f64) -> f64| {
                // transformers builds the angles in f32; so do we, or logits drift apart at high positions.
                let angle = |p: usize, w: f64| f64::from(p as f32 * w as f32);
                let scaled = |p: usize, w: f64| f(angle(p, w)) as f32 * amplitude as f32;
                Arc::new((0..positions).flat_map(|p| frequencies.iter().map(move |w| scaled(p, *w))).collect())
            };
            Angles { cos: values(f64::cos), sin: values(f64::sin) }
        };
        let beyond = rope.first_context().filter(|context| *context < positions).map(|context| (context, table(true)));
        Self {
            angles: table(false),
            beyond,
            positions,
            head_dim,
            half: rope.count(head_dim),
            #[cfg(feature = "cuda")]
            there: Arc::default(),
        }
    }

    /// Number of positions in the table.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Longest sequence that one of `length` tokens can grow to: all positions, or where longer ones are turned by other angles and it is
    /// none of them yet, the first context.
    pub fn reach(&self, length: usize) -> usize {
        match &self.beyond {
            Some((context, _)) if length <= *context => *context,
            _ => self.positions,
        }
    }

    /// Angles of a sequence of that length.
    fn angles(&self, length: usize) -> &Angles {
        match &self.beyond {
            Some((context, angles)) if length > *context => angles,
            _ => &self.angles,
        }
    }

    /// Refuses rows that outgrow the first context while their older keys lie in a cache, turned by other angles.
    fn check_growth(&self, cols: usize, rows: &RowPositions) -> Result<()> {
        let Some((context, _)) = &self.beyond else { return Ok(()) };
        let crosses =
            |pad: &usize| rows.past > *pad && rows.past - pad <= *context && rows.past + cols - pad > *context;
        if rows.pads.iter().any(crosses) {
            return Err(Error::input(
                "position embedding",
                format!("expected a sequence that stays within {context} tokens or begins beyond them"),
            )
            .hint("this model turns keys by other angles in longer sequences; ask for fewer tokens"));
        }
        Ok(())
    }

    /// Rotates every head of `x`.
    ///
    /// *Shapes*: `x` `[batch, pos, heads · head_dim]`. Differentiable in `x`.
    ///
    /// # Errors
    /// When a position lies beyond the table or shapes disagree.
    pub fn rotate(&self, x: &Tensor, rows: &RowPositions) -> Result<Tensor> {
        let (_, cols, _) = x.dims3()?;
        // Columns in the padding have no position.
        let longest = (cols + rows.past).saturating_sub(rows.pads.iter().copied().min().unwrap_or(0));
        if longest > self.positions() {
            return Err(Error::input(
                "position embedding",
                format!("expected at most {} tokens, got {longest}", self.positions()),
            ));
        }
        self.check_growth(cols, rows)?;
        if x.device().is_cpu() {
            let op = Rotate { table: self.clone(), rows: rows.clone(), cols, sign: 1.0 };
            return Ok(x.contiguous()?.apply_op1(op)?);
        }
        #[cfg(feature = "cuda")]
        if self.beyond.is_none() && super::cuda::serves(x) {
            return Ok(super::cuda::rotate(x, &self.on_device(x.device())?, self.head_dim, rows)?);
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
        let gather = |table: fn(&Angles) -> &[f32]| {
            let values: Vec<f32> = (0..batch)
                .flat_map(|row| (0..cols).map(move |col| (row, col)))
                .flat_map(|(row, col)| self.of_token(table, rows, cols, row, col).iter().copied())
                .collect();
            Tensor::from_vec(values, (batch, cols, 1, half), device)
        };
        let (cos, sin) = (gather(|angles| &angles.cos)?, gather(|angles| &angles.sin)?);
        let x = x.reshape((batch, cols, width / self.head_dim, self.head_dim))?;
        let (left, right) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let first = (left.broadcast_mul(&cos)? - right.broadcast_mul(&sin)?)?;
        let second = (right.broadcast_mul(&cos)? + left.broadcast_mul(&sin)?)?;
        let rest = x.narrow(3, 2 * half, self.head_dim - 2 * half)?;
        Ok(Tensor::cat(&[first, second, rest], 3)?.reshape((batch, cols, width))?)
    }

    /// `[2, positions, half]`: cosines, then sines.
    #[cfg(feature = "cuda")]
    fn on_device(&self, device: &candle_core::Device) -> Result<Tensor> {
        if let Some(angles) = self.there.get().filter(|angles| angles.device().same_device(device)) {
            return Ok(angles.clone());
        }
        let values = self.angles.cos.iter().chain(self.angles.sin.iter()).copied().collect::<Vec<_>>();
        let angles = Tensor::from_vec(values, (2, self.positions, self.half), device)?;
        // Another thread's copy would be equal.
        let _ = self.there.set(angles.clone());
        Ok(angles)
    }

    /// The entries of one token.
    fn of_token<'a>(
        &'a self,
        table: impl Fn(&'a Angles) -> &'a [f32],
        rows: &RowPositions,
        cols: usize,
        row: usize,
        col: usize,
    ) -> &'a [f32] {
        let pad = rows.pads[row];
        let angles = self.angles((rows.past + cols).saturating_sub(pad));
        let position = (col + rows.past).saturating_sub(pad);
        &table(angles)[position * self.half..][..self.half]
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
        let RopeTable { half, head_dim, .. } = self.table;
        let mut out = vec![0.0; x.len()];
        for_rows(
            &mut out,
            width,
            #[inline(always)]
            |token, out| {
                let (row, col) = (token / self.cols, token % self.cols);
                let cos = self.table.of_token(|angles| &angles.cos, &self.rows, self.cols, row, col);
                let sin = self.table.of_token(|angles| &angles.sin, &self.rows, self.cols, row, col);
                let x = &x[token * width..][..width];
                for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                    let ((x, kept), (out, rest)) = (x.split_at(2 * half), out.split_at_mut(2 * half));
                    let ((left, right), (first, second)) = (x.split_at(half), out.split_at_mut(half));
                    for i in 0..half {
                        let sin = sign * sin[i];
                        first[i] = left[i] * cos[i] - right[i] * sin;
                        second[i] = right[i] * cos[i] + left[i] * sin;
                    }
                    rest.copy_from_slice(kept);
                }
            },
        );
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
