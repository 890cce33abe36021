//! The block-local problem: compute on an edited input what the original computes on the clean one.

use candle_core::{D, Tensor};

use super::anchor::batch_of;
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
}

/// One batch of block inputs with the original block's outputs and per-token weights.
pub(super) struct Cached {
    pub batch: TokenBatch,
    pub input: Tensor,
    pub attention: Target,
    pub mlp: Target,
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
        stream: &mut Stream,
    ) -> Result<Self> {
        let (batch, hazards, anchors) = sizes;
        let cache = |dialogues: &[Dialogue], count: usize, stream: &mut Stream| -> Result<Vec<Cached>> {
            let mut rows = stream.sample(dialogues.len(), count);
            rows.sort_by_key(|row| dialogues[*row].prompt.len() + dialogues[*row].answer.len());
            rows.chunks(batch.max(1)).map(|rows| cached(original, layer, batch_of(dialogues, rows, data.pad))).collect()
        };
        let hazards = cache(&data.hazards, hazards, stream)?;
        let anchors = cache(&data.anchors, anchors, stream)?;
        if hazards.is_empty() {
            return Err(Error::input("defence data", "expected hazardous prompts, got none"));
        }
        Ok(Self { original: original.clone(), layer, hazards, anchors })
    }

    /// `error(a) + error(m)` of `decoder`'s block on an input, against the original's clean outputs.
    pub fn error(&self, decoder: &Decoder, cached: &Cached, input: &Tensor) -> Result<Tensor> {
        let (attention, mlp) = decoder.block_outputs(self.layer, input, &cached.batch)?;
        Ok((cached.attention.error(&attention)? + cached.mlp.error(&mlp)?)?)
    }

    /// The block's input under `edit`, of its own input or, in the original, of that of blocks before it.
    pub fn edited(&self, edit: &Placed, cached: &Cached) -> Result<Tensor> {
        let own = Site::new(self.layer, Point::ResidPre);
        if edit.acts_at(own) {
            return edit.apply(own, &cached.input);
        }
        if !(0..self.layer).any(|layer| edit.acts_at(Site::new(layer, Point::ResidPre))) {
            return Err(Error::input(own, "expected an edit of this block's input or of one before it, got another"));
        }
        let (original, batch) = (&self.original, &cached.batch);
        let mut hooks = Hooks::edit(edit, Positions::All);
        Ok(original.run(0..self.layer, &original.embed(batch)?, batch, &mut hooks, None)?.detach())
    }

    /// Mean relative error of the block's outputs on hazards under `edit`: 0 is complete neutralisation.
    pub fn infection(&self, decoder: &Decoder, edit: &Placed) -> Result<f64> {
        let mut total = 0.0;
        for cached in &self.hazards {
            total += f64::from(self.error(decoder, cached, &self.edited(edit, cached)?)?.to_scalar::<f32>()?);
        }
        Ok(total / self.hazards.len() as f64)
    }
}

fn cached(original: &Decoder, layer: usize, batch: TokenBatch) -> Result<Cached> {
    let input = original.run(0..layer, &original.embed(&batch)?, &batch, &mut Hooks::none(), None)?.detach();
    let (attention, mlp) = original.block_outputs(layer, &input, &batch)?;
    let mask = batch.token_mask(1, original.device())?;
    Ok(Cached { attention: Target::new(attention, &mask)?, mlp: Target::new(mlp, &mask)?, batch, input })
}
