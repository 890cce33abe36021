//! A direction projected out of the weights instead of the activations: what circulates as "abliterated" models.
//!
//! `W ← W − w·r̂r̂ᵀW` for the maps that write into the residual stream (o and down, their biases too) and `E ← E(I − w·r̂r̂ᵀ)`
//! for the embedding. With `w = 1` everywhere the model computes what `ablation` computes, as far as nothing lies between
//! a map and the stream: families that norm a part's output write the direction again.
//!
//! *Source*: Arditi et al. 2024 (weight orthogonalisation); the weights by block are a [`Kernel`] as in popular tools.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::math::seed::Stream;
use crate::model::linear::{Linear, LowRank};
use crate::model::{Decoder, Module};
use crate::{Error, Result};

/// Coordinates of a [`Setting`].
const COORDINATES: usize = 10;

/// Width of a step away from a good setting, in parts of a coordinate's range.
const STEP: f64 = 0.15;

/// How much of a direction is projected out at which block: most at one place, less the farther away.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Weight at the peak; above 1 the component is turned round.
    pub peak: f64,
    /// Where the peak is, from 0 (the first block) to 1 (the last).
    pub position: f64,
    /// Distance at which the floor is reached, in the same unit.
    pub width: f64,
    /// Weight there and beyond.
    pub floor: f64,
}

impl Kernel {
    /// Weight 1 at every block.
    pub const EVERYWHERE: Self = Self { peak: 1.0, position: 0.0, width: 1.0, floor: 1.0 };

    /// The weight at a block of `n_layers`.
    #[must_use]
    pub fn weight(&self, layer: usize, n_layers: usize) -> f64 {
        let at = layer as f64 / (n_layers.max(2) - 1) as f64;
        let distance = (at - self.position).abs();
        if distance < self.width {
            self.peak + (self.floor - self.peak) * distance / self.width
        } else if distance == 0.0 {
            self.peak
        } else {
            self.floor
        }
    }
}

/// A direction and how much of it leaves which weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Abliteration {
    /// Unit direction, `[d_model]`.
    pub direction: Vec<f32>,
    /// Unit direction along which its part is taken away; absent: itself. A random one makes a control that moves the stream as far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub along: Option<Vec<f32>>,
    /// Part that leaves the embedding.
    pub embedding: f64,
    /// Parts that leave the attention outputs.
    pub attention: Kernel,
    /// Parts that leave the feed-forward outputs.
    pub mlp: Kernel,
}

impl Abliteration {
    /// All of the direction leaves all weights.
    #[must_use]
    pub fn whole(direction: Vec<f32>) -> Self {
        Self { direction, along: None, embedding: 1.0, attention: Kernel::EVERYWHERE, mlp: Kernel::EVERYWHERE }
    }

    /// As much, taken away along a random direction.
    #[must_use]
    pub fn randomised(&self, stream: &mut Stream) -> Self {
        Self { along: Some(unit(stream.gaussian(self.direction.len(), 1.0))), ..self.clone() }
    }

    /// `decoder` with changed weights, in memory and frozen.
    ///
    /// # Errors
    /// [`Error::Input`] when the direction is not as wide as the residual stream.
    pub fn apply(&self, decoder: &Decoder) -> Result<Decoder> {
        let (d, n_layers) = (decoder.blueprint().d_model, decoder.n_layers());
        if self.direction.len() != d {
            let problem = format!("expected width {d}, got {}", self.direction.len());
            return Err(Error::input("direction to project out of the weights", problem));
        }
        let row = |values: &[f32]| Tensor::from_slice(values, (1, d), decoder.device());
        let along = row(self.along.as_ref().unwrap_or(&self.direction))?;
        let taken = Taken { row: row(&self.direction)?, along };
        let embedded = if self.embedding == 0.0 {
            decoder.clone()
        } else {
            let table = decoder.embedding().tensor()?;
            decoder.with_embedding(taken.strip_rows(&table, self.embedding)?)
        };
        embedded.map_blocks(|layer, block| {
            let mut changed = block.clone();
            for (module, kernel) in [(Module::O, &self.attention), (Module::Down, &self.mlp)] {
                let weight = kernel.weight(layer, n_layers);
                changed = changed.with_map(module, taken.strip_map(block.map(module), weight)?);
            }
            Ok(changed)
        })
    }
}

/// What is taken from what is written to the stream: the part along `row`, in the direction `along`; `[1, d_model]` each.
struct Taken {
    row: Tensor,
    along: Tensor,
}

impl Taken {
    /// `map` whose outputs lack `weight` of it.
    fn strip_map(&self, map: &Linear, weight: f64) -> Result<Linear> {
        let a = self.row.matmul(&map.weight().tensor()?.detach().to_dtype(DType::F32)?)?;
        // As a change of rank one, which weights left in their files take too.
        let change = LowRank { a, b: self.along.t()?.contiguous()?, scale: -weight };
        let merged = map.with_adapter(change)?.merged()?;
        Ok(match map.bias() {
            None => merged,
            Some(bias) => {
                let bias = self.strip_rows(&bias.reshape((1, ()))?, weight)?.flatten_all()?;
                Linear::new(merged.weight().clone(), Some(bias))
            }
        })
    }

    /// `rows` `[n, d_model]` that lack `weight` of it.
    fn strip_rows(&self, rows: &Tensor, weight: f64) -> Result<Tensor> {
        let wide = rows.detach().to_dtype(DType::F32)?;
        let part = (wide.matmul(&self.row.t()?)? * weight)?;
        Ok((wide - part.matmul(&self.along)?)?.to_dtype(rows.dtype())?)
    }
}

/// A point of the space that a search of kernels goes through: the unit cube.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting([f64; COORDINATES]);

impl Setting {
    /// Any setting.
    pub fn random(stream: &mut Stream) -> Self {
        Self(std::array::from_fn(|_| stream.unit()))
    }

    /// One close by.
    #[must_use]
    pub fn near(&self, stream: &mut Stream) -> Self {
        Self(self.0.map(|v| (v + STEP * stream.normal()).clamp(0.0, 1.0)))
    }

    /// What it stands for, given the directions of successive blocks; the one that is used may lie between two of them.
    #[must_use]
    pub fn abliteration(&self, directions: &[Vec<f32>]) -> Abliteration {
        let [place, embedding, attention @ .., a, b, c, d] = self.0;
        Abliteration {
            direction: between(directions, place),
            along: None,
            embedding,
            attention: kernel(attention),
            mlp: kernel([a, b, c, d]),
        }
    }
}

/// Peaks from a half to one and a half; no floor above its peak.
fn kernel([peak, position, width, floor]: [f64; 4]) -> Kernel {
    let peak = 0.5 + peak;
    Kernel { peak, position, width, floor: floor * peak }
}

/// The unit direction at `place`, from 0 (the first) to 1 (the last).
fn between(directions: &[Vec<f32>], place: f64) -> Vec<f32> {
    let at = place * directions.len().saturating_sub(1) as f64;
    let (below, part) = (at.floor() as usize, at.fract() as f32);
    match (directions.get(below), directions.get(below + 1)) {
        (Some(a), Some(b)) => unit(a.iter().zip(b).map(|(a, b)| a + part * (b - a)).collect()),
        (Some(a), None) => a.clone(),
        _ => vec![],
    }
}

fn unit(values: Vec<f32>) -> Vec<f32> {
    let length = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    values.into_iter().map(|v| (f64::from(v) / length) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::random_decoder;
    use crate::intervention::{Edit, Positions};
    use crate::model::{Blueprint, Hooks, TokenBatch};
    use candle_core::Device;

    /// Three blocks with biases on every map, and an unembedding of its own.
    fn decoder() -> Decoder {
        let blueprint = Blueprint {
            family: "llama",
            vocab: 24,
            d_model: 16,
            n_layers: 3,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 8,
            d_ff: 20,
            norm_eps: 1e-5,
            max_positions: 32,
            o_bias: true,
            mlp_bias: true,
            ..Blueprint::default()
        };
        random_decoder(blueprint, 0.3, Stream::new(3, "abliteration"))
    }

    fn logits(decoder: &Decoder, edit: Option<&Edit>) -> Vec<f32> {
        let batch = TokenBatch::prompts(&[vec![3, 7, 1, 20, 11], vec![5, 2]], 0);
        let placed = edit.map(|edit| edit.place(&Device::Cpu).unwrap());
        let mut hooks = placed.as_ref().map_or_else(Hooks::none, |edit| Hooks::edit(edit, Positions::All));
        let logits = decoder.forward(&batch, &mut hooks, None).unwrap();
        logits.narrow(1, batch.cols() - 1, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn distance(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn weights_without_a_direction_compute_what_its_ablation_computes() {
        let decoder = decoder();
        let direction = unit(Stream::new(4, "direction").gaussian(16, 1.0));
        let edit = Edit::Ablate { basis: direction.clone(), rank: 1, layers: vec![] };
        let abliterated = Abliteration::whole(direction).apply(&decoder).unwrap();
        let (in_weights, in_stream) = (logits(&abliterated, None), logits(&decoder, Some(&edit)));
        assert!(distance(&in_weights, &in_stream) < 1e-4, "{}", distance(&in_weights, &in_stream));
        assert!(distance(&in_weights, &logits(&decoder, None)) > 0.01, "nothing was changed");
        assert!(distance(&in_weights, &logits(&abliterated, Some(&edit))) < 1e-4, "nothing is left to ablate");
    }

    #[test]
    fn its_control_moves_the_stream_as_its_ablations_does() {
        let decoder = decoder();
        let basis = unit(Stream::new(4, "direction").gaussian(16, 1.0));
        let control = Abliteration::whole(basis.clone()).randomised(&mut Stream::new(5, "control"));
        let into = control.along.clone().unwrap();
        let edit = Edit::Redirect { basis, into, rank: 1, layers: vec![], others: vec![] };
        let in_weights = logits(&control.apply(&decoder).unwrap(), None);
        let in_stream = logits(&decoder, Some(&edit));
        assert!(distance(&in_weights, &in_stream) < 1e-4, "{}", distance(&in_weights, &in_stream));
        assert!(distance(&in_weights, &logits(&decoder, None)) > 0.01, "nothing was changed");
    }

    #[test]
    fn a_kernel_of_zeros_changes_nothing_and_a_narrow_one_a_single_block() {
        let decoder = decoder();
        let direction = unit(vec![1.0; 16]);
        let none = Kernel { peak: 0.0, position: 0.5, width: 1.0, floor: 0.0 };
        let nothing = Abliteration { direction, along: None, embedding: 0.0, attention: none, mlp: none };
        assert_eq!(logits(&nothing.apply(&decoder).unwrap(), None), logits(&decoder, None));
        let narrow = Abliteration { mlp: Kernel { peak: 1.2, width: 0.1, ..none }, ..nothing };
        let (before, after) = (decoder.weights().unwrap(), narrow.apply(&decoder).unwrap().weights().unwrap());
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let changed: Vec<&String> = before.keys().filter(|n| values(&before[*n]) != values(&after[*n])).collect();
        assert_eq!(changed, ["model.layers.1.mlp.down_proj.bias", "model.layers.1.mlp.down_proj.weight"]);
    }

    #[test]
    fn a_kernel_falls_from_its_peak_to_its_floor() {
        let kernel = Kernel { peak: 1.2, position: 0.5, width: 0.5, floor: 0.2 };
        let weights: Vec<f64> = (0..5).map(|layer| kernel.weight(layer, 5)).collect();
        for (got, expected) in weights.iter().zip([0.2, 0.7, 1.2, 0.7, 0.2]) {
            assert!((got - expected).abs() < 1e-12, "{weights:?}");
        }
        assert_eq!(Kernel { width: 0.0, ..kernel }.weight(2, 5), 1.2);
        assert!((0..7).all(|layer| Kernel::EVERYWHERE.weight(layer, 7) == 1.0));
        assert_eq!(Kernel::EVERYWHERE.weight(0, 1), 1.0);
    }

    #[test]
    fn settings_stay_within_bounds_and_directions_lie_between_neighbours() {
        let directions = vec![vec![1.0, 0.0], vec![0.0, 1.0]];
        let mut stream = Stream::new(1, "settings");
        for _ in 0..50 {
            let found = Setting::random(&mut stream).near(&mut stream).abliteration(&directions);
            let length = found.direction.iter().map(|v| v * v).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-5 && found.direction.iter().all(|v| *v >= 0.0), "{found:?}");
            for kernel in [found.attention, found.mlp] {
                assert!((0.5..=1.5).contains(&kernel.peak) && kernel.floor <= kernel.peak, "{kernel:?}");
            }
        }
        assert_eq!(between(&directions, 1.0), directions[1]);
        assert_eq!(between(&directions[..1], 0.7), directions[0]);
    }

    #[test]
    fn what_is_stored_is_what_is_replayed() {
        let found = Setting::random(&mut Stream::new(2, "stored")).abliteration(&[unit(vec![0.3, -1.0, 1e-9])]);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::to_string(&serde_json::from_str::<Abliteration>(&text).unwrap()).unwrap(), text);
        let control = found.randomised(&mut Stream::new(2, "control"));
        let part = |of: &Abliteration| (of.direction.clone(), of.attention, of.mlp, of.embedding.to_bits());
        assert_eq!(part(&control), part(&found));
        assert!(control.along.is_some_and(|along| along != found.direction));
    }
}
