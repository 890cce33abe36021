//! Adapters into weights: `W + Σ scale · B · A`, summed in f64 and rounded once to f32.
//!
//! The sum has one rounding, so that a merged matrix is the adapted one to f32 precision whatever the order of the
//! terms' sizes; the result does not depend on the number of threads or the processor. Where the change is exactly zero
//! the weight keeps its bits, `-0.0` included.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Adapter, AdapterSet};
use crate::checkpoint::{Checkpoint, Patches};
use crate::{Error, Result};

/// Columns summed at a time; their f64 sums stay in the first-level cache.
const COLUMNS: usize = 1024;

/// A checked assignment of adapters to a checkpoint's tensors.
#[derive(Debug, Clone)]
pub struct MergePlan<'a> {
    adapters: BTreeMap<&'a str, Vec<&'a Adapter>>,
}

/// Plans to add `sets`, in order, to the weights of `base`.
///
/// *Errors*: [`Error::Input`] that names the tensor when there is none of that name, when it is a bias or another
/// vector, or when its shape is not `[d_out, d_in]` of the adapter.
pub fn plan<'a>(base: &Checkpoint, sets: &'a [AdapterSet]) -> Result<MergePlan<'a>> {
    let mut adapters: BTreeMap<&str, Vec<&Adapter>> = BTreeMap::new();
    for (name, adapter) in sets.iter().flat_map(AdapterSet::iter) {
        if !base.contains(name) {
            let error = Error::file(base.dir(), format!("expected a tensor `{name}` for the adapter, got none"));
            let tied = name == "lm_head.weight" && base.config().tie_word_embeddings;
            return Err(error.hint(if tied {
                "this model's unembedding is its embedding; it cannot be adapted alone"
            } else {
                "was the adapter made for this model?"
            }));
        }
        let shape = &base.info(name)?.shape;
        if shape.len() != 2 || !name.ends_with(".weight") {
            let problem = format!("expected a weight matrix, got shape {shape:?}; biases and norms are not adapted");
            return Err(Error::input(format!("tensor `{name}`"), problem));
        }
        let (d_out, d_in) = adapter.shape();
        base.require_shape(name, &[d_out, d_in])?;
        if adapter.rank() != adapter.b.ncols() {
            let problem = format!("expected B {:?} and A {:?} to fit", adapter.b.shape(), adapter.a.shape());
            return Err(Error::input(format!("adapter of `{name}`"), problem));
        }
        adapters.entry(name).or_default().push(adapter);
    }
    Ok(MergePlan { adapters })
}

impl Patches for MergePlan<'_> {
    fn names(&self) -> Vec<String> {
        self.adapters.keys().map(|name| (*name).to_owned()).collect()
    }

    fn apply(&self, name: &str, values: &mut [f32]) -> Result<()> {
        if let Some(adapters) = self.adapters.get(name) {
            accumulate(adapters, values);
        }
        Ok(())
    }
}

/// Adds the changes of `adapters`, which have one shape `[d_out, d_in]`, to `weight`, flat and row-major.
pub fn accumulate(adapters: &[&Adapter], weight: &mut [f32]) {
    let Some(d_in) = adapters.first().map(|adapter| adapter.shape().1).filter(|d_in| *d_in > 0) else { return };
    // Rows of A in one slice each, whatever the array's memory order.
    let factors: Vec<_> = adapters.iter().map(|adapter| (adapter.a.as_standard_layout(), *adapter)).collect();
    weight.par_chunks_mut(d_in).enumerate().for_each(|(row, weight)| {
        let mut sums = [0.0f64; COLUMNS];
        for (block, weight) in weight.chunks_mut(COLUMNS).enumerate() {
            let sums = &mut sums[..weight.len()];
            sums.fill(0.0);
            let columns = block * COLUMNS..block * COLUMNS + weight.len();
            for (a, adapter) in &factors {
                for (factor, a) in adapter.b.row(row).iter().zip(a.rows()) {
                    let factor = f64::from(adapter.scale) * f64::from(*factor);
                    let a = &a.to_slice().expect("rows of a standard layout are contiguous")[columns.clone()];
                    for (sum, a) in sums.iter_mut().zip(a) {
                        *sum += factor * f64::from(*a);
                    }
                }
            }
            for (weight, sum) in weight.iter_mut().zip(sums) {
                if *sum != 0.0 {
                    // Rounds to the nearest f32; an overflow to infinity is refused when it is written.
                    *weight = (f64::from(*weight) + *sum) as f32;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, ShapeBuilder};
    use proptest::prelude::*;

    fn array(rows: usize, columns: usize, values: &[f32]) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| values[(i * columns + j) % values.len()])
    }

    #[test]
    fn a_zero_b_keeps_every_bit() {
        let adapter = Adapter::new(array(2, 3, &[1.0, -2.0]), Array2::zeros((2, 2)), 2.0).unwrap();
        let mut weight = [-0.0, 0.0, 1.0, f32::MIN_POSITIVE / 4.0, -0.0, -7.5];
        let before = weight.map(f32::to_bits);
        accumulate(&[&adapter], &mut weight);
        assert_eq!(weight.map(f32::to_bits), before);
    }

    #[test]
    fn memory_order_does_not_matter_and_wide_rows_are_summed_whole() {
        let (d_out, d_in, r) = (3, 2 * COLUMNS + 5, 4);
        let a = Array2::from_shape_fn((r, d_in), |(k, j)| (k * 31 + j * 7) as f32 % 13.0 - 6.0);
        let b = Array2::from_shape_fn((d_out, r), |(i, k)| (i * 5 + k) as f32 % 7.0 - 3.0);
        let mut transposed = Array2::zeros((r, d_in).f());
        transposed.assign(&a);
        let plain = Adapter::new(a.clone(), b.clone(), 0.25).unwrap();
        let reordered = Adapter::new(transposed, b.clone(), 0.25).unwrap();
        assert_eq!(plain.delta(), reordered.delta());
        // Small integers: the plain product is exact.
        assert_eq!(plain.delta(), b.dot(&a) * 0.25);
    }

    proptest! {
        #[test]
        fn merging_is_exact_to_one_f32_rounding_and_stacks_add_up(
            w in prop::collection::vec(-4.0f32..4.0, 12),
            a in prop::collection::vec(-1.0f32..1.0, 8),
            b in prop::collection::vec(-1.0f32..1.0, 6),
            scale in 0.01f32..4.0,
        ) {
            let first = Adapter::new(array(2, 4, &a), array(3, 2, &b), scale).unwrap();
            let second = Adapter::new(array(1, 4, &a[1..]), array(3, 1, &b[1..]), -scale).unwrap();
            let mut merged = w.clone();
            accumulate(&[&first, &second], &mut merged);
            for i in 0..3 {
                for j in 0..4 {
                    let exact: f64 = f64::from(w[i * 4 + j])
                        + (0..2).map(|k| f64::from(scale) * f64::from(first.b[[i, k]]) * f64::from(first.a[[k, j]])).sum::<f64>()
                        - f64::from(scale) * f64::from(second.b[[i, 0]]) * f64::from(second.a[[0, j]]);
                    let ulp = f64::from(f32::EPSILON) * exact.abs().max(1e-30);
                    prop_assert!((f64::from(merged[i * 4 + j]) - exact).abs() <= 0.5 * ulp + 1e-14);
                }
            }
        }
    }
}
