//! The gated activation of the feed-forward part, `silu(gate) ∘ up`, with its own backward pass.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, for_rows, tensor_like};
use crate::Result;
use crate::math::float::exp;

/// Values per unit of work.
const CHUNK: usize = 1024;

/// `silu(gate) ∘ up`.
///
/// *Shapes*: both `[…, d_ff]`, f32. Differentiable in both.
///
/// # Errors
/// When shapes disagree.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)?);
    }
    swiglu_plain(gate, up)
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When shapes disagree.
pub fn swiglu_plain(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gate, gate_layout)?, contiguous(up, up_layout)?);
        if gate.len() != up.len() {
            candle_core::bail!("swiglu: gate {:?}, up {:?}", gate_layout.dims(), up_layout.dims());
        }
        let mut out = vec![0.0; gate.len()];
        for_rows_of(&mut out, |at, out| {
            let (gate, up) = (&gate[at..][..out.len()], &up[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
            }
        });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // s = σ(g): d(g·s)/dg = s·(1 + g·(1 − s)).
        let (fg, fu, fd) = (flat(gate)?, flat(up)?, flat(grad)?);
        let (fg, fu, fd) = (fg.values()?, fu.values()?, fd.values()?);
        let (fg, fu, fd): (&[f32], &[f32], &[f32]) = (&fg, &fu, &fd);
        let mut dup = vec![0.0; fg.len()];
        for_rows_of(&mut dup, |at, out| {
            let (g, d) = (&fg[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = g[i] / (1.0 + exp(-g[i])) * d[i];
            }
        });
        let mut dgate = vec![0.0; fg.len()];
        for_rows_of(&mut dgate, |at, out| {
            let (g, u, d) = (&fg[at..][..out.len()], &fu[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                let s = 1.0 / (1.0 + exp(-g[i]));
                out[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
            }
        });
        Ok((Some(tensor_like(dgate, gate)?), Some(tensor_like(dup, up)?)))
    }
}

fn for_rows_of(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let whole = out.len() / CHUNK * CHUNK;
    let (head, tail) = out.split_at_mut(whole);
    for_rows(head, CHUNK, |row, out| work(row * CHUNK, out));
    if !tail.is_empty() {
        let width = tail.len();
        for_rows(tail, width, |_, out| work(whole, out));
    }
}
