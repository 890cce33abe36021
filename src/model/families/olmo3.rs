//! OLMo 3: OLMo 2 with a window on three of four blocks, whose rotary embedding stays unscaled.

use super::super::blueprint::{BlockNorms, Blueprint, QkNorm};
use super::{attends, common, rope, window_or};
use crate::Result;
use crate::checkpoint::config::Config;

pub(super) fn blueprint(config: &Config) -> Result<Blueprint> {
    let attends = attends(config, window_or(config, 4096), |layer| !(layer + 1).is_multiple_of(4), 1)?;
    Ok(Blueprint {
        attends,
        ropes: vec![rope::global(config)?, rope::local(config, config.rope.theta)?],
        norms: BlockNorms::AFTER,
        qk_norm: QkNorm::Whole,
        ..common(config)?
    })
}
