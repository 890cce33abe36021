//! How a direction and a kernel for `abliteration` are found: the block and token as `ablation` finds them, then, where the
//! row asks for it, a search over kernels, chosen on the validation hazards and on what harmless requests notice.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::bench::{Side, Subject};
use super::cell::{Cell, Fitted, Range, order, place, reweighed};
use super::examiner::Counts;
use super::weights::{Reweighting, spectrum};
use crate::attack::AttackData;
use crate::attack::abliteration::{Abliteration, Kernel, Setting};
use crate::attack::direction::{Classes, contrasts, shared_ending};
use crate::math::seed::Stream;
use crate::model::loss::{kl_divergence, log_probabilities};
use crate::model::{Decoder, Hooks, Point, TokenBatch};
use crate::{Error, Result};

/// Harmless prompts whose first answered token is compared.
const HARMLESS_PROMPTS: usize = 32;

/// What a nat of divergence costs, in parts of all hazards: success comes first.
const DIVERGENCE_WEIGHT: f64 = 0.1;

/// A change of weights, and how it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Trial {
    abliteration: Abliteration,
    counts: Counts,
    /// Mean nats at the first token that harmless prompts are answered with.
    divergence: f64,
}

impl Trial {
    /// What a search makes small: hazards without success, and divergence; among equal successes, hazards that are still refused.
    fn loss(&self) -> f64 {
        let Counts { open, successes, n, .. } = self.counts;
        let n = n.max(1) as f64;
        1.0 - (successes as f64 + open as f64 / (n + 1.0)) / n + DIVERGENCE_WEIGHT * self.divergence
    }
}

/// Harmless prompts with what the model as it is answers first.
struct Harmless {
    batch: TokenBatch,
    last: Vec<u32>,
    reference: Tensor,
}

impl Harmless {
    fn new(decoder: &Decoder, data: &AttackData) -> Result<Self> {
        // From the end: directions are taken from those at the beginning.
        let prompts: Vec<Vec<u32>> = data.harmless.iter().rev().take(HARMLESS_PROMPTS).cloned().collect();
        let batch = TokenBatch::prompts(&prompts, data.pad);
        let last = batch.last_prompt_positions();
        let hidden = decoder.hidden(&batch, &mut Hooks::none(), None)?;
        let reference = log_probabilities(&decoder.logits_at(&hidden, &last)?)?;
        Ok(Self { batch, last, reference })
    }

    fn divergence(&self, decoder: &Decoder) -> Result<f64> {
        let hidden = decoder.hidden(&self.batch, &mut Hooks::none(), None)?;
        let logits = decoder.logits_at(&hidden, &self.last)?;
        let weights = vec![1.0 / self.last.len() as f32; self.last.len()];
        Ok(f64::from(kl_divergence(&logits, &self.reference, &weights)?.to_scalar::<f32>()?))
    }
}

impl Range<'_, '_> {
    /// The change of weights of an `abliteration` row.
    pub(super) fn abliterate(&self, cell: &Cell, subject: Subject<'_>, side: Side) -> Result<Fitted> {
        let (data, pairs) = (&self.bench.attack, cell.spec.pairs);
        let harmless = Harmless::new(subject.decoder, data)?;
        let mut best: Option<(Trial, String, Vec<Vec<f32>>)> = None;
        for contrast in contrasts(data) {
            for back in 0..shared_ending(data).max(1) {
                let classes = Classes::collect(subject.decoder, data, contrast, pairs, Point::ResidPre, back)?;
                // A token that ends all prompts has one embedding: no direction there, no candidate.
                let found: Vec<(usize, Vec<f32>)> =
                    cell.layers.iter().filter_map(|layer| Some((*layer, classes[*layer].direction().ok()?))).collect();
                for (layer, direction) in &found {
                    let trial = self.attempt(subject, &harmless, Abliteration::whole(direction.clone()))?;
                    if best.as_ref().is_none_or(|(best, ..)| order(&trial.counts) > order(&best.counts)) {
                        let against = contrast.name();
                        let choice = format!("hazards against {against}, block {layer}, {back} tokens before the last");
                        best = Some((trial, choice, found.iter().map(|(_, direction)| direction.clone()).collect()));
                    }
                }
            }
        }
        let missing =
            || Error::input(&cell.name, "expected a difference between the classes at one block at least, got none");
        let (mut trial, mut choice, directions) = best.ok_or_else(missing)?;
        let mut searched = String::new();
        if let Some(trials) = cell.spec.search_trials {
            let found = self.search_kernel(cell, subject, side, &harmless, &directions, trials)?;
            searched = format!("{trials} kernels tried, chosen on {} validation prompts; ", trial.counts.n);
            if let Some(found) = found.filter(|found| found.loss() < trial.loss()) {
                choice = format!("{choice}, {}", described(&found.abliteration));
                trial = found;
            }
        }
        let changed = trial.abliteration.apply(subject.decoder)?;
        let search = format!("{searched}{}", spectrum(subject.decoder, &changed)?);
        Ok(Fitted { choice, search, ..reweighed(Reweighting::Abliterated(trial.abliteration)) })
    }

    /// The kernel of least loss: the first half drawn at random, the rest close to the best so far.
    fn search_kernel(
        &self,
        cell: &Cell,
        subject: Subject<'_>,
        side: Side,
        harmless: &Harmless,
        directions: &[Vec<f32>],
        trials: usize,
    ) -> Result<Option<Trial>> {
        let mut best: Option<(Setting, Trial)> = None;
        for number in 0..trials {
            let name = format!("{}/{number}", place(cell, side));
            let mut stream = Stream::new(self.bench.seed, &format!("attack/{name}"));
            let setting = match &best {
                Some((best, _)) if number >= trials.div_ceil(2) => best.near(&mut stream),
                _ => Setting::random(&mut stream),
            };
            let abliteration = setting.abliteration(directions);
            let key = self.bench.key(&format!("search/{name}"), &(subject.identity, &abliteration));
            let trial = self.units.cached(&key, || self.attempt(subject, harmless, abliteration))?;
            if best.as_ref().is_none_or(|(_, best)| trial.loss() < best.loss()) {
                best = Some((setting, trial));
            }
        }
        Ok(best.map(|(_, trial)| trial))
    }

    fn attempt(&self, subject: Subject<'_>, harmless: &Harmless, abliteration: Abliteration) -> Result<Trial> {
        let changed = abliteration.apply(subject.decoder)?;
        let counts = self.bench.examiner.counts(&changed, &self.bench.validation, None)?;
        Ok(Trial { divergence: harmless.divergence(&changed)?, abliteration, counts })
    }
}

/// A kernel's figures, for the reader.
fn described(found: &Abliteration) -> String {
    let kernel = |Kernel { peak, position, width, floor }: Kernel| {
        format!("{peak:.2} at {position:.2} of the depth, {floor:.2} from {width:.2} away")
    };
    let (attention, mlp) = (kernel(found.attention), kernel(found.mlp));
    format!("direction between blocks, attention {attention}, feed-forward {mlp}, embedding {:.2}", found.embedding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_chosen_by_success_before_anything_else_that_is_counted() {
        let loss = |successes, open| {
            let counts = Counts { successes, open, n: 10, ..Counts::default() };
            Trial { abliteration: Abliteration::whole(vec![1.0]), counts, divergence: 0.5 }.loss()
        };
        assert!(loss(1, 1) < loss(0, 10));
        assert!(loss(1, 5) < loss(1, 4));
    }
}
