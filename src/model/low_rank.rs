//! `x + (x·downᵀ)·up`: what a low-rank edit of activations does, in one operation on the CPU.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, for_rows, tensor_like};
use crate::Result;
use crate::math::gemm::{View, gemm, product};

/// `x + (x·downᵀ)·up` for `x` `[.., d]`, `down` and `up` `[rank, d]`; differentiable in all three.
///
/// # Errors
/// When shapes disagree.
pub fn plus_low_rank(x: &Tensor, down: &Tensor, up: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op3(&down.contiguous()?, &up.contiguous()?, PlusLowRank)?);
    }
    plus_low_rank_plain(x, down, up)
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When shapes disagree.
pub fn plus_low_rank_plain(x: &Tensor, down: &Tensor, up: &Tensor) -> Result<Tensor> {
    let flat = x.reshape(((), down.dim(1)?))?;
    Ok((&flat + flat.matmul(&down.t()?)?.matmul(up)?)?.reshape(x.shape())?)
}

struct PlusLowRank;

impl CustomOp3 for PlusLowRank {
    fn name(&self) -> &'static str {
        "plus-low-rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rank, d) = down_layout.shape().dims2()?;
        if x_layout.dims().last() != Some(&d) || up_layout.dims() != [rank, d] {
            candle_core::bail!("low rank: x {:?}, down [{rank}, {d}], up {:?}", x_layout.dims(), up_layout.dims());
        }
        let (x, down, up) = (contiguous(x, x_layout)?, contiguous(down, down_layout)?, contiguous(up, up_layout)?);
        let rows = x.len() / d;
        let low = product((rows, d, rank), View::rows(x, d), View::rows(down, d).t());
        let mut out = x.to_vec();
        add_product(&low, up, &mut out, d);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // c = x·downᵀ, y = x + c·up:  dc = dy·upᵀ,  dx = dy + dc·down,  ddown = dcᵀ·x,  dup = cᵀ·dy.
        let (rank, d) = down.dims2()?;
        let (xs, fd, fu, dy) = (flat(x)?, flat(down)?, flat(up)?, flat(grad)?);
        let (xs, fd, fu, dy) = (xs.values()?, fd.values()?, fu.values()?, dy.values()?);
        let rows = xs.len() / d;
        let (view_x, view_down, view_dy) = (View::rows(&xs, d), View::rows(&fd, d), View::rows(&dy, d));
        let dc = product((rows, d, rank), view_dy, View::rows(&fu, d).t());
        let dx = x.track_op().then(|| {
            let mut dx = dy.to_vec();
            add_product(&dc, &fd, &mut dx, d);
            tensor_like(dx, x)
        });
        let ddown =
            down.track_op().then(|| tensor_like(product((rank, rows, d), View::rows(&dc, rank).t(), view_x), down));
        let dup = up.track_op().then(|| {
            let low = product((rows, d, rank), view_x, view_down.t());
            tensor_like(product((rank, rows, d), View::rows(&low, rank).t(), view_dy), up)
        });
        Ok((dx.transpose()?, ddown.transpose()?, dup.transpose()?))
    }
}

/// `out ← out + low·up` for `low` `[rows, rank]` and `up` `[rank, d]`.
fn add_product(low: &[f32], up: &[f32], out: &mut [f32], d: usize) {
    let rank = up.len() / d;
    if rank != 1 {
        gemm((out.len() / d, rank, d), View::rows(low, rank), View::rows(up, d), out, d, 1.0, 1.0);
        return;
    }
    // The general product's way with an outer product takes as long as a projection of the whole block.
    for_rows(
        out,
        d,
        #[inline(always)]
        |row, out| {
            let factor = low[row];
            for (out, up) in out.iter_mut().zip(up) {
                *out += factor * up;
            }
        },
    );
}
