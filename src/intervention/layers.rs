//! Which blocks something acts on: from `each` or `[0, "2-4"]` to block indices.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// Which blocks a row or a stage acts on: `each`, or a list of 0-based indices and ranges such as `[0, "2-4"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, try_from = "serde_json::Value")]
#[schemars(!try_from)]
pub enum Layers {
    /// The word `each`: every block, one at a time.
    Named(EveryLayer),
    /// The listed blocks.
    List(Vec<LayerItem>),
}

impl Default for Layers {
    fn default() -> Self {
        Self::Named(EveryLayer::Each)
    }
}

/// The word for all blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EveryLayer {
    /// `each`.
    Each,
}

/// One entry of a layer list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum LayerItem {
    /// A block index.
    Index(usize),
    /// An inclusive range, `"2-4"`.
    Range(String),
}

impl Layers {
    /// The 0-based blocks that these are in a model of `n_layers`, ascending and without repetition.
    ///
    /// # Errors
    /// [`Error::Input`] that names `key` when a block is beyond the model or a range is malformed.
    pub fn resolve(&self, n_layers: usize, key: &str) -> Result<Vec<usize>> {
        let items = match self {
            Self::Named(EveryLayer::Each) => return Ok((0..n_layers).collect()),
            Self::List(items) => items,
        };
        let mut blocks = vec![];
        for item in items {
            let (start, end) = ends(item).map_err(|problem| Error::input(key, problem))?;
            if end >= n_layers {
                return Err(Error::input(
                    key,
                    format!("expected blocks below {n_layers}, the model's number of blocks, got {end}"),
                )
                .hint("blocks count from 0"));
            }
            blocks.extend(start..=end);
        }
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }

    /// How many blocks these are at most, of a model of any size.
    #[must_use]
    pub fn most(&self) -> usize {
        match self {
            Self::Named(EveryLayer::Each) => usize::MAX,
            Self::List(items) => {
                let count = |item: &LayerItem| ends(item).map_or(0, |(start, end)| end - start + 1);
                items.iter().map(count).fold(0, usize::saturating_add)
            }
        }
    }
}

/// Reads what a recipe may write: `each`, one block, one range, or a list of both.
impl TryFrom<Value> for Layers {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let items = match &value {
            Value::String(text) if text == "each" => return Ok(Self::Named(EveryLayer::Each)),
            Value::Array(items) if items.is_empty() => {
                return Err("expected one block at least, got an empty list".into());
            }
            Value::Array(items) => items.iter().map(item).collect::<Result<Vec<_>, _>>()?,
            Value::String(_) | Value::Number(_) => vec![item(&value)?],
            other => return Err(format!("{EXPECTED}, got {}", kind(other))),
        };
        for item in &items {
            ends(item)?;
        }
        Ok(Self::List(items))
    }
}

const EXPECTED: &str = "expected `each`, a block such as `3`, a range such as `2-4`, or a list of them";

fn item(value: &Value) -> Result<LayerItem, String> {
    match value {
        Value::Number(number) => number
            .as_u64()
            .and_then(|index| usize::try_from(index).ok())
            .map(LayerItem::Index)
            .ok_or_else(|| format!("expected a 0-based block, got {number}")),
        Value::String(text) => Ok(LayerItem::Range(text.clone())),
        other => Err(format!("{EXPECTED}, got {}", kind(other))),
    }
}

/// First and last block of an item.
fn ends(item: &LayerItem) -> Result<(usize, usize), String> {
    match item {
        LayerItem::Index(index) => Ok((*index, *index)),
        LayerItem::Range(text) => {
            let malformed = || format!("expected `each` or a range such as `2-4`, got `{text}`");
            let (start, end) = text.split_once('-').ok_or_else(malformed)?;
            let start: usize = start.trim().parse().map_err(|_| malformed())?;
            let end: usize = end.trim().parse().map_err(|_| malformed())?;
            if start > end {
                return Err(format!("expected a range that ascends, got `{text}`"));
            }
            Ok((start, end))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blocks(value: serde_json::Value, n_layers: usize) -> Vec<usize> {
        Layers::try_from(value).unwrap().resolve(n_layers, "layers").unwrap()
    }

    #[test]
    fn each_is_every_block() {
        assert_eq!(blocks(json!("each"), 3), [0, 1, 2]);
    }

    #[test]
    fn ranges_and_indices_merge_in_order() {
        assert_eq!(blocks(json!(["2-4", 0, 3]), 6), [0, 2, 3, 4]);
        assert_eq!(blocks(json!("1-2"), 6), [1, 2]);
        assert_eq!(blocks(json!(5), 6), [5]);
    }

    #[test]
    fn a_block_beyond_the_model_names_the_key() {
        let error = Layers::try_from(json!([0, "4-6"])).unwrap().resolve(6, "stages.1.layers").unwrap_err();
        assert!(error.to_string().starts_with("stages.1.layers: expected blocks below 6"), "{error}");
    }

    #[test]
    fn malformed_layers_are_refused() {
        for value in
            [json!([]), json!("all"), json!(["4-2"]), json!([-1]), json!([1.5]), json!({"a": 1}), json!(["2-"])]
        {
            assert!(Layers::try_from(value.clone()).is_err(), "{value}");
        }
        // A range as long as memory is stopped by the model's size, not built.
        assert!(Layers::try_from(json!("0-18446744073709551614")).unwrap().resolve(6, "layers").is_err());
    }
}
