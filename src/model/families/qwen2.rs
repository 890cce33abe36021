//! Qwen2 and Qwen2.5: Llama with biases on the query, key and value maps, and a window on late blocks where it's switched on.

use super::super::blueprint::{Attends, Blueprint};
use super::{attends, common};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    Ok(Blueprint { qkv_bias: true, o_bias: false, attends: late_windows(config)?, ..common(config)? })
}

/// A window on the blocks from `max_window_layers` on.
pub(super) fn late_windows(config: &Config) -> Result<Vec<Attends>> {
    if !config.use_sliding_window {
        return Ok(vec![Attends::FULLY]);
    }
    let first = config.keys().size("max_window_layers")?.unwrap_or(28);
    attends(config, config.sliding_window, |layer| layer >= first, 0)
}
