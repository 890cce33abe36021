//! An edited checkpoint, such as an abliterated one: measured as it is, or by what it changes of the base.

use std::path::Path;

use super::{Change, Op, Terms};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

pub(super) fn load(path: &Path, terms: &Terms) -> Result<Change> {
    let op = terms.op(path, Some(Op::Replace), &[Op::Replace, Op::Add])?;
    terms.without_layers(path)?;
    // Damage shows here and not in the middle of a measurement.
    Checkpoint::open(path)?;
    let delta = match (op, terms.scale) {
        (Op::Add, scale) => Some(scale.unwrap_or(1.0)),
        (_, None | Some(1.0)) => None,
        (_, Some(_)) => {
            return Err(Error::file(path, "`scale`: weights that replace others have none; expected `op: add`"));
        }
    };
    Ok(Change::Weights { dir: path.to_owned(), delta })
}
