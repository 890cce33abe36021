//! The decoder: embedding, blocks, unembedding; one differentiable implementation for every family.
//!
//! Cloning is cheap (tensors are shared). Adapters are put on by making a new decoder, so a trained one never changes the
//! one it came from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::batch::TokenBatch;
use super::block::{Block, BlockParts, Context};
use super::blueprint::{Blueprint, Module};
use super::families;
use super::hooks::Hooks;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::rms_norm;
use super::rope::RopeTable;
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Longest sequence that position tables are built for, whatever the model claims to read.
const MAX_TABLE: usize = 8192;

/// A decoder in memory, f32.
#[derive(Debug, Clone)]
pub struct Decoder {
    blueprint: Blueprint,
    device: Device,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Linear,
    rope: RopeTable,
}

impl Decoder {
    /// Reads a checkpoint's weights, widened to f32.
    ///
    /// # Errors
    /// When the family is unsupported or a tensor is missing or has the wrong shape.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let blueprint = families::blueprint(checkpoint.config())?;
        Self::from_weights(blueprint, device, |name, shape| {
            checkpoint.require_shape(name, shape)?;
            Ok(Tensor::from_vec(checkpoint.read_f32(name)?, shape, device)?)
        })
    }

    /// Builds a decoder from a source of tensors by name and shape.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_weights(
        blueprint: Blueprint,
        device: &Device,
        mut weight: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let d = blueprint.d_model;
        let embedding = weight("model.embed_tokens.weight", &[blueprint.vocab, d])?;
        let mut blocks = Vec::with_capacity(blueprint.n_layers);
        for layer in 0..blueprint.n_layers {
            let mut map = |module: Module| -> Result<Linear> {
                let shape = blueprint.weight_shape(module);
                let bias = if blueprint.has_bias(module) {
                    Some(weight(&format!("model.layers.{layer}.{module}.bias"), &shape[..1])?)
                } else {
                    None
                };
                Ok(Linear::new(weight(&module.tensor(layer), &shape)?, bias))
            };
            let maps = [
                map(Module::Q)?,
                map(Module::K)?,
                map(Module::V)?,
                map(Module::O)?,
                map(Module::Gate)?,
                map(Module::Up)?,
                map(Module::Down)?,
            ];
            let attention_norm = weight(&format!("model.layers.{layer}.input_layernorm.weight"), &[d])?;
            let mlp_norm = weight(&format!("model.layers.{layer}.post_attention_layernorm.weight"), &[d])?;
            blocks.push(Block { maps, attention_norm, mlp_norm });
        }
        let norm = weight("model.norm.weight", &[d])?;
        let head = if blueprint.tied { embedding.clone() } else { weight("lm_head.weight", &[blueprint.vocab, d])? };
        let rope = RopeTable::new(blueprint.rope_theta, blueprint.head_dim, blueprint.max_positions.min(MAX_TABLE));
        Ok(Self { blueprint, device: device.clone(), embedding, blocks, norm, head: Linear::new(head, None), rope })
    }

    /// The architecture.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of blocks.
    pub fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// A block's weights.
    ///
    /// # Panics
    /// When `layer` is not below [`Decoder::n_layers`].
    pub fn block(&self, layer: usize) -> &Block {
        &self.blocks[layer]
    }

    /// The embedding, `[vocab, d_model]`.
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The same decoder with every block mapped by `change`.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map_blocks(&self, mut change: impl FnMut(usize, &Block) -> Result<Block>) -> Result<Self> {
        let blocks = self.blocks.iter().enumerate().map(|(i, b)| change(i, b)).collect::<Result<_>>()?;
        Ok(Self { blocks, ..self.clone() })
    }

    /// All weights by their names in a checkpoint, without adapters; tensors are shared.
    #[must_use]
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let mut weights = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), self.embedding.clone()),
            ("model.norm.weight".to_owned(), self.norm.clone()),
        ]);
        if !self.blueprint.tied {
            weights.insert("lm_head.weight".into(), self.head.weight().clone());
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            for module in Module::ALL {
                let map = block.map(module);
                weights.insert(module.tensor(layer), map.weight().clone());
                let bias = map.bias().map(|bias| (format!("model.layers.{layer}.{module}.bias"), bias.clone()));
                weights.extend(bias);
            }
            let norms = [("input_layernorm", &block.attention_norm), ("post_attention_layernorm", &block.mlp_norm)];
            weights.extend(norms.map(|(name, norm)| (format!("model.layers.{layer}.{name}.weight"), norm.clone())));
        }
        weights
    }

    /// The same decoder with every weight replaced by `change(name, weight)`; adapters are dropped.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map_weights(&self, mut change: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let weights = self.weights();
        Self::from_weights(self.blueprint.clone(), &self.device, |name, _| match weights.get(name) {
            Some(weight) => change(name, weight),
            None => Err(Error::input(name, "expected a weight, got none")),
        })
    }

    /// The same decoder with another embedding, and unembedding where the two are tied.
    #[must_use]
    pub fn with_embedding(&self, embedding: Tensor) -> Self {
        let head = if self.blueprint.tied { Linear::new(embedding.clone(), None) } else { self.head.clone() };
        Self { embedding, head, ..self.clone() }
    }

    /// The same function with all adapters merged into frozen weights: what inner loops and generation run on.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn merged(&self) -> Result<Self> {
        self.map_blocks(|_, block| {
            let mut merged = block.clone();
            for module in Module::ALL {
                let map = block.map(module);
                merged = merged.with_map(module, map.with_weight(map.merged_weight()?));
            }
            Ok(merged)
        })
    }

    /// Token embeddings, `[batch, pos, d_model]`.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn embed(&self, batch: &TokenBatch) -> Result<Tensor> {
        if let Some(id) = batch.ids().iter().find(|id| **id as usize >= self.blueprint.vocab) {
            return Err(Error::input(
                format!("token id {id}"),
                format!("expected an id below the vocabulary's size {}", self.blueprint.vocab),
            )
            .hint("do tokenizer and weights belong together?"));
        }
        let flat = self.embedding.index_select(&batch.tensor(&self.device)?, 0)?;
        Ok(flat.reshape((batch.rows(), batch.cols(), self.blueprint.d_model))?)
    }

    /// Runs blocks `layers` on `h`, the input of the first of them.
    ///
    /// *Shapes*: `h` and the result `[batch, pos, d_model]`. Differentiable.
    ///
    /// # Errors
    /// Those of the edits in `hooks`, and a sequence longer than the position table.
    pub fn run(
        &self,
        layers: Range<usize>,
        h: &Tensor,
        batch: &TokenBatch,
        hooks: &mut Hooks<'_>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let context = self.context(batch, cache.as_ref().map_or(0, |cache| cache.past()));
        let mut h = h.clone();
        for layer in layers {
            h = self.blocks[layer].forward(layer, &h, &context, hooks, cache.as_deref_mut())?;
        }
        Ok(h)
    }

    /// Attention and feed-forward outputs of one block alone: `(a(h), m(h + a(h)))`, each `[batch, pos, d_model]`.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn block_outputs(&self, layer: usize, h: &Tensor, batch: &TokenBatch) -> Result<(Tensor, Tensor)> {
        let context = self.context(batch, 0);
        let (block, mut hooks) = (&self.blocks[layer], Hooks::none());
        let attention = block.attention(layer, h, &context, &mut hooks, None)?;
        let mlp = block.feed_forward(layer, &(h + &attention)?, &context, &mut hooks)?;
        Ok((attention, mlp))
    }

    /// What the maps of one block read and write, from the block's input `h`.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn block_parts(&self, layer: usize, h: &Tensor, batch: &TokenBatch) -> Result<BlockParts> {
        self.blocks[layer].parts(layer, h, &self.context(batch, 0))
    }

    /// The residual stream after the last block, `[batch, pos, d_model]`.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn hidden(&self, batch: &TokenBatch, hooks: &mut Hooks<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        self.run(0..self.n_layers(), &self.embed(batch)?, batch, hooks, cache)
    }

    /// Next-token logits of all positions, `[batch, pos, vocab]`.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn forward(
        &self,
        batch: &TokenBatch,
        hooks: &mut Hooks<'_>,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let hidden = self.hidden(batch, hooks, cache.as_deref_mut())?;
        if let Some(cache) = cache {
            cache.advance(batch.cols());
        }
        self.unembed(&hidden)
    }

    /// Logits of the listed flat positions of `hidden` `[batch, pos, d_model]`, `[positions, vocab]`: the unembedding is
    /// the largest map of a small model, so a loss on answers computes it for answers only.
    ///
    /// # Errors
    /// When a position lies outside.
    pub fn logits_at(&self, hidden: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let index = Tensor::from_slice(positions, positions.len(), &self.device)?;
        let rows = hidden.reshape(((), self.blueprint.d_model))?.index_select(&index, 0)?;
        self.unembed(&rows)
    }

    fn unembed(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(&rms_norm(hidden, &self.norm, self.blueprint.norm_eps)?)
    }

    fn context<'a>(&'a self, batch: &'a TokenBatch, past: usize) -> Context<'a> {
        Context { blueprint: &self.blueprint, rope: &self.rope, batch, pads: Arc::new(batch.pads().to_vec()), past }
    }
}
