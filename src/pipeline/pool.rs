//! The pool of learned edits that a joint defence is trained against.
//!
//! For every block a few edits of different ranks and step sizes are kept warm: each use trains one a few steps further
//! against the present weights, and after a number of uses it starts afresh, so that the defence meets both edits that have
//! followed it for long and ones that come new. Every other life begins from an edit that was fitted on the un-hardened
//! weights, which an attacker who has the base would start from.

use rayon::prelude::*;

use crate::attack::form::Form;
use crate::attack::learned::{Fit, Learner, Prefix, fit, paper_steps};
use crate::attack::{AttackData, Pair};
use crate::defence::adversarial::PoolAdversary;
use crate::defence::spec::AdversarialSpec;
use crate::intervention::{Edit, Placed, Positions};
use crate::math::seed::Stream;
use crate::math::snapshot::Snapshot;
use crate::model::Decoder;
use crate::{Error, Result};

/// Pairs, pairs per step and step size of the edits that are fitted on the un-hardened weights: the paper's.
const BASE_FIT: (usize, usize, f64) = (80, 10, 4e-3);

/// Edits that learn along with the defence.
pub struct Pool {
    spec: AdversarialSpec,
    pairs: Vec<Pair>,
    pad: u32,
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
    /// Uses in this life.
    uses: usize,
    /// Lives begun, this one included.
    lives: usize,
    /// An edit fitted on the un-hardened weights.
    base: Option<Edit>,
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
                    // Neighbours in the pool begin in different ways.
                    lives: number,
                    base: None,
                    stream: Stream::new(seed, &format!("pool/block-{layer}/{number}")),
                });
            }
        }
        let order = Stream::new(seed, "pool/order");
        Ok(Self { spec: spec.clone(), pairs, pad: data.pad, members, order, queue: vec![] })
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
    fn attack(&mut self, decoder: &Decoder, step: usize) -> Result<Vec<Placed>> {
        if step == 0 && self.spec.starts_from_base {
            self.fit_base(decoder)?;
        }
        let chosen = self.next();
        let (spec, pairs, pad) = (&self.spec, &self.pairs, self.pad);
        let mut members: Vec<(usize, &mut Member)> =
            self.members.iter_mut().enumerate().filter(|(index, _)| chosen.contains(index)).collect();
        members.par_iter_mut().map(|(_, member)| member.improve(spec, decoder, pairs, pad)).collect()
    }

    fn save(&self, into: &mut Snapshot) -> Result<()> {
        into.put("pool/order", &(self.order.position(), &self.queue))?;
        let mut members = self.members.iter().enumerate();
        members.try_for_each(|(number, member)| member.save(&format!("pool/{number}"), into))
    }

    fn restore(&mut self, from: &Snapshot, decoder: &Decoder) -> Result<()> {
        let position;
        (position, self.queue) = from.get("pool/order")?;
        self.order = self.order.clone().at(position);
        let mut members = self.members.iter_mut().enumerate();
        members.try_for_each(|(number, member)| member.restore(&format!("pool/{number}"), from, decoder))
    }
}

impl Pool {
    /// Fits every member's edit on weights that nothing has hardened yet.
    fn fit_base(&mut self, decoder: &Decoder) -> Result<()> {
        let (count, batch, learning_rate) = BASE_FIT;
        let data = AttackData { pairs: self.pairs.clone(), pad: self.pad, ..AttackData::default() };
        self.members.par_iter_mut().try_for_each(|member| {
            let steps = paper_steps(count, batch);
            let (layer, rank) = (member.layer, member.rank);
            let (form, layers) = (Form::Noreft, vec![layer]);
            let settings = Fit { form, layers, rank, steps, batch, learning_rate, positions: Positions::All };
            member.base = Some(fit(decoder, &data, count, &settings, None, None, &mut member.stream)?.edit);
            Ok(())
        })
    }
}

impl Member {
    fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        into.put(format!("{name}/life"), &(self.uses, self.lives, self.stream.position()))?;
        into.put(format!("{name}/alive"), &self.learner.is_some())?;
        if let Some(Edit::LowRank { w1, w2, .. }) = &self.base {
            into.put_numbers(format!("{name}/base/w1"), w1.clone());
            into.put_numbers(format!("{name}/base/w2"), w2.clone());
        }
        match &self.learner {
            Some(learner) => learner.save(name, into),
            None => Ok(()),
        }
    }

    fn restore(&mut self, name: &str, from: &Snapshot, decoder: &Decoder) -> Result<()> {
        let position;
        (self.uses, self.lives, position) = from.get(&format!("{name}/life"))?;
        if let (Ok(w1), Ok(w2)) = (from.numbers(&format!("{name}/base/w1")), from.numbers(&format!("{name}/base/w2"))) {
            let (w1, w2) = (w1.to_vec(), w2.to_vec());
            self.base = Some(Edit::LowRank { layer: self.layer, rank: self.rank, w1, w2 });
        }
        self.learner = if from.get(&format!("{name}/alive"))? {
            let mut learner = Learner::new(decoder, Form::Noreft, &[self.layer], self.rank, None, &mut self.stream)?;
            learner.restore(name, from)?;
            Some(learner)
        } else {
            None
        };
        self.stream = self.stream.clone().at(position);
        Ok(())
    }

    fn improve(&mut self, spec: &AdversarialSpec, decoder: &Decoder, pairs: &[Pair], pad: u32) -> Result<Placed> {
        if self.uses >= spec.restart_after {
            (self.learner, self.uses) = (None, 0);
        }
        let mut steps = spec.inner_steps;
        let mut learner = match self.learner.take() {
            Some(learner) => learner,
            None => {
                self.lives += 1;
                let start = self.base.as_ref().filter(|_| self.lives.is_multiple_of(2));
                // An edit from nothing does nothing yet; it is worth resisting only after some more steps.
                steps *= if start.is_some() { 1 } else { spec.warm_up };
                Learner::new(decoder, Form::Noreft, &[self.layer], self.rank, start, &mut self.stream)?
            }
        };
        self.uses += 1;
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
