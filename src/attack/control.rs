//! Controls: an edit of the same kind and size that knows nothing.

use crate::Result;
use crate::intervention::Edit;
use crate::math::rows::orthonormal;
use crate::math::seed::Stream;

/// A random edit of the same kind, rank and norm as `edit`.
///
/// A learned edit's `W2ᵀ(W1−W2)` is replaced by a random matrix of the same rank and Frobenius norm; a vector by a random
/// one of the same length. What a projection takes away is taken along random directions instead, and what heads are moved by is turned at
/// random, so that every activation moves as far.
///
/// # Errors
/// Never for edits made by this crate.
pub fn random_like(edit: &Edit, stream: &mut Stream) -> Result<Edit> {
    Ok(match edit {
        Edit::Identity => Edit::Identity,
        Edit::LowRank { layer, rank, w1, w2 } => {
            let difference: Vec<f32> = w1.iter().zip(w2).map(|(a, b)| a - b).collect();
            let (up, down) = random_factors(w2, &difference, *rank, stream);
            let w1 = down.iter().zip(&up).map(|(down, up)| down + up).collect();
            Edit::LowRank { layer: *layer, rank: *rank, w1, w2: up }
        }
        Edit::Affine { site, rank, up, down, bias } => {
            let constant = |up: &[f32], bias: &[f32]| product_norm(up, &spread(bias, up.len()), *rank);
            let (new_up, new_down) = if down.iter().all(|v| *v == 0.0) {
                (stream.gaussian(up.len(), 1.0), down.clone())
            } else {
                random_factors(up, down, *rank, stream)
            };
            let noise = stream.gaussian(bias.len(), 1.0);
            let f = (constant(up, bias) / constant(&new_up, &noise).max(f64::MIN_POSITIVE)) as f32;
            let bias = noise.iter().map(|v| v * f).collect();
            Edit::Affine { site: *site, rank: *rank, up: new_up, down: new_down, bias }
        }
        Edit::Add { site, vector, keep_norm } => {
            Edit::Add { site: *site, vector: random_vector(vector, stream), keep_norm: *keep_norm }
        }
        Edit::Heads { layer, matrices, bias, heads } => {
            let size = bias.len() / (*heads).max(1);
            let by_head = matrices.chunks_exact((size * size).max(1)).zip(bias.chunks_exact(size.max(1)));
            let turned: Vec<_> = by_head.map(|(matrix, bias)| turned_head(matrix, bias, stream)).collect();
            let (matrices, bias): (Vec<_>, Vec<_>) = turned.into_iter().unzip();
            Edit::Heads { layer: *layer, matrices: matrices.concat(), bias: bias.concat(), heads: *heads }
        }
        Edit::Ablate { basis, rank, layers } => {
            let into = random_basis(basis.len(), *rank, stream);
            Edit::Redirect { basis: basis.clone(), into, rank: *rank, layers: layers.clone(), others: vec![] }
        }
        Edit::Redirect { basis, rank, layers, others, .. } => {
            let into = random_basis(basis.len(), *rank, stream);
            let (layers, others) = (layers.clone(), others.clone());
            Edit::Redirect { basis: basis.clone(), into, rank: *rank, layers, others }
        }
        Edit::Several { edits } => {
            let mut edits: Vec<Edit> = edits.iter().map(|edit| random_like(edit, stream)).collect::<Result<_>>()?;
            // One direction at every block is one projection: what the first part moves, the next must not move again.
            let all: Vec<usize> = edits.iter().flat_map(redirected).copied().collect();
            for edit in &mut edits {
                if let Edit::Redirect { others, .. } = edit {
                    others.clone_from(&all);
                }
            }
            Edit::Several { edits }
        }
    })
}

/// The blocks that a redirection names.
fn redirected(edit: &Edit) -> &[usize] {
    match edit {
        Edit::Redirect { layers, .. } => layers,
        _ => &[],
    }
}

/// `a ↦ a + Q((A − I)a + b)` for a random rotation `Q`: a map whose parts cancel at most activations still does.
fn turned_head(matrix: &[f32], bias: &[f32], stream: &mut Stream) -> (Vec<f32>, Vec<f32>) {
    let size = bias.len();
    let identity = |i: usize| if i.is_multiple_of(size + 1) { 1.0 } else { 0.0 };
    let rotation = orthonormal(&stream.gaussian(size * size, 1.0), size);
    let row = |i: usize| &rotation[i * size..(i + 1) * size];
    let turned = |i: usize, column: &dyn Fn(usize) -> f32| -> f32 {
        row(i).iter().enumerate().map(|(k, q)| q * column(k)).sum()
    };
    let change = |k: usize, j: usize| matrix[k * size + j] - identity(k * size + j);
    let matrix = (0..size * size).map(|at| identity(at) + turned(at / size, &|k| change(k, at % size))).collect();
    (matrix, (0..size).map(|i| turned(i, &|k| bias[k])).collect())
}

/// Random factors whose product has the Frobenius norm of `upᵀ·down`.
fn random_factors(up: &[f32], down: &[f32], rank: usize, stream: &mut Stream) -> (Vec<f32>, Vec<f32>) {
    let target = product_norm(up, down, rank);
    let (up, down) = (stream.gaussian(up.len(), 1.0), stream.gaussian(down.len(), 1.0));
    // The product of two factors scaled by f each scales by f².
    let f = (target / product_norm(&up, &down, rank).max(f64::MIN_POSITIVE)).sqrt() as f32;
    let scaled = |values: Vec<f32>| values.into_iter().map(|v| v * f).collect();
    (scaled(up), scaled(down))
}

/// `rank` random orthonormal rows of `len` numbers together.
fn random_basis(len: usize, rank: usize, stream: &mut Stream) -> Vec<f32> {
    orthonormal(&stream.gaussian(len, 1.0), len / rank.max(1))
}

/// A random vector of the same length.
fn random_vector(like: &[f32], stream: &mut Stream) -> Vec<f32> {
    let noise = stream.gaussian(like.len(), 1.0);
    let f = (norm(like) / norm(&noise).max(f64::MIN_POSITIVE)) as f32;
    noise.iter().map(|v| v * f).collect()
}

/// `bias` as factors whose product with `up` has one column that is not zero.
fn spread(bias: &[f32], len: usize) -> Vec<f32> {
    let width = len / bias.len().max(1);
    (0..len).map(|i| if i % width == 0 { bias[i / width] } else { 0.0 }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Intervention as _, Point, Site};
    use candle_core::{Device, Tensor};

    #[test]
    fn controls_have_the_norm_of_the_edit() {
        let mut stream = Stream::new(4, "edit");
        let (w1, w2) = (stream.gaussian(2 * 16, 0.7), stream.gaussian(2 * 16, 0.2));
        let size = |edit: &Edit| match edit {
            Edit::LowRank { w1, w2, rank, .. } => {
                let difference: Vec<f32> = w1.iter().zip(w2).map(|(a, b)| a - b).collect();
                product_norm(w2, &difference, *rank)
            }
            Edit::Affine { up, bias, rank, .. } => product_norm(up, &spread(bias, up.len()), *rank),
            Edit::Add { vector, .. } => norm(vector),
            Edit::Heads { bias, .. } => norm(bias),
            _ => 0.0,
        };
        let site = Site::new(1, Point::ResidPre);
        let (up, down) = (stream.gaussian(2 * 16, 0.5), stream.gaussian(2 * 16, 0.1));
        for edit in [
            Edit::LowRank { layer: 3, rank: 2, w1, w2 },
            Edit::Affine { site, rank: 2, up, down, bias: vec![0.5, -2.0] },
            Edit::Add { site, vector: stream.gaussian(16, 2.0), keep_norm: false },
            Edit::Heads { layer: 0, matrices: stream.gaussian(2 * 16, 0.3), bias: stream.gaussian(8, 1.0), heads: 2 },
        ] {
            let control = random_like(&edit, &mut stream).unwrap();
            assert!((size(&control) / size(&edit) - 1.0).abs() < 1e-4, "{edit:?}");
            assert_ne!(control, edit);
        }
    }

    /// At `site`, every `size` numbers of the rows `x` `[tokens, 8]` are moved by both edits as far, and elsewhere.
    #[track_caller]
    fn assert_as_far(edits: [&Edit; 2], site: Site, size: usize, x: Vec<f32>) {
        let x = Tensor::from_vec(x.clone(), (1, x.len() / 8, 8), &Device::Cpu).unwrap();
        let [by_edit, by_control] = edits.map(|edit| -> Vec<f32> {
            let after = edit.place(&Device::Cpu).unwrap().apply(site, &x).unwrap();
            (after - &x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        });
        for (a, b) in by_edit.chunks_exact(size).zip(by_control.chunks_exact(size)) {
            assert!((norm(a) / norm(b) - 1.0).abs() < 1e-3 && a != b, "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_control_of_heads_moves_every_activation_as_far() {
        let mut stream = Stream::new(5, "heads");
        let edit =
            Edit::Heads { layer: 0, matrices: stream.gaussian(2 * 16, 1.0), bias: stream.gaussian(8, 3.0), heads: 2 };
        let control = random_like(&edit, &mut stream).unwrap();
        assert_as_far([&edit, &control], Site::new(0, Point::Z), 4, stream.gaussian(6 * 8, 2.0));
    }

    #[test]
    fn a_control_of_a_projection_moves_every_activation_as_far() {
        let mut stream = Stream::new(6, "projection");
        for rank in [1, 3] {
            let edit = Edit::Ablate { basis: random_basis(rank * 8, rank, &mut stream), rank, layers: vec![] };
            let control = random_like(&edit, &mut stream).unwrap();
            // Most of what is moved lies along one of the directions, as a refusal direction's part of the stream does.
            let Edit::Ablate { basis, .. } = &edit else { unreachable!() };
            let rows = (0..5).flat_map(|row| (0..8).map(move |i| (row, i)));
            let x: Vec<f32> = rows.map(|(row, i)| 4.0 * row as f32 * basis[i] + 0.1 * i as f32).collect();
            assert_as_far([&edit, &control], Site::new(0, Point::ResidPre), 8, x);
        }
    }

    #[test]
    fn a_control_of_projections_block_by_block_moves_the_stream_once() {
        let mut stream = Stream::new(7, "projections");
        let basis = random_basis(8, 1, &mut stream);
        let at = |layer| Edit::Ablate { basis: basis.clone(), rank: 1, layers: vec![layer] };
        let apart = random_like(&Edit::Several { edits: vec![at(1), at(2), at(4)] }, &mut stream).unwrap();
        let placed = apart.place(&Device::Cpu).unwrap();
        let moved = |layer, point| placed.acts_at(Site::new(layer, point));
        assert!(moved(1, Point::ResidPre) && moved(4, Point::ResidPre), "what came in before, and between");
        assert!(!moved(2, Point::ResidPre) && moved(2, Point::AttnOut) && moved(2, Point::MlpOut));
        assert!(!moved(3, Point::ResidPre) && !moved(3, Point::MlpOut));
    }
}
