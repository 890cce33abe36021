//! Controls: an edit of the same kind and size that knows nothing.

use crate::Result;
use crate::intervention::Edit;
use crate::math::seed::Stream;

/// A random edit of the same kind, rank and norm as `edit`.
///
/// A learned edit's `W2ᵀ(W1−W2)` is replaced by a random matrix of the same rank and Frobenius norm; a vector by a random
/// one of the same length; a basis by a random one of the same rank.
///
/// # Errors
/// Never for edits made by this crate.
pub fn random_like(edit: &Edit, stream: &mut Stream) -> Result<Edit> {
    Ok(match edit {
        Edit::Identity => Edit::Identity,
        Edit::LowRank { layer, rank, w1, w2 } => {
            let difference: Vec<f32> = w1.iter().zip(w2).map(|(a, b)| a - b).collect();
            let target = product_norm(w2, &difference, *rank);
            let (up, down) = (stream.gaussian(w1.len(), 1.0), stream.gaussian(w1.len(), 1.0));
            // The product of two factors scaled by f each scales by f².
            let f = (target / product_norm(&up, &down, *rank).max(f64::MIN_POSITIVE)).sqrt() as f32;
            let w2: Vec<f32> = up.iter().map(|v| v * f).collect();
            let w1 = down.iter().zip(&w2).map(|(v, w2)| v * f + w2).collect();
            Edit::LowRank { layer: *layer, rank: *rank, w1, w2 }
        }
        Edit::Add { layer, vector } => {
            let length = norm(vector);
            let noise = stream.gaussian(vector.len(), 1.0);
            let f = (length / norm(&noise)) as f32;
            Edit::Add { layer: *layer, vector: noise.iter().map(|v| v * f).collect() }
        }
        Edit::Ablate { basis, rank } => {
            let width = basis.len() / (*rank).max(1);
            Edit::Ablate { basis: orthonormal(&stream.gaussian(basis.len(), 1.0), width), rank: *rank }
        }
    })
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Frobenius norm of `upᵀ·down` for `[rank, d]` factors, from the two `rank × rank` Gram matrices.
pub fn product_norm(up: &[f32], down: &[f32], rank: usize) -> f64 {
    let d = up.len() / rank.max(1);
    let dot = |m: &[f32], i: usize, j: usize| -> f64 {
        (0..d).map(|k| f64::from(m[i * d + k]) * f64::from(m[j * d + k])).sum()
    };
    let mut total = 0.0;
    for i in 0..rank {
        for j in 0..rank {
            total += dot(up, i, j) * dot(down, i, j);
        }
    }
    total.max(0.0).sqrt()
}

/// Gram–Schmidt on rows of `width`.
fn orthonormal(rows: &[f32], width: usize) -> Vec<f32> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for row in rows.chunks_exact(width) {
        let mut row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        for done in &basis {
            let along: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(done).for_each(|(a, b)| *a -= along * b);
        }
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
        basis.push(row);
    }
    basis.into_iter().flatten().map(|v| v as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_have_the_norm_of_the_edit() {
        let mut stream = Stream::new(4, "edit");
        let (w1, w2) = (stream.gaussian(2 * 16, 0.7), stream.gaussian(2 * 16, 0.2));
        let size = |edit: &Edit| match edit {
            Edit::LowRank { w1, w2, rank, .. } => {
                let difference: Vec<f32> = w1.iter().zip(w2).map(|(a, b)| a - b).collect();
                product_norm(w2, &difference, *rank)
            }
            Edit::Add { vector, .. } => norm(vector),
            _ => 0.0,
        };
        for edit in
            [Edit::LowRank { layer: 3, rank: 2, w1, w2 }, Edit::Add { layer: 1, vector: stream.gaussian(16, 2.0) }]
        {
            let control = random_like(&edit, &mut stream).unwrap();
            assert!((size(&control) / size(&edit) - 1.0).abs() < 1e-5);
            assert_ne!(control, edit);
        }
    }

    #[test]
    fn a_random_basis_is_orthonormal() {
        let edit = Edit::Ablate { basis: vec![1.0; 3 * 8], rank: 3 };
        let Edit::Ablate { basis, .. } = random_like(&edit, &mut Stream::new(0, "basis")).unwrap() else {
            unreachable!()
        };
        for i in 0..3 {
            for j in 0..3 {
                let dot: f32 = (0..8).map(|k| basis[i * 8 + k] * basis[j * 8 + k]).sum();
                assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5);
            }
        }
    }
}
