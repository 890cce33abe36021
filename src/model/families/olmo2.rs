//! OLMo 2: norms after attention and feed-forward part instead of before, and one over all heads' queries and keys.

use super::super::blueprint::{BlockNorms, Blueprint, QkNorm};
use super::{common, refuse};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    if config.use_sliding_window {
        return refuse("sliding_window", "nothing", "a window");
    }
    Ok(Blueprint { norms: BlockNorms::AFTER, qk_norm: QkNorm::Whole, ..common(config)? })
}
