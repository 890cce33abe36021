//! Llama 2 to 3.3: RMSNorm, rotary attention with grouped queries, SwiGLU, no biases unless `attention_bias` asks for them.

use super::super::blueprint::Blueprint;
use super::{common, refuse};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    if config.use_sliding_window {
        return refuse("sliding_window", "nothing", "a window");
    }
    common(config)
}
