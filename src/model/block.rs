//! One decoder block: attention and feed-forward part around the residual stream.

use std::sync::Arc;

use candle_core::Tensor;

use super::attention::{AttentionShape, attend};
use super::batch::TokenBatch;
use super::blueprint::{Blueprint, Module};
use super::hooks::Hooks;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::mlp::swiglu;
use super::norm::rms_norm;
use super::rope::{RopeTable, RowPositions};
use super::site::{Point, Site};
use crate::{Error, Result};

/// The weights of a block.
#[derive(Debug, Clone)]
pub struct Block {
    /// The seven linear maps, in [`Module::ALL`]'s order.
    pub(super) maps: [Linear; 7],
    /// Gain of the norm before attention, `[d_model]`.
    pub(super) attention_norm: Tensor,
    /// Gain of the norm before the feed-forward part, `[d_model]`.
    pub(super) mlp_norm: Tensor,
}

/// What a block's maps read and write, each `[batch, pos, width]`.
#[derive(Debug, Clone)]
pub struct BlockParts {
    /// Input of q, k and v: the normed stream.
    pub attention_in: Tensor,
    /// Input of o: the heads' outputs.
    pub z: Tensor,
    /// What attention adds to the stream.
    pub attention: Tensor,
    /// Input of gate and up: the normed stream after attention.
    pub mlp_in: Tensor,
    /// Input of down.
    pub active: Tensor,
    /// What the feed-forward part adds to the stream.
    pub mlp: Tensor,
}

/// What a block needs besides its weights and input.
pub(super) struct Context<'a> {
    pub blueprint: &'a Blueprint,
    pub rope: &'a RopeTable,
    pub batch: &'a TokenBatch,
    pub pads: Arc<Vec<usize>>,
    pub past: usize,
}

impl Block {
    /// One of the seven maps.
    pub fn map(&self, module: Module) -> &Linear {
        &self.maps[module as usize]
    }

    /// The same block with one map replaced.
    #[must_use]
    pub fn with_map(mut self, module: Module, map: Linear) -> Self {
        self.maps[module as usize] = map;
        self
    }

    /// What attention adds to the stream, from `h` `[batch, pos, d_model]`; with hooks at `hook_z` and `hook_attn_out`.
    pub(super) fn attention(
        &self,
        layer: usize,
        h: &Tensor,
        context: &Context<'_>,
        hooks: &mut Hooks<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let Context { blueprint, rope, batch, pads, past } = context;
        let x = rms_norm(h, &self.attention_norm, blueprint.norm_eps)?;
        let positions = RowPositions { pads: pads.clone(), past: *past };
        let q = rope.rotate(&self.map(Module::Q).forward(&x)?, &positions)?;
        let k = rope.rotate(&self.map(Module::K).forward(&x)?, &positions)?;
        let v = self.map(Module::V).forward(&x)?;
        let (k, v) = match cache {
            Some(cache) => cache.extend(layer, &k, &v)?,
            None => (k, v),
        };
        let shape = AttentionShape {
            heads: blueprint.n_heads,
            kv_heads: blueprint.n_kv_heads,
            head_dim: blueprint.head_dim,
            pads: pads.clone(),
            past: *past,
        };
        let z = hooks.visit(Site::new(layer, Point::Z), attend(&q, &k, &v, &shape)?, batch)?;
        hooks.visit(Site::new(layer, Point::AttnOut), self.map(Module::O).forward(&z)?, batch)
    }

    /// What the feed-forward part adds to the stream, from `x` `[batch, pos, d_model]`; with the hook at `hook_mlp_out`.
    pub(super) fn feed_forward(
        &self,
        layer: usize,
        x: &Tensor,
        context: &Context<'_>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let active = self.active(&rms_norm(x, &self.mlp_norm, context.blueprint.norm_eps)?)?;
        hooks.visit(Site::new(layer, Point::MlpOut), self.map(Module::Down).forward(&active)?, context.batch)
    }

    fn active(&self, normed: &Tensor) -> Result<Tensor> {
        swiglu(&self.map(Module::Gate).forward(normed)?, &self.map(Module::Up).forward(normed)?)
    }

    /// What every map of the block reads and what the two parts write, from `h` `[batch, pos, d_model]`.
    pub(super) fn parts(&self, layer: usize, h: &Tensor, context: &Context<'_>) -> Result<BlockParts> {
        let site = Site::new(layer, Point::Z);
        let mut hooks = Hooks::none().and_record([site]);
        let attention = self.attention(layer, h, context, &mut hooks, None)?;
        let z = hooks.take(site).ok_or_else(|| Error::input(site, "expected a recording, got none"))?;
        let eps = context.blueprint.norm_eps;
        let mlp_in = rms_norm(&(h + &attention)?, &self.mlp_norm, eps)?;
        let active = self.active(&mlp_in)?;
        let mlp = self.map(Module::Down).forward(&active)?;
        Ok(BlockParts { attention_in: rms_norm(h, &self.attention_norm, eps)?, z, attention, mlp_in, active, mlp })
    }

    /// The block's output, `[batch, pos, d_model]`.
    pub(super) fn forward(
        &self,
        layer: usize,
        h: &Tensor,
        context: &Context<'_>,
        hooks: &mut Hooks<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let h = hooks.visit(Site::new(layer, Point::ResidPre), h.clone(), context.batch)?;
        let attention = self.attention(layer, &h, context, hooks, cache)?;
        let mid = hooks.visit(Site::new(layer, Point::ResidMid), (h + attention)?, context.batch)?;
        let mlp = self.feed_forward(layer, &mid, context, hooks)?;
        hooks.visit(Site::new(layer, Point::ResidPost), (mid + mlp)?, context.batch)
    }
}
