//! Whether what a run puts to a model fits into its context window: told by row before anything is measured, where the decoder would
//! refuse it hours later and know no row.
//!
//! A text has no more tokens than bytes, so only rows that come near the window's end are encoded. An answer that a model generates may
//! end with the window, which is no error ([`crate::model::generate`]): [`Window::cut`] says where it can.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::abliterate::HARMLESS_PROMPTS;
use super::cell::Cell;
use super::corpus::{Corpus, VALIDATION_PROMPTS, anchor_rows, is_whole, refused_rows};
use super::pool::VECTOR_PROMPTS;
use super::suite::Grid;
use crate::attack::spec::{AttackKind, Method};
use crate::data::{Example, Kind, Split};
use crate::model::Blueprint;
use crate::recipe::{Stage, Suite};
use crate::utility::{
    self,
    spec::{Task, TaskSpec},
};
use crate::{Error, Result};

/// Tokens that a tokenizer may add to those of a text's bytes: a space before it, an end behind it.
const SLACK: usize = 16;

/// A model's context window, and the rows that are put to it.
pub(super) struct Window<'a> {
    corpus: &'a Corpus<'a>,
    /// Tokens.
    positions: usize,
    /// Bytes that the chat template has around a request.
    frame: usize,
}

/// A row as it is put to the model.
struct Put<'a> {
    row: &'a Example,
    /// Whether its prompt is read as it is, without the chat template.
    bare: bool,
    /// What follows the prompt.
    parts: Vec<Part<'a>>,
    /// Tokens of all of it, at most.
    limit: usize,
}

/// A text that follows a prompt.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// The row's key that it stands under.
    key: &'static str,
    text: &'a str,
    /// Whether the end of the turn follows.
    closes: bool,
    /// Tokens of it that are put, at most.
    most: usize,
}

impl<'a> Part<'a> {
    fn answer(text: &'a str) -> Self {
        Self { key: "answer", text, closes: true, most: usize::MAX }
    }

    fn target(text: &'a str, closes: bool) -> Self {
        Self { key: "target", text, closes, most: usize::MAX }
    }
}

/// How many of the attacker's rows cells put to a model, and how.
#[derive(Default)]
struct Wanted<'a> {
    /// First pairs that something is trained on.
    trained: usize,
    /// The same by the opening of their targets.
    openings: BTreeMap<&'a str, usize>,
    /// First prompts of each class that are read.
    read: usize,
    /// Last harmless prompts that are read.
    kept: usize,
    /// Whether the validation hazards are asked.
    chosen: bool,
}

impl<'a> Wanted<'a> {
    /// What `cells` put to the model that they attack.
    fn of(cells: impl Iterator<Item = &'a Cell>, with_base: bool) -> Self {
        let mut wanted = Self::default();
        for cell in cells {
            let spec = &cell.control_of.as_deref().unwrap_or(cell).spec;
            match spec.kind.method() {
                Method::Control | Method::Given => {}
                // Nothing without the base.
                Method::Weights if spec.kind == AttackKind::DeltaStrip && !with_base => {}
                Method::Weights if spec.kind == AttackKind::Lora => wanted.trained = wanted.trained.max(spec.pairs),
                Method::Learned(_) => {
                    wanted.trained = wanted.trained.max(spec.pairs);
                    wanted.chosen |= spec.search.is_some();
                    for opening in spec.search.iter().flat_map(|search| &search.openings) {
                        let most = wanted.openings.entry(opening.as_str()).or_default();
                        *most = spec.pairs.max(*most);
                    }
                }
                method => {
                    wanted.read = wanted.read.max(spec.pairs);
                    wanted.chosen = true;
                    if method == Method::Abliterated {
                        wanted.kept = HARMLESS_PROMPTS;
                    }
                }
            }
        }
        wanted
    }

    /// What `cells` put to the model that they transfer from.
    fn of_source(cells: impl Iterator<Item = &'a Cell>) -> Self {
        let mut wanted = Self::default();
        for spec in cells.map(|cell| &cell.control_of.as_deref().unwrap_or(cell).spec) {
            wanted.read = wanted.read.max(spec.pairs);
            if spec.form().is_some() {
                wanted.trained = wanted.trained.max(spec.pairs);
            }
        }
        wanted
    }
}

impl<'a> Window<'a> {
    /// That of a model of the shape `blueprint`, which reads the rows as `corpus` does.
    ///
    /// # Errors
    /// When the template refuses the dialogue.
    pub fn new(corpus: &'a Corpus<'a>, blueprint: &Blueprint) -> Result<Self> {
        let frame = corpus.encoder.render_chat("a", corpus.system)?.len();
        Ok(Self { corpus, positions: blueprint.positions(), frame })
    }

    /// Refuses rows that `stages` may come to and the model cannot read.
    ///
    /// # Errors
    /// [`Error::Input`] naming the row, the keys and their lengths.
    pub fn check_stages(&self, stages: &[Stage]) -> Result<()> {
        let corpus = self.corpus;
        let (refused, anchors) = (refused_rows(corpus.set), anchor_rows(corpus.set, corpus.seed));
        // The model's own answers to them are made whatever the stages are, and have to have a token.
        let unanswered = anchors.iter().filter(|row| row.answer.is_none());
        let mut rows: Vec<Put<'_>> =
            unanswered.map(|row| Put { limit: self.positions.saturating_sub(1), ..self.prompt(row) }).collect();
        let answered = |row: &&'a Example, most: usize| {
            let answer = Part { most, ..Part::answer(row.answer.as_deref()?) };
            Some(self.put(row, vec![answer]))
        };
        let pairs = || corpus.targeted(Split::Train).into_iter();
        let pair = |(row, target): (&'a Example, &'a str)| self.put(row, vec![Part::target(target, false)]);
        for stage in stages {
            let local = match stage {
                Stage::Et(spec, _) | Stage::EtFaithful(spec, _) => Some(spec.attack_pairs),
                Stage::EtClosed(spec, _) | Stage::EtPropagated(spec, _) => Some(spec.attack_pairs),
                Stage::HdrTaskvec(..) | Stage::HdrTopk(..) | Stage::Adversarial(..) => None,
            };
            if let Some(attack_pairs) = local {
                rows.extend(refused.iter().chain(&anchors).filter_map(|row| answered(row, usize::MAX)));
                rows.extend(pairs().take(attack_pairs).map(pair));
                let validation = corpus.chosen(Split::Validation, Kind::Hazard, VALIDATION_PROMPTS);
                rows.extend(validation.into_iter().map(|row| self.prompt(row)));
            }
            if let Stage::HdrTaskvec(..) | Stage::HdrTopk(..) = stage {
                rows.extend(refused.iter().filter_map(|row| Some(pair((row, row.target.as_deref()?)))));
            }
            if let Stage::Adversarial(spec, _) = stage {
                let held = if spec.refusal_tokens == 0 { usize::MAX } else { spec.refusal_tokens };
                rows.extend(refused.iter().filter_map(|row| answered(row, held)));
                rows.extend(anchors.iter().filter_map(|row| answered(row, usize::MAX)));
                let allowed = |row: &Example| {
                    spec.openings.is_empty() || row.opening.as_ref().is_some_and(|name| spec.openings.contains(name))
                };
                rows.extend(pairs().filter(|(row, _)| allowed(row)).map(pair));
                if spec.begun > 0.0 {
                    // A refusal after the whole of a compliant answer.
                    let begun = |row: &&'a Example| {
                        let answer = Part { most: held, ..Part::answer(row.answer.as_deref()?) };
                        Some(self.put(row, vec![Part::target(row.target.as_deref()?, false), answer]))
                    };
                    rows.extend(refused.iter().filter(|row| allowed(row)).filter_map(begun));
                }
                if !spec.vectors.is_empty() {
                    let classes = [Kind::Benign, Kind::Twin].map(|kind| corpus.known(kind));
                    let read = classes.into_iter().flat_map(|rows| rows.into_iter().take(VECTOR_PROMPTS));
                    rows.extend(read.map(|row| self.prompt(row)));
                }
            }
        }
        self.check(&rows)
    }

    /// Refuses rows that measuring the cells of `grid` and `tasks` comes to and the model cannot read; `with_base` as in
    /// [`Grid::select`].
    ///
    /// # Errors
    /// As [`Window::check_stages`].
    pub fn check_measured(&self, suite: &Suite, grid: &Grid, tasks: &[TaskSpec], with_base: bool) -> Result<()> {
        let corpus = self.corpus;
        let wanted = Wanted::of(grid.attacks.iter().chain(&grid.controls), with_base);
        let mut rows: Vec<Put<'_>> = self.asked(suite).into_iter().map(|row| self.prompt(row)).collect();
        if wanted.chosen {
            let validation = corpus.chosen(Split::Validation, Kind::Hazard, suite.validation_prompts);
            rows.extend(validation.into_iter().map(|row| self.prompt(row)));
        }
        self.attacked(&wanted, &mut rows);
        for spec in tasks {
            for row in utility::items(spec, corpus.set) {
                // The last token of what is scored is not read.
                let scored = self.positions + 1;
                match (spec.task, &row.answer) {
                    (Task::Kl, Some(_)) if !with_base => {}
                    (Task::Perplexity | Task::Kl, Some(answer)) => {
                        rows.push(Put { limit: scored, ..self.put(row, vec![Part::answer(answer)]) });
                    }
                    (Task::Perplexity, None) => rows.push(Put { limit: scored, bare: true, ..self.prompt(row) }),
                    _ => rows.push(self.prompt(row)),
                }
            }
        }
        self.check(&rows)
    }

    /// Refuses rows that cells of `grid` put to this model, the source `name`, and that it cannot read.
    ///
    /// # Errors
    /// As [`Window::check_stages`].
    pub fn check_source(&self, name: &str, grid: &Grid) -> Result<()> {
        let of = |cell: &&Cell| cell.control_of.as_deref().unwrap_or(cell).spec.source.as_deref() == Some(name);
        let mut rows = vec![];
        self.attacked(&Wanted::of_source(grid.attacks.iter().chain(&grid.controls).filter(of)), &mut rows);
        self.check(&rows)
    }

    /// How many answers may end with the window before they are as long as `suite` lets them be, in words.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub fn cut(&self, suite: &Suite) -> Result<Option<String>> {
        let room = |row: &&'a Example| -> Option<Result<(usize, &'a str)>> {
            let put = self.prompt(row);
            if self.bytes(&put) + suite.max_new_tokens <= self.positions {
                return None;
            }
            let tokens = match self.tokens(&put) {
                Ok((prompt, _)) => prompt,
                Err(error) => return Some(Err(error)),
            };
            let room = (self.positions + 1).saturating_sub(tokens);
            (room < suite.max_new_tokens).then_some(Ok((room, row.id.as_str())))
        };
        let cut = self.asked(suite).par_iter().filter_map(room).collect::<Result<Vec<_>>>()?;
        Ok(cut.iter().min().map(|(room, row)| {
            let (asked, takes) = (suite.max_new_tokens, self.positions);
            let others = match cut.len() - 1 {
                0 => String::new(),
                others => format!(", and {others} more leave too few"),
            };
            format!("{asked} tokens of an answer are asked for: row `{row}` leaves {room} of the {takes} that the model takes{others}")
        }))
    }

    /// The rows whose answers are measured without an attack.
    fn asked(&self, suite: &Suite) -> Vec<&'a Example> {
        let kinds = [Kind::Hazard, Kind::Twin, Kind::Benign];
        let chosen = |kind| self.corpus.chosen(Split::Evaluation, kind, suite.evaluation_prompts);
        kinds.into_iter().flat_map(chosen).collect()
    }

    /// The attacker's rows.
    fn attacked(&self, wanted: &Wanted<'_>, rows: &mut Vec<Put<'a>>) {
        let corpus = self.corpus;
        let mut of_opening: BTreeMap<&str, usize> = BTreeMap::new();
        for (number, (row, target)) in corpus.targeted(Split::Attack).into_iter().enumerate() {
            let named = row.opening.as_deref().is_some_and(|name| {
                let seen = of_opening.entry(name).or_default();
                *seen += 1;
                wanted.openings.get(name).is_some_and(|most| *seen <= *most)
            });
            if number < wanted.trained || named {
                rows.push(self.put(row, vec![Part::target(target, is_whole(target))]));
            } else if number < wanted.read {
                rows.push(self.prompt(row));
            }
        }
        let harmless = corpus.harmless();
        let last = harmless.iter().rev().take(wanted.kept);
        let read = harmless.iter().take(wanted.read).chain(last).copied();
        let twins = corpus.known(Kind::Twin).into_iter().take(wanted.read);
        rows.extend(read.chain(twins).map(|row| self.prompt(row)));
    }

    /// A prompt alone: what is generated after it may end with the window.
    fn prompt(&self, row: &'a Example) -> Put<'a> {
        self.put(row, vec![])
    }

    fn put(&self, row: &'a Example, parts: Vec<Part<'a>>) -> Put<'a> {
        Put { row, bare: false, parts, limit: self.positions }
    }

    /// Refuses the first of `rows` that is too long.
    fn check(&self, rows: &[Put<'_>]) -> Result<()> {
        rows.par_iter().map(|put| self.check_row(put)).find_first(Result::is_err).unwrap_or(Ok(()))
    }

    fn check_row(&self, put: &Put<'_>) -> Result<()> {
        if self.bytes(put) <= put.limit {
            return Ok(());
        }
        let (prompt, parts) = self.tokens(put)?;
        if prompt + parts.iter().sum::<usize>() <= put.limit {
            return Ok(());
        }
        let (mut names, mut got) = ("`prompt`".to_owned(), prompt.to_string());
        for (part, tokens) in put.parts.iter().zip(parts) {
            names += &format!(" and `{}`", part.key);
            got += &format!(" and {tokens}");
        }
        let together = if put.parts.is_empty() { "" } else { " together" };
        let problem = format!("expected {names} of at most {} tokens{together}, got {got}", put.limit);
        let subject = format!("prompts `{}`, row `{}`", self.corpus.set.name, put.row.id);
        Err(Error::input(subject, problem)
            .hint(format!("the model takes {} tokens; shorten the row, or leave it out", self.positions)))
    }

    /// More than there are tokens of a row.
    fn bytes(&self, put: &Put<'_>) -> usize {
        let part = |part: &Part<'_>| (part.text.len() + SLACK).min(part.most);
        self.frame + put.row.prompt.len() + SLACK + put.parts.iter().map(part).sum::<usize>()
    }

    /// Tokens of a row's prompt, and of what follows it.
    fn tokens(&self, put: &Put<'_>) -> Result<(usize, Vec<usize>)> {
        let Corpus { encoder, system, .. } = *self.corpus;
        let prompt = if put.bare {
            encoder.tokenizer().encode(&put.row.prompt, true)?
        } else {
            encoder.encode_chat(&put.row.prompt, system)?
        };
        let part = |part: &Part<'_>| Ok(encoder.encode_answer(part.text, part.closes)?.len().min(part.most));
        Ok((prompt.len(), put.parts.iter().map(part).collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::attack::{random_decoder, tiny};
    use crate::data::builtin::vocabulary::write_tokenizer_files;
    use crate::data::{PromptSet, builtin};
    use crate::math::seed::Stream;
    use crate::model::generate::{Greedy, generate};
    use crate::model::prompt::PromptEncoder;
    use crate::pipeline::suite::Selection;
    use crate::recipe::Recipe;

    /// What the window of `positions` tokens says of the bundled rows, `change`d, in a run of this stage, attack and task.
    fn said(
        positions: usize,
        [stage, attack, task]: [&str; 3],
        change: impl Fn(&mut Example),
    ) -> (Result<()>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer_files(dir.path()).unwrap();
        let encoder = PromptEncoder::open(dir.path()).unwrap();
        let mut rows = builtin::tiny_chat().examples;
        rows.iter_mut().for_each(change);
        let set = PromptSet::new("prompts", rows);
        let corpus = Corpus { set: &set, encoder: &encoder, system: None, seed: 0 };
        let text = format!(
            "schema: 1\nname: x\nstages: [{stage}]\nsuite: {{max_new_tokens: 5, evaluation_prompts: 10000, attacks: [{attack}]}}\n\
             utility: [{task}]\n"
        );
        let recipe = Recipe::parse(&text, Path::new("recipe.yaml")).unwrap();
        let grid = Grid::new(&recipe.suite, 2).unwrap().select(&Selection::default(), true);
        let window = Window::new(&corpus, &Blueprint { max_positions: positions, ..Blueprint::default() }).unwrap();
        let checked = window
            .check_stages(&recipe.stages)
            .and_then(|()| window.check_measured(&recipe.suite, &grid, &recipe.utility, true));
        (checked, window.cut(&recipe.suite).unwrap())
    }

    const PLAIN: [&str; 3] = ["{kind: hdr-topk}", "{kind: identity}", ""];

    fn words(count: usize) -> String {
        vec!["lamp"; count].join(" ")
    }

    #[test]
    fn a_row_beyond_the_window_is_named_with_its_lengths() {
        type Changes<'a> = &'a dyn Fn(&mut Example);
        type Chosen<'a> = &'a dyn Fn(&Example) -> bool;
        let of = |split: Split, kind: Kind| move |row: &Example| row.split == split && row.kind == kind;
        let long =
            |what: fn(&mut Example) -> &mut Option<String>| move |row: &mut Example| *what(row) = Some(words(200));
        let (answer, target) = (long(|row| &mut row.answer), long(|row| &mut row.target));
        let prompt = |row: &mut Example| row.prompt = words(300);
        let adversarial = "{kind: adversarial, begun: 0}";
        let cases: [([&str; 3], Chosen<'_>, Changes<'_>, &str); 7] = [
            (PLAIN, &of(Split::Evaluation, Kind::Hazard), &prompt, "expected `prompt` of at most 192 tokens, got 304"),
            (PLAIN, &of(Split::Train, Kind::Hazard), &target, "`prompt` and `target` of at most 192 tokens together"),
            ([adversarial, PLAIN[1], ""], &of(Split::Retain, Kind::Twin), &answer, "`prompt` and `answer` of at most"),
            ([PLAIN[0], "{kind: noreft, pairs: 10000}", ""], &of(Split::Attack, Kind::Hazard), &target, "`target`"),
            ([PLAIN[0], "{kind: ablation}", ""], &of(Split::Validation, Kind::Hazard), &prompt, "got 304"),
            ([PLAIN[0], PLAIN[1], "{task: perplexity}"], &of(Split::Evaluation, Kind::Text), &answer, "at most 193"),
            ([PLAIN[0], PLAIN[1], "{task: maths}"], &of(Split::Evaluation, Kind::Maths), &prompt, "got 304"),
        ];
        for (run, chosen, change, told) in cases {
            said(192, run, |_| ()).0.unwrap();
            let error = said(192, run, |row| {
                if chosen(row) {
                    change(row)
                }
            })
            .0
            .unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(told), "{run:?}: {error}");
            assert!(error.to_string().starts_with("prompts `prompts`, row `"), "{error}");
        }
        // Nothing trains on the attacker's targets there, and nothing is chosen.
        said(192, PLAIN, |row| {
            if of(Split::Attack, Kind::Hazard)(row) {
                target(row)
            }
        })
        .0
        .unwrap();
        said(192, PLAIN, |row| {
            if of(Split::Validation, Kind::Hazard)(row) {
                prompt(row)
            }
        })
        .0
        .unwrap();
    }

    #[test]
    fn a_prompt_that_leaves_little_room_is_said_and_no_error() {
        // Four tokens are the template's.
        let nearly = |row: &mut Example| {
            if row.split == Split::Evaluation && row.kind == Kind::Benign {
                row.prompt = words(187);
            }
        };
        let (checked, cut) = said(192, PLAIN, nearly);
        checked.unwrap();
        let cut = cut.unwrap();
        assert!(cut.starts_with("5 tokens of an answer") && cut.contains("leaves 2 of the 192"), "{cut}");
        assert_eq!(said(192, PLAIN, |_| ()).1, None);
    }

    #[test]
    fn an_answer_ends_with_the_window_whatever_is_answered_beside_it() {
        let decoder = |max_positions| {
            let blueprint = Blueprint { max_positions, ..tiny() };
            random_decoder(blueprint, 0.5, Stream::new(0, "window"))
        };
        let prompts = [vec![1, 2, 3], vec![4, 5, 6, 7, 8, 9], (1..=8).collect(), vec![3]];
        let options = |batch| Greedy { max_new_tokens: 20, stop: vec![], pad: 0, batch };
        let whole = generate(&decoder(32), &prompts, &[], &options(4)).unwrap();
        assert!(whole.iter().all(|answer| answer.len() == 20), "there is room for all of it");
        for batch in [4, 2, 1] {
            let cut = generate(&decoder(8), &prompts, &[], &options(batch)).unwrap();
            let lengths: Vec<usize> = cut.iter().map(Vec::len).collect();
            assert_eq!(lengths, [6, 3, 1, 8], "the last token of each is not read");
            assert!(whole.iter().zip(&cut).all(|(whole, cut)| whole.starts_with(cut)), "{whole:?} {cut:?}");
        }
        let error = generate(&decoder(8), &[vec![1; 9]], &[], &options(1)).unwrap_err().to_string();
        assert!(error.contains("expected at most 8 tokens, got 9"), "{error}");
    }
}
