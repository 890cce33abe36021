//! SmolLM3: Llama without position embedding in every fourth block.

use super::super::blueprint::{Attends, Blueprint};
use super::{common, refuse};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    let (keys, n_layers) = (config.keys(), config.num_hidden_layers);
    if keys.flag("use_sliding_window")?.unwrap_or(false) {
        return refuse("use_sliding_window", "`false`", "true");
    }
    let interval = keys.size("no_rope_layer_interval")?.unwrap_or(4);
    let turned: Vec<bool> = match keys.numbers("no_rope_layers")? {
        None => (1..=n_layers).map(|layer| !layer.is_multiple_of(interval)).collect(),
        Some(layers) if layers.len() >= n_layers => layers.iter().take(n_layers).map(|turned| *turned != 0.0).collect(),
        Some(layers) => {
            return refuse("no_rope_layers", &format!("one for each of {n_layers} blocks"), &layers.len().to_string());
        }
    };
    let attends = turned.into_iter().map(|turned| Attends { window: None, rope: turned.then_some(0) }).collect();
    Ok(Blueprint { attends, ..common(config)? })
}
