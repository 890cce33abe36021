//! Llama: RMSNorm, rotary attention with grouped queries, SwiGLU, no biases unless `attention_bias` asks for them.

use super::super::blueprint::Blueprint;
use super::llama_like;
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    llama_like("llama", config)
}
