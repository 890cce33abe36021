//! RMSNorm and LayerNorm with backward passes of their own: one pass over the row instead of seven tensors.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::kernel::{contiguous, for_rows, tensor_like, with_values};
use crate::Result;
use crate::math::float::{dot, sum};

/// A norm with its parameters.
#[derive(Debug, Clone)]
pub(super) enum Norm {
    /// [`rms_norm`] with a gain.
    Rms(Tensor),
    /// [`layer_norm`] with a gain and a bias.
    Layer(Tensor, Tensor),
}

impl Norm {
    /// The norm with its tensors replaced by `change(name, tensor)`.
    pub(super) fn mapped(&self, name: &str, change: &mut impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Rms(gain) => Self::Rms(change(&format!("{name}.weight"), gain)?),
            Self::Layer(gain, bias) => {
                Self::Layer(change(&format!("{name}.weight"), gain)?, change(&format!("{name}.bias"), bias)?)
            }
        })
    }
    /// The normed last dimension of `x`.
    pub fn forward(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        match self {
            Self::Rms(gain) => rms_norm(x, gain, eps),
            Self::Layer(gain, bias) => layer_norm(x, gain, bias, eps),
        }
    }
}

/// `x / rms(x) · gain`, `rms(x) = sqrt(mean(x²) + eps)` over the last dimension.
///
/// *Shapes*: `x` `[…, d]`, `gain` `[d]`, f32. Differentiable in `x`, and in `gain` where it is a variable.
///
/// # Errors
/// When shapes disagree.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op2(gain, RmsNorm { eps: eps as f32 })?);
    }
    #[cfg(feature = "cuda")]
    if super::cuda::serves(x) && super::cuda::serves(gain) && !gain.track_op() {
        return Ok(super::cuda::rms_norm(x, gain, eps)?);
    }
    rms_norm_plain(x, gain, eps)
}

/// The same from candle's own differentiable operations: what the fused forms are tested against.
///
/// # Errors
/// When shapes disagree.
pub fn rms_norm_plain(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    Ok(x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(gain)?)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, gain) = (contiguous(x, x_layout)?, contiguous(gain, gain_layout)?);
        let d = gain.len();
        let mut out = vec![0.0; x.len()];
        for_rows(
            &mut out,
            d,
            #[inline(always)]
            |row, out| {
                let x = &x[row * d..][..d];
                let inverse = 1.0 / (dot(x, x) / d as f32 + self.eps).sqrt();
                for i in 0..d {
                    out[i] = x[i] * inverse * gain[i];
                }
            },
        );
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // y = x·s·g, s = (mean x² + eps)^(-1/2):  dx = s·(g∘dy) − x·s³·⟨x, g∘dy⟩/d,  dg = Σ dy·x·s.
        with_values([x, gain, grad], |[xs, gains, grads]| {
            let d = gains.len();
            let dx = if x.track_op() {
                let mut dx = vec![0.0; xs.len()];
                for_rows(
                    &mut dx,
                    d,
                    #[inline(always)]
                    |row, out| {
                        let (x, dy) = (&xs[row * d..][..d], &grads[row * d..][..d]);
                        for i in 0..d {
                            out[i] = dy[i] * gains[i];
                        }
                        let inverse = 1.0 / (dot(x, x) / d as f32 + self.eps).sqrt();
                        let pull = dot(x, out) * inverse * inverse * inverse / d as f32;
                        for i in 0..d {
                            out[i] = out[i] * inverse - x[i] * pull;
                        }
                    },
                );
                Some(tensor_like(dx, x)?)
            } else {
                None
            };
            let dgain = if gain.track_op() {
                let mut dgain = vec![0.0; d];
                for (x, dy) in xs.chunks_exact(d).zip(grads.chunks_exact(d)) {
                    let inverse = 1.0 / (dot(x, x) / d as f32 + self.eps).sqrt();
                    for i in 0..d {
                        dgain[i] += dy[i] * x[i] * inverse;
                    }
                }
                Some(tensor_like(dgain, gain)?)
            } else {
                None
            };
            Ok((dx, dgain))
        })
    }
}

/// `(x − mean) / sd · gain + bias`, `sd = sqrt(variance + eps)`, over the last dimension.
///
/// *Shapes*: `x` `[…, d]`, `gain` and `bias` `[d]`, f32. Differentiable in `x`, and in `gain` and `bias` where they are
/// variables.
///
/// # Errors
/// When shapes disagree.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op3(gain, bias, LayerNorm { eps: eps as f32 })?);
    }
    layer_norm_plain(x, gain, bias, eps)
}

/// The same from candle's own differentiable operations.
///
/// # Errors
/// When shapes disagree.
pub fn layer_norm_plain(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(candle_core::D::Minus1)?)?;
    Ok(rms_norm_plain(&centred, gain, eps)?.broadcast_add(bias)?)
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Mean and inverse standard deviation of a row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let mean = sum(x) / x.len() as f32;
        // Of the centred values: the difference of two large squares would lose the small ones.
        let variance = x.iter().fold(0.0, |total, x| total + (x - mean) * (x - mean)) / x.len() as f32;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, gain, bias) =
            (contiguous(x, x_layout)?, contiguous(gain, gain_layout)?, contiguous(bias, bias_layout)?);
        let d = gain.len();
        if bias.len() != d || x_layout.dims().last() != Some(&d) {
            candle_core::bail!("layer-norm: x {:?}, gain [{d}], bias [{}]", x_layout.dims(), bias.len());
        }
        let mut out = vec![0.0; x.len()];
        for_rows(
            &mut out,
            d,
            #[inline(always)]
            |row, out| {
                let x = &x[row * d..][..d];
                let (mean, inverse) = self.moments(x);
                for i in 0..d {
                    out[i] = (x[i] - mean) * inverse * gain[i] + bias[i];
                }
            },
        );
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // n = (x − mean)·s, y = n·g + b, e = g∘dy:  dx = s·(e − mean(e) − n·mean(n∘e)),  dg = Σ dy∘n,  db = Σ dy.
        with_values([x, gain, grad], |[xs, gains, grads]| {
            let d = gains.len();
            let dx = if x.track_op() {
                let mut dx = vec![0.0; xs.len()];
                for_rows(
                    &mut dx,
                    d,
                    #[inline(always)]
                    |row, out| {
                        let (x, dy) = (&xs[row * d..][..d], &grads[row * d..][..d]);
                        let (mean, inverse) = self.moments(x);
                        for i in 0..d {
                            out[i] = dy[i] * gains[i];
                        }
                        let level = sum(out) / d as f32;
                        let pull = (dot(x, out) - mean * sum(out)) * inverse / d as f32;
                        for i in 0..d {
                            out[i] = inverse * (out[i] - level - (x[i] - mean) * inverse * pull);
                        }
                    },
                );
                Some(tensor_like(dx, x)?)
            } else {
                None
            };
            let mut dgain = vec![0.0; d];
            let mut dbias = vec![0.0; d];
            if gain.track_op() || bias.track_op() {
                for (x, dy) in xs.chunks_exact(d).zip(grads.chunks_exact(d)) {
                    let (mean, inverse) = self.moments(x);
                    for i in 0..d {
                        dgain[i] += dy[i] * (x[i] - mean) * inverse;
                        dbias[i] += dy[i];
                    }
                }
            }
            let dgain = if gain.track_op() { Some(tensor_like(dgain, gain)?) } else { None };
            let dbias = if bias.track_op() { Some(tensor_like(dbias, bias)?) } else { None };
            Ok((dx, dgain, dbias))
        })
    }
}
