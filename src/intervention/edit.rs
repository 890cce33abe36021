//! The edits themselves, as plain values that can be stored, replayed and applied.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::optimiser::host_values;
use crate::model::{Intervention, Point, Site};
use crate::{Error, Result};

/// An intervention as plain numbers: what a run stores and a report can reproduce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Edit {
    /// Changes nothing.
    Identity,
    /// `h + W2ᵀ(W1−W2)h` at one block's input (NoReFT without bias).
    LowRank {
        /// Block whose input is edited.
        layer: usize,
        /// Rows of `w1` and `w2`.
        rank: usize,
        /// `[rank, d_model]`, row by row.
        w1: Vec<f32>,
        /// `[rank, d_model]`, row by row.
        w2: Vec<f32>,
    },
    /// `h + vector` at one block's input.
    Add {
        /// Block whose input is edited.
        layer: usize,
        /// `[d_model]`, in the units of the residual stream.
        vector: Vec<f32>,
    },
    /// `x − BᵀBx` at every block's input, attention output and feed-forward output.
    Ablate {
        /// Orthonormal rows, `[rank, d_model]`, row by row.
        basis: Vec<f32>,
        /// Number of rows.
        rank: usize,
    },
}

/// An [`Edit`] with its tensors on a device.
#[derive(Debug, Clone)]
pub enum Placed {
    /// Changes nothing.
    Identity,
    /// See [`Edit::LowRank`]; `w1` and `w2` may be variables.
    LowRank {
        /// Block whose input is edited.
        layer: usize,
        /// `[rank, d_model]`.
        w1: Tensor,
        /// `[rank, d_model]`.
        w2: Tensor,
    },
    /// See [`Edit::Add`]; `[d_model]`.
    Add {
        /// Block whose input is edited.
        layer: usize,
        /// `[d_model]`.
        vector: Tensor,
    },
    /// See [`Edit::Ablate`]; `[rank, d_model]`.
    Ablate {
        /// Orthonormal rows.
        basis: Tensor,
    },
}

impl Edit {
    /// Puts the numbers on `device`.
    ///
    /// # Errors
    /// When a matrix is not a multiple of its rank.
    pub fn place(&self, device: &Device) -> Result<Placed> {
        let matrix = |values: &[f32], rank: usize| -> Result<Tensor> {
            if rank == 0 || !values.len().is_multiple_of(rank) {
                return Err(Error::input(
                    "intervention",
                    format!("expected {rank} equal rows, got {} values", values.len()),
                ));
            }
            Ok(Tensor::from_slice(values, (rank, values.len() / rank), device)?)
        };
        Ok(match self {
            Self::Identity => Placed::Identity,
            Self::LowRank { layer, rank, w1, w2 } => {
                Placed::LowRank { layer: *layer, w1: matrix(w1, *rank)?, w2: matrix(w2, *rank)? }
            }
            Self::Add { layer, vector } => {
                Placed::Add { layer: *layer, vector: Tensor::from_slice(vector, vector.len(), device)? }
            }
            Self::Ablate { basis, rank } => Placed::Ablate { basis: matrix(basis, *rank)? },
        })
    }
}

impl Placed {
    /// Copies the numbers back.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn edit(&self) -> Result<Edit> {
        Ok(match self {
            Self::Identity => Edit::Identity,
            Self::LowRank { layer, w1, w2 } => {
                Edit::LowRank { layer: *layer, rank: w1.dim(0)?, w1: host_values(w1)?, w2: host_values(w2)? }
            }
            Self::Add { layer, vector } => Edit::Add { layer: *layer, vector: host_values(vector)? },
            Self::Ablate { basis } => Edit::Ablate { basis: host_values(basis)?, rank: basis.dim(0)? },
        })
    }
}

impl Intervention for Placed {
    fn apply(&self, site: Site, x: &Tensor) -> Result<Tensor> {
        let (batch, cols, width) = x.dims3()?;
        let expected = match self {
            Self::Identity => width,
            Self::LowRank { w1, .. } => w1.dim(1)?,
            Self::Add { vector, .. } => vector.dim(0)?,
            Self::Ablate { basis } => basis.dim(1)?,
        };
        if expected != width {
            return Err(Error::input(
                format!("intervention at {site}"),
                format!("expected width {expected}, got {width}"),
            ));
        }
        Ok(match self {
            Self::Identity => x.clone(),
            Self::LowRank { w1, w2, .. } => {
                let flat = x.reshape((batch * cols, width))?;
                let coordinates = flat.matmul(&(w1 - w2)?.t()?)?;
                (&flat + coordinates.matmul(w2)?)?.reshape((batch, cols, width))?
            }
            Self::Add { vector, .. } => x.broadcast_add(vector)?,
            Self::Ablate { basis } => {
                let flat = x.reshape((batch * cols, width))?;
                (&flat - flat.matmul(&basis.t()?)?.matmul(basis)?)?.reshape((batch, cols, width))?
            }
        })
    }

    fn acts_at(&self, site: Site) -> bool {
        match self {
            Self::Identity => false,
            Self::LowRank { layer, .. } | Self::Add { layer, .. } => site == Site::new(*layer, Point::ResidPre),
            Self::Ablate { .. } => matches!(site.point, Point::ResidPre | Point::AttnOut | Point::MlpOut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Tensor {
        Tensor::from_vec(vec![1.0_f32, 2.0, 3.0, -1.0, 0.5, 2.0], (1, 2, 3), &Device::Cpu).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn ablation_is_idempotent_and_removes_the_component() {
        let basis = vec![0.6, 0.8, 0.0];
        let edit = Edit::Ablate { basis: basis.clone(), rank: 1 }.place(&Device::Cpu).unwrap();
        let site = Site::new(0, Point::MlpOut);
        let once = edit.apply(site, &stream()).unwrap();
        let twice = edit.apply(site, &once).unwrap();
        for (a, b) in values(&once).iter().zip(values(&twice)) {
            assert!((a - b).abs() < 1e-6);
        }
        for row in values(&once).chunks(3) {
            assert!(row.iter().zip(&basis).map(|(x, r)| x * r).sum::<f32>().abs() < 1e-6);
        }
    }

    #[test]
    fn equal_factors_make_the_low_rank_edit_an_identity() {
        let w = vec![0.3, -0.2, 0.9];
        let edit = Edit::LowRank { layer: 1, rank: 1, w1: w.clone(), w2: w }.place(&Device::Cpu).unwrap();
        assert_eq!(values(&edit.apply(Site::new(1, Point::ResidPre), &stream()).unwrap()), values(&stream()));
        assert!(edit.acts_at(Site::new(1, Point::ResidPre)) && !edit.acts_at(Site::new(0, Point::ResidPre)));
    }

    #[test]
    fn edits_survive_storage_to_the_bit() {
        let edit =
            Edit::LowRank { layer: 2, rank: 1, w1: vec![0.1, 1e-9, -3.3], w2: vec![f32::MIN_POSITIVE, 0.2, 7.0] };
        let text = serde_json::to_string(&edit).unwrap();
        assert_eq!(serde_json::from_str::<Edit>(&text).unwrap(), edit);
        assert_eq!(edit.place(&Device::Cpu).unwrap().edit().unwrap(), edit);
    }

    #[test]
    fn a_wrong_width_names_the_site() {
        let edit = Edit::Add { layer: 0, vector: vec![1.0; 4] }.place(&Device::Cpu).unwrap();
        let error = edit.apply(Site::new(0, Point::ResidPre), &stream()).unwrap_err().to_string();
        assert!(error.contains("blocks.0.hook_resid_pre") && error.contains("expected width 4, got 3"), "{error}");
    }
}
