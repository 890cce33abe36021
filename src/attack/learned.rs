//! Low-rank edits of the inputs of one block or several, trained until the model answers hazards affirmatively.
//!
//! *Source*: E.T. (2026), the paper's attack: `Φ(h) = h + W2ᵀ(W1−W2)h` (other forms: [`Form`]), factors uniform in `±1/√d`, AdamW without weight
//! decay, step size decayed linearly, gradient norm clipped at 1, next-token loss on the answer's tokens. Answers end without the
//! token that ends a turn, so an edit never learns to stop. The inputs of the attacked block do not change while the edit is
//! trained, so they are computed once, and every step runs only the blocks above.

use std::collections::BTreeSet;

use super::form::{Factors, Form};
use super::prefix::Prefix;
use super::{AttackData, Found, Pair};
use crate::intervention::{Edit, Placed, Positions};
use crate::math::seed::Stream;
use crate::math::snapshot::Snapshot;
use crate::model::Decoder;
use crate::model::optimiser::{AdamSettings, AdamW, Gradients};
use crate::{Error, Result};

/// Settings of one fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// What is learned.
    pub form: Form,
    /// Blocks whose inputs are edited, all at once.
    pub layers: Vec<usize>,
    /// Rank of the edit of each block.
    pub rank: usize,
    /// The attacker trains on the first so many of its pairs.
    pub pairs: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Pairs per step.
    pub batch: usize,
    /// Peak step size.
    pub learning_rate: f64,
    /// Where the edit acts, in training as in evaluation.
    pub positions: Positions,
}

/// The paper's number of steps for a number of pairs: attempts of 20 more pairs each, 10 epochs in the first, 15 later.
pub fn paper_steps(pairs: usize, batch: usize) -> usize {
    let epochs = if pairs <= 20 { 10 } else { 15 };
    epochs * pairs.div_ceil(batch.max(1))
}

/// A learned edit with its optimiser: what a pool keeps warm between the steps of a joint defence.
pub struct Learner {
    factors: Vec<Factors>,
    adam: AdamW,
}

impl Learner {
    /// Fresh factors, uniform in `±1/√d`, or those of `start`.
    ///
    /// # Errors
    /// When `start` is not an edit of this form and these blocks, or there is no block.
    pub fn new(
        decoder: &Decoder,
        form: Form,
        layers: &[usize],
        rank: usize,
        start: Option<&Edit>,
        stream: &mut Stream,
    ) -> Result<Self> {
        let (d, device) = (decoder.blueprint().d_model, decoder.device());
        let factors: Vec<Factors> = match start {
            None => layers.iter().map(|l| Factors::fresh(form, *l, rank, d, device, stream)).collect::<Result<_>>()?,
            Some(start) => {
                let starts = match start {
                    Edit::Several { edits } => edits.as_slice(),
                    one => std::slice::from_ref(one),
                };
                if starts.len() != layers.len() {
                    let expected = format!("expected edits of {} blocks, got {}", layers.len(), starts.len());
                    return Err(Error::input("start of a learned edit", expected));
                }
                let pairs = layers.iter().zip(starts);
                pairs.map(|(layer, edit)| Factors::starting_from(form, *layer, edit, device)).collect::<Result<_>>()?
            }
        };
        if factors.is_empty() {
            return Err(Error::input("learned edit", "expected one block at least, got none"));
        }
        let vars = factors.iter().flat_map(|factors| factors.vars().iter().cloned()).collect();
        let adam = AdamW::new(vars, AdamSettings { clip: Some(1.0), ..AdamSettings::default() });
        Ok(Self { factors, adam })
    }

    /// Keeps the edit and its optimiser under `name`.
    ///
    /// # Errors
    /// When a copy from the device fails.
    pub fn save(&self, name: &str, into: &mut Snapshot) -> Result<()> {
        self.adam.save(name, into)
    }

    /// Goes back to what [`Learner::save`] kept of an edit of the same block and rank.
    ///
    /// # Errors
    /// When something is missing or of another size.
    pub fn restore(&mut self, name: &str, from: &Snapshot) -> Result<()> {
        self.adam.restore(name, from)
    }

    /// The edit as it stands, connected to its variables.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn edit(&self) -> Result<Placed> {
        self.placed(false)
    }

    /// The edit as it stands, detached.
    ///
    /// # Errors
    /// As [`Learner::edit`].
    pub fn snapshot(&self) -> Result<Placed> {
        self.placed(true)
    }

    fn placed(&self, detached: bool) -> Result<Placed> {
        match self.factors.as_slice() {
            [one] => one.placed(detached),
            several => Ok(Placed::Several(several.iter().map(|f| f.placed(detached)).collect::<Result<_>>()?)),
        }
    }

    /// One optimiser step on the chosen pairs.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn step(&mut self, prefix: &Prefix<'_>, rows: &[usize], positions: Positions, rate: f64) -> Result<()> {
        step_together(&mut [self], prefix, &[rows.to_vec()], positions, &[rate])
    }
}

/// One optimiser step of every learner on its own pairs, in one pass. All have the same first block.
fn step_together(
    learners: &mut [&mut Learner],
    prefix: &Prefix<'_>,
    rows: &[Vec<usize>],
    positions: Positions,
    rates: &[f64],
) -> Result<()> {
    let edits: Vec<Placed> = learners.iter().map(|learner| learner.edit()).collect::<Result<_>>()?;
    let parts: Vec<(&[usize], &Placed)> = rows.iter().map(Vec::as_slice).zip(&edits).collect();
    // The edits share no variable, so the gradient of the sum is that of each one's own loss.
    let gradients = prefix.sum_of_losses(&parts, positions)?.backward()?;
    for (learner, rate) in learners.iter_mut().zip(rates) {
        let own: Gradients = learner.adam.vars().iter().map(|var| gradients.get(var).cloned()).collect();
        learner.adam.step(&own, *rate)?;
        learner.factors.iter().try_for_each(Factors::retract)?;
    }
    Ok(())
}

/// What a fit may begin with besides its settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given<'a> {
    /// Only pairs of this opening; absent: all.
    pub opening: Option<&'a str>,
    /// Where the edit starts; absent: from fresh factors.
    pub start: Option<&'a Edit>,
}

/// Trains one edit from fresh factors on pairs of any opening.
///
/// # Errors
/// When there is no data, or no such block.
pub fn fit(decoder: &Decoder, data: &AttackData, settings: &Fit, stream: &mut Stream) -> Result<Found> {
    let mut found = fit_together(decoder, data, settings, Given::default(), vec![(settings.learning_rate, stream)])?;
    found.pop().ok_or_else(|| Error::input("learned edit", "expected one, got none"))
}

/// Trains edits that differ in their peak step size and random stream alone: each step is one pass through the blocks with the rows
/// of all of them, each edit on its own rows.
///
/// Every edit takes the steps that it would take alone, from the same random numbers; sums are rounded in another order.
///
/// # Errors
/// As [`fit`], and when the start belongs to other blocks.
pub fn fit_together(
    decoder: &Decoder,
    data: &AttackData,
    settings: &Fit,
    given: Given<'_>,
    wanted: Vec<(f64, &mut Stream)>,
) -> Result<Vec<Found>> {
    let Given { opening, start } = given;
    let chosen: Vec<&Pair> = data.chosen(opening, settings.pairs).collect();
    if data.pairs.is_empty() {
        let problem =
            "expected hazards with a `target`, an answer that complies, in the split that attackers train on, got none";
        return Err(Error::input("attack data", problem).hint("attacks without gradients need none"));
    }
    if chosen.is_empty() {
        let openings: BTreeSet<&str> = data.pairs.iter().filter_map(|p| p.opening.as_deref()).collect();
        return Err(Error::input("attack data", format!("expected pairs with opening {opening:?}, got {openings:?}")));
    }
    // Nothing below the first edited block changes while the edits are trained.
    let first = settings.layers.iter().copied().min().unwrap_or(0);
    let prefix = Prefix::new(decoder, first, &chosen, data.pad)?;
    let batch = settings.batch.min(prefix.len());
    let mut fits: Vec<(Learner, f64, Draws<'_>)> = vec![];
    let norm = prefix.mean_norm()?;
    for (rate, stream) in wanted {
        let mut learner = Learner::new(decoder, settings.form, &settings.layers, settings.rank, start, stream)?;
        learner.factors.iter_mut().try_for_each(|factors| factors.in_units_of(norm, start.is_none()))?;
        fits.push((learner, rate, Draws { stream, order: vec![] }));
    }
    for step in 0..settings.steps {
        let left = 1.0 - step as f64 / settings.steps as f64;
        let drawn: Vec<Vec<usize>> = fits.iter_mut().map(|(.., draws)| draws.next(batch, prefix.len())).collect();
        let rates: Vec<f64> = fits.iter().map(|(_, rate, _)| rate * left).collect();
        let mut learners: Vec<&mut Learner> = fits.iter_mut().map(|(learner, ..)| learner).collect();
        step_together(&mut learners, &prefix, &drawn, settings.positions, &rates)?;
    }
    let found = |(learner, ..): (Learner, f64, Draws<'_>)| {
        Ok(Found { edit: learner.snapshot()?.edit()?, gradient_evaluations: settings.steps * batch })
    };
    fits.into_iter().map(found).collect()
}

/// Rows in a random order, and in another one once all have been drawn.
struct Draws<'a> {
    stream: &'a mut Stream,
    /// Those that are still to come.
    order: Vec<usize>,
}

impl Draws<'_> {
    /// The next `count` of `rows` rows.
    fn next(&mut self, count: usize, rows: usize) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            if self.order.is_empty() {
                self.order = self.stream.sample(rows, rows);
            }
            drawn.extend(self.order.pop());
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::{random_decoder, tiny};
    use crate::model::Blueprint;

    /// Pairs of two openings and of many lengths.
    fn data() -> AttackData {
        let mut stream = Stream::new(2, "pairs");
        let mut words = |least: usize, most: usize| {
            (0..least + stream.below(most - least)).map(|_| 1 + stream.below(39) as u32).collect::<Vec<u32>>()
        };
        let opening = |number: usize| Some(if number.is_multiple_of(2) { "o0" } else { "o1" }.to_owned());
        let pair = |number| Pair { prompt: words(3, 12), target: words(4, 9), opening: opening(number) };
        AttackData { pairs: (0..24).map(pair).collect(), ..AttackData::default() }
    }

    fn numbers(edit: &Edit) -> Vec<f32> {
        match edit {
            Edit::LowRank { w1, w2, .. } => [w1.as_slice(), w2].concat(),
            Edit::Affine { up, down, bias, .. } => [up.as_slice(), down, bias].concat(),
            Edit::Several { edits } => edits.iter().flat_map(numbers).collect(),
            other => panic!("no learned edit: {other:?}"),
        }
    }

    #[test]
    fn edits_that_are_fitted_together_are_those_that_are_fitted_alone() {
        let blueprint = Blueprint { n_layers: 3, d_ff: 32, ..tiny() };
        let (decoder, data) = (random_decoder(blueprint, 0.4, Stream::new(1, "learned")), data());
        let rates = [0.005, 0.02, 0.05];
        for (form, layers, rank) in
            [(Form::Noreft, vec![1], 2), (Form::Loreft, vec![1], 1), (Form::Noreft, vec![1, 2], 3)]
        {
            let settings = Fit {
                form,
                layers,
                rank,
                pairs: 10,
                steps: 9,
                batch: 4,
                learning_rate: 0.02,
                positions: Positions::Prompt,
            };
            let start = fit(&decoder, &data, &settings, &mut Stream::new(3, "start")).unwrap().edit;
            let given = Given { opening: Some("o1"), start: Some(&start) };
            let fit_some = |numbers: std::ops::Range<usize>| {
                let mut streams: Vec<Stream> =
                    numbers.clone().map(|number| Stream::new(4, &format!("fit {number}"))).collect();
                let wanted = numbers.map(|number| rates[number]).zip(&mut streams).collect();
                fit_together(&decoder, &data, &settings, given, wanted).unwrap()
            };
            let alone: Vec<Found> = (0..3).flat_map(|number| fit_some(number..number + 1)).collect();
            let together = fit_some(0..3);
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!([a.gradient_evaluations, b.gradient_evaluations], [4 * 9; 2]);
                let (a, b) = (numbers(&a.edit), numbers(&b.edit));
                let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(a.len() == b.len() && apart < 1e-4, "{form:?}: {apart}");
            }
            // They do differ: what is compared is not one edit with itself.
            assert!(numbers(&alone[0].edit) != numbers(&alone[1].edit) && numbers(&alone[0].edit) != numbers(&start));
        }
    }

    fn one_step() -> Fit {
        Fit {
            form: Form::Noreft,
            layers: vec![1],
            rank: 1,
            pairs: 4,
            steps: 1,
            batch: 2,
            learning_rate: 0.01,
            positions: Positions::All,
        }
    }

    #[test]
    fn data_without_targets_say_so() {
        let decoder = random_decoder(tiny(), 0.4, Stream::new(1, "learned"));
        let error = fit(&decoder, &AttackData::default(), &one_step(), &mut Stream::new(1, "a")).unwrap_err();
        assert!(error.to_string().contains("expected hazards with a `target`"), "{error}");
    }

    #[test]
    fn an_opening_without_pairs_is_an_error_that_names_those_there_are() {
        let decoder = random_decoder(tiny(), 0.4, Stream::new(1, "learned"));
        let (given, mut stream) = (Given { opening: Some("o7"), start: None }, Stream::new(1, "a"));
        let error = fit_together(&decoder, &data(), &one_step(), given, vec![(0.01, &mut stream)]).unwrap_err();
        assert!(error.to_string().contains("o7") && error.to_string().contains("o0"), "{error}");
    }
}
