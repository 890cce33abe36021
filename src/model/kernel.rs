//! What the fused operations share: slices out of tensors, rows over threads, vector instructions by run-time choice.

use std::ops::Deref;

use candle_core::{CpuStorage, Error, Layout, Storage, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

/// Values per task that is handed to another thread.
const TASK: usize = 1 << 14;

/// Values from which work is worth handing to other threads: from outside the pool, and from a worker, whose neighbours
/// are likely to be busy.
const PARALLEL_FROM: (usize, usize) = (1 << 16, 1 << 20);

fn worth_sharing(values: usize) -> bool {
    let (outside, inside) = PARALLEL_FROM;
    values >= if rayon::current_thread_index().is_some() { inside } else { outside }
}

/// Values per unit of work that acts on each value alone.
const CHUNK: usize = 1024;

/// The contiguous f32 values of a custom operation's argument.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::Msg(format!("expected a contiguous argument, got layout {layout:?}")))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A tensor made contiguous, whose values can be borrowed while it lives.
pub(super) struct Flat(Tensor);

/// A borrow of a CPU tensor's values.
pub(super) struct Values<'a> {
    guard: Box<dyn Deref<Target = Storage> + 'a>,
    range: (usize, usize),
}

pub(super) fn flat(tensor: &Tensor) -> candle_core::Result<Flat> {
    Ok(Flat(tensor.detach().contiguous()?))
}

impl Flat {
    pub(super) fn values(&self) -> candle_core::Result<Values<'_>> {
        let (guard, layout) = self.0.storage_and_layout();
        let range = layout.contiguous_offsets().ok_or_else(|| Error::Msg("expected a contiguous tensor".into()))?;
        match &*guard {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { guard: Box::new(guard), range }),
            _ => Err(Error::Msg(format!("expected f32 values on the CPU, got {:?}", self.0.dtype()))),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.0..self.range.1],
            _ => &[], // `values` has checked the storage
        }
    }
}

/// Calls `work` with the values of `tensors`, row-major.
pub(super) fn with_values<const N: usize, T>(
    tensors: [&Tensor; N],
    work: impl FnOnce([&[f32]; N]) -> candle_core::Result<T>,
) -> candle_core::Result<T> {
    let flats = tensors.iter().map(|tensor| flat(tensor)).collect::<candle_core::Result<Vec<_>>>()?;
    let values = flats.iter().map(Flat::values).collect::<candle_core::Result<Vec<_>>>()?;
    work(std::array::from_fn(|i| &*values[i]))
}

/// A detached tensor of `values` with the shape and device of `like`.
pub(super) fn tensor_like(values: Vec<f32>, like: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// A part of the work, compiled for the instructions of this CPU.
///
/// These are types and no closures, and they call `*work` and not `work`: what stands between the dispatch and the arithmetic has
/// to be `#[inline(always)]`, and the functions that the compiler puts between a closure and its caller are not. Code that is
/// compiled by itself gets the instructions of the oldest CPU, and takes twice the time. So closures that come here are
/// `#[inline(always)]` too.
struct Rows<'a, F> {
    first: usize,
    width: usize,
    out: &'a mut [f32],
    work: &'a F,
}

impl<F: Fn(usize, &mut [f32])> NullaryFnOnce for Rows<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (row, values) in self.out.chunks_exact_mut(self.width).enumerate() {
            (*self.work)(self.first + row, values);
        }
    }
}

struct Pair<'a, F> {
    at: usize,
    outs: [&'a mut [f32]; 2],
    work: &'a F,
}

impl<F: Fn(usize, &mut [f32], &mut [f32])> NullaryFnOnce for Pair<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let [a, b] = self.outs;
        (*self.work)(self.at, a, b);
    }
}

struct Index<'a, F> {
    index: usize,
    work: &'a F,
}

impl<T, F: Fn(usize) -> T> NullaryFnOnce for Index<'_, F> {
    type Output = T;

    #[inline(always)]
    fn call(self) -> T {
        (*self.work)(self.index)
    }
}

/// Calls `work(row, values)` for every row of `width` values, on all workers when the work is large enough, with the widest
/// vector instructions of this CPU.
pub(super) fn for_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let (arch, work) = (pulp::Arch::new(), &work);
    if !worth_sharing(out.len()) {
        return arch.dispatch(Rows { first: 0, width, out, work });
    }
    let rows = TASK.div_ceil(width);
    let chunks = out.par_chunks_mut(rows * width).enumerate();
    chunks.for_each(|(chunk, out)| arch.dispatch(Rows { first: chunk * rows, width, out, work }));
}

/// Calls `work(start, values)` for chunks of `out`, as [`for_rows`]: what acts on each value alone.
pub(super) fn for_values(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    let whole = out.len() / CHUNK * CHUNK;
    let (head, tail) = out.split_at_mut(whole);
    for_rows(
        head,
        CHUNK,
        #[inline(always)]
        |row, out| work(row * CHUNK, out),
    );
    if !tail.is_empty() {
        pulp::Arch::new().dispatch(Rows { first: whole, width: tail.len(), out: tail, work: &work });
    }
}

/// Calls `work(start, values, others)` for equal chunks of two results, as [`for_values`].
pub(super) fn for_pairs(a: &mut [f32], b: &mut [f32], work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
    let (arch, work) = (pulp::Arch::new(), &work);
    let run = |(chunk, outs): (usize, [_; 2])| arch.dispatch(Pair { at: chunk * CHUNK, outs, work });
    if worth_sharing(a.len()) {
        let chunks = a.par_chunks_mut(CHUNK).zip(b.par_chunks_mut(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (a, b))| run((chunk, [a, b])));
    } else {
        let chunks = a.chunks_mut(CHUNK).zip(b.chunks_mut(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (a, b))| run((chunk, [a, b])));
    }
}

/// Runs `work(index)` for every index below `n`, on all workers when `cost` (values touched) makes it worth it, and returns
/// the results in order.
pub(super) fn for_indices<T: Send>(n: usize, cost: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (arch, work) = (pulp::Arch::new(), &work);
    let run = |index: usize| arch.dispatch(Index { index, work });
    if worth_sharing(cost) { (0..n).into_par_iter().map(run).collect() } else { (0..n).map(run).collect() }
}
