//! Rows of one attack taken together over its blocks.

use super::interval::{Measured, Rate};
use super::schema::{AttackRow, Outcome, Report};
use super::threshold::Rates;

/// Mean over cells of the same prompts, with the mean of the cells' interval ends.
///
/// Cells share their prompts, so they rise and fall together: pooling their counts would pretend to more samples than there
/// are. The mean of the ends is the interval of perfectly dependent cells, the widest that can be.
pub fn mean_outcome<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Option<Measured> {
    let (mut value, mut low, mut high, mut n, mut cells) = (0.0, 0.0, 0.0, 0, 0.0);
    for outcome in outcomes {
        value += outcome.asr;
        low += outcome.low;
        high += outcome.high;
        n += outcome.n;
        cells += 1.0;
    }
    (cells > 0.0).then(|| Measured { value: value / cells, n, low: low / cells, high: high / cells })
}

/// The rows that share name, positions and knowledge, in report order.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// Its rows; one at least.
    pub rows: Vec<&'a AttackRow>,
}

impl<'a> Group<'a> {
    /// Groups rows in order of first appearance.
    #[must_use]
    pub fn of(rows: &'a [AttackRow]) -> Vec<Self> {
        let mut groups: Vec<Self> = vec![];
        for row in rows {
            match groups.iter_mut().find(|g| g.first().same_attack(row) && g.first().adaptive == row.adaptive) {
                Some(group) => group.rows.push(row),
                None => groups.push(Self { rows: vec![row] }),
            }
        }
        groups
    }

    /// The row that speaks for what all rows share.
    #[must_use]
    pub fn first(&self) -> &'a AttackRow {
        self.rows[0]
    }

    /// The rows that count, and those that are shown whether or not they do.
    pub fn applicable(&self) -> impl Iterator<Item = &'a AttackRow> + '_ {
        self.rows.iter().copied().filter(|row| row.applicable || row.ungated)
    }

    /// Mean attack success of the counting rows on the un-hardened model.
    #[must_use]
    pub fn base(&self) -> Option<Measured> {
        mean_outcome(self.applicable().filter_map(|row| row.base.as_ref()))
    }

    /// Mean attack success of the counting rows on the hardened model.
    #[must_use]
    pub fn hardened(&self) -> Option<Measured> {
        mean_outcome(self.applicable().map(|row| &row.hardened))
    }

    /// Mean corrected attack success of the counting rows on the hardened model; absent unless all of them have one.
    #[must_use]
    pub fn corrected(&self) -> Option<Measured> {
        let all = self.applicable().all(|row| row.hardened.corrected.is_some());
        let corrected: Vec<Outcome> = self.applicable().map(|row| row.hardened.by(Rates::Corrected)).collect();
        mean_outcome(corrected.iter()).filter(|_| all)
    }

    /// The counting row with the highest attack success on the hardened model, in its worst repetition.
    #[must_use]
    pub fn worst(&self) -> Option<&'a AttackRow> {
        let asr = |row: &AttackRow| row.worst_repetition().asr;
        self.applicable().reduce(|worst, row| if asr(row) > asr(worst) { row } else { worst })
    }
}

impl AttackRow {
    /// Whether both rows are the same attack, blocks and knowledge aside.
    #[must_use]
    pub fn same_attack(&self, other: &Self) -> bool {
        self.name == other.name && self.positions == other.positions
    }

    /// Whether the edit of the hardened model is the best of a search, which the un-hardened one is not.
    #[must_use]
    pub fn is_searched(&self) -> bool {
        self.adaptive && self.budget.steps > 0 && self.name.split(' ').any(|part| part == "search")
    }

    /// The repetition with the highest attack success, the first of equals: what an attacker who tries as often is left with.
    #[must_use]
    pub fn worst_repetition(&self) -> Outcome {
        let worse = |worst: Outcome, one: Outcome| if one.asr > worst.asr { one } else { worst };
        self.repetitions.iter().copied().reduce(worse).unwrap_or(self.hardened)
    }

    /// The lowest and the highest attack success of several repetitions.
    #[must_use]
    pub fn spread(&self) -> Option<(f64, f64)> {
        let rates = || self.repetitions.iter().map(|one| one.asr);
        (!self.repetitions.is_empty()).then(|| (rates().fold(1.0, f64::min), rates().fold(0.0, f64::max)))
    }

    /// Whether the attack plainly does better on the hardened model than on the un-hardened one: by the intervals that independent
    /// answers would have. They are the narrower ones, and here the doubt is on the defence's side.
    #[must_use]
    pub fn has_risen(&self) -> bool {
        let alone = |outcome: Outcome| Rate::new((outcome.asr * outcome.n as f64).round() as u64, outcome.n).wilson();
        self.base.is_some_and(|base| alone(self.hardened).0 > alone(base).1)
    }
}

impl Report {
    /// Whether any row has a rate corrected for the judge.
    #[must_use]
    pub fn has_corrected(&self) -> bool {
        self.attacks.iter().chain(&self.controls).any(|row| row.hardened.corrected.is_some())
    }

    /// Whether any row has several repetitions.
    #[must_use]
    pub fn has_repetitions(&self) -> bool {
        self.attacks.iter().chain(&self.controls).any(|row| !row.repetitions.is_empty())
    }

    /// Attack rows grouped over blocks.
    #[must_use]
    pub fn groups(&self) -> Vec<Group<'_>> {
        Group::of(&self.attacks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn phrasings_that_are_answered_alike_hide_no_attack_that_hardening_opened() {
        let mut row = sample::report().attacks.remove(0);
        let outcome = |successes, low, high| Outcome {
            low,
            high,
            effective_n: Some(80.0),
            ..Outcome::from_counts(successes, 200 - successes, 0, 200)
        };
        // 8 and 32 of 200 are apart as independent answers (7.7% and 11.6%), and not as 80 of them.
        row.base = Some(outcome(8, 0.014, 0.112));
        row.hardened = outcome(32, 0.093, 0.26);
        assert!(row.has_risen());
        row.hardened = outcome(14, 0.03, 0.15);
        assert!(!row.has_risen());
    }

    #[test]
    fn a_mean_of_cells_is_no_more_certain_than_a_cell() {
        let cell = Outcome::from_counts(20, 180, 0, 200);
        let mean = mean_outcome([&cell, &cell, &cell].into_iter()).unwrap();
        assert!((mean.high - cell.high).abs() < 1e-12 && (mean.low - cell.low).abs() < 1e-12);
        assert_eq!(mean_outcome([].into_iter()), None);
    }

    #[test]
    fn groups_keep_knowledge_apart_and_skip_what_does_not_count() {
        let report = sample::report();
        let groups = report.groups();
        assert_eq!(groups.len(), 3, "noreft frozen, noreft re-fitted, ablation");
        assert_eq!((groups[2].rows.len(), groups[2].applicable().count()), (2, 1));
        assert_eq!(groups[1].worst().map(|row| row.layers.clone()), Some(vec![5]));
    }
}
