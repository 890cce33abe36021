//! Matrix products on plain slices, through the `gemm` crate (AVX-512 where the CPU has it, chosen at run time).
//!
//! Inside a worker thread a small product runs on that thread alone: attack cells and data shards are what is parallel
//! then. A large one is offered to the other workers as well, which take a part of it when they have nothing else to do.
//! Called from outside the pool it uses all workers. Either way every output element is summed in one fixed order.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::dots::{FEW_ROWS, Written, dots};

/// Multiplications below which handing parts of a product to other threads costs more than it saves: from outside the
/// pool, and from a worker, whose neighbours are likely to be busy.
const PARALLEL_FROM: (usize, usize) = (1 << 18, 1 << 26);

/// Bytes of a part of a matrix that is written for its product, and the fewest rows of one.
const PART_BYTES: usize = 1 << 20;
const FEWEST_ROWS: usize = 96;

/// Whether work of `multiplications` is worth offering to other threads.
pub fn worth_sharing(multiplications: usize) -> bool {
    let (outside, inside) = PARALLEL_FROM;
    multiplications >= if rayon::current_thread_index().is_some() { inside } else { outside }
}

/// A matrix view: element `(i, j)` lies at `i·row + j·col`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// Rows of `width` values, one after another.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row: width, col: 1 }
    }

    /// The transpose.
    #[must_use]
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `a·b` for `a: [m, k]`, `b: [k, n]`, row by row. Few rows, or few columns, that lie along the summed dimension on both sides are
/// multiplied where they are (see `dots`); everything else is packed.
///
/// # Panics
/// As [`gemm()`].
#[must_use]
pub fn product(shape: (usize, usize, usize), a: View<'_>, b: View<'_>) -> Vec<f32> {
    let (m, k, n) = shape;
    if m * n * k == 0 {
        return vec![0.0; m * n];
    }
    if m.min(n) <= FEW_ROWS && a.col == 1 && b.row == 1 {
        assert!(a.fits(m, k) && b.fits(k, n), "matrix product reads outside its operands: {m}x{k}x{n}");
        // It is soon done, so that handing out parts costs more than of a packed product.
        let (rows, columns, parallel) = ((a.data, a.row), (b.data, b.col), worth_sharing(m * k * n / 4));
        if m <= FEW_ROWS {
            return dots((m, k, n), rows, columns, parallel);
        }
        let turned = dots((n, k, m), columns, rows, parallel);
        let mut out = vec![0.0; m * n];
        for (j, column) in turned.chunks_exact(m).enumerate() {
            column.iter().zip(out[j..].iter_mut().step_by(n)).for_each(|(value, out)| *out = *value);
        }
        return out;
    }
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    // SAFETY: the buffer holds m·n elements, n to a row. With a `keep` of zero each of them is written and none is read,
    // before the length says that they are there.
    unsafe {
        multiply(shape, a, b, out.as_mut_ptr(), n, 0.0, 1.0);
        out.set_len(m * n);
    }
    out
}

/// `a·bᵀ` for rows `a: [m, k]` and `b: [n, k]`, of which `write` gives the rows of a range when they are wanted: with the bits of
/// [`product`], and one part of `b` a thread in memory at a time. Absent where there is nothing to part.
#[must_use]
pub fn product_by_parts(
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    write: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Option<Vec<f32>> {
    assert!(a.len() >= m * k, "matrix product reads outside its operands: {m}x{k}x{n}");
    if m * k * n == 0 {
        return None;
    }
    if m <= FEW_ROWS {
        return Some(dots((m, k, n), (a, k), Written(write, k), worth_sharing(m * k * n / 4)));
    }
    // Sums of packed products are cut into stretches that depend on `k` and the CPU alone wherever `n` is above 64.
    let parts = n / (PART_BYTES / (size_of::<f32>() * k)).max(FEWEST_ROWS);
    if parts < 2 {
        return None;
    }
    let bounds: Vec<usize> = (0..=parts).map(|part| part * n / parts).collect();
    let written = |buffer: &mut Vec<f32>, bounds: &[usize]| {
        buffer.resize((bounds[1] - bounds[0]) * k, 0.0);
        write(bounds[0]..bounds[1], buffer);
    };
    let mut out = vec![0.0; m * n];
    if !worth_sharing(m * k * n) {
        let mut buffer = Vec::new();
        for bounds in bounds.windows(2) {
            written(&mut buffer, bounds);
            let shape = (m, k, bounds[1] - bounds[0]);
            gemm(shape, View::rows(a, k), View::rows(&buffer, k).t(), &mut out[bounds[0]..], n, 0.0, 1.0);
        }
        return Some(out);
    }
    let part = |buffer: &mut Vec<f32>, bounds: &[usize]| {
        written(buffer, bounds);
        (bounds[0], product((m, k, bounds[1] - bounds[0]), View::rows(a, k), View::rows(buffer, k).t()))
    };
    let products: Vec<(usize, Vec<f32>)> = bounds.par_windows(2).map_init(Vec::new, part).collect();
    for (from, product) in products {
        let count = product.len() / m;
        for (row, product) in product.chunks_exact(count).enumerate() {
            out[row * n + from..][..count].copy_from_slice(product);
        }
    }
    Some(out)
}

/// `out ← keep·out + scale·(a·b)` for `a: [m, k]`, `b: [k, n]`; `out`'s rows lie `out_row` apart.
///
/// # Panics
/// When a view is smaller than its shape: an internal error, checked because the kernel works on raw pointers.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    shape: (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    out: &mut [f32],
    out_row: usize,
    keep: f32,
    scale: f32,
) {
    let (m, _, n) = shape;
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_row + n <= out.len(), "matrix product writes outside its result: {m}x{n}");
    // SAFETY: the assertion bounds every address that is written by the slice's length, and `out` is a unique borrow.
    unsafe { multiply(shape, a, b, out.as_mut_ptr(), out_row, keep, scale) }
}

/// Calls the kernel.
///
/// # Safety
/// `out` is valid for writes of `n` values from every multiple of `out_row` below `m · out_row`; they are read, and so have to
/// be initialised, unless `keep` is zero.
#[allow(clippy::too_many_arguments)]
unsafe fn multiply(
    (m, k, n): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    out: *mut f32,
    out_row: usize,
    keep: f32,
    scale: f32,
) {
    assert!(a.fits(m, k) && b.fits(k, n), "matrix product reads outside its operands: {m}x{k}x{n}");
    let parallelism = if worth_sharing(m * k * n) { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the assertion bounds every address that is read by the slices' lengths, the caller vouches for those that are
    // written, and f32 has no invalid bit patterns.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            keep != 0.0,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_transposes_and_accumulation_match_the_definition() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i as f32).cos()).collect();
        let mut out = vec![1.0; m * n];
        gemm((m, k, n), View::rows(&a, k), View::rows(&b, k).t(), &mut out, n, 2.0, 0.5);
        for i in 0..m {
            for j in 0..n {
                let exact: f32 = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
                assert!((out[i * n + j] - (2.0 + 0.5 * exact)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_product_is_what_accumulating_into_zeros_gives() {
        let a: Vec<f32> = (0..40 * 5).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..37 * 5).map(|i| (i as f32).cos()).collect();
        let mut zeros = vec![0.0; 40 * 37];
        gemm((40, 5, 37), View::rows(&a, 5), View::rows(&b, 5).t(), &mut zeros, 37, 0.0, 1.0);
        assert_eq!(product((40, 5, 37), View::rows(&a, 5), View::rows(&b, 5).t()), zeros);
        assert_eq!(product((2, 0, 3), View::rows(&[], 1), View::rows(&[], 1)), [0.0; 6]);
    }

    #[test]
    fn few_rows_have_the_sums_of_the_definition_whatever_their_number() {
        // Lengths that leave a rest behind vectors and tiles, and rows that lie further apart than they are long.
        for (m, k, n, gap) in [(1, 5, 1, 0), (3, 67, 8, 3), (7, 131, 200, 0), (32, 24, 295, 5)] {
            let a: Vec<f32> = (0..m * (k + gap)).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n * (k + gap)).map(|i| (i as f32 * 0.11).cos()).collect();
            let (views, shape) = ((View::rows(&a, k + gap), View::rows(&b, k + gap).t()), (m, k, n));
            let run = || product(shape, views.0, views.1);
            let few = run();
            for (i, row) in few.chunks_exact(n).enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let exact: f32 = (0..k).map(|l| a[i * (k + gap) + l] * b[j * (k + gap) + l]).sum();
                    assert!((value - exact).abs() < 1e-4, "{m}x{k}x{n} at {i}, {j}: {value}, expected {exact}");
                }
            }
            let alone = product((1, k, n), views.0, views.1);
            assert_eq!(alone, few[..n], "a row's sums depend on its neighbours");
            let inside = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
            assert_eq!(inside, few);
            let rows: Vec<f32> = (0..m).flat_map(|i| a[i * (k + gap)..][..k].to_vec()).collect();
            let written = product_by_parts(shape, &rows, |range, out| {
                for (j, out) in range.zip(out.chunks_exact_mut(k)) {
                    out.copy_from_slice(&b[j * (k + gap)..][..k]);
                }
            });
            assert_eq!(written.as_ref(), Some(&few), "{m}x{k}x{n}");
            let turned = product((n, k, m), View::rows(&b, k + gap), View::rows(&a, k + gap).t());
            assert!((0..m * n).all(|i| few[i] == turned[i % n * m + i / n]), "{m}x{k}x{n} the other way round");
        }
    }

    #[test]
    fn parts_of_a_matrix_give_the_sums_of_the_whole() {
        for (m, k, n) in [(33, 1500, 400), (200, 700, 801), (64, 2800, 193)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.11).cos()).collect();
            let whole = product((m, k, n), View::rows(&a, k), View::rows(&b, k).t());
            let write = |range: Range<usize>, out: &mut [f32]| out.copy_from_slice(&b[range.start * k..range.end * k]);
            let by_parts = || product_by_parts((m, k, n), &a, write);
            assert!(by_parts() == Some(whole.clone()), "{m}x{k}x{n}");
            let inside = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(by_parts);
            assert!(inside == Some(whole), "{m}x{k}x{n} on a worker");
        }
        assert!(product_by_parts((40, 8, 100), &[0.0; 320], |_, _| {}).is_none(), "nothing to part");
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let (m, k, n) = (150, 90, 170);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.11).cos()).collect();
        let run = || {
            let mut out = vec![0.0; m * n];
            gemm((m, k, n), View::rows(&a, k), View::rows(&b, n), &mut out, n, 0.0, 1.0);
            out
        };
        let outside = run();
        let inside = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
        assert_eq!(outside, inside);
    }
}
