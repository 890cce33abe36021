//! Qwen3: Llama with a norm on every head's query and key.

use super::super::blueprint::{Blueprint, QkNorm};
use super::common;
use super::qwen2::late_windows;
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    Ok(Blueprint {
        head_dim: config.head_dim.unwrap_or(128),
        qk_norm: QkNorm::Head,
        attends: late_windows(config)?,
        ..common(config)?
    })
}
