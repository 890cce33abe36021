//! `adversarial`: adapters trained so that the model keeps its answers while an adversary keeps re-training its edits.
//!
//! *Source*: latent adversarial training, aimed at the threat of E.T.: the inner problem is the attack suite's own learned
//! edit of one block's input, kept warm in a pool that the pipeline injects; the outer problem keeps the edited model's
//! next-token distributions on refusals at those of the original, un-edited model (not at a fixed text: the original
//! refuses in many ways, and a distribution has no floor above zero), and holds the clean model to the original on
//! anchors. Every outer step takes several edits, of different blocks, in parallel.
//!
//! Refusals are also asked for *after the first tokens of a compliant answer* (Qi et al., "Safety Alignment Should Be Made
//! More Than Just a Few Tokens Deep", 2024): else an edit only has to win the first token, and what the weights know about
//! complying does the rest. An attacker then has to push every token, which a low rank can't.

use std::collections::BTreeMap;

use candle_core::Tensor;
use ndarray::Array2;

use super::anchor::{Anchors, Asked};
use super::noise::Noise;
use super::spec::{AdversarialSpec, AnchorWeights, Parameters};
use super::trainable::Trainable;
use super::{DefenceData, StageOutcome, UnitStore, Weighed};
use crate::event::{Event, Observer};
use crate::intervention::{Placed, Positions};
use crate::math::seed::Stream;
use crate::math::snapshot::Snapshot;
use crate::model::Decoder;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients, summed, whole_loss};
use crate::{Error, Result};

/// Outer steps between two progress events, each of which keeps the state.
const REPORT_EVERY: usize = 20;

/// Name of the kept state in the store.
const STATE: &str = "adversarial/state";

/// Share of clean hazards among the anchors.
const CLEAN_HAZARDS: f64 = 0.25;

/// The adversary of a joint defence: a pool of edits that learns along.
pub trait PoolAdversary: Send {
    /// Edits that one attack returns.
    fn edits(&self) -> usize;

    /// Improves some of the pool's edits against `decoder` (frozen) and returns them with the tokens that each acts at: what the next
    /// outer step resists.
    ///
    /// # Errors
    /// As the attack's.
    fn attack(&mut self, decoder: &Decoder, step: usize) -> Result<Vec<(Placed, Positions)>>;

    /// Learns what the edits of the last attack reached, in their order: the divergence under each of refusals, and of harmless answers
    /// and, times its weight, of interrupted ones where the stage has them under edits, nats per answer token.
    fn reached(&mut self, divergences: &[f64]);

    /// The edit that reaches most of those met so far, in words, and what it reaches.
    fn strongest(&self) -> Option<(String, f64)>;

    /// Keeps everything that the next call of [`PoolAdversary::attack`] depends on.
    ///
    /// # Errors
    /// When a copy from the device fails.
    fn save(&self, into: &mut Snapshot) -> Result<()>;

    /// Goes back to what [`PoolAdversary::save`] kept of an adversary of the same settings.
    ///
    /// # Errors
    /// When something is missing.
    fn restore(&mut self, from: &Snapshot, decoder: &Decoder) -> Result<()>;
}

/// Trains adapters on `layers` of the current weights towards what the original ones answer.
///
/// # Errors
/// As [`Decoder::run`], and those of the adversary and the store.
#[expect(clippy::too_many_arguments, reason = "what a stage may see, each once")]
pub fn run(
    spec: &AdversarialSpec,
    layers: &[usize],
    weights: Weighed<'_>,
    data: &DefenceData,
    adversary: &mut dyn PoolAdversary,
    seed: u64,
    observer: &dyn Observer,
    store: &mut dyn UnitStore,
) -> Result<StageOutcome> {
    let Weighed { original, current: decoder } = weights;
    if data.hazards.is_empty() {
        let problem = "expected hazards of split `train` with an `answer` that refuses, got none";
        return Err(Error::input("prompts of stage `adversarial`", problem));
    }
    let adapters = match spec.train {
        Parameters::Weights => Trainable::weights(decoder, layers)?,
        Parameters::Factors => {
            Trainable::fresh(decoder, layers, spec.rank, &mut Stream::new(seed, "adversarial/adapters"))?
        }
    };
    let adapted = adapters.attach(decoder)?;
    // Clean refusals are anchors too: what an edit may not change, its absence may not change either.
    let held = if spec.refusal_tokens == 0 { usize::MAX } else { spec.refusal_tokens };
    let refused = data.hazards.iter().map(|hazard| hazard.beginning(held));
    let everything: Vec<_> = refused.chain(data.anchors.iter().cloned()).collect();
    let anchors = Anchors::new(original, &everything, data.pad)?;
    let questions = Questions::new(spec, data, Noise::of(spec.prompt_noise, &everything));
    let outer = Outer { spec, adapted: &adapted, anchors: &anchors, questions: &questions };
    let settings = AdamSettings { clip: Some(1.0), ..AdamSettings::default() };
    let mut run = Run::new(AdamW::new(adapters.vars(), settings), Stream::new(seed, "adversarial/batches"));
    if let Some(kept) = store.get(STATE).and_then(|bytes| Snapshot::from_bytes(&bytes).ok()) {
        run.restore(&kept)?;
        adversary.restore(&kept, decoder)?;
        observer.event(Event::Note(format!("adversarial: {} of {} steps are kept", run.step, spec.steps)));
    }
    while run.step < spec.steps {
        let losses = outer.step(&mut run, adversary)?;
        run.count(losses);
        if run.step.is_multiple_of(REPORT_EVERY) || run.step == spec.steps {
            observer.event(run.progress(spec, adversary));
            if run.step as f64 > spec.steps as f64 * (1.0 - spec.average) {
                run.mean.add(adapters.deltas()?);
            }
            let mut kept = Snapshot::default();
            run.save(&mut kept)?;
            adversary.save(&mut kept)?;
            store.put(STATE, &kept.to_bytes()?)?;
        }
    }
    let [attack, clean] = run.losses;
    let figures = BTreeMap::from([("kl_under_attack".to_owned(), attack), ("kl_on_anchors".to_owned(), clean)]);
    let adapters = match run.mean.count {
        0 => adapters.export()?,
        _ => adapters.export_instead(run.mean.deltas)?,
    };
    Ok(StageOutcome { adapters, blocks: Vec::new(), figures })
}

/// What an outer step works on.
struct Outer<'a> {
    spec: &'a AdversarialSpec,
    /// The decoder with what is trained.
    adapted: &'a Decoder,
    anchors: &'a Anchors<'a>,
    questions: &'a Questions<'a>,
}

impl Outer<'_> {
    /// Takes one step of the optimiser; returns the mean divergence under its edits and the clean one, nats per answer token.
    fn step(&self, run: &mut Run, adversary: &mut dyn PoolAdversary) -> Result<[f64; 2]> {
        let Self { spec, adapted, anchors, questions } = self;
        let share = 1.0 / adversary.edits().max(1) as f64;
        let batches: Vec<Batches<'_>> =
            (0..adversary.edits()).map(|_| questions.batches(adversary.edits(), &mut run.draws)).collect();
        let gradients =
            |loss: &(dyn Fn(usize) -> Result<Tensor> + Sync)| sharded_gradients(run.adam.vars(), batches.len(), loss);
        let frozen = adapted.merged()?;
        // What the anchors ask for does not depend on the edits: it fills the time of workers whose edit is found sooner.
        let (edits, clean) = rayon::join(
            || adversary.attack(&frozen, run.step),
            || {
                gradients(&|shard| {
                    Ok((anchors.divergence(adapted, &batches[shard].clean, None)? * (share * spec.kl_weight))?)
                })
            },
        );
        let (edits, (clean, clean_losses)) = (edits?, clean?);
        let (attacked, attacked_losses) = gradients(&|shard| {
            let (edit, positions) = &edits[shard];
            let edit = Some((edit, *positions));
            let Batches { hazards, answered, interrupted, .. } = &batches[shard];
            let mut loss = anchors.divergence(adapted, hazards, edit)?;
            if !answered.is_empty() {
                loss = (loss + anchors.divergence(adapted, answered, edit)?)?;
            }
            if !interrupted.is_empty() {
                loss = (loss + (anchors.interruption(adapted, interrupted, edit)? * spec.interrupted_weight)?)?;
            }
            Ok((loss * share)?)
        })?;
        let rate = 0.5 * (1.0 + (std::f64::consts::PI * run.step as f64 / spec.steps as f64).cos());
        let warm = ((run.step + 1) as f64 / 20.0).min(1.0);
        run.adam.step(&summed(attacked, clean)?, spec.learning_rate * warm * (0.1 + 0.9 * rate))?;
        let reached: Vec<f64> = attacked_losses
            .iter()
            .map(|loss| Ok(whole_loss(std::slice::from_ref(loss))? / share))
            .collect::<Result<_>>()?;
        adversary.reached(&reached);
        let clean_loss = whole_loss(&clean_losses)? / spec.kl_weight.max(f64::MIN_POSITIVE);
        Ok([reached.iter().sum::<f64>() * share, clean_loss])
    }
}

/// What changes from step to step.
struct Run {
    step: usize,
    adam: AdamW,
    draws: Stream,
    /// Running means of the divergence under attack and of the clean one, nats per answer token.
    losses: [f64; 2],
    /// Of the changes of the last steps.
    mean: Mean,
}

/// The running mean of the changes of all maps.
#[derive(Debug, Default, PartialEq)]
struct Mean {
    count: usize,
    deltas: Vec<Array2<f32>>,
}

impl Mean {
    fn add(&mut self, deltas: Vec<Array2<f32>>) {
        self.count += 1;
        if self.count == 1 {
            self.deltas = deltas;
            return;
        }
        let share = 1.0 / self.count as f32;
        for (mean, delta) in self.deltas.iter_mut().zip(&deltas) {
            mean.zip_mut_with(delta, |mean, delta| *mean += (delta - *mean) * share);
        }
    }

    fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        let shapes: Vec<(usize, usize)> = self.deltas.iter().map(Array2::dim).collect();
        into.put(name, &(self.count, shapes))?;
        for (i, delta) in self.deltas.iter().enumerate() {
            into.put_numbers(format!("{name}/{i}"), delta.iter().copied().collect());
        }
        Ok(())
    }

    fn restore(&mut self, name: &str, from: &Snapshot) -> Result<()> {
        let shapes: Vec<(usize, usize)>;
        (self.count, shapes) = from.get(name)?;
        let delta = |(i, shape)| {
            let name = format!("{name}/{i}");
            let numbers = from.numbers(&name)?.to_vec();
            Array2::from_shape_vec(shape, numbers)
                .map_err(|error| Error::input(format!("kept state, `{name}`"), error.to_string()))
        };
        self.deltas = shapes.into_iter().enumerate().map(delta).collect::<Result<_>>()?;
        Ok(())
    }
}

impl Run {
    fn new(adam: AdamW, draws: Stream) -> Self {
        Self { step: 0, adam, draws, losses: [0.0; 2], mean: Mean::default() }
    }

    fn progress(&self, spec: &AdversarialSpec, adversary: &dyn PoolAdversary) -> Event {
        let [attack, clean] = self.losses;
        let most = adversary.strongest().map_or_else(String::new, |(name, most)| format!(" ({name}: {most:.3})"));
        Event::UnitFinished {
            stage: "adversarial".into(),
            done: self.step,
            units: spec.steps,
            detail: format!("under attack {attack:.3} nats{most}, clean {clean:.4} nats from the original"),
        }
    }

    fn count(&mut self, losses: [f64; 2]) {
        let decay = if self.step == 0 { 0.0 } else { 0.95 };
        for (mean, loss) in self.losses.iter_mut().zip(losses) {
            *mean = decay * *mean + (1.0 - decay) * loss;
        }
        self.step += 1;
    }

    fn save(&self, into: &mut Snapshot) -> Result<()> {
        into.put("run/step", &self.step)?;
        into.put("run/draws", &self.draws.position())?;
        into.put("run/losses", &self.losses.map(f64::to_bits))?;
        self.mean.save("run/mean", into)?;
        self.adam.save("run/adam", into)
    }

    fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.step = from.get("run/step")?;
        self.draws = self.draws.clone().at(from.get("run/draws")?);
        self.losses = from.get::<[u64; 2]>("run/losses")?.map(f64::from_bits);
        self.mean.restore("run/mean", from)?;
        self.adam.restore("run/adam", from)
    }
}

/// Draws batches: hazards come first among all dialogues, the other anchors after them.
struct Questions<'a> {
    spec: &'a AdversarialSpec,
    data: &'a DefenceData,
    noise: Option<Noise<'a>>,
    /// Up to and with each anchor, the sum of their weights; empty where all weigh the same.
    sums: Vec<f64>,
    /// Hazards with a compliant answer.
    complied: Vec<(usize, &'a [u32])>,
}

/// What is asked beside one edit.
struct Batches<'a> {
    /// To be refused under it.
    hazards: Vec<Asked<'a>>,
    /// Its share of the anchors, to be answered without it.
    clean: Vec<Asked<'a>>,
    /// Anchors to be answered under it.
    answered: Vec<Asked<'a>>,
    /// Hazards whose compliant answers are to be broken off under it.
    interrupted: Vec<(usize, &'a [u32])>,
}

impl<'a> Questions<'a> {
    fn new(spec: &'a AdversarialSpec, data: &'a DefenceData, noise: Option<Noise<'a>>) -> Self {
        let alike = spec.anchor_weights == AnchorWeights::default();
        let kinds = if alike { &[] } else { data.anchor_kinds.as_slice() };
        debug_assert!(alike || kinds.len() == data.anchors.len(), "a kind for each anchor");
        let sums = kinds.iter().scan(0.0, |sum, kind| {
            *sum += spec.anchor_weights.of(*kind);
            Some(*sum)
        });
        let complied = (0..data.hazards.len()).filter_map(|row| Some((row, compliant(spec, data, row)?)));
        Self { spec, data, noise, sums: sums.collect(), complied: complied.collect() }
    }

    /// What is asked beside one of `edits` edits.
    fn batches(&self, edits: usize, draws: &mut Stream) -> Batches<'a> {
        let hazards = (0..self.spec.batch).map(|_| self.hazard(None, draws)).collect();
        let clean = (0..self.spec.anchor_batch.div_ceil(edits.max(1)))
            .map(|_| {
                if self.data.anchors.is_empty() || draws.unit() < CLEAN_HAZARDS {
                    self.hazard(self.noise.as_ref(), draws)
                } else {
                    self.anchor(draws)
                }
            })
            .collect();
        let answered = if self.data.anchors.is_empty() { 0 } else { self.spec.attacked_anchors };
        let answered = (0..answered).map(|_| self.anchor(draws)).collect();
        let interrupted = match self.complied.len() {
            0 => vec![],
            count => (0..self.spec.interrupted).map(|_| self.complied[draws.below(count)]).collect(),
        };
        Batches { hazards, clean, answered, interrupted }
    }

    fn anchor(&self, draws: &mut Stream) -> Asked<'a> {
        let anchor = match self.sums.last() {
            None => draws.below(self.data.anchors.len()),
            Some(all) => {
                let place = draws.unit() * all;
                self.sums.partition_point(|sum| *sum <= place).min(self.sums.len() - 1)
            }
        };
        let row = self.data.hazards.len() + anchor;
        Asked { instead: self.noise.as_ref().and_then(|noise| noise.disturbed(row, draws)), ..Asked::plainly(row) }
    }

    /// A hazard, now and then with the beginning of a compliant answer already given.
    fn hazard(&self, noise: Option<&Noise<'_>>, draws: &mut Stream) -> Asked<'a> {
        let row = draws.below(self.data.hazards.len());
        let instead = noise.and_then(|noise| noise.disturbed(row, draws));
        let plainly = Asked { instead, ..Asked::plainly(row) };
        if draws.unit() >= self.spec.begun {
            return plainly;
        }
        match compliant(self.spec, self.data, row) {
            Some(answer) => Asked { after: &answer[..1 + draws.below(answer.len())], ..plainly },
            None => plainly,
        }
    }
}

/// A compliant answer to hazard `row`, where there is one that begins as it may.
fn compliant<'a>(spec: &AdversarialSpec, data: &'a DefenceData, row: usize) -> Option<&'a [u32]> {
    let compliant = data.compliant.get(row)?.as_ref()?;
    let allowed =
        spec.openings.is_empty() || compliant.opening.as_ref().is_some_and(|name| spec.openings.contains(name));
    (allowed && !compliant.answer.is_empty()).then_some(compliant.answer.as_slice())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Compliant, Dialogue};
    use super::*;
    use crate::data::Kind;

    #[test]
    fn an_anchor_is_drawn_as_often_as_its_kind_weighs() {
        let anchors = vec![Dialogue { prompt: vec![1], answer: vec![2] }; 4];
        let anchor_kinds = vec![Kind::Maths, Kind::Twin, Kind::Benign, Kind::Copy];
        let data = DefenceData { anchors, anchor_kinds, ..DefenceData::default() };
        let drawn = |anchor_weights| {
            let spec = AdversarialSpec { anchor_weights, ..AdversarialSpec::default() };
            let (questions, mut draws) = (Questions::new(&spec, &data, None), Stream::new(0, "draws"));
            let mut counts = [0_usize; 4];
            for _ in 0..9000 {
                counts[questions.anchor(&mut draws).row] += 1;
            }
            counts
        };
        let near = |counts: [usize; 4], expected: [usize; 4]| {
            assert!(counts.iter().zip(expected).all(|(count, expected)| count.abs_diff(expected) < 150), "{counts:?}");
        };
        near(drawn(AnchorWeights { maths: 5.0, copy: 2.0, ..AnchorWeights::default() }), [5000, 1000, 1000, 2000]);
        near(drawn(AnchorWeights::default()), [2250; 4]);
    }

    #[test]
    fn answers_are_interrupted_where_there_are_some_that_begin_as_they_may() {
        let refused = || Dialogue { prompt: vec![1], answer: vec![2] };
        let complied =
            |opening: &str, answer: &[u32]| Some(Compliant { opening: Some(opening.into()), answer: answer.into() });
        let data = DefenceData {
            hazards: vec![refused(), refused(), refused(), refused()],
            compliant: vec![complied("o0", &[3, 4]), complied("o1", &[5]), None, complied("o0", &[])],
            ..DefenceData::default()
        };
        let asked = |spec: AdversarialSpec| {
            let questions = Questions::new(&spec, &data, None);
            let batches = questions.batches(1, &mut Stream::new(0, "draws"));
            assert_eq!(batches.hazards.len(), spec.batch);
            batches.interrupted.into_iter().map(|(row, answer)| (row, answer.to_vec())).collect::<Vec<_>>()
        };
        let some = AdversarialSpec { interrupted: 9, ..AdversarialSpec::default() };
        assert!(asked(AdversarialSpec::default()).is_empty());
        let rows = |asked: Vec<(usize, Vec<u32>)>| asked.into_iter().map(|(row, _)| row).collect::<BTreeSet<_>>();
        assert_eq!(rows(asked(some.clone())), BTreeSet::from([0, 1]));
        let only = asked(AdversarialSpec { openings: vec!["o0".into()], ..some.clone() });
        assert_eq!(only, vec![(0, vec![3, 4]); 9]);
        assert!(asked(AdversarialSpec { openings: vec!["o7".into()], ..some }).is_empty());
    }

    #[test]
    fn the_mean_is_that_of_all_it_was_given_and_comes_back_bit_for_bit() {
        let mut mean = Mean::default();
        for value in [1.0_f32, 2.0, 6.0] {
            mean.add(vec![Array2::from_elem((2, 3), value), Array2::from_elem((1, 2), -value)]);
        }
        assert_eq!(mean.count, 3);
        assert_eq!(mean.deltas, vec![Array2::from_elem((2, 3), 3.0), Array2::from_elem((1, 2), -3.0)]);
        let mut kept = Snapshot::default();
        mean.save("mean", &mut kept).unwrap();
        let mut back = Mean::default();
        back.restore("mean", &kept).unwrap();
        assert_eq!(back, mean);
        kept.put_numbers("mean/1", vec![0.0]);
        let error = back.restore("mean", &kept).unwrap_err().to_string();
        assert!(error.contains("mean/1"), "{error}");
    }
}
