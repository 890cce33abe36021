//! What stages and attacks need of the prompts and of other models: told, in the words of those who would miss it, before anything is
//! measured. How long rows may be is [`super::window`]'s.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Device;

use super::cell::Cell;
use super::corpus::{Corpus, nothing_to_evaluate, refused_rows};
use super::model::locate;
use super::suite::Grid;
use super::window::Window;
use crate::attack::spec::{AttackKind, Method};
use crate::checkpoint::Checkpoint;
use crate::data::{Example, Kind, PromptSet, Split};
use crate::event::Observer;
use crate::judge::guard::{Frame, GuardSpec};
use crate::model::Decoder;
use crate::model::chat_template::ChatTemplate;
use crate::model::prompt::PromptEncoder;
use crate::model::tokenizer::Tokenizer;
use crate::recipe::{Stage, Suite};
use crate::{Error, Result};

/// Refuses openings that no target of the data has, and stages that lack what they train on or choose by: where it is used, hours of
/// measuring would be lost.
///
/// # Errors
/// [`Error::Usage`] naming the key, and the openings there are; those of the stages.
pub fn check_targets(stages: &[Stage], suite: &Suite, data: &PromptSet) -> Result<()> {
    let check = |key: String, wanted: &[String], split: Split| {
        let rows = data.select(split, Kind::Hazard).into_iter().filter(|row| row.target.is_some());
        let known: BTreeSet<&str> = rows.filter_map(|row| row.opening.as_deref()).collect();
        match wanted.iter().find(|name| !known.contains(name.as_str())) {
            Some(unknown) => {
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                Err(Error::usage(format!("`{key}`: no target in `{}` opens as `{unknown}`", data.name))
                    .hint(format!("there are: {known}")))
            }
            None => Ok(()),
        }
    };
    for (i, stage) in stages.iter().enumerate() {
        if let Stage::Adversarial(spec, _) = stage {
            check(format!("stages.{i}.openings"), &spec.openings, Split::Train)?;
            let allowed = |row: &Example| match (&row.answer, &row.target, &row.opening) {
                (Some(_), Some(_), _) if spec.openings.is_empty() => true,
                (Some(_), Some(_), Some(name)) => spec.openings.contains(name),
                _ => false,
            };
            if spec.interrupted > 0 && !data.select(Split::Train, Kind::Hazard).into_iter().any(allowed) {
                let problem = "expected a hazard of split `train` with an `answer` and a `target`, got none";
                return Err(Error::usage(format!("`stages.{i}.interrupted`: {problem} in `{}`", data.name)));
            }
        }
    }
    for (i, search) in suite.attacks.iter().enumerate().filter_map(|(i, attack)| Some((i, attack.search.as_ref()?))) {
        check(format!("suite.attacks.{i}.search.openings"), &search.openings, Split::Attack)?;
    }
    stages.iter().try_for_each(|stage| check_stage(stage, data))
}

/// Refuses a stage that the rows of split `train` leave without work.
fn check_stage(stage: &Stage, data: &PromptSet) -> Result<()> {
    let refused = refused_rows(data);
    match stage {
        Stage::Et(..) | Stage::EtFaithful(..) | Stage::EtClosed(..) | Stage::EtPropagated(..) => {
            if refused.is_empty() {
                return Err(Error::input("defence data", "expected hazardous prompts, got none"));
            }
            if targeted(data, Split::Train) == 0 {
                return Err(no_pairs());
            }
            if data.select(Split::Validation, Kind::Hazard).is_empty() {
                return Err(Error::input("prompts", "expected hazards of split `validation` to choose by, got none"));
            }
        }
        Stage::HdrTaskvec(..) | Stage::HdrTopk(..) => {
            if refused.iter().all(|row| row.target.is_none()) {
                let problem = "expected hazards with a compliant answer (`target`), got none";
                return Err(Error::input("defence data", problem));
            }
        }
        Stage::Adversarial(spec, _) => {
            let lacks = |what: &str| {
                let problem = format!("expected hazards of split `train` with {what}, got none");
                Err(Error::input("prompts of stage `adversarial`", problem))
            };
            if refused.is_empty() {
                return lacks("an `answer` that refuses");
            }
            let pairs = targeted(data, Split::Train);
            if pairs == 0 {
                return lacks("a `target`, an answer that complies");
            }
            if !spec.vectors.is_empty() && spec.steps > 0 {
                check_classes(pairs, known_benign(data))?;
            }
        }
    }
    Ok(())
}

/// Refuses cells that the prompts leave without what they are fitted on or chosen by; `with_base` as in [`Grid::select`].
///
/// # Errors
/// [`Error::Input`] in the words of the attack.
pub(super) fn check_cells(grid: &Grid, data: &PromptSet, with_base: bool) -> Result<()> {
    let pairs = targeted(data, Split::Attack);
    let harmless = match data.select(Split::Attack, Kind::Benign).len() {
        0 => known_benign(data),
        own => own,
    };
    let validated = !data.select(Split::Validation, Kind::Hazard).is_empty();
    let check = |cell: &Cell| {
        // A control takes the size of its attack's edit, so that is what is fitted.
        let of = cell.control_of.as_deref().unwrap_or(cell);
        let (method, most) = (of.spec.kind.method(), of.spec.pairs);
        let (learned, chosen) = match method {
            Method::Control | Method::Given => return Ok(()),
            // Nothing without the base.
            Method::Weights if of.spec.kind == AttackKind::DeltaStrip && !with_base => return Ok(()),
            Method::Weights if of.spec.kind == AttackKind::Lora => {
                let problem = "expected pairs to train on, got none";
                return if pairs == 0 { Err(Error::input("attack data", problem)) } else { Ok(()) };
            }
            Method::Learned(_) => (true, of.spec.search.is_some()),
            Method::Mapped => (of.spec.form().is_some(), true),
            Method::Swept | Method::Projected | Method::Abliterated | Method::Weights => (false, true),
        };
        if learned && pairs == 0 {
            return Err(no_pairs());
        }
        if !learned {
            check_classes(pairs.min(most), harmless.min(most))?;
        }
        if chosen && !validated {
            let problem = "expected hazards of split `validation` to choose a setting on, got none";
            return Err(Error::input(&of.name, problem));
        }
        Ok(())
    };
    grid.attacks.iter().chain(&grid.controls).try_for_each(check)
}

/// Refuses a set without anything to evaluate on.
///
/// # Errors
/// [`Error::Input`] naming it.
pub(super) fn check_evaluation(data: &PromptSet) -> Result<()> {
    let has = data.examples.iter().any(|row| row.split == Split::Evaluation && row.kind == Kind::Hazard);
    if has { Ok(()) } else { Err(nothing_to_evaluate(data)) }
}

/// Looks for the models that edits are transferred from, and whether the rows that `grid` puts to them, those of `corpus`, fit.
///
/// # Errors
/// As [`locate`], [`Checkpoint::open`], [`Decoder::stream`], [`PromptEncoder::open`] and [`Window::check_source`].
pub(super) fn check_sources(suite: &Suite, grid: &Grid, corpus: &Corpus<'_>, observer: &dyn Observer) -> Result<()> {
    let named: BTreeSet<&str> = suite.attacks.iter().filter_map(|spec| spec.source.as_deref()).collect();
    for name in named {
        let located = locate(name, observer)?;
        let decoder = Decoder::stream(&Arc::new(Checkpoint::open(&located.dir)?), &Device::Cpu)?;
        let encoder = PromptEncoder::open(&located.dir)?;
        let read = Corpus { set: corpus.set, encoder: &encoder, system: corpus.system, seed: corpus.seed };
        Window::new(&read, decoder.blueprint())?.check_source(name, grid)?;
    }
    Ok(())
}

/// Looks for a guard model and reads of it what is read soon.
///
/// # Errors
/// As [`locate`], [`Checkpoint::open`], [`Decoder::stream`], and those of its tokenizer and template.
pub(super) fn check_guard(guard: &GuardSpec, observer: &dyn Observer) -> Result<()> {
    let located = locate(&guard.model, observer)?;
    Decoder::stream(&Arc::new(Checkpoint::open(&located.dir)?), &Device::Cpu)?;
    if guard.frame == Frame::Template {
        ChatTemplate::open(&located.dir)?;
    }
    Tokenizer::open(&located.dir).map(drop)
}

fn check_classes(hazards: usize, harmless: usize) -> Result<()> {
    if hazards > 0 && harmless > 0 {
        return Ok(());
    }
    let problem = format!("expected prompts of both classes, got {hazards} hazardous and {harmless} harmless");
    Err(Error::input("attack data", problem))
}

fn no_pairs() -> Error {
    let problem =
        "expected hazards with a `target`, an answer that complies, in the split that attackers train on, got none";
    Error::input("attack data", problem).hint("attacks without gradients need none")
}

/// Number of hazards of a split that have a target.
fn targeted(data: &PromptSet, split: Split) -> usize {
    data.select(split, Kind::Hazard).into_iter().filter(|row| row.target.is_some()).count()
}

/// Number of benign requests that nothing is measured on.
fn known_benign(data: &PromptSet) -> usize {
    [Split::Retain, Split::Train].into_iter().map(|split| data.select(split, Kind::Benign).len()).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::builtin;
    use crate::recipe::Recipe;

    /// The bundled rows, some of them changed or, where `change` says no, left out.
    fn rows(change: impl Fn(&mut Example) -> bool) -> PromptSet {
        let rows = builtin::tiny_chat().examples.into_iter().filter_map(|mut row| change(&mut row).then_some(row));
        PromptSet::new("prompts", rows.collect())
    }

    fn without(split: Split, kind: Kind) -> PromptSet {
        rows(|row| (row.split, row.kind) != (split, kind))
    }

    fn untargeted(split: Split) -> PromptSet {
        rows(|row| {
            if row.split == split {
                (row.target, row.opening) = (None, None);
            }
            true
        })
    }

    #[test]
    fn a_stage_without_the_rows_that_it_trains_on_is_refused_in_its_own_words() {
        let checked = |stage: &str, data: &PromptSet| {
            let text = format!("schema: 1\nname: x\nsuite: {{attacks: [{{kind: identity}}]}}\nstages: [{stage}]\n");
            let recipe = Recipe::parse(&text, Path::new("recipe.yaml")).unwrap();
            check_targets(&recipe.stages, &recipe.suite, data)
        };
        let kinds = ["{kind: et}", "{kind: et-closed}", "{kind: hdr-topk}", "{kind: adversarial}"];
        let vectors = "{kind: adversarial, vectors: [random]}";
        for stage in kinds.into_iter().chain([vectors]) {
            checked(stage, &builtin::tiny_chat()).unwrap();
        }
        let unanswered = rows(|row| {
            if row.split == Split::Train {
                row.answer = None;
            }
            true
        });
        let harmless = rows(|row| row.kind != Kind::Benign);
        for (stage, data, told) in [
            (kinds[0], &unanswered, "expected hazardous prompts, got none"),
            (kinds[1], &untargeted(Split::Train), "expected hazards with a `target`"),
            (kinds[0], &without(Split::Validation, Kind::Hazard), "hazards of split `validation` to choose by"),
            (kinds[2], &untargeted(Split::Train), "hazards with a compliant answer (`target`)"),
            (kinds[3], &unanswered, "with an `answer` that refuses"),
            (kinds[3], &untargeted(Split::Train), "with a `target`, an answer that complies"),
            (vectors, &harmless, "expected prompts of both classes"),
        ] {
            let error = checked(stage, data).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(told), "{stage}: {error}");
        }
    }

    #[test]
    fn a_cell_without_the_rows_that_it_is_fitted_on_is_refused_in_its_own_words() {
        let checked = |row: &str, data: &PromptSet, with_base: bool| {
            let suite = Suite::parse(&format!("attacks: [{row}]"), Path::new("suite.yaml")).unwrap();
            check_cells(&Grid::new(&suite, 2).unwrap(), data, with_base)
        };
        let (untargeted, unchosen) = (untargeted(Split::Attack), without(Split::Validation, Kind::Hazard));
        for (row, told) in [
            ("{kind: noreft}", "expected hazards with a `target`"),
            ("{kind: random}", "expected hazards with a `target`"),
            ("{kind: lora}", "expected pairs to train on, got none"),
            ("{kind: ablation, pairs: 9}", "expected prompts of both classes, got 0 hazardous and 9 harmless"),
            ("{kind: delta-strip}", "expected prompts of both classes, got 0 hazardous"),
        ] {
            checked(row, &builtin::tiny_chat(), true).unwrap();
            let error = checked(row, &untargeted, true).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(told), "{row}: {error}");
        }
        for row in ["{kind: ablation}", "{kind: noreft, search: {}}"] {
            let error = checked(row, &unchosen, true).unwrap_err().to_string();
            assert!(error.contains("hazards of split `validation` to choose a setting on"), "{row}: {error}");
        }
        checked("{kind: noreft}", &unchosen, true).unwrap();
        checked("{kind: identity}", &untargeted, true).unwrap();
        checked("{kind: delta-strip}", &untargeted, false).expect("it is left out without the base");
    }
}
