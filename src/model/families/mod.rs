//! Decoder families: how each one's `config.json` becomes a [`Blueprint`].

mod llama;
mod qwen2;

use super::blueprint::Blueprint;
use crate::checkpoint::config::Config;
use crate::{Error, Result};

type Read = fn(&Config) -> Result<Blueprint>;

/// `model_type` → reader of its configuration.
const REGISTRY: &[(&str, Read)] = &[("llama", llama::blueprint), ("qwen2", qwen2::blueprint)];

/// Names of the supported families.
pub fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|(name, _)| *name)
}

/// The blueprint of a checkpoint.
///
/// # Errors
/// When the family is unknown, or the configuration asks for something that this family's decoder does not compute.
pub fn blueprint(config: &Config) -> Result<Blueprint> {
    let family = REGISTRY.iter().find(|(name, _)| *name == config.model_type);
    let (_, read) = family.ok_or_else(|| {
        let known = names().collect::<Vec<_>>().join(", ");
        Error::input("config.json", format!("expected `model_type` to be one of {known}, got `{}`", config.model_type))
            .hint("`immunise list families` shows what is supported")
    })?;
    read(config)
}

/// What every llama-like family shares; the family's file adds what is its own.
fn llama_like(family: &'static str, config: &Config) -> Result<Blueprint> {
    let refuse = |key: &str, expected: &str, got: &str| {
        Err(Error::input("config.json", format!("`{key}`: expected {expected}, got `{got}`")))
    };
    if config.rope.kind != "default" {
        return refuse("rope_scaling", "no scaling of the rotary embedding", &config.rope.kind);
    }
    if config.hidden_act != "silu" {
        return refuse("hidden_act", "`silu`", &config.hidden_act);
    }
    if config.raw.get("partial_rotary_factor").and_then(serde_json::Value::as_f64).is_some_and(|f| f != 1.0) {
        return refuse("partial_rotary_factor", "1", "another value");
    }
    if config.use_sliding_window {
        return refuse("use_sliding_window", "`false`", "true");
    }
    Ok(Blueprint {
        family,
        vocab: config.vocab_size,
        d_model: config.hidden_size,
        n_layers: config.num_hidden_layers,
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim(),
        d_ff: config.intermediate_size,
        norm_eps: config.rms_norm_eps,
        rope_theta: config.rope.theta,
        max_positions: config.max_position_embeddings,
        tied: config.tie_word_embeddings,
        qkv_bias: config.attention_bias,
        o_bias: config.attention_bias,
        mlp_bias: config.mlp_bias,
    })
}
