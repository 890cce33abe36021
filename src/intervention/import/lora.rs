//! A LoRA of PEFT: low-rank terms that are merged into weights in memory.

use std::path::Path;

use super::{Op, Terms};
use crate::Result;
use crate::adapter::{Adapter, AdapterSet, peft};

pub(super) fn load(path: &Path, terms: &Terms) -> Result<AdapterSet> {
    terms.op(path, Some(Op::Add), &[Op::Add])?;
    terms.without_layers(path)?;
    let scale = terms.scale.unwrap_or(1.0) as f32;
    peft::load(path)?
        .iter()
        .map(|(name, adapter)| {
            let Adapter { a, b, scale: own } = adapter.clone();
            Ok((name.clone(), Adapter::new(a, b, own * scale)?))
        })
        .collect()
}
