//! `--import FILE[,key=value]…`: an artefact of another tool as a row of a suite.

use std::path::Path;

use serde_json::{Map, Value};

use crate::attack::spec::AttackSpec;
use crate::intervention::import::Format;
use crate::recipe::imported_row;
use crate::{Error, Result};

/// Keys that may follow the file.
const KEYS: [&str; 5] = ["op", "scale", "layers", "positions", "layer_offset"];

/// The row that `text` means; positions that it doesn't give are those of the tool which the format is from.
///
/// # Errors
/// [`Error::Usage`] for a key that there isn't or a value of the wrong kind; those of [`Format::of`].
pub fn row(text: &str) -> Result<AttackSpec> {
    let mut parts = text.split(',');
    let file = parts.next().filter(|file| !file.is_empty());
    let file = file.ok_or_else(|| wrong(text, "expected FILE[,key=value]…, got no file"))?;
    let mut map = Map::from_iter([("file".to_owned(), Value::from(file))]);
    for part in parts {
        let (key, value) =
            part.split_once('=').ok_or_else(|| wrong(text, format!("expected `key=value`, got `{part}`")))?;
        if !KEYS.contains(&key) {
            return Err(wrong(text, format!("unknown key `{key}`")).hint(format!("there are {}", KEYS.join(", "))));
        }
        if map.insert(key.to_owned(), read(key, value)).is_some() {
            return Err(wrong(text, format!("expected `{key}` once, got it twice")));
        }
    }
    if !map.contains_key("positions")
        && let Some(positions) = Format::of(Path::new(file))?.positions()
    {
        let positions = serde_json::to_value(positions).map_err(|error| wrong(text, error.to_string()))?;
        map.insert("positions".into(), positions);
    }
    imported_row(map, &format!("--import {text}"))
}

/// The option that repeats a row, for somebody who has the file: without the folder, which is nobody's business.
#[must_use]
pub fn option(text: &str) -> String {
    let (file, rest) = text.split_at(text.find(',').unwrap_or(text.len()));
    let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
    format!("--import '{}'", format!("{name}{rest}").replace('\'', r"'\''"))
}

/// A number where there is one, a list of blocks where `+` joins them.
fn read(key: &str, value: &str) -> Value {
    let number = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
    let scalar = |text: &str| number(text).unwrap_or_else(|| Value::from(text));
    match key {
        "layers" if value != "each" => value.split('+').map(scalar).collect(),
        _ => scalar(value),
    }
}

fn wrong(text: &str, problem: impl std::fmt::Display) -> Error {
    Error::usage(format!("--import {text}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::spec::Knowledge;
    use crate::intervention::Positions;
    use crate::intervention::import::Op;
    use crate::intervention::layers::{LayerItem, Layers};

    const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/artefacts/control_vector.gguf");
    const CAA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/artefacts/caa/vec_layer_2_tiny-chat.pt");

    #[test]
    fn keys_become_a_frozen_row() {
        let row = row(&format!("{GGUF},op=add,scale=-1.5,layers=1+3-4,positions=prompt,layer_offset=-1")).unwrap();
        assert_eq!((row.op, row.scale, row.layer_offset), (Some(Op::Add), Some(-1.5), Some(-1)));
        assert_eq!(row.layers, Layers::List(vec![LayerItem::Index(1), LayerItem::Range("3-4".into())]));
        assert_eq!((row.positions, row.knowledge), (Positions::Prompt, vec![Knowledge::Frozen]));
    }

    #[test]
    fn positions_are_the_tools_own_unless_given() {
        assert_eq!(row(CAA).unwrap().positions, Positions::Last);
        assert_eq!(row(GGUF).unwrap().positions, Positions::All);
        assert_eq!(row(&format!("{CAA},positions=all")).unwrap().positions, Positions::All);
    }

    #[test]
    fn wrong_options_say_what_there_is() {
        for (rest, expected) in [
            (",scale", "expected `key=value`, got `scale`"),
            (",sclae=1", "unknown key `sclae`"),
            (",scale=1,scale=2", "twice"),
            (",scale=much", "scale: expected a number, got `much`"),
            (",op=subtract", "op: expected one of `add`"),
            (",layers=4-2", "layers: expected a range that ascends"),
        ] {
            let error = row(&format!("{GGUF}{rest}")).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected:?} not in {error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!(row("missing.gguf").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn reports_get_no_paths() {
        assert_eq!(option("/home/me/v.gguf,scale=2"), "--import 'v.gguf,scale=2'");
    }
}
