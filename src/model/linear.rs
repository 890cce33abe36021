//! Linear maps: frozen, frozen with a low-rank adapter, or trainable.
//!
//! candle's own matmul computes the weight's gradient whether anybody wants it or not; here a frozen weight lives inside
//! a custom operation that never does. The adapter path `x → s·(xAᵀ)Bᵀ` is fused with the frozen product: one output
//! buffer, and a backward pass that costs the frozen `dy·W` plus four thin products.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::kernel::{contiguous, flat, tensor_like};
use crate::math::gemm::{View, gemm};
use crate::{Error, Result};

/// A low-rank adapter on a linear map: `y += scale · (x Aᵀ) Bᵀ`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[r, d_in]`.
    pub a: Tensor,
    /// `[d_out, r]`.
    pub b: Tensor,
    /// Factor on the product.
    pub scale: f64,
}

/// `y = x Wᵀ + bias`, with an optional adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
}

impl Linear {
    /// *Shapes*: `weight` `[d_out, d_in]`, `bias` `[d_out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, adapter: None }
    }

    /// The frozen (or trainable) weight, `[d_out, d_in]`, without the adapter.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, if the map has one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same map with `adapter` on top (replacing one that is there).
    ///
    /// # Errors
    /// When the factors' shapes do not fit the weight's.
    pub fn with_adapter(&self, adapter: LowRank) -> Result<Self> {
        let (d_out, d_in) = self.weight.dims2()?;
        let ((rank, a_in), (b_out, b_rank)) = (adapter.a.dims2()?, adapter.b.dims2()?);
        if a_in != d_in || b_out != d_out || rank != b_rank {
            return Err(Error::input(
                "adapter",
                format!("expected factors [r, {d_in}] and [{d_out}, r], got [{rank}, {a_in}] and [{b_out}, {b_rank}]"),
            ));
        }
        Ok(Self { weight: self.weight.clone(), bias: self.bias.clone(), adapter: Some(adapter) })
    }

    /// The same map with another weight and no adapter.
    #[must_use]
    pub fn with_weight(&self, weight: Tensor) -> Self {
        Self { weight, bias: self.bias.clone(), adapter: None }
    }

    /// The weight with the adapter merged in, `W + scale·BA`, detached.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn merged_weight(&self) -> Result<Tensor> {
        let weight = self.weight.detach();
        Ok(match &self.adapter {
            None => weight,
            Some(LowRank { a, b, scale }) => (weight + (b.detach().matmul(&a.detach())? * *scale)?)?,
        })
    }

    /// Applies the map.
    ///
    /// *Shapes*: `x` `[…, d_in]` → `[…, d_out]`. Differentiable in `x`, in the adapter's factors, and in the weight and
    /// bias where they are variables.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (d_out, d_in) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        if shape.pop() != Some(d_in) {
            return Err(Error::input("linear map", format!("expected inputs of width {d_in}, got {:?}", x.dims())));
        }
        shape.push(d_out);
        let x = x.reshape(((), d_in))?;
        let fused = x.device().is_cpu() && !self.weight.track_op();
        let y = match &self.adapter {
            Some(adapter) if fused => x.contiguous()?.apply_op3(
                &adapter.a,
                &adapter.b,
                Adapted { weight: self.weight.clone(), scale: adapter.scale as f32 },
            )?,
            Some(adapter) => {
                let low = x.matmul(&adapter.a.t()?)?.matmul(&adapter.b.t()?)?;
                (x.matmul(&self.weight.t()?)? + (low * adapter.scale)?)?
            }
            None if fused => x.contiguous()?.apply_op1(Frozen { weight: self.weight.clone() })?,
            None if x.device().is_cpu() => x.contiguous()?.apply_op2(&self.weight, Trained)?,
            None => x.matmul(&self.weight.t()?)?,
        };
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(y.reshape(shape)?)
    }
}

struct Frozen {
    weight: Tensor,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (d_out, d_in) = self.weight.dims2()?;
        let x = contiguous(x, layout)?;
        let rows = x.len() / d_in;
        let weight = flat(&self.weight)?;
        let weight = weight.values()?;
        let mut out = vec![0.0; rows * d_out];
        let map = View::rows(&weight, d_in).t();
        gemm((rows, d_in, d_out), View::rows(x, d_in), map, &mut out, d_out, 0.0, 1.0);
        Ok((CpuStorage::F32(out), Shape::from((rows, d_out))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (d_out, d_in) = self.weight.dims2()?;
        let (grad, weight) = (flat(grad)?, flat(&self.weight)?);
        let (grad, weight) = (grad.values()?, weight.values()?);
        let rows = grad.len() / d_out;
        let mut dx = vec![0.0; rows * d_in];
        let map = View::rows(&weight, d_in);
        gemm((rows, d_out, d_in), View::rows(&grad, d_out), map, &mut dx, d_in, 0.0, 1.0);
        Ok(Some(tensor_like(dx, x)?))
    }
}

struct Trained;

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (d_out, d_in) = weight_layout.shape().dims2()?;
        let (x, weight) = (contiguous(x, x_layout)?, contiguous(weight, weight_layout)?);
        let rows = x.len() / d_in;
        let mut out = vec![0.0; rows * d_out];
        gemm((rows, d_in, d_out), View::rows(x, d_in), View::rows(weight, d_in).t(), &mut out, d_out, 0.0, 1.0);
        Ok((CpuStorage::F32(out), Shape::from((rows, d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_out, d_in) = weight.dims2()?;
        let (xs, dy, w) = (flat(x)?, flat(grad)?, flat(weight)?);
        let (xs, dy, w) = (xs.values()?, dy.values()?, w.values()?);
        let rows = xs.len() / d_in;
        let dx = if x.track_op() {
            let mut out = vec![0.0; rows * d_in];
            gemm((rows, d_out, d_in), View::rows(&dy, d_out), View::rows(&w, d_in), &mut out, d_in, 0.0, 1.0);
            Some(tensor_like(out, x)?)
        } else {
            None
        };
        let mut out = vec![0.0; d_out * d_in];
        gemm((d_out, rows, d_in), View::rows(&dy, d_out).t(), View::rows(&xs, d_in), &mut out, d_in, 0.0, 1.0);
        Ok((dx, Some(tensor_like(out, weight)?)))
    }
}

struct Adapted {
    weight: Tensor,
    scale: f32,
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "adapted-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (d_out, d_in) = self.weight.dims2()?;
        let (x, a, b) = (contiguous(x, x_layout)?, contiguous(a, a_layout)?, contiguous(b, b_layout)?);
        let (rows, rank) = (x.len() / d_in, a.len() / d_in);
        let weight = flat(&self.weight)?;
        let weight = weight.values()?;
        let mut out = vec![0.0; rows * d_out];
        let map = View::rows(&weight, d_in).t();
        gemm((rows, d_in, d_out), View::rows(x, d_in), map, &mut out, d_out, 0.0, 1.0);
        let mut low = vec![0.0; rows * rank];
        gemm((rows, d_in, rank), View::rows(x, d_in), View::rows(a, d_in).t(), &mut low, rank, 0.0, 1.0);
        let up = View::rows(b, rank).t();
        gemm((rows, rank, d_out), View::rows(&low, rank), up, &mut out, d_out, 1.0, self.scale);
        Ok((CpuStorage::F32(out), Shape::from((rows, d_out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // u = xAᵀ, y = xWᵀ + s·uBᵀ:  du = s·dy·B,  dx = dy·W + du·A,  dA = duᵀ·x,  dB = s·dyᵀ·u.
        let (d_out, d_in) = self.weight.dims2()?;
        let rank = a.dim(0)?;
        let (xs, fa, fb, dy, weight) = (flat(x)?, flat(a)?, flat(b)?, flat(grad)?, flat(&self.weight)?);
        let (xs, fa, fb, dy, weight) = (xs.values()?, fa.values()?, fb.values()?, dy.values()?, weight.values()?);
        let rows = xs.len() / d_in;
        let (view_x, view_a, view_dy) = (View::rows(&xs, d_in), View::rows(&fa, d_in), View::rows(&dy, d_out));
        let mut du = vec![0.0; rows * rank];
        gemm((rows, d_out, rank), view_dy, View::rows(&fb, rank), &mut du, rank, 0.0, self.scale);
        let dx = if x.track_op() {
            let mut dx = vec![0.0; rows * d_in];
            gemm((rows, d_out, d_in), view_dy, View::rows(&weight, d_in), &mut dx, d_in, 0.0, 1.0);
            gemm((rows, rank, d_in), View::rows(&du, rank), view_a, &mut dx, d_in, 1.0, 1.0);
            Some(tensor_like(dx, x)?)
        } else {
            None
        };
        let (mut da, mut db) = (None, None);
        if a.track_op() {
            let mut out = vec![0.0; rank * d_in];
            gemm((rank, rows, d_in), View::rows(&du, rank).t(), view_x, &mut out, d_in, 0.0, 1.0);
            da = Some(tensor_like(out, a)?);
        }
        if b.track_op() {
            let mut low = vec![0.0; rows * rank];
            gemm((rows, d_in, rank), view_x, view_a.t(), &mut low, rank, 0.0, 1.0);
            let mut out = vec![0.0; d_out * rank];
            gemm((d_out, rows, rank), view_dy.t(), View::rows(&low, rank), &mut out, rank, 0.0, self.scale);
            db = Some(tensor_like(out, b)?);
        }
        Ok((dx, da, db))
    }
}
