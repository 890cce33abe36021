//! Everything that distinguishes decoder families, as plain data.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::frequencies::Rope;

/// Longest sequence that position tables are built for, whatever the model claims to read.
const MAX_TABLE: usize = 8192;

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
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// Where a map's weight is stored: some rows of a tensor, all of them unless the family fuses maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightLocation {
    /// Name in the checkpoint.
    pub tensor: String,
    /// The map's rows.
    pub rows: Range<usize>,
    /// Rows of the whole tensor.
    pub of: usize,
}

/// The gated activation's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x · σ(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)` with the tanh approximation of Φ.
    GeluTanh,
}

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormKind {
    /// The root mean square; a gain.
    #[default]
    Rms,
    /// The standard deviation, after subtracting the mean; a gain and a bias.
    Layer,
}

/// Norms of a block by where they are, as the last part but one of their tensors' names; `None`: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    /// Of what attention reads.
    pub attention_in: Option<&'static str>,
    /// Of what attention adds to the stream.
    pub attention_out: Option<&'static str>,
    /// Of what the feed-forward part reads.
    pub mlp_in: Option<&'static str>,
    /// Of what the feed-forward part adds to the stream.
    pub mlp_out: Option<&'static str>,
}

impl BlockNorms {
    /// Before attention and before the feed-forward part.
    pub const BEFORE: Self = Self {
        attention_in: Some("input_layernorm"),
        attention_out: None,
        mlp_in: Some("post_attention_layernorm"),
        mlp_out: None,
    };
    /// After attention and after the feed-forward part only.
    pub const AFTER: Self = Self {
        attention_in: None,
        attention_out: Some("post_attention_layernorm"),
        mlp_in: None,
        mlp_out: Some("post_feedforward_layernorm"),
    };
    /// On both sides of both.
    pub const AROUND: Self = Self {
        attention_in: Some("input_layernorm"),
        attention_out: Some("post_attention_layernorm"),
        mlp_in: Some("pre_feedforward_layernorm"),
        mlp_out: Some("post_feedforward_layernorm"),
    };

    /// Number of norms.
    fn count(&self) -> usize {
        [self.attention_in, self.attention_out, self.mlp_in, self.mlp_out].iter().flatten().count()
    }
}

/// RMS norms of queries and keys before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Of each head alone, all with one gain.
    Head,
    /// Of all heads together.
    Whole,
}

/// How one block attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attends {
    /// Latest tokens that a query sees, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// Which of [`Blueprint::ropes`] turns queries and keys; `None`: neither is turned.
    pub rope: Option<usize>,
}

impl Attends {
    /// To everything before, with the first rotary embedding.
    pub const FULLY: Self = Self { window: None, rope: Some(0) };
}

/// Architecture of a decoder.
///
/// The default is a Llama without any size, so that a family's file says what is its own.
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
    /// Longest sequence that the model claims to read; what the decoder takes is [`Blueprint::positions`].
    pub max_positions: usize,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// Whether query, key and value maps have biases.
    pub qkv_bias: bool,
    /// Whether the attention output map has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward maps have biases.
    pub mlp_bias: bool,
    /// Whether query, key and value maps lie in one tensor, and gate and up in another.
    pub fused: bool,
    /// Nonlinearity of the gate.
    pub activation: Activation,
    /// What all norms but those of queries and keys divide by.
    pub norm: NormKind,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// What is added to every stored gain of a norm.
    pub gain_offset: f64,
    /// Where a block has norms.
    pub norms: BlockNorms,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Rotary embeddings that blocks choose from.
    pub ropes: Vec<Rope>,
    /// How blocks attend: block `i` as entry `i` modulo the list's length.
    pub attends: Vec<Attends>,
    /// Factor on attention scores; `None`: `1/√head_dim`.
    pub attention_scale: Option<f64>,
    /// `c` of `c · tanh(score / c)` on attention scores.
    pub attention_cap: Option<f64>,
    /// `c` of `c · tanh(logit / c)` on logits.
    pub logit_cap: Option<f64>,
    /// Factor on the embedding.
    pub embedding_scale: f64,
    /// Factor on what attention and feed-forward part add to the stream.
    pub residual_scale: f64,
    /// Divisor of the logits.
    pub logit_divisor: f64,
}

impl Default for Blueprint {
    fn default() -> Self {
        Self {
            family: "llama",
            vocab: 0,
            d_model: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: 0,
            head_dim: 0,
            d_ff: 0,
            max_positions: 0,
            tied: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            fused: false,
            activation: Activation::Silu,
            norm: NormKind::Rms,
            norm_eps: 1e-6,
            gain_offset: 0.0,
            norms: BlockNorms::BEFORE,
            qk_norm: QkNorm::None,
            ropes: vec![Rope::new(1e4)],
            attends: vec![Attends::FULLY],
            attention_scale: None,
            attention_cap: None,
            logit_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_divisor: 1.0,
        }
    }
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

    /// Where a module's weight is in the checkpoint.
    pub fn weight_location(&self, module: Module, layer: usize) -> WeightLocation {
        let rows = |module| self.weight_shape(module)[0];
        let (path, before, after): (&str, &[Module], &[Module]) = match module {
            Module::Q if self.fused => ("self_attn.qkv_proj", &[], &[Module::K, Module::V]),
            Module::K if self.fused => ("self_attn.qkv_proj", &[Module::Q], &[Module::V]),
            Module::V if self.fused => ("self_attn.qkv_proj", &[Module::Q, Module::K], &[]),
            Module::Gate if self.fused => ("mlp.gate_up_proj", &[], &[Module::Up]),
            Module::Up if self.fused => ("mlp.gate_up_proj", &[Module::Gate], &[]),
            _ => (module.path(), &[], &[]),
        };
        let start: usize = before.iter().map(|m| rows(*m)).sum();
        let end = start + rows(module);
        WeightLocation {
            tensor: format!("model.layers.{layer}.{path}.weight"),
            rows: start..end,
            of: end + after.iter().map(|m| rows(*m)).sum::<usize>(),
        }
    }

    /// Names of the tensors that hold a block's maps, each once.
    pub fn weight_tensors(&self, layer: usize) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let names = Module::ALL.map(|module| self.weight_location(module, layer).tensor);
        names.into_iter().filter(|name| seen.insert(name.clone())).collect()
    }

    /// Whether a module has a bias.
    pub const fn has_bias(&self, module: Module) -> bool {
        match module {
            Module::Q | Module::K | Module::V => self.qkv_bias,
            Module::O => self.o_bias,
            Module::Gate | Module::Up | Module::Down => self.mlp_bias,
        }
    }

    /// Longest sequence that the decoder takes, tokens: the model's positions, 8192 at most.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.max_positions.min(MAX_TABLE)
    }

    /// How a block attends.
    pub fn attends(&self, layer: usize) -> Attends {
        self.attends.get(layer % self.attends.len().max(1)).copied().unwrap_or(Attends::FULLY)
    }

    /// Number of weights: the embedding once if it is tied; without biases.
    pub fn parameters(&self) -> usize {
        let block: usize = Module::ALL.iter().map(|m| self.weight_shape(*m).iter().product::<usize>()).sum();
        let heads = if self.tied { 1 } else { 2 };
        let norms = self.norms.count() * self.d_model;
        self.n_layers * (block + norms) + heads * self.vocab * self.d_model + self.d_model
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(fused: bool) -> Blueprint {
        Blueprint { fused, d_model: 12, n_heads: 4, n_kv_heads: 2, head_dim: 5, d_ff: 7, ..Blueprint::default() }
    }

    #[test]
    fn a_sequence_is_as_long_as_the_model_and_the_tables_allow() {
        let positions = |max_positions| Blueprint { max_positions, ..Blueprint::default() }.positions();
        assert_eq!((positions(256), positions(131_072)), (256, MAX_TABLE));
    }

    #[test]
    fn maps_of_a_fused_tensor_lie_one_after_another_and_fill_it() {
        let rows = |module| {
            let location = small(true).weight_location(module, 3);
            (location.tensor, location.rows, location.of)
        };
        let qkv = || "model.layers.3.self_attn.qkv_proj.weight".to_owned();
        assert_eq!(rows(Module::Q), (qkv(), 0..20, 40));
        assert_eq!(rows(Module::K), (qkv(), 20..30, 40));
        assert_eq!(rows(Module::V), (qkv(), 30..40, 40));
        assert_eq!(rows(Module::Up), ("model.layers.3.mlp.gate_up_proj.weight".into(), 7..14, 14));
        assert_eq!(rows(Module::Down), ("model.layers.3.mlp.down_proj.weight".into(), 0..12, 12));
        assert_eq!(small(true).weight_tensors(3).len(), 4);
    }

    #[test]
    fn maps_of_their_own_tensors_fill_them() {
        for module in Module::ALL {
            let location = small(false).weight_location(module, 0);
            assert_eq!(location.tensor, format!("model.layers.0.{module}.weight"));
            assert_eq!(
                (location.rows, location.of),
                (0..small(false).weight_shape(module)[0], small(false).weight_shape(module)[0])
            );
        }
        assert_eq!(small(false).weight_tensors(0).len(), 7);
    }

    #[test]
    fn blocks_repeat_the_pattern() {
        let local = Attends { window: Some(4), rope: None };
        let blueprint = Blueprint { attends: vec![local, Attends::FULLY], ..small(false) };
        assert_eq!([0, 1, 2, 5].map(|layer| blueprint.attends(layer)), [local, Attends::FULLY, local, Attends::FULLY]);
    }
}
