//! Joins the parts of a sharded measurement into the report that one machine would have written.

use super::schema::{AttackRow, Report, UtilityRow};
use super::threshold::Thresholds;
use crate::error::{Error, Result};

/// Missing parts that an error names at most.
const MISSING_NAMED: usize = 20;

/// Joins parts of one run and concludes the whole.
///
/// Parts must agree on everything but their rows. Rows are ordered by name, positions, knowledge and blocks, so the order of
/// the parts does not matter; a row that two parts have must be the same in both.
///
/// # Errors
/// [`Error::Input`] naming what differs, or the part that is missing or given twice.
pub fn merge(parts: &[Report], thresholds: &Thresholds) -> Result<Report> {
    let Some(first) = parts.first() else {
        return Err(Error::usage("expected one report at least, got none"));
    };
    let mut seen = vec![];
    for (i, part) in parts.iter().enumerate() {
        let name = || format!("part {}", i + 1);
        same(&name(), first, part)?;
        if let Some(shard) = part.shard {
            if seen.contains(&shard.index) {
                return Err(Error::input(name(), format!("shard {}/{} is given twice", shard.index, shard.count)));
            }
            seen.push(shard.index);
        }
    }
    if let Some(shard) = first.shard
        && seen.len() < shard.count as usize
    {
        let missing = (1..=shard.count).filter(|i| !seen.contains(i)).take(MISSING_NAMED);
        let missing: Vec<String> = missing.map(|i| i.to_string()).collect();
        let problem = format!("expected {} shards, got {}", shard.count, seen.len());
        return Err(Error::input("report", problem).hint(format!("missing: {}", missing.join(", "))));
    }
    let mut whole = first.clone();
    whole.shard = None;
    whole.attacks = join(parts.iter().flat_map(|part| &part.attacks))?;
    whole.controls = join(parts.iter().flat_map(|part| &part.controls))?;
    whole.skipped = parts.iter().flat_map(|part| part.skipped.iter().cloned()).collect();
    whole.skipped.sort();
    whole.skipped.dedup();
    whole.utility = tasks(parts.iter().flat_map(|part| &part.utility))?;
    whole.conclude(thresholds);
    Ok(whole)
}

fn same(name: &str, first: &Report, part: &Report) -> Result<()> {
    let checks = [
        ("tool", first.tool == part.tool),
        ("recipe_digest", first.recipe_digest == part.recipe_digest),
        ("seed", first.seed == part.seed),
        ("device", first.device == part.device),
        ("simd", first.simd == part.simd),
        ("base", first.base == part.base),
        ("hardened", first.hardened == part.hardened),
        ("judges", first.judges == part.judges),
        ("clean", first.clean == part.clean),
        ("shard", first.shard.map(|shard| shard.count) == part.shard.map(|shard| shard.count)),
    ];
    match checks.into_iter().find(|(_, equal)| !equal) {
        Some((key, _)) => Err(Error::input(name, format!("`{key}` differs from that of part 1"))
            .hint("parts must come from the same recipe, models, seed and kind of machine")),
        None => Ok(()),
    }
}

fn join<'a>(rows: impl Iterator<Item = &'a AttackRow>) -> Result<Vec<AttackRow>> {
    let mut joined: Vec<AttackRow> = vec![];
    for row in rows {
        // Derived fields are derived anew, so they do not count as a difference.
        let row = AttackRow { applicable: true, bound: None, ..row.clone() };
        let twin = joined.iter().find(|j| j.same_attack(&row) && j.adaptive == row.adaptive && j.layers == row.layers);
        match twin {
            Some(twin) if *twin == row => {}
            Some(_) => return Err(Error::input(row.title(), "two parts have different results for this row")),
            None => joined.push(row),
        }
    }
    joined.sort_by(|a, b| {
        (&a.name, &a.positions, a.adaptive, &a.layers).cmp(&(&b.name, &b.positions, b.adaptive, &b.layers))
    });
    Ok(joined)
}

fn tasks<'a>(rows: impl Iterator<Item = &'a UtilityRow>) -> Result<Vec<UtilityRow>> {
    let mut joined: Vec<UtilityRow> = vec![];
    for row in rows {
        let row = UtilityRow { ok: None, ..row.clone() };
        match joined.iter().find(|j| j.task == row.task) {
            Some(twin) if *twin == row => {}
            Some(_) => return Err(Error::input(row.task, "two parts have different results for this task")),
            None => joined.push(row),
        }
    }
    joined.sort_by(|a, b| a.task.cmp(&b.task));
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{report, thresholds};
    use super::super::{Shard, Verdict};
    use super::*;

    fn parts() -> Vec<Report> {
        let whole = report();
        let half = |index: u32| {
            let mut part = whole.clone();
            part.shard = Some(Shard { index, count: 2 });
            let mine = |i: &usize| i % 2 == (index as usize) % 2;
            let pick =
                |rows: &[AttackRow]| rows.iter().enumerate().filter(|(i, _)| mine(i)).map(|(_, r)| r.clone()).collect();
            (part.attacks, part.controls) = (pick(&whole.attacks), pick(&whole.controls));
            part.conclude(&thresholds());
            part
        };
        vec![half(1), half(2)]
    }

    #[test]
    fn parts_join_to_the_whole_in_any_order() {
        let mut parts = parts();
        assert!(parts.iter().all(|part| part.verdict != Verdict::Pass));
        let joined = merge(&parts, &thresholds()).unwrap();
        parts.reverse();
        assert_eq!(merge(&parts, &thresholds()).unwrap(), joined);
        assert_eq!((joined.verdict, joined.attacks.len()), (Verdict::Pass, report().attacks.len()));
        assert_eq!(joined.shard, None);
    }

    #[test]
    fn joining_one_whole_report_only_orders_it() {
        let whole = report();
        let joined = merge(std::slice::from_ref(&whole), &thresholds()).unwrap();
        assert_eq!(merge(std::slice::from_ref(&joined), &thresholds()).unwrap(), joined);
        assert_eq!(joined.attacks.len(), whole.attacks.len());
    }

    #[test]
    fn a_missing_or_repeated_part_is_named() {
        let parts = parts();
        let missing = merge(&parts[..1], &thresholds()).unwrap_err().to_string();
        assert!(missing.contains("expected 2 shards, got 1") && missing.contains("missing: 2"), "{missing}");
        let twice = [parts[0].clone(), parts[0].clone()];
        assert!(merge(&twice, &thresholds()).unwrap_err().to_string().contains("given twice"));
    }

    #[test]
    fn parts_of_different_runs_do_not_join() {
        let mut parts = parts();
        parts[1].seed = 1;
        assert!(merge(&parts, &thresholds()).unwrap_err().to_string().starts_with("part 2: `seed` differs"));
        let mut parts = self::parts();
        let row = parts[0].attacks[0].clone();
        parts[1].attacks.push(row);
        if let Some(row) = parts[1].attacks.last_mut() {
            row.hardened.asr = 1.0;
        }
        assert!(merge(&parts, &thresholds()).unwrap_err().to_string().contains("different results"));
    }
}
