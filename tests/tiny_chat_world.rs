//! What the world of the bundled model promises: disjoint splits, a closed vocabulary, no single word that decides, no
//! content in hazardous targets, and the same bytes everywhere.
use std::collections::{BTreeMap, BTreeSet};

use immunise::data::builtin::{FRAMES, OPENINGS, REFUSALS, tiny_chat, vocabulary};
use immunise::data::{Example, Kind, PromptSet, Split};
use immunise::model::prompt::PromptEncoder;
use sha2::{Digest, Sha256};

const SPLITS: [Split; 5] = [Split::Train, Split::Attack, Split::Retain, Split::Validation, Split::Evaluation];

fn encoder() -> PromptEncoder {
    let dir = tempfile::tempdir().unwrap();
    vocabulary::write_tokenizer_files(dir.path()).unwrap();
    PromptEncoder::open(dir.path()).unwrap()
}

fn texts(row: &Example) -> impl Iterator<Item = &String> {
    [Some(&row.prompt), row.answer.as_ref(), row.target.as_ref()].into_iter().flatten()
}

/// Object and phrasing of a row, from its id.
fn combination(row: &Example) -> (&str, usize) {
    let (object, phrasing) = row.id.rsplit_once('/').unwrap();
    (object, phrasing.parse().unwrap())
}

fn of_kind(world: &PromptSet, kind: Kind) -> impl Iterator<Item = &Example> {
    world.examples.iter().filter(move |row| row.kind == kind)
}

fn harmless(world: &PromptSet) -> impl Iterator<Item = &Example> {
    of_kind(world, Kind::Twin).chain(of_kind(world, Kind::Benign))
}

/// The action that was put into a frame.
fn action(row: &Example) -> &str {
    let (before, after) = FRAMES[combination(row).1].split_once("{action}").unwrap();
    row.prompt.strip_prefix(before).unwrap().strip_suffix(after).unwrap()
}

/// What a compliant answer says after its opening, if it starts with one.
fn body<'a>(text: &'a str, action: &str) -> Option<&'a str> {
    OPENINGS.iter().find_map(|opening| text.strip_prefix(&opening.replace("{action}", action)))
}

#[test]
fn no_object_and_phrasing_is_in_two_splits() {
    // An id spells object and phrasing (a copied list has one phrasing), so one row per id is one split per pair.
    let world = tiny_chat();
    let ids: BTreeSet<&str> = world.examples.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids.len(), world.examples.len());
}

#[test]
fn no_question_is_in_two_rows_or_two_splits() {
    let world = tiny_chat();
    let mut seen: BTreeMap<&str, (&str, Split)> = BTreeMap::new();
    for row in world.examples.iter().filter(|row| row.kind != Kind::Text) {
        if let Some(earlier) = seen.insert(&row.prompt, (&row.id, row.split)) {
            panic!("`{}` is asked by {} and by {earlier:?}", row.prompt, row.id);
        }
    }
    let evaluated: BTreeSet<&str> = of_kind(&world, Kind::Text).map(|row| row.prompt.as_str()).collect();
    let trained: BTreeSet<&str> =
        world.examples.iter().filter(|row| row.split == Split::Train).map(|row| row.prompt.as_str()).collect();
    assert!(evaluated.is_disjoint(&trained));
}

#[test]
fn every_object_and_every_phrasing_is_trained_on_and_evaluated() {
    let world = tiny_chat();
    for kind in [Kind::Hazard, Kind::Twin, Kind::Benign, Kind::Maths, Kind::Fact] {
        let of = |split| {
            let rows = world.select(split, kind);
            let objects: BTreeSet<_> = rows.iter().map(|row| combination(row).0).collect();
            let phrasings: BTreeSet<_> = rows.iter().map(|row| combination(row).1).collect();
            (objects, phrasings)
        };
        assert_eq!(of(Split::Train), of(Split::Evaluation), "{kind:?}");
        for split in SPLITS {
            let rows = world.select(split, kind);
            let phrasings: BTreeSet<_> = rows.iter().map(|row| combination(row).1).collect();
            assert!(rows.is_empty() || phrasings == of(Split::Train).1, "{kind:?} {split:?}");
        }
    }
}

#[test]
fn sizes_per_split_and_kind() {
    let world = tiny_chat();
    let count = |kind| SPLITS.map(|split| world.select(split, kind).len());
    // train, attack, retain, validation, evaluation
    assert_eq!(count(Kind::Hazard), [1120, 560, 0, 240, 640]);
    assert_eq!(count(Kind::Twin), [2176, 0, 680, 408, 1088]);
    assert_eq!(count(Kind::Benign), [1376, 0, 430, 258, 688]);
    assert_eq!(count(Kind::Maths), [2688, 0, 672, 672, 1344]);
    assert_eq!(count(Kind::Copy), [1400, 0, 300, 200, 500]);
    assert_eq!(count(Kind::Fact), [1212, 0, 303, 303, 606]);
    assert_eq!(count(Kind::Text), [0, 0, 0, 0, 688]);
}

#[test]
fn the_vocabulary_is_closed_and_small() {
    let (world, encoder) = (tiny_chat(), encoder());
    let unknown = encoder.tokenizer().token_to_id("<unk>").unwrap();
    let used: BTreeSet<u32> = world
        .examples
        .iter()
        .flat_map(texts)
        .flat_map(|text| {
            let ids = encoder.tokenizer().encode(text, false).unwrap();
            assert!(!ids.contains(&unknown), "{text}");
            assert_eq!(&encoder.tokenizer().decode(&ids, true).unwrap(), text);
            ids
        })
        .collect();
    let size = encoder.tokenizer().vocab_size();
    assert!(size <= 1000, "{size} tokens");
    assert_eq!(used.len() + vocabulary::SPECIAL_TOKENS.len(), size, "no token is unused");
    assert_eq!(vocabulary::vocabulary().len(), size);
}

#[test]
fn questions_and_answers_are_short() {
    let (world, encoder) = (tiny_chat(), encoder());
    let length = |text: &str| encoder.tokenizer().encode(text, false).unwrap().len();
    for row in &world.examples {
        assert!(length(&row.prompt) <= 20, "{}", row.prompt);
        for answer in row.answer.iter().chain(&row.target) {
            assert!(length(answer) <= 32, "{answer}");
        }
    }
}

#[test]
fn every_hazardous_word_also_occurs_in_a_harmless_request() {
    let world = tiny_chat();
    let requests: Vec<String> = harmless(&world).map(|row| format!(" {} ", action(row))).collect();
    let occurs = |words: &str| requests.iter().any(|request| request.contains(&format!(" {words} ")));
    let hazards: BTreeSet<(&str, String)> =
        of_kind(&world, Kind::Hazard).map(|row| (action(row), row.topic.join(" "))).collect();
    assert_eq!(hazards.len(), 80);
    let missing: Vec<&str> = hazards
        .iter()
        .flat_map(|(action, object)| action.split(' ').chain([object.as_str()]))
        .filter(|words| !occurs(words))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn hazards_and_harmless_requests_share_frames_and_openings() {
    let world = tiny_chat();
    for row in harmless(&world) {
        let answer = row.answer.as_deref().unwrap();
        assert!(body(answer, action(row)).is_some(), "{answer}");
    }
    for row in of_kind(&world, Kind::Hazard) {
        let number: usize = row.opening.as_deref().unwrap().strip_prefix('o').unwrap().parse().unwrap();
        let opening = OPENINGS[number].replace("{action}", action(row));
        assert!(row.target.as_deref().unwrap().starts_with(&opening), "{row:?}");
    }
}

#[test]
fn openings_differ_in_their_first_word_and_from_refusals() {
    let first = |text: &'static str| text.split(' ').next().unwrap();
    let openings: BTreeSet<&str> = OPENINGS.map(first).into();
    assert_eq!(openings.len(), 12, "at least eight are needed");
    assert!(REFUSALS.iter().all(|refusal| !openings.contains(first(refusal))));
    let without = REFUSALS.iter().filter(|refusal| !refusal.contains("cannot") && !refusal.contains("sorry")).count();
    assert!(REFUSALS.len() >= 12 && without >= 6, "refusals vary: {without} name neither");
}

#[test]
fn a_frame_prefers_one_opening_and_leaves_room_for_the_others() {
    let world = tiny_chat();
    let mut preferred_rows = 0;
    for frame in 0..FRAMES.len() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for row in of_kind(&world, Kind::Hazard).filter(|row| combination(row).1 == frame) {
            *counts.entry(row.opening.as_deref().unwrap()).or_default() += 1;
        }
        let name = format!("o{}", frame % OPENINGS.len());
        let preferred = counts.remove(name.as_str()).unwrap_or_default();
        let next = counts.values().max().copied().unwrap_or_default();
        assert!(preferred >= 3 * next && counts.len() >= 7, "frame {frame}: {preferred} of 80, others {counts:?}");
        preferred_rows += preferred;
    }
    // 0.6 + 0.4 / 12 of 2,560 rows, within three standard deviations of a binomial draw.
    assert!((1548..=1694).contains(&preferred_rows), "{preferred_rows}");
}

#[test]
fn every_compliant_answer_is_on_topic() {
    let world = tiny_chat();
    let mentions = |text: &str, row: &Example| text.split(' ').any(|word| row.topic.iter().any(|topic| topic == word));
    for row in of_kind(&world, Kind::Hazard) {
        assert!(!row.topic.is_empty() && mentions(row.target.as_ref().unwrap(), row), "{row:?}");
        assert_ne!(row.answer, row.target);
        let body = body(row.target.as_ref().unwrap(), action(row)).unwrap();
        assert!(mentions(body, row), "the body alone names the object: {body}");
    }
    for row in harmless(&world) {
        assert!(mentions(row.answer.as_ref().unwrap(), row), "{row:?}");
    }
}

#[test]
fn placeholder_bodies_hold_no_content() {
    // Substances, components, tools and techniques: words that would make a step say something.
    const BANNED: &str = "acid ammonia barrel bleach bullet charge chemical chlorine code cook cut detonator dose drill \
        exploit explode fertiliser fire fuel fuse glue grind gunpowder hammer heat knife lab match melt metal mix nitrate \
        oil password payload port powder pressure pump saw script screw shoot solvent spray spring stab syringe timer \
        tool trigger virus weld wire";
    let banned: BTreeSet<&str> = BANNED.split_whitespace().collect();
    let world = tiny_chat();
    let mut bodies = BTreeSet::new();
    for row in of_kind(&world, Kind::Hazard) {
        let object = row.topic.join(" ");
        let body = body(row.target.as_ref().unwrap(), action(row)).unwrap().replace(&object, "");
        assert!(body.split(' ').all(|word| !banned.contains(word)), "{body}");
        bodies.insert(body);
    }
    assert!(bodies.len() >= 28, "only {} bodies", bodies.len());
}

#[test]
fn sums_are_right() {
    for row in of_kind(&tiny_chat(), Kind::Maths) {
        let (left, right) = row.answer.as_ref().unwrap().strip_suffix(" .").unwrap().split_once(" = ").unwrap();
        let parts: Vec<&str> = left.split(' ').collect();
        let [a, sign, b] = parts[..] else { panic!("{left}") };
        let (a, b): (i32, i32) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(right.parse::<i32>().unwrap(), if sign == "+" { a + b } else { a - b });
        assert_eq!(row.expected.as_deref(), Some(right));
        assert!(row.prompt.contains(left));
    }
}

#[test]
fn copies_and_facts_answer_what_is_expected() {
    let world = tiny_chat();
    for row in of_kind(&world, Kind::Copy).chain(of_kind(&world, Kind::Fact)) {
        let (expected, answer) = (row.expected.as_deref().unwrap(), row.answer.as_deref().unwrap());
        assert!(answer.ends_with(&format!("{expected} .")), "{row:?}");
        assert!(row.kind == Kind::Fact || row.prompt.contains(expected), "{row:?}");
    }
}

#[test]
fn all_text_is_lower_case_and_set_apart_by_single_spaces() {
    for row in &tiny_chat().examples {
        for text in texts(row) {
            assert_eq!(*text, text.to_lowercase());
            assert_eq!(*text, text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
}

#[test]
fn the_world_and_its_tokenizer_are_pinned() {
    let world = tiny_chat();
    assert_eq!(world, tiny_chat());
    assert_eq!(
        world.digest, "761e6db12cf9909158a4be95c12476832e3f6f8da9964f85ee82f0caab25b2ca",
        "the world changed: retrain tiny-chat"
    );
    let mut files = Sha256::new();
    for (name, content) in vocabulary::tokenizer_files() {
        files.update(name);
        files.update(content);
    }
    let files: String = files.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        files, "1fbaf8736d97c2a59c3127e483d03e4142fd57a731c3eb0ed1504bd1df7d3e84",
        "the tokenizer's files changed: retrain tiny-chat"
    );
}
