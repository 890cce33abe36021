//! Rotary frequencies as data: a base, the share of a head that turns, and the rules that stretch a context.

use std::f64::consts::PI;

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of each head's width that is rotated, from its start.
    pub fraction: f64,
    /// How a longer context than the first one was reached.
    pub scaling: RopeScaling,
}

impl Rope {
    /// All of a head, unscaled.
    pub const fn new(theta: f64) -> Self {
        Self { theta, fraction: 1.0, scaling: RopeScaling::None }
    }

    /// Number of frequencies that turn a head of that width, two values each.
    pub fn count(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.fraction) as usize / 2
    }

    /// Frequencies in radians per token, and the factor on cosines and sines; `beyond`: of sequences longer than the first
    /// context, where the rule makes that difference.
    ///
    /// *Source*: as transformers computes them, but in f64. Its `dynamic` rule changes nothing within the trained length,
    /// and longer sequences are refused, so there is no entry for it.
    pub fn frequencies(&self, head_dim: usize, beyond: bool) -> (Vec<f64>, f64) {
        let count = self.count(head_dim);
        let width = (2 * count) as f64;
        let plain = (0..count).map(|i| self.theta.powf(-2.0 * i as f64 / width));
        match &self.scaling {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|w| w / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let stretched = plain.map(|w| {
                    let turns = original * w / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * w / factor + kept * w
                });
                (stretched.collect(), 1.0)
            }
            RopeScaling::Yarn { factor, fast, slow, original, amplitude, truncate } => {
                // The dimension that makes so many turns over the first context.
                let dimension = |turns: f64| width * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut first, mut last) = (dimension(*fast), dimension(*slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
                if first == last {
                    last += 1e-3;
                }
                let stretched = plain.enumerate().map(|(i, w)| {
                    let ramp = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    w / factor * ramp + w * (1.0 - ramp)
                });
                (stretched.collect(), *amplitude)
            }
            RopeScaling::Long { short, long, amplitude, .. } => {
                let divisors = if beyond { long } else { short };
                (plain.zip(divisors).map(|(w, divisor)| w / divisor).collect(), *amplitude)
            }
        }
    }

    /// Length beyond which sequences have other frequencies, in tokens.
    pub const fn first_context(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Long { original, .. } => Some(*original),
            _ => None,
        }
    }
}

/// Rules that stretch rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Stretch of the context.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// Stretch of the context.
        factor: f64,
        /// Wavelengths above `original / low` are stretched in full.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Context before the stretch, in tokens.
        original: f64,
    },
    /// Interpolated by how often a dimension turns over the first context; cosines and sines grow.
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Turns above which a dimension is kept.
        fast: f64,
        /// Turns below which a dimension is stretched in full.
        slow: f64,
        /// Context before the stretch, in tokens.
        original: f64,
        /// Factor on cosines and sines.
        amplitude: f64,
        /// Whether the range of interpolated dimensions ends at whole ones.
        truncate: bool,
    },
    /// One divisor for each frequency; others for sequences longer than the first context.
    Long {
        /// Divisors of sequences within the first context.
        short: Vec<f64>,
        /// Divisors of longer sequences.
        long: Vec<f64>,
        /// Context before the stretch, in tokens.
        original: usize,
        /// Factor on cosines and sines.
        amplitude: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(scaling: RopeScaling) -> Vec<f64> {
        Rope { scaling, ..Rope::new(1e4) }.frequencies(8, false).0
    }

    #[test]
    fn the_first_frequency_is_one_and_each_next_falls_by_the_same_factor() {
        let plain = of(RopeScaling::None);
        assert_eq!((plain.len(), plain[0]), (4, 1.0));
        assert!(plain.windows(2).all(|pair| (pair[1] / pair[0] - 0.1).abs() < 1e-12), "{plain:?}");
    }

    #[test]
    fn a_share_of_the_head_has_fewer_frequencies() {
        let rope = Rope { fraction: 0.75, ..Rope::new(1e4) };
        assert_eq!((rope.count(16), rope.count(8)), (6, 3));
    }

    #[test]
    fn every_rule_with_factor_one_changes_nothing() {
        let plain = of(RopeScaling::None);
        let (factor, original, amplitude) = (1.0, 16.0, 1.0);
        for scaling in [
            RopeScaling::Linear { factor },
            RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original },
            RopeScaling::Yarn { factor, fast: 32.0, slow: 1.0, original, amplitude, truncate: true },
            RopeScaling::Long { short: vec![1.0; 4], long: vec![2.0; 4], original: 16, amplitude },
        ] {
            let stretched = of(scaling.clone());
            let close = plain.iter().zip(&stretched).all(|(a, b)| (a / b - 1.0).abs() < 1e-12);
            assert!(close && stretched.len() == 4, "{scaling:?}: {stretched:?}");
        }
    }

    #[test]
    fn low_frequencies_are_stretched_and_high_ones_kept() {
        let plain = of(RopeScaling::None);
        for scaling in [
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 },
            RopeScaling::Yarn { factor: 8.0, fast: 4.0, slow: 1.0, original: 64.0, amplitude: 1.2, truncate: true },
        ] {
            let stretched = of(scaling.clone());
            assert_eq!(stretched[0], plain[0], "{scaling:?}");
            assert!((stretched[3] * 8.0 / plain[3] - 1.0).abs() < 1e-12, "{scaling:?}");
        }
    }
}
