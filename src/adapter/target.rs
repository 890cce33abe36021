//! Which modules an adapter is for, by the keys of its description and as PEFT reads them.
//!
//! PEFT makes room for factors in these modules alone, and leaves those of any other out with a warning when it loads the
//! file. Whoever merged them would make another model than the one that was trained and measured.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What stands for all linear maps but the unembedding.
const ALL_LINEAR: &str = "all-linear";
/// The module that [`ALL_LINEAR`] leaves out.
const UNEMBEDDING: &str = "lm_head";

/// The modules that a description is for; without `target_modules` whichever there are.
#[derive(Debug)]
pub(super) struct Targets {
    named: Option<Names>,
    excluded: Option<Names>,
    layers: Option<Layers>,
}

/// Modules by name.
#[derive(Debug)]
enum Names {
    AllLinear,
    /// By a regular expression for the whole name.
    Pattern(Regex),
    /// By whole names, or their last parts.
    Ends(Vec<String>),
}

/// Blocks by number.
#[derive(Debug)]
struct Layers {
    numbers: Vec<u64>,
    /// Where a module's name has its block's number: the group `layer`.
    places: Vec<Regex>,
}

impl Targets {
    /// Reads the keys `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` of the description at
    /// `path`.
    ///
    /// *Errors*: [`Error::Input`] naming the key.
    pub fn parse(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let (named, layers) = (names(path, config, "target_modules")?, layers(path, config)?);
        if let (Some(Names::AllLinear | Names::Pattern(_)), Some(layers)) = (&named, &layers) {
            let problem = "`layers_to_transform`: expected nothing beside a text as `target_modules`";
            return Err(Error::file(path, format!("{problem}, got {:?}", layers.numbers))
                .hint("PEFT refuses both together: list the modules"));
        }
        Ok(Self { named, excluded: names(path, config, "exclude_modules")?, layers })
    }

    /// Refuses `module`, of which the file has the factor `tensor`, if PEFT would leave it out.
    ///
    /// *Errors*: [`Error::Input`] naming the key and the tensor.
    pub fn check(&self, path: &Path, module: &str, tensor: &str) -> Result<()> {
        let key = match (&self.named, &self.excluded, &self.layers) {
            (_, Some(excluded), _) if excluded.fit(module) => "exclude_modules",
            (Some(named), ..) if !named.fit(module) => "target_modules",
            // A module that is named whole is meant whatever its block.
            (Some(named), _, Some(layers)) if !named.lists(module) && !layers.fit(module) => "layers_to_transform",
            _ => return Ok(()),
        };
        Err(Error::file(
            path,
            format!("`{key}`: expected it to allow every factor of the adapter, got `{tensor}` beside it"),
        )
        .hint("PEFT leaves such a factor out; correct the key, or save the adapter without it"))
    }
}

impl Names {
    fn fit(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => !ends_in(module, UNEMBEDDING),
            // One that takes too long to tell is none.
            Self::Pattern(pattern) => pattern.is_match(module).unwrap_or(false),
            Self::Ends(ends) => ends.iter().any(|end| ends_in(module, end)),
        }
    }

    fn lists(&self, module: &str) -> bool {
        matches!(self, Self::Ends(ends) if ends.iter().any(|end| end == module))
    }
}

impl Layers {
    fn fit(&self, module: &str) -> bool {
        let number = |place: &Regex| place.captures(module).ok()??.name("layer")?.as_str().parse::<u64>().ok();
        self.places.iter().find_map(number).is_some_and(|number| self.numbers.contains(&number))
    }
}

/// Whether `end` is the name, or its last parts.
fn ends_in(module: &str, end: &str) -> bool {
    module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn names(path: &Path, config: &Map<String, Value>, key: &str) -> Result<Option<Names>> {
    Ok(match config.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.to_lowercase() == ALL_LINEAR => Some(Names::AllLinear),
        Some(Value::String(text)) if text.is_empty() && key == "exclude_modules" => None,
        Some(Value::String(text)) => Some(Names::Pattern(regex(path, key, text, &format!(r"\A(?:{text})\z"))?)),
        Some(value) => match texts(path, key, value)? {
            ends if ends.is_empty() && key == "exclude_modules" => None,
            ends => Some(Names::Ends(ends)),
        },
    })
}

fn layers(path: &Path, config: &Map<String, Value>) -> Result<Option<Layers>> {
    const KEY: &str = "layers_to_transform";
    let numbers: Vec<u64> = match config.get(KEY) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => match value.as_array().map_or_else(|| vec![value], |list| list.iter().collect()) {
            list if list.is_empty() => return Ok(None),
            list => list
                .into_iter()
                .map(Value::as_u64)
                .collect::<Option<_>>()
                .ok_or_else(|| Error::file(path, format!("`{KEY}`: expected numbers of blocks, got {value}")))?,
        },
    };
    let patterns = match config.get("layers_pattern") {
        None | Some(Value::Null) => vec![],
        Some(Value::String(text)) if text.is_empty() => vec![],
        Some(Value::String(text)) => vec![text.clone()],
        Some(value) => texts(path, "layers_pattern", value)?,
    };
    let any = patterns.is_empty().then(|| "[^.]*".to_owned());
    let place = |text: String| regex(path, "layers_pattern", &text, &format!(r"\A.*?\.(?:{text})\.(?<layer>\d+)\."));
    let places = patterns.into_iter().chain(any).map(place).collect::<Result<_>>()?;
    Ok(Some(Layers { numbers, places }))
}

fn texts(path: &Path, key: &str, value: &Value) -> Result<Vec<String>> {
    let text = |item: &Value| item.as_str().map(str::to_owned);
    let texts = value.as_array().and_then(|list| list.iter().map(text).collect());
    texts.ok_or_else(|| Error::file(path, format!("`{key}`: expected a text or a list of texts, got {value}")))
}

fn regex(path: &Path, key: &str, given: &str, whole: &str) -> Result<Regex> {
    // By itself first: a bracket too many would close the group that is put around it.
    Regex::new(given)
        .and_then(|_| Regex::new(whole))
        .map_err(|_| Error::file(path, format!("`{key}`: expected a regular expression, got {given:?}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is said of `module` under the description `config`.
    fn said(config: &Value, module: &str) -> Option<String> {
        let path = Path::new("adapter_config.json");
        let targets = Targets::parse(path, config.as_object().unwrap());
        let checked = targets.and_then(|targets| targets.check(path, module, "the tensor"));
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn modules_are_meant_as_peft_means_them() {
        let (q, up) = ("model.layers.1.self_attn.q_proj", "model.layers.12.mlp.up_proj");
        for (config, module, key) in [
            (json!({}), q, None),
            (json!({"target_modules": null, "exclude_modules": [], "layers_to_transform": []}), q, None),
            (json!({"target_modules": ["q_proj", "mlp.up_proj"]}), up, None),
            (json!({"target_modules": ["v_proj", "proj", "_proj"]}), q, Some("target_modules")),
            (json!({"target_modules": []}), q, Some("target_modules")),
            (json!({"target_modules": r"model\.layers\.\d+\..*(?<!v)(q|k)_proj"}), q, None),
            (json!({"target_modules": "q_proj"}), q, Some("target_modules")),
            (json!({"target_modules": "All-Linear"}), up, None),
            (json!({"target_modules": "all-linear"}), "lm_head", Some("target_modules")),
            (
                json!({"target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"]}),
                q,
                Some("exclude_modules"),
            ),
            (json!({"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"}), q, None),
            (json!({"exclude_modules": r".*\.1\..*"}), q, Some("exclude_modules")),
            (json!({"target_modules": ["up_proj"], "layers_to_transform": [1, 12]}), up, None),
            (json!({"target_modules": ["up_proj"], "layers_to_transform": 2}), up, Some("layers_to_transform")),
            (json!({"target_modules": [up], "layers_to_transform": 2}), up, None),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}), q, None),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "blocks"]}),
                q,
                Some("layers_to_transform"),
            ),
        ] {
            let said = said(&config, module);
            assert_eq!(said.is_some(), key.is_some(), "{config}: {said:?}");
            if let (Some(said), Some(key)) = (said, key) {
                assert!(said.contains(&format!("`{key}`")) && said.contains("`the tensor`"), "{config}: {said}");
            }
        }
    }

    #[test]
    fn keys_that_mean_nothing_are_refused_by_name() {
        for (config, key) in [
            (json!({"target_modules": "("}), "target_modules"),
            (json!({"target_modules": "q)|(k"}), "target_modules"),
            (json!({"target_modules": [1]}), "target_modules"),
            (json!({"exclude_modules": {"q_proj": true}}), "exclude_modules"),
            (json!({"layers_to_transform": [-1]}), "layers_to_transform"),
            (json!({"target_modules": ".*", "layers_to_transform": [1]}), "layers_to_transform"),
            (json!({"layers_to_transform": [1], "layers_pattern": "["}), "layers_pattern"),
        ] {
            let said = said(&config, "model.layers.1.mlp.up_proj").expect("refused");
            assert!(said.contains(&format!("adapter_config.json: `{key}`: expected")), "{config}: {said}");
        }
    }
}
