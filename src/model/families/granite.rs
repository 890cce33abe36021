//! Granite 3: Llama with factors on embedding, scores, what blocks add, and logits.

use super::super::blueprint::Blueprint;
use super::{common, refuse};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    if config.use_sliding_window {
        return refuse("sliding_window", "nothing", "a window");
    }
    let factor = |key: &str| -> Result<f64> { Ok(config.keys().positive(key)?.unwrap_or(1.0)) };
    Ok(Blueprint {
        embedding_scale: factor("embedding_multiplier")?,
        attention_scale: Some(factor("attention_multiplier")?),
        residual_scale: factor("residual_multiplier")?,
        logit_divisor: factor("logits_scaling")?,
        ..common(config)?
    })
}
