//! The gated activations of the feed-forward part, `f(gate) ∘ up`, with a backward pass of their own.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::blueprint::Activation;
use super::kernel::{contiguous, flat, for_values, tensor_like};
use crate::Result;
use crate::math::float::exp;

/// `f(gate) ∘ up`.
///
/// *Shapes*: both `[…, d_ff]`, f32. Differentiable in both.
///
/// # Errors
/// When shapes disagree.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => swiglu(gate, up),
        Activation::GeluTanh => geglu(gate, up),
    }
}

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
        for_values(&mut out, |at, out| {
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
        for_values(&mut dup, |at, out| {
            let (g, d) = (&fg[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = g[i] / (1.0 + exp(-g[i])) * d[i];
            }
        });
        let mut dgate = vec![0.0; fg.len()];
        for_values(&mut dgate, |at, out| {
            let (g, u, d) = (&fg[at..][..out.len()], &fu[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                let s = 1.0 / (1.0 + exp(-g[i]));
                out[i] = d[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
            }
        });
        Ok((Some(tensor_like(dgate, gate)?), Some(tensor_like(dup, up)?)))
    }
}

/// `gelu(gate) ∘ up` with the tanh approximation `gelu(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
///
/// *Shapes*: both `[…, d_ff]`, f32. Differentiable in both.
///
/// # Errors
/// When shapes disagree.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, GeGlu)?);
    }
    geglu_plain(gate, up)
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When shapes disagree.
pub fn geglu_plain(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.gelu()? * up)?)
}

struct GeGlu;

/// `√(2/π)`.
const SLOPE: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `(1 + tanh(u)) / 2 = σ(2u)` of gelu's `u`.
#[inline(always)]
fn share(x: f32) -> f32 {
    1.0 / (1.0 + exp(-2.0 * SLOPE * (x + CUBIC * x * x * x)))
}

impl CustomOp2 for GeGlu {
    fn name(&self) -> &'static str {
        "geglu"
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
            candle_core::bail!("geglu: gate {:?}, up {:?}", gate_layout.dims(), up_layout.dims());
        }
        let mut out = vec![0.0; gate.len()];
        for_values(&mut out, |at, out| {
            let (gate, up) = (&gate[at..][..out.len()], &up[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = gate[i] * share(gate[i]) * up[i];
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
        // s = σ(2u(g)): d(g·s)/dg = s + g·s·(1 − s)·2u'(g).
        let (fg, fu, fd) = (flat(gate)?, flat(up)?, flat(grad)?);
        let (fg, fu, fd) = (fg.values()?, fu.values()?, fd.values()?);
        let (fg, fu, fd): (&[f32], &[f32], &[f32]) = (&fg, &fu, &fd);
        let mut dup = vec![0.0; fg.len()];
        for_values(&mut dup, |at, out| {
            let (g, d) = (&fg[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = g[i] * share(g[i]) * d[i];
            }
        });
        let mut dgate = vec![0.0; fg.len()];
        for_values(&mut dgate, |at, out| {
            let (g, u, d) = (&fg[at..][..out.len()], &fu[at..][..out.len()], &fd[at..][..out.len()]);
            for i in 0..out.len() {
                let s = share(g[i]);
                let steep = 2.0 * SLOPE * (1.0 + 3.0 * CUBIC * g[i] * g[i]);
                out[i] = d[i] * u[i] * (s + g[i] * s * (1.0 - s) * steep);
            }
        });
        Ok((Some(tensor_like(dgate, gate)?), Some(tensor_like(dup, up)?)))
    }
}
