//! Gemma 2: norms on both sides of attention and feed-forward part with gains stored less one, a scaled embedding, gated
//! GELU, soft caps on scores and logits, a window on every other block.

use super::super::blueprint::{Activation, BlockNorms, Blueprint};
use super::{activation, attends, common, refuse_flags, window_or};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    let attends = attends(config, window_or(config, 4096), |layer| layer % 2 == 0, 0)?;
    let cap = |key: &str, default: f64| -> Result<Option<f64>> {
        if config.keys().states(key) { config.keys().positive(key) } else { Ok(Some(default)) }
    };
    Ok(Blueprint {
        attends,
        attention_cap: cap("attn_logit_softcapping", 50.0)?,
        logit_cap: cap("final_logit_softcapping", 30.0)?,
        ..gemma(config)?
    })
}

/// What Gemma 2 and 3 share.
pub(super) fn gemma(config: &Config) -> Result<Blueprint> {
    refuse_flags(config, &["use_bidirectional_attention"])?;
    let keys = config.keys();
    let activation = match keys.text("hidden_activation")? {
        Some(name) => activation(&name)?,
        None => Activation::GeluTanh,
    };
    let per_head = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Blueprint {
        head_dim: config.head_dim.unwrap_or(256),
        activation,
        norms: BlockNorms::AROUND,
        gain_offset: 1.0,
        embedding_scale: (config.hidden_size as f64).sqrt(),
        attention_scale: Some(per_head.powf(-0.5)),
        ..common(config)?
    })
}
