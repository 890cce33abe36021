//! What stands beside an attack to compare it with: a random edit of its size, or none.

use super::cell::{Cell, name_of, steps};
use crate::Result;
use crate::attack::spec::{AttackKind, AttackSpec};
use crate::intervention::Positions;
use crate::recipe::Suite;

/// The `random` rows of a suite: with which settings a learned edit's size is taken, and at which blocks.
pub(super) struct RandomSizes(Vec<(Size, Vec<usize>)>);

/// What the size of a learned edit depends on.
type Size = (usize, usize, usize, usize, u64, Positions);

impl RandomSizes {
    pub(super) fn of(suite: &Suite, n_layers: usize) -> Result<Self> {
        let rows = suite.attacks.iter().enumerate().filter(|(_, spec)| spec.kind == AttackKind::Random);
        let size = |(row, spec): (usize, &AttackSpec)| {
            Ok((Self::size(spec), spec.layers.resolve(n_layers, &format!("suite.attacks.{row}.layers"))?))
        };
        Ok(Self(rows.map(size).collect::<Result<_>>()?))
    }

    fn size(spec: &AttackSpec) -> Size {
        (spec.rank, spec.pairs, steps(spec), spec.batch, spec.learning_rate.to_bits(), spec.positions)
    }

    /// Whether the suite asks for random edits.
    pub(super) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether one of these rows is the control of a learned edit of these settings at `place`, or none is asked for.
    pub(super) fn has(&self, spec: &AttackSpec, place: &[usize]) -> bool {
        let here = |(size, blocks): &(Size, Vec<usize>)| {
            *size == Self::size(spec) && place.iter().all(|block| blocks.contains(block))
        };
        !self.any() || self.0.iter().any(here)
    }
}

/// The control of the recipe's `random` row: the size of a learned edit of the same settings.
pub(super) fn of_learned(cell: Cell) -> Cell {
    let spec = AttackSpec { kind: AttackKind::Noreft, search: None, ..cell.spec.clone() };
    let attack = Cell { name: name_of(&spec), spec, control_of: None, ..cell.clone() };
    Cell { control_of: Some(Box::new(attack)), ..cell }
}

/// The same weights without an edit: what they refuse by themselves.
pub(super) fn without_edit(cell: &Cell) -> Cell {
    let spec = AttackSpec { kind: AttackKind::Identity, ..cell.spec.clone() };
    Cell { name: name_of(&spec), spec, ..cell.clone() }
}

/// A control of the kind and size of `cell`'s own edit.
pub(super) fn like(cell: &Cell) -> Cell {
    let spec = AttackSpec { kind: AttackKind::Random, ..cell.spec.clone() };
    Cell { name: format!("random like {}", cell.name), spec, control_of: Some(Box::new(cell.clone())), ..cell.clone() }
}
