//! Attacks by added vectors: found from activations without any gradient, at a strength that is swept.
//!
//! *Sources*: `mean-difference`: contrastive activation addition (ActAdd, CAA); `principal-component`: representation
//! engineering's control vectors; `in-context-vector`: Safety Arithmetic (2024), whose norm-preserving vector is applied
//! with either sign; `iti-heads`: Li et al. 2023, "Inference-Time Intervention", aimed away from refusal.

use super::AttackData;
use super::direction::{Classes, Contrast};
use super::probe::{Ties, numbers, ranked};
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
        let mut found = Sought { kind, layers, decoder, data, pairs }.against(Contrast::Harmless)?;
        Ok(if found.is_empty() { None } else { Some(found.swap_remove(0).1) })
    }

    /// All that are worth trying, each with what tells it from the first, which [`Steering::find`] finds: of heads, several numbers and
    /// two ways of settling ties; of vectors, against harmless requests and, where there are any, against the hazards' twins.
    ///
    /// # Errors
    /// As [`Steering::find`].
    pub fn variants(
        kind: AttackKind,
        layers: &[usize],
        decoder: &Decoder,
        data: &AttackData,
        pairs: usize,
    ) -> Result<Vec<(String, Self)>> {
        let sought = Sought { kind, layers, decoder, data, pairs };
        let mut found = sought.against(Contrast::Harmless)?;
        if kind != AttackKind::ItiHeads && !data.twins.is_empty() {
            let twins = sought.against(Contrast::Twins)?;
            let how = |how: String| format!("{how}, hazards against {}", Contrast::Twins.name());
            found.extend(twins.into_iter().map(|(of, steering)| (how(of), steering)));
        }
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

/// What vectors are looked for, and in what.
struct Sought<'a> {
    kind: AttackKind,
    layers: &'a [usize],
    decoder: &'a Decoder,
    data: &'a AttackData,
    /// Prompts of each class.
    pairs: usize,
}

impl Sought<'_> {
    /// What is found between hazards and the prompts of `contrast`; several choices of heads, of vectors one at most.
    fn against(&self, contrast: Contrast) -> Result<Vec<(String, Steering)>> {
        let &Self { kind, layers, decoder, data, pairs } = self;
        let point = if kind == AttackKind::ItiHeads { Point::Z } else { Point::ResidPre };
        let classes: Vec<Classes> = Classes::collect(decoder, data, contrast, pairs, point, 0)?
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
                let n_heads = decoder.blueprint().n_heads;
                let all = classes.len() * n_heads;
                let mut found: Vec<(String, Steering)> = vec![];
                for most in numbers(all) {
                    for ties in Ties::ALL {
                        let steering = Steering { vectors: heads(&classes, n_heads, most, ties), keep_norm };
                        let known = found.iter().any(|(_, other)| *other == steering);
                        if !known && !steering.vectors.is_empty() {
                            found.push((format!(", {most} heads{}", ties.how()), steering));
                        }
                    }
                }
                return Ok(found);
            }
            other => return Err(Error::input(format!("{other:?}"), "expected an attack by added vectors")),
        };
        Ok(if vectors.is_empty() { vec![] } else { vec![(String::new(), Steering { vectors, keep_norm })] })
    }
}

fn scale(vector: &[f32], factor: f64) -> Vec<f32> {
    vector.iter().map(|v| (f64::from(*v) * factor) as f32).collect()
}

/// Shifts of the heads that part the classes best, at most so many.
fn heads(classes: &[Classes], n_heads: usize, most: usize, ties: Ties) -> Vec<(Site, Vec<f32>)> {
    let mut probes = ranked(classes, n_heads, ties);
    probes.truncate(most);
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
        let found = heads(&[classes], 2, 1, Ties::Earlier);
        assert_eq!(found.len(), 1);
        let vector = &found[0].1;
        assert!(vector[..4].iter().all(|v| *v == 0.0), "{vector:?}");
        assert!(vector[4] > 0.5 && vector[5..].iter().all(|v| v.abs() < vector[4] / 2.0), "{vector:?}");
    }

    #[test]
    fn a_shift_is_that_of_all_rows_and_more_heads_are_shifted_where_more_are_asked_for() {
        // Rows of one number a head: even and odd ones differ in how far the classes lie apart, the second head parts them less surely.
        let rows = |class: f32| -> Vec<f32> {
            (0..8).flat_map(|row| [class * if row % 2 == 0 { 1.0 } else { 3.0 }, class + row as f32]).collect()
        };
        let classes = [Classes { site: Site::new(0, Point::Z), width: 2, hazard: rows(1.0), harmless: rows(-1.0) }];
        let few = &heads(&classes, 2, 1, Ties::Earlier)[0].1;
        // The spread of 1, 3, −1 and −3, each as often.
        assert!((few[0] - 5f32.sqrt()).abs() < 1e-6 && few[1] == 0.0, "{few:?}");
        let all = &heads(&classes, 2, 2, Ties::Earlier)[0].1;
        assert!(all[0] == few[0] && all[1] > 0.0, "{all:?}");
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
