//! How well a model predicts text that it has not seen.

use rayon::prelude::*;

use crate::data::Example;
use crate::model::Decoder;
use crate::report::{Direction, Measured, UtilityRow};
use crate::{Error, Result};

use super::bench::{Bench, Both};
use super::ratio::{ratio, through};
use super::score::{Passage, losses};
use super::spec::Task;

/// Perplexity per token of the evaluation split's texts; the change is relative.
///
/// A text with an answer is a dialogue: the answer and the token that ends it are scored after the request. A text without
/// one is scored from its second token, or from its first where the tokenizer puts a BOS before it.
pub(super) fn measure(bench: &Bench<'_>, items: Option<usize>) -> Result<UtilityRow> {
    let texts = bench.items(Task::Perplexity, items);
    let passages = texts.iter().map(|text| passage(bench, text)).collect::<Result<Vec<_>>>()?;
    let tokens: Vec<f64> = passages.iter().map(|passage| passage.scored.len() as f64).collect();
    let decoders = bench.decoders();
    let base = decoders.base.map(|base| losses(base, &passages)).transpose()?;
    let nats = Both { base, hardened: losses(decoders.hardened, &passages)? };
    let perplexity = nats.map(|nats| through(ratio(nats, &tokens), f64::exp));
    let delta = nats.base.as_ref().map(|base| {
        let change: Vec<f64> = base.iter().zip(&nats.hardened).map(|(base, hardened)| hardened - base).collect();
        through(ratio(&change, &tokens), f64::exp_m1)
    });
    Ok(UtilityRow {
        task: Task::Perplexity.name().into(),
        metric: "perplexity per token".into(),
        unit: "perplexity".into(),
        direction: Direction::LowerIsBetter,
        base: perplexity.base,
        hardened: perplexity.hardened,
        relative: true,
        delta,
        bound: None,
        ok: None,
        digest: None,
    })
}

fn passage(bench: &Bench<'_>, text: &Example) -> Result<Passage> {
    Ok(match &text.answer {
        Some(answer) => Passage { context: bench.prompt(text)?, scored: bench.encoder().encode_answer(answer, true)? },
        None => Passage::text(&bench.encoder().tokenizer().encode(&text.prompt, true)?),
    })
}

/// Perplexity per token of one long text in windows that do not overlap, as reference figures are usually given: the
/// first `windows` windows of `context` tokens, each predicting all of its tokens but the first.
///
/// *Units*: the interval takes windows as items; `n` is their number.
///
/// # Errors
/// When `ids` is shorter than the windows, and as [`Decoder::run`].
pub fn windowed(decoder: &Decoder, ids: &[u32], context: usize, windows: usize) -> Result<Measured> {
    if context < 2 || windows == 0 || ids.len() / context.max(1) < windows {
        return Err(Error::input(
            "text",
            format!("expected {windows} windows of {context} tokens, got {} tokens", ids.len()),
        ));
    }
    // One window a worker: a batch of long windows would hold their attention scores all at once.
    let nats = ids
        .par_chunks_exact(context)
        .take(windows)
        .map(|window| Ok(losses(decoder, &[Passage::text(window)])?[0]))
        .collect::<Result<Vec<f64>>>()?;
    let tokens = vec![(context - 1) as f64; windows];
    Ok(through(ratio(&nats, &tokens), f64::exp))
}
