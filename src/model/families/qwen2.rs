//! Qwen2 and Qwen2.5: Llama with biases on the query, key and value maps.

use super::super::blueprint::Blueprint;
use super::llama_like;
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    Ok(Blueprint { qkv_bias: true, o_bias: false, ..llama_like("qwen2", config)? })
}
