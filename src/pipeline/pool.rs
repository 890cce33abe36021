//! The pool of edits that a joint defence is trained against.
//!
//! For every block, and for all of them together, a few learned edits of different ranks and step sizes are kept warm: each
//! use trains one a few steps further against the present weights, and after a number of uses it starts afresh, so that
//! the defence meets both edits that have followed it for long and ones that come new. Every other life begins from an
//! edit that was fitted on the weights that the stage began with: of a first stage the un-hardened ones, which an attacker who
//! has the base would start from. Edits that need no learning are taken from the weights of the moment, at the strength
//! that serves the attacker best, and kept for a number of uses.

use rayon::prelude::*;

use super::cell::kind_name;
use crate::attack::control::random_like;
use crate::attack::direction::{Classes, contrasts, shared_ending};
use crate::attack::form::Form;
use crate::attack::learned::{Fit, Learner, fit, paper_steps};
use crate::attack::prefix::Prefix;
use crate::attack::spec::AttackKind;
use crate::attack::steering::Steering;
use crate::attack::transport::Transport;
use crate::attack::{AttackData, Pair};
use crate::defence::adversarial::PoolAdversary;
use crate::defence::spec::{AdversarialSpec, Focus, Vector};
use crate::intervention::{Edit, Placed, Positions};
use crate::math::seed::Stream;
use crate::math::snapshot::Snapshot;
use crate::model::{Decoder, Point};
use crate::report::wording;
use crate::{Error, Result};

/// Pairs, pairs per step and step size of the edits that are fitted on the weights of the beginning: the paper's, with half its
/// pairs.
const BASE_FIT: (usize, usize, f64) = (40, 10, 4e-3);

/// Prompts of each class that a vector is taken from.
pub(super) const VECTOR_PROMPTS: usize = 64;

/// Strengths that a vector is tried at, of either sign, in units of the mean residual norm: an in-context vector at
/// all of thirty blocks breaks the model at a tenth, a difference of means at one of them works at a quarter and more.
const STRENGTHS: [f64; 7] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

/// Strengths of steered heads, of either sign, in multiples of a head's spread; parts of the way that heads are carried to the harmless
/// side.
const HEAD_STRENGTHS: [f64; 5] = [1.0, 3.0, 8.0, 15.0, 30.0];
const TRANSPORT_PARTS: [f64; 3] = [0.5, 1.0, 2.0];

/// Blocks that a projected direction is chosen among, for each contrast.
const PROJECTED_BLOCKS: usize = 6;

/// Share of the past in the running mean of what a member's edits reach.
const REACH_DECAY: f64 = 0.8;

/// Edits that learn along with the defence.
pub struct Pool {
    spec: AdversarialSpec,
    data: AttackData,
    members: Vec<Member>,
    order: Stream,
    queue: Vec<usize>,
    /// The members whose edits the present step resists, in their order.
    turn: Vec<usize>,
}

/// One member of the pool. Its own random stream makes it independent of all others.
struct Member {
    layers: Vec<usize>,
    kind: Kind,
    stream: Stream,
    /// Running mean of the divergence under its edits, nats per answer token; nothing before its first use.
    reached: Option<f64>,
}

enum Kind {
    Learned(Box<Learned>),
    Found(Found),
}

/// An edit without learning, kept for some uses.
struct Found {
    vector: Vector,
    edit: Option<(Placed, Positions)>,
    /// Uses of this edit.
    uses: usize,
}

/// A learned edit that is kept warm.
struct Learned {
    rank: usize,
    rate: f64,
    /// Place in the turn of positions that its lives go through.
    turn: usize,
    learner: Option<Learner>,
    /// Uses in this life.
    uses: usize,
    /// Lives begun, this one included.
    lives: usize,
    /// An edit fitted on the weights that the stage began with.
    base: Option<Edit>,
}

impl Pool {
    /// A pool against `layers`, with learned edits of single blocks for those of `of_pool`, aiming for the answers of the attacker's
    /// pairs whose openings the recipe allows.
    ///
    /// # Errors
    /// When no pair has an allowed opening.
    pub fn new(
        spec: &AdversarialSpec,
        layers: &[usize],
        of_pool: &[usize],
        data: &AttackData,
        seed: u64,
    ) -> Result<Self> {
        let allowed = |pair: &&Pair| {
            spec.openings.is_empty() || pair.opening.as_ref().is_some_and(|name| spec.openings.contains(name))
        };
        let data = AttackData { pairs: data.pairs.iter().filter(allowed).cloned().collect(), ..data.clone() };
        if data.pairs.is_empty() && spec.openings.is_empty() {
            let problem = "expected hazards of split `train` with a `target`, an answer that complies, got none";
            return Err(Error::input("prompts of stage `adversarial`", problem));
        }
        if data.pairs.is_empty() {
            return Err(Error::usage(format!("`openings`: expected some of the data's, got {:?}", spec.openings)));
        }
        // Step sizes are gone through upwards and ranks downwards, so that a block's edits differ in both.
        let (ranks, rates) = (&spec.ranks, &spec.inner_learning_rates);
        let learned = |at: usize, number: usize| {
            Kind::Learned(Box::new(Learned {
                rank: ranks[(at + number * (ranks.len() - 1)) % ranks.len()],
                rate: rates[(at + number) % rates.len()],
                turn: at,
                learner: None,
                uses: 0,
                // Neighbours in the pool begin in different ways.
                lives: number,
                base: None,
            }))
        };
        let mut members = Vec::new();
        for (at, &layer) in of_pool.iter().enumerate() {
            let end = at == 0 || at + 1 == of_pool.len();
            let count = spec.pool * if end && spec.focus == Focus::Ends { 2 } else { 1 };
            for number in 0..count {
                let stream = Stream::new(seed, &format!("pool/block-{layer}/{number}"));
                members.push(Member::new(vec![layer], learned(at, number), stream));
            }
        }
        for number in 0..spec.joint {
            let stream = Stream::new(seed, &format!("pool/joint/{number}"));
            members.push(Member::new(layers.to_vec(), learned(0, number), stream));
        }
        for (number, vector) in spec.vectors.iter().enumerate() {
            let stream = Stream::new(seed, &format!("pool/{vector:?}/{number}"));
            let found = Found { vector: *vector, edit: None, uses: 0 };
            members.push(Member::new(layers.to_vec(), Kind::Found(found), stream));
        }
        let order = Stream::new(seed, "pool/order");
        Ok(Self { spec: spec.clone(), data, members, order, queue: vec![], turn: vec![] })
    }

    /// The members of the next step: the pool in a random order, then in another. A member that comes up twice within a step,
    /// where one order ends and another begins, is passed over the second time.
    fn take_turns(&mut self) -> Vec<usize> {
        let count = self.edits();
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

    /// The members of the next step, drawn by what their edits reached lately: half of the chance is everyone's, and one that was
    /// never used counts as the strongest.
    fn draw_by_reach(&mut self) -> Vec<usize> {
        let strongest = self.members.iter().filter_map(|member| member.reached).fold(0.0, f64::max);
        let reached: Vec<f64> = self.members.iter().map(|member| member.reached.unwrap_or(strongest)).collect();
        let mean = reached.iter().sum::<f64>() / reached.len() as f64;
        let mut left: Vec<(usize, f64)> =
            reached.iter().map(|reached| reached + mean.max(f64::MIN_POSITIVE)).enumerate().collect();
        let mut chosen = Vec::with_capacity(self.edits());
        while chosen.len() < self.edits() {
            let mut place = self.order.unit() * left.iter().map(|(_, weight)| weight).sum::<f64>();
            let at = left.iter().position(|(_, weight)| {
                place -= weight;
                place < 0.0
            });
            chosen.push(left.remove(at.unwrap_or(left.len() - 1)).0);
        }
        chosen
    }
}

impl PoolAdversary for Pool {
    fn edits(&self) -> usize {
        self.spec.edits_per_step.clamp(1, self.members.len())
    }

    fn attack(&mut self, decoder: &Decoder, step: usize) -> Result<Vec<(Placed, Positions)>> {
        let (spec, data) = (&self.spec, &self.data);
        if step == 0 && spec.starts_from_base {
            // On weights that this stage has not changed yet.
            self.members.par_iter_mut().try_for_each(|member| member.fit_base(decoder, data))?;
        }
        self.turn = if self.spec.focus == Focus::Strongest { self.draw_by_reach() } else { self.take_turns() };
        self.turn.sort_unstable();
        let (spec, data, turn) = (&self.spec, &self.data, &self.turn);
        let mut members: Vec<(usize, &mut Member)> =
            self.members.iter_mut().enumerate().filter(|(index, _)| turn.contains(index)).collect();
        members.par_iter_mut().map(|(_, member)| member.attack(spec, decoder, data)).collect()
    }

    fn reached(&mut self, divergences: &[f64]) {
        for (&member, &divergence) in self.turn.iter().zip(divergences) {
            let mean = &mut self.members[member].reached;
            *mean = Some(mean.map_or(divergence, |mean| REACH_DECAY * mean + (1.0 - REACH_DECAY) * divergence));
        }
    }

    fn strongest(&self) -> Option<(String, f64)> {
        let met = self.members.iter().filter_map(|member| Some((member, member.reached?)));
        let most = met.max_by(|(_, a), (_, b)| a.total_cmp(b));
        most.map(|(member, reached)| (member.name(), reached))
    }

    fn save(&self, into: &mut Snapshot) -> Result<()> {
        let reached: Vec<Option<u64>> = self.members.iter().map(|member| member.reached.map(f64::to_bits)).collect();
        into.put("pool/order", &(self.order.position(), &self.queue, reached))?;
        let mut members = self.members.iter().enumerate();
        members.try_for_each(|(number, member)| member.save(&format!("pool/{number}"), into))
    }

    fn restore(&mut self, from: &Snapshot, decoder: &Decoder) -> Result<()> {
        let (position, reached): (u64, Vec<Option<u64>>);
        (position, self.queue, reached) = from.get("pool/order")?;
        self.order = self.order.clone().at(position);
        for (member, reached) in self.members.iter_mut().zip(reached) {
            member.reached = reached.map(f64::from_bits);
        }
        let mut members = self.members.iter_mut().enumerate();
        members.try_for_each(|(number, member)| member.restore(&format!("pool/{number}"), from, decoder))
    }
}

impl Member {
    fn new(layers: Vec<usize>, kind: Kind, stream: Stream) -> Self {
        Self { layers, kind, stream, reached: None }
    }

    /// Its attack, and of a learned edit the blocks; an edit's tokens change from life to life.
    fn name(&self) -> String {
        match &self.kind {
            Kind::Learned(learned) => format!("noreft r{} at {}", learned.rank, wording::blocks(&self.layers)),
            Kind::Found(found) => kind_name(attack_of(found.vector)).to_owned(),
        }
    }

    fn fit_base(&mut self, decoder: &Decoder, data: &AttackData) -> Result<()> {
        let Kind::Learned(learned) = &mut self.kind else { return Ok(()) };
        let (count, batch, learning_rate) = BASE_FIT;
        let settings = Fit {
            form: Form::Noreft,
            layers: self.layers.clone(),
            rank: learned.rank,
            pairs: count,
            steps: paper_steps(count, batch),
            batch,
            learning_rate,
            // At all tokens it is a start for every choice of them.
            positions: Positions::All,
        };
        learned.base = Some(fit(decoder, data, &settings, &mut self.stream)?.edit);
        Ok(())
    }

    /// The edit that the defence is to resist now.
    fn attack(&mut self, spec: &AdversarialSpec, decoder: &Decoder, data: &AttackData) -> Result<(Placed, Positions)> {
        let Self { layers, kind, stream, .. } = self;
        // A projection acts at all blocks, whichever the stage changes.
        let first = match kind {
            Kind::Found(Found { vector: Vector::Ablation, .. }) => 0,
            _ => layers.iter().copied().min().unwrap_or(0),
        };
        let mut prefix = || {
            let pairs: Vec<&Pair> = (0..2 * spec.batch).map(|_| &data.pairs[stream.below(data.pairs.len())]).collect();
            Prefix::new(decoder, first, &pairs, data.pad)
        };
        let (edit, positions) = match kind {
            Kind::Learned(learned) => {
                let prefix = prefix()?;
                let edit = learned.improve(spec, decoder, &prefix, layers, stream)?;
                (edit, learned.positions(spec))
            }
            Kind::Found(found) => {
                if found.uses >= spec.vector_life {
                    (found.edit, found.uses) = (None, 0);
                }
                found.uses += 1;
                match &found.edit {
                    Some(edit) => edit.clone(),
                    None => {
                        let prefix = prefix()?;
                        let positions = match spec.positions.as_slice() {
                            [one] => *one,
                            several => several[stream.below(several.len())],
                        };
                        let edit = strongest(found.vector, layers, decoder, data, &prefix, positions, stream)?;
                        found.edit.insert((edit, positions)).clone()
                    }
                }
            }
        };
        match spec.amplify.as_slice() {
            [] | [1.0] => Ok((edit, positions)),
            factors => Ok((edit.amplified(factors[stream.below(factors.len())])?, positions)),
        }
    }

    fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        into.put(format!("{name}/stream"), &self.stream.position())?;
        let learned = match &self.kind {
            Kind::Learned(learned) => learned,
            Kind::Found(found) => {
                let edit = |(edit, positions): &(Placed, Positions)| Ok::<_, Error>((edit.edit()?, *positions));
                let mut edit = found.edit.as_ref().map(edit).transpose()?;
                let lists = edit.as_mut().map(|(edit, _)| edit.lists()).unwrap_or_default();
                for (number, list) in lists.into_iter().enumerate() {
                    into.put_numbers(format!("{name}/found/{number}"), std::mem::take(list));
                }
                return into.put(format!("{name}/found"), &(found.uses, edit));
            }
        };
        into.put(format!("{name}/life"), &(learned.uses, learned.lives, learned.learner.is_some()))?;
        for (number, edit) in parts(learned.base.as_ref()).enumerate() {
            if let Edit::LowRank { w1, w2, .. } = edit {
                into.put_numbers(format!("{name}/base/{number}/w1"), w1.clone());
                into.put_numbers(format!("{name}/base/{number}/w2"), w2.clone());
            }
        }
        learned.learner.as_ref().map_or(Ok(()), |learner| learner.save(name, into))
    }

    fn restore(&mut self, name: &str, from: &Snapshot, decoder: &Decoder) -> Result<()> {
        match &mut self.kind {
            Kind::Learned(learned) => learned.restore(name, from, decoder, &self.layers, &mut self.stream)?,
            Kind::Found(found) => {
                let mut edit: Option<(Edit, Positions)>;
                (found.uses, edit) = from.get(&format!("{name}/found"))?;
                let lists = edit.as_mut().map(|(edit, _)| edit.lists()).unwrap_or_default();
                for (number, list) in lists.into_iter().enumerate() {
                    *list = from.numbers(&format!("{name}/found/{number}"))?.to_vec();
                }
                let placed = |(edit, positions): (Edit, _)| Ok::<_, Error>((edit.place(decoder.device())?, positions));
                found.edit = edit.map(placed).transpose()?;
            }
        }
        self.stream = self.stream.clone().at(from.get(&format!("{name}/stream"))?);
        Ok(())
    }
}

impl Learned {
    /// Where the edit of this life acts. Every other life begins from the base's edit, so with an even number of choices each round of them
    /// begins one further: else a choice would be tied to one kind of start.
    fn positions(&self, spec: &AdversarialSpec) -> Positions {
        let choices = spec.positions.len();
        let rounds = if choices.is_multiple_of(2) { self.lives / choices } else { 0 };
        spec.positions[(self.turn + self.lives + rounds) % choices]
    }

    fn improve(
        &mut self,
        spec: &AdversarialSpec,
        decoder: &Decoder,
        prefix: &Prefix<'_>,
        layers: &[usize],
        stream: &mut Stream,
    ) -> Result<Placed> {
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
                Learner::new(decoder, Form::Noreft, layers, self.rank, start, stream)?
            }
        };
        self.uses += 1;
        let positions = self.positions(spec);
        for _ in 0..steps {
            let batch = stream.sample(prefix.len(), spec.batch);
            learner.step(prefix, &batch, positions, self.rate)?;
        }
        let snapshot = learner.snapshot()?;
        self.learner = Some(learner);
        Ok(snapshot)
    }

    fn restore(
        &mut self,
        name: &str,
        from: &Snapshot,
        decoder: &Decoder,
        layers: &[usize],
        stream: &mut Stream,
    ) -> Result<()> {
        let alive: bool;
        (self.uses, self.lives, alive) = from.get(&format!("{name}/life"))?;
        let part = |(number, layer): (usize, &usize)| {
            let factor = |which: &str| from.numbers(&format!("{name}/base/{number}/{which}")).ok().map(<[f32]>::to_vec);
            Some(Edit::LowRank { layer: *layer, rank: self.rank, w1: factor("w1")?, w2: factor("w2")? })
        };
        let edits: Option<Vec<Edit>> = layers.iter().enumerate().map(part).collect();
        self.base = edits.map(|mut edits| match edits.len() {
            1 => edits.remove(0),
            _ => Edit::Several { edits },
        });
        self.learner = if alive {
            let rank = self.rank;
            let mut learner = Learner::new(decoder, Form::Noreft, layers, rank, None, stream)?;
            learner.restore(name, from)?;
            Some(learner)
        } else {
            None
        };
        Ok(())
    }
}

/// The edit of the present weights under which the attacker's answers are likeliest: a vector at one of several strengths, or one
/// projected direction of several.
fn strongest(
    vector: Vector,
    layers: &[usize],
    decoder: &Decoder,
    data: &AttackData,
    prefix: &Prefix<'_>,
    positions: Positions,
    stream: &mut Stream,
) -> Result<Placed> {
    // Block 0 reads the template's last token there, which is the same for all prompts: no difference of means.
    let later: Vec<usize> = layers.iter().copied().filter(|layer| *layer > 0).collect();
    let later = if later.is_empty() { &layers[..1] } else { &later };
    let one = |stream: &mut Stream| later[stream.below(later.len())];
    let kind = attack_of(vector);
    let candidates = match vector {
        Vector::MeanDifference => steered(kind, &[one(stream)], &STRENGTHS, decoder, data)?,
        Vector::Random => {
            let like = steered(attack_of(Vector::MeanDifference), &[one(stream)], &STRENGTHS, decoder, data)?;
            like.iter().map(|edit| random_like(edit, stream)).collect::<Result<_>>()?
        }
        Vector::PrincipalComponent | Vector::InContextVector => steered(kind, layers, &STRENGTHS, decoder, data)?,
        Vector::Ablation => projections(later, decoder, data, stream)?,
        Vector::ItiHeads => steered(kind, layers, &HEAD_STRENGTHS, decoder, data)?,
        Vector::OptimalTransport => transports(layers, decoder, data)?,
    };
    let rows: Vec<usize> = (0..prefix.len().div_ceil(2)).collect();
    let mut best: Option<(f32, Placed)> = None;
    for edit in candidates {
        let placed = edit.place(decoder.device())?;
        let loss = prefix.loss(&rows, &placed, positions)?.to_scalar::<f32>()?;
        if best.as_ref().is_none_or(|(lowest, _)| loss < *lowest) {
            best = Some((loss, placed));
        }
    }
    best.map(|(_, placed)| placed).ok_or_else(|| Error::input("candidates", "expected one at least, got none"))
}

fn attack_of(vector: Vector) -> AttackKind {
    match vector {
        Vector::MeanDifference => AttackKind::MeanDifference,
        Vector::PrincipalComponent => AttackKind::PrincipalComponent,
        Vector::InContextVector => AttackKind::InContextVector,
        Vector::Ablation => AttackKind::Ablation,
        Vector::ItiHeads => AttackKind::ItiHeads,
        Vector::OptimalTransport => AttackKind::OptimalTransport,
        Vector::Random => AttackKind::Random,
    }
}

/// The vector of `kind` at every strength, of either sign.
fn steered(
    kind: AttackKind,
    layers: &[usize],
    strengths: &[f64],
    decoder: &Decoder,
    data: &AttackData,
) -> Result<Vec<Edit>> {
    let same =
        || Error::input("class activations", "expected hazards to differ from harmless prompts, got no difference");
    let steering = Steering::find(kind, layers, decoder, data, VECTOR_PROMPTS)?.ok_or_else(same)?;
    let strengths = strengths.iter().flat_map(|strength| [-strength, *strength]);
    Ok(strengths.map(|strength| steering.edit(strength)).collect())
}

/// Maps of few and of all heads of `layers`, from either contrast, at every part of the way.
fn transports(layers: &[usize], decoder: &Decoder, data: &AttackData) -> Result<Vec<Edit>> {
    let mut edits = Vec::new();
    for contrast in contrasts(data) {
        let transport = Transport::find(layers, decoder, data, contrast, VECTOR_PROMPTS)?;
        let each = |heads| TRANSPORT_PARTS.map(|part| transport.edit(heads, part));
        edits.extend(transport.counts().into_iter().flat_map(each));
    }
    Ok(edits)
}

/// Directions of some of `layers` at one of the tokens that end all prompts, for every contrast: what the suite chooses among.
fn projections(layers: &[usize], decoder: &Decoder, data: &AttackData, stream: &mut Stream) -> Result<Vec<Edit>> {
    let mut edits = Vec::new();
    for contrast in contrasts(data) {
        let back = stream.below(shared_ending(data).max(1));
        let classes = Classes::collect(decoder, data, contrast, VECTOR_PROMPTS, Point::ResidPre, back)?;
        let drawn = stream.sample(layers.len(), PROJECTED_BLOCKS.min(layers.len()));
        // Where both means are equal there is no direction.
        edits.extend(drawn.into_iter().filter_map(|at| classes[layers[at]].projection(1).ok()));
    }
    Ok(edits)
}

/// The edits of single blocks that an edit consists of.
fn parts(edit: Option<&Edit>) -> std::slice::Iter<'_, Edit> {
    match edit {
        Some(Edit::Several { edits }) => edits.iter(),
        Some(one) => std::slice::from_ref(one).iter(),
        None => [].iter(),
    }
}
