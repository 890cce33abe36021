//! The block-local problem: compute on an edited input what the original computes on the clean one.

use candle_core::{D, Tensor};

use super::anchor::batch_of;
use super::cache::{Cache, Kept};
use super::{DefenceData, Dialogue};
use crate::intervention::{Placed, Positions};
use crate::math::seed::Stream;
use crate::model::loss::squared_distance;
use crate::model::{Decoder, Hooks, Intervention as _, Point, Site, TokenBatch};
use crate::{Error, Result};

/// Added to a target's squared norm, relative to the mean over tokens, so that tiny targets do not dominate.
const RELATIVE_FLOOR: f64 = 1e-2;

/// The training problem of one block: cached clean inputs and original targets of hazards and anchors.
pub(super) struct Neutralisation {
    /// The model that targets come from.
    pub original: Decoder,
    pub layer: usize,
    pub hazards: Vec<Cached>,
    pub anchors: Vec<Cached>,
    /// Where the batches lie, and room for what a trainer comes back to.
    pub cache: Cache,
}

/// One batch of the problem as it is kept.
pub(super) struct Cached {
    pub batch: TokenBatch,
    input: Kept,
    attention: (Kept, Tensor),
    mlp: (Kept, Tensor),
}

/// One batch of block inputs `[batch, pos, d_model]` with the original block's outputs and per-token weights.
pub(super) struct Taken {
    pub batch: TokenBatch,
    pub input: Tensor,
    attention: Target,
    mlp: Target,
}

impl Cached {
    /// The block's input alone, `[batch, pos, d_model]`.
    pub fn input(&self) -> Result<Tensor> {
        self.input.take()
    }

    /// The batch with its targets.
    pub fn take(&self) -> Result<Taken> {
        let target = |(value, weight): &(Kept, Tensor)| -> Result<Target> {
            Ok(Target { value: value.take()?, weight: weight.clone() })
        };
        Ok(Taken {
            batch: self.batch.clone(),
            input: self.input.take()?,
            attention: target(&self.attention)?,
            mlp: target(&self.mlp)?,
        })
    }
}

/// A target with weights `mask / (‖target‖² + ε) / tokens`, `[tokens, 1]`.
pub(super) struct Target {
    pub value: Tensor,
    pub weight: Tensor,
}

impl Target {
    pub fn new(value: Tensor, mask: &Tensor) -> Result<Self> {
        let width = value.dim(D::Minus1)?;
        let value = value.detach().reshape(((), width))?;
        let squares = value.sqr()?.sum_keepdim(1)?;
        let tokens = f64::from(mask.sum_all()?.to_scalar::<f32>()?).max(1.0);
        let mean = f64::from((&squares * mask)?.sum_all()?.to_scalar::<f32>()?) / tokens;
        let weight = (mask / (squares + RELATIVE_FLOOR * mean)?)?;
        Ok(Self { value, weight: (weight / tokens)? })
    }

    /// Mean over real tokens of the squared error relative to the target's squared norm.
    fn error(&self, output: &Tensor) -> Result<Tensor> {
        let output = output.reshape(self.value.shape())?;
        squared_distance(&output, &self.value, &self.weight)
    }
}

impl Neutralisation {
    /// Caches the inputs of block `layer` of `original`; `sizes`: dialogues per batch, hazards and anchors in all.
    pub fn new(
        layer: usize,
        original: &Decoder,
        data: &DefenceData,
        sizes: (usize, usize, usize),
        cache: Cache,
        stream: &mut Stream,
    ) -> Result<Self> {
        let (batch, hazards, anchors) = sizes;
        let read = |dialogues: &[Dialogue], count: usize, stream: &mut Stream| -> Result<Vec<Cached>> {
            let mut rows = stream.sample(dialogues.len(), count);
            rows.sort_by_key(|row| dialogues[*row].prompt.len() + dialogues[*row].answer.len());
            let batches = rows.chunks(batch.max(1)).map(|rows| batch_of(dialogues, rows, data.pad));
            batches.map(|batch| cached(original, layer, batch, &cache)).collect()
        };
        let hazards = read(&data.hazards, hazards, stream)?;
        let anchors = read(&data.anchors, anchors, stream)?;
        if hazards.is_empty() {
            return Err(Error::input("defence data", "expected hazardous prompts, got none"));
        }
        Ok(Self { original: original.clone(), layer, hazards, anchors, cache })
    }

    /// `error(a) + error(m)` of `decoder`'s block on an input, against the original's clean outputs.
    pub fn error(&self, decoder: &Decoder, taken: &Taken, input: &Tensor) -> Result<Tensor> {
        let (attention, mlp) = decoder.block_outputs(self.layer, input, &taken.batch)?;
        Ok((taken.attention.error(&attention)? + taken.mlp.error(&mlp)?)?)
    }

    /// The block's input under `edit`, of its own input or, in the original, of that of blocks before it.
    pub fn edited(&self, edit: &Placed, input: &Tensor, batch: &TokenBatch) -> Result<Tensor> {
        let own = Site::new(self.layer, Point::ResidPre);
        if edit.acts_at(own) {
            return edit.apply(own, input);
        }
        if !(0..self.layer).any(|layer| edit.acts_at(Site::new(layer, Point::ResidPre))) {
            return Err(Error::input(own, "expected an edit of this block's input or of one before it, got another"));
        }
        let (original, mut hooks) = (&self.original, Hooks::edit(edit, Positions::All));
        Ok(original.run(0..self.layer, &original.embed(batch)?, batch, &mut hooks, None)?.detach())
    }

    /// Mean relative error of the block's outputs on hazards under `edit`: 0 is complete neutralisation.
    pub fn infection(&self, decoder: &Decoder, edit: &Placed) -> Result<f64> {
        let mut total = 0.0;
        for cached in &self.hazards {
            let taken = cached.take()?;
            total += f64::from(
                self.error(decoder, &taken, &self.edited(edit, &taken.input, &taken.batch)?)?.to_scalar::<f32>()?,
            );
        }
        Ok(total / self.hazards.len() as f64)
    }
}

fn cached(original: &Decoder, layer: usize, batch: TokenBatch, cache: &Cache) -> Result<Cached> {
    let input = original.run(0..layer, &original.embed(&batch)?, &batch, &mut Hooks::none(), None)?.detach();
    let (attention, mlp) = original.block_outputs(layer, &input, &batch)?;
    let mask = batch.token_mask(1, original.device())?;
    let target = |output: Tensor| -> Result<(Kept, Tensor)> {
        let Target { value, weight } = Target::new(output, &mask)?;
        Ok((cache.keep(&value)?, weight))
    };
    Ok(Cached { attention: target(attention)?, mlp: target(mlp)?, input: cache.keep(&input)?, batch })
}
