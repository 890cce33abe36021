//! How a direction and a kernel for `abliteration` are found: the block and token as `ablation` finds them, then, where the
//! row asks for it, a search over kernels, chosen on the validation hazards and, among equals, by what harmless requests notice.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::bench::{Side, Subject};
use super::cell::{Cell, Fitted, OF_BASE, Range, found, nothing, order, place, reweighed};
use super::examiner::Counts;
use super::weights::{Reweighting, spectrum};
use crate::Result;
use crate::attack::AttackData;
use crate::attack::abliteration::{Abliteration, Kernel, Setting};
use crate::attack::direction::{Classes, contrasts, shared_ending};
use crate::math::seed::Stream;
use crate::model::loss::{kl_divergence, log_probabilities};
use crate::model::{Decoder, Hooks, Point, TokenBatch};

/// Harmless prompts whose first answered token is compared.
pub(super) const HARMLESS_PROMPTS: usize = 32;

/// A change of weights, and how it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Trial {
    abliteration: Abliteration,
    counts: Counts,
    /// Mean nats at the first token that harmless prompts are answered with.
    divergence: f64,
}

impl Trial {
    /// Whether it takes the place of `other`: by what serves the attacker, as any other setting, and among equals by less divergence.
    fn beats(&self, other: &Self) -> bool {
        order(&self.counts).cmp(&order(&other.counts)).then(other.divergence.total_cmp(&self.divergence)).is_gt()
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
    /// The change of weights of an `abliteration` row; the base's is a candidate.
    pub(super) fn abliterate(
        &self,
        cell: &Cell,
        subject: Subject<'_>,
        side: Side,
        start: Option<&Reweighting>,
    ) -> Result<Fitted> {
        self.check_validation(cell)?;
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
        let Some((mut trial, mut choice, directions)) = best else {
            let nothing = nothing();
            return Ok(Fitted { search: nothing.choice.clone(), choice: nothing.choice, ..found(nothing.edit, 0) });
        };
        let mut searched = String::new();
        if let Some(trials) = cell.spec.search_trials {
            let found = self.search_kernel(cell, subject, side, &harmless, &directions, trials)?;
            searched = format!("{trials} kernels tried, chosen on {} validation prompts; ", trial.counts.n);
            if let Some(found) = found.filter(|found| found.beats(&trial)) {
                choice = format!("{choice}, {}", described(&found.abliteration));
                trial = found;
            }
        }
        if let Some(Reweighting::Abliterated(start)) = start {
            let of_base = self.attempt(subject, &harmless, start.clone())?;
            if of_base.beats(&trial) {
                (trial, choice) = (of_base, OF_BASE.into());
            }
        }
        let changed = trial.abliteration.apply(subject.decoder)?;
        let search = format!("{searched}{}", spectrum(subject.decoder, &changed)?);
        Ok(Fitted { choice, search, ..reweighed(Reweighting::Abliterated(trial.abliteration)) })
    }

    /// The kernel that none beats: the first half drawn at random, the rest close to the best so far.
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
            if best.as_ref().is_none_or(|(_, best)| trial.beats(best)) {
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
    fn a_kernel_is_chosen_as_other_settings_are_then_by_what_harmless_requests_notice() {
        let trial = |successes, open, divergence| {
            let counts = Counts { successes, open, n: 96, ..Counts::default() };
            Trial { abliteration: Abliteration::whole(vec![1.0]), counts, divergence }
        };
        let rising =
            [trial(0, 96, 0.0), trial(90, 96, 0.0), trial(91, 91, 5.0), trial(91, 91, 0.5), trial(91, 92, 0.6)];
        for (at, better) in rising.iter().enumerate() {
            let beaten: Vec<bool> = rising.iter().map(|other| better.beats(other)).collect();
            assert_eq!(beaten, (0..rising.len()).map(|other| other < at).collect::<Vec<_>>(), "{better:?}");
        }
    }
}
