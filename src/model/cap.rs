//! The soft cap `c · tanh(x / c)` with a backward pass of its own.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::kernel::{contiguous, for_values, tensor_like, with_values};
use crate::Result;
use crate::math::float::tanh;

/// `cap · tanh(x / cap)`: the identity near 0, bounded by `±cap`.
///
/// *Shapes*: any, f32. Differentiable in `x`.
///
/// # Errors
/// When the device is out of memory.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op1(SoftCap { cap: cap as f32 })?);
    }
    soft_cap_plain(x, cap)
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When the device is out of memory.
pub fn soft_cap_plain(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}

struct SoftCap {
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let mut out = vec![0.0; x.len()];
        for_values(
            &mut out,
            #[inline(always)]
            |at, out| {
                let x = &x[at..][..out.len()];
                for i in 0..out.len() {
                    out[i] = self.cap * tanh(x[i] / self.cap);
                }
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        // dy/dx = 1 − (y / c)².
        with_values([y, grad], |[ys, grads]| {
            let mut dx = vec![0.0; ys.len()];
            for_values(
                &mut dx,
                #[inline(always)]
                |at, out| {
                    let (y, dy) = (&ys[at..][..out.len()], &grads[at..][..out.len()]);
                    for i in 0..out.len() {
                        let t = y[i] / self.cap;
                        out[i] = dy[i] * (1.0 - t * t);
                    }
                },
            );
            Ok(Some(tensor_like(dx, x)?))
        })
    }
}
