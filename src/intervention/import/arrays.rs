//! Plain arrays in safetensors or NumPy files: vectors named by block, or rows of one array.
//!
//! | tensors | blocks |
//! |---|---|
//! | `layer.N`, `direction.N`, `N` and the like, `[d]` each | N |
//! | one, `[d]` | none: the user says |
//! | one, `[L, d]` | row i belongs to block i |
//! | one, `[P, L, d]` | the same, of the last of P positions |
//!
//! A vector belongs to a block's output. Where row 0 is the embedding's output, as in Hugging Face's hidden states,
//! `layer_offset: -1` says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use ndarray::{ArrayD, Axis, IxDyn};
use regex::Regex;

use super::Terms;
use super::directions::{Directions, Vectors, vector};
use crate::checkpoint::header::Header;
use crate::checkpoint::npy;
use crate::checkpoint::reader::Float;
use crate::checkpoint::torch_file::bytes_of;
use crate::intervention::Edit;
use crate::model::{Blueprint, Point};
use crate::{Error, Result};

/// A number after one of these words, with nothing but a separator between.
static NUMBERED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)(?:layers?|directions?|blocks?)[._-]?(\d{1,6})(?:\D|$)").expect("a literal pattern")
});

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    let bytes = bytes_of(path)?;
    let named = if npy::is_npy(&bytes) {
        [("the array".to_owned(), npy::read(path, &bytes)?)].into()
    } else {
        safetensors(path, &bytes)?
    };
    Directions { path, vectors: vectors(path, named)?, point: Point::ResidPost, op: None }.edit(terms, blueprint)
}

fn safetensors(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, ArrayD<f32>>> {
    let mut named = BTreeMap::new();
    for entry in Header::parse(path, bytes)?.entries {
        let refuse = |problem: String| Error::file(path, format!("tensor `{}`: {problem}", entry.name));
        let float =
            Float::of(entry.dtype).ok_or_else(|| refuse(format!("expected F32, BF16 or F16, got {}", entry.dtype)))?;
        let mut values = vec![0.0; entry.shape.iter().product()];
        float.widen(&bytes[entry.begin..entry.end], &mut values);
        let array = ArrayD::from_shape_vec(IxDyn(&entry.shape), values).map_err(|error| refuse(error.to_string()))?;
        named.insert(entry.name, array);
    }
    Ok(named)
}

/// The vectors that named arrays are.
pub(super) fn vectors(path: &Path, named: BTreeMap<String, ArrayD<f32>>) -> Result<Vectors> {
    let numbers: Option<Vec<i64>> = named.keys().map(|name| block_in(name)).collect();
    if let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()) {
        let mut by_block = BTreeMap::new();
        for (number, (name, array)) in numbers.into_iter().zip(&named) {
            if by_block.insert(number, vector(path, name, array)?).is_some() {
                return Err(Error::file(
                    path,
                    format!("tensor `{name}`: expected one tensor for block {number}, got two"),
                ));
            }
        }
        return Ok(Vectors::ByBlock(by_block));
    }
    let mut arrays = named.iter();
    let (Some((name, array)), None) = (arrays.next(), arrays.next()) else {
        let names: Vec<String> = named.keys().take(4).map(|name| format!("`{name}`")).collect();
        let problem = format!("expected tensors named by block or one alone, got {}", names.join(", "));
        return Err(Error::file(path, problem).hint("name them `layer.N`"));
    };
    let rows = match array.ndim() {
        1 => return Ok(Vectors::Free(vector(path, name, array)?)),
        2 => array.view(),
        3 if array.len_of(Axis(0)) > 0 => array.index_axis(Axis(0), array.len_of(Axis(0)) - 1),
        _ => {
            let shape = array.shape();
            return Err(Error::file(
                path,
                format!("tensor `{name}`: expected [d], [L, d] or [P, L, d], got {shape:?}"),
            ));
        }
    };
    let rows = rows.outer_iter().map(|row| row.iter().copied().collect());
    Ok(Vectors::ByBlock((0..).zip(rows).collect()))
}

/// The block that a name says: a number after `layer`, `direction` or `block`, or the whole name.
pub(super) fn block_in(name: &str) -> Option<i64> {
    if let Ok(number) = name.parse::<u32>() {
        return Some(number.into());
    }
    NUMBERED.captures(name)?[1].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_block() {
        for (name, block) in [
            ("layer.3", Some(3)),
            ("direction.12", Some(12)),
            ("7", Some(7)),
            ("vec_layer_13_Llama-2-7b.pt", Some(13)),
            ("layer_5.pt", Some(5)),
            ("model.layers.4.direction", Some(4)),
            ("refusal", None),
            ("vector-2b", None),
        ] {
            assert_eq!(block_in(name), block, "{name}");
        }
    }
}
