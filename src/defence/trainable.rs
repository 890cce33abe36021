//! Changes of weights as variables: where they sit, how they start, how they leave.
//!
//! A change is a pair of factors beside the frozen weight, of low rank or full, or the weight itself is trained.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor, Var};
use ndarray::Array2;

use crate::adapter::{Adapter, AdapterSet};
use crate::math::seed::Stream;
use crate::model::linear::{Linear, LowRank};
use crate::model::optimiser::host_values;
use crate::model::{Decoder, Module, WeightLocation};
use crate::{Error, Result};

/// One map under training.
#[derive(Debug, Clone)]
struct Slot {
    layer: usize,
    module: Module,
    location: WeightLocation,
    change: Change,
}

/// What of a map is trained.
#[derive(Debug, Clone)]
enum Change {
    /// Factors `A` `[r, d_in]` and `B` `[d_out, r]` beside the frozen weight.
    Factors { a: Var, b: Var },
    /// The weight `[d_out, d_in]`, and what it was.
    Whole { weight: Var, was: Tensor },
}

impl Change {
    /// `A` uniform in `±1/√d_in`, `B` zero.
    fn factors(decoder: &Decoder, module: Module, rank: usize, stream: &mut Stream) -> Result<Self> {
        let [d_out, d_in] = decoder.blueprint().weight_shape(module);
        // More than the full rank of the map would only repeat itself.
        let full = d_out.min(d_in);
        let rank = if rank == 0 { full } else { rank.min(full) };
        let a = stream.uniform(rank * d_in, (d_in as f64).powf(-0.5));
        let a = Var::from_tensor(&Tensor::from_vec(a, (rank, d_in), decoder.device())?)?;
        let b = Var::zeros((d_out, rank), DType::F32, decoder.device())?;
        Ok(Self::Factors { a, b })
    }

    fn whole(map: &Linear) -> Result<Self> {
        let was = map.weight().tensor()?.detach().to_dtype(DType::F32)?;
        Ok(Self::Whole { weight: Var::from_tensor(&was)?, was })
    }

    fn vars(&self) -> Vec<Var> {
        match self {
            Self::Factors { a, b } => vec![a.clone(), b.clone()],
            Self::Whole { weight, .. } => vec![weight.clone()],
        }
    }

    fn attach(&self, map: &Linear, scale: f64) -> Result<Linear> {
        match self {
            Self::Factors { a, b } => {
                map.with_adapter(LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale })
            }
            Self::Whole { weight, .. } => Ok(map.with_weight(weight.as_tensor().clone())),
        }
    }

    fn on_host(&self) -> Result<Adapter> {
        match self {
            Self::Factors { a, b } => {
                LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.0 }.on_host()
            }
            Self::Whole { .. } => whole(self.delta()?),
        }
    }

    /// The change of the weight, `[d_out, d_in]`.
    fn delta(&self) -> Result<Array2<f32>> {
        match self {
            Self::Factors { .. } => Ok(self.on_host()?.delta()),
            Self::Whole { weight, was } => {
                let values = host_values(&(weight.as_tensor().detach() - was)?)?;
                Array2::from_shape_vec(was.dims2()?, values)
                    .map_err(|error| Error::input("weight under training", error.to_string()))
            }
        }
    }
}

/// A change as it is: the smaller identity is its other factor.
fn whole(delta: Array2<f32>) -> Result<Adapter> {
    let (d_out, d_in) = delta.dim();
    let (a, b) = if d_out < d_in { (delta, Array2::eye(d_out)) } else { (Array2::eye(d_in), delta) };
    Adapter::new(a, b, 1.0)
}

/// Changes of all seven maps of some blocks, f32 whatever the checkpoint stores.
///
/// Zero steps of training change nothing: of the factors `A` starts uniform in `±1/√d_in` and `B` at zero; the scale is 1 in
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
        Self::of(decoder, layers, |_, module| Change::factors(decoder, module, rank, stream))
    }

    /// The weights of `layers` of `decoder` themselves.
    ///
    /// # Errors
    /// When a layer does not exist, or its weights cannot be read.
    pub fn weights(decoder: &Decoder, layers: &[usize]) -> Result<Self> {
        Self::of(decoder, layers, |layer, module| Change::whole(decoder.block(layer).map(module)))
    }

    fn of(
        decoder: &Decoder,
        layers: &[usize],
        mut change: impl FnMut(usize, Module) -> Result<Change>,
    ) -> Result<Self> {
        let mut slots = Vec::with_capacity(layers.len() * Module::ALL.len());
        for &layer in layers {
            if layer >= decoder.n_layers() {
                return Err(Error::usage(format!("block {layer}: expected one below {}", decoder.n_layers())));
            }
            for module in Module::ALL {
                let location = decoder.blueprint().weight_location(module, layer);
                slots.push(Slot { layer, module, location, change: change(layer, module)? });
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
            let Change::Factors { b, .. } = &slot.change else { continue };
            let (rows, rank) = b.dims2()?;
            let values = stream.uniform(rows * rank, (rank as f64).powf(-0.5));
            b.set(&Tensor::from_vec(values, (rows, rank), decoder.device())?)?;
        }
        Ok(Self { scale, ..trainable })
    }

    /// Rounds all variables to bf16, as parameters kept in that type are: steps below its spacing vanish.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn round_to_bf16(&self) -> Result<()> {
        for var in self.vars() {
            let rounded = var.as_tensor().detach().to_dtype(DType::BF16)?;
            var.set(&rounded.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }

    /// All variables, in a fixed order.
    pub fn vars(&self) -> Vec<Var> {
        self.slots.iter().flat_map(|slot| slot.change.vars()).collect()
    }

    /// `decoder` with these changes; gradients reach the variables.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn attach(&self, decoder: &Decoder) -> Result<Decoder> {
        decoder.map_blocks(|layer, block| {
            let mut adapted = block.clone();
            for slot in self.slots.iter().filter(|slot| slot.layer == layer) {
                let map = slot.change.attach(block.map(slot.module), self.scale)?;
                adapted = adapted.with_map(slot.module, map);
            }
            Ok(adapted)
        })
    }

    /// The changes as plain numbers by tensor name; those of maps that share a tensor are one.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn export(&self) -> Result<AdapterSet> {
        self.exported(self.slots.iter().map(|slot| slot.change.on_host()))
    }

    /// The changes themselves, each `[d_out, d_in]`, in a fixed order.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn deltas(&self) -> Result<Vec<Array2<f32>>> {
        self.slots.iter().map(|slot| slot.change.delta()).collect()
    }

    /// As [`Trainable::export`], of other `deltas` than its own.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn export_instead(&self, deltas: Vec<Array2<f32>>) -> Result<AdapterSet> {
        self.exported(deltas.into_iter().map(whole))
    }

    fn exported(&self, adapters: impl Iterator<Item = Result<Adapter>>) -> Result<AdapterSet> {
        let mut set = AdapterSet::default();
        for (slot, adapter) in self.slots.iter().zip(adapters) {
            let WeightLocation { tensor, rows, of } = &slot.location;
            set.add(tensor, rows.clone(), *of, adapter?)?;
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
