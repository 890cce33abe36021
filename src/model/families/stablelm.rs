//! StableLM 2: LayerNorm with biases, a quarter of each head rotated, biases on queries, keys and values by choice.

use super::super::blueprint::{Blueprint, NormKind};
use super::{common, refuse_flags};
use crate::Result;
use crate::checkpoint::config::Config;
use crate::model::frequencies::Rope;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    refuse_flags(config, &["use_parallel_residual", "qk_layernorm", "use_sliding_window"])?;
    let shared = common(config)?;
    // The key's default is the family's own, so it counts only where neither spelling gives it.
    let stated = config.keys().states("partial_rotary_factor")
        || config.rope.raw.as_ref().is_some_and(|raw| raw.get("partial_rotary_factor").is_some());
    let ropes = match (stated, shared.ropes.as_slice()) {
        (false, [rope]) => vec![Rope { fraction: 0.25, ..rope.clone() }],
        (_, ropes) => ropes.to_vec(),
    };
    Ok(Blueprint {
        norm: NormKind::Layer,
        ropes,
        qkv_bias: config.keys().flag("use_qkv_bias")?.unwrap_or(false),
        o_bias: false,
        ..shared
    })
}
