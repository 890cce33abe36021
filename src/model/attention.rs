//! Causal grouped-query attention with a backward pass of its own.
//!
//! Keys and values are never repeated per query head, nothing is transposed in memory, and padding is a start column per
//! row instead of a mask tensor. The probabilities are kept for the backward pass, one `[queries, keys]` matrix per head.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

use super::cap::soft_cap_plain;
use super::kernel::{contiguous, for_indices, tensor_like, with_values};
use crate::Result;
use crate::math::float::{dot, softmax_prefix, tanh};
use crate::math::gemm::{View, gemm};

/// Shape of one attention call.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Masked columns of each batch row.
    pub pads: Arc<Vec<usize>>,
    /// Columns in the cache before the first query.
    pub past: usize,
    /// Factor on scores, mostly `1/√head_dim`.
    pub scale: f32,
    /// `c` of `c · tanh(score / c)`, applied to scaled scores.
    pub cap: Option<f32>,
    /// Latest columns that a query sees, its own included; `None`: all before it.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// First key that the query in column `at` sees; padding columns see themselves, so that no row is empty.
    fn start(&self, row: usize, at: usize) -> usize {
        let windowed = self.window.map_or(0, |window| (at + 1).saturating_sub(window));
        self.pads[row].max(windowed).min(at)
    }
}

/// `softmax(cap(scale · q kᵀ)) v`, causal, over a window.
///
/// *Shapes*: `q` `[batch, queries, heads · head_dim]`, `k` and `v` `[batch, capacity, kv_heads · head_dim]` of which the
/// first `past + queries` columns are read; result as `q`. Differentiable in all three where `past` is 0.
///
/// # Errors
/// When shapes disagree.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    if q.device().is_cpu() {
        let keep = q.track_op() || k.track_op() || v.track_op();
        let op = Attention { shape: shape.clone(), keep, saved: OnceLock::new() };
        return Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?);
    }
    attend_plain(q, k, v, shape)
}

/// The same from candle's own differentiable operations, with fused probabilities where the device has them. Query heads that
/// share keys are rows of one product, so that keys and values are not repeated.
///
/// # Errors
/// When shapes disagree.
pub fn attend_plain(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let AttentionShape { heads, kv_heads, head_dim, past, .. } = *shape;
    let (keys, group) = (past + queries, heads / kv_heads);
    let by_head = |x: &Tensor| -> candle_core::Result<Tensor> {
        x.narrow(1, 0, keys)?.reshape((batch, keys, kv_heads, head_dim))?.transpose(1, 2)?.contiguous()
    };
    let q = q.reshape((batch, queries, kv_heads, group, head_dim))?.permute((0, 2, 3, 1, 4))?.contiguous()?;
    let q = q.reshape((batch, kv_heads, group * queries, head_dim))?;
    let scores = q.matmul(&by_head(k)?.t()?)?;
    #[cfg(feature = "cuda")]
    let fused = super::cuda::serves(&scores).then(|| super::cuda::masked_softmax(&scores, shape)).transpose()?;
    #[cfg(not(feature = "cuda"))]
    let fused = None;
    let probabilities = fused.map_or_else(|| masked_softmax_plain(&scores, shape), Ok)?;
    let out = probabilities.matmul(&by_head(v)?)?.reshape((batch, kv_heads, group, queries, head_dim))?;
    Ok(out.permute((0, 3, 1, 2, 4))?.reshape((batch, queries, width))?)
}

/// `softmax(cap(scale · scores))` over the keys that a query sees, from candle's own differentiable operations.
///
/// *Shapes*: `[batch, kv_heads, group · queries, keys]`, the query changing fastest; result alike.
///
/// # Errors
/// When shapes disagree.
pub fn masked_softmax_plain(scores: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let (batch, _, rows, keys) = scores.dims4()?;
    let queries = keys - shape.past;
    let mut scores = (scores * f64::from(shape.scale))?;
    if let Some(cap) = shape.cap {
        scores = soft_cap_plain(&scores, f64::from(cap))?;
    }
    let mask: Vec<f32> = (0..batch)
        .flat_map(|row| (0..rows).flat_map(move |i| (0..keys).map(move |j| (row, shape.past + i % queries, j))))
        .map(|(row, at, j)| if j <= at && j >= shape.start(row, at) { 0.0 } else { -1e30 })
        .collect();
    let mask = Tensor::from_vec(mask, (batch, 1, rows, keys), scores.device())?;
    Ok(candle_nn::ops::softmax(&scores.broadcast_add(&mask)?, 3)?)
}

struct Attention {
    shape: AttentionShape,
    keep: bool,
    /// Probabilities `[batch · heads][queries · keys]` of the forward pass.
    saved: OnceLock<Vec<Vec<f32>>>,
}

/// Below this many queries a plain loop beats a packed matrix product.
const FEW_QUERIES: usize = 4;

impl Attention {
    #[inline(always)]
    fn probabilities(&self, q: &[f32], k: &[f32], row: usize, queries: usize) -> Vec<f32> {
        // q and k begin at this head; rows lie a full width apart.
        let AttentionShape { heads, kv_heads, head_dim: d, past, scale, .. } = self.shape;
        let (wide, narrow, keys) = (heads * d, kv_heads * d, past + queries);
        let mut p = vec![0.0; queries * keys];
        if queries < FEW_QUERIES {
            for i in 0..queries {
                let q = &q[i * wide..][..d];
                for (j, p) in p[i * keys..][..past + i + 1].iter_mut().enumerate() {
                    *p = dot(q, &k[j * narrow..][..d]) * scale;
                }
            }
        } else {
            gemm((queries, d, keys), View::rows(q, wide), View::rows(k, narrow).t(), &mut p, keys, 0.0, scale);
        }
        for (i, p) in p.chunks_exact_mut(keys).enumerate() {
            let start = self.shape.start(row, past + i);
            if let Some(cap) = self.shape.cap {
                p[start..=past + i].iter_mut().for_each(|p| *p = cap * tanh(*p / cap));
            }
            softmax_prefix(p, start, past + i + 1);
        }
        p
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let AttentionShape { heads, kv_heads, head_dim: d, past, .. } = self.shape;
        let (batch, queries, wide) = q_layout.shape().dims3()?;
        let (_, capacity, narrow) = k_layout.shape().dims3()?;
        let keys = past + queries;
        if wide != heads * d || narrow != kv_heads * d || capacity < keys || v_layout.dims() != k_layout.dims() {
            candle_core::bail!("attention: q {:?}, k {:?}, v {:?}", q_layout.dims(), k_layout.dims(), v_layout.dims());
        }
        let (q, k, v) = (contiguous(q, q_layout)?, contiguous(k, k_layout)?, contiguous(v, v_layout)?);
        let mut parts = for_indices(
            batch * heads,
            batch * heads * queries * keys * 4,
            #[inline(always)]
            |index| {
                let (row, head) = (index / heads, index % heads);
                let kv = head / (heads / kv_heads) * d;
                let k = &k[row * capacity * narrow + kv..];
                let v = &v[row * capacity * narrow + kv..];
                let p = self.probabilities(&q[row * queries * wide + head * d..], k, row, queries);
                let mut z = vec![0.0; queries * d];
                if queries < FEW_QUERIES {
                    for i in 0..queries {
                        let z = &mut z[i * d..][..d];
                        for (j, p) in p[i * keys..][..keys].iter().enumerate() {
                            let v = &v[j * narrow..][..d];
                            for c in 0..d {
                                z[c] += p * v[c];
                            }
                        }
                    }
                } else {
                    gemm((queries, keys, d), View::rows(&p, keys), View::rows(v, narrow), &mut z, d, 0.0, 1.0);
                }
                (z, p)
            },
        );
        let mut out = vec![0.0; batch * queries * wide];
        for (index, (z, _)) in parts.iter().enumerate() {
            let (row, head) = (index / heads, index % heads);
            for (i, z) in z.chunks_exact(d).enumerate() {
                out[(row * queries + i) * wide + head * d..][..d].copy_from_slice(z);
            }
        }
        if self.keep {
            let kept = parts.iter_mut().map(|(_, p)| std::mem::take(p)).collect();
            // The forward pass of one op object runs once; a second value would be equal anyway.
            let _ = self.saved.set(kept);
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // z = PV, P = softmax(C), C = cap·tanh(S/cap), S = s·qkᵀ:  dV = PᵀdZ,  dP = dZVᵀ,  dC = P∘(dP − rowsum(P∘dP)),
        // dS = dC∘(1 − tanh²(S/cap)),  dq = s·dS·k,  dk = s·dSᵀ·q; k and v sum over the query heads of their group.
        let AttentionShape { heads, kv_heads, head_dim: d, past, scale, cap, .. } = self.shape;
        if past != 0 {
            candle_core::bail!("attention has no backward pass through a cache");
        }
        let Some(saved) = self.saved.get() else {
            candle_core::bail!("attention kept no probabilities: its inputs were not tracked in the forward pass");
        };
        let (batch, n, wide) = q.dims3()?;
        let (narrow, group) = (kv_heads * d, heads / kv_heads);
        with_values([q, k, v, grad], |[fq, fk, fv, fg]| {
            let parts = for_indices(
                batch * kv_heads,
                batch * heads * n * n * 4,
                #[inline(always)]
                |index| {
                    let (row, kv) = (index / kv_heads, index % kv_heads);
                    let (k, v) = (&fk[row * n * narrow + kv * d..], &fv[row * n * narrow + kv * d..]);
                    let (mut dq, mut dk, mut dv) = (vec![0.0; group * n * d], vec![0.0; n * d], vec![0.0; n * d]);
                    let mut ds = vec![0.0; n * n];
                    // Scores, which the probabilities do not give back.
                    let mut scores = if cap.is_some() { vec![0.0; n * n] } else { vec![] };
                    for member in 0..group {
                        let head = kv * group + member;
                        let p = &saved[row * heads + head];
                        let g = &fg[row * n * wide + head * d..];
                        let q = &fq[row * n * wide + head * d..];
                        gemm((n, n, d), View::rows(p, n).t(), View::rows(g, wide), &mut dv, d, 1.0, 1.0);
                        gemm((n, d, n), View::rows(g, wide), View::rows(v, narrow).t(), &mut ds, n, 0.0, 1.0);
                        for (p, ds) in p.chunks_exact(n).zip(ds.chunks_exact_mut(n)) {
                            let mean = dot(p, ds);
                            for j in 0..n {
                                ds[j] = p[j] * (ds[j] - mean) * scale;
                            }
                        }
                        if let Some(cap) = cap {
                            gemm((n, d, n), View::rows(q, wide), View::rows(k, narrow).t(), &mut scores, n, 0.0, scale);
                            for (ds, score) in ds.iter_mut().zip(&scores) {
                                let t = tanh(score / cap);
                                *ds *= 1.0 - t * t;
                            }
                        }
                        let dq = &mut dq[member * n * d..][..n * d];
                        gemm((n, n, d), View::rows(&ds, n), View::rows(k, narrow), dq, d, 0.0, 1.0);
                        gemm((n, n, d), View::rows(&ds, n).t(), View::rows(q, wide), &mut dk, d, 1.0, 1.0);
                    }
                    (dq, dk, dv)
                },
            );
            let (mut dq, mut dk, mut dv) = (vec![0.0; fq.len()], vec![0.0; fk.len()], vec![0.0; fv.len()]);
            for (index, (pq, pk, pv)) in parts.iter().enumerate() {
                let (row, kv) = (index / kv_heads, index % kv_heads);
                for i in 0..n {
                    for member in 0..group {
                        let to = (row * n + i) * wide + (kv * group + member) * d;
                        dq[to..][..d].copy_from_slice(&pq[(member * n + i) * d..][..d]);
                    }
                    let to = (row * n + i) * narrow + kv * d;
                    dk[to..][..d].copy_from_slice(&pk[i * d..][..d]);
                    dv[to..][..d].copy_from_slice(&pv[i * d..][..d]);
                }
            }
            Ok((Some(tensor_like(dq, q)?), Some(tensor_like(dk, k)?), Some(tensor_like(dv, v)?)))
        })
    }
}
