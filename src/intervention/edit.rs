//! The edits themselves, as plain values that can be stored, replayed and applied.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::low_rank::plus_low_rank;
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
    /// `h + upᵀ(down·h + bias)` at one site of the residual stream (LoReFT, DiReFT, LobiReFT).
    Affine {
        /// Where.
        site: Site,
        /// Rows of `up` and `down`, values of `bias`.
        rank: usize,
        /// `[rank, d_model]`, row by row.
        up: Vec<f32>,
        /// `[rank, d_model]`, row by row.
        down: Vec<f32>,
        /// `[rank]`.
        bias: Vec<f32>,
    },
    /// `x + vector` at one site.
    Add {
        /// Where.
        site: Site,
        /// As wide as the site, in the units of its activation.
        vector: Vec<f32>,
        /// Whether every token's norm is restored afterwards.
        keep_norm: bool,
    },
    /// `a ← A·a + b` for every head's output at one block's `hook_z`.
    Heads {
        /// Block whose heads are edited.
        layer: usize,
        /// `A` of one head after the other, `[heads, head_dim, head_dim]`, row by row.
        matrices: Vec<f32>,
        /// `b` of one head after the other, `[heads, head_dim]`.
        bias: Vec<f32>,
        /// Number of heads.
        heads: usize,
    },
    /// `x − BᵀBx` at the input, the attention output and the feed-forward output of blocks.
    Ablate {
        /// Orthonormal rows, `[rank, d_model]`, row by row.
        basis: Vec<f32>,
        /// Number of rows.
        rank: usize,
        /// Blocks; empty: all.
        #[serde(default)]
        layers: Vec<usize>,
    },
    /// `x − IᵀBx` in what is written to the stream: as much as [`Edit::Ablate`] takes away along `B`, taken along other directions, so that the
    /// stream moves as far. It acts at the attention and feed-forward outputs, and at the input of a block of which the one before is
    /// none of its own: what the stream holds by then is moved once.
    Redirect {
        /// Orthonormal rows, `[rank, d_model]`, row by row.
        basis: Vec<f32>,
        /// Orthonormal rows, `[rank, d_model]`, row by row.
        into: Vec<f32>,
        /// Number of rows of each.
        rank: usize,
        /// Blocks; empty: all.
        #[serde(default)]
        layers: Vec<usize>,
        /// Blocks of other parts of the same edit, behind which the stream isn't moved again either.
        #[serde(default)]
        others: Vec<usize>,
    },
    /// Several edits at once, applied in their order.
    Several {
        /// The edits.
        edits: Vec<Edit>,
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
    /// See [`Edit::Affine`]; the tensors may be variables.
    Affine {
        /// Where.
        site: Site,
        /// `[rank, d_model]`.
        up: Tensor,
        /// `[rank, d_model]`.
        down: Tensor,
        /// `[rank]`.
        bias: Tensor,
    },
    /// See [`Edit::Add`].
    Add {
        /// Where.
        site: Site,
        /// `[width]`.
        vector: Tensor,
        /// Whether every token's norm is restored afterwards.
        keep_norm: bool,
    },
    /// See [`Edit::Heads`].
    Heads {
        /// Block whose heads are edited.
        layer: usize,
        /// `[heads, head_dim, head_dim]`, transposed for `a·Aᵀ`.
        transposed: Tensor,
        /// `[heads · head_dim]`.
        bias: Tensor,
    },
    /// See [`Edit::Ablate`]; `[rank, d_model]`.
    Ablate {
        /// Orthonormal rows.
        basis: Tensor,
        /// Blocks; empty: all.
        layers: Vec<usize>,
    },
    /// See [`Edit::Redirect`]; `[rank, d_model]` each.
    Redirect {
        /// Orthonormal rows.
        basis: Tensor,
        /// Orthonormal rows.
        into: Tensor,
        /// Blocks; empty: all.
        layers: Vec<usize>,
        /// Blocks of other parts.
        others: Vec<usize>,
    },
    /// See [`Edit::Several`].
    Several(Vec<Placed>),
}

impl Edit {
    /// Its lists of numbers, in a fixed order: what is large about it.
    pub(crate) fn lists(&mut self) -> Vec<&mut Vec<f32>> {
        match self {
            Self::Identity => vec![],
            Self::LowRank { w1, w2, .. } => vec![w1, w2],
            Self::Affine { up, down, bias, .. } => vec![up, down, bias],
            Self::Add { vector, .. } => vec![vector],
            Self::Heads { matrices, bias, .. } => vec![matrices, bias],
            Self::Ablate { basis, .. } => vec![basis],
            Self::Redirect { basis, into, .. } => vec![basis, into],
            Self::Several { edits } => edits.iter_mut().flat_map(Self::lists).collect(),
        }
    }

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
            Self::Affine { site, rank, up, down, bias } => Placed::Affine {
                site: *site,
                up: matrix(up, *rank)?,
                down: matrix(down, *rank)?,
                bias: Tensor::from_slice(bias, bias.len(), device)?,
            },
            Self::Add { site, vector, keep_norm } => Placed::Add {
                site: *site,
                vector: Tensor::from_slice(vector, vector.len(), device)?,
                keep_norm: *keep_norm,
            },
            Self::Heads { layer, matrices, bias, heads } => {
                let width = bias.len() / (*heads).max(1);
                let shape = (*heads, width, width);
                if *heads == 0 || bias.len() != heads * width || matrices.len() != bias.len() * width {
                    let got = format!("expected {heads} square matrices, got {} values", matrices.len());
                    return Err(Error::input("intervention", got));
                }
                Placed::Heads {
                    layer: *layer,
                    transposed: Tensor::from_slice(matrices, shape, device)?.transpose(1, 2)?.contiguous()?,
                    bias: Tensor::from_slice(bias, bias.len(), device)?,
                }
            }
            Self::Ablate { basis, rank, layers } => {
                Placed::Ablate { basis: matrix(basis, *rank)?, layers: layers.clone() }
            }
            Self::Redirect { basis, into, rank, layers, others } => {
                let (basis, into) = (matrix(basis, *rank)?, matrix(into, *rank)?);
                Placed::Redirect { basis, into, layers: layers.clone(), others: others.clone() }
            }
            Self::Several { edits } => {
                Placed::Several(edits.iter().map(|edit| edit.place(device)).collect::<Result<_>>()?)
            }
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
            Self::Affine { site, up, down, bias } => Edit::Affine {
                site: *site,
                rank: up.dim(0)?,
                up: host_values(up)?,
                down: host_values(down)?,
                bias: host_values(bias)?,
            },
            Self::Add { site, vector, keep_norm } => {
                Edit::Add { site: *site, vector: host_values(vector)?, keep_norm: *keep_norm }
            }
            Self::Heads { layer, transposed, bias } => Edit::Heads {
                layer: *layer,
                matrices: host_values(&transposed.transpose(1, 2)?)?,
                bias: host_values(bias)?,
                heads: transposed.dim(0)?,
            },
            Self::Ablate { basis, layers } => {
                Edit::Ablate { basis: host_values(basis)?, rank: basis.dim(0)?, layers: layers.clone() }
            }
            Self::Redirect { basis, into, layers, others } => Edit::Redirect {
                basis: host_values(basis)?,
                into: host_values(into)?,
                rank: basis.dim(0)?,
                layers: layers.clone(),
                others: others.clone(),
            },
            Self::Several(edits) => Edit::Several { edits: edits.iter().map(Self::edit).collect::<Result<_>>()? },
        })
    }
}

impl Placed {
    /// The edit whose contribution to the stream is `factor` times as large, for edits that add one; others as they are.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn amplified(&self, factor: f64) -> Result<Self> {
        Ok(match self {
            // W2ᵀ(W1−W2)h: only the difference may grow, as the other factor says where it is written.
            Self::LowRank { layer, w1, w2 } => {
                Self::LowRank { layer: *layer, w1: (w2 + ((w1 - w2)? * factor)?)?, w2: w2.clone() }
            }
            Self::Affine { site, up, down, bias } => {
                Self::Affine { site: *site, up: up.clone(), down: (down * factor)?, bias: (bias * factor)? }
            }
            Self::Add { site, vector, keep_norm } => {
                Self::Add { site: *site, vector: (vector * factor)?, keep_norm: *keep_norm }
            }
            Self::Several(edits) => {
                Self::Several(edits.iter().map(|edit| edit.amplified(factor)).collect::<Result<_>>()?)
            }
            other => other.clone(),
        })
    }

    /// Width of the activations that the edit acts on; absent: any.
    fn width(&self) -> Result<Option<usize>> {
        Ok(match self {
            Self::Identity | Self::Several(_) => None,
            Self::LowRank { w1, .. } => Some(w1.dim(1)?),
            Self::Affine { up, .. } => Some(up.dim(1)?),
            Self::Add { vector, .. } => Some(vector.dim(0)?),
            Self::Heads { bias, .. } => Some(bias.dim(0)?),
            Self::Ablate { basis, .. } | Self::Redirect { basis, .. } => Some(basis.dim(1)?),
        })
    }
}

impl Intervention for Placed {
    fn apply(&self, site: Site, x: &Tensor) -> Result<Tensor> {
        let (batch, cols, width) = x.dims3()?;
        if let Some(expected) = self.width()?.filter(|expected| *expected != width) {
            return Err(Error::input(
                format!("intervention at {site}"),
                format!("expected width {expected}, got {width}"),
            ));
        }
        let flat = || x.reshape((batch * cols, width));
        Ok(match self {
            Self::Identity => x.clone(),
            Self::LowRank { w1, w2, .. } => plus_low_rank(x, &(w1 - w2)?, w2)?,
            Self::Affine { up, down, bias, .. } => {
                let flat = flat()?;
                let coordinates = flat.matmul(&down.t()?)?.broadcast_add(bias)?;
                (&flat + coordinates.matmul(up)?)?.reshape((batch, cols, width))?
            }
            Self::Add { vector, keep_norm, .. } => {
                let moved = x.broadcast_add(vector)?;
                if *keep_norm {
                    let norm = |x: &Tensor| x.sqr()?.sum_keepdim(2)?.sqrt();
                    // A token that the vector moves to the origin exactly has no direction to scale.
                    moved.broadcast_mul(&(norm(x)? / (norm(&moved)? + 1e-12)?)?)?
                } else {
                    moved
                }
            }
            Self::Heads { transposed, bias, .. } => {
                let (heads, size, _) = transposed.dims3()?;
                let by_head = x.reshape((batch * cols, heads, size))?.transpose(0, 1)?.contiguous()?;
                let mapped = by_head.matmul(transposed)?.transpose(0, 1)?.contiguous()?;
                mapped.reshape((batch, cols, width))?.broadcast_add(bias)?
            }
            Self::Ablate { basis, .. } => plus_low_rank(x, basis, &basis.neg()?)?,
            Self::Redirect { basis, into, .. } => plus_low_rank(x, basis, &into.neg()?)?,
            Self::Several(edits) => {
                let mut acting = edits.iter().filter(|edit| edit.acts_at(site));
                acting.try_fold(x.clone(), |x, edit| edit.apply(site, &x))?
            }
        })
    }

    fn acts_at(&self, site: Site) -> bool {
        match self {
            Self::Identity => false,
            Self::LowRank { layer, .. } => site == Site::new(*layer, Point::ResidPre),
            Self::Affine { site: at, .. } | Self::Add { site: at, .. } => site == *at,
            Self::Heads { layer, .. } => site == Site::new(*layer, Point::Z),
            Self::Ablate { layers, .. } => {
                matches!(site.point, Point::ResidPre | Point::AttnOut | Point::MlpOut) && is_of(layers, site.layer)
            }
            Self::Redirect { layers, others, .. } => {
                let moved = |before| is_of(layers, before) || others.contains(&before);
                let follows = site.layer.checked_sub(1).is_some_and(moved);
                let written = matches!(site.point, Point::AttnOut | Point::MlpOut);
                is_of(layers, site.layer) && (written || site.point == Point::ResidPre && !follows)
            }
            Self::Several(edits) => edits.iter().any(|edit| edit.acts_at(site)),
        }
    }
}

/// Whether `layer` is among `layers`, which are all where none is named.
fn is_of(layers: &[usize], layer: usize) -> bool {
    layers.is_empty() || layers.contains(&layer)
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
    fn an_amplified_edit_adds_that_many_times_as_much() {
        let x = Tensor::from_vec(vec![1_f32, -2.0, 0.5, 3.0], (1, 2, 2), &Device::Cpu).unwrap();
        let site = Site::new(1, Point::ResidPre);
        let edits = [
            Edit::LowRank { layer: 1, rank: 1, w1: vec![0.3, -0.1], w2: vec![0.2, 0.4] },
            Edit::Affine { site, rank: 1, up: vec![1.0, 0.0], down: vec![0.5, 0.5], bias: vec![0.25] },
            Edit::Add { site, vector: vec![1.0, -1.0], keep_norm: false },
        ];
        for edit in edits {
            let edit = edit.place(&Device::Cpu).unwrap();
            let added = |edit: &Placed| (edit.apply(site, &x).unwrap() - &x).unwrap().flatten_all().unwrap();
            let (once, thrice) = (added(&edit), added(&edit.amplified(3.0).unwrap()));
            let (once, thrice) = (once.to_vec1::<f32>().unwrap(), thrice.to_vec1::<f32>().unwrap());
            assert!(once.iter().zip(&thrice).all(|(a, b)| (3.0 * a - b).abs() < 1e-5), "{once:?} {thrice:?}");
        }
    }

    #[test]
    fn ablation_is_idempotent_and_removes_the_component() {
        let basis = vec![0.6, 0.8, 0.0];
        let edit = Edit::Ablate { basis: basis.clone(), rank: 1, layers: vec![] }.place(&Device::Cpu).unwrap();
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
    fn ablation_acts_at_the_chosen_blocks_only() {
        let at = |layers: Vec<usize>| Edit::Ablate { basis: vec![1.0, 0.0, 0.0], rank: 1, layers };
        let acts = |edit: &Edit, layer| edit.place(&Device::Cpu).unwrap().acts_at(Site::new(layer, Point::AttnOut));
        assert!(acts(&at(vec![]), 0) && acts(&at(vec![2]), 2) && !acts(&at(vec![2]), 0));
    }

    #[test]
    fn a_redirection_meets_the_stream_once_and_everything_written_after() {
        let (basis, into) = (vec![1.0, 0.0, 0.0], vec![0.0, 0.6, 0.8]);
        let at = |layers| Edit::Redirect { basis: basis.clone(), into: into.clone(), rank: 1, layers, others: vec![] };
        let acts = |layers, layer, point| at(layers).place(&Device::Cpu).unwrap().acts_at(Site::new(layer, point));
        assert!(acts(vec![], 0, Point::ResidPre) && !acts(vec![], 1, Point::ResidPre));
        assert!(acts(vec![], 1, Point::AttnOut) && acts(vec![2, 3], 3, Point::MlpOut));
        assert!(acts(vec![2, 3], 2, Point::ResidPre) && !acts(vec![2, 3], 3, Point::ResidPre));
        assert!(!acts(vec![2], 1, Point::MlpOut) && !acts(vec![2], 2, Point::ResidPost));
        let moved = at(vec![]).place(&Device::Cpu).unwrap().apply(Site::new(0, Point::MlpOut), &stream()).unwrap();
        for (after, before) in values(&moved).chunks(3).zip(values(&stream()).chunks(3)) {
            for (place, part) in into.iter().enumerate() {
                assert!((after[place] - before[place] + before[0] * part).abs() < 1e-6, "{after:?} {before:?}");
            }
        }
        let edit = at(vec![1]);
        assert_eq!(edit.place(&Device::Cpu).unwrap().edit().unwrap(), edit);
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

    fn added(vector: Vec<f32>, keep_norm: bool) -> Edit {
        Edit::Add { site: Site::new(0, Point::ResidPre), vector, keep_norm }
    }

    #[test]
    fn an_affine_edit_without_bias_is_the_low_rank_one() {
        let (w1, w2) = (vec![0.3_f32, -0.2, 0.9], vec![0.5_f32, 0.1, -0.4]);
        let down = w1.iter().zip(&w2).map(|(a, b)| a - b).collect();
        let site = Site::new(1, Point::ResidPre);
        let affine = Edit::Affine { site, rank: 1, up: w2.clone(), down, bias: vec![0.0] };
        let low_rank = Edit::LowRank { layer: 1, rank: 1, w1, w2 };
        let [a, b] =
            [affine, low_rank].map(|e| values(&e.place(&Device::Cpu).unwrap().apply(site, &stream()).unwrap()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
    }

    #[test]
    fn a_norm_that_is_kept_is_kept() {
        let edit = added(vec![2.0, -1.0, 0.5], true).place(&Device::Cpu).unwrap();
        let moved = edit.apply(Site::new(0, Point::ResidPre), &stream()).unwrap();
        let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (before, after) in values(&stream()).chunks(3).zip(values(&moved).chunks(3)) {
            assert!((norm(before) - norm(after)).abs() < 1e-5 && before != after);
        }
    }

    #[test]
    fn heads_are_mapped_one_by_one() {
        // Two heads of two: the first is swapped, the second doubled, then one is added to the last.
        let matrices = vec![0.0, 1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 2.0];
        let edit = Edit::Heads { layer: 0, matrices, bias: vec![0.0, 0.0, 0.0, 1.0], heads: 2 };
        let placed = edit.place(&Device::Cpu).unwrap();
        let x = Tensor::from_vec(vec![1.0_f32, 2.0, 3.0, 4.0], (1, 1, 4), &Device::Cpu).unwrap();
        assert_eq!(values(&placed.apply(Site::new(0, Point::Z), &x).unwrap()), [2.0, 1.0, 6.0, 9.0]);
        assert_eq!(placed.edit().unwrap(), edit);
    }

    #[test]
    fn several_edits_act_each_where_it_belongs() {
        let second = Edit::Add { site: Site::new(1, Point::ResidPre), vector: vec![1.0; 3], keep_norm: false };
        let both = Edit::Several { edits: vec![added(vec![2.0; 3], false), second] }.place(&Device::Cpu).unwrap();
        let sum =
            |layer| values(&both.apply(Site::new(layer, Point::ResidPre), &stream()).unwrap()).iter().sum::<f32>();
        assert_eq!(sum(0) - sum(1), 6.0);
        assert!(!both.acts_at(Site::new(2, Point::ResidPre)));
    }

    #[test]
    fn a_wrong_width_names_the_site() {
        let edit = added(vec![1.0; 4], false).place(&Device::Cpu).unwrap();
        let error = edit.apply(Site::new(0, Point::ResidPre), &stream()).unwrap_err().to_string();
        assert!(error.contains("blocks.0.hook_resid_pre") && error.contains("expected width 4, got 3"), "{error}");
    }
}
