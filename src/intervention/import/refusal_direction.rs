//! A run of refusal_direction: `direction.pt`, and beside it the block and token that it was taken at.
//!
//! *Source*: Arditi et al. 2024. Its own code projects the unit direction out of every block's input and of what attention
//! and feed-forward part add; to add, it adds the direction as it is to the input of its block.

use std::path::Path;

use super::directions::{Directions, Vectors, vector};
use super::{Op, Terms, json};
use crate::checkpoint::torch_file::{self, Tensors};
use crate::intervention::Edit;
use crate::model::{Blueprint, Point};
use crate::{Error, Result};

pub(super) const TENSOR: &str = "direction.pt";
pub(super) const METADATA: &str = "direction_metadata.json";

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let (tensor, metadata) = (folder.join(TENSOR), folder.join(METADATA));
    let layer = json(&metadata)?.get("layer").and_then(serde_json::Value::as_i64);
    let layer = layer.ok_or_else(|| Error::file(&metadata, "`layer`: expected a block, got nothing"))?;
    let Tensors::One(array) = torch_file::load(&tensor)? else {
        return Err(Error::file(&tensor, "expected one tensor, got several"));
    };
    let direction = vector(&tensor, "direction", &array)?;
    Directions { path: &tensor, vectors: Vectors::From(layer, direction), point: Point::ResidPre, op: Some(Op::Ablate) }
        .edit(terms, blueprint)
}
