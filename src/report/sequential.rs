//! Looking at a rate more than once: when an attack cell may stop, and what its interval is then.
//!
//! An interval of 95% that is looked at four times misses the truth more often than once in twenty, because it has four
//! chances. So the error is shared out: all looks before the last take [`EARLY`] together, in equal parts (Bonferroni), and the
//! last one takes the rest. The union bound makes the whole procedure as honest as one look, whatever the looks have in
//! common; a simulation in the tests shows it, and shows what stopping without a correction does.

use super::interval::{Interval, Rate, Z95};

/// Error of a two-sided 95% interval, in millionths.
pub const WHOLE: u32 = 50_000;

/// What the looks before the last one take of it together, in millionths.
pub const EARLY: u32 = 10_000;

/// When a cell may stop.
#[derive(Debug, Clone, PartialEq)]
pub struct Looks {
    /// Times that the counts are looked at, the last time included; each time after an equal share of the prompts.
    pub count: usize,
    /// Attack success rates: the cell stops once its interval lies on one side of each.
    pub bounds: Vec<f64>,
}

impl Looks {
    /// Error that look `number` (from 0) may take, in millionths.
    #[must_use]
    pub fn error(&self, number: usize) -> u32 {
        match u32::try_from(self.count) {
            Ok(count) if count > 1 && number + 1 < self.count => EARLY / (count - 1),
            Ok(count) if count > 1 => WHOLE - EARLY,
            _ => WHOLE,
        }
    }

    /// Whether `rate`, seen at look `number` with that design effect, decides against all bounds.
    #[must_use]
    pub fn decides(&self, rate: Rate, number: usize, design: f64) -> bool {
        let interval = interval(rate, self.error(number), design);
        !self.bounds.is_empty() && self.bounds.iter().all(|bound| interval.high <= *bound || interval.low > *bound)
    }
}

/// Wilson's interval of `rate`, with that design effect, that misses in `error` millionths of repetitions.
#[must_use]
pub fn interval(rate: Rate, error: u32, design: f64) -> Interval {
    let (low, high) = rate.wilson_at(quantile(error), design);
    Interval::new(low, high)
}

/// The standard normal quantile that leaves half of `error` millionths above it.
#[must_use]
pub fn quantile(error: u32) -> f64 {
    if error == WHOLE {
        return Z95;
    }
    let tail = f64::from(error) / 2e6;
    let (mut low, mut high) = (1.0, 10.0);
    // Eighty halvings are more than a double can tell apart.
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if upper_tail(middle) > tail { low = middle } else { high = middle }
    }
    low
}

/// `P(Z > z)` of a standard normal for `z ≥ 1`, by Laplace's continued fraction.
fn upper_tail(z: f64) -> f64 {
    let fraction = (1..=200).rev().fold(z, |below, k| z + f64::from(k) / below);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() / fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::seed::Stream;

    const PROMPTS: u64 = 200;
    const RUNS: usize = 20_000;

    #[test]
    fn quantiles_agree_with_tables() {
        // Abramowitz and Stegun, table 26.5: two-sided 1%, 0.1% and 4%.
        for (error, z) in [(10_000, 2.575_829), (1_000, 3.290_527), (40_000, 2.053_749), (WHOLE, Z95)] {
            assert!((quantile(error) - z).abs() < 1e-5, "{error}: {}", quantile(error));
        }
    }

    #[test]
    fn without_bounds_nothing_is_decided_before_the_end() {
        let rate = Rate { k: 0, n: 50 };
        assert!(!Looks { count: 4, bounds: vec![] }.decides(rate, 0, 1.0));
        assert!(Looks { count: 4, bounds: vec![0.9] }.decides(rate, 0, 1.0));
    }

    #[test]
    fn the_looks_share_the_whole_error() {
        for count in 1..=9 {
            let looks = Looks { count, bounds: vec![] };
            let total: u32 = (0..count).map(|number| looks.error(number)).sum();
            assert!(total <= WHOLE && total > WHOLE - 10, "{count}: {total}");
        }
    }

    /// One simulated cell: the counts and the look at which it stopped.
    fn cell(p: f64, count: usize, stops: impl Fn(Rate, usize) -> bool, stream: &mut Stream) -> (Rate, usize) {
        let mut rate = Rate::default();
        for number in 0..count {
            for _ in 0..PROMPTS / count as u64 {
                rate.n += 1;
                rate.k += u64::from(stream.unit() < p);
            }
            if number + 1 == count || stops(rate, number) {
                return (rate, number);
            }
        }
        (rate, count - 1)
    }

    #[test]
    fn stopping_early_errs_no_more_often_than_looking_once() {
        let looks = Looks { count: 4, bounds: vec![0.5] };
        let mut stream = Stream::new(7, "sequential/simulation");
        let (mut corrected, mut naive, mut saved) = (0, 0, 0);
        for _ in 0..RUNS {
            // On the bound itself every decision is an error.
            let (rate, at) = cell(0.5, 4, |rate, number| looks.decides(rate, number, 1.0), &mut stream);
            corrected += usize::from(looks.decides(rate, at, 1.0));
            let plain = |rate: Rate| {
                let interval = interval(rate, WHOLE, 1.0);
                interval.low > 0.5 || interval.high <= 0.5
            };
            let (rate, _) = cell(0.5, 4, |rate, _| plain(rate), &mut stream);
            naive += usize::from(plain(rate));
            let (rate, _) = cell(0.05, 4, |rate, number| looks.decides(rate, number, 1.0), &mut stream);
            saved += usize::from(rate.n < PROMPTS);
        }
        let part = |k: usize| k as f64 / RUNS as f64;
        assert!(part(corrected) <= 0.05, "{}", part(corrected));
        assert!(part(naive) > 0.09, "without a correction errors pile up: {}", part(naive));
        assert!(part(saved) > 0.99, "a cell that is far from the bound stops: {}", part(saved));
    }

    #[test]
    fn the_interval_of_a_stopped_cell_holds_the_truth() {
        let looks = Looks { count: 4, bounds: vec![0.5, 0.1] };
        let mut stream = Stream::new(8, "sequential/coverage");
        for p in [0.02, 0.1, 0.3, 0.5, 0.55, 0.9] {
            let mut missed = 0;
            for _ in 0..RUNS {
                let (rate, at) = cell(p, 4, |rate, number| looks.decides(rate, number, 1.0), &mut stream);
                let interval = interval(rate, looks.error(at), 1.0);
                missed += usize::from(p < interval.low || p > interval.high);
            }
            let missed = missed as f64 / RUNS as f64;
            // Wilson's own coverage oscillates around its level by a point.
            assert!(missed <= 0.06, "at {p}: {missed}");
        }
    }
}
