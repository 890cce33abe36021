//! How far the hardened model's predictions are from the base's on harmless dialogues.

use crate::Result;
use crate::report::{Direction, Measured, UtilityRow};

use super::bench::Bench;
use super::ratio::ratio;
use super::score::{Passage, divergences};
use super::spec::Task;

/// `KL(base ‖ hardened)` in nats per token over the answers of benign dialogues; where a dialogue has no answer, over
/// the base's own greedy one. The divergence is itself the change, so value and delta are the same figure.
pub(super) fn measure(bench: &mut Bench<'_>, items: Option<usize>) -> Result<UtilityRow> {
    let requests = bench.items(Task::Kl, items);
    let decoders = bench.decoders();
    let divergence = match decoders.base {
        None => None,
        Some(base) => {
            let open: Vec<_> = requests.iter().filter(|request| request.answer.is_none()).copied().collect();
            let own = bench.answers(&open, 0)?.base.unwrap_or_default();
            let mut own = own.into_iter();
            let mut passages = Vec::with_capacity(requests.len());
            for request in requests {
                let scored = match &request.answer {
                    Some(answer) => bench.encoder().encode_answer(answer, true)?,
                    None => own.next().unwrap_or_default(),
                };
                passages.push(Passage { context: bench.prompt(request)?, scored });
            }
            let tokens: Vec<f64> = passages.iter().map(|passage| passage.scored.len() as f64).collect();
            let mean = ratio(&divergences(base, decoders.hardened, &passages)?, &tokens);
            // A divergence is never negative, whatever a symmetric interval or f32 rounding says.
            Some(Measured { value: mean.value.max(0.0), low: mean.low.max(0.0), high: mean.high.max(0.0), ..mean })
        }
    };
    Ok(UtilityRow {
        task: Task::Kl.name().into(),
        metric: "KL divergence to the base".into(),
        unit: "nats/token".into(),
        direction: Direction::LowerIsBetter,
        base: None,
        hardened: divergence.unwrap_or_else(|| Measured::mean(&[])),
        relative: false,
        delta: divergence,
        bound: None,
        ok: None,
        digest: None,
    })
}
