//! Checkpoint folders of random weights.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use immunise::math::seed::Stream;
use immunise::model::{Blueprint, Decoder};

use crate::pair::Outcome;
use crate::shape::weight;

/// A checkpoint folder of random weights in bf16, in `shards` files.
pub fn write(dir: &Path, blueprint: &Blueprint, shards: usize) -> Outcome<()> {
    std::fs::create_dir_all(dir)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": blueprint.vocab,
        "hidden_size": blueprint.d_model, "intermediate_size": blueprint.d_ff, "num_hidden_layers": blueprint.n_layers,
        "num_attention_heads": blueprint.n_heads, "num_key_value_heads": blueprint.n_kv_heads,
        "head_dim": blueprint.head_dim, "rms_norm_eps": blueprint.norm_eps, "rope_theta": blueprint.ropes[0].theta,
        "max_position_embeddings": blueprint.max_positions, "tie_word_embeddings": blueprint.tied,
        "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
    });
    std::fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    let mut stream = Stream::new(0, "bench weights");
    Decoder::from_weights(blueprint.clone(), &Device::Cpu, |name, shape| {
        let tensor = weight(shape, &mut stream)?;
        tensors.push((name.to_owned(), tensor.to_dtype(DType::BF16)?));
        Ok(tensor)
    })?;
    let metadata = || Some(HashMap::from([("format".to_owned(), "pt".to_owned())]));
    if shards == 1 {
        safetensors::serialize_to_file(tensors, metadata(), &dir.join("model.safetensors"))?;
        return Ok(());
    }
    let mut map = serde_json::Map::new();
    let total: usize = tensors.iter().map(|(_, tensor)| tensor.elem_count() * 2).sum();
    let per_shard = tensors.len().div_ceil(shards);
    for (number, part) in tensors.chunks(per_shard).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
        for (name, _) in part {
            map.insert(name.clone(), file.clone().into());
        }
        safetensors::serialize_to_file(part.to_vec(), metadata(), &dir.join(file))?;
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    Ok(())
}
