//! Low-rank changes of weight matrices, held on the host in f32.
//!
//! An adapter is kept as PEFT stores it (`A` reads the input, `B` writes the output), so that files of both directions
//! need no transposition. Biases are not adapted. What an adapter does to a checkpoint is in [`merge`]; the files are
//! in [`peft`].

pub mod merge;
pub mod peft;
mod target;

use std::collections::{BTreeMap, btree_map};
use std::ops::Range;

use ndarray::{Array2, s};

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

    /// The adapter of a matrix of `of` rows that changes those from `start` on as this one changes its own.
    fn in_rows(self, start: usize, of: usize) -> Self {
        let mut b = Array2::zeros((of, self.rank()));
        b.slice_mut(s![start..start + self.b.nrows(), ..]).assign(&self.b);
        Self { b, ..self }
    }

    /// The sum of two adapters of one matrix, at scale 1.
    fn beside(&self, other: &Self) -> Self {
        let (own, rank) = (self.rank(), self.rank() + other.rank());
        let (d_out, d_in) = self.shape();
        let (mut a, mut b) = (Array2::zeros((rank, d_in)), Array2::zeros((d_out, rank)));
        a.slice_mut(s![..own, ..]).assign(&self.a);
        a.slice_mut(s![own.., ..]).assign(&other.a);
        b.slice_mut(s![.., ..own]).assign(&(&self.b * self.scale));
        b.slice_mut(s![.., own..]).assign(&(&other.b * other.scale));
        Self { a, b, scale: 1.0 }
    }

    /// `scale · B · A`, `[d_out, d_in]`, summed in f64 and rounded once.
    #[must_use]
    pub fn delta(&self) -> Array2<f32> {
        let (d_out, d_in) = self.shape();
        let mut delta = vec![0.0; d_out * d_in];
        merge::accumulate(std::slice::from_ref(&self), &mut delta);
        Array2::from_shape_fn((d_out, d_in), |(row, column)| delta[row * d_in + column])
    }

    /// The adapter of some of the matrix's rows.
    ///
    /// # Panics
    /// When `rows` ends beyond the matrix.
    #[must_use]
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        Self { b: self.b.slice(s![rows, ..]).to_owned(), ..self.clone() }
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

    /// Adds an adapter of the listed rows of a tensor that has `of` rows; what is there already stays and is added to.
    ///
    /// Adapters of several stretches of rows make one adapter of the whole tensor, as PEFT has it: `A`s on top of each
    /// other, `B`s side by side with zeros outside their rows.
    ///
    /// *Errors*: [`Error::Input`] when the rows are not those of `adapter` or the tensor has another width.
    pub fn add(&mut self, tensor: &str, rows: Range<usize>, of: usize, adapter: Adapter) -> Result<()> {
        let (d_out, d_in) = adapter.shape();
        if rows.len() != d_out || rows.end > of {
            let problem = format!("expected an adapter of rows {rows:?} of {of}, got one of {d_out} rows");
            return Err(Error::input(format!("tensor `{tensor}`"), problem));
        }
        let whole = if d_out == of { adapter } else { adapter.in_rows(rows.start, of) };
        let joined = match self.0.get(tensor) {
            None => whole,
            Some(first) if first.shape() == (of, d_in) => first.beside(&whole),
            Some(first) => {
                let problem = format!("expected an adapter of shape {:?}, got ({of}, {d_in})", first.shape());
                return Err(Error::input(format!("tensor `{tensor}`"), problem));
            }
        };
        self.0.insert(tensor.to_owned(), joined);
        Ok(())
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
    fn adapters_of_rows_make_one_of_the_tensor() {
        let first = Adapter::new(array![[1.0, 2.0]], array![[1.0], [-1.0]], 0.5).unwrap();
        let second = Adapter::new(array![[3.0, 1.0], [0.0, 1.0]], array![[1.0, 2.0]], 1.0).unwrap();
        let mut set = AdapterSet::new();
        set.add("w", 0..2, 4, first.clone()).unwrap();
        set.add("w", 3..4, 4, second.clone()).unwrap();
        let whole = set.get("w").unwrap();
        assert_eq!((whole.rank(), whole.shape()), (3, (4, 2)));
        let delta = whole.delta();
        assert_eq!(delta.slice(s![..2, ..]), first.delta());
        assert_eq!(delta.slice(s![2..3, ..]), array![[0.0, 0.0]]);
        assert_eq!(delta.slice(s![3.., ..]), second.delta());
    }

    #[test]
    fn an_adapter_of_all_rows_is_kept_as_it_is() {
        let adapter = Adapter::new(array![[1.0, 2.0]], array![[1.0], [-1.0]], 0.5).unwrap();
        let mut set = AdapterSet::new();
        set.add("w", 0..2, 2, adapter.clone()).unwrap();
        assert_eq!(set.get("w"), Some(&adapter));
        assert!(set.add("w", 0..1, 2, adapter.clone()).unwrap_err().to_string().contains("rows 0..1 of 2"));
        assert!(set.add("w", 0..2, 3, adapter).unwrap_err().to_string().contains("got (3, 2)"));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn factors_that_do_not_fit_or_are_not_finite_are_refused() {
        let (a, b) = (Array2::<f32>::zeros((2, 3)), Array2::<f32>::zeros((4, 1)));
        assert!(Adapter::new(a.clone(), b, 1.0).unwrap_err().to_string().contains("[4, 1]"));
        assert!(Adapter::new(a.clone(), Array2::from_elem((4, 2), f32::NAN), 1.0).is_err());
        assert!(Adapter::new(a, Array2::zeros((4, 2)), f32::INFINITY).is_err());
    }
}
