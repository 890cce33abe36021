//! One decoder block: attention and feed-forward part around the residual stream.

use std::sync::Arc;

use candle_core::Tensor;

use super::attention::{AttentionShape, attend};
use super::batch::TokenBatch;
use super::blueprint::{Attends, Blueprint, Module};
use super::feed_forward::feed_forward;
use super::hooks::Hooks;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::mlp::gated;
use super::norm::{Norm, rms_norm};
use super::rope::{RopeTable, RowPositions};
use super::site::{Point, Site};
use crate::{Error, Result};

/// The weights of a block.
#[derive(Debug, Clone)]
pub struct Block {
    /// The seven linear maps, in [`Module::ALL`]'s order.
    pub(super) maps: [Linear; 7],
    /// Norms around attention and feed-forward part.
    pub(super) norms: Norms,
}

/// The norms that a block has.
#[derive(Debug, Clone)]
pub(super) struct Norms {
    pub attention_in: Option<Norm>,
    pub attention_out: Option<Norm>,
    pub mlp_in: Option<Norm>,
    pub mlp_out: Option<Norm>,
    /// Gains of queries' and keys' norms.
    pub qk: Option<(Tensor, Tensor)>,
}

impl Norms {
    /// The norms with every tensor replaced by `change(name, tensor)`.
    pub fn mapped(&self, block: &str, change: &mut impl FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut at = |name: &str, norm: &Option<Norm>| -> Result<Option<Norm>> {
            norm.as_ref().map(|norm| norm.mapped(&format!("{block}.{name}"), change)).transpose()
        };
        let (attention_in, attention_out) =
            (at("attention_in_norm", &self.attention_in)?, at("attention_out_norm", &self.attention_out)?);
        let (mlp_in, mlp_out) = (at("mlp_in_norm", &self.mlp_in)?, at("mlp_out_norm", &self.mlp_out)?);
        let qk = match &self.qk {
            Some((q, k)) => {
                Some((change(&format!("{block}.q_norm.weight"), q)?, change(&format!("{block}.k_norm.weight"), k)?))
            }
            None => None,
        };
        Ok(Self { attention_in, attention_out, mlp_in, mlp_out, qk })
    }
}

/// What a block's maps read and write, each `[batch, pos, width]`.
#[derive(Debug, Clone)]
pub struct BlockParts {
    /// Input of q, k and v: the stream, normed where the family does that.
    pub attention_in: Tensor,
    /// Input of o: the heads' outputs.
    pub z: Tensor,
    /// What attention adds to the stream.
    pub attention: Tensor,
    /// Input of gate and up: the stream after attention, likewise.
    pub mlp_in: Tensor,
    /// Input of down.
    pub active: Tensor,
    /// What the feed-forward part adds to the stream.
    pub mlp: Tensor,
}

/// What a block needs besides its weights and input.
pub(super) struct Context<'a> {
    pub blueprint: &'a Blueprint,
    pub ropes: &'a [RopeTable],
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

    /// The same block with every tensor that is in memory replaced by `change(tensor)`.
    pub(super) fn with_tensors(&self, change: &mut impl FnMut(&Tensor) -> Tensor) -> Result<Self> {
        let maps = self.maps.each_ref().map(|map| map.with_tensors(change));
        Ok(Self { maps, norms: self.norms.mapped("", &mut |_, tensor| Ok(change(tensor)))? })
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
        let Context { blueprint, ropes, batch, pads, past } = context;
        let Attends { window, rope } = blueprint.attends(layer);
        let x = self.attention_in(h, blueprint)?;
        let positions = RowPositions { pads: pads.clone(), past: *past };
        let turned = |x: Tensor| match rope.and_then(|rope| ropes.get(rope)) {
            Some(rope) => rope.rotate(&x, &positions),
            None => Ok(x),
        };
        let (mut q, mut k) = (self.map(Module::Q).forward(&x)?, self.map(Module::K).forward(&x)?);
        if let Some((q_gain, k_gain)) = &self.norms.qk {
            (q, k) = (normed_heads(&q, q_gain, blueprint.norm_eps)?, normed_heads(&k, k_gain, blueprint.norm_eps)?);
        }
        let (q, k) = (turned(q)?, turned(k)?);
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
            scale: blueprint.attention_scale.map_or((blueprint.head_dim as f32).powf(-0.5), |scale| scale as f32),
            cap: blueprint.attention_cap.map(|cap| cap as f32),
            window,
        };
        let z = hooks.visit(Site::new(layer, Point::Z), attend(&q, &k, &v, &shape)?, batch)?;
        let out = added(self.map(Module::O).forward(&z)?, self.norms.attention_out.as_ref(), blueprint)?;
        hooks.visit(Site::new(layer, Point::AttnOut), out, batch)
    }

    /// What the feed-forward part adds to the stream, from `x` `[batch, pos, d_model]`; with the hook at `hook_mlp_out`.
    pub(super) fn feed_forward(
        &self,
        layer: usize,
        x: &Tensor,
        context: &Context<'_>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let (blueprint, read) = (context.blueprint, self.mlp_in(x, context.blueprint)?);
        let maps = [Module::Gate, Module::Up, Module::Down].map(|module| self.map(module));
        let out = match feed_forward(blueprint.activation, maps, &read)? {
            Some(out) => added(out, self.norms.mlp_out.as_ref(), blueprint)?,
            None => self.add_mlp(&self.active(&read, blueprint)?, blueprint)?,
        };
        hooks.visit(Site::new(layer, Point::MlpOut), out, context.batch)
    }

    fn attention_in(&self, h: &Tensor, blueprint: &Blueprint) -> Result<Tensor> {
        self.norms.attention_in.as_ref().map_or_else(|| Ok(h.clone()), |norm| norm.forward(h, blueprint.norm_eps))
    }

    fn mlp_in(&self, x: &Tensor, blueprint: &Blueprint) -> Result<Tensor> {
        self.norms.mlp_in.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x, blueprint.norm_eps))
    }

    fn active(&self, read: &Tensor, blueprint: &Blueprint) -> Result<Tensor> {
        gated(blueprint.activation, &self.map(Module::Gate).forward(read)?, &self.map(Module::Up).forward(read)?)
    }

    fn add_mlp(&self, active: &Tensor, blueprint: &Blueprint) -> Result<Tensor> {
        added(self.map(Module::Down).forward(active)?, self.norms.mlp_out.as_ref(), blueprint)
    }

    /// What every map of the block reads and what the two parts write, from `h` `[batch, pos, d_model]`.
    pub(super) fn parts(&self, layer: usize, h: &Tensor, context: &Context<'_>) -> Result<BlockParts> {
        let site = Site::new(layer, Point::Z);
        let mut hooks = Hooks::none().and_record([site]);
        let attention = self.attention(layer, h, context, &mut hooks, None)?;
        let z = hooks.take(site).ok_or_else(|| Error::input(site, "expected a recording, got none"))?;
        let blueprint = context.blueprint;
        let mlp_in = self.mlp_in(&(h + &attention)?, blueprint)?;
        let active = self.active(&mlp_in, blueprint)?;
        let mlp = self.add_mlp(&active, blueprint)?;
        Ok(BlockParts { attention_in: self.attention_in(h, blueprint)?, z, attention, mlp_in, active, mlp })
    }

    /// The block's output, `[batch, pos, d_model]`, from its input; with all hooks but those at the two.
    pub(super) fn body(
        &self,
        layer: usize,
        h: &Tensor,
        context: &Context<'_>,
        hooks: &mut Hooks<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let attention = self.attention(layer, h, context, hooks, cache)?;
        let mid = hooks.visit(Site::new(layer, Point::ResidMid), (h + attention)?, context.batch)?;
        let mlp = self.feed_forward(layer, &mid, context, hooks)?;
        Ok((mid + mlp)?)
    }
}

/// What a part's last map gives, as it is added to the stream: normed and scaled where the family does that.
fn added(out: Tensor, norm: Option<&Norm>, blueprint: &Blueprint) -> Result<Tensor> {
    let out = match norm {
        Some(norm) => norm.forward(&out, blueprint.norm_eps)?,
        None => out,
    };
    Ok(if blueprint.residual_scale == 1.0 { out } else { (out * blueprint.residual_scale)? })
}

/// RMS norms of stretches of the gain's length: one head or all of them.
fn normed_heads(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, cols, width) = x.dims3()?;
    let length = gain.dims1()?;
    Ok(rms_norm(&x.reshape((batch, cols, width / length, length))?, gain, eps)?.reshape((batch, cols, width))?)
}
