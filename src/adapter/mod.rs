//! Low-rank changes of weight matrices, held on the host in f32.
//!
//! An adapter is kept as PEFT stores it (`A` reads the input, `B` writes the output), so that files of both directions
//! need no transposition. Biases are not adapted. What an adapter does to a checkpoint is in [`merge`]; the files are
//! in [`peft`].

pub mod merge;
pub mod peft;

use std::collections::{BTreeMap, btree_map};

use ndarray::Array2;

use crate::{Error, Result};

/// A change `scale · B · A` of one weight matrix `W [d_out, d_in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// `[r, d_in]`.
    pub a: Array2<f32>,
    /// `[d_out, r]`.
    pub b: Array2<f32>,
    /// PEFT's `lora_alpha / r`.
    pub scale: f32,
}

impl Adapter {
    /// Makes an adapter.
    ///
    /// *Errors*: [`Error::Input`] when the ranks of `a` and `b` differ or a value is not finite.
    pub fn new(a: Array2<f32>, b: Array2<f32>, scale: f32) -> Result<Self> {
        if a.nrows() != b.ncols() {
            let problem = format!("expected B [d_out, r] to fit A {:?}, got {:?}", a.shape(), b.shape());
            return Err(Error::input("adapter", problem));
        }
        if !scale.is_finite() || !a.iter().chain(&b).all(|value| value.is_finite()) {
            return Err(Error::input("adapter", "expected finite values, got NaN or infinity"));
        }
        Ok(Self { a, b, scale })
    }

    /// The rank r that the factors allow.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.nrows()
    }

    /// `(d_out, d_in)`, the shape of the matrix that it changes.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.b.nrows(), self.a.ncols())
    }

    /// `scale · B · A`, `[d_out, d_in]`, summed in f64 and rounded once.
    #[must_use]
    pub fn delta(&self) -> Array2<f32> {
        let (d_out, d_in) = self.shape();
        let mut delta = vec![0.0; d_out * d_in];
        merge::accumulate(std::slice::from_ref(&self), &mut delta);
        Array2::from_shape_fn((d_out, d_in), |(row, column)| delta[row * d_in + column])
    }
}

/// Adapters of a model, ordered by the name of the tensor they change, such as `model.layers.3.mlp.up_proj.weight`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterSet(pub BTreeMap<String, Adapter>);

impl AdapterSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter and returns the one it replaces.
    pub fn insert(&mut self, tensor: impl Into<String>, adapter: Adapter) -> Option<Adapter> {
        self.0.insert(tensor.into(), adapter)
    }

    /// The adapter of a tensor.
    #[must_use]
    pub fn get(&self, tensor: &str) -> Option<&Adapter> {
        self.0.get(tensor)
    }

    /// Tensors and their adapters, by name.
    pub fn iter(&self) -> btree_map::Iter<'_, String, Adapter> {
        self.0.iter()
    }

    /// Number of adapted tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is adapted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a AdapterSet {
    type Item = (&'a String, &'a Adapter);
    type IntoIter = btree_map::Iter<'a, String, Adapter>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<(String, Adapter)> for AdapterSet {
    fn from_iter<I: IntoIterator<Item = (String, Adapter)>>(adapters: I) -> Self {
        Self(adapters.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn delta_is_scale_times_b_times_a() {
        let adapter = Adapter::new(array![[1.0, 2.0, 3.0]], array![[1.0], [-1.0]], 0.5).unwrap();
        assert_eq!((adapter.rank(), adapter.shape()), (1, (2, 3)));
        assert_eq!(adapter.delta(), array![[0.5, 1.0, 1.5], [-0.5, -1.0, -1.5]]);
    }

    #[test]
    fn factors_that_do_not_fit_or_are_not_finite_are_refused() {
        let (a, b) = (Array2::<f32>::zeros((2, 3)), Array2::<f32>::zeros((4, 1)));
        assert!(Adapter::new(a.clone(), b, 1.0).unwrap_err().to_string().contains("[4, 1]"));
        assert!(Adapter::new(a.clone(), Array2::from_elem((4, 2), f32::NAN), 1.0).is_err());
        assert!(Adapter::new(a, Array2::zeros((4, 2)), f32::INFINITY).is_err());
    }
}
