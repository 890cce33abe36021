//! Rows that are what another tool made: read and held against the model before anything is measured, then an edit or a change of
//! weights like any other.

use std::path::Path;
use std::sync::Arc;

use super::bench::{Side, Subject};
use super::cell::{Cell, Fitted, Range, found, place, relative_norm, reweighed, settings};
use super::weights::{Reweighting, spectrum};
use crate::attack::spec::AttackKind;
use crate::checkpoint::Checkpoint;
use crate::defence::trainable::merge;
use crate::intervention::import::{self, Change, Imported, Terms};
use crate::intervention::{Layers, Positions};
use crate::model::{Blueprint, Decoder};
use crate::{Error, Result};

impl Range<'_, '_> {
    /// The edit, or change of weights, that an artefact of another tool is.
    pub(super) fn imported(&self, cell: &Cell, subject: Subject<'_>) -> Result<Fitted> {
        let (spec, file) = (&cell.spec, file_of(cell)?);
        let digest = import::digest(file)?.to_string();
        let what = (subject.identity, settings(spec, None), &spec.layers, &cell.layers, &digest);
        let key = self.bench.key(&format!("fit/{}", cell.name), &what);
        self.units.cached(&key, || {
            let imported = artefact(cell, subject.decoder.blueprint())?;
            let (file, short) = (file.to_owned(), digest[..12].to_owned());
            let mut fitted = match imported.change {
                Change::Edit(edit) => {
                    let relative_norm = relative_norm(subject.decoder, &edit, &self.bench.evaluation.prompts)?;
                    Fitted { relative_norm, ..found(edit, 0) }
                }
                Change::Adapters(_) => {
                    reweighed(Reweighting::Adapters { file, digest: digest.clone(), scale: spec.scale })
                }
                Change::Weights { delta, .. } => {
                    reweighed(Reweighting::Checkpoint { file, digest: digest.clone(), delta })
                }
            };
            fitted.search = format!("{}, sha256 {short}", imported.format.name());
            if let Some(weights) = &fitted.weights {
                let changed = self.reweighted(weights, subject)?;
                fitted.search = format!("{}: {}", fitted.search, spectrum(subject.decoder, &changed)?);
            }
            fitted.layers = Some(imported.layers);
            Ok(fitted)
        })
    }

    /// The control of an artefact: random numbers of its kind and size.
    pub(super) fn like_imported(&self, cell: &Cell, attack: &Cell, subject: Subject<'_>, side: Side) -> Result<Fitted> {
        let like = self.imported(attack, subject)?;
        let stream = format!("attack/{}", place(cell, side));
        let fitted = match like.weights {
            Some(like) => reweighed(Reweighting::Random { like: Box::new(like), stream }),
            None => {
                let edit = self.control_edit(cell, &like.edit, subject, &stream)?;
                let relative_norm = relative_norm(subject.decoder, &edit, &self.bench.evaluation.prompts)?;
                Fitted { relative_norm, ..found(edit, 0) }
            }
        };
        Ok(Fitted { layers: like.layers, ..fitted })
    }
}

/// The file or folder of an `imported` row.
fn file_of(cell: &Cell) -> Result<&Path> {
    let missing = || Error::usage(format!("`{}`: expected a file to import", cell.name));
    cell.spec.file.as_deref().ok_or_else(missing)
}

/// What the file of an `imported` row holds, for a model of the shape `blueprint`.
fn artefact(cell: &Cell, blueprint: &Blueprint) -> Result<Imported> {
    let spec = &cell.spec;
    let terms = Terms {
        op: spec.op,
        scale: spec.scale,
        layers: (spec.layers != Layers::default()).then(|| cell.layers.clone()),
        layer_offset: spec.layer_offset.unwrap_or(0),
    };
    import::load(file_of(cell)?, &terms, blueprint)
}

/// The attack that a cell is, or is the control of.
fn attack_of(cell: &Cell) -> &Cell {
    cell.control_of.as_deref().unwrap_or(cell)
}

/// Refuses the artefact of a cell, or of the attack that it is the control of, where `decoder` has no use for it.
///
/// # Errors
/// As [`import::load`], [`merge`] and [`Decoder::stream`].
pub(super) fn check_artefact(cell: &Cell, decoder: &Decoder) -> Result<()> {
    let attack = attack_of(cell);
    if attack.spec.kind != AttackKind::Imported {
        return Ok(());
    }
    let change = artefact(attack, decoder.blueprint())?.change;
    if attack.spec.positions != Positions::All && !matches!(change, Change::Edit(_)) {
        let problem = "changed weights act on every token; expected `positions: all`, got others";
        return Err(Error::file(file_of(attack)?, problem));
    }
    match change {
        Change::Edit(_) => Ok(()),
        Change::Adapters(adapters) => {
            let file = file_of(attack)?;
            merge(decoder, &adapters).map(drop).map_err(|error| Error::file(file, error.to_string()))
        }
        Change::Weights { dir, .. } => {
            let edited = Decoder::stream(&Arc::new(Checkpoint::open(&dir)?), decoder.device())?;
            if edited.blueprint() == decoder.blueprint() {
                return Ok(());
            }
            Err(Error::file(&dir, "expected the architecture of the model that it is for, got another"))
        }
    }
}

/// Whether a cell is about the difference from the un-hardened base, and nothing without it.
///
/// # Errors
/// As [`import::load`].
pub(super) fn needs_base(cell: &Cell, blueprint: &Blueprint) -> Result<bool> {
    let attack = attack_of(cell);
    Ok(match attack.spec.kind {
        AttackKind::DeltaStrip => true,
        AttackKind::Imported => matches!(artefact(attack, blueprint)?.change, Change::Weights { delta: Some(_), .. }),
        _ => false,
    })
}
