//! Products of a few rows with a long matrix, both stored along the summed dimension: one decoding step of a batch.
//!
//! The general product repacks its operands first, which pays for itself over many rows. Here the matrix is read once, where it
//! lies, and every vector of it meets all rows while it is in a register's reach.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows up to which this beats a packed product.
pub(super) const FEW_ROWS: usize = 32;

/// Rows of `a` and of `b` whose dot products are summed side by side: twelve sums, three vectors of `b` and one of `a` fill
/// AVX2's sixteen registers.
const TILE: (usize, usize) = (4, 3);

/// Rows of `b` in one task for another thread.
const TASK: usize = 96;

/// A matrix whose rows are read in parts: `(rows, apart)` of the rows from the first number up to the second, in the buffer
/// where they do not lie in memory as they are.
pub(super) trait Rows: Sync {
    fn part<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> (&'a [f32], usize);

    /// Whether a part may as well be all of it.
    fn lies_in_memory(&self) -> bool;
}

impl Rows for (&[f32], usize) {
    fn part<'a>(&'a self, rows: Range<usize>, _: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        (&self.0[rows.start * self.1..], self.1)
    }

    fn lies_in_memory(&self) -> bool {
        true
    }
}

/// Rows of a width, which are written into a buffer when they are wanted.
pub(super) struct Written<F>(pub F, pub usize);

impl<F: Fn(Range<usize>, &mut [f32]) + Sync> Rows for Written<F> {
    fn part<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        buffer.resize(rows.len() * self.1, 0.0);
        (self.0)(rows, buffer);
        (buffer, self.1)
    }

    fn lies_in_memory(&self) -> bool {
        false
    }
}

/// `a·bᵀ` for `a: [m, k]`, rows `lda` apart, and `b: [n, k]`: `[m, n]`. Every element is summed in one order, whatever the
/// number of rows and threads.
pub(super) fn dots(
    (m, k, n): (usize, usize, usize),
    (a, lda): (&[f32], usize),
    b: impl Rows,
    parallel: bool,
) -> Vec<f32> {
    let arch = pulp::Arch::new();
    let part = |buffer: &mut Vec<f32>, from: usize, count: usize| {
        let mut out = vec![0.0; m * count];
        arch.dispatch(Part { k, a: (a, lda), b: b.part(from..from + count, buffer), out: &mut out, count });
        out
    };
    if n <= TASK || (!parallel && b.lies_in_memory()) {
        return part(&mut Vec::new(), 0, n);
    }
    let starts: Vec<usize> = (0..n).step_by(TASK).collect();
    let parts: Vec<Vec<f32>> = if parallel {
        starts.par_iter().map_init(Vec::new, |buffer, from| part(buffer, *from, TASK.min(n - from))).collect()
    } else {
        let mut buffer = Vec::new();
        starts.iter().map(|from| part(&mut buffer, *from, TASK.min(n - from))).collect()
    };
    let mut out = vec![0.0; m * n];
    for (from, part) in starts.into_iter().zip(parts) {
        let count = part.len() / m;
        for (row, part) in part.chunks_exact(count).enumerate() {
            out[row * n + from..][..count].copy_from_slice(part);
        }
    }
    out
}

/// `count` rows of `b` against all rows of `a`.
struct Part<'a> {
    k: usize,
    a: (&'a [f32], usize),
    b: (&'a [f32], usize),
    /// `[m, count]`
    out: &'a mut [f32],
    count: usize,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Part { k, a: (a, lda), b: (b, ldb), out, count } = self;
        let m = out.len() / count;
        let (tall, wide) = (m / TILE.0 * TILE.0, count / TILE.1 * TILE.1);
        let mut j = 0;
        while j < count {
            let columns = if j < wide { TILE.1 } else { 1 };
            let mut i = 0;
            while i < m {
                let rows = if i < tall { TILE.0 } else { 1 };
                let (x, y, to) = ((&a[i * lda..], lda), (&b[j * ldb..], ldb), (&mut out[i * count + j..], count));
                match (rows, columns) {
                    TILE => tile::<S, { TILE.0 }, { TILE.1 }>(simd, k, x, y, to),
                    (1, 1) => tile::<S, 1, 1>(simd, k, x, y, to),
                    (1, _) => tile::<S, 1, { TILE.1 }>(simd, k, x, y, to),
                    _ => tile::<S, { TILE.0 }, 1>(simd, k, x, y, to),
                }
                i += rows;
            }
            j += columns;
        }
    }
}

/// `A · B` dot products of length `k`.
#[inline(always)]
fn tile<S: Simd, const A: usize, const B: usize>(
    simd: S,
    k: usize,
    (a, lda): (&[f32], usize),
    (b, ldb): (&[f32], usize),
    (out, stride): (&mut [f32], usize),
) {
    let mut rows: [(&[S::f32s], &[f32]); A] = [(&[], &[]); A];
    let mut columns: [(&[S::f32s], &[f32]); B] = [(&[], &[]); B];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = S::as_simd_f32s(&a[r * lda..][..k]);
    }
    for (c, column) in columns.iter_mut().enumerate() {
        *column = S::as_simd_f32s(&b[c * ldb..][..k]);
    }
    let mut sums = [[simd.splat_f32s(0.0); B]; A];
    let vectors = rows[0].0.len();
    // All are of this length; said once more, so that the loop below checks nothing.
    for operand in rows.iter_mut().chain(&mut columns) {
        operand.0 = &operand.0[..vectors];
    }
    for i in 0..vectors {
        let mut y = [simd.splat_f32s(0.0); B];
        for c in 0..B {
            y[c] = columns[c].0[i];
        }
        for r in 0..A {
            let x = rows[r].0[i];
            for c in 0..B {
                sums[r][c] = simd.mul_add_f32s(x, y[c], sums[r][c]);
            }
        }
    }
    for r in 0..A {
        for c in 0..B {
            let mut sum = simd.reduce_sum_f32s(sums[r][c]);
            for (x, y) in rows[r].1.iter().zip(columns[c].1) {
                sum += x * y;
            }
            out[r * stride + c] = sum;
        }
    }
}
