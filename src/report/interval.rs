//! Rates, means and paired differences with their 95% intervals, and nothing that needs a random number.
//!
//! Every gate decides on these, so they are closed forms: the same counts give the same verdict on every machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The standard normal quantile of 0.975: two-sided 95 %.
pub const Z95: f64 = 1.959_963_984_540_054;

/// A closed interval that holds the true value in 95% of repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// An interval from its ends.
    #[must_use]
    pub fn new(low: f64, high: f64) -> Self {
        Self { low, high }
    }

    /// The same interval of the negated quantity.
    #[must_use]
    pub fn negated(self) -> Self {
        Self { low: -self.high, high: -self.low }
    }

    /// The interval of the quantity's magnitude.
    #[must_use]
    pub fn magnitude(self) -> Self {
        let high = self.low.abs().max(self.high.abs());
        let low = if self.low <= 0.0 && self.high >= 0.0 { 0.0 } else { self.low.abs().min(self.high.abs()) };
        Self { low, high }
    }
}

/// A value with its 95% interval and the number of items behind it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Point estimate.
    pub value: f64,
    /// Items measured.
    pub n: u64,
    /// Lower end of the 95% interval.
    pub low: f64,
    /// Upper end of the 95% interval.
    pub high: f64,
}

impl Measured {
    /// The interval alone.
    #[must_use]
    pub fn interval(&self) -> Interval {
        Interval::new(self.low, self.high)
    }

    /// Mean of `values` with a Student-t interval.
    ///
    /// Two values at least are needed for a width: of one value the interval is infinite in theory and is returned as the
    /// value itself with `n = 1`, so a gate must look at `n`; of none, everything is zero.
    #[must_use]
    pub fn mean(values: &[f64]) -> Self {
        let n = values.len();
        if n == 0 {
            return Self { value: 0.0, n: 0, low: 0.0, high: 0.0 };
        }
        let count = n as f64;
        let mean = values.iter().sum::<f64>() / count;
        if n == 1 {
            return Self { value: mean, n: 1, low: mean, high: mean };
        }
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let half = t975(n - 1) * (variance / count).sqrt();
        Self { value: mean, n: n as u64, low: mean - half, high: mean + half }
    }

    /// Mean of the paired differences `hardened[i] − base[i]`; surplus items of the longer slice are ignored.
    #[must_use]
    pub fn mean_difference(base: &[f64], hardened: &[f64]) -> Self {
        let differences: Vec<f64> = base.iter().zip(hardened).map(|(b, h)| h - b).collect();
        Self::mean(&differences)
    }
}

impl From<Rate> for Measured {
    fn from(rate: Rate) -> Self {
        rate.over(1.0)
    }
}

/// `k` successes among `n` trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Successes.
    pub k: u64,
    /// Trials.
    pub n: u64,
}

impl Rate {
    /// `k` of `n`; a `k` above `n` counts as `n`.
    #[must_use]
    pub fn new(k: u64, n: u64) -> Self {
        Self { k: k.min(n), n }
    }

    /// Counts the items for which `success` holds.
    pub fn of<T>(items: impl IntoIterator<Item = T>, mut success: impl FnMut(T) -> bool) -> Self {
        let mut rate = Self::default();
        for item in items {
            rate.n += 1;
            rate.k += u64::from(success(item));
        }
        rate
    }

    /// The rate with its 95% interval, where it varies `design` times as much as one of independent trials.
    #[must_use]
    pub fn over(&self, design: f64) -> Measured {
        let (low, high) = self.wilson_at(Z95, design);
        Measured { value: self.value(), n: self.n, low, high }
    }

    /// Fraction of 1; zero where nothing was measured, which [`Rate::wilson`] then shows as `[0, 1]`.
    #[must_use]
    pub fn value(&self) -> f64 {
        if self.n == 0 { 0.0 } else { self.k as f64 / self.n as f64 }
    }

    /// 95% score interval, `[0, 1]` of no trials.
    ///
    /// Source: E. B. Wilson, JASA 22 (1927) 209–212, without continuity correction. The ends are exact at `k = 0` and `k = n`.
    #[must_use]
    pub fn wilson(&self) -> (f64, f64) {
        self.wilson_at(Z95, 1.0)
    }

    /// As [`Rate::wilson`], at another normal quantile than that of 95%, and where the rate varies `design` times as much as one
    /// of independent trials ([`cluster`](super::cluster)).
    #[must_use]
    pub fn wilson_at(&self, z: f64, design: f64) -> (f64, f64) {
        if self.n == 0 {
            return (0.0, 1.0);
        }
        let (n, p, z2) = (self.n as f64 / design, self.value(), z * z);
        let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
        let low = if self.k == 0 { 0.0 } else { (centre - half).clamp(0.0, 1.0) };
        let high = if self.k == self.n { 1.0 } else { (centre + half).clamp(0.0, 1.0) };
        (low, high)
    }
}

/// Outcomes of the same items on two models, as a 2 × 2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pairs {
    /// Success on both.
    pub both: u64,
    /// Success on the base only.
    pub base_only: u64,
    /// Success on the hardened model only.
    pub hardened_only: u64,
    /// Success on neither.
    pub neither: u64,
}

impl Pairs {
    /// Counts paired outcomes; surplus items of the longer slice are ignored.
    #[must_use]
    pub fn count(base: &[bool], hardened: &[bool]) -> Self {
        let mut pairs = Self::default();
        for (b, h) in base.iter().zip(hardened) {
            *match (b, h) {
                (true, true) => &mut pairs.both,
                (true, false) => &mut pairs.base_only,
                (false, true) => &mut pairs.hardened_only,
                (false, false) => &mut pairs.neither,
            } += 1;
        }
        pairs
    }

    /// Items counted.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.both + self.base_only + self.hardened_only + self.neither
    }

    /// The base's rate.
    #[must_use]
    pub fn base(&self) -> Rate {
        Rate::new(self.both + self.base_only, self.n())
    }

    /// The hardened model's rate.
    #[must_use]
    pub fn hardened(&self) -> Rate {
        Rate::new(self.both + self.hardened_only, self.n())
    }

    /// Hardened rate minus base rate with its 95% interval, `[−1, 1]` of no items.
    ///
    /// Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635–2650, method 10: Wilson intervals of both rates joined
    /// by square-and-add with the continuity-corrected phi of the table. Unlike the Wald form it stays honest when the two
    /// models agree on every item, which is what a good hardening looks like.
    ///
    /// Where the difference varies `design` times as much as one of independent items, it is that of as many fewer items.
    #[must_use]
    pub fn difference(&self, design: f64) -> Measured {
        let n = self.n();
        if n == 0 {
            return Measured { value: 0.0, n: 0, low: -1.0, high: 1.0 };
        }
        let (h, b) = (self.hardened(), self.base());
        let ((low_h, high_h), (low_b, high_b)) = (h.wilson_at(Z95, design), b.wilson_at(Z95, design));
        let phi = self.phi(design);
        let join = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
        let value = h.value() - b.value();
        let low = value - join(h.value() - low_h, high_b - b.value());
        let high = value + join(high_h - h.value(), b.value() - low_b);
        Measured { value, n, low: low.max(-1.0), high: high.min(1.0) }
    }

    fn phi(&self, design: f64) -> f64 {
        let counts = [self.both, self.base_only, self.hardened_only, self.neither];
        let [a, b, c, d] = counts.map(|x| x as f64 / design);
        let spread = (a + b) * (c + d) * (a + c) * (b + d);
        if spread == 0.0 {
            return 0.0;
        }
        let product = a * d - b * c;
        let corrected = if product > 0.0 { (product - (a + b + c + d) / 2.0).max(0.0) } else { product };
        corrected / spread.sqrt()
    }
}

/// The 0.975 quantile of Student's t with `df` degrees of freedom: tabulated to 10, beyond that the Cornish–Fisher
/// expansion of Abramowitz and Stegun 26.7.5, which is right to four digits there.
fn t975(df: usize) -> f64 {
    const TABLE: [f64; 10] =
        [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];
    match df {
        0 => f64::INFINITY,
        1..=10 => TABLE[df - 1],
        _ => {
            let (z, v) = (Z95, df as f64);
            let [z3, z5, z7] = [3, 5, 7].map(|power| z.powi(power));
            z + (z3 + z) / (4.0 * v)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * v * v)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * v.powi(3))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() < tolerance, "expected {expected}, got {actual}");
    }

    #[test]
    fn wilson_agrees_with_published_values() {
        // Newcombe 1998 (two-sample paper), table I: 81/263 → .2553–.3662; 15/148 → .0624–.1605; 0/20 → 0–.1611.
        for (k, n, low, high) in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)] {
            let (l, h) = Rate::new(k, n).wilson();
            close(l, low, 5e-5);
            close(h, high, 5e-5);
        }
    }

    #[test]
    fn wilson_of_nothing_is_everything() {
        assert_eq!(Rate::default().wilson(), (0.0, 1.0));
        assert_eq!(Rate::default().value(), 0.0);
    }

    #[test]
    fn wilson_holds_the_estimate_and_mirrors() {
        for n in 1..60 {
            for k in 0..=n {
                let (low, high) = Rate::new(k, n).wilson();
                let p = Rate::new(k, n).value();
                assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
                let (mirror_low, mirror_high) = Rate::new(n - k, n).wilson();
                close(low, 1.0 - mirror_high, 1e-12);
                close(high, 1.0 - mirror_low, 1e-12);
            }
        }
    }

    #[test]
    fn paired_difference_agrees_with_published_values() {
        // Newcombe 1998, table III, method 10, base minus hardened: (both, base only, hardened only, neither) → limits.
        for (cells, low, high) in [
            ([36, 12, 2, 0], 0.0569, 0.3404),
            ([20, 12, 2, 16], 0.0562, 0.3292),
            ([18, 12, 2, 18], 0.0562, 0.3290),
            ([36, 14, 0, 0], 0.1528, 0.4167),
            ([35, 14, 0, 1], 0.1461, 0.4175),
            ([18, 14, 0, 18], 0.1441, 0.3963),
        ] {
            let [both, base_only, hardened_only, neither] = cells;
            let d = Pairs { both, base_only, hardened_only, neither }.difference(1.0);
            close(-d.high, low, 5e-5);
            close(-d.low, high, 5e-5);
        }
    }

    #[test]
    fn agreement_on_every_item_narrows_but_never_closes_the_difference() {
        let same = Pairs { both: 190, neither: 10, ..Pairs::default() }.difference(1.0);
        assert_eq!(same.value, 0.0);
        assert!(same.low < 0.0 && same.high > 0.0 && same.high - same.low < 0.04);
        let perfect = Pairs { both: 200, ..Pairs::default() }.difference(1.0);
        assert!(perfect.low < 0.0 && perfect.low > -0.02, "200 flawless pairs must hold a bound of 0.02");
        let few = Pairs { both: 50, ..Pairs::default() }.difference(1.0);
        assert!(few.low < -0.05, "50 flawless pairs cannot");
    }

    #[test]
    fn swapping_the_models_negates_the_difference() {
        let d = Pairs { both: 9, base_only: 5, hardened_only: 2, neither: 4 }.difference(1.0);
        let s = Pairs { both: 9, base_only: 2, hardened_only: 5, neither: 4 }.difference(1.0);
        close(d.value, -s.value, 1e-12);
        close(d.low, -s.high, 1e-12);
        close(d.high, -s.low, 1e-12);
    }

    #[test]
    fn a_rate_of_alike_items_is_worth_fewer_of_them() {
        assert_eq!(Rate::new(20, 200).wilson_at(Z95, 2.0), Rate::new(10, 100).wilson());
        let pairs = Pairs { both: 180, base_only: 12, hardened_only: 4, neither: 4 };
        let half = Pairs { both: 90, base_only: 6, hardened_only: 2, neither: 2 };
        let (over, fewer) = (pairs.difference(2.0), half.difference(1.0));
        assert_eq!((over.low, over.high, over.n), (fewer.low, fewer.high, 200));
    }

    #[test]
    fn pairs_are_counted_item_by_item() {
        let pairs = Pairs::count(&[true, true, false, false], &[true, false, true, false]);
        assert_eq!(pairs, Pairs { both: 1, base_only: 1, hardened_only: 1, neither: 1 });
        assert_eq!((pairs.base(), pairs.hardened()), (Rate::new(2, 4), Rate::new(2, 4)));
    }

    #[test]
    fn student_quantile_joins_its_table_and_tends_to_the_normal() {
        close(t975(11), 2.200_985, 1e-3);
        close(t975(30), 2.042_272, 1e-4);
        close(t975(1_000_000), Z95, 1e-5);
        assert!((1..200).all(|df| t975(df) > t975(df + 1)));
    }

    #[test]
    fn mean_of_a_known_sample() {
        let m = Measured::mean(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        close(m.value, 3.0, 1e-12);
        close(m.high - m.value, 2.776_445 * (2.5_f64 / 5.0).sqrt(), 1e-9);
        assert_eq!(Measured::mean_difference(&[1.0, 2.0], &[2.0, 3.0]).value, 1.0);
    }

    #[test]
    fn magnitude_of_an_interval_across_zero_starts_at_zero() {
        assert_eq!(Interval::new(-0.3, 0.1).magnitude(), Interval::new(0.0, 0.3));
        assert_eq!(Interval::new(-0.3, -0.1).magnitude(), Interval::new(0.1, 0.3));
        assert_eq!(Interval::new(-0.3, 0.1).negated(), Interval::new(-0.1, 0.3));
    }
}
