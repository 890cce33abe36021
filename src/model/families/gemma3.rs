//! Gemma 3, the text models: Gemma 2 with normed queries and keys instead of caps, and another rotary base in blocks with a
//! window, five of six.

use super::super::blueprint::{Blueprint, QkNorm};
use super::gemma2::gemma;
use super::{attends, rope, window_or};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    let keys = config.keys();
    let pattern = keys.size("sliding_window_pattern")?.unwrap_or(6);
    let attends = attends(config, window_or(config, 4096), |layer| !(layer + 1).is_multiple_of(pattern), 1)?;
    let local = rope::local(config, keys.positive("rope_local_base_freq")?.unwrap_or(10_000.0))?;
    Ok(Blueprint {
        attends,
        ropes: vec![rope::global(config)?, local],
        qk_norm: QkNorm::Head,
        attention_cap: keys.positive("attn_logit_softcapping")?,
        logit_cap: keys.positive("final_logit_softcapping")?,
        ..gemma(config)?
    })
}
