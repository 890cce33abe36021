//! Low-rank edits of the inputs of one block or several, trained until the model answers hazards affirmatively.
//!
//! *Source*: E.T. (2026), the paper's attack: `Φ(h) = h + W2ᵀ(W1−W2)h` (other forms: [`Form`]), factors uniform in `±1/√d`, AdamW without weight
//! decay, step size decayed linearly, gradient norm clipped at 1, next-token loss on the answer's tokens, the last of
//! which are cut off so that the edit never learns to stop. The inputs of the attacked block do not change while the
//! edit is trained, so they are computed once, and every step runs only the blocks above.

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

impl Fit {
    /// The lowest block that is edited.
    fn first_layer(&self) -> usize {
        self.layers.iter().copied().min().unwrap_or(0)
    }

    /// Step size of step number `step`: falls in a line from the peak to nothing.
    fn rate(&self, step: usize) -> f64 {
        self.learning_rate * (1.0 - step as f64 / self.steps as f64)
    }
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

/// An edit that is wanted: how it is trained, on what, and from where.
pub struct Wanted<'a> {
    /// Settings of the fit.
    pub settings: &'a Fit,
    /// Only pairs of this opening; absent: all.
    pub opening: Option<&'a str>,
    /// Where the edit starts; absent: from fresh factors.
    pub start: Option<&'a Edit>,
    /// Fresh factors and the order of the pairs.
    pub stream: &'a mut Stream,
}

/// Trains one edit from fresh factors on pairs of any opening.
///
/// # Errors
/// When there is no data, or no such block.
pub fn fit(decoder: &Decoder, data: &AttackData, settings: &Fit, stream: &mut Stream) -> Result<Found> {
    let mut found = fit_together(decoder, data, vec![Wanted { settings, opening: None, start: None, stream }])?;
    found.pop().ok_or_else(|| Error::input("learned edit", "expected one, got none"))
}

/// Trains edits side by side: each step is one pass through the blocks with the rows of all of them, each edit on its own rows.
///
/// Every edit takes the steps that it would take alone, from the same random numbers; sums are rounded in another order.
///
/// # Errors
/// As [`fit`]; when a start belongs to other blocks, or the edits do not share their first block and their positions.
pub fn fit_together(decoder: &Decoder, data: &AttackData, wanted: Vec<Wanted<'_>>) -> Result<Vec<Found>> {
    let Some(first) = wanted.first() else { return Ok(vec![]) };
    let (layer, positions) = (first.settings.first_layer(), first.settings.positions);
    if wanted.iter().any(|one| (one.settings.first_layer(), one.settings.positions) != (layer, positions)) {
        let expected = format!("expected all of them at block {layer} and {positions:?} positions");
        return Err(Error::input("edits that are fitted together", expected));
    }
    let mut chosen: Vec<usize> = vec![];
    let mut fits = wanted
        .into_iter()
        .map(|wanted| Training::new(decoder, data, wanted, &mut chosen))
        .collect::<Result<Vec<Training>>>()?;
    // Nothing below the first edited block changes while the edits are trained.
    let pairs: Vec<&Pair> = chosen.iter().map(|pair| &data.pairs[*pair]).collect();
    let prefix = Prefix::new(decoder, layer, &pairs, data.pad)?;
    let steps = fits.iter().map(|fit| fit.settings.steps).max().unwrap_or(0);
    for step in 0..steps {
        let mut going: Vec<&mut Training> = fits.iter_mut().filter(|fit| step < fit.settings.steps).collect();
        let drawn: Vec<Vec<usize>> = going.iter_mut().map(|fit| fit.draw()).collect();
        let rates: Vec<f64> = going.iter().map(|fit| fit.settings.rate(step)).collect();
        let mut learners: Vec<&mut Learner> = going.into_iter().map(|fit| &mut fit.learner).collect();
        step_together(&mut learners, &prefix, &drawn, positions, &rates)?;
    }
    fits.into_iter().map(Training::found).collect()
}

/// A fit on its way.
struct Training<'a> {
    settings: &'a Fit,
    learner: Learner,
    stream: &'a mut Stream,
    /// Its pairs, by their number in the shared prefix.
    pairs: Vec<usize>,
    /// Those that are still to come before all have been seen once more.
    order: Vec<usize>,
    gradient_evaluations: usize,
}

impl<'a> Training<'a> {
    /// `chosen`: the pairs of all fits so far, to which this one's are added.
    fn new(decoder: &Decoder, data: &AttackData, wanted: Wanted<'a>, chosen: &mut Vec<usize>) -> Result<Self> {
        let Wanted { settings, opening, start, stream } = wanted;
        let allowed = |pair: &Pair| opening.is_none_or(|name| pair.opening.as_deref() == Some(name));
        let mine = data.pairs.iter().enumerate().filter(|(_, pair)| allowed(pair)).map(|(number, _)| number);
        let pairs: Vec<usize> = mine.take(settings.pairs).map(|number| place_in(chosen, number)).collect();
        if pairs.is_empty() {
            let openings: BTreeSet<&str> = data.pairs.iter().filter_map(|p| p.opening.as_deref()).collect();
            let expected = format!("expected pairs with opening {opening:?}, got {openings:?}");
            return Err(Error::input("attack data", expected));
        }
        let learner = Learner::new(decoder, settings.form, &settings.layers, settings.rank, start, stream)?;
        Ok(Self { settings, learner, stream, pairs, order: vec![], gradient_evaluations: 0 })
    }

    /// The pairs of the next step.
    fn draw(&mut self) -> Vec<usize> {
        let count = self.settings.batch.min(self.pairs.len());
        let mut rows = Vec::with_capacity(count);
        while rows.len() < count {
            if self.order.is_empty() {
                self.order = self.stream.sample(self.pairs.len(), self.pairs.len());
            }
            rows.extend(self.order.pop().map(|number| self.pairs[number]));
        }
        self.gradient_evaluations += rows.len();
        rows
    }

    fn found(self) -> Result<Found> {
        Ok(Found { edit: self.learner.snapshot()?.edit()?, gradient_evaluations: self.gradient_evaluations })
    }
}

/// Where `number` stands in `all`, at whose end it is put if it is not there yet.
fn place_in(all: &mut Vec<usize>, number: usize) -> usize {
    all.iter().position(|other| *other == number).unwrap_or_else(|| {
        all.push(number);
        all.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::Blueprint;

    fn decoder() -> Decoder {
        let blueprint = Blueprint {
            vocab: 40,
            d_model: 16,
            n_layers: 3,
            n_heads: 2,
            n_kv_heads: 2,
            head_dim: 8,
            d_ff: 32,
            norm_eps: 1e-5,
            max_positions: 32,
            tied: true,
            ..Blueprint::default()
        };
        let mut stream = Stream::new(1, "learned");
        Decoder::from_weights(blueprint, &Device::Cpu, |_, shape| {
            Ok(Tensor::from_vec(stream.gaussian(shape.iter().product(), 0.4), shape, &Device::Cpu)?)
        })
        .unwrap()
    }

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

    fn settings(form: Form, layers: &[usize], rank: usize, steps: usize) -> Fit {
        let positions = Positions::Prompt;
        Fit { form, layers: layers.to_vec(), rank, pairs: 12, steps, batch: 4, learning_rate: 0.02, positions }
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
        let (decoder, data) = (decoder(), data());
        let settings = [
            settings(Form::Noreft, &[1], 2, 9),
            settings(Form::Noreft, &[1], 3, 5),
            settings(Form::Loreft, &[1], 1, 9),
            settings(Form::Noreft, &[1, 2], 2, 7),
        ];
        let start = fit(&decoder, &data, &settings[0], &mut Stream::new(3, "start")).unwrap().edit;
        let (openings, starts) = ([Some("o0"), Some("o1"), None, None], [Some(&start), None, None, None]);
        let fit_some = |numbers: std::ops::Range<usize>| {
            let mut streams: Vec<Stream> =
                numbers.clone().map(|number| Stream::new(4, &format!("fit {number}"))).collect();
            let wanted = numbers.zip(&mut streams).map(|(number, stream)| Wanted {
                settings: &settings[number],
                opening: openings[number],
                start: starts[number],
                stream,
            });
            fit_together(&decoder, &data, wanted.collect()).unwrap()
        };
        let alone: Vec<Found> = (0..4).flat_map(|number| fit_some(number..number + 1)).collect();
        let together = fit_some(0..4);
        for (number, (a, b)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(a.gradient_evaluations, b.gradient_evaluations);
            assert_eq!(a.gradient_evaluations, 4 * settings[number].steps);
            let (a, b) = (numbers(&a.edit), numbers(&b.edit));
            let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(a.len() == b.len() && apart < 1e-4, "edit {number}: {apart}");
        }
        // They do differ: what is compared is not one edit with itself.
        assert!(numbers(&alone[0].edit) != numbers(&start));
    }

    #[test]
    fn only_edits_of_one_first_block_are_fitted_together() {
        let (decoder, data) = (decoder(), data());
        let settings = [settings(Form::Noreft, &[1], 2, 1), settings(Form::Noreft, &[0, 1], 2, 1)];
        let mut streams = [Stream::new(1, "a"), Stream::new(1, "b")];
        let wanted = settings.iter().zip(&mut streams);
        let wanted = wanted.map(|(settings, stream)| Wanted { settings, opening: None, start: None, stream });
        let error = fit_together(&decoder, &data, wanted.collect()).unwrap_err().to_string();
        assert!(error.contains("block 1"), "{error}");
    }
}
