//! How an edit for `transferred` is found: fitted on the source model once, carried to the block of the same depth by a map
//! that is fitted on the model that is measured, and scaled; strength and block are chosen on the validation hazards.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::bench::{Side, Source, Subject};
use super::cell::{Cell, Fitted, Range, Setting, found, learned, nothing, of_base, of_either_sign, place, upwards};
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
    /// The edit of a `transferred` row; the base's is a candidate.
    pub(super) fn transfer(
        &self,
        cell: &Cell,
        subject: Subject<'_>,
        side: Side,
        start: Option<&Edit>,
    ) -> Result<Fitted> {
        let missing = || Error::usage(format!("`{}`: expected a source model and what is fitted on it", cell.name));
        let source = self.bench.source(&cell.spec).ok_or_else(missing)?;
        let of = cell.spec.of.ok_or_else(missing)?;
        let (mut settings, mut evaluations, mut ladder) = (vec![], 0, 0);
        for &layer in &cell.layers {
            let from = same_depth(layer, subject.decoder.n_layers(), source.decoder.n_layers());
            let origins = self.origins(cell, of, source, from)?;
            if origins.is_empty() {
                continue;
            }
            let map = self.map(cell, subject, side, source, (from, layer))?;
            let explained = percent(map.explained);
            for Origin { edit, about, gradient_evaluations } in origins {
                let arrived = map.carry(&edit, layer)?.place(&Device::Cpu)?;
                evaluations += gradient_evaluations;
                for (sign, strength) in strengths(cell, of) {
                    let choice = format!(
                        "{about}block {from} to block {layer}, strength {strength}, map explains {explained} of the variance"
                    );
                    let edit = arrived.amplified(strength)?.edit()?;
                    settings.push(Setting { choice, edit, ladder: Some(ladder + sign) });
                }
                ladder += SIGNS;
            }
        }
        if settings.is_empty() {
            settings.push(nothing());
        }
        settings.extend(start.map(of_base));
        let (best, choice, at_edge) = self.strongest(cell, subject, settings)?.ok_or_else(missing)?;
        Ok(Fitted { search: choice.clone(), choice, at_edge, ..found(best.edit, evaluations) })
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

/// Ladders of an edit that arrives: strengths below zero, and above.
const SIGNS: usize = 2;

/// Factors on the edit that arrives, each with the number of its sign: of either sign for a direction, which has none of its own.
fn strengths(cell: &Cell, of: AttackKind) -> Vec<(usize, f64)> {
    match (of, cell.spec.coefficients.as_slice()) {
        // As found it points towards hazards, which is where refusals are: an attacker goes the other way, and not all of it.
        (AttackKind::MeanDifference, []) => of_either_sign(&[0.25, 0.5, 1.0]),
        (AttackKind::MeanDifference, given) => of_either_sign(given),
        (AttackKind::Ablation, _) | (_, []) => vec![(1, 1.0)],
        (_, given) => {
            // Upwards from none, on either side: the weakest of a ladder comes first.
            let mut given = given.to_vec();
            upwards(&mut given);
            given.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
            given.into_iter().map(|strength| (usize::from(strength > 0.0), strength)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::pipeline::suite::Grid;
    use crate::recipe::Suite;

    #[test]
    fn strengths_begin_with_the_weakest_of_either_sign() {
        let row = "attacks: [{kind: transferred, source: a/b, of: noreft, layers: [0], coefficients: [-2, 1, -0.5]}]";
        let grid = Grid::new(&Suite::parse(row, Path::new("suite.yaml")).unwrap(), 1).unwrap();
        assert_eq!(strengths(&grid.attacks[0], AttackKind::Noreft), [(0, -0.5), (1, 1.0), (0, -2.0)]);
    }
}
