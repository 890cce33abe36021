//! One differentiable decoder for many families: what a model computes, and where it can be watched or edited.
//!
//! The operations carry their own backward passes (see `linear`, `attention`, `norm`, `mlp`, `rope`, `loss`); candle's
//! fused ones have none and falsify gradients silently. Every fused form has a plain twin made of candle's differentiable
//! operations, which accelerators run and tests compare with.

mod attach;
pub mod attention;
pub mod batch;
pub mod block;
pub mod blueprint;
pub mod cap;
pub mod chat_template;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod decoder;
pub mod families;
pub mod feed_forward;
pub mod frequencies;
pub mod generate;
pub mod hooks;
mod kernel;
pub mod kv_cache;
pub mod linear;
pub mod loss;
pub mod low_rank;
pub mod mlp;
pub mod norm;
pub mod optimiser;
pub mod prompt;
mod recompute;
pub mod record;
pub mod rope;
pub mod site;
pub mod tokenizer;
pub mod weight;

pub use batch::TokenBatch;
pub use block::BlockParts;
pub use blueprint::{Blueprint, Module, WeightLocation};
pub use decoder::Decoder;
pub use hooks::{Hooks, Intervention};
pub use site::{Point, Site};
