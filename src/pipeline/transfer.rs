//! How an edit for `transferred` is found: fitted on the source model once, carried to the block of the same depth by a map
//! that is fitted on the model that is measured, and scaled; strength and block are chosen on the validation hazards.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::bench::{Side, Source, Subject};
use super::cell::{Candidate, Cell, Fitted, Range, found, learned, order, place};
use crate::attack::direction::{Classes, Contrast, contrasts};
use crate::attack::learned::fit;
use crate::attack::spec::AttackKind;
use crate::attack::steering::Steering;
use crate::attack::transfer::{End, Map, same_depth};
use crate::intervention::Edit;
use crate::math::seed::Stream;
use crate::model::Point;
use crate::report::wording::percent;
use crate::{Error, Result};

/// An edit of the source model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    edit: Edit,
    /// What it is fitted on, in words.
    about: String,
    gradient_evaluations: u64,
}

impl Range<'_, '_> {
    /// The edit of a `transferred` row.
    pub(super) fn transfer(&self, cell: &Cell, subject: Subject<'_>, side: Side) -> Result<Fitted> {
        let missing = || Error::usage(format!("`{}`: expected a source model and what is fitted on it", cell.name));
        let source = self.bench.source(&cell.spec).ok_or_else(missing)?;
        let of = cell.spec.of.ok_or_else(missing)?;
        let mut best: Option<(Candidate, String)> = None;
        let mut evaluations = 0;
        for &layer in &cell.layers {
            let from = same_depth(layer, subject.decoder.n_layers(), source.decoder.n_layers());
            let origins = self.origins(cell, of, source, from)?;
            if origins.is_empty() {
                continue;
            }
            let map = self.map(cell, subject, side, source, (from, layer))?;
            for origin in origins {
                let arrived = map.carry(&origin.edit, layer)?;
                evaluations += origin.gradient_evaluations;
                for strength in strengths(cell, of) {
                    let edit = arrived.place(&Device::Cpu)?.amplified(strength)?.edit()?;
                    let candidate = self.candidate(cell, subject, edit, 0)?;
                    if best.as_ref().is_none_or(|(best, _)| order(&candidate.counts) > order(&best.counts)) {
                        let explained = percent(map.explained);
                        let about = &origin.about;
                        let choice = format!(
                            "{about}block {from} to block {layer}, strength {strength}, map explains {explained} of the variance"
                        );
                        best = Some((candidate, choice));
                    }
                }
            }
        }
        let Some((best, choice)) = best else {
            return Ok(Fitted { search: "no difference between the classes here".into(), ..found(Edit::Identity, 0) });
        };
        Ok(Fitted { search: choice.clone(), choice, ..found(best.edit, evaluations) })
    }

    fn map(
        &self,
        cell: &Cell,
        subject: Subject<'_>,
        side: Side,
        source: &Source,
        (from, to): (usize, usize),
    ) -> Result<Map> {
        let ours = End { decoder: &source.decoder, data: &source.attack, layer: from };
        let theirs = End { decoder: subject.decoder, data: &self.bench.attack, layer: to };
        let mut stream = Stream::new(self.bench.seed, &format!("attack/map/{}/{to}", place(cell, side)));
        Map::fit(cell.spec.map.unwrap_or_default(), ours, theirs, cell.spec.pairs, &mut stream)
    }

    /// What the attack finds on the source at one block; nothing where the classes do not differ there.
    fn origins(&self, cell: &Cell, of: AttackKind, source: &Source, layer: usize) -> Result<Vec<Origin>> {
        let (decoder, data, pairs) = (&source.decoder, &source.attack, cell.spec.pairs);
        let origin = |edit: Edit, about: String| Origin { edit, about, gradient_evaluations: 0 };
        match (of, cell.spec.form()) {
            (_, Some(form)) => {
                let mut settings = learned(cell, form, cell.spec.learning_rate);
                settings.layers = vec![layer];
                let name = format!("source/{}/{layer}", place(cell, Side::Base));
                let what = (&source.identity, &cell.spec);
                let origin = self.units.cached(&self.bench.key(&format!("fit/{name}"), &what), || {
                    let mut stream = Stream::new(self.bench.seed, &format!("attack/{name}"));
                    let fitted = fit(decoder, data, &settings, &mut stream)?;
                    let evaluations = fitted.gradient_evaluations as u64;
                    Ok(Origin { gradient_evaluations: evaluations, ..origin(fitted.edit, String::new()) })
                })?;
                Ok(vec![origin])
            }
            (AttackKind::Ablation, None) => {
                let by_contrast = |contrast: Contrast| -> Result<Option<Origin>> {
                    let classes = Classes::collect(decoder, data, contrast, pairs, Point::ResidPre, 0)?;
                    let about = format!("hazards against {}, ", contrast.name());
                    Ok(classes[layer].projection(1).ok().map(|edit| origin(edit, about)))
                };
                Ok(contrasts(data)
                    .into_iter()
                    .map(by_contrast)
                    .collect::<Result<Vec<_>>>()?
                    .into_iter()
                    .flatten()
                    .collect())
            }
            (of, None) => {
                let steering = Steering::find(of, &[layer], decoder, data, pairs)?;
                Ok(steering.map(|steering| origin(steering.edit(1.0), String::new())).into_iter().collect())
            }
        }
    }
}

/// Factors on the edit that arrives: of either sign for a direction, which has none of its own.
fn strengths(cell: &Cell, of: AttackKind) -> Vec<f64> {
    match (of, cell.spec.coefficients.as_slice()) {
        (AttackKind::Ablation, _) | (_, []) => vec![1.0],
        (AttackKind::MeanDifference, given) => given.iter().flat_map(|c| [-c, *c]).collect(),
        (_, given) => given.to_vec(),
    }
}
