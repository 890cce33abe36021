//! Whether the model answers what it should answer and refuses what it should refuse, without any attack.

use crate::Result;
use crate::data::{Example, Kind, PromptSet, Split};
use crate::model::Decoder;
use crate::model::prompt::PromptEncoder;
use crate::report::{Clean, Direction, Measured, Pair, Rate, UtilityRow};

use super::bench::{Bench, greedy, rate_row, spread};
use super::spec::Task;
use super::{Grade, Grader};

/// Benign requests answered: not refused, on topic, not degenerate.
pub(super) fn benign(bench: &mut Bench<'_>, items: Option<usize>, grade: &Grader<'_>) -> Result<UtilityRow> {
    let answered = |g: Grade| !g.refused && g.on_topic && !g.degenerate;
    measure(bench, Task::Benign, "answered", Direction::HigherIsBetter, (Kind::Benign, items), grade, answered)
}

/// Benign twins of hazardous requests refused.
pub(super) fn over_refusal(bench: &mut Bench<'_>, items: Option<usize>, grade: &Grader<'_>) -> Result<UtilityRow> {
    let refused = |g: Grade| g.refused;
    measure(bench, Task::OverRefusal, "refused", Direction::LowerIsBetter, (Kind::Twin, items), grade, refused)
}

fn measure(
    bench: &mut Bench<'_>,
    task: Task,
    metric: &str,
    direction: Direction,
    (kind, items): (Kind, Option<usize>),
    grade: &Grader<'_>,
    counts: impl Fn(Grade) -> bool,
) -> Result<UtilityRow> {
    let requests = bench.items(&[kind], items);
    let texts = bench.texts(&requests, 0)?;
    let outcomes = texts.map(|texts| requests.iter().zip(texts).map(|(r, text)| counts(grade(r, text))).collect());
    Ok(rate_row(task.name(), metric, direction, &outcomes))
}

/// How a model behaves without any attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct CleanBehaviour {
    /// Hazardous requests refused.
    pub refusal: Rate,
    /// Benign twins refused.
    pub over_refusal: Rate,
    /// Degenerate answers among all of these.
    pub degenerate: Rate,
}

impl CleanBehaviour {
    /// The report's section: this model as the hardened one, beside its base where that was measured.
    #[must_use]
    pub fn beside(&self, base: Option<&Self>) -> Clean {
        let pair = |rate: fn(&Self) -> Rate| Pair {
            base: base.map(|base| Measured::from(rate(base))),
            hardened: Measured::from(rate(self)),
        };
        Clean {
            refusal: pair(|c| c.refusal),
            over_refusal: pair(|c| c.over_refusal),
            degenerate: pair(|c| c.degenerate),
        }
    }
}

/// Answers at most `max_items` hazards and as many twins of the evaluation split, and counts what the answers are.
///
/// # Errors
/// As [`Decoder::run`] and the encoder's.
pub fn clean(
    decoder: &Decoder,
    encoder: &PromptEncoder,
    data: &PromptSet,
    max_items: usize,
    max_new_tokens: usize,
    grade: &Grader<'_>,
) -> Result<CleanBehaviour> {
    let mut behaviour = CleanBehaviour::default();
    for kind in [Kind::Hazard, Kind::Twin] {
        let requests: Vec<&Example> = spread(data.select(Split::Evaluation, kind), Some(max_items));
        let answers = greedy(decoder, encoder, &requests, max_new_tokens)?;
        for (request, ids) in requests.into_iter().zip(answers) {
            let grade = grade(request, &encoder.decode(&ids)?);
            let refused = if kind == Kind::Hazard { &mut behaviour.refusal } else { &mut behaviour.over_refusal };
            for (rate, success) in [(refused, grade.refused), (&mut behaviour.degenerate, grade.degenerate)] {
                rate.n += 1;
                rate.k += u64::from(success);
            }
        }
    }
    Ok(behaviour)
}
