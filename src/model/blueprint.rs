//! Everything that distinguishes decoder families, as plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A linear map of a block that hardening may adapt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Module {
    /// `self_attn.q_proj`.
    Q,
    /// `self_attn.k_proj`.
    K,
    /// `self_attn.v_proj`.
    V,
    /// `self_attn.o_proj`.
    O,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
}

impl Module {
    /// All seven, in the order in which a block applies them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name within a block.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Name of the weight in the checkpoint.
    pub fn tensor(self, layer: usize) -> String {
        format!("model.layers.{layer}.{self}.weight")
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// Architecture of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// Family name, as `model_type` in `config.json`.
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub d_ff: usize,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest sequence that position tables are made for.
    pub max_positions: usize,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// Whether query, key and value maps have biases.
    pub qkv_bias: bool,
    /// Whether the attention output map has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward maps have biases.
    pub mlp_bias: bool,
}

impl Blueprint {
    /// Shape of a module's weight, `[d_out, d_in]`.
    pub const fn weight_shape(&self, module: Module) -> [usize; 2] {
        let (wide, narrow) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        match module {
            Module::Q => [wide, self.d_model],
            Module::K | Module::V => [narrow, self.d_model],
            Module::O => [self.d_model, wide],
            Module::Gate | Module::Up => [self.d_ff, self.d_model],
            Module::Down => [self.d_model, self.d_ff],
        }
    }

    /// Whether a module has a bias.
    pub const fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::Q | Module::K | Module::V => self.qkv_bias,
            Module::O => self.o_bias,
            Module::Gate | Module::Up | Module::Down => self.mlp_bias,
        }
    }

    /// Number of weights, embedding included once.
    pub fn parameters(&self) -> usize {
        let block: usize = Module::ALL.iter().map(|m| self.weight_shape(*m).iter().product::<usize>()).sum();
        let heads = if self.tied { 1 } else { 2 };
        self.n_layers * (block + 2 * self.d_model) + heads * self.vocab * self.d_model + self.d_model
    }
}
