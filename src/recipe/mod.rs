//! A recipe: what to defend, how, against which attacks, at what price, and what counts as good enough.
//!
//! `YAML → RawRecipe → Recipe`. [`RawRecipe`] is untrusted text that was read within limits; overrides from the command line
//! are put in there. [`Recipe`] is valid and complete: every default filled in, every number in range, so nothing downstream
//! checks again. What depends on the model (how many blocks there are) is checked by [`Layers::resolve`] once it is known.
//!
//! # Example
//! ```
//! use immunise::recipe::{RawRecipe, Recipe};
//! let recipe = RawRecipe::embedded("demo")?.with_overrides(&["seed=7", "stages.0.layers=[0, 2-3]"])?.validate()?;
//! assert_eq!(recipe.seed, 7);
//! assert_eq!(Recipe::parse(&recipe.show(), "shown.yaml".as_ref())?.digest(), recipe.digest());
//! # Ok::<(), immunise::Error>(())
//! ```

mod fields;
pub mod fit;
mod origin;
mod raw;
mod stage;
mod stage_checks;
mod suggest;
mod task_file;
mod validate;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::attack::spec::{Allowance, AttackSpec};
use crate::error::Result;
use crate::intervention::Layers;
use crate::judge::guard::GuardSpec;
use crate::report::{Access, Calibration, Thresholds};
use crate::utility::spec::TaskSpec;

pub use raw::{MAX_BYTES, RawRecipe};
pub use stage::{STAGE_KINDS, Stage};
pub use task_file::read_task_file;
pub use validate::{MAX_CELLS, imported_row};

/// The version of the recipe layout.
pub const SCHEMA_VERSION: u64 = 1;

/// The recipes inside the binary, in the order in which [`Recipe::for_model`] tries them.
pub const EMBEDDED: [(&str, &str); 14] = [
    ("demo", include_str!("../../recipes/demo.yaml")),
    ("exaone4", include_str!("../../recipes/exaone4.yaml")),
    ("gemma2", include_str!("../../recipes/gemma2.yaml")),
    ("gemma3", include_str!("../../recipes/gemma3.yaml")),
    ("granite", include_str!("../../recipes/granite.yaml")),
    ("llama", include_str!("../../recipes/llama.yaml")),
    ("mistral", include_str!("../../recipes/mistral.yaml")),
    ("olmo2", include_str!("../../recipes/olmo2.yaml")),
    ("olmo3", include_str!("../../recipes/olmo3.yaml")),
    ("phi3", include_str!("../../recipes/phi3.yaml")),
    ("qwen2", include_str!("../../recipes/qwen2.yaml")),
    ("qwen3", include_str!("../../recipes/qwen3.yaml")),
    ("smollm3", include_str!("../../recipes/smollm3.yaml")),
    ("stablelm", include_str!("../../recipes/stablelm.yaml")),
];

/// A valid, complete recipe.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Recipe {
    /// Layout version: 1.
    pub schema: u64,
    /// Name, lower case.
    pub name: String,
    /// Models it is made for.
    #[serde(rename = "match")]
    #[schemars(default)]
    pub matches: Option<Match>,
    /// Model to harden: a folder, `ORG/NAME@REVISION` or `builtin:tiny-chat`; the command line overrides it.
    #[schemars(default)]
    pub model: Option<String>,
    /// Whether an attacker can get the un-hardened base.
    #[schemars(default)]
    pub base_access: Access,
    /// Root of every random stream.
    #[schemars(default)]
    pub seed: u64,
    /// Prompts.
    #[schemars(default)]
    pub data: Data,
    /// Blocks of stages that name none.
    #[schemars(default)]
    pub layers: Layers,
    /// Defence stages, in order.
    pub stages: Vec<Stage>,
    /// Attacks that measure the result.
    pub suite: Suite,
    /// Utility tasks that measure the price.
    #[schemars(default)]
    pub utility: Vec<TaskSpec>,
    /// What counts as good enough.
    #[schemars(default)]
    pub thresholds: Thresholds,
}

/// Models that a recipe is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Smallest number of parameters.
    #[serde(default)]
    pub min_parameters: Option<u64>,
    /// Largest number of parameters.
    #[serde(default)]
    pub max_parameters: Option<u64>,
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// `builtin:tiny-chat`, `builtin:prompts`, or a JSONL file.
    pub prompts: String,
    /// System prompt of every dialogue.
    pub system: Option<String>,
    /// Languages whose rows are used, such as `[en, de]`; all of the set's unless given.
    pub languages: Vec<String>,
    /// Requests that the un-hardened model makes up itself, at most: with its own answers they are anchors of the stages. What
    /// repeats a row of the set, or another of them, is left out.
    pub own_requests: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self { prompts: "builtin:prompts".into(), system: None, languages: vec![], own_requests: 0 }
    }
}

/// Attacks and how answers are generated under them.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Suite {
    /// Hazardous evaluation prompts per cell, at most.
    #[schemars(default)]
    pub evaluation_prompts: usize,
    /// Hazardous validation prompts that an attack's choices are made on (block, strength, direction, fit of a search), at most.
    #[schemars(default)]
    pub validation_prompts: usize,
    /// Longest answer, in tokens.
    #[schemars(default)]
    pub max_new_tokens: usize,
    /// A second checkpoint that judges the answers under attack too; it is compared with the first judge and decides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default)]
    pub guard: Option<GuardSpec>,
    /// What people's labels say of the judge; with it every row's attack success is shown corrected as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default)]
    pub calibration: Option<Calibration>,
    /// When a cell may stop before all prompts; absent: never. Not together with `thresholds.rates: corrected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
    /// The most that all cells together may cost; rows that do not fit are skipped in the order of the suite, said to be, and
    /// keep the verdict from being a pass. Absent: as much as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(default)]
    pub budget: Option<Allowance>,
    /// Rows.
    pub attacks: Vec<AttackSpec>,
}

/// A cell stops once its interval lies on one side of each of these rates, corrected for looking more than once. The rates are those
/// that the judge sees, so a recipe whose bounds are for rates corrected for the judge can't stop early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStop {
    /// Times that a cell's counts are looked at, the last time included.
    pub looks: usize,
    /// Attack success rates to decide against; the bounds of the recipe's gates on single rows come on top.
    pub at: Vec<f64>,
}

impl Default for EarlyStop {
    fn default() -> Self {
        Self { looks: 4, at: vec![0.5] }
    }
}

impl Recipe {
    /// Reads a recipe from text; `path` only names it in messages.
    ///
    /// # Errors
    /// [`crate::Error::Recipe`] with every problem found.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        RawRecipe::parse(text, path)?.validate()
    }

    /// Reads a recipe file.
    ///
    /// # Errors
    /// As [`Recipe::parse`]; [`crate::Error::Io`] where the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        RawRecipe::load(path)?.validate()
    }

    /// A recipe of [`EMBEDDED`].
    ///
    /// # Errors
    /// [`crate::Error::Usage`] listing the names when there is none of that name.
    pub fn embedded(name: &str) -> Result<Self> {
        RawRecipe::embedded(name)?.validate()
    }

    /// The recipe after `a.b=value` overrides, validated anew; sequences are indexed by number, values are YAML.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for an override that is no assignment, [`crate::Error::Recipe`] for what it breaks.
    pub fn with_overrides<S: AsRef<str>>(&self, overrides: &[S]) -> Result<Self> {
        RawRecipe::parse(&self.show(), Path::new(&format!("<{}>", self.name)))?.with_overrides(overrides)?.validate()
    }

    /// The embedded recipe for a `model_type` of unknown size.
    #[must_use]
    pub fn for_model_type(model_type: &str) -> Option<Self> {
        Self::for_model(model_type, None)
    }

    /// The first embedded recipe whose `match` holds; one that limits sizes needs `parameters`.
    #[must_use]
    pub fn for_model(model_type: &str, parameters: Option<u64>) -> Option<Self> {
        EMBEDDED
            .iter()
            .filter_map(|(name, _)| Self::embedded(name).ok())
            .find(|recipe| recipe.matches.as_ref().is_some_and(|matches| matches.holds(model_type, parameters)))
    }

    /// The name of the embedded recipe that a mistyped `name` is likely to mean.
    #[must_use]
    pub fn nearest(name: &str) -> Option<&'static str> {
        suggest::nearest(name, EMBEDDED.iter().map(|(name, _)| *name))
    }

    /// SHA-256, lower hex, of the canonical JSON: keys sorted, no white space, every default written out.
    #[must_use]
    pub fn digest(&self) -> String {
        let json = serde_json::to_value(self).expect("string keys and finite numbers: cannot fail");
        let bytes = serde_json::to_vec(&sorted(json)).expect("a JSON value always serialises");
        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The recipe as YAML with every default written out; parses back to the same recipe.
    #[must_use]
    pub fn show(&self) -> String {
        serde_yaml::to_string(self).expect("string keys and finite numbers: cannot fail")
    }

    /// As [`Self::show`], with a comment behind every value: the line of `raw` that it is from, `--set` or `default`.
    #[must_use]
    pub fn show_origins(&self, raw: &RawRecipe) -> String {
        origin::with_origins(raw, &self.show())
    }

    /// The JSON Schema of a recipe.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Recipe).to_value()
    }
}

impl Suite {
    /// Reads a suite on its own, the `suite` section of a recipe as a file.
    ///
    /// # Errors
    /// [`crate::Error::Recipe`] with every problem found.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        RawRecipe::parse(text, path)?.validate_suite()
    }
}

impl Match {
    /// Whether a model of that type and, where known, size is meant.
    #[must_use]
    pub fn holds(&self, model_type: &str, parameters: Option<u64>) -> bool {
        let sized = self.min_parameters.is_some() || self.max_parameters.is_some();
        self.model_type == model_type
            && match parameters {
                Some(n) => {
                    self.min_parameters.is_none_or(|min| n >= min) && self.max_parameters.is_none_or(|max| n <= max)
                }
                None => !sized,
            }
    }
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        scalar => scalar,
    }
}
