//! `adversarial`: adapters trained so that the model keeps its answers while an adversary keeps re-training its edits.
//!
//! *Source*: latent adversarial training, aimed at the threat of E.T.: the inner problem is the attack suite's own learned
//! edit of one block's input, kept warm in a pool that the pipeline injects; the outer problem keeps the edited model's
//! next-token distributions on refusals at those of the original, un-edited model (not at a fixed text: the original
//! refuses in many ways, and a distribution has no floor above zero), and holds the clean model to the original on
//! anchors. Every outer step takes several edits, of different blocks, in parallel.

use std::collections::BTreeMap;

use super::anchor::Anchors;
use super::spec::AdversarialSpec;
use super::trainable::Trainable;
use super::{DefenceData, StageOutcome};
use crate::Result;
use crate::event::{Event, Observer};
use crate::intervention::{Placed, Positions};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::model::optimiser::{AdamSettings, AdamW, sharded_gradients};

/// Outer steps between two progress events.
const REPORT_EVERY: usize = 20;

/// The adversary of a joint defence: a pool of edits that learns along.
pub trait PoolAdversary: Send {
    /// Improves some of the pool's edits against `decoder` (frozen) and returns them: what the next outer step resists.
    ///
    /// # Errors
    /// As the attack's.
    fn attack(&mut self, decoder: &Decoder, step: usize) -> Result<Vec<Placed>>;
}

/// Trains adapters on `layers` of `decoder`.
///
/// # Errors
/// As [`Decoder::run`], and those of the adversary.
pub fn run(
    spec: &AdversarialSpec,
    layers: &[usize],
    decoder: &Decoder,
    data: &DefenceData,
    adversary: &mut dyn PoolAdversary,
    seed: u64,
    observer: &dyn Observer,
) -> Result<StageOutcome> {
    let adapters = Trainable::fresh(decoder, layers, spec.rank, &mut Stream::new(seed, "adversarial/adapters"))?;
    let adapted = adapters.attach(decoder)?;
    let hazards = Anchors::new(decoder, &data.hazards, data.pad)?;
    // Clean refusals are anchors too: what an edit may not change, its absence may not change either.
    let everything: Vec<_> = data.anchors.iter().chain(&data.hazards).cloned().collect();
    let anchors = Anchors::new(decoder, &everything, data.pad)?;
    let mut adam = AdamW::new(adapters.vars(), AdamSettings { clip: Some(1.0), ..AdamSettings::default() });
    let mut draws = Stream::new(seed, "adversarial/batches");
    let (mut attack_loss, mut anchor_loss) = (0.0, 0.0);
    for step in 0..spec.steps {
        let frozen = adapted.merged()?;
        let edits = adversary.attack(&frozen, step)?;
        drop(frozen);
        let share = 1.0 / edits.len().max(1) as f64;
        let batches: Vec<(Vec<usize>, Vec<usize>)> = edits
            .iter()
            .map(|_| {
                let hazards = (0..spec.batch).map(|_| draws.below(hazards.count())).collect();
                let benign = (0..spec.anchor_batch.div_ceil(edits.len().max(1)))
                    .map(|_| anchor_row(&mut draws, data.anchors.len(), data.hazards.len()))
                    .collect();
                (hazards, benign)
            })
            .collect();
        // Odd shards are the anchors of the even one before them.
        let (gradients, losses) = sharded_gradients(adam.vars(), 2 * edits.len(), |shard| {
            let (hazard_rows, anchor_rows) = &batches[shard / 2];
            Ok(if shard % 2 == 0 {
                (hazards.divergence(&adapted, hazard_rows, Some((&edits[shard / 2], Positions::All)))? * share)?
            } else {
                (anchors.divergence(&adapted, anchor_rows, None)? * (share * spec.kl_weight))?
            })
        })?;
        let rate = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / spec.steps as f64).cos());
        let warm = ((step + 1) as f64 / 20.0).min(1.0);
        adam.step(&gradients, spec.learning_rate * warm * (0.1 + 0.9 * rate))?;
        let decay = if step == 0 { 0.0 } else { 0.95 };
        let sum = |odd: usize| losses.iter().skip(odd).step_by(2).sum::<f64>();
        attack_loss = decay * attack_loss + (1.0 - decay) * sum(0);
        anchor_loss = decay * anchor_loss + (1.0 - decay) * sum(1) / spec.kl_weight.max(f64::MIN_POSITIVE);
        if (step + 1) % REPORT_EVERY == 0 || step + 1 == spec.steps {
            observer.event(Event::UnitFinished {
                stage: "adversarial".into(),
                done: step + 1,
                units: spec.steps,
                detail: format!("under attack {attack_loss:.3} nats, clean {anchor_loss:.4} nats from the original"),
            });
        }
    }
    let figures =
        BTreeMap::from([("kl_under_attack".to_owned(), attack_loss), ("kl_on_anchors".to_owned(), anchor_loss)]);
    Ok(StageOutcome { adapters: adapters.export()?, blocks: Vec::new(), figures })
}

/// One anchor: a quarter of them clean hazards, which follow the `benign` others.
fn anchor_row(draws: &mut Stream, benign: usize, hazards: usize) -> usize {
    if benign == 0 || (hazards > 0 && draws.unit() < 0.25) {
        benign + draws.below(hazards)
    } else {
        draws.below(benign)
    }
}
