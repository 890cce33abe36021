//! Phi-3, Phi-3.5 and Phi-4: Llama with query, key and value maps in one tensor and gate and up in another, and a part of
//! each head rotated in the small models.

use super::super::blueprint::Blueprint;
use super::{attends, common};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    Ok(Blueprint { fused: true, attends: attends(config, config.sliding_window, |_| true, 0)?, ..common(config)? })
}
