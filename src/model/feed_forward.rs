//! The whole feed-forward part, `down(f(gate(x)) ∘ up(x))`, as one operation on the CPU where its maps are frozen.
//!
//! As four operations its three widest values would each get a gradient that candle first fills with zeros and then adds to:
//! a tenth of a training step, for nothing. As one, the gradients of gate and up go from one product into the next.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use super::blueprint::Activation;
use super::kernel::{contiguous, flat, tensor_like, with_values};
use super::linear::{Linear, LowRank, Numbers, mapped};
use super::mlp::{Gate, GeluTanh, Silu, active, active_back};
use super::weight::Weight;
use crate::{Error, Result};

/// `down(f(gate(x)) ∘ up(x))` of maps `[gate, up, down]`, or none where that has to be computed map by map: on an
/// accelerator, with a bias, or with weights that are trained.
///
/// *Shapes*: `x` `[…, d_model]`, as is the result. Differentiable in `x` and in the maps' adapters.
///
/// # Errors
/// When the shapes of the maps disagree.
pub fn feed_forward(activation: Activation, maps: [&Linear; 3], x: &Tensor) -> Result<Option<Tensor>> {
    let [gate, up, down] = maps.map(|map| map.weight().dims2());
    let (gate, up, down) = (gate?, up?, down?);
    if gate != up || down != (gate.1, gate.0) || x.dims().last() != Some(&gate.1) {
        let got = format!("gate {gate:?}, up {up:?}, down {down:?} on {:?}", x.dims());
        return Err(Error::input("feed-forward part", format!("expected maps that fit one another, got {got}")));
    }
    if !x.device().is_cpu() {
        return Ok(None);
    }
    let rows = x.elem_count() / gate.1.max(1);
    let mut at = 0;
    let mut parts = Vec::with_capacity(3);
    let mut factors = Vec::new();
    for map in maps {
        if map.bias().is_some() || !map.is_beside(rows)? {
            return Ok(None);
        }
        let rank = map.adapter().map_or(Ok(0), |adapter| adapter.a.dim(0))?;
        parts.push(Part {
            weight: map.weight().clone(),
            rank,
            scale: map.adapter().map_or(0.0, |a| a.scale as f32),
            at,
        });
        if let Some(LowRank { a, b, .. }) = map.adapter() {
            at += a.elem_count() + b.elem_count();
            factors.extend([a.flatten_all()?, b.flatten_all()?]);
        }
    }
    let Ok(parts) = <[Part; 3]>::try_from(parts) else { return Ok(None) };
    let factors = match factors.as_slice() {
        [] => Tensor::from_vec(Vec::<f32>::new(), 0, x.device())?,
        factors => Tensor::cat(factors, 0)?,
    };
    let x = x.contiguous()?;
    let keep = x.track_op() || factors.track_op();
    Ok(Some(match activation {
        Activation::Silu => x.apply_op2(&factors, FeedForward::<Silu>::new(parts, keep))?,
        Activation::GeluTanh => x.apply_op2(&factors, FeedForward::<GeluTanh>::new(parts, keep))?,
    }))
}

/// One of the maps.
struct Part {
    weight: Weight,
    /// 0 without an adapter.
    rank: usize,
    scale: f32,
    /// Where its `A` lies among the factors; its `B` comes next.
    at: usize,
}

impl Part {
    /// The map's own `A` and `B`.
    fn own<'a>(&self, factors: &'a [f32]) -> candle_core::Result<Option<[&'a [f32]; 2]>> {
        let (d_out, d_in) = self.weight.dims2()?;
        Ok((self.rank > 0).then(|| {
            let (a, rest) = factors[self.at..].split_at(self.rank * d_in);
            [a, &rest[..self.rank * d_out]]
        }))
    }

    fn apply(&self, factors: &[f32], x: &[f32]) -> candle_core::Result<Vec<f32>> {
        mapped(&self.weight, self.own(factors)?, self.scale, x)
    }

    /// The gradient of `x` on top of `onto`, if it is `wanted`; those of the factors go into `into` at their place.
    fn back(
        &self,
        factors: &[f32],
        x: &[f32],
        dy: &[f32],
        (wanted, onto): (bool, Option<Vec<f32>>),
        into: Option<&mut [f32]>,
    ) -> candle_core::Result<Option<Vec<f32>>> {
        let trained = into.is_some();
        let (_, d_in) = self.weight.dims2()?;
        // A weight that is stored is in memory no longer than this.
        let weight = flat(&self.weight.values()?)?;
        let map = Numbers { weight: &weight.values()?, factors: self.own(factors)?, scale: self.scale, d_in };
        let [dx, da, db] = map.back(x, dy, [wanted, trained, trained], onto);
        if let (Some(into), Some(da), Some(db)) = (into, da, db) {
            let (a, rest) = into[self.at..].split_at_mut(da.len());
            a.copy_from_slice(&da);
            rest[..db.len()].copy_from_slice(&db);
        }
        Ok(dx)
    }
}

struct FeedForward<G> {
    parts: [Part; 3],
    /// Whether there will be a backward pass.
    keep: bool,
    /// Outputs of gate and up in the forward pass, `[rows, d_ff]` each.
    saved: OnceLock<[Vec<f32>; 2]>,
    activation: std::marker::PhantomData<G>,
}

impl<G> FeedForward<G> {
    fn new(parts: [Part; 3], keep: bool) -> Self {
        Self { parts, keep, saved: OnceLock::new(), activation: std::marker::PhantomData }
    }
}

impl<G: Gate> CustomOp2 for FeedForward<G> {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, factors) = (contiguous(x, layout)?, contiguous(factors, factors_layout)?);
        let [gate, up, down] = &self.parts;
        let (gates, ups) = (gate.apply(factors, x)?, up.apply(factors, x)?);
        let out = down.apply(factors, &active::<G>(&gates, &ups))?;
        if self.keep {
            let _ = self.saved.set([gates, ups]);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factors: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [gates, ups] = self
            .saved
            .get()
            .ok_or_else(|| candle_core::Error::Msg("expected a forward pass to go back from".into()))?;
        let [gate, up, down] = &self.parts;
        with_values([x, factors, grad], |[xs, numbers, dy]| {
            let mut trained = factors.track_op().then(|| vec![0.0; numbers.len()]);
            let [dgates, dups] = {
                let products = if trained.is_some() { active::<G>(gates, ups) } else { Vec::new() };
                let given: &[f32] = if trained.is_some() { &products } else { gates };
                let dactive = down.back(numbers, given, dy, (true, None), trained.as_deref_mut())?;
                active_back::<G>(gates, ups, &dactive.unwrap_or_default())
            };
            let tracked = x.track_op();
            let dx = gate.back(numbers, xs, &dgates, (tracked, None), trained.as_deref_mut())?;
            let dx = up.back(numbers, xs, &dups, (tracked, dx), trained.as_deref_mut())?;
            let of = |values: Option<Vec<f32>>, like| values.map(|values| tensor_like(values, like)).transpose();
            Ok((of(dx, x)?, of(trained, factors)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mlp::gated;
    use crate::model::optimiser::host_values;
    use candle_core::{Device, Var};

    fn noise(shape: (usize, usize), seed: f32) -> Tensor {
        let count = shape.0 * shape.1;
        Tensor::from_vec((0..count).map(|i| (i as f32 * 0.7 + seed).sin()).collect(), shape, &Device::Cpu).unwrap()
    }

    /// Three maps `6 → 10 → 6`; those `adapted` with adapters of rank 1, 2 and 1, whose factors come along.
    fn maps(adapted: [bool; 3]) -> ([Linear; 3], Vec<Var>) {
        let mut adapted = adapted.into_iter();
        let mut vars = Vec::new();
        let maps = [(10, 6, 1), (10, 6, 2), (6, 10, 1)].map(|(d_out, d_in, rank)| {
            let seed = (d_out * 7 + rank) as f32;
            let map = Linear::new(noise((d_out, d_in), seed), None);
            if adapted.next() != Some(true) {
                return map;
            }
            let [a, b] = [noise((rank, d_in), seed + 0.3), noise((d_out, rank), seed + 0.6)]
                .map(|tensor| Var::from_tensor(&tensor).unwrap());
            vars.extend([a.clone(), b.clone()]);
            map.with_adapter(LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 0.5 }).unwrap()
        });
        (maps, vars)
    }

    /// The result and the gradients of `vars` under a loss that weighs every value differently.
    fn outcome(y: &Tensor, vars: &[&Var]) -> Vec<Vec<f32>> {
        let weights = noise((y.elem_count(), 1), 9.0).reshape(y.shape()).unwrap();
        let store = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = vars.iter().map(|var| host_values(store.get(var).unwrap()).unwrap());
        std::iter::once(host_values(y).unwrap()).chain(gradients).collect()
    }

    #[test]
    fn it_computes_what_its_maps_do_one_by_one() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for adapted in [[false; 3], [true; 3], [false, true, false], [true, false, true]] {
                let ([gate, up, down], vars) = maps(adapted);
                let x = Var::from_tensor(&noise((4, 6), 1.0).reshape((2, 2, 6)).unwrap()).unwrap();
                let wanted: Vec<&Var> = std::iter::once(&x).chain(&vars).collect();
                let fused = feed_forward(activation, [&gate, &up, &down], &x).unwrap().unwrap();
                let active = gated(activation, &gate.forward(&x).unwrap(), &up.forward(&x).unwrap()).unwrap();
                let plain = outcome(&down.forward(&active).unwrap(), &wanted);
                let fused = outcome(&fused, &wanted);
                assert_eq!(fused.len(), wanted.len() + 1);
                for (fused, plain) in fused.iter().zip(&plain) {
                    let near = fused.iter().zip(plain).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs()));
                    assert!(near && fused.len() == plain.len(), "{adapted:?}: {fused:?}, expected {plain:?}");
                }
            }
        }
    }

    #[test]
    fn maps_that_are_trained_or_biased_are_computed_one_by_one() {
        let ([gate, up, down], _) = maps([false; 3]);
        let x = noise((4, 6), 1.0);
        let trained = Var::from_tensor(&noise((10, 6), 2.0)).unwrap();
        let trained = gate.with_weight(trained.as_tensor().clone());
        assert!(feed_forward(Activation::Silu, [&trained, &up, &down], &x).unwrap().is_none());
        let biased = Linear::new(noise((10, 6), 2.0), Some(noise((1, 10), 0.0).flatten_all().unwrap()));
        assert!(feed_forward(Activation::Silu, [&biased, &up, &down], &x).unwrap().is_none());
        assert!(feed_forward(Activation::Silu, [&gate, &up, &down], &x).unwrap().is_some());
        assert!(feed_forward(Activation::Silu, [&gate, &down, &up], &x).is_err());
    }
}
