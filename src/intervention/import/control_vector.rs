//! Control vectors of repeng and llama.cpp: GGUF with an f32 tensor `direction.k` for block k, from 1.
//!
//! Both add `scale · direction.k` to the output of 0-based block k at every position. The vectors that llama.cpp's own
//! generator writes are trained on the output of block k−1 and still applied there: `layer_offset: -1` puts them back.

use std::collections::BTreeMap;
use std::path::Path;

use super::directions::{Directions, Vectors, vector};
use super::{Op, Terms};
use crate::checkpoint::gguf::{Gguf, Meta};
use crate::checkpoint::torch_file::bytes_of;
use crate::intervention::Edit;
use crate::model::{Blueprint, Point};
use crate::{Error, Result};

const ARCHITECTURE: &str = "controlvector";
const PREFIX: &str = "direction.";

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    let bytes = bytes_of(path)?;
    let gguf = Gguf::parse(path, &bytes)?;
    match gguf.meta("general.architecture") {
        Some(Meta::Text(name)) if name == ARCHITECTURE => {}
        other => {
            let got = match other {
                Some(Meta::Text(name)) => format!("`{name}`"),
                _ => "nothing".into(),
            };
            return Err(Error::file(path, format!("`general.architecture`: expected `{ARCHITECTURE}`, got {got}"))
                .hint("models in GGUF are not read; use the safetensors checkpoint"));
        }
    }
    let mut vectors = BTreeMap::new();
    for name in gguf.names() {
        let number = name.strip_prefix(PREFIX).and_then(|number| number.parse::<u32>().ok()).filter(|n| *n >= 1);
        let number =
            number.ok_or_else(|| Error::file(path, format!("tensor `{name}`: expected `{PREFIX}k` with k from 1")))?;
        vectors.insert(i64::from(number), vector(path, name, &gguf.tensor(name)?)?);
    }
    if vectors.is_empty() {
        return Err(Error::file(path, "expected directions, got no tensor"));
    }
    Directions { path, vectors: Vectors::ByBlock(vectors), point: Point::ResidPost, op: Some(Op::Add) }
        .edit(terms, blueprint)
}
