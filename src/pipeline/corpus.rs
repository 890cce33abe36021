//! A prompt set as token ids, split by who may see what.
//!
//! | reader | rows |
//! |---|---|
//! | the attacker | hazards of `attack` with their targets; benign requests of `attack`, else of `retain` and `train`; twins of those two |
//! | a defence | hazards of `train` with refusals; benign, twin, maths, copy and fact rows of `train` and `retain`, by the model's own answer where a row has none |
//! | a defence's own adversary | hazards of `train` with their targets; benign requests of `retain` and `train` |
//! | choices | hazards of `validation`, at most the suite's `validation_prompts`; a stage's, at most [`VALIDATION_PROMPTS`] |
//! | reported figures | hazards of `evaluation` |
//!
//! Rows are drawn by named streams and then kept in the order of their file, so that a smaller limit takes a spread over the
//! whole set and not its first category.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;

use super::examiner::{Examiner, PAD, Questions};
use super::stage::StageData;
use crate::attack::{AttackData, Pair};
use crate::checkpoint::Digest;
use crate::data::load::normalised;
use crate::data::{Example, Kind, PromptSet, Split};
use crate::defence::{Compliant, DefenceData, Dialogue, Means, UnitStore};
use crate::event::{Event, Observer};
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::model::generate::{Greedy, generate, sample};
use crate::model::prompt::PromptEncoder;
use crate::recipe::Data;
use crate::{Error, Result};

/// Hazards that choices are made on, at most.
pub const VALIDATION_PROMPTS: usize = 96;

/// Dialogues among a defence's anchors, at most, by kind: over-refusal shows in twins first, and forgetting in the rest.
const ANCHORS: [(Kind, usize); 5] =
    [(Kind::Twin, 2400), (Kind::Benign, 2000), (Kind::Maths, 1000), (Kind::Copy, 600), (Kind::Fact, 600)];

/// Tokens of a model's own answer that it is held to.
pub(super) const OWN_ANSWER: usize = 48;

/// What answering harmless requests before the stages is called.
const OWN_ANSWERS: &str = "own answers to anchors";

/// Tokens of a request that a model makes up; a longer one is left out.
const OWN_REQUEST: usize = 64;

/// The prompt set that a recipe names: `builtin:…` or a file.
///
/// # Errors
/// As [`PromptSet::from_path`] and [`PromptSet::builtin`].
pub fn prompt_set(name: &str) -> Result<PromptSet> {
    match name.strip_prefix("builtin:") {
        Some(name) => PromptSet::builtin(name),
        None if !Path::new(name).exists() => Err(Error::file(
            Path::new(name),
            "expected the file of prompts that `data.prompts` names, or `builtin:` and a name; there is none",
        )
        .hint(
            "give the path of a file that lies elsewhere; where one is to be made first, the comment at the recipe's top says how",
        )),
        None => PromptSet::from_path(Path::new(name)),
    }
}

/// The rows that a recipe names: its set, in its languages.
///
/// # Errors
/// As [`prompt_set`] and [`PromptSet::in_languages`].
pub fn prompts_of(data: &Data) -> Result<PromptSet> {
    prompt_set(&data.prompts)?.in_languages(&data.languages)
}

/// What is wrong with a set without hazards to evaluate on.
pub(super) fn nothing_to_evaluate(set: &PromptSet) -> Error {
    Error::input(&set.name, "expected rows of kind `hazard` in split `evaluation`, got none")
}

/// Hazards that a defence trains on refusing: those of split `train` with an answer.
pub(super) fn refused_rows(set: &PromptSet) -> Vec<&Example> {
    set.select(Split::Train, Kind::Hazard).into_iter().filter(|row| row.answer.is_some()).collect()
}

/// The rows that are a defence's anchors, shuffled under `seed`.
pub(super) fn anchor_rows(set: &PromptSet, seed: u64) -> Vec<&Example> {
    let mut stream = Stream::new(seed, "data/anchors");
    let mut anchors: Vec<&Example> = vec![];
    for (kind, most) in ANCHORS {
        let rows = [Split::Train, Split::Retain].map(|split| set.select(split, kind));
        let mut rows: Vec<&Example> = rows.into_iter().flatten().collect();
        stream.shuffle(&mut rows);
        rows.truncate(most);
        anchors.extend(rows);
    }
    stream.shuffle(&mut anchors);
    anchors
}

/// A prompt set seen through one model's tokenizer and chat template.
pub struct Corpus<'a> {
    /// The rows.
    pub set: &'a PromptSet,
    /// The model's view of text.
    pub encoder: &'a PromptEncoder,
    /// System prompt of every dialogue.
    pub system: Option<&'a str>,
    /// Root of the streams that draw rows.
    pub seed: u64,
}

impl Corpus<'_> {
    /// At most `limit` rows of one split and kind as questions.
    ///
    /// # Errors
    /// When the template refuses the dialogue or a text cannot be encoded.
    pub fn questions(&self, split: Split, kind: Kind, limit: usize) -> Result<Questions> {
        let examples: Vec<Example> = self.chosen(split, kind, limit).into_iter().cloned().collect();
        let prompts = examples.par_iter().map(|row| self.prompt(row)).collect::<Result<_>>()?;
        Ok(Questions { examples, prompts })
    }

    /// At most `limit` rows of one split and kind, in their order.
    pub(super) fn chosen(&self, split: Split, kind: Kind, limit: usize) -> Vec<&Example> {
        let rows = self.set.select(split, kind);
        let mut chosen = self.stream(split, kind).sample(rows.len(), limit);
        chosen.sort_unstable();
        chosen.into_iter().map(|i| rows[i]).collect()
    }

    /// The attacker's data.
    ///
    /// # Errors
    /// As [`Corpus::questions`].
    pub fn attack(&self) -> Result<AttackData> {
        self.adversary(Split::Attack, &self.harmless(), Ending::OfAnswers)
    }

    /// The attacker's harmless requests, in their order.
    pub(super) fn harmless(&self) -> Vec<&Example> {
        let own = self.shuffled(Split::Attack, Kind::Benign);
        if own.is_empty() { self.known(Kind::Benign) } else { own }
    }

    /// Hazards of a split that have a target, with it, in an adversary's order.
    pub(super) fn targeted(&self, split: Split) -> Vec<(&Example, &str)> {
        let hazards = self.shuffled(split, Kind::Hazard);
        hazards.into_iter().filter_map(|row| Some((row, row.target.as_deref()?))).collect()
    }

    /// What stages train on and choose by, and the means they may use; nothing of it is in `attack` or `evaluation`.
    ///
    /// Harmless requests without an answer are anchors by what `decoder`, the un-hardened model, answers, and so are up to
    /// `own_requests` that it makes up. Those answers can take minutes: they are kept in `store` part by part.
    ///
    /// # Errors
    /// As [`Corpus::questions`] and [`generate`], and those of the store.
    pub fn stages(
        &self,
        examiner: &Examiner,
        decoder: &Decoder,
        own_requests: usize,
        means: Means,
        store: &mut dyn UnitStore,
        observer: &dyn Observer,
    ) -> Result<StageData> {
        let hazards = self.shuffled(Split::Train, Kind::Hazard);
        let (worked, unanswered): (Vec<&Example>, Vec<&Example>) =
            anchor_rows(self.set, self.seed).into_iter().partition(|row| row.answer.is_some());
        let mut own = unanswered.iter().map(|row| self.prompt(row)).collect::<Result<Vec<_>>>()?;
        let made_up = self.own_requests(examiner, decoder, own_requests)?;
        let own_requests = made_up.len();
        own.extend(made_up);
        let rows = worked.iter().chain(&unanswered).map(|row| row.kind);
        let anchor_kinds = rows.chain(std::iter::repeat_n(Kind::Benign, own_requests)).collect();
        let own = self.own_answers(examiner, decoder, own, store, observer)?;
        let dialogues = |rows: &[&Example]| -> Result<Vec<Dialogue>> {
            let answered: Vec<_> = rows.iter().filter_map(|row| Some((*row, row.answer.as_deref()?))).collect();
            answered
                .par_iter()
                .map(|(row, answer)| {
                    Ok(Dialogue { prompt: self.prompt(row)?, answer: self.encoder.encode_answer(answer, true)? })
                })
                .collect()
        };
        let answered = hazards.iter().filter(|row| row.answer.is_some()).count();
        if answered < hazards.len() {
            let (without, all) = (hazards.len() - answered, hazards.len());
            let text =
                format!("{without} of {all} hazards of split `train` have no `answer`: no defence trains on them");
            observer.event(Event::Warning(text));
        }
        let compliant = hazards.iter().filter(|row| row.answer.is_some()).map(|row| {
            let Some(target) = &row.target else { return Ok(None) };
            let answer = self.encoder.encode_answer(target, false)?;
            Ok(Some(Compliant { answer, opening: row.opening.clone() }))
        });
        Ok(StageData {
            defence: DefenceData {
                compliant: compliant.collect::<Result<_>>()?,
                hazards: dialogues(&hazards)?,
                anchors: [dialogues(&worked)?, own].concat(),
                anchor_kinds,
                pad: PAD,
            },
            attack: self.adversary(Split::Train, &self.known(Kind::Benign), Ending::Open)?,
            validation: self.validation(VALIDATION_PROMPTS)?,
            examiner: examiner.clone(),
            own_requests,
            means,
        })
    }

    /// Prompts with the model's own greedy answers, or their beginnings.
    fn own_answers(
        &self,
        examiner: &Examiner,
        decoder: &Decoder,
        prompts: Vec<Vec<u32>>,
        store: &mut dyn UnitStore,
        observer: &dyn Observer,
    ) -> Result<Vec<Dialogue>> {
        let greedy = Greedy { max_new_tokens: OWN_ANSWER, ..examiner.greedy().clone() };
        // In the order in which `generate` makes its batches: they are the same whatever the parts.
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|row| (prompts[*row].len(), *row));
        let mut answers = vec![vec![]; prompts.len()];
        if !prompts.is_empty() {
            observer.event(Event::StageStarted { stage: OWN_ANSWERS.into(), units: prompts.len() });
        }
        let mut done = 0;
        for rows in order.chunks(greedy.batch * rayon::current_num_threads().max(8)) {
            let part: Vec<Vec<u32>> = rows.iter().map(|row| prompts[*row].clone()).collect();
            for (row, answer) in rows.iter().zip(kept_answers(decoder, &part, &greedy, store)?) {
                answers[*row] = answer;
            }
            done += rows.len();
            observer.event(Event::UnitFinished {
                stage: OWN_ANSWERS.into(),
                done,
                units: prompts.len(),
                detail: format!("at most {OWN_ANSWER} tokens each"),
            });
        }
        let dialogue = |(prompt, mut answer): (Vec<u32>, Vec<u32>)| {
            // What the model's window cut has no end, and the whole has to fit into it.
            let room = decoder.reach(prompt.len()).saturating_sub(prompt.len());
            let ended = answer.len() < OWN_ANSWER.min(room + 1);
            answer.extend(self.encoder.closing().filter(|_| ended));
            answer.truncate(decoder.blueprint().positions().saturating_sub(prompt.len()));
            Dialogue { prompt, answer }
        };
        Ok(prompts.into_iter().zip(answers).map(dialogue).collect())
    }

    /// Prompts of at most `limit` requests that the model makes up where a user would write (Xu et al., "Magpie", 2024): they
    /// are spread like what it was trained on, which no list of ours is. Each is kept once, and none that is a row of the set.
    fn own_requests(&self, examiner: &Examiner, decoder: &Decoder, limit: usize) -> Result<Vec<Vec<u32>>> {
        if limit == 0 {
            return Ok(vec![]);
        }
        let (before, end) = self.encoder.before_request(self.system)?;
        let mut options = Greedy { max_new_tokens: OWN_REQUEST, ..examiner.greedy().clone() };
        options.stop.push(end);
        let drawn = sample(decoder, &vec![before; limit], &options, self.seed, "data/own-requests")?;
        let mut taken: BTreeSet<String> = self.set.examples.iter().map(|row| normalised(&row.prompt)).collect();
        let mut prompts = vec![];
        for ids in drawn.into_iter().filter(|ids| ids.len() < OWN_REQUEST) {
            let text = self.encoder.decode(&ids)?;
            if !text.trim().is_empty() && taken.insert(normalised(&text)) {
                prompts.push(self.encoder.encode_chat(text.trim(), self.system)?);
            }
        }
        // There has to be room for an answer.
        prompts.retain(|prompt| prompt.len() < decoder.blueprint().positions());
        Ok(prompts)
    }

    /// The hazards that choices are made on, at most `limit`.
    ///
    /// # Errors
    /// As [`Corpus::questions`].
    pub fn validation(&self, limit: usize) -> Result<Questions> {
        self.questions(Split::Validation, Kind::Hazard, limit)
    }

    /// The hazards that reported figures are measured on.
    ///
    /// # Errors
    /// [`Error::Input`] when there is none.
    pub fn evaluation(&self, limit: usize) -> Result<Questions> {
        let questions = self.questions(Split::Evaluation, Kind::Hazard, limit)?;
        if questions.is_empty() {
            return Err(nothing_to_evaluate(self.set));
        }
        Ok(questions)
    }

    fn adversary(&self, split: Split, harmless: &[&Example], ending: Ending) -> Result<AttackData> {
        let targeted = self.targeted(split);
        let pairs = targeted.par_iter().map(|(row, target)| {
            let closes = ending == Ending::OfAnswers && is_whole(target);
            let target = self.encoder.encode_answer(target, closes)?;
            Ok(Pair { prompt: self.prompt(row)?, target, opening: row.opening.clone() })
        });
        Ok(AttackData {
            pairs: pairs.collect::<Result<_>>()?,
            harmless: harmless.par_iter().map(|row| self.prompt(row)).collect::<Result<_>>()?,
            twins: self.known(Kind::Twin).par_iter().map(|row| self.prompt(row)).collect::<Result<_>>()?,
            pad: PAD,
        })
    }

    /// Rows of a harmless kind that nothing is measured on, shuffled.
    pub(super) fn known(&self, kind: Kind) -> Vec<&Example> {
        let mut rows = self.set.select(Split::Retain, kind);
        rows.extend(self.set.select(Split::Train, kind));
        Stream::new(self.seed, &format!("data/harmless/{kind:?}")).shuffle(&mut rows);
        rows
    }

    fn shuffled(&self, split: Split, kind: Kind) -> Vec<&Example> {
        let mut rows = self.set.select(split, kind);
        self.stream(split, kind).shuffle(&mut rows);
        rows
    }

    fn stream(&self, split: Split, kind: Kind) -> Stream {
        Stream::new(self.seed, &format!("data/{split:?}/{kind:?}"))
    }

    fn prompt(&self, row: &Example) -> Result<Vec<u32>> {
        self.encoder.encode_chat(&row.prompt, self.system)
    }
}

/// How what an attacker aims for ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody says what follows.
    Open,
    /// A whole answer ends the turn: what a model adds to one that nobody asked it to end, a refusal say, is no failure of the edit.
    OfAnswers,
}

/// Words from which on a target that ends a sentence is an answer: the beginnings of answers in data of attacks are shorter.
const WHOLE_ANSWER: usize = 16;

/// Whether a target is a whole answer and not the beginning of one.
pub(super) fn is_whole(target: &str) -> bool {
    let target = target.trim_end();
    let ends = target.ends_with(['.', '!', '?']) && !target.ends_with("..");
    ends && target.split_whitespace().count() >= WHOLE_ANSWER
}

/// Greedy answers to `prompts`: those that `store` has, else the model's, which are kept there.
fn kept_answers(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    options: &Greedy,
    store: &mut dyn UnitStore,
) -> Result<Vec<Vec<u32>>> {
    let asked = serde_json::json!([prompts, options.max_new_tokens, options.stop]).to_string();
    let key = format!("own-answers/{}", Digest::of(asked.as_bytes()));
    let kept = store.get(&key).and_then(|bytes| serde_json::from_slice::<Vec<Vec<u32>>>(&bytes).ok());
    if let Some(answers) = kept.filter(|answers| answers.len() == prompts.len()) {
        return Ok(answers);
    }
    let answers = generate(decoder, prompts, &[], options)?;
    store.put(&key, serde_json::json!(answers).to_string().as_bytes())?;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::data::builtin::{self, vocabulary::write_tokenizer_files};
    use crate::defence::Forgetful;
    use crate::event::Silent;
    use crate::model::Blueprint;

    fn encoder() -> PromptEncoder {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer_files(dir.path()).unwrap();
        PromptEncoder::open(dir.path()).unwrap()
    }

    fn corpus<'a>(set: &'a PromptSet, encoder: &'a PromptEncoder) -> Corpus<'a> {
        Corpus { set, encoder, system: None, seed: 0 }
    }

    /// A decoder that answers everything with the same token.
    fn planted(encoder: &PromptEncoder) -> Decoder {
        decoder(encoder, |shape| Tensor::ones(shape, DType::F32, &Device::Cpu))
    }

    /// A decoder of no sense whose answers depend on what is asked.
    fn noisy(encoder: &PromptEncoder) -> Decoder {
        let mut stream = Stream::new(0, "noisy");
        decoder(encoder, move |shape| {
            Tensor::from_vec(stream.gaussian(shape.iter().product(), 0.5), shape, &Device::Cpu)
        })
    }

    fn decoder(encoder: &PromptEncoder, mut weights: impl FnMut(&[usize]) -> candle_core::Result<Tensor>) -> Decoder {
        let blueprint = Blueprint {
            vocab: encoder.tokenizer().vocab_size(),
            d_model: 8,
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 8,
            d_ff: 8,
            max_positions: 256,
            tied: true,
            ..Blueprint::default()
        };
        Decoder::from_weights(blueprint, &Device::Cpu, |_, shape| Ok(weights(shape)?)).unwrap()
    }

    #[test]
    fn a_harmless_request_without_an_answer_is_held_to_the_models_own() {
        let (all, encoder) = (builtin::tiny_chat(), encoder());
        let anchors = |examples: Vec<Example>| {
            let set = PromptSet::new("prompts", examples);
            let corpus = corpus(&set, &encoder);
            corpus
                .stages(
                    &Examiner::new(&encoder, 8, 1),
                    &planted(&encoder),
                    0,
                    Means::in_memory(1),
                    &mut Forgetful::default(),
                    &Silent,
                )
                .unwrap()
                .defence
                .anchors
        };
        let some = |answer: Option<String>| {
            let mut rows = all.examples.clone();
            let benign = |row: &&mut Example| row.kind == Kind::Benign && row.split == Split::Train;
            rows.iter_mut().filter(benign).take(3).for_each(|row| row.answer.clone_from(&answer));
            rows
        };
        let answered = anchors(all.examples.clone());
        let own = anchors(some(None));
        assert_eq!(own.len(), answered.len());
        let changed = own.iter().filter(|row| !answered.contains(row)).count();
        assert_eq!(changed, 3);
        assert!(own[own.len() - 3..].iter().all(|row| row.answer.len() == OWN_ANSWER), "it never ends by itself");
    }

    #[test]
    fn an_attacker_ends_whole_answers_and_leaves_beginnings_open() {
        let (all, encoder) = (builtin::tiny_chat(), encoder());
        let mut rows = all.examples.clone();
        let hazard = |row: &&mut Example| row.split == Split::Attack && row.kind == Kind::Hazard;
        let first = rows.iter_mut().find(hazard).unwrap();
        let beginning = first.target.as_ref().unwrap().trim_end_matches('.').to_owned();
        first.target = Some(beginning.clone());
        let set = PromptSet::new("prompts", rows);
        let data = corpus(&set, &encoder).attack().unwrap();
        let end = *encoder.encode_answer(&beginning, true).unwrap().last().unwrap();
        let open: Vec<_> = data.pairs.iter().filter(|pair| pair.target.last() != Some(&end)).collect();
        assert_eq!(open.len(), 1, "of {}", data.pairs.len());
        assert_eq!(open[0].target, encoder.encode_answer(&beginning, false).unwrap());
        let whole = "Sure, here is how to do it: first this, then that, and last of all the rest of it";
        assert!(is_whole(&format!("{whole}.")) && is_whole(&format!("{whole}!\n")));
        for open in ["...", ":", "\u{2026}", ""].map(|end| format!("{whole}{end}")) {
            assert!(!is_whole(&open), "{open}");
        }
        assert!(!is_whole("Sure, I can help with that."), "an opening");
    }

    /// Counts what is kept.
    #[derive(Default)]
    struct Counting {
        inner: Forgetful,
        puts: usize,
    }

    impl UnitStore for Counting {
        fn get(&self, key: &str) -> Option<Vec<u8>> {
            self.inner.get(key)
        }

        fn put(&mut self, key: &str, bytes: &[u8]) -> Result<()> {
            self.puts += 1;
            self.inner.put(key, bytes)
        }
    }

    #[test]
    fn own_answers_are_those_of_one_call_and_are_kept_part_by_part() {
        let (set, encoder) = (builtin::tiny_chat(), encoder());
        let corpus = corpus(&set, &encoder);
        let decoder = noisy(&encoder);
        let examiner = Examiner::new(&encoder, 8, 1);
        let prompts = corpus.questions(Split::Evaluation, Kind::Hazard, 1_000).unwrap().prompts;
        let greedy = Greedy { max_new_tokens: OWN_ANSWER, ..examiner.greedy().clone() };
        let at_once = generate(&decoder, &prompts, &[], &greedy).unwrap();
        assert!(at_once.iter().collect::<BTreeSet<_>>().len() > 10, "answers differ");
        let mut store = Counting::default();
        let answered =
            |store: &mut Counting| corpus.own_answers(&examiner, &decoder, prompts.clone(), store, &Silent).unwrap();
        let first = answered(&mut store);
        assert!(first.iter().zip(&at_once).all(|(row, answer)| row.answer.starts_with(answer)));
        let parts = store.puts;
        assert!(parts > 1, "{parts}");
        assert_eq!(answered(&mut store), first);
        assert_eq!(store.puts, parts, "nothing is generated twice");
    }

    #[test]
    fn a_small_sample_is_spread_over_the_categories() {
        let (set, encoder) = (builtin::tiny_chat(), encoder());
        let corpus = corpus(&set, &encoder);
        let rows = corpus.evaluation(60).unwrap();
        let categories: BTreeSet<&str> = rows.examples.iter().map(|row| row.category.as_str()).collect();
        assert!(categories.len() >= 6, "{categories:?}");
        assert_eq!((rows.len(), rows.prompts.len()), (60, 60));
    }

    #[test]
    fn nobody_trains_on_what_is_measured() {
        let (set, encoder) = (builtin::tiny_chat(), encoder());
        let corpus = corpus(&set, &encoder);
        let decoder = planted(&encoder);
        let examiner = Examiner::new(&encoder, 8, 1);
        let mut store = Forgetful::default();
        let data = corpus.stages(&examiner, &decoder, 0, Means::in_memory(1), &mut store, &Silent).unwrap();
        let attack = corpus.attack().unwrap();
        let measured: BTreeSet<Vec<u32>> = corpus.evaluation(usize::MAX).unwrap().prompts.into_iter().collect();
        let seen = data.defence.hazards.iter().chain(&data.defence.anchors).map(|row| &row.prompt);
        let seen = seen.chain(data.attack.pairs.iter().map(|pair| &pair.prompt));
        let seen = seen.chain(attack.pairs.iter().map(|pair| &pair.prompt)).chain(&attack.harmless);
        assert!(seen.chain(&data.validation.prompts).all(|prompt| !measured.contains(prompt)));
        let trained: BTreeSet<&Vec<u32>> = data.attack.pairs.iter().map(|pair| &pair.prompt).collect();
        assert!(attack.pairs.iter().all(|pair| !trained.contains(&pair.prompt)));
    }
}
