//! The decoder: embedding, blocks, unembedding; one differentiable implementation for every family.
//!
//! Cloning is cheap (tensors are shared). Adapters are put on by making a new decoder, so a trained one never changes the
//! one it came from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::batch::TokenBatch;
use super::block::{Block, BlockParts, Context, Norms};
use super::blueprint::{Blueprint, Module, NormKind, QkNorm, WeightLocation};
use super::cap::soft_cap;
use super::families;
use super::hooks::Hooks;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::Norm;
use super::recompute::Recomputed;
use super::rope::RopeTable;
use super::site::{Point, Site};
use super::weight::Weight;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::config::CONFIG;
use crate::{Error, Result};

/// A decoder: f32 in memory, or with its matrices left in the checkpoint's files.
#[derive(Debug, Clone)]
pub struct Decoder {
    blueprint: Arc<Blueprint>,
    device: Device,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    ropes: Arc<[RopeTable]>,
    recomputes: bool,
}

/// Where a decoder's weights come from.
trait Source {
    /// A gain or bias by name and shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// A matrix of `width` columns.
    fn matrix(&mut self, location: WeightLocation, width: usize) -> Result<Weight>;
}

/// A function from name and shape to a tensor. Maps of a fused tensor share its memory.
struct Loaded<F> {
    read: F,
    fused: Option<(String, Tensor)>,
}

impl<F: FnMut(&str, &[usize]) -> Result<Tensor>> Source for Loaded<F> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        (self.read)(name, shape)
    }

    fn matrix(&mut self, location: WeightLocation, width: usize) -> Result<Weight> {
        let WeightLocation { tensor, rows, of } = location;
        if rows.len() == of {
            return Ok((self.read)(&tensor, &[of, width])?.into());
        }
        let whole = match self.fused.take() {
            Some((name, whole)) if name == tensor => whole,
            _ => (self.read)(&tensor, &[of, width])?,
        };
        let part = whole.narrow(0, rows.start, rows.len())?;
        self.fused = Some((tensor, whole));
        Ok(part.into())
    }
}

/// A checkpoint that stays open.
struct Streamed<'a> {
    checkpoint: &'a Arc<Checkpoint>,
    device: &'a Device,
}

impl Source for Streamed<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Weight::read(self.checkpoint, name, shape, self.device)
    }

    fn matrix(&mut self, location: WeightLocation, width: usize) -> Result<Weight> {
        Weight::stored(self.checkpoint, location, width, self.device)
    }
}

impl Decoder {
    /// Reads a checkpoint's weights: f32 on the CPU, matrices in bf16 on an accelerator where they are stored so.
    ///
    /// # Errors
    /// When the family is unsupported, a tensor is missing or has the wrong shape, or there is one of a block beyond the model's.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let blueprint = families::blueprint(checkpoint.config())?;
        refuse_further_blocks(checkpoint, blueprint.n_layers)?;
        Self::from_weights(blueprint, device, |name, shape| Weight::read(checkpoint, name, shape, device))
    }

    /// Leaves a checkpoint's matrices in its files and reads each whenever it is used: for models that do not fit into
    /// memory. The results are those of [`Decoder::load`].
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn stream(checkpoint: &Arc<Checkpoint>, device: &Device) -> Result<Self> {
        let blueprint = families::blueprint(checkpoint.config())?;
        refuse_further_blocks(checkpoint, blueprint.n_layers)?;
        Self::build(blueprint, device, &mut Streamed { checkpoint, device })
    }

    /// Builds a decoder from a source of tensors by name and shape.
    ///
    /// # Errors
    /// Those of the source.
    pub fn from_weights(
        blueprint: Blueprint,
        device: &Device,
        weight: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        Self::build(blueprint, device, &mut Loaded { read: weight, fused: None })
    }

    fn build(blueprint: Blueprint, device: &Device, source: &mut dyn Source) -> Result<Self> {
        let (d, vocab) = (blueprint.d_model, blueprint.vocab);
        let table = |name: &str| WeightLocation { tensor: name.to_owned(), rows: 0..vocab, of: vocab };
        let embedding = source.matrix(table("model.embed_tokens.weight"), d)?;
        let mut blocks = Vec::with_capacity(blueprint.n_layers);
        for layer in 0..blueprint.n_layers {
            let maps = maps(&blueprint, layer, source)?;
            let norms = norms(&blueprint, layer, source)?;
            blocks.push(Block { maps, norms });
        }
        let norm = norm(&blueprint, "model.norm", source)?;
        let head = if blueprint.tied { embedding.clone() } else { source.matrix(table("lm_head.weight"), d)? };
        let positions = blueprint.positions();
        let ropes = blueprint.ropes.iter().map(|rope| RopeTable::new(rope, blueprint.head_dim, positions)).collect();
        Ok(Self {
            device: device.clone(),
            embedding,
            blocks,
            norm,
            head: Linear::new(head, None),
            ropes,
            blueprint: Arc::new(blueprint),
            recomputes: false,
        })
    }

    /// The same decoder, whose passes keep nothing of a block but its input where `yes`: its activations are computed again
    /// when a gradient asks for them. Takes a fraction of the memory and a third more time; the gradients are the same.
    #[must_use]
    pub fn recomputing(self, yes: bool) -> Self {
        Self { recomputes: yes, ..self }
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

    /// Longest sequence that one of `length` tokens can grow to while it is generated, in tokens.
    #[must_use]
    pub fn reach(&self, length: usize) -> usize {
        let ropes = self.ropes.iter().map(|rope| rope.reach(length));
        ropes.min().unwrap_or_else(|| self.blueprint.positions())
    }

    /// A block's weights.
    ///
    /// # Panics
    /// When `layer` is not below [`Decoder::n_layers`].
    pub fn block(&self, layer: usize) -> &Block {
        &self.blocks[layer]
    }

    /// The same decoder with every block mapped by `change`.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map_blocks(&self, mut change: impl FnMut(usize, &Block) -> Result<Block>) -> Result<Self> {
        let blocks = self.blocks.iter().enumerate().map(|(i, b)| change(i, b)).collect::<Result<_>>()?;
        Ok(Self { blocks, ..self.clone() })
    }

    /// All weights, without adapters, each map's under its own name where a checkpoint fuses several; tensors are shared.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = BTreeMap::new();
        self.map_weights(|name, weight| {
            weights.insert(name.to_owned(), weight.clone());
            Ok(weight.clone())
        })?;
        Ok(weights)
    }

    /// The same decoder with every weight replaced by `change(name, weight)`, in memory; adapters are dropped.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map_weights(&self, mut change: impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let embedding = change("model.embed_tokens.weight", &self.embedding.tensor()?)?;
        let head = if self.blueprint.tied {
            Linear::new(embedding.clone(), None)
        } else {
            Linear::new(change("lm_head.weight", &self.head.weight().tensor()?)?, None)
        };
        let norm = self.norm.mapped("model.norm", &mut change)?;
        let decoder = self.map_blocks(|layer, block| {
            let mut changed = block.clone();
            for module in Module::ALL {
                let (map, name) = (block.map(module), format!("model.layers.{layer}.{module}"));
                let weight = change(&format!("{name}.weight"), &map.weight().tensor()?)?;
                let bias = map.bias().map(|bias| change(&format!("{name}.bias"), bias)).transpose()?;
                changed = changed.with_map(module, Linear::new(weight, bias));
            }
            changed.norms = block.norms.mapped(&format!("model.layers.{layer}"), &mut change)?;
            Ok(changed)
        })?;
        Ok(Self { embedding: embedding.into(), head, norm, ..decoder })
    }

    /// The token embedding, `[vocab, d_model]`.
    pub fn embedding(&self) -> &Weight {
        &self.embedding
    }

    /// The same decoder with another embedding, and unembedding where the two are tied.
    #[must_use]
    pub fn with_embedding(&self, embedding: Tensor) -> Self {
        let head = if self.blueprint.tied { Linear::new(embedding.clone(), None) } else { self.head.clone() };
        Self { embedding: embedding.into(), head, ..self.clone() }
    }

    /// The same function with all adapters merged into frozen weights: what inner loops and generation run on.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn merged(&self) -> Result<Self> {
        self.map_blocks(|_, block| {
            let mut merged = block.clone();
            for module in Module::ALL {
                merged = merged.with_map(module, block.map(module).merged()?);
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
        let flat = self.embedding.rows(&batch.tensor(&self.device)?)?;
        let embedded = flat.reshape((batch.rows(), batch.cols(), self.blueprint.d_model))?;
        let scale = self.blueprint.embedding_scale;
        Ok(if scale == 1.0 { embedded } else { (embedded * scale)? })
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
            let block = &self.blocks[layer];
            h = hooks.visit(Site::new(layer, Point::ResidPre), h, batch)?;
            h = if self.recomputes && cache.is_none() && !hooks.act_inside(layer) {
                let (blueprint, ropes) = (self.blueprint.clone(), self.ropes.clone());
                Recomputed { block: block.clone(), layer, blueprint, ropes, batch: batch.clone() }.forward(&h)?
            } else {
                block.body(layer, &h, &context, hooks, cache.as_deref_mut())?
            };
            h = hooks.visit(Site::new(layer, Point::ResidPost), h, batch)?;
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
        let Blueprint { norm_eps, logit_divisor, logit_cap, .. } = *self.blueprint;
        let mut logits = self.head.forward(&self.norm.forward(hidden, norm_eps)?)?;
        if logit_divisor != 1.0 {
            logits = (logits / logit_divisor)?;
        }
        match logit_cap {
            Some(cap) => soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    fn context<'a>(&'a self, batch: &'a TokenBatch, past: usize) -> Context<'a> {
        Context { blueprint: &self.blueprint, ropes: &self.ropes, batch, pads: Arc::new(batch.pads().to_vec()), past }
    }
}

/// Refuses tensors of blocks that the model does not have: nothing reads them, so they would be published as they are. No supported
/// family keeps any there, such as heads that predict several tokens.
fn refuse_further_blocks(checkpoint: &Checkpoint, n_layers: usize) -> Result<()> {
    let block = |name: &str| {
        let number = name.strip_prefix("model.layers.")?.split('.').next()?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| number.parse::<usize>().unwrap_or(usize::MAX))
    };
    let blocks = checkpoint.names().filter_map(|name| Some((block(name)?, name)));
    let Some((_, name)) = blocks.filter(|(block, _)| *block >= n_layers).min() else { return Ok(()) };
    let file = checkpoint.dir().join(&checkpoint.info(name)?.file);
    let problem = format!("expected one of a block below {n_layers}, the `num_hidden_layers` of {CONFIG}");
    Err(Error::input(format!("{}: tensor `{name}`", file.display()), problem)
        .hint("is that the number of blocks? a block that is never read would be published un-hardened"))
}

/// The seven maps of a block.
fn maps(blueprint: &Blueprint, layer: usize, source: &mut dyn Source) -> Result<[Linear; 7]> {
    let mut map = |module: Module| -> Result<Linear> {
        let [rows, width] = blueprint.weight_shape(module);
        let bias = if blueprint.has_bias(module) {
            Some(source.tensor(&format!("model.layers.{layer}.{module}.bias"), &[rows])?)
        } else {
            None
        };
        Ok(Linear::new(source.matrix(blueprint.weight_location(module, layer), width)?, bias))
    };
    Ok([
        map(Module::Q)?,
        map(Module::K)?,
        map(Module::V)?,
        map(Module::O)?,
        map(Module::Gate)?,
        map(Module::Up)?,
        map(Module::Down)?,
    ])
}

fn norms(blueprint: &Blueprint, layer: usize, source: &mut dyn Source) -> Result<Norms> {
    let mut at = |name: Option<&str>| -> Result<Option<Norm>> {
        name.map(|name| norm(blueprint, &format!("model.layers.{layer}.{name}"), source)).transpose()
    };
    let places = blueprint.norms;
    let (attention_in, attention_out) = (at(places.attention_in)?, at(places.attention_out)?);
    let (mlp_in, mlp_out) = (at(places.mlp_in)?, at(places.mlp_out)?);
    let heads = match blueprint.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => Some((1, 1)),
        QkNorm::Whole => Some((blueprint.n_heads, blueprint.n_kv_heads)),
    };
    let mut of_heads = |name: &str, heads: usize| {
        gain(blueprint, &format!("model.layers.{layer}.self_attn.{name}"), heads * blueprint.head_dim, source)
    };
    let qk = heads.map(|(q, k)| Ok::<_, Error>((of_heads("q_norm", q)?, of_heads("k_norm", k)?))).transpose()?;
    Ok(Norms { attention_in, attention_out, mlp_in, mlp_out, qk })
}

fn norm(blueprint: &Blueprint, name: &str, source: &mut dyn Source) -> Result<Norm> {
    let gain = gain(blueprint, name, blueprint.d_model, source)?;
    Ok(match blueprint.norm {
        NormKind::Rms => Norm::Rms(gain),
        NormKind::Layer => Norm::Layer(gain, source.tensor(&format!("{name}.bias"), &[blueprint.d_model])?),
    })
}

fn gain(blueprint: &Blueprint, name: &str, width: usize, source: &mut dyn Source) -> Result<Tensor> {
    let stored = source.tensor(&format!("{name}.weight"), &[width])?;
    Ok(if blueprint.gain_offset == 0.0 { stored } else { (stored + blueprint.gain_offset)? })
}
