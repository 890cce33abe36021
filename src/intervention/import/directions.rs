//! Vectors, with the blocks that they belong to where the artefact says: added or projected out.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::ArrayD;

use super::{Op, Terms};
use crate::intervention::Edit;
use crate::model::{Blueprint, Point, Site};
use crate::{Error, Result};

/// What an artefact of plain vectors holds.
pub(super) struct Directions<'a> {
    /// Names the artefact in errors.
    pub path: &'a Path,
    /// The vectors.
    pub vectors: Vectors,
    /// Where a vector is added.
    pub point: Point,
    /// The format's own operation.
    pub op: Option<Op>,
}

/// One vector, or one for each block.
pub(super) enum Vectors {
    /// One that isn't tied to a block.
    Free(Vec<f32>),
    /// One that is added at this block and projected out everywhere.
    From(i64, Vec<f32>),
    /// By block, in the artefact's own count.
    ByBlock(BTreeMap<i64, Vec<f32>>),
}

impl Directions<'_> {
    /// The edit and the blocks it acts on.
    pub fn edit(self, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
        let allowed: &[Op] = if self.point == Point::Z { &[Op::Add] } else { &[Op::Add, Op::Ablate] };
        match terms.op(self.path, self.op, allowed)? {
            Op::Ablate => self.ablate(terms, blueprint),
            _ => self.add(terms, blueprint),
        }
    }

    fn add(self, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
        let scale = terms.scale.unwrap_or(1.0);
        let mut sites: Vec<(Site, &Vec<f32>)> = vec![];
        match &self.vectors {
            Vectors::Free(vector) => {
                let layers = terms.layers.as_ref().ok_or_else(|| {
                    Error::file(self.path, "`layers`: expected the blocks to add the vector at, got nothing")
                        .hint("this artefact does not say which block it is for; give `layers=N`")
                })?;
                sites.extend(layers.iter().map(|layer| (Site::new(*layer, self.point), vector)));
            }
            Vectors::From(number, vector) => match &terms.layers {
                Some(layers) => sites.extend(layers.iter().map(|layer| (Site::new(*layer, self.point), vector))),
                None => sites.push((self.site(*number, terms, blueprint)?, vector)),
            },
            Vectors::ByBlock(vectors) => sites = self.chosen(vectors, terms, blueprint)?,
        }
        let mut edits = vec![];
        for (site, vector) in &sites {
            self.check(vector, blueprint)?;
            let vector = vector.iter().map(|v| (f64::from(*v) * scale) as f32).collect();
            edits.push(Edit::Add { site: *site, vector, keep_norm: false });
        }
        let mut layers: Vec<usize> = sites.iter().map(|(site, _)| site.layer).collect();
        layers.dedup();
        Ok((one_or_several(edits), layers))
    }

    fn ablate(self, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
        if terms.scale.is_some_and(|scale| scale != 1.0) {
            return Err(Error::file(self.path, "`scale`: a direction is projected out whole; expected none"));
        }
        let unit = |vector: &Vec<f32>| -> Result<Vec<f32>> {
            self.check(vector, blueprint)?;
            let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            if !length.is_normal() {
                return Err(Error::file(self.path, "expected a direction, got a vector of zeros"));
            }
            Ok(vector.iter().map(|v| (f64::from(*v) / length) as f32).collect())
        };
        match &self.vectors {
            Vectors::Free(vector) | Vectors::From(_, vector) => {
                let layers = terms.layers.clone().unwrap_or_default();
                let edit = Edit::Ablate { basis: unit(vector)?, rank: 1, layers: layers.clone() };
                Ok((edit, if layers.is_empty() { (0..blueprint.n_layers).collect() } else { layers }))
            }
            Vectors::ByBlock(vectors) => {
                let chosen = self.chosen(vectors, terms, blueprint)?;
                let ablated = |(site, vector): &(Site, &Vec<f32>)| {
                    Ok(Edit::Ablate { basis: unit(vector)?, rank: 1, layers: vec![site.layer] })
                };
                let edits = chosen.iter().map(ablated).collect::<Result<_>>()?;
                Ok((one_or_several(edits), chosen.iter().map(|(site, _)| site.layer).collect()))
            }
        }
    }

    /// The vectors of the wanted blocks.
    fn chosen<'v>(
        &self,
        vectors: &'v BTreeMap<i64, Vec<f32>>,
        terms: &Terms,
        blueprint: &Blueprint,
    ) -> Result<Vec<(Site, &'v Vec<f32>)>> {
        let Some(layers) = &terms.layers else {
            return vectors.iter().map(|(n, vector)| Ok((self.site(*n, terms, blueprint)?, vector))).collect();
        };
        let of = |layer: &usize| {
            let number = *layer as i64 - terms.layer_offset;
            let vector = vectors.get(&number).ok_or_else(|| {
                let held: Vec<String> = vectors.keys().map(|n| (n + terms.layer_offset).to_string()).collect();
                Error::file(self.path, format!("`layers`: expected some of {}, got {layer}", held.join(", ")))
            })?;
            Ok((Site::new(*layer, self.point), vector))
        };
        layers.iter().map(of).collect()
    }

    /// Where the vector of the artefact's block `number` is added.
    fn site(&self, number: i64, terms: &Terms, blueprint: &Blueprint) -> Result<Site> {
        let layer = number.saturating_add(terms.layer_offset);
        match usize::try_from(layer) {
            Ok(layer) if layer < blueprint.n_layers => Ok(Site::new(layer, self.point)),
            // The output of the embedding is the first block's input.
            _ if layer == -1 && self.point == Point::ResidPost => Ok(Site::new(0, Point::ResidPre)),
            _ => Err(Error::file(self.path, format!("expected blocks below {}, got {layer}", blueprint.n_layers))
                .hint("was it made for this model? `layer_offset` moves the numbers")),
        }
    }

    fn check(&self, vector: &[f32], blueprint: &Blueprint) -> Result<()> {
        let expected = if self.point == Point::Z { blueprint.n_heads * blueprint.head_dim } else { blueprint.d_model };
        if vector.len() != expected {
            let problem = format!("expected vectors of width {expected}, got {}", vector.len());
            return Err(Error::file(self.path, problem).hint("was it made for this model?"));
        }
        if !vector.iter().all(|v| v.is_finite()) {
            return Err(Error::file(self.path, "expected finite numbers, got NaN or infinity"));
        }
        Ok(())
    }
}

/// One vector of shape `[d]` or `[1, d]`.
pub(super) fn vector(path: &Path, name: &str, array: &ArrayD<f32>) -> Result<Vec<f32>> {
    match array.shape() {
        [_] | [1, _] => Ok(array.iter().copied().collect()),
        other => Err(Error::file(path, format!("tensor `{name}`: expected one vector, got shape {other:?}"))),
    }
}

pub(super) fn one_or_several(mut edits: Vec<Edit>) -> Edit {
    if edits.len() == 1 { edits.remove(0) } else { Edit::Several { edits } }
}
