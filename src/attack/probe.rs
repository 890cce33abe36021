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
    /// The unit difference, times the spread of both classes along it.
    pub shift: Vec<f32>,
}

/// The heads that part the classes at all, the best first.
pub(super) fn ranked(classes: &[Classes], n_heads: usize) -> Vec<Probe> {
    let mut probes: Vec<Probe> = classes
        .iter()
        .enumerate()
        .flat_map(|(block, classes)| (0..n_heads).filter_map(move |head| probe(classes, block, head, n_heads)))
        .collect();
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
    let centre = values.iter().sum::<f64>() / all.max(1) as f64;
    let spread = (values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / all.max(1) as f64).sqrt();
    let shift = unit.iter().map(|v| (v * spread) as f32).collect();
    Some(Probe { block, head, accuracy: right as f64 / all.max(1) as f64, shift })
}
