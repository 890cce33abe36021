//! How an adversary finds an intervention. Never imports a defence, a judge or a utility task.
//!
//! An attack sees a frozen decoder and the attacker's own data (requests with the affirmative answers it aims for, and
//! harmless requests), and returns an [`Edit`]. Whether that edit works is for the judges to say.

pub mod abliteration;
pub mod control;
pub mod direction;
pub mod form;
pub mod learned;
pub mod prefix;
pub mod spec;
pub mod steering;
pub mod transfer;
pub mod transport;

mod probe;

use crate::intervention::Edit;

/// A request with the answer that the attacker wants, in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The whole prompt, chat template included.
    pub prompt: Vec<u32>,
    /// The affirmative answer; with the token that ends a turn where it is a whole one.
    pub target: Vec<u32>,
    /// Name of the answer's opening, if the data names it.
    pub opening: Option<String>,
}

/// What the attacker has to work with.
#[derive(Debug, Clone, Default)]
pub struct AttackData {
    /// Hazardous requests with affirmative answers.
    pub pairs: Vec<Pair>,
    /// Harmless requests, for class means.
    pub harmless: Vec<Vec<u32>>,
    /// Harmless requests in hazardous words: the contrast that leaves nothing but what is refused. May be empty.
    pub twins: Vec<Vec<u32>>,
    /// Id that fills padding.
    pub pad: u32,
}

impl AttackData {
    /// The pairs that an attack is fitted on: the first `most` of those whose answer has this opening, or of all.
    pub fn chosen<'a>(&'a self, opening: Option<&'a str>, most: usize) -> impl Iterator<Item = &'a Pair> {
        let has = move |pair: &&Pair| opening.is_none_or(|name| pair.opening.as_deref() == Some(name));
        self.pairs.iter().filter(has).take(most)
    }
}

/// An intervention that an attack found, and what finding it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The intervention.
    pub edit: Edit,
    /// Sequences run forward and backward.
    pub gradient_evaluations: usize,
}

/// A small decoder's shape.
#[cfg(test)]
pub(crate) fn tiny() -> crate::model::Blueprint {
    crate::model::Blueprint {
        family: "llama",
        vocab: 40,
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 2,
        head_dim: 8,
        d_ff: 16,
        norm_eps: 1e-5,
        max_positions: 32,
        tied: true,
        ..crate::model::Blueprint::default()
    }
}

/// A decoder of normally distributed weights.
#[cfg(test)]
pub(crate) fn random_decoder(
    blueprint: crate::model::Blueprint,
    std: f64,
    mut stream: crate::math::seed::Stream,
) -> crate::model::Decoder {
    let cpu = &candle_core::Device::Cpu;
    crate::model::Decoder::from_weights(blueprint, cpu, |_, shape| {
        Ok(candle_core::Tensor::from_vec(stream.gaussian(shape.iter().product(), std), shape, cpu)?)
    })
    .unwrap()
}
