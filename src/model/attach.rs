//! A hand-written gradient on a value that was computed aside: what accelerators use in place of the CPU's fused kernels.
//!
//! The value is computed on detached inputs with whatever operation is fastest there, and one copy of it goes into the
//! graph, where its gradient is the given function. So a frozen weight costs no gradient of its own, and an operation
//! that has no backward pass gets one.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Error, Layout, Shape, Storage, Tensor};

/// Gradient of one input from the result's gradient.
pub(super) trait Vjp1: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static {}
impl<F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static> Vjp1 for F {}

/// Gradients of three inputs, where wanted.
pub(super) trait Vjp3: Fn(&Tensor) -> candle_core::Result<[Option<Tensor>; 3]> + Send + Sync + 'static {}
impl<F: Fn(&Tensor) -> candle_core::Result<[Option<Tensor>; 3]> + Send + Sync + 'static> Vjp3 for F {}

/// `value` as a function of `x`, with the gradient that `vjp` gives.
pub(super) fn attach(x: &Tensor, value: Tensor, vjp: impl Vjp1) -> candle_core::Result<Tensor> {
    if x.track_op() { x.apply_op1(Attached { value, vjp }) } else { Ok(value) }
}

/// `value` as a function of three tensors.
pub(super) fn attach3(inputs: [&Tensor; 3], value: Tensor, vjp: impl Vjp3) -> candle_core::Result<Tensor> {
    let [a, b, c] = inputs;
    if inputs.iter().any(|t| t.track_op()) { a.apply_op3(b, c, Attached { value, vjp }) } else { Ok(value) }
}

struct Attached<F> {
    value: Tensor,
    vjp: F,
}

impl<F> Attached<F> {
    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => Err(Error::Msg("expected a value on the CPU".into())),
        }
    }

    fn on_cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => Err(Error::Msg("expected a value on a CUDA device".into())),
        }
    }
}

impl<F: Vjp1> CustomOp1 for Attached<F> {
    fn name(&self) -> &'static str {
        "attached"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        (self.vjp)(&grad.detach()).map(Some)
    }
}

impl<F: Vjp3> CustomOp3 for Attached<F> {
    fn name(&self) -> &'static str {
        "attached"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.vjp)(&grad.detach())?;
        Ok((a, b, c))
    }
}
