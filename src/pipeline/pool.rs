//! The pool of learned edits that a joint defence is trained against.
//!
//! For every block a few edits of different ranks and step sizes are kept warm: each use trains one a few steps further
//! against the present weights, and after a number of uses it starts afresh, so that the defence meets both edits that have
//! followed it for long and ones that come new.

use rayon::prelude::*;

use crate::attack::learned::{Learner, Prefix};
use crate::attack::{AttackData, Pair};
use crate::defence::adversarial::PoolAdversary;
use crate::defence::spec::AdversarialSpec;
use crate::intervention::{Placed, Positions};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::{Error, Result};

/// Edits that learn along with the defence.
pub struct Pool {
    spec: AdversarialSpec,
    layers: Vec<usize>,
    pairs: Vec<Pair>,
    pad: u32,
    seed: u64,
    members: Vec<Member>,
    order: Stream,
    queue: Vec<usize>,
}

/// One edit of the pool. Its own random stream makes it independent of all others.
struct Member {
    layer: usize,
    rank: usize,
    rate: f64,
    learner: Option<Learner>,
    uses: usize,
    stream: Stream,
}

impl Pool {
    /// A pool against `layers`, aiming for the answers of the attacker's pairs whose openings the recipe allows.
    ///
    /// # Errors
    /// When no pair has an allowed opening.
    pub fn new(spec: &AdversarialSpec, layers: &[usize], data: &AttackData, seed: u64) -> Result<Self> {
        let allowed = |pair: &&Pair| {
            spec.openings.is_empty() || pair.opening.as_ref().is_some_and(|name| spec.openings.contains(name))
        };
        let pairs: Vec<Pair> = data.pairs.iter().filter(allowed).cloned().collect();
        if pairs.is_empty() {
            return Err(Error::usage(format!("`openings`: expected some of the data's, got {:?}", spec.openings)));
        }
        let mut members = Vec::new();
        for (at, &layer) in layers.iter().enumerate() {
            for number in 0..spec.pool.max(1) {
                let turn = at + number;
                members.push(Member {
                    layer,
                    rank: spec.ranks[(turn + number) % spec.ranks.len()],
                    rate: spec.inner_learning_rates[turn % spec.inner_learning_rates.len()],
                    learner: None,
                    uses: 0,
                    stream: Stream::new(seed, &format!("pool/block-{layer}/{number}")),
                });
            }
        }
        let order = Stream::new(seed, "pool/order");
        Ok(Self {
            spec: spec.clone(),
            layers: layers.to_vec(),
            pairs,
            pad: data.pad,
            seed,
            members,
            order,
            queue: vec![],
        })
    }

    /// The random seed of this pool.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Members whose turn it is: every member once before any comes again.
    fn next(&mut self) -> Vec<usize> {
        let count = self.spec.edits_per_step.clamp(1, self.members.len());
        let mut chosen = Vec::with_capacity(count);
        while chosen.len() < count {
            if self.queue.is_empty() {
                self.queue = self.order.sample(self.members.len(), self.members.len());
            }
            let Some(member) = self.queue.pop() else { break };
            if !chosen.contains(&member) {
                chosen.push(member);
            }
        }
        chosen
    }
}

impl PoolAdversary for Pool {
    fn attack(&mut self, decoder: &Decoder, _step: usize) -> Result<Vec<Placed>> {
        let chosen = self.next();
        let (spec, pairs, pad) = (&self.spec, &self.pairs, self.pad);
        debug_assert!(!self.layers.is_empty());
        let mut members: Vec<(usize, &mut Member)> =
            self.members.iter_mut().enumerate().filter(|(index, _)| chosen.contains(index)).collect();
        members.par_iter_mut().map(|(_, member)| member.improve(spec, decoder, pairs, pad)).collect()
    }
}

impl Member {
    fn improve(&mut self, spec: &AdversarialSpec, decoder: &Decoder, pairs: &[Pair], pad: u32) -> Result<Placed> {
        if self.uses >= spec.restart_after {
            (self.learner, self.uses) = (None, 0);
        }
        let first = self.uses == 0;
        self.uses += 1;
        let mut learner = match self.learner.take() {
            Some(learner) => learner,
            None => Learner::new(decoder, self.layer, self.rank, None, &mut self.stream)?,
        };
        // A fresh edit does nothing yet; it is worth resisting only after some more steps.
        let steps = if first { spec.inner_steps * spec.warm_up } else { spec.inner_steps };
        let rows: Vec<&Pair> = (0..2 * spec.batch).map(|_| &pairs[self.stream.below(pairs.len())]).collect();
        let prefix = Prefix::new(decoder, self.layer, &rows, pad)?;
        for _ in 0..steps {
            let batch = self.stream.sample(rows.len(), spec.batch);
            learner.step(&prefix, &batch, Positions::All, self.rate)?;
        }
        let snapshot = learner.snapshot()?;
        self.learner = Some(learner);
        Ok(snapshot)
    }
}
