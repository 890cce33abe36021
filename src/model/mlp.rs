//! The gated activations of the feed-forward part, `f(gate) ∘ up`, with a backward pass of their own.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::blueprint::Activation;
use super::kernel::{contiguous, for_pairs, for_values, tensor_like, with_values};
use crate::Result;
use crate::math::float::exp;

/// `f(gate) ∘ up`.
///
/// *Shapes*: both `[…, d_ff]`, f32. Differentiable in both.
///
/// # Errors
/// When shapes disagree.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::cuda::serves(gate) && super::cuda::serves(up) {
        return Ok(super::cuda::gated(activation, gate, up)?);
    }
    match activation {
        Activation::Silu => swiglu(gate, up),
        Activation::GeluTanh => geglu(gate, up),
    }
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When shapes disagree.
pub fn gated_plain(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => swiglu_plain(gate, up),
        Activation::GeluTanh => geglu_plain(gate, up),
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
        return Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, Gated(Silu))?);
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

/// `gelu(gate) ∘ up` with the tanh approximation `gelu(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
///
/// *Shapes*: both `[…, d_ff]`, f32. Differentiable in both.
///
/// # Errors
/// When shapes disagree.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.device().is_cpu() {
        return Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, Gated(GeluTanh))?);
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

/// The arithmetic of an activation.
pub(super) trait Gate: Send + Sync {
    const NAME: &'static str;

    /// `f(x)`.
    fn active(x: f32) -> f32;

    /// `(d·u·f'(x), d·f(x))`: the gradients of `f(x)·u`.
    fn back(x: f32, u: f32, d: f32) -> (f32, f32);
}

pub(super) struct Silu;

impl Gate for Silu {
    const NAME: &'static str = "swiglu";

    #[inline(always)]
    fn active(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    #[inline(always)]
    fn back(x: f32, u: f32, d: f32) -> (f32, f32) {
        // s = σ(x): d(x·s)/dx = s·(1 + x·(1 − s)).
        let s = 1.0 / (1.0 + exp(-x));
        (d * u * s * (1.0 + x * (1.0 - s)), x * s * d)
    }
}

pub(super) struct GeluTanh;

/// `√(2/π)`.
const SLOPE: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl GeluTanh {
    /// `(1 + tanh(v)) / 2 = σ(2v)` of gelu's `v`.
    #[inline(always)]
    fn share(x: f32) -> f32 {
        1.0 / (1.0 + exp(-2.0 * SLOPE * (x + CUBIC * x * x * x)))
    }
}

impl Gate for GeluTanh {
    const NAME: &'static str = "geglu";

    #[inline(always)]
    fn active(x: f32) -> f32 {
        x * Self::share(x)
    }

    #[inline(always)]
    fn back(x: f32, u: f32, d: f32) -> (f32, f32) {
        // s = σ(2v(x)): d(x·s)/dx = s + x·s·(1 − s)·2v'(x).
        let s = Self::share(x);
        let steep = 2.0 * SLOPE * (1.0 + 3.0 * CUBIC * x * x);
        (d * u * (s + x * s * (1.0 - s) * steep), x * s * d)
    }
}

/// `f(gate) ∘ up`.
pub(super) fn active<G: Gate>(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    for_values(
        &mut out,
        #[inline(always)]
        |at, out| {
            let (gate, up) = (&gate[at..][..out.len()], &up[at..][..out.len()]);
            for i in 0..out.len() {
                out[i] = G::active(gate[i]) * up[i];
            }
        },
    );
    out
}

/// Gradients of gate and up from that of `f(gate) ∘ up`.
pub(super) fn active_back<G: Gate>(gate: &[f32], up: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    for_pairs(
        &mut dgate,
        &mut dup,
        #[inline(always)]
        |at, dgate, dup| {
            let [g, u, d] = [gate, up, grad].map(|values| &values[at..][..dgate.len()]);
            let dup = &mut dup[..dgate.len()];
            for i in 0..dgate.len() {
                (dgate[i], dup[i]) = G::back(g[i], u[i], d[i]);
            }
        },
    );
    [dgate, dup]
}

struct Gated<G>(G);

impl<G: Gate> CustomOp2 for Gated<G> {
    fn name(&self) -> &'static str {
        G::NAME
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
            candle_core::bail!("{}: gate {:?}, up {:?}", G::NAME, gate_layout.dims(), up_layout.dims());
        }
        Ok((CpuStorage::F32(active::<G>(gate, up)), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        with_values([gate, up, grad], |[gates, ups, grads]| {
            let [dgate, dup] = active_back::<G>(gates, ups, grads);
            Ok((Some(tensor_like(dgate, gate)?), Some(tensor_like(dup, up)?)))
        })
    }
}
