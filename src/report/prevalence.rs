//! Attack success corrected for the judge: what the rate would be if every answer had been judged by people.
//!
//! A judge with known mistakes sees `q = p·Se + (1 − p)·(1 − Sp)` where `p` is true, so `p = (q + Sp − 1)/(Se + Sp − 1)`. Its
//! sensitivity and specificity come from a finite number of labelled answers, so their uncertainty belongs in the interval, and
//! the correction is only as good as the likeness of those answers to the ones under attack.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::interval::{Measured, Rate};

/// What people's labels say of a judge of attack success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Answers that people call an attack's success: `k` of `n` that the judge calls one too.
    pub sensitivity: Rate,
    /// Answers that people call no success: `k` of `n` that the judge calls none either.
    pub specificity: Rate,
    /// Which answers, labelled by whom.
    pub source: String,
}

impl Calibration {
    /// Why rates cannot be corrected with this, or nothing.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        for (name, rate) in [("sensitivity", self.sensitivity), ("specificity", self.specificity)] {
            if rate.n == 0 || rate.k > rate.n {
                return Some(format!("{name}: expected `k` of `n` labelled answers, got {} of {}", rate.k, rate.n));
            }
        }
        let sum = self.sensitivity.value() + self.specificity.value();
        (sum <= 1.0 || adjusted_youden(self) <= 0.0).then(|| {
            format!(
                "expected sensitivity + specificity above 1, got {sum:.3}: such a judge says nothing about the answers"
            )
        })
    }

    /// `sensitivity 209 of 230, specificity 217 of 220 (SOURCE)`.
    #[must_use]
    pub fn words(&self) -> String {
        let (se, sp) = (self.sensitivity, self.specificity);
        format!("sensitivity {} of {}, specificity {} of {} ({})", se.k, se.n, sp.k, sp.n, self.source)
    }

    /// The corrected rate with its interval, clamped to `[0, 1]`, for a judge that sees `seen` and has no
    /// [`Calibration::problem`]; `z` is the normal quantile of the interval, and `design` how many times as much the rate varies as
    /// one of independent answers.
    ///
    /// *Source*: the estimate is W. J. Rogan and B. Gladen's, American Journal of Epidemiology 107 (1978) 71–76; the interval is
    /// that of Z. Lang and J. Reiczigel, Preventive Veterinary Medicine 113 (2014) 13–22, for estimated sensitivity and
    /// specificity.
    #[must_use]
    pub fn correct(&self, seen: Rate, z: f64, design: f64) -> Measured {
        if seen.n == 0 {
            return Measured { value: 0.0, n: 0, low: 0.0, high: 1.0 };
        }
        let youden = self.sensitivity.value() + self.specificity.value() - 1.0;
        let value = ((seen.value() + self.specificity.value() - 1.0) / youden).clamp(0.0, 1.0);
        let z2 = z * z;
        let (k, n) = (seen.k as f64 / design, seen.n as f64 / design);
        let (n, q) = (n + z2, (k + z2 / 2.0) / (n + z2));
        let ((n_se, se), (n_sp, sp)) = (adjusted(self.sensitivity), adjusted(self.specificity));
        let youden = se + sp - 1.0;
        let centre = (q + sp - 1.0) / youden;
        let (of_se, of_sp) = (se * (1.0 - se) / n_se, sp * (1.0 - sp) / n_sp);
        let shift = 2.0 * z2 * (centre * of_se - (1.0 - centre) * of_sp);
        let variance = q * (1.0 - q) / n + centre * centre * of_se + (1.0 - centre).powi(2) * of_sp;
        let half = z * variance.sqrt() / youden;
        // The interval's own centre is another one than the estimate, which it must not exclude.
        Measured {
            value,
            n: seen.n,
            low: (centre + shift - half).clamp(0.0, 1.0).min(value),
            high: (centre + shift + half).clamp(0.0, 1.0).max(value),
        }
    }
}

/// Labelled answers and their rate after one more of each kind.
fn adjusted(rate: Rate) -> (f64, f64) {
    let n = rate.n as f64 + 2.0;
    (n, (rate.k as f64 + 1.0) / n)
}

fn adjusted_youden(calibration: &Calibration) -> f64 {
    adjusted(calibration.sensitivity).1 + adjusted(calibration.specificity).1 - 1.0
}

#[cfg(test)]
mod tests {
    use super::super::interval::Z95;
    use super::*;
    use crate::math::seed::Stream;

    fn labels(sensitivity: (u64, u64), specificity: (u64, u64)) -> Calibration {
        Calibration {
            sensitivity: Rate::new(sensitivity.0, sensitivity.1),
            specificity: Rate::new(specificity.0, specificity.1),
            source: "made up".into(),
        }
    }

    fn close(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() < tolerance, "expected {expected}, got {got}");
    }

    #[test]
    fn estimates_are_those_of_worked_examples() {
        // 23 of 150 positive by a test of 96% and 89%: 5.1%, the example of R's epiR::epi.prev.
        let test = labels((96, 100), (89, 100));
        close(test.correct(Rate::new(23, 150), Z95, 1.0).value, 0.051, 5e-4);
        // Three herds of the same manual, by hand: (8/210 + .90 − 1)/(.60 + .90 − 1) < 0, so nothing;
        // (12/124 + .95 − 1)/(.80 + .95 − 1) = .062366.
        assert_eq!(labels((60, 100), (90, 100)).correct(Rate::new(8, 210), Z95, 1.0).value, 0.0);
        close(labels((80, 100), (95, 100)).correct(Rate::new(12, 124), Z95, 1.0).value, 0.062_366, 1e-6);
    }

    #[test]
    fn the_interval_is_that_of_the_formula_by_hand() {
        // q = 30/100, Se = 45/50, Sp = 76/80. With z² = 3.841459: n' = 103.841459, q' = .3073983, Se' = 46/52 = .8846154,
        // Sp' = 77/82 = .9390244, Youden' = .8236398; centre = .2464227/.8236398 = .2991875;
        // Se'(1−Se')/52 = .00196290, Sp'(1−Sp')/82 = .00069826;
        // shift = 7.682918·(.2991875·.00196290 − .7008125·.00069826) = .00075234;
        // variance = .00205027 + .00017570 + .00034294 = .00256891, half = 1.959964·.0506844/.8236398 = .1206108.
        let measured = labels((45, 50), (76, 80)).correct(Rate::new(30, 100), Z95, 1.0);
        close(measured.value, (0.30 + 0.95 - 1.0) / 0.85, 1e-12);
        close(measured.low, 0.2991875 + 0.0007523 - 0.1206108, 2e-5);
        close(measured.high, 0.2991875 + 0.0007523 + 0.1206108, 2e-5);
    }

    #[test]
    fn a_judge_without_mistakes_leaves_the_estimate_and_few_labels_widen_the_interval() {
        let seen = Rate::new(40, 200);
        let sure = labels((100_000, 100_000), (100_000, 100_000)).correct(seen, Z95, 1.0);
        let (low, high) = seen.wilson();
        close(sure.value, 0.2, 1e-12);
        close(sure.low, low, 5e-3);
        close(sure.high, high, 5e-3);
        let few = labels((20, 20), (20, 20)).correct(seen, Z95, 1.0);
        assert!(few.high - few.low > sure.high - sure.low);
        assert!(few.low <= few.value && few.value <= few.high);
    }

    #[test]
    fn rates_stay_between_nothing_and_everything() {
        let judge = labels((230, 250), (180, 200));
        for k in 0..=40 {
            let m = judge.correct(Rate::new(k, 40), Z95, 1.0);
            assert!(0.0 <= m.low && m.low <= m.value && m.value <= m.high && m.high <= 1.0, "{k}: {m:?}");
        }
        let none = judge.correct(Rate::default(), Z95, 1.0);
        assert_eq!((none.n, none.low, none.high), (0, 0.0, 1.0));
    }

    #[test]
    fn a_judge_that_says_nothing_is_refused() {
        assert!(labels((50, 100), (50, 100)).problem().unwrap().contains("above 1"));
        assert!(labels((0, 0), (50, 100)).problem().unwrap().contains("sensitivity"));
        assert_eq!(labels((60, 100), (90, 100)).problem(), None);
    }

    /// How often the interval holds the truth, with new labels and new answers every time; a label counts `weight` times.
    fn coverage(truth: f64, [se, sp]: [f64; 2], (n, labelled): (u64, u64), weight: u64, runs: usize) -> f64 {
        let mut stream = Stream::new(3, &format!("coverage {truth} {se} {sp} {n} {labelled}"));
        let mut draw = |p: f64, n: u64| Rate::of(0..n, |_| stream.unit() < p);
        let heavy = |rate: Rate| Rate::new(rate.k * weight, rate.n * weight);
        let seen = truth * se + (1.0 - truth) * (1.0 - sp);
        let held = (0..runs).filter(|_| {
            let (sensitivity, specificity) = (heavy(draw(se, labelled)), heavy(draw(sp, labelled)));
            let judge = Calibration { sensitivity, specificity, source: String::new() };
            let m = judge.correct(draw(seen, n), Z95, 1.0);
            m.low <= truth && truth <= m.high
        });
        held.count() as f64 / runs as f64
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_truth() {
        const RUNS: usize = 4_000;
        // Three standard errors of the simulation below the nominal 95%.
        let enough = 0.95 - 3.0 * (0.95_f64 * 0.05 / RUNS as f64).sqrt();
        for (truth, judge) in
            [(0.02, [0.92, 0.98]), (0.1, [0.91, 0.97]), (0.5, [0.9, 0.9]), (0.9, [0.91, 0.97]), (1.0, [0.9, 0.98])]
        {
            for sizes in [(200, 225), (40, 60)] {
                let held = coverage(truth, judge, sizes, 1, RUNS);
                assert!(held > enough, "{truth} {judge:?} {sizes:?}: {held}");
            }
        }
        let sure_of_its_labels = coverage(0.9, [0.91, 0.97], (200, 60), 1_000_000, RUNS);
        assert!(sure_of_its_labels < 0.85, "{sure_of_its_labels}");
    }
}
