//! Fits the map from a base to the model that was tuned from it, and measures what the base does with it.
//!
//! | step | requests |
//! |---|---|
//! | map | hazardous and harmless ones of `attack`, every fifth of them kept aside for the explained variance |
//! | figures | hazards and benign requests of `evaluation` |
//!
//! Beside the base with the map stand the base without it, the base with a random map of equal norm, and the tuned model. None of
//! it is part of a verdict.

use std::path::Path;

use serde::Serialize;

use super::corpus::Corpus;
use super::examiner::Examiner;
use super::model::{self, Model, is_published};
use super::verify::same_kind;
use crate::attack::control::random_like;
use crate::attack::transfer::{End, shift};
use crate::data::{Kind, PromptSet, Split};
use crate::detect::Switch;
use crate::intervention::{Edit, Positions};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::report::{Measured, Rate};
use crate::{Error, Result};

/// How a switch is fitted and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The block whose input is mapped.
    pub layer: usize,
    /// Requests of each class that it is fitted on, at most.
    pub pairs: usize,
    /// Requests of each class that it is measured on, at most.
    pub prompts: usize,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Root of the random streams.
    pub seed: u64,
}

/// What one of the four does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Behaves {
    /// `base`, `base with the switch`, `base with a random map` or `tuned`.
    pub who: &'static str,
    /// Hazardous requests refused.
    pub refused: Measured,
    /// Benign requests answered: not refused, on topic and not degenerate.
    pub answered: Measured,
}

/// A fitted switch and what it is worth.
#[derive(Debug)]
pub struct Fitted {
    /// The switch.
    pub switch: Switch,
    /// The base, the base with it, the base with a random map of equal norm, the tuned model.
    pub behaves: [Behaves; 4],
}

/// Fits a switch that makes `base` behave as `tuned` with the requests of `data`.
///
/// # Errors
/// [`Error::Input`] when `base` is a hardened model, the two differ in shape or tokenizer, there is no such block, or a split
/// lacks a class.
pub fn fit(base: &Model, tuned: &Model, data: &PromptSet, system: Option<&str>, settings: Settings) -> Result<Fitted> {
    if is_published(&base.located.dir) {
        let problem = "expected an un-hardened model to map from, got one with evidence of hardening";
        return Err(Error::file(&base.located.dir, problem)
            .hint("a map away from hardened weights would undo the hardening; swap the two"));
    }
    same_kind(base, tuned)?;
    let layers = base.decoder.n_layers();
    if settings.layer >= layers {
        let problem = format!("expected a block below {layers}");
        return Err(Error::input(format!("block {}", settings.layer), problem));
    }
    let corpus = Corpus { set: data, encoder: &base.encoder, system, seed: settings.seed };
    let requests = corpus.attack()?;
    let end = |decoder| End { decoder, data: &requests, layer: settings.layer };
    let shift = shift(end(&base.decoder), end(&tuned.decoder), settings.pairs)?;
    let identities = [base.identity(), tuned.identity()];
    let names = [identities[0].as_str(), identities[1].as_str()];
    let switch = Switch::new(settings.layer, names, shift.change, shift.bias, shift.explained);

    let examiner = Examiner::new(&base.encoder, settings.max_new_tokens, base.decoder.blueprint().parameters());
    let hazards = corpus.evaluation(settings.prompts)?;
    let benign = corpus.questions(Split::Evaluation, Kind::Benign, settings.prompts)?;
    let behaves = |who, decoder: &Decoder, edit: Option<&Edit>| -> Result<Behaves> {
        let edit = edit.map(|edit| (edit, Positions::All));
        let (hazards, benign) = (examiner.counts(decoder, &hazards, edit)?, examiner.counts(decoder, &benign, edit)?);
        Ok(Behaves {
            who,
            refused: hazards.refusal(),
            answered: Rate::new(benign.successes, benign.n).over(benign.design()),
        })
    };
    let edit = switch.edit();
    let random = random_like(&edit, &mut Stream::new(settings.seed, "switch/random"))?;
    let behaves = [
        behaves("base", &base.decoder, None)?,
        behaves("base with the switch", &base.decoder, Some(&edit))?,
        behaves("base with a random map", &base.decoder, Some(&random))?,
        behaves("tuned", &tuned.decoder, None)?,
    ];
    Ok(Fitted { switch, behaves })
}

/// Refuses to put a file of a switch beside published weights, which it could be used against.
///
/// # Errors
/// [`Error::Input`] naming the folder when `out` lies in a published model.
pub fn keep_apart(out: &Path) -> Result<()> {
    let why = "a switch is for whoever hosts the base; beside hardened weights it tells what hardening changed";
    model::keep_apart(out).map_err(|error| error.hint(why))
}
