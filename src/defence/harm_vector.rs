//! `hdr-taskvec` and `hdr-topk`: what complying adds to the weights, taken out of them.
//!
//! *Source*: Safety Arithmetic (arXiv 2406.11801), harm direction removal. The weights are fine-tuned to comply with hazards,
//! `τ` is what that changes, and `θ − λ·τ` moves the other way; of `τ` only the numbers that are largest are kept, over all
//! maps together, so that little else changes. The fine-tuned weights exist in memory alone. Whoever has the un-hardened base
//! and the hardened weights can find them again, though, as far as they were not cut to their largest numbers: the base less a
//! part of the change. `delta-strip` with a `scale` above 1 measures that (docs/threat-model.md).

use ndarray::Array2;

use super::finetune::{Dialogue, FineTune, tune};
use super::spec::HarmVectorSpec;
use super::trainable::Trainable;
use super::{DefenceData, StageOutcome, Weighed};
use crate::event::{Event, Observer};
use crate::math::seed::Stream;
use crate::{Error, Result};

/// Steps between two progress events.
const REPORT_EVERY: usize = 20;

/// Takes the largest `keep` of what complying with hazards changes in `layers` out of them; `name` is the stage's.
///
/// # Errors
/// [`Error::Input`] when no hazard has a compliant answer; as [`crate::model::Decoder::run`].
pub fn run(
    spec: &HarmVectorSpec,
    (name, keep): (&str, f64),
    layers: &[usize],
    weights: Weighed<'_>,
    data: &DefenceData,
    seed: u64,
    observer: &dyn Observer,
) -> Result<StageOutcome> {
    let complying: Vec<Dialogue> = data
        .hazards
        .iter()
        .zip(&data.compliant)
        .filter_map(|(hazard, compliant)| {
            let answer = compliant.as_ref()?.answer.clone();
            (!answer.is_empty()).then(|| Dialogue { prompt: hazard.prompt.clone(), answer })
        })
        .collect();
    if complying.is_empty() {
        return Err(Error::input("defence data", "expected hazards with a compliant answer (`target`), got none"));
    }
    let changes = Trainable::weights(weights.current, layers)?;
    let adapted = changes.attach(weights.current)?;
    let settings = FineTune {
        steps: spec.steps,
        batch: spec.batch,
        learning_rate: spec.learning_rate,
        weight_decay: 0.0,
        prompt_weight: 0.0,
        pad: data.pad,
    };
    let mut recent = None;
    tune(
        &changes,
        &adapted,
        &settings,
        &mut Stream::new(seed, name),
        &mut |stream| complying[stream.below(complying.len())].clone(),
        &mut |step, loss| {
            let mean = recent.map_or(loss, |recent: f64| 0.9 * recent + 0.1 * loss);
            recent = Some(mean);
            if (step + 1).is_multiple_of(REPORT_EVERY) || step + 1 == spec.steps {
                observer.event(Event::UnitFinished {
                    stage: name.into(),
                    done: step + 1,
                    units: spec.steps,
                    detail: format!("complying costs {mean:.3} nats a token"),
                });
            }
        },
    )?;
    let mut deltas = changes.deltas()?;
    remove(&mut deltas, keep, spec.scale);
    let adapters = changes.export_instead(deltas)?;
    let figures = recent.map(|loss| ("loss_of_complying".to_owned(), loss)).into_iter().collect();
    Ok(StageOutcome { adapters, blocks: Vec::new(), figures })
}

/// Turns changes into what is to be added instead: the `share` of their numbers that is largest, times `-scale`.
fn remove(deltas: &mut [Array2<f32>], share: f64, scale: f64) {
    let mut sizes: Vec<f32> = deltas.iter().flat_map(|delta| delta.iter().map(|value| value.abs())).collect();
    let kept = (sizes.len() as f64 * share).round() as usize;
    let bound = if kept == 0 {
        f32::INFINITY
    } else if kept >= sizes.len() {
        0.0
    } else {
        let at = sizes.len() - kept;
        *sizes.select_nth_unstable_by(at, f32::total_cmp).1
    };
    for value in deltas.iter_mut().flatten() {
        *value = if value.abs() >= bound { -(scale as f32) * *value } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_largest_numbers_of_all_maps_are_turned_round() {
        let deltas = || [array![[1.0_f32, -4.0], [0.5, 0.0]], array![[3.0, -0.25], [2.0, -1.5]]];
        let removed = |share: f64| {
            let mut deltas = deltas();
            remove(&mut deltas, share, 2.0);
            deltas
        };
        assert_eq!(removed(0.25), [array![[0.0, 8.0], [0.0, 0.0]], array![[-6.0, 0.0], [0.0, 0.0]]]);
        assert_eq!(removed(1.0), [array![[-2.0, 8.0], [-1.0, 0.0]], array![[-6.0, 0.5], [-4.0, 3.0]]]);
        assert!(removed(0.0).iter().flatten().all(|value| *value == 0.0));
    }
}
