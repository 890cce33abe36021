//! Edits that were fitted on one model, carried to another through a map between the two models' activations.
//!
//! Both models read the same requests, and a map is fitted from the source's activations at one block's input to the
//! target's at the block of the same relative depth, on every token where both cut a request into as many tokens, else on
//! the last one. The first token is left out: its activations dwarf all others and say nothing.
//!
//! *Source*: "Activation space interventions can be transferred between large language models" (2025). A
//! deliberate difference: the way back of an affine map is a ridge regression of its own and no pseudo-inverse, which blows
//! up the directions in which activations hardly vary.

use candle_core::{D, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::AttackData;
use crate::intervention::Edit;
use crate::math::gemm::{View, product};
use crate::math::linalg::Ridge;
use crate::math::rows::orthonormal;
use crate::math::seed::Stream;
use crate::model::optimiser::{AdamSettings, AdamW, host_values, sharded_gradients};
use crate::model::{Decoder, Hooks, Intervention as _, Point, Site, TokenBatch};
use crate::{Error, Result};

/// Every so many prompts one is kept aside to measure a map on.
const HELD_OUT: usize = 5;

/// Ridge of an affine map, in parts of the mean of the Gram matrix's diagonal.
const RIDGE: f64 = 1e-3;

/// Steps, rows a step and peak step size of a ReLU map.
const STEPS: usize = 400;
const BATCH: usize = 128;
const RATE: f64 = 1e-2;

/// What carries activations of one model to those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MapKind {
    /// `M(x − x̄) + ȳ` by ridge regression. Low-rank edits stay what they are.
    #[default]
    Affine,
    /// One hidden layer of rectified units, trained. An edit becomes its mean effect on hazardous requests: a vector.
    Relu,
}

impl MapKind {
    /// Its name in recipes and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Relu => "relu",
        }
    }
}

/// The block of a model of `to` blocks at the relative depth of `layer` in one of `from`.
#[must_use]
pub fn same_depth(layer: usize, from: usize, to: usize) -> usize {
    let depth = layer as f64 / (from.max(2) - 1) as f64;
    (depth * (to.max(1) - 1) as f64).round() as usize
}

/// One of the two models, at one block.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// The requests in its own tokens, in an order that both models share.
    pub data: &'a AttackData,
    /// The block whose input is mapped.
    pub layer: usize,
}

/// A map from a source model's activations to a target's.
#[derive(Debug, Clone)]
pub struct Map {
    form: Form,
    /// The source's activations at the last token of the hazardous requests, `[n, d_source]`.
    hazards: Tensor,
    /// Part of the target's variance that the map explains on requests that it was not fitted on; 1: all of it.
    pub explained: f64,
}

#[derive(Debug, Clone)]
enum Form {
    Affine {
        /// `[d_target, d_source]` and `[d_source, d_target]`, row by row.
        forth: Vec<f32>,
        back: Vec<f32>,
        from: Vec<f32>,
        to: Vec<f32>,
    },
    Relu(Perceptron),
}

/// `s_y(W2·max(W1·(x − x̄)/s_x + b1, 0) + b2) + ȳ`.
#[derive(Debug, Clone)]
struct Perceptron {
    vars: Vec<Var>,
    from: (Tensor, f64),
    to: (Tensor, f64),
}

/// Rows of both models, in one order.
struct Rows {
    source: Tensor,
    target: Tensor,
}

impl Map {
    /// Fits a map on `pairs` requests of each class.
    ///
    /// # Errors
    /// [`Error::Input`] when there are fewer than two requests to fit on and one to measure on, or activations are not finite.
    pub fn fit(kind: MapKind, source: End<'_>, target: End<'_>, pairs: usize, stream: &mut Stream) -> Result<Self> {
        let (ours, theirs) = (inputs(source, pairs)?, inputs(target, pairs)?);
        let [fitted_on, held_out] = parted(&ours, &theirs)?;
        let form = match kind {
            MapKind::Affine => affine(&fitted_on)?,
            MapKind::Relu => Form::Relu(Perceptron::train(&fitted_on, stream)?),
        };
        let count = source.data.pairs.len().min(pairs);
        let last = ours[..count].iter().map(|rows| Ok(rows.narrow(0, rows.dim(0)? - 1, 1)?));
        let hazards = Tensor::cat(&last.collect::<Result<Vec<_>>>()?, 0)?;
        let map = Self { form, hazards, explained: 0.0 };
        Ok(Self { explained: explained(&map.apply(&held_out.source)?, &held_out.target)?, ..map })
    }

    /// Where the map takes rows `[n, d_source]`.
    ///
    /// # Errors
    /// When the width is another.
    pub fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        match &self.form {
            Form::Affine { forth, from, to, .. } => {
                let (device, width) = (rows.device(), from.len());
                let forth = Tensor::from_slice(forth, (to.len(), width), device)?;
                let centred = rows.broadcast_sub(&Tensor::from_slice(from, width, device)?)?;
                Ok(centred.matmul(&forth.t()?)?.broadcast_add(&Tensor::from_slice(to, to.len(), device)?)?)
            }
            Form::Relu(perceptron) => perceptron.apply(rows),
        }
    }

    /// The target's edit that does at the input of its block `layer` what `edit` does in the source; an ablation is one of
    /// all blocks. Exact for an affine map, the mean effect at the hazards' last tokens for another.
    ///
    /// # Errors
    /// [`Error::Input`] for an edit that is not one of a block's input.
    pub fn carry(&self, edit: &Edit, layer: usize) -> Result<Edit> {
        let site = Site::new(layer, Point::ResidPre);
        let ablation = |rows: &[f32], width: usize| {
            let basis = orthonormal(rows, width);
            Edit::Ablate { rank: basis.len() / width, basis, layers: vec![] }
        };
        match (&self.form, edit) {
            (_, Edit::Identity | Edit::Heads { .. } | Edit::Redirect { .. } | Edit::Several { .. }) => {
                Err(Error::input("edit to transfer", "expected one of a single block's input, got another"))
            }
            (Form::Affine { forth, from, to, .. }, Edit::Add { vector, .. }) => {
                let vector = product((1, from.len(), to.len()), View::rows(vector, from.len()), turned(forth, from));
                Ok(Edit::Add { site, vector, keep_norm: false })
            }
            (Form::Affine { forth, from, to, .. }, Edit::Ablate { basis, rank, .. }) => {
                let rows = product((*rank, from.len(), to.len()), View::rows(basis, from.len()), turned(forth, from));
                Ok(ablation(&rows, to.len()))
            }
            (Form::Affine { forth, back, from, to }, Edit::LowRank { rank, w1, w2, .. }) => {
                let down: Vec<f32> = w1.iter().zip(w2).map(|(a, b)| a - b).collect();
                Ok(carried(site, (forth, back), (from, to), w2, &down, &vec![0.0; *rank]))
            }
            (Form::Affine { forth, back, from, to }, Edit::Affine { up, down, bias, .. }) => {
                Ok(carried(site, (forth, back), (from, to), up, down, bias))
            }
            (Form::Relu(_), edit) => {
                let vector = self.mean_effect(edit)?;
                Ok(match edit {
                    Edit::Ablate { .. } => ablation(&vector, vector.len()),
                    _ => Edit::Add { site, vector, keep_norm: false },
                })
            }
        }
    }

    /// Mean of `f(Φ(x)) − f(x)` over the hazards' last tokens.
    fn mean_effect(&self, edit: &Edit) -> Result<Vec<f32>> {
        let site = match edit {
            Edit::LowRank { layer, .. } => Site::new(*layer, Point::ResidPre),
            Edit::Affine { site, .. } | Edit::Add { site, .. } => *site,
            _ => Site::new(0, Point::ResidPre),
        };
        let edited = edit.place(self.hazards.device())?.apply(site, &self.hazards.unsqueeze(0)?)?.squeeze(0)?;
        let effect = (self.apply(&edited)? - self.apply(&self.hazards)?)?;
        host_values(&effect.mean(0)?)
    }
}

/// What takes one model's activations to those of another of the same width: `x ↦ x + change·x + bias`.
#[derive(Debug, Clone)]
pub struct Shift {
    /// `[d_model, d_model]`, row by row.
    pub change: Vec<f32>,
    /// `[d_model]`.
    pub bias: Vec<f32>,
    /// Part of the target's variance that it explains on requests that it was not fitted on; 1: all of it.
    pub explained: f64,
}

/// Fits the affine map between two models of one width that read the same tokens, on `pairs` requests of each class.
///
/// The ridge is on the difference between the two and not on the map, so that activations of which the requests say nothing,
/// the first token's among them, stay where they are.
///
/// # Errors
/// As [`Map::fit`].
pub fn shift(source: End<'_>, target: End<'_>, pairs: usize) -> Result<Shift> {
    let [fitted_on, held_out] = parted(&inputs(source, pairs)?, &inputs(target, pairs)?)?;
    let from = centred(&fitted_on.source)?;
    let by = centred(&(&fitted_on.target - &fitted_on.source)?)?;
    // Two equal models differ by nothing, which varies in no direction.
    let width = from.0.dim(0)?;
    let change = if squares(&by.1)? == 0.0 { vec![0.0; width * width] } else { regression(&from.1, &by.1)? };
    let (x, y) = (host_values(&from.0)?, host_values(&by.0)?);
    let moved = |row: &[f32]| row.iter().zip(&x).map(|(m, x)| f64::from(*m) * f64::from(*x)).sum::<f64>();
    let bias: Vec<f32> =
        y.iter().zip(change.chunks_exact(width)).map(|(y, row)| (f64::from(*y) - moved(row)) as f32).collect();
    let device = held_out.source.device();
    let matrix = Tensor::from_slice(&change, (width, width), device)?;
    let arrived = (&held_out.source + held_out.source.matmul(&matrix.t()?)?)?
        .broadcast_add(&Tensor::from_slice(&bias, width, device)?)?;
    Ok(Shift { change, bias, explained: explained(&arrived, &held_out.target)? })
}

/// Rows of the same places in both models: those to fit on, and those to measure on.
fn parted(ours: &[Tensor], theirs: &[Tensor]) -> Result<[Rows; 2]> {
    let aligned: Vec<(Tensor, Tensor)> = ours.iter().zip(theirs).map(aligned).collect::<Result<_>>()?;
    if aligned.len() < HELD_OUT {
        let problem = format!("expected {HELD_OUT} requests at least to fit a map on, got {}", aligned.len());
        return Err(Error::input("attack data", problem));
    }
    let part = |held: bool| -> Result<Rows> {
        let rows = aligned.iter().enumerate().filter(|(i, _)| (i % HELD_OUT == HELD_OUT - 1) == held);
        let (source, target): (Vec<_>, Vec<_>) = rows.map(|(_, pair)| pair.clone()).unzip();
        Ok(Rows { source: Tensor::cat(&source, 0)?, target: Tensor::cat(&target, 0)? })
    };
    Ok([part(false)?, part(true)?])
}

/// Part of the variance of `target` that `arrived` explains.
fn explained(arrived: &Tensor, target: &Tensor) -> Result<f64> {
    let error = squares(&(arrived - target)?)?;
    let centred = target.broadcast_sub(&target.mean_keepdim(0)?)?;
    Ok(1.0 - error / squares(&centred)?.max(f64::MIN_POSITIVE))
}

/// `M` `[d_target, d_source]`, to be multiplied with rows of the source from the right.
fn turned<'a>(forth: &'a [f32], from: &[f32]) -> View<'a> {
    View::rows(forth, from.len()).t()
}

/// `M·i(M⁺(h − ȳ) + x̄)` for `i(x) = upᵀ(down·x + bias)`.
fn carried(
    site: Site,
    (forth, back): (&[f32], &[f32]),
    (from, to): (&[f32], &[f32]),
    up: &[f32],
    down: &[f32],
    bias: &[f32],
) -> Edit {
    let (rank, d_from, d_to) = (bias.len(), from.len(), to.len());
    let new_up = product((rank, d_from, d_to), View::rows(up, d_from), turned(forth, from));
    let new_down = product((rank, d_from, d_to), View::rows(down, d_from), View::rows(back, d_to));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let constant = |(k, bias): (usize, &f32)| {
        let (old, new) = (&down[k * d_from..(k + 1) * d_from], &new_down[k * d_to..(k + 1) * d_to]);
        (f64::from(*bias) + dot(old, from) - dot(new, to)) as f32
    };
    Edit::Affine { site, rank, up: new_up, bias: bias.iter().enumerate().map(constant).collect(), down: new_down }
}

/// Activations at the block's input by request, hazardous ones first, `[tokens, d]` each.
fn inputs(end: End<'_>, pairs: usize) -> Result<Vec<Tensor>> {
    let hazards = end.data.pairs.iter().take(pairs).map(|pair| &pair.prompt);
    let prompts: Vec<Vec<u32>> = hazards.chain(end.data.harmless.iter().take(pairs)).cloned().collect();
    let mut rows = vec![];
    for chunk in prompts.chunks(32) {
        let batch = TokenBatch::prompts(chunk, end.data.pad);
        let embedded = end.decoder.embed(&batch)?;
        let stream = end.decoder.run(0..end.layer, &embedded, &batch, &mut Hooks::none(), None)?.detach();
        for (row, pad) in batch.pads().iter().enumerate() {
            rows.push(stream.get(row)?.narrow(0, *pad, batch.cols() - pad)?);
        }
    }
    Ok(rows)
}

/// The rows of one request that stand for the same place in both models.
fn aligned((ours, theirs): (&Tensor, &Tensor)) -> Result<(Tensor, Tensor)> {
    let (a, b) = (ours.dim(0)?, theirs.dim(0)?);
    let skip = |n: usize| if a == b { 1.min(n - 1) } else { n - 1 };
    Ok((ours.narrow(0, skip(a), a - skip(a))?.contiguous()?, theirs.narrow(0, skip(b), b - skip(b))?.contiguous()?))
}

fn affine(rows: &Rows) -> Result<Form> {
    let (source, target) = (centred(&rows.source)?, centred(&rows.target)?);
    Ok(Form::Affine {
        forth: regression(&source.1, &target.1)?,
        back: regression(&target.1, &source.1)?,
        from: host_values(&source.0)?,
        to: host_values(&target.0)?,
    })
}

/// Mean `[d]` and what is left `[n, d]`.
fn centred(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = rows.mean_keepdim(0)?;
    Ok((mean.squeeze(0)?, rows.broadcast_sub(&mean)?))
}

/// `[d_out, d_in]` of the ridge regression of `to` on `from`.
fn regression(from: &Tensor, to: &Tensor) -> Result<Vec<f32>> {
    let (d_in, d_out) = (from.dim(1)?, to.dim(1)?);
    let mut ridge = Ridge::new(d_out, d_in);
    ridge.add(&host_values(from)?, &host_values(to)?);
    let factors = ridge
        .solve(0, RIDGE)
        .ok_or_else(|| Error::input("map between activations", "expected finite activations that vary, got others"))?;
    let rank = factors.rank;
    Ok(product((d_out, rank, d_in), View::rows(&factors.b, rank), View::rows(&factors.a, d_in)))
}

impl Perceptron {
    /// Mean squared error on standardised activations, √(d_source·d_target) hidden units, AdamW with a linear decay.
    fn train(rows: &Rows, stream: &mut Stream) -> Result<Self> {
        let (from, to) = (centred(&rows.source)?, centred(&rows.target)?);
        let scale = |rows: &Tensor| -> Result<f64> {
            Ok((squares(rows)? / rows.elem_count() as f64).sqrt().max(f64::MIN_POSITIVE))
        };
        let (s_from, s_to) = (scale(&from.1)?, scale(&to.1)?);
        let (x, y) = ((from.1 / s_from)?, (to.1 / s_to)?);
        let (d_in, d_out) = (x.dim(1)?, y.dim(1)?);
        let hidden = ((d_in * d_out) as f64).sqrt().round() as usize;
        let mut var = |shape: &[usize], bound: f64| -> Result<Var> {
            let values = stream.uniform(shape.iter().product(), bound);
            Ok(Var::from_tensor(&Tensor::from_vec(values, shape, x.device())?)?)
        };
        let bounds = [d_in, hidden].map(|d| (d as f64).powf(-0.5));
        let vars = vec![
            var(&[hidden, d_in], bounds[0])?,
            var(&[hidden], bounds[0])?,
            var(&[d_out, hidden], bounds[1])?,
            var(&[d_out], bounds[1])?,
        ];
        let mut adam = AdamW::new(vars.clone(), AdamSettings::default());
        let count = x.dim(0)?;
        for step in 0..STEPS {
            let chosen: Vec<u32> = stream.sample(count, BATCH.min(count)).into_iter().map(|i| i as u32).collect();
            let index = Tensor::from_slice(&chosen, chosen.len(), x.device())?;
            let (x, y) = (x.index_select(&index, 0)?, y.index_select(&index, 0)?);
            let (gradients, _) = sharded_gradients(&vars, 1, |_| Ok((layers(&vars, &x)? - &y)?.sqr()?.mean_all()?))?;
            adam.step(&gradients, RATE * (1.0 - step as f64 / STEPS as f64))?;
        }
        Ok(Self { vars, from: (from.0, s_from), to: (to.0, s_to) })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let ((from, s_from), (to, s_to)) = (&self.from, &self.to);
        let standard = (rows.broadcast_sub(from)? / *s_from)?;
        Ok((layers(&self.vars, &standard)?.detach() * *s_to)?.broadcast_add(to)?)
    }
}

fn layers(vars: &[Var], x: &Tensor) -> Result<Tensor> {
    let hidden = x.matmul(&vars[0].t()?)?.broadcast_add(&vars[1])?.relu()?;
    Ok(hidden.matmul(&vars[2].t()?)?.broadcast_add(&vars[3])?)
}

fn squares(rows: &Tensor) -> Result<f64> {
    let by_row = rows.detach().sqr()?.sum(D::Minus1)?;
    Ok(host_values(&by_row)?.into_iter().map(f64::from).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{Pair, random_decoder, tiny};
    use crate::model::Blueprint;
    use candle_core::Device;

    fn decoder(seed: u64, d_model: usize) -> Decoder {
        random_decoder(Blueprint { d_model, ..tiny() }, 0.4, Stream::new(seed, "transfer"))
    }

    fn data() -> AttackData {
        let mut stream = Stream::new(1, "prompts");
        let mut prompt = || (0..6).map(|_| 1 + stream.below(39) as u32).collect::<Vec<u32>>();
        let pairs = (0..40).map(|_| Pair { prompt: prompt(), target: vec![1, 2, 3], opening: None }).collect();
        AttackData { pairs, harmless: (0..40).map(|_| prompt()).collect(), twins: vec![], pad: 0 }
    }

    fn effect(edit: &Edit, rows: &Tensor) -> Vec<f32> {
        let site = match edit {
            Edit::LowRank { layer, .. } => Site::new(*layer, Point::ResidPre),
            Edit::Affine { site, .. } | Edit::Add { site, .. } => *site,
            _ => Site::new(1, Point::ResidPre),
        };
        let rows = rows.unsqueeze(0).unwrap();
        host_values(&(edit.place(&Device::Cpu).unwrap().apply(site, &rows).unwrap() - &rows).unwrap()).unwrap()
    }

    /// Largest difference in parts of the largest value.
    fn distance(a: &[f32], b: &[f32]) -> f32 {
        let largest = b.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    #[test]
    fn from_a_model_to_itself_every_edit_arrives_as_it_left() {
        let (model, data, mut stream) = (decoder(1, 16), data(), Stream::new(2, "edits"));
        let end = End { decoder: &model, data: &data, layer: 1 };
        let map = Map::fit(MapKind::Affine, end, end, 40, &mut stream).unwrap();
        assert!(map.explained > 0.999, "{}", map.explained);
        let site = Site::new(1, Point::ResidPre);
        let mut values = |n: usize| stream.gaussian(n, 0.5);
        let rows = Tensor::cat(&inputs(end, 8).unwrap(), 0).unwrap();
        for edit in [
            Edit::LowRank { layer: 1, rank: 2, w1: values(32), w2: values(32) },
            Edit::Affine { site, rank: 2, up: values(32), down: values(32), bias: values(2) },
            Edit::Add { site, vector: values(16), keep_norm: false },
            Edit::Ablate { basis: orthonormal(&values(16), 16), rank: 1, layers: vec![] },
        ] {
            let carried = map.carry(&edit, 1).unwrap();
            let far = distance(&effect(&carried, &rows), &effect(&edit, &rows));
            assert!(far < 0.05, "{edit:?}: {far}");
        }
    }

    #[test]
    fn an_affine_map_between_models_of_other_widths_is_found() {
        // Block 0's input is the embedding, which two models with a linear relation between their tables share.
        let (small, data) = (decoder(3, 12), data());
        let turn = Tensor::from_vec(Stream::new(4, "turn").gaussian(12 * 20, 0.5), (12, 20), &Device::Cpu).unwrap();
        let table = small.embedding().tensor().unwrap().matmul(&turn).unwrap();
        let large = decoder(5, 20).with_embedding(table);
        let end = |decoder| End { decoder, data: &data, layer: 0 };
        let vector = Stream::new(6, "vector").gaussian(12, 0.3);
        let expected = Tensor::from_slice(&vector, (1, 12), &Device::Cpu).unwrap().matmul(&turn).unwrap();
        let expected = host_values(&expected).unwrap();
        for (kind, explained, near) in [(MapKind::Affine, 0.99, 0.999), (MapKind::Relu, 0.9, 0.8)] {
            let map = Map::fit(kind, end(&small), end(&large), 40, &mut Stream::new(7, "map")).unwrap();
            assert!(map.explained > explained, "{kind:?}: {}", map.explained);
            let edit = Edit::Add { site: Site::new(0, Point::ResidPre), vector: vector.clone(), keep_norm: false };
            let Edit::Add { vector, .. } = map.carry(&edit, 0).unwrap() else { panic!("a vector stays one") };
            assert!(cosine(&vector, &expected) > near, "{kind:?}: {}", cosine(&vector, &expected));
        }
    }

    #[test]
    fn a_learned_edit_through_relu_becomes_its_mean_effect() {
        let (model, data) = (decoder(1, 16), data());
        let end = End { decoder: &model, data: &data, layer: 1 };
        let map = Map::fit(MapKind::Relu, end, end, 40, &mut Stream::new(2, "map")).unwrap();
        let mut stream = Stream::new(3, "edit");
        let (up, down) = (stream.gaussian(16, 0.3), stream.gaussian(16, 0.02));
        let edit = Edit::Affine { site: Site::new(1, Point::ResidPre), rank: 1, up, down, bias: vec![1.0] };
        let Edit::Add { vector, .. } = map.carry(&edit, 1).unwrap() else { panic!("a vector") };
        let all = effect(&edit, &map.hazards);
        let mean: Vec<f32> = (0..16).map(|i| all.iter().skip(i).step_by(16).sum::<f32>() / 40.0).collect();
        assert!(cosine(&vector, &mean) > 0.8, "{vector:?} {mean:?}");
        assert!(map.carry(&Edit::Several { edits: vec![] }, 1).is_err());
    }

    #[test]
    fn a_shift_between_two_models_is_found_and_is_nothing_between_equals() {
        // Block 0's input is the embedding: tables that differ by an affine map give activations that do.
        let (base, data) = (decoder(3, 12), data());
        let table = base.embedding().tensor().unwrap();
        let turn = Tensor::from_vec(Stream::new(4, "turn").gaussian(144, 0.3), (12, 12), &Device::Cpu).unwrap();
        let moved = (&table + table.matmul(&turn).unwrap()).unwrap();
        let tuned = decoder(3, 12).with_embedding((moved + 0.1).unwrap());
        let end = |decoder| End { decoder, data: &data, layer: 0 };
        let shift = super::shift(end(&base), end(&tuned), 40).unwrap();
        assert!(shift.explained > 0.99, "{}", shift.explained);
        let expected = turn.t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let off = shift.change.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 0.1, "{off}");
        let none = super::shift(end(&base), end(&base), 40).unwrap();
        assert!(none.change.iter().chain(&none.bias).all(|v| *v == 0.0) && none.explained == 1.0);
    }

    #[test]
    fn depths_meet_at_both_ends() {
        let of = |layers: [usize; 3]| layers.map(|layer| same_depth(layer, 6, 30));
        assert_eq!(of([0, 2, 5]), [0, 12, 29]);
        assert_eq!((same_depth(3, 4, 1), same_depth(0, 1, 4), same_depth(2, 5, 5)), (0, 0, 2));
    }
}
