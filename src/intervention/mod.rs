//! What an inference-time edit does to an activation.

use serde::{Deserialize, Serialize};

/// Token positions at which an intervention acts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// The tokens of the prompt only, as the E.T. paper evaluates.
    Prompt,
    /// Every token, generated ones too: the stronger attack and the default.
    #[default]
    All,
    /// The last token of the prompt and every generated token after it.
    Last,
}
