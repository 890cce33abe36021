//! Which attention heads tell hazards from harmless requests.

use super::direction::Classes;

/// Heads that an attack by heads edits at most, unless it edits all.
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

/// How many of so many heads are chosen: a quarter.
pub(super) fn chosen(all: usize) -> usize {
    MAX_HEADS.min(all.div_ceil(4))
}

/// One head's part of rows of all heads.
pub(super) fn head_rows(rows: &[f32], width: usize, head: usize, size: usize) -> Vec<Vec<f64>> {
    let rows = rows.chunks_exact(width);
    rows.map(|row| row[head * size..(head + 1) * size].iter().map(|v| f64::from(*v)).collect()).collect()
}

/// The direction comes from the even rows, its accuracy from the odd ones.
fn probe(classes: &Classes, block: usize, head: usize, n_heads: usize) -> Option<Probe> {
    let size = classes.width / n_heads;
    let part = |rows: &[f32], parity: usize| -> Vec<Vec<f64>> {
        head_rows(rows, classes.width, head, size).into_iter().skip(parity).step_by(2).collect()
    };
    let mean = |rows: &[Vec<f64>]| -> Vec<f64> {
        (0..size).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len().max(1) as f64).collect()
    };
    let (a, b) = (mean(&part(&classes.hazard, 0)), mean(&part(&classes.harmless, 0)));
    let difference: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    let length = difference.iter().map(|v| v * v).sum::<f64>().sqrt();
    if !length.is_normal() {
        return None;
    }
    let unit: Vec<f64> = difference.iter().map(|v| v / length).collect();
    let along = |row: &[f64]| row.iter().zip(&unit).map(|(a, b)| a * b).sum::<f64>();
    let threshold = (along(&a) + along(&b)) / 2.0;
    let (hazard, harmless) = (part(&classes.hazard, 1), part(&classes.harmless, 1));
    let right = hazard.iter().filter(|row| along(row) > threshold).count()
        + harmless.iter().filter(|row| along(row) <= threshold).count();
    let all = hazard.len() + harmless.len();
    let values: Vec<f64> = hazard.iter().chain(&harmless).map(|row| along(row)).collect();
    let centre = centre_of(&values);
    let spread = (values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / all.max(1) as f64).sqrt();
    let shift = unit.iter().map(|v| (v * spread) as f32).collect();
    // All of the spread is that within the classes and what lies between their means.
    let apart = centre_of(&values[..hazard.len()]) - centre_of(&values[hazard.len()..]);
    let share = (hazard.len() * harmless.len()) as f64 / (all * all).max(1) as f64;
    let within = (spread.powi(2) - share * apart.powi(2)).max(0.0).sqrt();
    let margin = apart / within.max(f64::MIN_POSITIVE);
    Some(Probe { block, head, accuracy: right as f64 / all.max(1) as f64, margin, shift })
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
