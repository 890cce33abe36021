//! Losses with their own backward pass: of next tokens, and of what a block gives.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, for_indices, for_rows, tensor_like, with_values};
use crate::Result;
use crate::math::float::{exp, softmax_prefix, squares};

/// What the predicted distribution is compared with.
#[derive(Debug, Clone)]
enum Target {
    /// One token per row.
    Tokens(Vec<u32>),
    /// A log-distribution per row, `[rows, vocab]`.
    LogDistribution(Tensor),
}

/// Weighted sum over rows of the negative log-likelihood of `targets`, in nats; weights of `1/rows` give the mean.
///
/// *Shapes*: `logits` `[rows, vocab]`; `targets` and `weights` one entry per row. Scalar result. Differentiable in `logits`.
///
/// # Errors
/// When lengths disagree or a target lies outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let (rows, vocab) = logits.dims2()?;
    if targets.len() != rows || weights.len() != rows || targets.iter().any(|t| *t as usize >= vocab) {
        return Err(crate::Error::input(
            "cross-entropy",
            format!(
                "expected {rows} targets below {vocab} and as many weights, got {} and {}",
                targets.len(),
                weights.len()
            ),
        ));
    }
    if logits.device().is_cpu() {
        let op =
            Divergence { target: Target::Tokens(targets.to_vec()), weights: weights.to_vec(), saved: OnceLock::new() };
        return Ok(logits.contiguous()?.apply_op1(op)?);
    }
    let log = candle_nn::ops::log_softmax(logits, 1)?;
    let index = Tensor::from_slice(targets, (rows, 1), logits.device())?;
    let weights = Tensor::from_slice(weights, (rows, 1), logits.device())?;
    Ok((log.gather(&index, 1)?.mul(&weights)?.sum_all()? * -1.0)?)
}

/// Weighted sum over rows of `KL(reference ‖ model)` in nats.
///
/// *Shapes*: `logits` and `reference` (log-probabilities) `[rows, vocab]`. Scalar result. Differentiable in `logits`.
///
/// # Errors
/// When shapes disagree.
pub fn kl_divergence(logits: &Tensor, reference: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let (rows, _) = logits.dims2()?;
    if reference.dims() != logits.dims() || weights.len() != rows {
        return Err(crate::Error::input(
            "divergence",
            format!(
                "expected references {:?} and {rows} weights, got {:?} and {}",
                logits.dims(),
                reference.dims(),
                weights.len()
            ),
        ));
    }
    if logits.device().is_cpu() {
        let target = Target::LogDistribution(reference.detach().contiguous()?);
        let op = Divergence { target, weights: weights.to_vec(), saved: OnceLock::new() };
        return Ok(logits.contiguous()?.apply_op1(op)?);
    }
    let log = candle_nn::ops::log_softmax(logits, 1)?;
    let weights = Tensor::from_slice(weights, (rows, 1), logits.device())?;
    Ok(reference.exp()?.mul(&(reference - log)?)?.broadcast_mul(&weights)?.sum_all()?)
}

/// Weighted sum over rows of the squared distance to `target`, `Σ wᵢ ‖outputᵢ − targetᵢ‖²`.
///
/// *Shapes*: `output` and `target` `[rows, width]`, `weights` `[rows, 1]`. Scalar result. Differentiable in `output`.
///
/// # Errors
/// When shapes disagree.
pub fn squared_distance(output: &Tensor, target: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (rows, _) = output.dims2()?;
    if target.dims() != output.dims() || weights.dims() != [rows, 1] {
        return Err(crate::Error::input(
            "squared distance",
            format!(
                "expected targets {:?} and weights [{rows}, 1], got {:?} and {:?}",
                output.dims(),
                target.dims(),
                weights.dims()
            ),
        ));
    }
    if output.device().is_cpu() {
        let op = SquaredDistance { target: target.detach(), weights: weights.detach() };
        return Ok(output.contiguous()?.apply_op1(op)?);
    }
    Ok((output - target)?.sqr()?.broadcast_mul(weights)?.sum_all()?)
}

struct SquaredDistance {
    target: Tensor,
    weights: Tensor,
}

impl CustomOp1 for SquaredDistance {
    fn name(&self) -> &'static str {
        "squared-distance"
    }

    fn cpu_fwd(&self, output: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let output = contiguous(output, layout)?;
        with_values([&self.target, &self.weights], |[target, weights]| {
            let distances = for_indices(
                rows,
                rows * width,
                #[inline(always)]
                |row| {
                    let (a, b) = (&output[row * width..][..width], &target[row * width..][..width]);
                    weights[row] * squares(a, b)
                },
            );
            // Rows are few and may be many sizes apart.
            let total: f64 = distances.iter().map(|v| f64::from(*v)).sum();
            Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
        })
    }

    fn bwd(&self, output: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let scale = 2.0 * grad.to_scalar::<f32>()?;
        let (_, width) = output.dims2()?;
        with_values([output, &self.target, &self.weights], |[values, target, weights]| {
            let mut out = vec![0.0; values.len()];
            for_rows(
                &mut out,
                width,
                #[inline(always)]
                |row, out| {
                    let (a, b) = (&values[row * width..][..width], &target[row * width..][..width]);
                    let factor = scale * weights[row];
                    for i in 0..width {
                        out[i] = factor * (a[i] - b[i]);
                    }
                },
            );
            Ok(Some(tensor_like(out, output)?))
        })
    }
}

/// Log-probabilities of every row, detached: the reference of [`kl_divergence`].
///
/// # Errors
/// When the device is out of memory.
pub fn log_probabilities(logits: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(&logits.detach(), 1)?)
}

/// `Σ exp(r)·(r − (x − log_sum))` over log-probabilities `r` and logits `x`, in eight interleaved lanes.
#[inline(always)]
fn divergence_of_row(reference: &[f32], logits: &[f32], log_sum: f32) -> f64 {
    let term = |r: f32, x: f32| f64::from(exp(r) * (r - (x - log_sum)));
    let mut lanes = [0_f64; 8];
    let (references, rows) = (reference.chunks_exact(8), logits.chunks_exact(8));
    let tail: f64 = references.remainder().iter().zip(rows.remainder()).map(|(r, x)| term(*r, *x)).sum();
    for (r, x) in references.zip(rows) {
        for i in 0..8 {
            lanes[i] += term(r[i], x[i]);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

struct Divergence {
    target: Target,
    weights: Vec<f32>,
    /// Model probabilities `[rows, vocab]` of the forward pass.
    saved: OnceLock<Vec<Vec<f32>>>,
}

impl CustomOp1 for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, vocab) = layout.shape().dims2()?;
        let logits = contiguous(logits, layout)?;
        let reference = match &self.target {
            Target::Tokens(_) => None,
            Target::LogDistribution(reference) => Some(flat(reference)?),
        };
        let reference = reference.as_ref().map(|r| r.values()).transpose()?;
        let reference: Option<&[f32]> = reference.as_deref();
        let parts = for_indices(
            rows,
            rows * vocab * 4,
            #[inline(always)]
            |row| {
                let logits = &logits[row * vocab..][..vocab];
                let mut p = logits.to_vec();
                let log_sum = softmax_prefix(&mut p, 0, vocab);
                let loss = match (&self.target, reference) {
                    (Target::Tokens(targets), _) => f64::from(log_sum - logits[targets[row] as usize]),
                    (Target::LogDistribution(_), Some(reference)) => {
                        divergence_of_row(&reference[row * vocab..][..vocab], logits, log_sum)
                    }
                    (Target::LogDistribution(_), None) => 0.0, // a distribution target always has values
                };
                (loss, p)
            },
        );
        let total: f64 = parts.iter().zip(&self.weights).map(|((loss, _), w)| loss * f64::from(*w)).sum();
        let _ = self.saved.set(parts.into_iter().map(|(_, p)| p).collect());
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        // Both losses have the gradient w·(p_model − p_target).
        let scale = grad.to_scalar::<f32>()?;
        let Some(saved) = self.saved.get() else {
            candle_core::bail!("divergence: backward before forward");
        };
        let mut out: Vec<f32> = Vec::with_capacity(logits.elem_count());
        for (p, w) in saved.iter().zip(&self.weights) {
            out.extend(p.iter().map(|p| p * w * scale));
        }
        let vocab = logits.dim(1)?;
        match &self.target {
            Target::Tokens(targets) => {
                for (row, target) in targets.iter().enumerate() {
                    out[row * vocab + *target as usize] -= self.weights[row] * scale;
                }
            }
            Target::LogDistribution(reference) => {
                let reference = flat(reference)?;
                for (row, r) in reference.values()?.chunks_exact(vocab).enumerate() {
                    for (out, r) in out[row * vocab..][..vocab].iter_mut().zip(r) {
                        *out -= r.exp() * self.weights[row] * scale;
                    }
                }
            }
        }
        Ok(Some(tensor_like(out, logits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::optimiser::host_values;
    use candle_core::{Device, Var};

    #[test]
    fn the_fused_distance_and_its_gradient_are_those_of_plain_operations() {
        let noise = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let make = |n: usize, shape: (usize, usize), k| Tensor::from_vec(noise(n, k), shape, &Device::Cpu).unwrap();
        let (target, weights) = (make(33, (3, 11), 0.3), make(3, (3, 1), 1.7));
        let output = Var::from_tensor(&make(33, (3, 11), 0.9)).unwrap();
        let fused = squared_distance(output.as_tensor(), &target, &weights).unwrap();
        let plain = (output.as_tensor() - &target).unwrap().sqr().unwrap().broadcast_mul(&weights).unwrap().sum_all();
        let plain = plain.unwrap();
        assert!((fused.to_scalar::<f32>().unwrap() - plain.to_scalar::<f32>().unwrap()).abs() < 1e-5);
        let gradient = |loss: &Tensor| host_values(loss.backward().unwrap().get(&output).unwrap()).unwrap();
        let (a, b) = (gradient(&fused), gradient(&plain));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
        assert!(squared_distance(output.as_tensor(), &weights, &weights).is_err());
    }
}
