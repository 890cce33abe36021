//! AdamW on a list of variables, and gradients summed over shards of a batch.
//!
//! One fused pass per variable on the CPU; state and weights are f32 whatever the checkpoint stores, because steps of
//! 1e-4 vanish in bf16.

use candle_core::{CpuStorage, Storage, Tensor, Var};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::kernel::flat;
use crate::math::snapshot::Snapshot;
use crate::{Error, Result};

/// Gradients in the order of a variable list; `None` where the loss does not depend on the variable.
pub type Gradients = Vec<Option<Tensor>>;

/// Gradients of the sum of `losses(shard)` over all shards with respect to `vars`, and each shard's loss as it lies on its
/// device: to read it (see [`whole_loss`]) waits for an accelerator.
///
/// Shards run in parallel and are added in their order, so the result does not depend on the number of threads.
///
/// # Errors
/// Those of `losses`.
pub fn sharded_gradients(
    vars: &[Var],
    shards: usize,
    losses: impl Fn(usize) -> Result<Tensor> + Sync,
) -> Result<(Gradients, Vec<Tensor>)> {
    let part = |shard: usize| -> Result<(Gradients, Tensor)> {
        let loss = losses(shard)?;
        let store = loss.backward()?;
        let gradients = vars.iter().map(|var| store.get(var).cloned()).collect();
        Ok((gradients, loss.detach()))
    };
    // A single shard stays on this thread, where its products may still use all workers.
    let parts: Vec<(Gradients, Tensor)> =
        if shards == 1 { vec![part(0)?] } else { (0..shards).into_par_iter().map(part).collect::<Result<_>>()? };
    let mut total: Gradients = vec![None; vars.len()];
    let mut values = Vec::with_capacity(shards);
    for (gradients, value) in parts {
        values.push(value);
        total = summed(total, gradients)?;
    }
    Ok((total, values))
}

/// Sum of the shards' losses.
///
/// # Errors
/// When a copy from the device fails.
pub fn whole_loss(losses: &[Tensor]) -> Result<f64> {
    losses.iter().try_fold(0.0, |sum, loss| Ok(sum + f64::from(loss.to_scalar::<f32>()?)))
}

/// Sums of gradients of the same variables.
///
/// # Errors
/// When shapes disagree.
pub fn summed(one: Gradients, other: Gradients) -> Result<Gradients> {
    let sum = |pair| match pair {
        (Some(one), Some(other)) => Ok(Some((one + other)?)),
        (one, other) => Ok(one.or(other)),
    };
    one.into_iter().zip(other).map(sum).collect()
}

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay per step and unit of step size.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; longer ones are scaled down.
    pub clip: Option<f64>,
}

impl Default for AdamSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, clip: None }
    }
}

/// The AdamW optimiser.
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Var>,
    /// First and then second moments of each variable's values, `[2, n]`; none before its first gradient.
    moments: Vec<Option<Tensor>>,
    settings: AdamSettings,
    step: i32,
}

impl AdamW {
    /// Zero moments for `vars`.
    pub fn new(vars: Vec<Var>, settings: AdamSettings) -> Self {
        let moments = vec![None; vars.len()];
        Self { vars, moments, settings, step: 0 }
    }

    /// The variables, in gradient order.
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Keeps variables, moments and step number under `name`.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        into.put(format!("{name}/step"), &self.step)?;
        for (i, (var, moments)) in self.vars.iter().zip(&self.moments).enumerate() {
            into.put_numbers(format!("{name}/{i}"), host_values(var.as_tensor())?);
            if let Some(moments) = moments {
                into.put_numbers(format!("{name}/{i}/m"), host_values(&moments.narrow(0, 0, 1)?)?);
                into.put_numbers(format!("{name}/{i}/v"), host_values(&moments.narrow(0, 1, 1)?)?);
            }
        }
        Ok(())
    }

    /// Goes back to what [`AdamW::save`] kept of an optimiser of the same variables.
    ///
    /// # Errors
    /// When something is missing or of another size.
    pub fn restore(&mut self, name: &str, from: &Snapshot) -> Result<()> {
        self.step = from.get(&format!("{name}/step"))?;
        for (i, (var, moments)) in self.vars.iter().zip(&mut self.moments).enumerate() {
            let read = |suffix: &str| -> Result<Tensor> {
                let name = format!("{name}/{i}{suffix}");
                let numbers = from.numbers(&name)?;
                if numbers.len() != var.elem_count() {
                    let expected = format!("expected {} numbers, got {}", var.elem_count(), numbers.len());
                    return Err(Error::input(format!("kept state, `{name}`"), expected));
                }
                Ok(Tensor::from_slice(numbers, var.shape(), var.device())?)
            };
            var.set(&read("")?)?;
            *moments = match from.numbers(&format!("{name}/{i}/m")) {
                Ok(_) => Some(Tensor::stack(&[read("/m")?.flatten_all()?, read("/v")?.flatten_all()?], 0)?),
                Err(_) => None,
            };
        }
        Ok(())
    }

    /// One step of size `rate` along `gradients`; none where their norm is not finite, since that would destroy every weight
    /// and skipping a batch costs nothing.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn step(&mut self, gradients: &Gradients, rate: f64) -> Result<()> {
        #[cfg(feature = "cuda")]
        if gradients.iter().flatten().all(super::cuda::serves) {
            return self.step_fused(gradients, rate);
        }
        let mut squares = 0.0;
        for gradient in gradients.iter().flatten() {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Ok(());
        }
        let factor = self.settings.clip.filter(|clip| norm > *clip).map_or(1.0, |clip| clip / norm);
        self.step += 1;
        let AdamSettings { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let (corrected, scale) = self.corrected(rate);
        for ((var, moments), gradient) in self.vars.iter().zip(&mut self.moments).zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let n = gradient.elem_count();
            let both = match moments.take() {
                Some(moments) => moments,
                None => Tensor::zeros((2, n), gradient.dtype(), gradient.device())?,
            };
            let decay = 1.0 - rate * weight_decay;
            *moments = Some(if gradient.device().is_cpu() {
                let update = Update {
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    epsilon: epsilon as f32,
                    factor: factor as f32,
                    rate: corrected as f32,
                    scale: scale as f32,
                    decay: decay as f32,
                };
                update.apply(var, gradient, &both)?
            } else {
                let gradient = (gradient.reshape((1, n))? * factor)?;
                let m = ((both.narrow(0, 0, 1)? * beta1)? + (&gradient * (1.0 - beta1))?)?;
                let v = ((both.narrow(0, 1, 1)? * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
                let step = ((&m * corrected)? / ((v.sqrt()? * scale)? + epsilon)?)?.reshape(var.shape())?;
                var.set(&((var.as_tensor().detach() * decay)? - step)?)?;
                Tensor::cat(&[m, v], 0)?
            });
        }
        Ok(())
    }

    /// `rate` over the first moments' bias correction, and the root of the inverse of the second ones'.
    fn corrected(&self, rate: f64) -> (f64, f64) {
        let AdamSettings { beta1, beta2, .. } = self.settings;
        (rate / (1.0 - beta1.powi(self.step)), 1.0 / (1.0 - beta2.powi(self.step)).sqrt())
    }

    /// The same without waiting for the GPU: norm and factor stay there. A gradient that is not finite changes no value, but
    /// counts as a step.
    #[cfg(feature = "cuda")]
    fn step_fused(&mut self, gradients: &Gradients, rate: f64) -> Result<()> {
        let present: Vec<Tensor> = gradients.iter().flatten().cloned().collect();
        let Some(factor) = super::cuda::clip_factor(&present, self.settings.clip)? else { return Ok(()) };
        self.step += 1;
        let AdamSettings { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let (corrected, scale) = self.corrected(rate);
        let update = super::cuda::Adam {
            betas: [beta1, beta2],
            rate: corrected,
            scale,
            epsilon,
            decay: 1.0 - rate * weight_decay,
        };
        for ((var, moments), gradient) in self.vars.iter().zip(&mut self.moments).zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let both = match moments.take() {
                Some(moments) => moments,
                None => Tensor::zeros((2, gradient.elem_count()), gradient.dtype(), gradient.device())?,
            };
            update.step(var, &both, gradient, &factor)?;
            *moments = Some(both);
        }
        Ok(())
    }
}

struct Update {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    factor: f32,
    rate: f32,
    scale: f32,
    decay: f32,
}

impl Update {
    /// Changes `var` and returns the new moments.
    fn apply(&self, var: &Var, gradient: &Tensor, moments: &Tensor) -> Result<Tensor> {
        let gradient = flat(gradient)?;
        let [mut both, mut weights] = [host_values(moments)?, host_values(var.as_tensor())?];
        if gradient.values()?.len() != weights.len() || both.len() != 2 * weights.len() {
            let expected = format!("expected {} numbers, got {}", weights.len(), gradient.values()?.len());
            return Err(Error::input("gradient", expected));
        }
        let (m, v) = both.split_at_mut(weights.len());
        pulp::Arch::new().dispatch(Apply {
            update: self,
            gradient: &gradient.values()?,
            values: [m, v, &mut *weights],
        });
        var.set(&Tensor::from_vec(weights, var.shape(), var.device())?)?;
        Ok(Tensor::from_vec(both, moments.shape(), var.device())?)
    }
}

/// One update of all values: a type, so that it is compiled for this CPU (see `kernel`).
struct Apply<'a> {
    update: &'a Update,
    gradient: &'a [f32],
    /// Moments and weights.
    values: [&'a mut [f32]; 3],
}

impl NullaryFnOnce for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { update, gradient, values: [m, v, weights] } = self;
        for (((g, m), v), weight) in gradient.iter().zip(m).zip(v).zip(weights) {
            let g = g * update.factor;
            *m = *m * update.beta1 + g * (1.0 - update.beta1);
            *v = *v * update.beta2 + g * g * (1.0 - update.beta2);
            let step = update.rate * *m / (v.sqrt() * update.scale + update.epsilon);
            *weight = *weight * update.decay - step;
        }
    }
}

/// Values of a CPU variable, row-major; of another device, copied from it.
///
/// # Errors
/// When the copy fails.
pub fn host_values(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.detach().contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(values[start..end].to_vec());
    }
    drop(storage);
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn adam_finds_the_minimum_of_a_parabola_and_clipping_bounds_the_step() {
        let x = Var::new(&[3.0_f32, -2.0], &Device::Cpu).unwrap();
        let mut adam = AdamW::new(vec![x.clone()], AdamSettings { clip: Some(1.0), ..AdamSettings::default() });
        for step in 0..400 {
            let (gradients, _) = sharded_gradients(adam.vars(), 2, |_| Ok(x.as_tensor().sqr()?.sum_all()?)).unwrap();
            adam.step(&gradients, 0.1 * (1.0 - step as f64 / 400.0)).unwrap();
        }
        let found = x.as_tensor().to_vec1::<f32>().unwrap();
        assert!(found.iter().all(|v| v.abs() < 1e-2), "{found:?}");
    }

    #[test]
    fn a_restored_optimiser_goes_on_with_the_same_bits() {
        let start = |adam: &mut AdamW, steps: usize| {
            for _ in 0..steps {
                let x = adam.vars()[0].clone();
                let (gradients, _) =
                    sharded_gradients(adam.vars(), 1, |_| Ok(x.as_tensor().cos()?.sum_all()?)).unwrap();
                adam.step(&gradients, 0.05).unwrap();
            }
        };
        let fresh = || AdamW::new(vec![Var::new(&[0.5_f32, -1.5], &Device::Cpu).unwrap()], AdamSettings::default());
        let mut whole = fresh();
        start(&mut whole, 5);
        let mut kept = Snapshot::default();
        whole.save("x", &mut kept).unwrap();
        start(&mut whole, 5);
        let mut resumed = fresh();
        resumed.restore("x", &kept).unwrap();
        start(&mut resumed, 5);
        let bits = |adam: &AdamW| host_values(adam.vars()[0].as_tensor()).unwrap();
        assert_eq!(bits(&resumed), bits(&whole));
    }

    #[test]
    fn the_fused_update_equals_candle_nn() {
        use candle_nn::optim::{AdamW as Reference, Optimizer as _, ParamsAdamW};
        let start = [0.5_f32, -1.5, 2.0];
        let (ours, theirs) = (Var::new(&start, &Device::Cpu).unwrap(), Var::new(&start, &Device::Cpu).unwrap());
        let settings = AdamSettings { weight_decay: 0.1, ..AdamSettings::default() };
        let mut adam = AdamW::new(vec![ours.clone()], settings);
        let params = ParamsAdamW { lr: 0.05, weight_decay: 0.1, ..ParamsAdamW::default() };
        let mut reference = Reference::new(vec![theirs.clone()], params).unwrap();
        for _ in 0..20 {
            let loss = |v: &Var| v.as_tensor().sin().unwrap().sum_all().unwrap();
            let (gradients, _) = sharded_gradients(adam.vars(), 1, |_| Ok(loss(&ours))).unwrap();
            adam.step(&gradients, 0.05).unwrap();
            reference.backward_step(&loss(&theirs)).unwrap();
        }
        let (a, b) = (ours.as_tensor().to_vec1::<f32>().unwrap(), theirs.as_tensor().to_vec1::<f32>().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }
}
