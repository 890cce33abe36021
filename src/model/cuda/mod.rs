//! Launches of the fused kernels in `fused.cu`, which NVIDIA GPUs run in place of chains of candle's operations.

mod check;

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaView, LaunchArgs, LaunchConfig, PushKernelArg};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, InplaceOp2, InplaceOp3, Layout,
    Result, Shape, Tensor, Var,
};

use super::attention::AttentionShape;
use super::blueprint::Activation;
use super::rope::RowPositions;

pub(crate) use check::check;

/// The GPU of that number, with one stream of work for all host threads: what they submit is done in that order. candle's own
/// choice is a stream for each thread, and nothing orders the work of two.
///
/// # Errors
/// Those of the driver.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    // SAFETY: events order the work of several streams; here there is one.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

/// The kernels as the compiler's intermediate code, which the driver translates for its GPU when they are first used.
const FUSED: &str = include_str!(concat!(env!("OUT_DIR"), "/fused.ptx"));

/// Threads of a block where every thread takes a value; a power of two, at most `MAX_THREADS` of `fused.cu`.
const THREADS: usize = 256;

/// What is said of tensors that are not on a GPU.
const ELSEWHERE: &str = "expected values on a CUDA device";

/// Blocks that share one sum of squares.
const SUMS: usize = 64;

/// Whether fused kernels compute with `x`.
pub(super) fn serves(x: &Tensor) -> bool {
    x.device().is_cuda() && x.dtype() == DType::F32 && u32::try_from(x.elem_count()).is_ok() && wanted()
}

/// Not when `IMMUNISE_KERNELS=plain` asks for candle's operations.
pub(crate) fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("IMMUNISE_KERNELS").as_deref() != Ok("plain"))
}

/// An argument behind the arrays.
#[derive(Debug, Clone, Copy)]
enum Scalar {
    Count(u32),
    Real(f32),
}

impl From<usize> for Scalar {
    /// Counts are those of tensors that [`serves`] has admitted.
    fn from(count: usize) -> Self {
        Self::Count(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

impl From<f64> for Scalar {
    fn from(value: f64) -> Self {
        Self::Real(value as f32)
    }
}

/// One launch: arrays, then the result where there is one, then scalars.
#[derive(Debug, Clone)]
struct Launch {
    kernel: &'static str,
    blocks: usize,
    threads: usize,
    /// Shape of the result.
    shape: Shape,
    scalars: Vec<Scalar>,
}

impl Launch {
    /// A thread for each of `n` values.
    fn per_value(kernel: &'static str, n: usize, shape: impl Into<Shape>, scalars: Vec<Scalar>) -> Self {
        Self { kernel, blocks: n.div_ceil(THREADS), threads: THREADS, shape: shape.into(), scalars }
    }

    /// A block for each row of `width` values of a tensor of this shape.
    fn per_row(kernel: &'static str, width: usize, shape: &Shape, scalars: Vec<Scalar>) -> Self {
        let threads = width.next_power_of_two().clamp(32, THREADS);
        Self { kernel, blocks: shape.elem_count() / width.max(1), threads, shape: shape.clone(), scalars }
    }

    /// The result of three inputs, without a gradient.
    fn of_three(self, x: &Tensor, y: &Tensor, z: &Tensor) -> Result<Tensor> {
        x.apply_op3_no_bwd(y, z, &self)
    }

    fn run(&self, arrays: &[(&CudaStorage, &Layout)]) -> Result<(CudaStorage, Shape)> {
        let Some((first, _)) = arrays.first() else { return Err(self.wrong("no input")) };
        let device = first.device().clone();
        // SAFETY: the kernel writes every value.
        let mut out = unsafe { device.alloc::<f32>(self.shape.elem_count())? };
        if self.blocks > 0 {
            let views = self.views(arrays)?;
            let function = device.get_or_load_custom_func(self.kernel, "immunise-fused", FUSED)?;
            let mut builder = function.builder();
            for view in &views {
                builder.arg(view);
            }
            builder.arg(&mut out);
            self.scalars.iter().for_each(|scalar| push(&mut builder, scalar));
            // SAFETY: the arguments are those of the kernel's signature, and it stays within the given lengths.
            unsafe { builder.launch(self.config()?) }.w()?;
        }
        Ok((CudaStorage::wrap_cuda_slice(out, device), self.shape.clone()))
    }

    /// The same where the kernel changes the first array and has no other result.
    fn run_in_place(&self, changed: (&mut CudaStorage, &Layout), arrays: &[(&CudaStorage, &Layout)]) -> Result<()> {
        if self.blocks == 0 {
            return Ok(());
        }
        let (storage, layout) = changed;
        let (start, end) = layout.contiguous_offsets().ok_or_else(|| self.wrong("a target that is not contiguous"))?;
        let device = storage.device().clone();
        let views = self.views(arrays)?;
        let function = device.get_or_load_custom_func(self.kernel, "immunise-fused", FUSED)?;
        let mut target = storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let mut builder = function.builder();
        builder.arg(&mut target);
        for view in &views {
            builder.arg(view);
        }
        self.scalars.iter().for_each(|scalar| push(&mut builder, scalar));
        // SAFETY: as in `run`.
        unsafe { builder.launch(self.config()?) }.w()?;
        Ok(())
    }

    fn views<'a>(&self, arrays: &[(&'a CudaStorage, &Layout)]) -> Result<Vec<CudaView<'a, f32>>> {
        arrays
            .iter()
            .map(|(storage, layout)| {
                let range = layout.contiguous_offsets().ok_or_else(|| self.wrong("an input that is not contiguous"))?;
                Ok(storage.as_cuda_slice::<f32>()?.slice(range.0..range.1))
            })
            .collect()
    }

    fn config(&self) -> Result<LaunchConfig> {
        let size = |n: usize| u32::try_from(n).map_err(|_| self.wrong("more blocks than a grid has"));
        Ok(LaunchConfig {
            grid_dim: (size(self.blocks)?, 1, 1),
            block_dim: (size(self.threads)?, 1, 1),
            shared_mem_bytes: 0,
        })
    }

    fn wrong(&self, problem: &str) -> Error {
        Error::Msg(format!("kernel {}: {problem}", self.kernel))
    }
}

fn push<'a>(builder: &mut LaunchArgs<'a>, scalar: &'a Scalar) {
    match scalar {
        Scalar::Count(count) => builder.arg(count),
        Scalar::Real(value) => builder.arg(value),
    };
}

impl CustomOp1 for Launch {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(self.wrong(ELSEWHERE))
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run(&[(x, layout)])
    }
}

impl CustomOp3 for Launch {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Err(self.wrong(ELSEWHERE))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        y: &CudaStorage,
        ly: &Layout,
        z: &CudaStorage,
        lz: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.run(&[(x, lx), (y, ly), (z, lz)])
    }
}

impl InplaceOp2 for Launch {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        Err(self.wrong(ELSEWHERE))
    }

    fn cuda_fwd(&self, x: &mut CudaStorage, lx: &Layout, y: &CudaStorage, ly: &Layout) -> Result<()> {
        self.run_in_place((x, lx), &[(y, ly)])
    }
}

impl InplaceOp3 for Launch {
    fn name(&self) -> &'static str {
        self.kernel
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        Err(self.wrong(ELSEWHERE))
    }

    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        lx: &Layout,
        y: &CudaStorage,
        ly: &Layout,
        z: &CudaStorage,
        lz: &Layout,
    ) -> Result<()> {
        self.run_in_place((x, lx), &[(y, ly), (z, lz)])
    }
}

/// A launch of two inputs with gradients of its own.
struct Op<B> {
    launch: Launch,
    /// Gradients of the inputs, from the inputs, the result and its gradient, all contiguous and detached.
    back: B,
}

impl<B: Fn([&Tensor; 4]) -> Result<[Option<Tensor>; 2]> + Send + Sync> CustomOp2 for Op<B> {
    fn name(&self) -> &'static str {
        self.launch.kernel
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(self.launch.wrong(ELSEWHERE))
    }

    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, y: &CudaStorage, ly: &Layout) -> Result<(CudaStorage, Shape)> {
        self.launch.run(&[(x, lx), (y, ly)])
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, out: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.detach().contiguous()?;
        let [dx, dy] = (self.back)([&x.detach(), &y.detach(), &out.detach(), &grad])?;
        Ok((dx, dy))
    }
}

/// [`super::norm::rms_norm`] with a frozen gain.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let d = gain.elem_count();
    if x.dims().last() != Some(&d) {
        candle_core::bail!("rms-norm: x {:?}, gain [{d}]", x.dims());
    }
    let launch = move |kernel, shape: &Shape| Launch::per_row(kernel, d, shape, vec![d.into(), eps.into()]);
    let back = move |[x, gain, _, grad]: [&Tensor; 4]| {
        Ok([Some(launch("rms_norm_back", x.shape()).of_three(x, gain, grad)?), None])
    };
    x.contiguous()?.apply_op2(&gain.contiguous()?, Op { launch: launch("rms_norm", x.shape()), back })
}

/// [`super::mlp::gated`].
pub(super) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (forward, backward) = match activation {
        Activation::Silu => ("swiglu", "swiglu_back"),
        Activation::GeluTanh => ("geglu", "geglu_back"),
    };
    if gate.dims() != up.dims() {
        candle_core::bail!("{forward}: gate {:?}, up {:?}", gate.dims(), up.dims());
    }
    let n = gate.elem_count();
    let back = move |[gate, up, _, grad]: [&Tensor; 4]| {
        let both = Launch::per_value(backward, n, (2, n), vec![n.into()]).of_three(gate, up, grad)?;
        let half = |at| both.narrow(0, at, 1)?.reshape(gate.shape()).map(Some);
        Ok([half(0)?, half(1)?])
    };
    let launch = Launch::per_value(forward, n, gate.shape(), vec![n.into()]);
    gate.contiguous()?.apply_op2(&up.contiguous()?, Op { launch, back })
}

/// Masked columns of each row of a batch, as the kernels read them.
fn masked(pads: &[usize], like: &Tensor) -> Result<Tensor> {
    let pads: Vec<f32> = pads.iter().map(|pad| *pad as f32).collect();
    Tensor::from_slice(&pads, pads.len(), like.device())
}

/// [`super::rope::RopeTable::rotate`]: `angles` `[2, positions, half]` are cosines, then sines.
pub(super) fn rotate(x: &Tensor, angles: &Tensor, head_dim: usize, rows: &RowPositions) -> Result<Tensor> {
    let (batch, columns, width) = x.dims3()?;
    let (_, positions, half) = angles.dims3()?;
    if rows.pads.len() != batch || !width.is_multiple_of(head_dim) || 2 * half > head_dim {
        let pads = rows.pads.len();
        candle_core::bail!(
            "rotate: {pads} rows and {half} frequencies of heads of {head_dim} do not fit {:?}",
            x.dims()
        );
    }
    let pads = masked(&rows.pads, x)?;
    let past = rows.past;
    let launch = move |shape: &Shape, sign: f64| {
        let counts = [columns, width, head_dim, half, positions, past].map(Scalar::from);
        Launch::per_row("rotate", width, shape, counts.into_iter().chain([sign.into()]).collect())
    };
    let (turn, back) = (launch(x.shape(), 1.0), launch(x.shape(), -1.0));
    x.contiguous()?.apply_op3(angles, &pads, Rotation { turn, back })
}

struct Rotation {
    turn: Launch,
    back: Launch,
}

impl CustomOp3 for Rotation {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Err(self.turn.wrong(ELSEWHERE))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        angles: &CudaStorage,
        l_angles: &Layout,
        pads: &CudaStorage,
        l_pads: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.turn.run(&[(x, lx), (angles, l_angles), (pads, l_pads)])
    }

    fn bwd(
        &self,
        _: &Tensor,
        angles: &Tensor,
        pads: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // The rotation is orthogonal but for a common factor: its transpose turns the other way.
        Ok((Some(self.back.clone().of_three(&grad.detach().contiguous()?, angles, pads)?), None, None))
    }
}

/// The probabilities of `scores`, whose last dimensions are query and key, a batch row's heads before them.
pub(super) fn masked_softmax(scores: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let (batch, rest) = (shape.pads.len(), scores.elem_count());
    let keys = scores.dim(candle_core::D::Minus1)?;
    if batch == 0 || scores.dim(0)? != batch || keys <= shape.past {
        candle_core::bail!("masked_softmax: {batch} rows after {} columns do not fit {:?}", shape.past, scores.dims());
    }
    let queries = keys - shape.past;
    let per_row = rest / (batch * keys);
    let (scale, cap) = (f64::from(shape.scale), f64::from(shape.cap.unwrap_or(0.0)));
    let counts = [per_row, queries, keys, shape.past, shape.window.unwrap_or(0)].map(Scalar::from);
    let scalars = counts.into_iter().chain([scale.into(), cap.into()]).collect();
    let back = move |[scores, _, out, grad]: [&Tensor; 4]| {
        // p, then its gradient, then the scores: three arrays and the result.
        let launch =
            Launch::per_row("masked_softmax_back", keys, scores.shape(), vec![keys.into(), scale.into(), cap.into()]);
        Ok([Some(launch.of_three(out, grad, scores)?), None])
    };
    let launch = Launch::per_row("masked_softmax", keys, scores.shape(), scalars);
    scores.contiguous()?.apply_op2(&masked(&shape.pads, scores)?, Op { launch, back })
}

/// What gradients are multiplied with so that their common norm is at most `clip`, as one value on the device, where it is
/// read: 0 where the norm is not finite.
pub(super) fn clip_factor(gradients: &[Tensor], clip: Option<f64>) -> Result<Option<Tensor>> {
    let Some(first) = gradients.first() else { return Ok(None) };
    let sums = Tensor::zeros(SUMS, DType::F32, first.device())?;
    for gradient in gradients {
        let n = gradient.elem_count();
        let launch = Launch { blocks: SUMS, ..Launch::per_value("add_squares", n, (), vec![n.into()]) };
        sums.inplace_op2(&gradient.contiguous()?, &launch)?;
    }
    let scalars = vec![SUMS.into(), clip.unwrap_or(0.0).into()];
    let launch = Launch { blocks: 1, ..Launch::per_value("clip_factor", SUMS, (), scalars) };
    Ok(Some(sums.apply_op1_no_bwd(&launch)?))
}

/// What an AdamW step does with every value, beside its gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adam {
    /// Decays of the moments.
    pub betas: [f64; 2],
    /// Step size over the first moments' bias correction.
    pub rate: f64,
    /// Root of the inverse of the second moments' bias correction.
    pub scale: f64,
    /// Added to the root of the second moments.
    pub epsilon: f64,
    /// What is left of a weight before the step.
    pub decay: f64,
}

impl Adam {
    /// Changes first and second `moments` `[2, n]` and then `var`, in place. `factor`: of [`clip_factor`].
    pub fn step(self, var: &Var, moments: &Tensor, gradient: &Tensor, factor: &Tensor) -> Result<()> {
        let (n, [beta1, beta2]) = (var.elem_count(), self.betas);
        if gradient.elem_count() != n || moments.elem_count() != 2 * n {
            candle_core::bail!("adam: {n} values, gradient {:?}, moments {:?}", gradient.dims(), moments.dims());
        }
        let first = Launch::per_value("adam_moments", n, (), vec![n.into(), beta1.into(), beta2.into()]);
        moments.inplace_op3(&gradient.contiguous()?, factor, &first)?;
        let reals = [self.rate, self.scale, self.epsilon, self.decay].map(Scalar::from);
        let scalars = std::iter::once(n.into()).chain(reals).collect();
        var.as_tensor().inplace_op3(moments, factor, &Launch::per_value("adam_weights", n, (), scalars))
    }
}
