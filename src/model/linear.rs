//! Linear maps: frozen, frozen with a low-rank adapter, or trainable.
//!
//! candle's own matmul computes the weight's gradient whether anybody wants it or not; here a frozen weight lives inside
//! a custom operation that never does. The adapter path `x → s·(xAᵀ)Bᵀ` is fused with the frozen product: one output
//! buffer, and a backward pass that costs the frozen `dy·W` plus four thin products. Accelerators multiply with candle's
//! own product, in the weight's type, and the same gradients hang on the result.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use ndarray::Array2;

use super::attach::{attach, attach3};
use super::kernel::{contiguous, flat, tensor_like, with_values};
use super::optimiser::host_values;
use super::weight::Weight;
use crate::adapter::Adapter;
use crate::math::gemm::{View, gemm, product};
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

impl LowRank {
    /// Whether `rows` inputs cost less with `W + scale · B A` in one product than with both factors beside a frozen one:
    /// forwards and backwards, `r·(4·d_in + 3·d_out)` multiplications a row against the `d_in·d_out` of the weight's
    /// gradient and three small products.
    fn is_wide(&self, weight: &Weight, rows: usize) -> Result<bool> {
        let ((d_out, d_in), rank) = (weight.dims2()?, self.a.dim(0)?);
        let beside = rows * rank * (4 * d_in + 3 * d_out);
        let held = matches!(weight, Weight::Held(weight) if weight.dtype() == DType::F32);
        Ok(held && beside > d_in * d_out * (rows + 3 * rank))
    }

    /// `W + scale · B A`, differentiable in the factors.
    fn summed(&self, weight: &Weight) -> Result<Tensor> {
        Ok((weight.tensor()?.detach() + (self.b.matmul(&self.a)? * self.scale)?)?)
    }

    /// As plain numbers.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn on_host(&self) -> Result<Adapter> {
        let matrix = |tensor: &Tensor| -> Result<Array2<f32>> {
            Array2::from_shape_vec(tensor.dims2()?, host_values(tensor)?)
                .map_err(|error| Error::input("adapter", error.to_string()))
        };
        Adapter::new(matrix(&self.a)?, matrix(&self.b)?, self.scale as f32)
    }
}

/// `y = x Wᵀ + bias`, with an optional adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
}

impl Linear {
    /// *Shapes*: `weight` `[d_out, d_in]`, `bias` `[d_out]`.
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        Self { weight: weight.into(), bias, adapter: None }
    }

    /// The frozen (or trainable) weight, `[d_out, d_in]`, without the adapter.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, if the map has one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The adapter, if the map has one.
    pub(super) fn adapter(&self) -> Option<&LowRank> {
        self.adapter.as_ref()
    }

    /// Whether `rows` inputs are multiplied with a weight that is frozen, with at most an adapter beside it.
    pub(super) fn is_beside(&self, rows: usize) -> Result<bool> {
        let wide = self.adapter.as_ref().map(|adapter| adapter.is_wide(&self.weight, rows)).transpose()?;
        Ok(!self.weight.is_variable() && wide != Some(true))
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
    pub fn with_weight(&self, weight: impl Into<Weight>) -> Self {
        Self { weight: weight.into(), bias: self.bias.clone(), adapter: None }
    }

    /// The same map with every tensor that is in memory replaced by `change(tensor)`.
    pub(super) fn with_tensors(&self, change: &mut impl FnMut(&Tensor) -> Tensor) -> Self {
        Self {
            weight: match &self.weight {
                Weight::Held(weight) => Weight::Held(change(weight)),
                stored => stored.clone(),
            },
            bias: self.bias.as_ref().map(&mut *change),
            adapter: self.adapter.as_ref().map(|LowRank { a, b, scale }| LowRank {
                a: change(a),
                b: change(b),
                scale: *scale,
            }),
        }
    }

    /// The same function with the adapter merged into the weight, `W + scale·BA`, frozen.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn merged(&self) -> Result<Self> {
        Ok(match (&self.adapter, &self.weight) {
            (None, Weight::Held(weight)) => self.with_weight(weight.detach()),
            (None, stored) => self.with_weight(stored.clone()),
            (Some(LowRank { a, b, scale }), Weight::Held(weight)) => {
                let change = (b.detach().matmul(&a.detach())? * *scale)?;
                // Rounded once, as the files are.
                let sum = (weight.detach().to_dtype(DType::F32)? + change)?;
                self.with_weight(sum.to_dtype(weight.dtype())?)
            }
            (Some(adapter), stored) => self.with_weight(stored.plus(adapter.on_host()?)?),
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
        if x.dims().last() != Some(&d_in) {
            return Err(Error::input("linear map", format!("expected inputs of width {d_in}, got {:?}", x.dims())));
        }
        // Our own operations read rows whatever the shape; every reshape would cost the backward pass a copy.
        let shape = widened(x.dims(), d_out);
        let x = if x.device().is_cpu() { x.contiguous()? } else { x.reshape(((), d_in))?.contiguous()? };
        let summed = match &self.adapter {
            Some(adapter) if !self.weight.is_variable() && adapter.is_wide(&self.weight, x.elem_count() / d_in)? => {
                Some(adapter.summed(&self.weight)?)
            }
            _ => None,
        };
        let y = match (&self.weight, &self.adapter, summed) {
            (.., Some(summed)) => trained(&x, &summed)?,
            (Weight::Held(weight), adapter, None) if self.weight.is_variable() => {
                let y = trained(&x, weight)?;
                match adapter {
                    Some(LowRank { a, b, scale }) => {
                        let low = x.reshape(((), d_in))?.matmul(&a.t()?)?.matmul(&b.t()?)?;
                        (y + (low * *scale)?.reshape(shape.clone())?)?
                    }
                    None => y,
                }
            }
            (weight, adapter, None) if !x.device().is_cpu() => beside(&x, weight, adapter.as_ref())?,
            (weight, None, None) => x.apply_op1(Frozen { weight: weight.clone() })?,
            (weight, Some(LowRank { a, b, scale }), None) => {
                x.apply_op3(a, b, Adapted { weight: weight.clone(), scale: *scale as f32 })?
            }
        };
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        Ok(if y.shape() == &shape { y } else { y.reshape(shape)? })
    }
}

/// `dims` with another last dimension.
fn widened(dims: &[usize], width: usize) -> Shape {
    let mut dims = dims.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = width;
    }
    Shape::from(dims)
}

/// `x Wᵀ`, differentiable in both.
fn trained(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(if x.device().is_cpu() { x.apply_op2(weight, Trained)? } else { x.matmul(&weight.t()?)? })
}

/// `x Wᵀ` and the adapter's part by candle's own products, with gradients that leave the frozen weight out.
fn beside(x: &Tensor, weight: &Weight, adapter: Option<&LowRank>) -> Result<Tensor> {
    let w = weight.tensor()?;
    let frozen = typed(&x.detach(), &w.t()?)?;
    // Kept for the backward pass as it is: stored weights are read again.
    let weight = weight.clone();
    let Some(LowRank { a, b, scale }) = adapter else {
        return Ok(attach(x, frozen, move |grad| typed(grad, &weight.values()?))?);
    };
    let (inner, scale) = ([x.detach(), a.detach(), b.detach()], *scale);
    let low = inner[0].matmul(&inner[1].t()?)?;
    let value = (frozen + (low.matmul(&inner[2].t()?)? * scale)?)?;
    let wanted = [x.track_op(), a.track_op(), b.track_op()];
    Ok(attach3([x, a, b], value, move |grad| {
        // As in `Adapted`.
        let [x, a, b] = &inner;
        let du = (grad.matmul(b)? * scale)?;
        let dx = || typed(grad, &weight.values()?)? + du.matmul(a)?;
        let db = || (grad.t()?.matmul(&low)? * scale)?.contiguous();
        Ok([
            wanted[0].then(dx).transpose()?,
            wanted[1].then(|| du.t()?.matmul(x)).transpose()?,
            wanted[2].then(db).transpose()?,
        ])
    })?)
}

/// A product with a weight in the weight's type; f32 in and out.
fn typed(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    match weight.dtype() {
        DType::F32 => x.matmul(weight),
        narrow => x.to_dtype(narrow)?.matmul(weight)?.to_dtype(DType::F32),
    }
}

/// A frozen weight and its adapter as plain numbers: `y = x Wᵀ + scale·(x Aᵀ) Bᵀ`.
pub(super) struct Numbers<'a> {
    /// `[d_out, d_in]`, row-major.
    pub weight: &'a [f32],
    /// `A` `[r, d_in]` and `B` `[d_out, r]`.
    pub factors: Option<[&'a [f32]; 2]>,
    pub scale: f32,
    pub d_in: usize,
}

/// `y` `[rows, d_out]` of `x` `[rows, d_in]` through a frozen weight and the factors of its adapter.
pub(super) fn mapped(
    weight: &Weight,
    factors: Option<[&[f32]; 2]>,
    scale: f32,
    x: &[f32],
) -> candle_core::Result<Vec<f32>> {
    let (d_out, d_in) = weight.dims2()?;
    let rows = x.len() / d_in;
    let mut out = match weight.product_by_parts(x).map_err(candle_core::Error::wrap)? {
        Some(out) => out,
        None => {
            let weight = flat(&weight.values()?)?;
            product((rows, d_in, d_out), View::rows(x, d_in), View::rows(&weight.values()?, d_in).t())
        }
    };
    if let Some([a, b]) = factors {
        let rank = a.len() / d_in;
        let low = product((rows, d_in, rank), View::rows(x, d_in), View::rows(a, d_in).t());
        gemm((rows, rank, d_out), View::rows(&low, rank), View::rows(b, rank).t(), &mut out, d_out, 1.0, scale);
    }
    Ok(out)
}

impl Numbers<'_> {
    fn d_out(&self) -> usize {
        self.weight.len() / self.d_in
    }

    /// Those gradients of `x`, `A` and `B` that are wanted, from `dy` `[rows, d_out]`; that of `x` on top of `onto`.
    pub fn back(&self, x: &[f32], dy: &[f32], wanted: [bool; 3], onto: Option<Vec<f32>>) -> [Option<Vec<f32>>; 3] {
        // u = xAᵀ, y = xWᵀ + s·uBᵀ:  du = s·dy·B,  dx = dy·W + du·A,  dA = duᵀ·x,  dB = s·dyᵀ·u.
        let (d_in, d_out, rows) = (self.d_in, self.d_out(), x.len() / self.d_in);
        let (view_x, view_dy) = (View::rows(x, d_in), View::rows(dy, d_out));
        let mut dx = wanted[0].then(|| {
            let (shape, weight) = ((rows, d_out, d_in), View::rows(self.weight, d_in));
            match onto {
                Some(mut onto) => {
                    gemm(shape, view_dy, weight, &mut onto, d_in, 1.0, 1.0);
                    onto
                }
                None => product(shape, view_dy, weight),
            }
        });
        let Some([a, b]) = self.factors else { return [dx, None, None] };
        let rank = a.len() / d_in;
        let mut du = vec![0.0; rows * rank];
        gemm((rows, d_out, rank), view_dy, View::rows(b, rank), &mut du, rank, 0.0, self.scale);
        if let Some(dx) = &mut dx {
            gemm((rows, rank, d_in), View::rows(&du, rank), View::rows(a, d_in), dx, d_in, 1.0, 1.0);
        }
        let da = wanted[1].then(|| product((rank, rows, d_in), View::rows(&du, rank).t(), view_x));
        let db = wanted[2].then(|| {
            let low = product((rows, d_in, rank), view_x, View::rows(a, d_in).t());
            let mut db = vec![0.0; d_out * rank];
            gemm((d_out, rows, rank), view_dy.t(), View::rows(&low, rank), &mut db, rank, 0.0, self.scale);
            db
        });
        [dx, da, db]
    }
}

struct Frozen {
    weight: Weight,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (d_out, _) = self.weight.dims2()?;
        let out = mapped(&self.weight, None, 0.0, contiguous(x, layout)?)?;
        Ok((CpuStorage::F32(out), widened(layout.dims(), d_out)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, d_in) = self.weight.dims2()?;
        with_values([x, grad, &self.weight.values()?], |[xs, dy, weight]| {
            let map = Numbers { weight, factors: None, scale: 0.0, d_in };
            let [dx, ..] = map.back(xs, dy, [true, false, false], None);
            dx.map(|dx| tensor_like(dx, x)).transpose()
        })
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
        let out = product((rows, d_in, d_out), View::rows(x, d_in), View::rows(weight, d_in).t());
        Ok((CpuStorage::F32(out), widened(x_layout.dims(), d_out)))
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
            let out = product((rows, d_out, d_in), View::rows(&dy, d_out), View::rows(&w, d_in));
            Some(tensor_like(out, x)?)
        } else {
            None
        };
        let out = product((d_out, rows, d_in), View::rows(&dy, d_out).t(), View::rows(&xs, d_in));
        Ok((dx, Some(tensor_like(out, weight)?)))
    }
}

struct Adapted {
    weight: Weight,
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
        let (d_out, _) = self.weight.dims2()?;
        let (x, a, b) = (contiguous(x, x_layout)?, contiguous(a, a_layout)?, contiguous(b, b_layout)?);
        let out = mapped(&self.weight, Some([a, b]), self.scale, x)?;
        Ok((CpuStorage::F32(out), widened(x_layout.dims(), d_out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, d_in) = self.weight.dims2()?;
        with_values([x, a, b, grad, &self.weight.values()?], |[xs, fa, fb, dy, weight]| {
            let map = Numbers { weight, factors: Some([fa, fb]), scale: self.scale, d_in };
            let [dx, da, db] = map.back(xs, dy, [x, a, b].map(Tensor::track_op), None);
            let of = |values: Option<Vec<f32>>, like| values.map(|values| tensor_like(values, like)).transpose();
            Ok((of(dx, x)?, of(da, a)?, of(db, b)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn noise(shape: (usize, usize), seed: f32) -> Tensor {
        let count = shape.0 * shape.1;
        Tensor::from_vec((0..count).map(|i| (i as f32 * 0.7 + seed).sin()).collect(), shape, &Device::Cpu).unwrap()
    }

    /// Output and gradients of x, A and B.
    fn pass(x: &Var, adapter: &LowRank, vars: [&Var; 2], forward: impl Fn(&Tensor) -> Tensor) -> Vec<Vec<f32>> {
        debug_assert_eq!(adapter.a.dims(), vars[0].dims());
        let y = forward(x.as_tensor());
        let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let of = |var: &Var| host_values(store.get(var).unwrap()).unwrap();
        vec![host_values(&y).unwrap(), of(x), of(vars[0]), of(vars[1])]
    }

    #[test]
    fn what_accelerators_compute_is_what_the_kernels_compute() {
        let weight = Weight::from(noise((20, 30), 0.0));
        let [x, a, b] =
            [noise((6, 30), 1.0), noise((1, 30), 2.0), noise((20, 1), 3.0)].map(|t| Var::from_tensor(&t).unwrap());
        let adapter = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.5 };
        assert!(!adapter.is_wide(&weight, 6).unwrap());
        let map = Linear::new(weight.clone(), None).with_adapter(adapter.clone()).unwrap();
        let kernels = pass(&x, &adapter, [&a, &b], |x| map.forward(x).unwrap());
        let attached = pass(&x, &adapter, [&a, &b], |x| beside(x, &weight, Some(&adapter)).unwrap());
        for (kernels, attached) in kernels.iter().zip(&attached) {
            assert!(kernels.iter().zip(attached).all(|(a, b)| (a - b).abs() < 1e-3), "{kernels:?} {attached:?}");
        }
        let plain = |forward: &dyn Fn(&Tensor) -> Tensor| {
            let y = forward(x.as_tensor());
            let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            host_values(store.get(&x).unwrap()).unwrap()
        };
        let kernels = plain(&|x| Linear::new(weight.clone(), None).forward(x).unwrap());
        let attached = plain(&|x| beside(x, &weight, None).unwrap());
        assert!(kernels.iter().zip(&attached).all(|(a, b)| (a - b).abs() < 1e-3));
    }

    #[test]
    fn a_wide_adapter_is_summed_into_the_weight_and_computes_the_same() {
        let weight = Weight::from(noise((5, 7), 0.0));
        let [x, a, b] =
            [noise((60, 7), 1.0), noise((5, 7), 2.0), noise((5, 5), 3.0)].map(|t| Var::from_tensor(&t).unwrap());
        let adapter = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.5 };
        assert!(adapter.is_wide(&weight, 60).unwrap() && !adapter.is_wide(&weight, 1).unwrap());
        let map = Linear::new(weight.clone(), None).with_adapter(adapter.clone()).unwrap();
        let summed = pass(&x, &adapter, [&a, &b], |x| map.forward(x).unwrap());
        let attached = pass(&x, &adapter, [&a, &b], |x| beside(x, &weight, Some(&adapter)).unwrap());
        for (summed, attached) in summed.iter().zip(&attached) {
            assert!(summed.iter().zip(attached).all(|(a, b)| (a - b).abs() < 1e-3), "{summed:?} {attached:?}");
        }
    }

    #[test]
    fn a_product_in_bf16_is_the_f32_one_to_its_precision() {
        let (x, weight) = (noise((3, 8), 0.5), noise((4, 8), 1.5));
        let exact = host_values(&beside(&x, &Weight::from(weight.clone()), None).unwrap()).unwrap();
        let narrow = Weight::from(weight.to_dtype(DType::BF16).unwrap());
        let rounded = host_values(&beside(&x, &narrow, None).unwrap()).unwrap();
        assert!(exact.iter().zip(&rounded).all(|(a, b)| (a - b).abs() < 0.05), "{exact:?} {rounded:?}");
    }
}
