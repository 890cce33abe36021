//! Named random streams: every consumer draws from its own, so that adding one never changes another's numbers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

/// A random stream identified by a seed and a name such as `attack/noreft/block 3`.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream called `name` under `seed`; the same pair always gives the same numbers.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(name.as_bytes());
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// Numbers drawn so far, in words of the generator: where a resumed run goes on.
    pub fn position(&self) -> u64 {
        self.0.get_word_pos() as u64
    }

    /// The stream as it is at `position`.
    #[must_use]
    pub fn at(mut self, position: u64) -> Self {
        self.0.set_word_pos(u128::from(position));
        self
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `0..n`.
    ///
    /// # Panics
    /// When `n` is zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "an empty range has no element to draw");
        // The bias of the multiply-shift is below 2^-32 for every n that occurs here.
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box–Muller; one of the pair is dropped so that draws stay independent of call order).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// `n` values uniform in `±bound`.
    pub fn uniform(&mut self, n: usize, bound: f64) -> Vec<f32> {
        (0..n).map(|_| ((2.0 * self.unit() - 1.0) * bound) as f32).collect()
    }

    /// `n` normal values of standard deviation `std`.
    pub fn gaussian(&mut self, n: usize, std: f64) -> Vec<f32> {
        (0..n).map(|_| (self.normal() * std) as f32).collect()
    }

    /// Shuffles in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `n` distinct indices below `len` in random order; all of them when `n ≥ len`.
    pub fn sample(&mut self, len: usize, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..len).collect();
        self.shuffle(&mut all);
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_other_names_differ_and_the_same_name_repeats() {
        let draw = |seed, name: &str| Stream::new(seed, name).uniform(4, 1.0);
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn a_stream_goes_on_where_it_was_left() {
        let mut stream = Stream::new(1, "a");
        stream.uniform(7, 1.0);
        let mut resumed = Stream::new(1, "a").at(stream.position());
        assert_eq!(resumed.uniform(5, 1.0), stream.uniform(5, 1.0));
    }

    #[test]
    fn normal_has_zero_mean_and_unit_variance() {
        let mut stream = Stream::new(3, "moments");
        let values: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = values.iter().sum::<f64>() / 2e4;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((variance - 1.0).abs() < 0.04, "{variance}");
    }

    #[test]
    fn sample_draws_without_repetition() {
        let mut drawn = Stream::new(0, "sample").sample(50, 20);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 20);
    }
}
