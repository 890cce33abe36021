//! AISteer360's `.svec`: JSON with `directions` by block, `[K, D]` each.
//!
//! What K and D are is left to the method: one row as wide as the stream is a vector added to the block's output; as many
//! rows as heads, as wide as a head, are ITI's shifts of the heads' outputs. Rows by token (ActAdd) and pairs that span a
//! plane (angular steering) are other interventions and are refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::directions::{Directions, Vectors};
use super::{Op, Terms, json};
use crate::intervention::Edit;
use crate::model::{Blueprint, Point};
use crate::{Error, Result};

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    let file = json(path)?;
    if let Some(family) = file.get("model_type").and_then(Value::as_str).filter(|family| *family != blueprint.family) {
        let problem = format!("`model_type`: expected `{}`, got `{family}`", blueprint.family);
        return Err(Error::file(path, problem).hint("was it made for this model?"));
    }
    let directions = file.get("directions").and_then(Value::as_object).filter(|map| !map.is_empty());
    let directions =
        directions.ok_or_else(|| Error::file(path, "`directions`: expected vectors by block, got none"))?;
    let mut vectors = BTreeMap::new();
    let mut points = vec![];
    for (key, value) in directions {
        let refuse = |problem: String| Error::file(path, format!("`directions.{key}`: {problem}"));
        let number = key.parse::<u32>().map_err(|_| refuse("expected a block's number as key".into()))?;
        let rows = rows(value).ok_or_else(|| refuse("expected rows of numbers".into()))?;
        let width = rows.first().map_or(0, Vec::len);
        let point = match (rows.len(), width) {
            (1, width) if width == blueprint.d_model => Point::ResidPost,
            (heads, width) if heads == blueprint.n_heads && width == blueprint.head_dim => Point::Z,
            (rows, width) => {
                let (d_model, heads, size) = (blueprint.d_model, blueprint.n_heads, blueprint.head_dim);
                return Err(refuse(format!("expected [1, {d_model}] or [{heads}, {size}], got [{rows}, {width}]"))
                    .hint("vectors by token and planes of two are not read"));
            }
        };
        points.push(point);
        vectors.insert(i64::from(number), rows.concat());
    }
    let point = points[0];
    if points.iter().any(|other| *other != point) {
        return Err(Error::file(path, "`directions`: expected one shape at all blocks, got two"));
    }
    Directions { path, vectors: Vectors::ByBlock(vectors), point, op: Some(Op::Add) }.edit(terms, blueprint)
}

/// A list of numbers, or a list of such lists of one length.
fn rows(value: &Value) -> Option<Vec<Vec<f32>>> {
    let list = value.as_array()?;
    let row = |items: &Vec<Value>| items.iter().map(|v| v.as_f64().map(|v| v as f32)).collect::<Option<Vec<f32>>>();
    if let Some(one) = row(list) {
        return Some(vec![one]);
    }
    let rows = list.iter().map(|item| row(item.as_array()?)).collect::<Option<Vec<_>>>()?;
    rows.windows(2).all(|pair| pair[0].len() == pair[1].len()).then_some(rows)
}
