//! Which attention heads tell hazards from harmless requests.

use super::direction::Classes;

/// The most that a quarter of the heads may be.
const MAX_HEADS: usize = 48;

/// One head: how well the classes part along the difference of their means.
pub(super) struct Probe {
    /// Place of the head's block among those that were probed.
    pub block: usize,
    /// The head.
    pub head: usize,
    accuracy: f64,
    /// Distance of the classes' means along the difference, in spreads within a class: of heads that part all rows, which does so by most.
    margin: f64,
    /// The unit difference, times the spread of both classes along it.
    pub shift: Vec<f32>,
}

/// Which of heads that part the classes equally well comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ties {
    /// That of the earlier block.
    Earlier,
    /// That which parts them by more.
    Clearer,
}

impl Ties {
    /// Neither serves an attacker best on every model, so both are tried.
    pub(super) const ALL: [Self; 2] = [Self::Earlier, Self::Clearer];

    /// How a choice of heads is named that was made like this: the first is what is usual.
    pub(super) fn how(self) -> &'static str {
        match self {
            Self::Earlier => "",
            Self::Clearer => ", of equal heads the clearest",
        }
    }
}

/// The heads that part the classes at all, the best first.
pub(super) fn ranked(classes: &[Classes], n_heads: usize, ties: Ties) -> Vec<Probe> {
    let mut probes: Vec<Probe> = classes
        .iter()
        .enumerate()
        .flat_map(|(block, classes)| (0..n_heads).filter_map(move |head| probe(classes, block, head, n_heads)))
        .collect();
    if ties == Ties::Clearer {
        probes.sort_by(|a, b| b.margin.total_cmp(&a.margin));
    }
    probes.sort_by(|a, b| b.accuracy.total_cmp(&a.accuracy));
    probes
}

/// How many of so many heads are worth trying: a quarter, but not too many, half, and all of them.
pub(super) fn numbers(all: usize) -> Vec<usize> {
    let mut numbers = vec![MAX_HEADS.min(all.div_ceil(4)), all.div_ceil(2), all];
    numbers.dedup();
    numbers
}

/// One head's part of rows of all heads.
pub(super) fn head_rows(rows: &[f32], width: usize, head: usize, size: usize) -> Vec<Vec<f64>> {
    let rows = rows.chunks_exact(width);
    rows.map(|row| row[head * size..(head + 1) * size].iter().map(|v| f64::from(*v)).collect()).collect()
}

/// How well a head parts the classes is asked of the odd rows, along the difference of the even ones; the shift is that of all rows.
fn probe(classes: &Classes, block: usize, head: usize, n_heads: usize) -> Option<Probe> {
    let size = classes.width / n_heads;
    let all = [&classes.hazard, &classes.harmless].map(|rows| head_rows(rows, classes.width, head, size));
    let part =
        |class: usize, parity: usize| -> Vec<Vec<f64>> { all[class].iter().skip(parity).step_by(2).cloned().collect() };
    let (a, b) = (mean(&part(0, 0), size), mean(&part(1, 0), size));
    let unit = unit_between(&a, &b)?;
    let along = |row: &[f64]| dot(row, &unit);
    let threshold = (along(&a) + along(&b)) / 2.0;
    let (hazard, harmless) = (part(0, 1), part(1, 1));
    let right = hazard.iter().filter(|row| along(row) > threshold).count()
        + harmless.iter().filter(|row| along(row) <= threshold).count();
    let count = hazard.len() + harmless.len();
    let values: Vec<f64> = hazard.iter().chain(&harmless).map(|row| along(row)).collect();
    let spread = spread_of(&values);
    // All of the spread is that within the classes and what lies between their means.
    let apart = centre_of(&values[..hazard.len()]) - centre_of(&values[hazard.len()..]);
    let share = (hazard.len() * harmless.len()) as f64 / (count * count).max(1) as f64;
    let within = (spread.powi(2) - share * apart.powi(2)).max(0.0).sqrt();
    let margin = apart / within.max(f64::MIN_POSITIVE);
    let unit = unit_between(&mean(&all[0], size), &mean(&all[1], size))?;
    let spread = spread_of(&all.iter().flatten().map(|row| dot(row, &unit)).collect::<Vec<f64>>());
    let shift = unit.iter().map(|v| (v * spread) as f32).collect();
    Some(Probe { block, head, accuracy: right as f64 / count.max(1) as f64, margin, shift })
}

fn mean(rows: &[Vec<f64>], size: usize) -> Vec<f64> {
    (0..size).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len().max(1) as f64).collect()
}

/// The unit vector from `b` to `a`; `None` where they are the same.
fn unit_between(a: &[f64], b: &[f64]) -> Option<Vec<f64>> {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let length = dot(&difference, &difference).sqrt();
    length.is_normal().then(|| difference.iter().map(|v| v / length).collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn spread_of(values: &[f64]) -> f64 {
    let centre = centre_of(values);
    (values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

fn centre_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Point, Site};

    #[test]
    fn of_heads_that_part_all_rows_the_earlier_or_the_clearer_comes_first() {
        // Two heads of one number each: of either block the second head is noise, the later block's first parts by five times as much.
        let block = |apart: f32| {
            let rows = |class: f32| -> Vec<f32> {
                (0..8)
                    .flat_map(|row| [class * apart + (row % 4) as f32 * 0.1, if row % 3 == 0 { 1.0 } else { -1.0 }])
                    .collect()
            };
            Classes { site: Site::new(0, Point::Z), width: 2, hazard: rows(1.0), harmless: rows(-1.0) }
        };
        let classes = [block(1.0), block(5.0)];
        for (ties, first) in [(Ties::Earlier, [(0, 0), (1, 0)]), (Ties::Clearer, [(1, 0), (0, 0)])] {
            let ranked = ranked(&classes, 2, ties);
            let places: Vec<_> = ranked.iter().map(|probe| (probe.block, probe.head)).collect();
            assert_eq!(places[..2], first, "{ties:?}: {places:?}");
            assert!(ranked[..2].iter().all(|probe| probe.accuracy == 1.0));
        }
    }
}
