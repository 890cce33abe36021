//! Low-rank adapters as variables: where they sit, how they start, how they leave.

use std::collections::BTreeSet;

use candle_core::{Tensor, Var};

use crate::adapter::AdapterSet;
use crate::math::seed::Stream;
use crate::model::linear::LowRank;
use crate::model::{Decoder, Module, WeightLocation};
use crate::{Error, Result};

/// One adapter under training.
#[derive(Debug, Clone)]
struct Slot {
    layer: usize,
    module: Module,
    location: WeightLocation,
    a: Var,
    b: Var,
}

/// Adapters on all seven maps of some blocks, f32 whatever the checkpoint stores.
///
/// `A` starts uniform in `±1/√d_in` and `B` at zero, so that zero steps of training change nothing; the scale is 1 in
/// training as in the merge.
#[derive(Debug, Clone)]
pub struct Trainable {
    slots: Vec<Slot>,
    scale: f64,
}

impl Trainable {
    /// Fresh adapters of `rank` on `layers` of `decoder`; 0: of the full rank of each map.
    ///
    /// # Errors
    /// When a layer does not exist.
    pub fn fresh(decoder: &Decoder, layers: &[usize], rank: usize, stream: &mut Stream) -> Result<Self> {
        let rank = if rank == 0 { usize::MAX } else { rank };
        let mut slots = Vec::with_capacity(layers.len() * Module::ALL.len());
        for &layer in layers {
            if layer >= decoder.n_layers() {
                return Err(Error::usage(format!("block {layer}: expected one below {}", decoder.n_layers())));
            }
            for module in Module::ALL {
                let [d_out, d_in] = decoder.blueprint().weight_shape(module);
                // More than the full rank of the map would only repeat itself.
                let rank = rank.min(d_out).min(d_in);
                let a = stream.uniform(rank * d_in, (d_in as f64).powf(-0.5));
                let a = Var::from_tensor(&Tensor::from_vec(a, (rank, d_in), decoder.device())?)?;
                let b = Var::zeros((d_out, rank), candle_core::DType::F32, decoder.device())?;
                let location = decoder.blueprint().weight_location(module, layer);
                slots.push(Slot { layer, module, location, a, b });
            }
        }
        Ok(Self { slots, scale: 1.0 })
    }

    /// Adapters as the reference implementation starts them, for comparison only: both factors random, trained at `scale`
    /// but exported at 1.
    ///
    /// # Errors
    /// As [`Trainable::fresh`].
    pub fn without_zero(
        decoder: &Decoder,
        layers: &[usize],
        rank: usize,
        scale: f64,
        stream: &mut Stream,
    ) -> Result<Self> {
        let trainable = Self::fresh(decoder, layers, rank, stream)?;
        for slot in &trainable.slots {
            let (rows, rank) = slot.b.dims2()?;
            let values = stream.uniform(rows * rank, (rank as f64).powf(-0.5));
            slot.b.set(&Tensor::from_vec(values, (rows, rank), decoder.device())?)?;
        }
        Ok(Self { scale, ..trainable })
    }

    /// Rounds all factors to bf16, as parameters kept in that type are: steps below its spacing vanish.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn round_to_bf16(&self) -> Result<()> {
        for var in self.vars() {
            let rounded = var.as_tensor().detach().to_dtype(candle_core::DType::BF16)?;
            var.set(&rounded.to_dtype(candle_core::DType::F32)?)?;
        }
        Ok(())
    }

    /// All factors, in a fixed order.
    pub fn vars(&self) -> Vec<Var> {
        self.slots.iter().flat_map(|slot| [slot.a.clone(), slot.b.clone()]).collect()
    }

    /// `decoder` with these adapters on top; gradients reach the factors.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn attach(&self, decoder: &Decoder) -> Result<Decoder> {
        decoder.map_blocks(|layer, block| {
            let mut adapted = block.clone();
            for slot in self.slots.iter().filter(|slot| slot.layer == layer) {
                let low = LowRank { a: slot.a.as_tensor().clone(), b: slot.b.as_tensor().clone(), scale: self.scale };
                adapted = adapted.with_map(slot.module, block.map(slot.module).with_adapter(low)?);
            }
            Ok(adapted)
        })
    }

    /// The adapters as plain numbers by tensor name; those of maps that share a tensor are one.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn export(&self) -> Result<AdapterSet> {
        let mut set = AdapterSet::default();
        for slot in &self.slots {
            let WeightLocation { tensor, rows, of } = &slot.location;
            let low = LowRank { a: slot.a.as_tensor().clone(), b: slot.b.as_tensor().clone(), scale: 1.0 };
            set.add(tensor, rows.clone(), *of, low.on_host()?)?;
        }
        Ok(set)
    }
}

/// `decoder` with `adapters` merged into its weights, frozen.
///
/// # Errors
/// When an adapter names a tensor that is not a map of a block, or its shape does not fit.
pub fn merge(decoder: &Decoder, adapters: &AdapterSet) -> Result<Decoder> {
    let mut used = BTreeSet::new();
    let merged = decoder.map_blocks(|layer, block| {
        let mut changed = block.clone();
        for module in Module::ALL {
            let WeightLocation { tensor, rows, of } = decoder.blueprint().weight_location(module, layer);
            let Some(adapter) = adapters.get(&tensor) else { continue };
            if adapter.shape().0 != of {
                let problem = format!("expected an adapter of {of} rows, got {:?}", adapter.shape());
                return Err(Error::input(format!("tensor `{tensor}`"), problem));
            }
            used.insert(tensor);
            let map = block.map(module);
            changed = changed.with_map(module, map.with_weight(map.weight().plus(adapter.of_rows(rows))?));
        }
        Ok(changed)
    })?;
    if used.len() != adapters.len() {
        return Err(Error::input(
            "adapters",
            format!("expected maps of blocks only, got {} others", adapters.len() - used.len()),
        ));
    }
    Ok(merged)
}
