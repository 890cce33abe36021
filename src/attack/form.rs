//! The forms of learned edits: what is trained, where it starts, and which edit it stands for.
//!
//! *Sources*: NoReFT: E.T. (2026); LoReFT, DiReFT and LobiReFT: Wu et al. 2024, "ReFT: Representation Finetuning for
//! Language Models", and its library. `R` has orthonormal rows and is brought back to that after every step.

use candle_core::{Device, Tensor, Var};

use crate::intervention::{Edit, Placed};
use crate::math::rows::orthonormal;
use crate::math::seed::Stream;
use crate::model::optimiser::host_values;
use crate::model::{Point, Site};
use crate::{Error, Result};

/// What a learned edit of one block's input looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `h + W2ᵀ(W1−W2)h`.
    #[default]
    Noreft,
    /// `h + Rᵀ(Wh + b − Rh)`.
    Loreft,
    /// `h + Rᵀ(Wh + b)`.
    Direft,
    /// `h + Rᵀb`: a vector, the same for all tokens.
    Lobireft,
}

/// The variables of one edit of one block's input.
pub(super) struct Factors {
    form: Form,
    layer: usize,
    /// NoReFT: `W1`, `W2`. LoReFT and DiReFT: `R`, `W`, `b`. LobiReFT: `R`, `b`.
    vars: Vec<Var>,
    /// What LobiReFT's `b` is given in.
    unit: f64,
}

impl Factors {
    /// Fresh variables, uniform in `±1/√d`.
    pub fn fresh(
        form: Form,
        layer: usize,
        rank: usize,
        d: usize,
        device: &Device,
        stream: &mut Stream,
    ) -> Result<Self> {
        let bound = (d as f64).powf(-0.5);
        let mut matrix = || values_of(&[rank, d], stream.uniform(rank * d, bound), device);
        let mut vars = match form {
            Form::Noreft | Form::Loreft | Form::Direft => vec![matrix()?, matrix()?],
            Form::Lobireft => vec![matrix()?],
        };
        if form != Form::Noreft {
            vars.push(values_of(&[rank], stream.uniform(rank, bound), device)?);
        }
        let factors = Self { form, layer, vars, unit: 1.0 };
        factors.retract()?;
        Ok(factors)
    }

    /// The variables that stand for `start`.
    pub fn starting_from(form: Form, layer: usize, start: &Edit, device: &Device) -> Result<Self> {
        let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>();
        let matrix =
            |rank: usize, values: &[f32]| values_of(&[rank, values.len() / rank.max(1)], values.to_vec(), device);
        let vars = match (form, start) {
            (Form::Noreft, Edit::LowRank { layer: at, rank, w1, w2 }) if *at == layer => {
                vec![matrix(*rank, w1)?, matrix(*rank, w2)?]
            }
            (Form::Loreft | Form::Direft | Form::Lobireft, Edit::Affine { site, rank, up, down, bias })
                if *site == Site::new(layer, Point::ResidPre) =>
            {
                let bias = values_of(&[*rank], bias.clone(), device)?;
                match form {
                    Form::Lobireft => vec![matrix(*rank, up)?, bias],
                    Form::Direft => vec![matrix(*rank, up)?, matrix(*rank, down)?, bias],
                    _ => vec![matrix(*rank, up)?, matrix(*rank, &sum(down, up))?, bias],
                }
            }
            _ => {
                let expected = format!("expected one of form {form:?} at block {layer}");
                return Err(Error::input("start of a learned edit", expected));
            }
        };
        Ok(Self { form, layer, vars, unit: 1.0 })
    }

    /// Trains a vector in units of `norm`, the mean norm of what it is added to (of edits of several blocks: at the lowest): in plain numbers the paper's steps could not take it
    /// further than a fraction of one, whatever the stream's size. The other forms multiply the stream, so they need no unit.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn in_units_of(&mut self, norm: f64, from_fresh: bool) -> Result<()> {
        if self.form == Form::Lobireft && norm.is_normal() {
            if !from_fresh {
                let bias = &self.vars[1];
                bias.set(&(bias.as_tensor() * (self.unit / norm))?)?;
            }
            self.unit = norm;
        }
        Ok(())
    }

    /// What an optimiser moves.
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// The edit as it stands, connected to its variables, or cut off from them.
    pub fn placed(&self, detached: bool) -> Result<Placed> {
        let tensor = |i: usize| -> Result<Tensor> {
            let tensor = self.vars[i].as_tensor();
            Ok(if detached { tensor.copy()?.detach() } else { tensor.clone() })
        };
        let (layer, site) = (self.layer, Site::new(self.layer, Point::ResidPre));
        Ok(match self.form {
            Form::Noreft => Placed::LowRank { layer, w1: tensor(0)?, w2: tensor(1)? },
            Form::Loreft => {
                let up = tensor(0)?;
                Placed::Affine { site, down: (tensor(1)? - &up)?, up, bias: tensor(2)? }
            }
            Form::Direft => Placed::Affine { site, up: tensor(0)?, down: tensor(1)?, bias: tensor(2)? },
            Form::Lobireft => {
                let up = tensor(0)?;
                Placed::Affine { site, down: up.zeros_like()?.detach(), up, bias: (tensor(1)? * self.unit)? }
            }
        })
    }

    /// Brings `R` back to orthonormal rows.
    pub fn retract(&self) -> Result<()> {
        if self.form == Form::Noreft {
            return Ok(());
        }
        let rotation = &self.vars[0];
        let (rank, d) = rotation.dims2()?;
        let rows = orthonormal(&host_values(rotation.as_tensor())?, d);
        Ok(rotation.set(&Tensor::from_vec(rows, (rank, d), rotation.device())?)?)
    }
}

fn values_of(shape: &[usize], values: Vec<f32>, device: &Device) -> Result<Var> {
    Ok(Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMS: [Form; 4] = [Form::Noreft, Form::Loreft, Form::Direft, Form::Lobireft];

    #[test]
    fn a_vector_is_trained_in_units_of_the_stream_and_a_start_stays_what_it_is() {
        let bias = |factors: &Factors| match factors.placed(true).unwrap().edit().unwrap() {
            Edit::Affine { bias, .. } => bias,
            other => panic!("no vector: {other:?}"),
        };
        let mut fresh = Factors::fresh(Form::Lobireft, 2, 3, 16, &Device::Cpu, &mut Stream::new(7, "form")).unwrap();
        let before = bias(&fresh);
        fresh.in_units_of(8.0, true).unwrap();
        assert!(bias(&fresh).iter().zip(&before).all(|(after, before)| (after - 8.0 * before).abs() < 1e-6));
        let start = fresh.placed(true).unwrap().edit().unwrap();
        let mut again = Factors::starting_from(Form::Lobireft, 2, &start, &Device::Cpu).unwrap();
        again.in_units_of(4.0, false).unwrap();
        assert!(bias(&again).iter().zip(&bias(&fresh)).all(|(a, b)| (a - b).abs() < 1e-6));
        // A step of the optimiser is one of the stream's norm.
        let moved = (again.vars()[1].as_tensor() + 0.5).unwrap();
        again.vars()[1].set(&moved).unwrap();
        assert!(bias(&again).iter().zip(&bias(&fresh)).all(|(a, b)| (a - b - 2.0).abs() < 1e-5));
    }

    #[test]
    fn every_form_starts_again_where_it_stood() {
        for form in FORMS {
            let mut stream = Stream::new(7, "form");
            let fresh = Factors::fresh(form, 2, 3, 16, &Device::Cpu, &mut stream).unwrap();
            let edit = fresh.placed(true).unwrap().edit().unwrap();
            let again = Factors::starting_from(form, 2, &edit, &Device::Cpu).unwrap();
            for (a, b) in fresh.vars().iter().zip(again.vars()) {
                let (a, b) = (host_values(a.as_tensor()).unwrap(), host_values(b.as_tensor()).unwrap());
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{form:?}");
            }
            assert!(Factors::starting_from(form, 1, &edit, &Device::Cpu).is_err(), "another block");
        }
    }

    #[test]
    fn rotations_stay_orthonormal() {
        for form in &FORMS[1..] {
            let factors = Factors::fresh(*form, 0, 2, 8, &Device::Cpu, &mut Stream::new(1, "rows")).unwrap();
            let rotation = &factors.vars()[0];
            rotation.set(&(rotation.as_tensor() * 3.0).unwrap()).unwrap();
            factors.retract().unwrap();
            let rows = rotation.as_tensor().detach();
            let gram = rows.matmul(&rows.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            assert!((gram[0][0] - 1.0).abs() < 1e-5 && gram[0][1].abs() < 1e-5, "{gram:?}");
        }
    }
}
