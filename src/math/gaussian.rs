//! Gaussians fitted to few rows, and the map that moves one onto another at least cost.
//!
//! *Sources*: the optimal transport between Gaussians for the 2-Wasserstein distance (Dowson and Landau 1982),
//! `x ↦ m₂ + Σ₁^{-1/2}(Σ₁^{1/2}Σ₂Σ₁^{1/2})^{1/2}Σ₁^{-1/2}(x − m₁)`; covariances shrunk towards a multiple of the identity as
//! Ledoit and Wolf (2004) do, so that 80 rows suffice for heads of 128.

use faer::{Mat, Side};

/// Eigenvalues below this part of the largest count as that much.
const SMALLEST: f64 = 1e-9;

/// Mean and covariance.
#[derive(Debug, Clone)]
pub struct Gaussian {
    mean: Vec<f64>,
    covariance: Mat<f64>,
}

/// `x ↦ A·x + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct AffineMap {
    /// `A`, `[width, width]`, row by row.
    pub matrix: Vec<f64>,
    /// `b`, `[width]`.
    pub bias: Vec<f64>,
}

impl Gaussian {
    /// The Gaussian of rows of one width; `None` without rows.
    #[must_use]
    pub fn fit(rows: &[Vec<f64>]) -> Option<Self> {
        let width = rows.first()?.len();
        let n = rows.len() as f64;
        let mean: Vec<f64> = (0..width).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / n).collect();
        let centred = Mat::from_fn(rows.len(), width, |k, i| rows[k][i] - mean[i]);
        let sample = centred.transpose() * &centred * (1.0 / n);
        let level = (0..width).map(|i| sample[(i, i)]).sum::<f64>() / width.max(1) as f64;
        let target = Mat::from_fn(width, width, |i, j| if i == j { level } else { 0.0 });
        // How far the sample is from the target, and how far it would be by chance alone.
        let off = (&sample - &target).squared_norm_l2();
        let fourth: f64 = centred.row_iter().map(|row| row.squared_norm_l2().powi(2)).sum();
        let chance = (fourth / n - sample.squared_norm_l2()) / n;
        let shrinkage = if off > 0.0 { (chance / off).clamp(0.0, 1.0) } else { 1.0 };
        let covariance = sample * (1.0 - shrinkage) + target * shrinkage;
        Some(Self { mean, covariance })
    }

    /// The map of least mean squared movement that takes this Gaussian to `other`; a shift alone where this one has no
    /// spread. `None` when numbers are not finite.
    #[must_use]
    pub fn map_to(&self, other: &Self) -> Option<AffineMap> {
        let width = self.mean.len();
        let matrix = match (power(&self.covariance, 0.5), power(&self.covariance, -0.5)) {
            (Some(root), Some(inverse)) => {
                let middle = power(&(&root * &other.covariance * &root), 0.5);
                middle.map_or_else(|| Mat::zeros(width, width), |middle| &inverse * middle * &inverse)
            }
            _ => Mat::identity(width, width),
        };
        let moved = |i: usize| (0..width).map(|j| matrix[(i, j)] * self.mean[j]).sum::<f64>();
        let bias: Vec<f64> = (0..width).map(|i| other.mean[i] - moved(i)).collect();
        let matrix: Vec<f64> =
            (0..width).flat_map(|i| (0..width).map(move |j| (i, j))).map(|(i, j)| matrix[(i, j)]).collect();
        matrix.iter().chain(&bias).all(|v| v.is_finite()).then_some(AffineMap { matrix, bias })
    }
}

/// A power of a symmetric matrix without negative eigenvalues; `None` when it is zero or not finite.
fn power(matrix: &Mat<f64>, exponent: f64) -> Option<Mat<f64>> {
    let symmetric = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| (matrix[(i, j)] + matrix[(j, i)]) / 2.0);
    let eigen = symmetric.self_adjoint_eigen(Side::Lower).ok()?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let largest = (0..values.nrows()).map(|k| values[k]).fold(0.0, f64::max);
    if !largest.is_normal() {
        return None;
    }
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, k| {
        vectors[(i, k)] * values[k].max(SMALLEST * largest).powf(exponent)
    });
    Some(scaled * vectors.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;

    /// Rows `m + L·noise` for a random `L` that flattens no direction.
    fn rows(stream: &mut Stream, n: usize, width: usize) -> Vec<Vec<f64>> {
        let mut mix = stream.uniform(width * width, 0.3);
        mix.iter_mut().step_by(width + 1).for_each(|v| *v += 1.0);
        let mean = stream.gaussian(width, 2.0);
        let row = |noise: &[f32]| {
            let at = |i: usize| (0..width).map(|j| f64::from(mix[i * width + j] * noise[j])).sum::<f64>();
            (0..width).map(|i| f64::from(mean[i]) + at(i)).collect()
        };
        (0..n).map(|_| row(&stream.gaussian(width, 1.0))).collect()
    }

    fn apply(map: &AffineMap, row: &[f64]) -> Vec<f64> {
        let rows = map.matrix.chunks_exact(row.len()).zip(&map.bias);
        rows.map(|(a, b)| a.iter().zip(row).map(|(a, x)| a * x).sum::<f64>() + b).collect()
    }

    #[test]
    fn samples_move_to_the_mean_and_the_covariance_of_the_target() {
        let mut stream = Stream::new(8, "transport");
        let (from, to) = (rows(&mut stream, 2000, 4), rows(&mut stream, 2000, 4));
        let target = Gaussian::fit(&to).unwrap();
        let start = Gaussian::fit(&from).unwrap();
        let map = start.map_to(&target).unwrap();
        let matrix = Mat::from_fn(4, 4, |i, j| map.matrix[4 * i + j]);
        let taken = &matrix * &start.covariance * matrix.transpose() - &target.covariance;
        assert!(taken.norm_max() < 1e-9, "the Gaussian itself moves there exactly: {taken:?}");
        let moved: Vec<Vec<f64>> = from.iter().map(|row| apply(&map, row)).collect();
        let moved = Gaussian::fit(&moved).unwrap();
        let scale = target.covariance.norm_max();
        for i in 0..4 {
            assert!((moved.mean[i] - target.mean[i]).abs() < 1e-9);
            for j in 0..4 {
                assert!((moved.covariance[(i, j)] - target.covariance[(i, j)]).abs() < 0.05 * scale);
            }
        }
    }

    #[test]
    fn the_map_is_symmetric_and_a_gaussian_stays_where_it_is_wanted() {
        let mut stream = Stream::new(9, "transport");
        let (a, b) =
            (Gaussian::fit(&rows(&mut stream, 50, 3)).unwrap(), Gaussian::fit(&rows(&mut stream, 50, 3)).unwrap());
        let map = a.map_to(&b).unwrap().matrix;
        assert!((map[1] - map[3]).abs() < 1e-9 && (map[2] - map[6]).abs() < 1e-9, "a gradient of a convex function");
        let still = a.map_to(&a).unwrap();
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert!(still.matrix.iter().zip(identity).all(|(a, b)| (a - b).abs() < 1e-6), "{still:?}");
        assert!(still.bias.iter().all(|b| b.abs() < 1e-5), "{still:?}");
    }

    #[test]
    fn fewer_rows_than_dimensions_give_a_bounded_map() {
        let mut stream = Stream::new(10, "transport");
        let noise = |stream: &mut Stream, at: f64| -> Vec<Vec<f64>> {
            (0..20).map(|_| stream.gaussian(64, 1.0).into_iter().map(|v| f64::from(v) + at).collect()).collect()
        };
        let (from, to) = (noise(&mut stream, 0.0), noise(&mut stream, 3.0));
        let map = Gaussian::fit(&from).unwrap().map_to(&Gaussian::fit(&to).unwrap()).unwrap();
        // Both are white: hardly more than a shift.
        let largest = map.matrix.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        assert!(largest < 1.5, "{largest}");
    }

    #[test]
    fn a_point_is_shifted() {
        let (from, to) = (vec![vec![1.0, 2.0]; 3], vec![vec![3.0, 1.0]; 3]);
        let map = Gaussian::fit(&from).unwrap().map_to(&Gaussian::fit(&to).unwrap()).unwrap();
        assert_eq!((map.matrix, map.bias), (vec![1.0, 0.0, 0.0, 1.0], vec![2.0, -1.0]));
        assert!(Gaussian::fit(&[]).is_none());
    }
}
