//! Attacks by added vectors: found from activations without any gradient, at a strength that is swept.
//!
//! *Sources*: `mean-difference`: contrastive activation addition (ActAdd, CAA); `principal-component`: representation
//! engineering's control vectors; `in-context-vector`: Safety Arithmetic (2024), whose norm-preserving vector is applied
//! with either sign; `iti-heads`: Li et al. 2023, "Inference-Time Intervention", aimed away from refusal.

use super::AttackData;
use super::direction::{Classes, Contrast};
use super::probe::{Ties, chosen, ranked};
use super::spec::AttackKind;
use crate::intervention::Edit;
use crate::math::rows::principal;
use crate::model::{Decoder, Point, Site};
use crate::{Error, Result};

/// Vectors by site whose common strength is still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    vectors: Vec<(Site, Vec<f32>)>,
    keep_norm: bool,
}

impl Steering {
    /// Finds the vectors of an attack of `kind` on `layers` from `pairs` prompts of each class; `None` when the classes do not
    /// differ at any of the blocks, as at the first one's input where all prompts end in the same token.
    ///
    /// # Errors
    /// When a class is empty, or `kind` is no such attack.
    pub fn find(
        kind: AttackKind,
        layers: &[usize],
        decoder: &Decoder,
        data: &AttackData,
        pairs: usize,
    ) -> Result<Option<Self>> {
        Ok(Self::variants(kind, layers, decoder, data, pairs)?.into_iter().next())
    }

    /// All that are worth trying, as [`Steering::find`] finds the first of them: of heads, those that two ways of settling ties choose.
    ///
    /// # Errors
    /// As [`Steering::find`].
    pub fn variants(
        kind: AttackKind,
        layers: &[usize],
        decoder: &Decoder,
        data: &AttackData,
        pairs: usize,
    ) -> Result<Vec<Self>> {
        let point = if kind == AttackKind::ItiHeads { Point::Z } else { Point::ResidPre };
        let classes: Vec<Classes> = Classes::collect(decoder, data, Contrast::Harmless, pairs, point, 0)?
            .into_iter()
            .filter(|classes| layers.contains(&classes.site.layer))
            .collect();
        let differ = |classes: &&Classes| classes.direction().is_ok();
        let keep_norm = kind == AttackKind::InContextVector;
        let vectors: Vec<(Site, Vec<f32>)> = match kind {
            AttackKind::MeanDifference => {
                let scaled = |c: &Classes| Some((c.site, scale(&c.direction().ok()?, c.norm())));
                classes.iter().filter_map(scaled).collect()
            }
            AttackKind::PrincipalComponent => classes
                .iter()
                .filter(differ)
                .map(|c| (c.site, scale(&principal(&c.pair_differences(), c.width, 1), c.norm())))
                .collect(),
            AttackKind::InContextVector => classes
                .iter()
                .filter(differ)
                .map(|c| {
                    let differences = c.pair_differences();
                    let mut component = principal(&differences, c.width, 1);
                    let mean = c.difference();
                    // A component has no sign of its own: it takes the mean's, and its length.
                    let along: f32 = component.iter().zip(&mean).map(|(a, b)| a * b).sum();
                    component.iter_mut().zip(&mean).for_each(|(v, m)| *v = *v * along + m);
                    let length = component.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                    (c.site, scale(&component, c.norm() / f64::from(length)))
                })
                .collect(),
            AttackKind::ItiHeads => {
                let of = |ties| Self { vectors: heads(&classes, decoder.blueprint().n_heads, ties), keep_norm };
                let mut found: Vec<Self> = Ties::ALL.map(of).into();
                found.dedup();
                found.retain(|steering| !steering.vectors.is_empty());
                return Ok(found);
            }
            other => return Err(Error::input(format!("{other:?}"), "expected an attack by added vectors")),
        };
        let found = if vectors.is_empty() { vec![] } else { vec![Self { vectors, keep_norm }] };
        Ok(found)
    }

    /// The edit of strength `coefficient`: negative ones push hazards towards the harmless side.
    #[must_use]
    pub fn edit(&self, coefficient: f64) -> Edit {
        let mut edits: Vec<Edit> = self
            .vectors
            .iter()
            .map(|(site, vector)| Edit::Add {
                site: *site,
                vector: scale(vector, coefficient),
                keep_norm: self.keep_norm,
            })
            .collect();
        if edits.len() == 1 { edits.remove(0) } else { Edit::Several { edits } }
    }
}

fn scale(vector: &[f32], factor: f64) -> Vec<f32> {
    vector.iter().map(|v| (f64::from(*v) * factor) as f32).collect()
}

/// Shifts of the heads that part the classes best: at most a quarter of all.
fn heads(classes: &[Classes], n_heads: usize, ties: Ties) -> Vec<(Site, Vec<f32>)> {
    let mut probes = ranked(classes, n_heads, ties);
    probes.truncate(chosen(classes.len() * n_heads));
    let mut vectors = vec![];
    for (block, classes) in classes.iter().enumerate() {
        let mut vector = vec![0.0; classes.width];
        for probe in probes.iter().filter(|probe| probe.block == block) {
            let from = probe.head * classes.width / n_heads;
            vector[from..from + probe.shift.len()].copy_from_slice(&probe.shift);
        }
        if vector.iter().any(|v| *v != 0.0) {
            vectors.push((classes.site, vector));
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;

    #[test]
    fn the_head_that_parts_the_classes_is_found() {
        // Two heads of four; only the second one's first unit knows the class.
        let mut stream = Stream::new(2, "heads");
        let mut rows = |class: f32| -> Vec<f32> {
            let noise: Vec<f32> = stream.gaussian(40 * 8, 0.3);
            noise.iter().enumerate().map(|(i, v)| if i % 8 == 4 { v + class } else { *v }).collect()
        };
        let classes = Classes { site: Site::new(0, Point::Z), width: 8, hazard: rows(1.0), harmless: rows(-1.0) };
        let found = heads(&[classes], 2, Ties::Earlier);
        assert_eq!(found.len(), 1);
        let vector = &found[0].1;
        assert!(vector[..4].iter().all(|v| *v == 0.0), "{vector:?}");
        assert!(vector[4] > 0.5 && vector[5..].iter().all(|v| v.abs() < vector[4] / 2.0), "{vector:?}");
    }

    #[test]
    fn strength_scales_every_vector() {
        let site = |layer| Site::new(layer, Point::ResidPre);
        let steering =
            Steering { vectors: vec![(site(0), vec![1.0, 0.0]), (site(1), vec![0.0, 2.0])], keep_norm: true };
        let Edit::Several { edits } = steering.edit(-0.5) else { panic!("two edits") };
        assert_eq!(edits[1], Edit::Add { site: site(1), vector: vec![-0.0, -1.0], keep_norm: true });
    }
}
