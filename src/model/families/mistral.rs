//! Mistral: Llama with a window on every block, unless `sliding_window` is null.

use super::super::blueprint::Blueprint;
use super::{attends, common, window_or};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    Ok(Blueprint { attends: attends(config, window_or(config, 4096), |_| true, 0)?, ..common(config)? })
}
