//! Whether a report that was read holds figures that a measurement can give: one that is put together by hand, or damaged, must
//! not decide anything.

use super::schema::{AttackRow, Outcome, Pair, Report, Shard};
use super::{Measured, UtilityRow};

/// The first figure that no measurement gives: where it stands, what was expected and what is there.
pub(super) fn problem(report: &Report) -> Option<String> {
    if let Some(i) = report.summary.curves.iter().position(|curve| curve.points.is_empty()) {
        return Some(format!("`summary.curves.{i}.points`: expected one point at least, got an empty list"));
    }
    if let Some(Shard { index, count }) = report.shard
        && !(1..=count).contains(&index)
    {
        return Some(format!("`shard`: expected a number from 1 to {count}, got {index}"));
    }
    let clean = &report.clean;
    let pairs = [("refusal", &clean.refusal), ("over_refusal", &clean.over_refusal), ("degenerate", &clean.degenerate)];
    let clean =
        pairs.into_iter().find_map(|(key, pair)| of_pair(pair).map(|problem| format!("`clean.{key}`: {problem}")));
    let rows = [("attacks", &report.attacks), ("controls", &report.controls)].into_iter();
    let mut rows = rows.flat_map(|(list, rows)| rows.iter().enumerate().map(move |(i, row)| (list, i, row)));
    let attacked = rows.find_map(|(list, i, row)| {
        let found = || row.base.iter().chain([&row.hardened]).chain(&row.repetitions).find_map(of_outcome);
        Some(format!("`{list}.{i}`: {}", of_repetitions(row).or_else(found)?))
    });
    let utility = report.utility.iter().enumerate();
    let cost = || utility.clone().find_map(|(i, row)| Some(format!("`utility.{i}`: {}", of_task(row)?)));
    clean.or(attacked).or_else(cost)
}

fn of_pair(pair: &Pair) -> Option<String> {
    pair.base.iter().chain([&pair.hardened]).find_map(|rate| of_rate(rate.value, rate.low, rate.high, rate.n))
}

/// Repetitions are all there or, where there is one, none.
fn of_repetitions(row: &AttackRow) -> Option<String> {
    let listed = row.repetitions.len() as u64;
    (listed > 0 && listed != row.seeds).then(|| format!("expected {} repetitions, got {listed}", row.seeds))
}

fn of_outcome(outcome: &Outcome) -> Option<String> {
    let Outcome { asr, refused, degenerate, n, low, high, .. } = *outcome;
    let corrected = || {
        let Measured { value, low, high, n } = outcome.corrected?;
        // The estimate may lie outside of the interval, which is made of other, shrunken rates.
        let within = (0.0..=1.0).contains(&value) && 0.0 <= low && low <= high && high <= 1.0;
        (!within || n == 0)
            .then(|| format!("expected `corrected` from 0 to 1, got {value} in {low} to {high}, n = {n}"))
    };
    let shares = [("refused", refused), ("degenerate", degenerate)];
    let share = || shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share));
    of_rate(asr, low, high, n)
        .or_else(corrected)
        .or_else(|| share().map(|(name, share)| format!("expected `{name}` from 0 to 1, got {share}")))
}

/// A rate among `n`; among none anything is possible, so its interval is all of it.
fn of_rate(value: f64, low: f64, high: f64, n: u64) -> Option<String> {
    let ordered = 0.0 <= low && low <= value && value <= high && high <= 1.0;
    let known = n > 0 || (low <= 0.0 && high >= 1.0);
    (!ordered || !known)
        .then(|| format!("expected a rate from 0 to 1 within its interval, got {value} in {low} to {high}, n = {n}"))
}

fn of_task(row: &UtilityRow) -> Option<String> {
    let turned = |measured: &&Measured| measured.low > measured.high;
    let Measured { low, high, .. } = row.base.iter().chain([&row.hardened]).chain(&row.delta).find(turned)?;
    Some(format!("expected an interval, got {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::super::sample::report;
    use super::*;

    #[test]
    fn what_no_measurement_gives_is_named() {
        assert_eq!(problem(&report()), None);
        type Damage = fn(&mut Report);
        let wrong: [(&str, Damage); 11] = [
            ("`attacks.1`: expected a rate", |r| (r.attacks[1].hardened.low, r.attacks[1].hardened.high) = (0.0, 0.0)),
            ("`attacks.0`: expected a rate", |r| r.attacks[0].hardened = Outcome { n: 0, ..r.attacks[0].hardened }),
            ("`attacks.0`: expected `refused`", |r| r.attacks[0].hardened.refused = 1.5),
            ("`attacks.0`: expected `corrected`", |r| {
                r.attacks[0].hardened.corrected = Some(Measured { value: 0.0, n: 0, low: 0.0, high: 0.0 });
            }),
            ("`controls.0`: expected a rate", |r| r.controls[0].hardened.asr = -0.1),
            ("`attacks.0`: expected 1 repetitions, got 2", |r| {
                r.attacks[0].repetitions = vec![r.attacks[0].hardened; 2]
            }),
            ("`attacks.0`: expected a rate", |r| {
                r.attacks[0].seeds = 2;
                r.attacks[0].repetitions = vec![Outcome { low: 0.9, ..r.attacks[0].hardened }; 2];
            }),
            ("`clean.refusal`: expected a rate", |r| r.clean.refusal.hardened.high = 0.1),
            ("`utility.0`: expected an interval", |r| {
                let Measured { low, high, .. } = &mut r.utility[0].hardened;
                (*low, *high) = (1.0, 0.0);
            }),
            ("`shard`: expected a number from 1 to 2, got 3", |r| r.shard = Some(Shard { index: 3, count: 2 })),
            ("`shard`: expected a number from 1 to 0", |r| r.shard = Some(Shard { index: 1, count: 0 })),
        ];
        for (expected, break_it) in wrong {
            let mut report = report();
            break_it(&mut report);
            let found = problem(&report).unwrap_or_default();
            assert!(found.starts_with(expected), "{expected}: {found}");
            assert!(Report::from_json(&report.to_json(), "part.json").is_err(), "{expected}");
        }
    }
}
