//! The ratio of two sums over items, with its interval.
//!
//! Tokens of one text rise and fall together, so a mean over tokens has the uncertainty of a mean over texts: the interval
//! is that of the ratio estimator, whose sampling unit is the item.

use crate::report::Measured;

/// `Σ parts / Σ wholes` over items, `n` the number of items; zero of nothing where the wholes sum to zero.
///
/// Source: W. G. Cochran, Sampling Techniques (1977), §6.3, with Student's t.
pub(super) fn ratio(parts: &[f64], wholes: &[f64]) -> Measured {
    let (total, whole) = (parts.iter().sum::<f64>(), wholes.iter().sum::<f64>());
    if whole <= 0.0 {
        return Measured::mean(&[]);
    }
    let (ratio, mean) = (total / whole, whole / wholes.len() as f64);
    // Items' linearised contributions: their mean is the ratio and their spread is its standard error times √n.
    let items: Vec<f64> = parts.iter().zip(wholes).map(|(p, w)| ratio + (p - ratio * w) / mean).collect();
    Measured { value: ratio, ..Measured::mean(&items) }
}

/// The same figure and interval, seen through an increasing function.
pub(super) fn through(measured: Measured, increasing: impl Fn(f64) -> f64) -> Measured {
    // A model far off its text has a perplexity beyond f64; a report holds finite numbers only.
    let finite = |x: f64| increasing(x).min(f64::MAX);
    let Measured { value, n, low, high } = measured;
    if n == 0 { measured } else { Measured { value: finite(value), n, low: finite(low), high: finite(high) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_of_equal_wholes_is_the_mean() {
        let (parts, ones) = ([1.0, 2.0, 4.0, 5.0], [1.0; 4]);
        let (ratio, mean) = (ratio(&parts, &ones), Measured::mean(&parts));
        assert!((ratio.value - mean.value).abs() < 1e-12 && (ratio.high - mean.high).abs() < 1e-12);
        assert_eq!(ratio.n, 4);
    }

    #[test]
    fn items_weigh_by_their_wholes_and_proportional_items_leave_no_doubt() {
        assert_eq!(ratio(&[1.0, 9.0], &[1.0, 3.0]).value, 2.5);
        let sure = ratio(&[2.0, 6.0, 10.0], &[1.0, 3.0, 5.0]);
        assert!((sure.high - sure.low).abs() < 1e-12 && sure.value == 2.0);
        assert_eq!(ratio(&[], &[]).n, 0);
    }

    #[test]
    fn an_infinite_end_stays_a_number() {
        let wide = Measured { value: 1.0, n: 2, low: 0.0, high: 1e4 };
        assert_eq!(through(wide, f64::exp).high, f64::MAX);
        assert_eq!(through(wide, f64::exp).low, 1.0);
    }
}
