//! A hand-written gradient on a value that was computed aside: what accelerators use in place of the CPU's fused kernels.
//!
//! The value is computed on detached inputs with whatever operation is fastest there, and one copy of it goes into the
//! graph, where its gradient is the given function. So a frozen weight costs no gradient of its own, and an operation
//! that has no backward pass gets one.

use std::sync::{Mutex, PoisonError};

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
    if x.track_op() { x.apply_op1(Attached::new(value, vjp)) } else { Ok(value) }
}

/// `value` as a function of three tensors.
pub(super) fn attach3(inputs: [&Tensor; 3], value: Tensor, vjp: impl Vjp3) -> candle_core::Result<Tensor> {
    let [a, b, c] = inputs;
    if inputs.iter().any(|t| t.track_op()) { a.apply_op3(b, c, Attached::new(value, vjp)) } else { Ok(value) }
}

struct Attached<F> {
    /// Until it has been copied into the graph, which is once.
    value: Mutex<Option<Tensor>>,
    vjp: F,
}

impl<F> Attached<F> {
    fn new(value: Tensor, vjp: F) -> Self {
        Self { value: Mutex::new(Some(value)), vjp }
    }

    fn value(&self) -> candle_core::Result<Tensor> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(|| Error::Msg("expected to be applied once".into()))
    }

    fn on_cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, value.shape().clone())),
            _ => Err(Error::Msg("expected a value on the CPU".into())),
        }
    }

    fn on_cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        let value = self.value()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, value.shape().clone())),
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
