//! What phrasings of one request are worth: less than as many requests, as far as they are answered alike.
//!
//! A rate among `n` answers of `m` requests varies like one among `n/d` independent answers. The design effect `d` is the
//! variance between requests over the one that independent answers would have (J. N. K. Rao and A. J. Scott, Biometrics 48
//! (1992) 577–585), so that intervals stay those of [`Rate`](super::Rate), of fewer answers.
//!
//! Where nearly all answers are the same, nothing is seen of how alike phrasings are. So one request of either answer, with as
//! many phrasings as there are on average, is counted besides: without a success an answer is worth what it is where phrasings
//! are all answered alike, and each success makes that estimate the data's own. Changes, whose interval is a wide one already,
//! have the effect that is seen. Simulations in the tests show what the intervals cover.

use std::collections::BTreeMap;

/// How many times as much a rate varies as one of independent answers: `values` are 0 or 1.
///
/// # Panics
/// If the two slices differ in length.
#[must_use]
pub fn of_rate<G: Ord>(values: &[f64], groups: &[G]) -> f64 {
    design_effect(values, groups, &[0.0, 1.0])
}

/// How many times as much a mean change varies as one of independent items: `values` are −1, 0 or 1.
///
/// # Panics
/// If the two slices differ in length.
#[must_use]
pub fn of_change<G: Ord>(values: &[f64], groups: &[G]) -> f64 {
    design_effect(values, groups, &[])
}

/// How many times as much the mean of `values` varies as if all were independent; 1 at least, and 1 where no two values are of one
/// group. `groups` names the group of each value; a group of each of the values `besides`, as large as the others are on average, is
/// counted too.
fn design_effect<G: Ord>(values: &[f64], groups: &[G], besides: &[f64]) -> f64 {
    assert_eq!(values.len(), groups.len(), "one group a value");
    let mut sums: BTreeMap<&G, (f64, f64)> = BTreeMap::new();
    for (value, group) in values.iter().zip(groups) {
        let (n, sum) = sums.entry(group).or_default();
        *n += 1.0;
        *sum += value;
    }
    if sums.len() == values.len() {
        return 1.0;
    }
    // Of one request alone nothing can be told of others: all its answers are worth one.
    if sums.len() + besides.len() < 2 {
        return values.len() as f64;
    }
    let size = values.len() as f64 / sums.len() as f64;
    let more = besides.iter().map(|value| (size, size * value));
    let clusters: Vec<(f64, f64)> = sums.into_values().chain(more).collect();
    let n: f64 = clusters.iter().map(|(n, _)| n).sum();
    let mean = clusters.iter().map(|(_, sum)| sum).sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let squares = squares + besides.iter().map(|value| size * (value - mean).powi(2)).sum::<f64>();
    let m = clusters.len() as f64;
    let between = clusters.iter().map(|(n, sum)| (sum - n * mean).powi(2)).sum::<f64>() * m / (m - 1.0);
    let independent = squares * n / (n - 1.0);
    if independent > 0.0 { (between / independent).max(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::{Pairs, Rate};
    use super::*;
    use crate::math::seed::Stream;

    const RUNS: usize = 1500;

    #[test]
    fn independent_values_have_no_effect_and_copies_have_all_of_it() {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i % 3 == 0)).collect();
        let own: Vec<usize> = (0..60).collect();
        assert_eq!((of_rate(&values, &own), of_change(&values, &own)), (1.0, 1.0));
        let thrice: Vec<f64> = (0..180).map(|i| values[i / 3]).collect();
        let groups: Vec<usize> = (0..180).map(|i| i / 3).collect();
        let effect = of_rate(&thrice, &groups);
        assert!((effect - 3.0).abs() < 0.05, "{effect}");
        // Nothing seen of how alike they are: as alike as can be.
        let none = of_rate(&[0.0; 180], &groups);
        assert!((2.9..3.2).contains(&none), "{none}");
        assert_eq!(of_change(&[0.0; 180], &groups), 1.0);
        assert_eq!(of_rate::<usize>(&[], &[]), 1.0);
        for lost in [0.0, -1.0] {
            let one: Vec<f64> = (0..49).map(|i| if i < 2 { lost } else { 0.0 }).collect();
            assert_eq!(of_change(&one, &["dose"; 49]), 49.0, "one request is worth one answer");
        }
        // Gains weigh as losses do.
        let gain: Vec<f64> = thrice.iter().map(|value| -value).collect();
        assert!((of_change(&gain, &groups) - of_change(&thrice, &groups)).abs() < 1e-12);
    }

    /// Requests with phrasings, of which some are drawn: request of each answer, and whether it succeeds. `alike`: all phrasings
    /// of a request are answered as its first is, otherwise each by itself.
    fn answers(stream: &mut Stream, alike: f64, p: f64, drawn: usize) -> (Vec<usize>, Vec<f64>) {
        let first: Vec<Option<bool>> = (0..80).map(|_| (stream.unit() < alike).then(|| stream.unit() < p)).collect();
        let groups: Vec<usize> = stream.sample(80 * 8, drawn).into_iter().map(|row| row / 8).collect();
        let values = groups.iter().map(|g| f64::from(first[*g].unwrap_or_else(|| stream.unit() < p))).collect();
        (groups, values)
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        for (alike, p) in [(0.0, 0.02), (0.0, 0.3), (0.3, 0.1), (0.6, 0.3), (1.0, 0.02), (1.0, 0.1), (1.0, 0.5)] {
            let mut stream = Stream::new(5, &format!("clusters {alike} {p}"));
            let (mut held, mut naive) = (0, 0);
            for _ in 0..RUNS {
                let (groups, values) = answers(&mut stream, alike, p, 200);
                let rate = Rate::of(&values, |value| *value > 0.0);
                let m = rate.over(of_rate(&values, &groups));
                held += usize::from(m.low <= p && p <= m.high);
                let (low, high) = rate.wilson();
                naive += usize::from(low <= p && p <= high);
            }
            let share = |k: usize| k as f64 / RUNS as f64;
            assert!(share(held) >= 0.93, "{alike} {p}: {}", share(held));
            assert!(alike < 1.0 || share(naive) < 0.9, "taken for independent, they mislead: {}", share(naive));
        }
    }

    #[test]
    fn changes_hold_the_truth_more_often_than_where_phrasings_are_taken_for_requests() {
        // The least that must hold. Where requests that are lost are few and lost whole, none may be among those asked.
        let cases = [(0.0, 0.01, 0.94), (0.0, 0.05, 0.94), (0.3, 0.05, 0.88), (0.5, 0.02, 0.78), (1.0, 0.05, 0.94)];
        for (alike, loss, least) in cases {
            let mut stream = Stream::new(6, &format!("changes {alike} {loss}"));
            let (mut held, mut naive) = (0, 0);
            for _ in 0..RUNS {
                let (groups, lost) = answers(&mut stream, alike, loss, 600);
                let hardened: Vec<bool> = lost.iter().map(|lost| *lost == 0.0).collect();
                let change: Vec<f64> = lost.iter().map(|lost| -lost).collect();
                let pairs = Pairs::count(&vec![true; hardened.len()], &hardened);
                let within = |design| {
                    let m = pairs.difference(design);
                    usize::from(m.low <= -loss && -loss <= m.high)
                };
                held += within(of_change(&change, &groups));
                naive += within(1.0);
            }
            let share = |k: usize| k as f64 / RUNS as f64;
            assert!(share(held) >= least, "{alike} {loss}: {}", share(held));
            assert!(alike == 0.0 || share(naive) < share(held) - 0.1, "{alike} {loss}: {}", share(naive));
        }
    }
}
