//! Ridge regression in closed form, at full or reduced rank, in f64 on the host.
//!
//! *Source*: least squares with weights and a ridge. With `G = Σ w·x·xᵀ + μI = LLᵀ` and `C = Σ w·e·xᵀ` the change that fits `e` best is
//! `D* = C·G⁻¹`; among all of rank r it is `SVD_r(C·L⁻ᵀ)·L⁻¹`, because `‖(D − D*)·L‖` is what is left. Where r is a small part of
//! all, that decomposition is found by subspace iteration (Halko, Martinsson, Tropp, "Finding Structure with Randomness", 2011).

use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatRef, Par, Side};

use super::gemm::{View, gemm};
use super::seed::Stream;

/// Directions that are iterated beside twice as many as are asked for.
const SPARE: usize = 8;

/// Of how many directions in all one is iterated at most: of fewer the whole decomposition costs less.
const WORTH: usize = 8;

/// What a singular value may still gain in one round, relative to itself and to the largest one, when it counts as found.
const SETTLED: (f64, f64) = (1e-10, 1e-14);

/// Rounds after which the whole decomposition is taken instead.
const MOST_ROUNDS: usize = 100;

/// Sums of a weighted least-squares problem `D·x ≈ e`.
#[derive(Debug, Clone)]
pub struct Ridge {
    d_out: usize,
    d_in: usize,
    gram: Vec<f64>,
    cross: Vec<f64>,
}

/// A change `B·A` of reduced rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Rows of `a`.
    pub rank: usize,
    /// `[rank, d_in]`, row by row.
    pub a: Vec<f32>,
    /// `[d_out, rank]`, row by row.
    pub b: Vec<f32>,
}

impl Ridge {
    /// No rows yet.
    #[must_use]
    pub fn new(d_out: usize, d_in: usize) -> Self {
        Self { d_out, d_in, gram: vec![0.0; d_in * d_in], cross: vec![0.0; d_out * d_in] }
    }

    /// Adds rows `x` `[n, d_in]` whose errors are `e` `[n, d_out]`, both multiplied by the root of their weight already.
    ///
    /// # Panics
    /// When the two have different numbers of rows: an internal error.
    pub fn add(&mut self, x: &[f32], e: &[f32]) {
        let (d_in, d_out) = (self.d_in, self.d_out);
        let rows = x.len() / d_in;
        assert_eq!(rows * d_out, e.len(), "every row has one error");
        add_product(&mut self.gram, (d_in, rows, d_in), x, x);
        add_product(&mut self.cross, (d_out, rows, d_in), e, x);
    }

    /// The best change of at most `rank` (0: any rank), with `mu` times the mean of the Gram matrix's diagonal added to it; with
    /// more where that is below what its sums are rounded by, as of fewer rows than they are wide.
    ///
    /// `None` when the sums are not finite or the matrix is singular in spite of the ridge.
    #[must_use]
    pub fn solve(&self, rank: usize, mu: f64) -> Option<Factors> {
        let (d_in, d_out) = (self.d_in, self.d_out);
        let mean = (0..d_in).map(|i| self.gram[i * d_in + i]).sum::<f64>() / d_in.max(1) as f64;
        if !mean.is_normal() {
            return None;
        }
        let ridge = mu.max(1e-12) * mean;
        // One direction may hold nearly all of the trace, and is rounded in f32.
        let rounding = f64::from(f32::EPSILON) * mean * d_in as f64;
        let factored = |ridge: f64| {
            let gram = Mat::from_fn(d_in, d_in, |i, j| self.gram[i * d_in + j] + if i == j { ridge } else { 0.0 });
            gram.llt(Side::Lower).ok()
        };
        let factor = [ridge, ridge + rounding, ridge + 8.0 * rounding].into_iter().find_map(factored)?;
        // Rows of C are columns here: L⁻¹Cᵀ = (C·L⁻ᵀ)ᵀ.
        let mut scaled = Mat::from_fn(d_in, d_out, |i, j| self.cross[j * d_in + i]);
        solve_lower_triangular_in_place(factor.L(), scaled.as_mut(), Par::Seq);
        let full = d_in.min(d_out);
        let rank = if rank == 0 { full } else { rank.min(full) };
        let Singular { left, values, right } = Singular::leading(scaled.as_ref(), rank)?;
        // Both factors take the root of each singular value, so that neither is tiny.
        let root = |k: usize| values[k].max(0.0).sqrt();
        let mut a = Mat::from_fn(d_in, rank, |i, k| left[(i, k)] * root(k));
        solve_upper_triangular_in_place(factor.L().transpose(), a.as_mut(), Par::Seq);
        let factors = Factors {
            rank,
            a: (0..rank).flat_map(|k| (0..d_in).map(move |i| (k, i))).map(|(k, i)| a[(i, k)] as f32).collect(),
            b: (0..d_out)
                .flat_map(|j| (0..rank).map(move |k| (j, k)))
                .map(|(j, k)| (right[(j, k)] * root(k)) as f32)
                .collect(),
        };
        factors.a.iter().chain(&factors.b).all(|v| v.is_finite()).then_some(factors)
    }
}

/// The largest singular values of a matrix, in descending order, with their vectors as columns.
struct Singular {
    left: Mat<f64>,
    values: Vec<f64>,
    right: Mat<f64>,
}

impl Singular {
    /// `rank` or more of them; `None` when numbers are not finite.
    fn leading(matrix: MatRef<'_, f64>, rank: usize) -> Option<Self> {
        let columns = 2 * rank + SPARE;
        if WORTH * columns > matrix.nrows().min(matrix.ncols()) {
            return Self::all(matrix);
        }
        Self::iterated(matrix, rank, columns).or_else(|| Self::all(matrix))
    }

    fn all(matrix: MatRef<'_, f64>) -> Option<Self> {
        let svd = matrix.thin_svd().ok()?;
        Some(Self {
            left: svd.U().to_owned(),
            values: svd.S().column_vector().iter().copied().collect(),
            right: svd.V().to_owned(),
        })
    }

    /// `None` when they have not settled.
    fn iterated(matrix: MatRef<'_, f64>, rank: usize, columns: usize) -> Option<Self> {
        let start = Stream::new(0, "singular").gaussian(matrix.ncols() * columns, 1.0);
        let mut right = Mat::from_fn(matrix.ncols(), columns, |i, k| f64::from(start[i * columns + k]));
        let mut before = vec![0.0; rank];
        for _ in 0..MOST_ROUNDS {
            let left = (matrix * &right).qr().compute_thin_Q();
            // What the directions of `left` have of the matrix, transposed.
            let part = matrix.transpose() * &left;
            let svd = part.thin_svd().ok()?;
            let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
            let (own, largest) = SETTLED;
            let settled = |(now, before): (&f64, &f64)| now - before <= own * now + largest * values[0];
            if values.iter().zip(&before).all(settled) {
                return Some(Self { left: left * svd.V(), values, right: svd.U().to_owned() });
            }
            (before, right) = (values[..rank].to_vec(), svd.U().to_owned());
        }
        None
    }
}

/// `sum += leftᵀ·right` for `left` `[rows, m]` and `right` `[rows, n]`: f32 within a batch, f64 over batches.
fn add_product(sum: &mut [f64], (m, rows, n): (usize, usize, usize), left: &[f32], right: &[f32]) {
    let mut product = vec![0.0; m * n];
    gemm((m, rows, n), View::rows(left, m).t(), View::rows(right, n), &mut product, n, 0.0, 1.0);
    sum.iter_mut().zip(product).for_each(|(s, p)| *s += f64::from(p));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;

    fn problem(rows: usize, d_in: usize, d_out: usize) -> (Vec<f32>, Vec<f32>, Ridge) {
        let mut stream = Stream::new(9, "ridge");
        let (x, e) = (stream.gaussian(rows * d_in, 1.0), stream.gaussian(rows * d_out, 1.0));
        let mut ridge = Ridge::new(d_out, d_in);
        for (x, e) in x.chunks(8 * d_in).zip(e.chunks(8 * d_out)) {
            ridge.add(x, e);
        }
        (x, e, ridge)
    }

    fn delta(f: &Factors, d_out: usize, d_in: usize) -> Vec<f64> {
        let entry = |j: usize, i: usize| {
            (0..f.rank).map(|k| f64::from(f.b[j * f.rank + k]) * f64::from(f.a[k * d_in + i])).sum()
        };
        (0..d_out).flat_map(|j| (0..d_in).map(move |i| (j, i))).map(|(j, i)| entry(j, i)).collect()
    }

    fn loss(delta: &[f64], x: &[f32], e: &[f32], d_in: usize, d_out: usize) -> f64 {
        x.chunks(d_in)
            .zip(e.chunks(d_out))
            .map(|(x, e)| {
                let miss = |j: usize| {
                    let out: f64 = (0..d_in).map(|i| delta[j * d_in + i] * f64::from(x[i])).sum();
                    (out - f64::from(e[j])).powi(2)
                };
                (0..d_out).map(miss).sum::<f64>()
            })
            .sum()
    }

    #[test]
    fn fewer_rows_than_they_are_wide_with_one_large_direction_are_solved() {
        let (rows, d_in, d_out) = (24, 600, 3);
        let mut stream = Stream::new(11, "wide");
        let (mut x, e) = (stream.gaussian(rows * d_in, 1.0), stream.gaussian(rows * d_out, 1.0));
        // Activations that are large in all rows alike, as the first tokens of language models have them.
        let large = stream.gaussian(d_in, 300.0);
        x.iter_mut().enumerate().for_each(|(i, x)| *x += large[i % d_in]);
        let mut ridge = Ridge::new(d_out, d_in);
        ridge.add(&x, &e);
        let change = delta(&ridge.solve(0, 1e-9).unwrap(), d_out, d_in);
        let zero = vec![0.0; change.len()];
        assert!(loss(&change, &x, &e, d_in, d_out) < loss(&zero, &x, &e, d_in, d_out), "better than no change");
    }

    #[test]
    fn the_closed_form_is_where_gradient_descent_ends() {
        let (d_in, d_out) = (6, 4);
        let (x, e, ridge) = problem(40, d_in, d_out);
        let closed = delta(&ridge.solve(0, 0.0).unwrap(), d_out, d_in);
        let mut descent = vec![0.0; d_in * d_out];
        for _ in 0..4000 {
            let mut gradient = vec![0.0; descent.len()];
            for (x, e) in x.chunks(d_in).zip(e.chunks(d_out)) {
                for j in 0..d_out {
                    let out: f64 = (0..d_in).map(|i| descent[j * d_in + i] * f64::from(x[i])).sum();
                    let miss = out - f64::from(e[j]);
                    (0..d_in).for_each(|i| gradient[j * d_in + i] += miss * f64::from(x[i]));
                }
            }
            descent.iter_mut().zip(&gradient).for_each(|(d, g)| *d -= 0.01 * g);
        }
        assert!(closed.iter().zip(&descent).all(|(a, b)| (a - b).abs() < 1e-4), "{closed:?} {descent:?}");
    }

    #[test]
    fn no_change_of_that_rank_is_better() {
        let (d_in, d_out) = (5, 4);
        let (x, e, ridge) = problem(30, d_in, d_out);
        let best = delta(&ridge.solve(1, 0.0).unwrap(), d_out, d_in);
        let reached = loss(&best, &x, &e, d_in, d_out);
        // Alternating least squares from many starts is the brute force here.
        let mut stream = Stream::new(4, "starts");
        let mut brute = f64::INFINITY;
        for _ in 0..20 {
            let mut a: Vec<f64> = (0..d_in).map(|_| stream.normal()).collect();
            let mut b = vec![0.0; d_out];
            for _ in 0..300 {
                let along = |x: &[f32], a: &[f64]| x.iter().zip(a).map(|(x, a)| f64::from(*x) * a).sum::<f64>();
                let total: f64 = x.chunks(d_in).map(|x| along(x, &a).powi(2)).sum();
                for (j, b) in b.iter_mut().enumerate() {
                    let sum: f64 =
                        x.chunks(d_in).zip(e.chunks(d_out)).map(|(x, e)| along(x, &a) * f64::from(e[j])).sum();
                    *b = sum / total;
                }
                // With b fixed, a solves the normal equations of Xa = E·b/‖b‖².
                let norm: f64 = b.iter().map(|v| v * v).sum();
                let mut one = Ridge::new(1, d_in);
                for (x, e) in x.chunks(d_in).zip(e.chunks(d_out)) {
                    let target = e.iter().zip(&b).map(|(e, b)| f64::from(*e) * b).sum::<f64>() / norm;
                    one.add(x, &[target as f32]);
                }
                a = delta(&one.solve(0, 0.0).unwrap(), 1, d_in);
            }
            let outer: Vec<f64> = b.iter().flat_map(|b| a.iter().map(move |a| a * b)).collect();
            brute = brute.min(loss(&outer, &x, &e, d_in, d_out));
        }
        assert!(reached <= brute * (1.0 + 1e-5) && brute <= reached * (1.0 + 1e-3), "{reached} {brute}");
    }

    #[test]
    fn a_few_leading_directions_are_those_of_the_whole_decomposition() {
        let (rows, columns, rank) = (260, 210, 4);
        let mut stream = Stream::new(3, "spectrum");
        let mut with = |values: &[f64]| {
            let mut factor = |width: usize| {
                let numbers = stream.gaussian(width * values.len(), 1.0);
                let numbers = Mat::from_fn(width, values.len(), |i, k| f64::from(numbers[i * values.len() + k]));
                numbers.qr().compute_thin_Q()
            };
            let (left, right) = (factor(rows), factor(columns));
            Mat::from_fn(rows, values.len(), |i, k| left[(i, k)] * values[k]) * right.transpose()
        };
        let slow: Vec<f64> = (1..=columns).map(|k| 1.0 / k as f64).collect();
        let steep: Vec<f64> = (0..columns).map(|k| if k == 0 { 1e6 } else { 1.0 / k as f64 }).collect();
        let flat = vec![1.0; columns];
        let spectra = [
            ("slow", &slow[..]),
            ("steep", &steep),
            ("flat", &flat),
            ("fewer than asked", &[3.0, 1.0]),
            ("none", &[0.0]),
        ];
        for (name, values) in spectra {
            let matrix = with(values);
            let found = Singular::iterated(matrix.as_ref(), rank, 2 * rank + SPARE).unwrap();
            let whole = Singular::all(matrix.as_ref()).unwrap();
            for k in 0..rank {
                let close = 1e-8 * whole.values[k] + 1e-12 * whole.values[0];
                assert!((found.values[k] - whole.values[k]).abs() <= close, "{name} {k}: {:?}", &found.values[..rank]);
                let along = &matrix * found.right.col(k) - found.left.col(k) * faer::Scale(found.values[k]);
                assert!(along.norm_l2() <= 1e-4 * whole.values[0].min(1.0), "{name} {k}: {}", along.norm_l2());
            }
            let product = found.left.transpose() * &found.left;
            assert!((product - Mat::<f64>::identity(16, 16)).norm_max() < 1e-12, "{name}");
        }
    }

    #[test]
    fn a_low_rank_of_a_wide_map_is_solved_as_the_whole_decomposition_would() {
        let (d_in, d_out, rank) = (150, 140, 3);
        let (x, e, ridge) = problem(400, d_in, d_out);
        let found = ridge.solve(rank, 0.0).unwrap();
        assert_eq!(found.rank, rank);
        // What is left of the best change of any rank beyond its first directions, as a root of the Gram matrix sees it.
        let all = delta(&ridge.solve(0, 0.0).unwrap(), d_out, d_in);
        let gram = Mat::from_fn(d_in, d_in, |i, j| ridge.gram[i * d_in + j]);
        let root = gram.llt(Side::Lower).unwrap();
        let seen = Mat::from_fn(d_out, d_in, |j, i| all[j * d_in + i]) * root.L();
        let values = Singular::all(seen.as_ref()).unwrap().values;
        let beyond: f64 = values[rank..].iter().map(|value| value * value).sum();
        let gap = loss(&delta(&found, d_out, d_in), &x, &e, d_in, d_out) - loss(&all, &x, &e, d_in, d_out);
        assert!(values[0] > 1.01 * values[rank] && (gap / beyond - 1.0).abs() < 1e-4, "{gap} {beyond}");
    }

    #[test]
    fn nothing_to_fit_changes_nothing() {
        let mut ridge = Ridge::new(3, 4);
        ridge.add(&Stream::new(1, "x").gaussian(20, 1.0), &[0.0; 15]);
        let factors = ridge.solve(2, 1e-6).unwrap();
        assert!(delta(&factors, 3, 4).iter().all(|v| v.abs() < 1e-12));
        assert!(Ridge::new(3, 4).solve(2, 0.0).is_none(), "no rows at all");
    }
}
