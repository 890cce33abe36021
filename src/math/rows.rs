//! Rows of small matrices on the host.

/// Gram–Schmidt, twice, on rows of `width`; a row that depends on those before it becomes zero.
#[must_use]
pub fn orthonormal(rows: &[f32], width: usize) -> Vec<f32> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for row in rows.chunks_exact(width) {
        let mut row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let before = length(&row);
        for _ in 0..2 {
            for done in &basis {
                let along: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(done).for_each(|(a, b)| *a -= along * b);
            }
        }
        let after = length(&row);
        let factor = if after > 1e-9 * before { 1.0 / after } else { 0.0 };
        row.iter_mut().for_each(|v| *v *= factor);
        basis.push(row);
    }
    basis.into_iter().flatten().map(|v| v as f32).collect()
}

fn length(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Share of the rows' norms below which their sum is nothing to begin with.
const CANCELLED: f32 = 1e-4;

fn norm_of(row: &[f32]) -> f32 {
    row.iter().map(|v| v * v).sum::<f32>().sqrt()
}

/// Orthonormal rows that span the `rank` leading principal directions of `rows` of `width`, the strongest first.
///
/// Rows are taken as they are; subtract their mean beforehand for components of the variance. Subspace iteration on
/// `rowsᵀ·rows`, which is never formed.
#[must_use]
pub fn principal(rows: &[f32], width: usize, rank: usize) -> Vec<f32> {
    const ITERATIONS: usize = 60;
    let count = rows.len() / width.max(1);
    let rank = rank.min(width).min(count);
    // Rows of the data themselves, strongest first, are a better start than noise and need no random stream.
    let mut order: Vec<usize> = (0..count).collect();
    let norm = |i: &usize| rows[i * width..(i + 1) * width].iter().map(|v| v * v).sum::<f32>();
    order.sort_by(|a, b| norm(b).total_cmp(&norm(a)));
    let mut start = mixed(rows, width, &order, rank);
    if let ([strongest, ..], 1) = (order.as_slice(), rank)
        && norm_of(&start) < CANCELLED * rows.chunks_exact(width).map(norm_of).sum::<f32>()
    {
        // Rows around their mean: their sum is what rounding leaves.
        start = rows[strongest * width..(strongest + 1) * width].to_vec();
    }
    let mut basis: Vec<f32> = orthonormal(&start, width);
    for _ in 0..ITERATIONS {
        let mut next = vec![0.0_f64; rank * width];
        for row in rows.chunks_exact(width) {
            for (k, out) in next.chunks_exact_mut(width).enumerate() {
                let along: f64 = row.iter().zip(&basis[k * width..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                out.iter_mut().zip(row).for_each(|(o, v)| *o += along * f64::from(*v));
            }
        }
        let next: Vec<f32> = next.into_iter().map(|v| v as f32).collect();
        basis = orthonormal(&next, width);
    }
    basis
}

/// `rank` sums of rows with changing signs, so that no leading direction is missed by a lucky zero.
fn mixed(rows: &[f32], width: usize, order: &[usize], rank: usize) -> Vec<f32> {
    let mut out = vec![0.0_f32; rank * width];
    for (place, row) in order.iter().enumerate() {
        for k in 0..rank {
            let sign = if (place + 1) * (k + 1) % 5 < 3 { 1.0 } else { -0.7 };
            let weight = if place % rank == k { 2.0 } else { sign };
            let target = &mut out[k * width..(k + 1) * width];
            target.iter_mut().zip(&rows[row * width..]).for_each(|(o, v)| *o += weight * v);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;

    #[test]
    fn rows_around_their_mean_have_a_leading_direction_too() {
        let rows = [3.0, 0.1, 0.0, -3.0, 0.0, 0.1, 1.0, 0.0, -0.1, -1.0, -0.1, 0.0];
        assert!(norm_of(&mixed(&rows, 3, &[0, 1, 2, 3], 1)) < 1e-6, "they cancel");
        assert!(principal(&rows, 3, 1)[0].abs() > 0.99);
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn rows_become_orthonormal_and_dependent_ones_zero() {
        let rows = [3.0, 0.0, 0.0, 1.0, 2.0, 0.0, 4.0, 2.0, 0.0];
        let basis = orthonormal(&rows, 3);
        assert_eq!(&basis[..3], [1.0, 0.0, 0.0]);
        assert!((dot(&basis[3..6], &basis[3..6]) - 1.0).abs() < 1e-6 && dot(&basis[..3], &basis[3..6]).abs() < 1e-6);
        assert!(basis[6..].iter().all(|v| v.abs() < 1e-6));
    }

    #[test]
    fn planted_directions_are_found_in_order() {
        let mut stream = Stream::new(5, "principal");
        let basis = orthonormal(&stream.gaussian(2 * 24, 1.0), 24);
        let mut rows = vec![];
        for _ in 0..80 {
            let (a, b) = (5.0 * stream.normal() as f32, 2.0 * stream.normal() as f32);
            rows.extend((0..24).map(|i| a * basis[i] + b * basis[24 + i] + 0.1 * stream.normal() as f32));
        }
        let found = principal(&rows, 24, 2);
        assert!(dot(&found[..24], &basis[..24]).abs() > 0.99, "{}", dot(&found[..24], &basis[..24]));
        assert!(dot(&found[24..], &basis[24..]).abs() > 0.95, "{}", dot(&found[24..], &basis[24..]));
    }
}
