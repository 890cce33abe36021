//! Next-token losses with their own backward pass.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, for_indices, tensor_like};
use crate::Result;
use crate::math::float::softmax_prefix;

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

/// Log-probabilities of every row, detached: the reference of [`kl_divergence`].
///
/// # Errors
/// When the device is out of memory.
pub fn log_probabilities(logits: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(&logits.detach(), 1)?)
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
        let parts = for_indices(rows, rows * vocab * 4, |row| {
            let logits = &logits[row * vocab..][..vocab];
            let mut p = logits.to_vec();
            let log_sum = softmax_prefix(&mut p, 0, vocab);
            let loss = match (&self.target, reference) {
                (Target::Tokens(targets), _) => f64::from(log_sum - logits[targets[row] as usize]),
                (Target::LogDistribution(_), Some(reference)) => {
                    let reference = &reference[row * vocab..][..vocab];
                    let terms = reference.iter().zip(logits).map(|(r, x)| f64::from(r.exp() * (r - (x - log_sum))));
                    terms.sum()
                }
                (Target::LogDistribution(_), None) => 0.0, // a distribution target always has values
            };
            (loss, p)
        });
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
