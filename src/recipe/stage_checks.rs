//! What the settings of defence stages may be.

use super::fields::{Problems, join};
use super::validate::{Checked, MAX_COUNT, MAX_RANK, names_of_openings, rates};
use crate::defence::spec::{AdversarialSpec, AnchorWeights, EtClosedSpec, EtSpec, HarmVectorSpec};

impl Checked for EtSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        for (key, value) in [("rank", self.rank), ("attack_rank", self.attack_rank)] {
            problems.count(at, key, value, 1, MAX_RANK);
        }
        let counts = [("attack_pairs", self.attack_pairs), ("prompts", self.prompts), ("rounds", self.rounds)];
        check_local(at, counts, self.anchors, self.lambda, self.accept_below, problems);
        problems.count(at, "batch", self.batch, 1, MAX_COUNT);
        // No step at all is allowed: it must leave every byte as it was, and a test says so.
        problems.count(at, "steps", self.steps, 0, MAX_COUNT);
        problems.positive(at, "learning_rate", self.learning_rate, 1.0);
    }
}

impl Checked for EtClosedSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        problems.count(at, "rank", self.rank, 0, MAX_RANK);
        problems.count(at, "attack_rank", self.attack_rank, 1, MAX_RANK);
        let counts = [("attack_pairs", self.attack_pairs), ("prompts", self.prompts), ("rounds", self.rounds)];
        check_local(at, counts, self.anchors, self.lambda, self.accept_below, problems);
        problems.count(at, "bank", self.bank, 1, MAX_COUNT);
        problems.positive(at, "mu", self.mu, 1e6);
    }
}

/// What block-local stages have in common: `counts` are of what at least one is needed of.
fn check_local(
    at: &str,
    counts: [(&str, usize); 3],
    anchors: usize,
    lambda: f64,
    accept_below: f64,
    problems: &mut Problems,
) {
    for (key, value) in counts {
        problems.count(at, key, value, 1, MAX_COUNT);
    }
    problems.count(at, "anchors", anchors, 0, MAX_COUNT);
    problems.within(at, "lambda", lambda, 1e6);
    problems.within(at, "accept_below", accept_below, 1.0);
}

impl Checked for HarmVectorSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        problems.count(at, "steps", self.steps, 0, MAX_COUNT);
        problems.count(at, "batch", self.batch, 1, MAX_COUNT);
        problems.positive(at, "learning_rate", self.learning_rate, 1.0);
        problems.within(at, "keep", self.keep.unwrap_or(1.0), 1.0);
        problems.within(at, "scale", self.scale, 100.0);
    }
}

impl Checked for AdversarialSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        problems.count(at, "rank", self.rank, 0, MAX_RANK);
        for (key, value) in [
            ("restart_after", self.restart_after),
            ("vector_life", self.vector_life),
            ("warm_up", self.warm_up),
            ("edits_per_step", self.edits_per_step),
            ("batch", self.batch),
            ("anchor_batch", self.anchor_batch),
        ] {
            problems.count(at, key, value, 1, MAX_COUNT);
        }
        let others = self.joint > 0 || !self.vectors.is_empty();
        problems.count(at, "pool", self.pool, usize::from(!others), MAX_COUNT);
        if self.pool == 0 && self.pool_layers.is_some() {
            problems.add(
                join(at, "pool_layers"),
                "expected a `pool` of learned edits to be of these blocks, got `pool: 0`",
            );
        }
        problems.count(at, "joint", self.joint, 0, MAX_COUNT);
        problems.count(at, "steps", self.steps, 0, MAX_COUNT);
        problems.count(at, "inner_steps", self.inner_steps, 0, MAX_COUNT);
        problems.count(at, "refusal_tokens", self.refusal_tokens, 0, MAX_COUNT);
        problems.count(at, "attacked_anchors", self.attacked_anchors, 0, MAX_COUNT);
        problems.count(at, "interrupted", self.interrupted, 0, MAX_COUNT);
        problems.positive(at, "interrupted_weight", self.interrupted_weight, 1e3);
        problems.positive(at, "learning_rate", self.learning_rate, 1.0);
        let AnchorWeights { twin, benign, maths, copy, fact } = self.anchor_weights;
        for (kind, weight) in [("twin", twin), ("benign", benign), ("maths", maths), ("copy", copy), ("fact", fact)] {
            problems.positive(&join(at, "anchor_weights"), kind, weight, 1e3);
        }
        problems.within(at, "kl_weight", self.kl_weight, 1e6);
        problems.within(at, "average", self.average, 1.0);
        problems.within(at, "begun", self.begun, 1.0);
        problems.within(at, "prompt_noise", self.prompt_noise, 1.0);
        rates(at, "inner_learning_rates", &self.inner_learning_rates, problems);
        for (i, &factor) in self.amplify.iter().enumerate() {
            problems.positive(&join(at, "amplify"), &i.to_string(), factor, 100.0);
        }
        if self.ranks.is_empty() {
            problems.add(join(at, "ranks"), "expected one rank at least, got an empty list");
        }
        if self.positions.is_empty() {
            problems.add(join(at, "positions"), "expected `all`, `prompt` or `last` at least once, got an empty list");
        }
        for (i, &rank) in self.ranks.iter().enumerate() {
            problems.count(&join(at, "ranks"), &i.to_string(), rank, 1, MAX_RANK);
        }
        names_of_openings(at, &self.openings, problems);
    }
}
