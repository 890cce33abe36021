//! What the built-in prompt set promises: its sizes, that its splits share nothing, and that its sums are right.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use immunise::data::{Example, Kind, PromptSet, Split};
use immunise::judge::{Composite, Judge as _, refused};

#[path = "../examples/compose_prompts/all.rs"]
mod all;
#[path = "../examples/compose_prompts/compose.rs"]
mod compose;
#[path = "../examples/compose_prompts/maths.rs"]
mod maths;

const LANGUAGES: [&str; 6] = ["de", "en", "es", "fr", "pt", "zh"];

/// Words that a row may not share in a row with a public set.
const NGRAM: usize = 8;

fn built_in() -> PromptSet {
    PromptSet::builtin("prompts").expect("the set in the binary is valid")
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

#[test]
fn the_composed_files_are_what_the_lists_give() {
    for (file, text) in all::files().expect("the lists are valid") {
        let path = Path::new("fixtures/prompts").join(file);
        let kept = std::fs::read_to_string(&path).expect("a committed file");
        assert!(kept == text, "{file} differs: run `cargo run --example compose_prompts`");
    }
}

#[test]
fn there_are_enough_rows_of_every_kind_and_language() {
    let set = built_in();
    let count = |split, kind| set.select(split, kind).len();
    let hazards = [Split::Train, Split::Validation, Split::Evaluation].map(|split| count(split, Kind::Hazard));
    assert!(hazards[0] >= 600 && hazards[1] >= 200 && hazards[2] >= 400, "{hazards:?}");
    let twins = [Split::Retain, Split::Validation, Split::Evaluation].map(|split| count(split, Kind::Twin));
    assert!(twins.iter().zip(hazards).all(|(twins, hazards)| *twins >= hazards), "{twins:?} twins of {hazards:?}");
    let all = |kind| set.examples.iter().filter(|row| row.kind == kind).count();
    assert!(all(Kind::Benign) >= 1_000 && all(Kind::Maths) >= 1_000, "{} and {}", all(Kind::Benign), all(Kind::Maths));
    let categories: BTreeSet<&str> =
        set.select(Split::Train, Kind::Hazard).iter().map(|row| row.category.as_str()).collect();
    assert!(categories.len() >= 10, "{categories:?}");
    for kind in [Kind::Hazard, Kind::Twin, Kind::Benign, Kind::Maths, Kind::Text] {
        let rows = set.examples.iter().filter(|row| row.kind == kind);
        let languages: BTreeSet<&str> = rows.map(|row| row.language.as_str()).collect();
        assert_eq!(languages, BTreeSet::from(LANGUAGES), "{kind:?}");
    }
    for language in LANGUAGES {
        for split in [Split::Train, Split::Attack, Split::Validation, Split::Evaluation] {
            let rows = set.select(split, Kind::Hazard);
            let categories: BTreeSet<&str> =
                rows.iter().filter(|row| row.language == language).map(|row| row.category.as_str()).collect();
            assert!(categories.len() >= 10, "{language} {split:?}: {categories:?}");
        }
    }
}

#[test]
fn no_request_occurs_twice() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for row in built_in().examples {
        let key = words(&row.prompt).join(" ");
        assert!(!key.is_empty(), "{}", row.id);
        if let Some(other) = seen.insert(key, row.id.clone()) {
            panic!("{} repeats {other}", row.id);
        }
    }
}

/// What is asked for, without the frame: of the ids of composed rows all but the frame's letter, of hand-written rows all.
fn object(row: &Example) -> &str {
    row.id.strip_suffix(['a', 'b', 'c', 'd']).unwrap_or(&row.id)
}

#[test]
fn splits_share_no_object_in_any_frame() {
    let set = built_in();
    let mut splits: BTreeMap<&str, Split> = BTreeMap::new();
    let mut targets: BTreeMap<String, (&str, Split)> = BTreeMap::new();
    for row in &set.examples {
        let split = *splits.entry(object(row)).or_insert(row.split);
        assert_eq!(split, row.split, "{}", row.id);
        // The end of a target is what was asked for, in whatever words it was asked.
        if let Some(target) = &row.target {
            let (id, split) = *targets.entry(target.clone()).or_insert((&row.id, row.split));
            assert_eq!(split, row.split, "{} and {id}", row.id);
        }
    }
}

#[test]
fn hazards_are_refused_and_their_targets_only_restate_the_request() {
    for row in built_in().examples.iter().filter(|row| row.kind == Kind::Hazard) {
        let (answer, target) = (row.answer.as_deref().unwrap_or_default(), row.target.as_deref().unwrap_or_default());
        assert!(refused(answer), "{}: {answer}", row.id);
        let judged = Composite.judge(row, target);
        assert!(!judged.refused && judged.on_topic, "{}: {target}", row.id);
        assert!(target.ends_with([':', '：']), "{}: nothing follows the opening: {target}", row.id);
        // No more than the request and a frame: an answer would be longer.
        let length = |text: &str| text.chars().count();
        assert!(length(target) <= length(&row.prompt) + 60, "{}: {target}", row.id);
        let number: usize = row.opening.as_deref().and_then(|o| o[1..].parse().ok()).expect("a numbered opening");
        match row.split {
            Split::Train => assert!(number < 6, "{}", row.id),
            Split::Attack => assert!(number >= 6, "{}", row.id),
            _ => {}
        }
    }
}

#[test]
fn harmless_answers_are_neither_refusals_nor_beside_the_point() {
    for row in built_in().examples.iter().filter(|row| matches!(row.kind, Kind::Benign | Kind::Twin)) {
        if let Some(answer) = &row.answer {
            assert!(!refused(answer), "{}: {answer}", row.id);
        }
    }
}

/// The value of `a + b * c / d`, read left to right with products first.
fn value(expression: &str) -> Option<f64> {
    let mut sum = 0.0;
    let mut product: Option<f64> = None;
    let (mut sign, mut operator) = (1.0, "*");
    for token in expression.split_whitespace() {
        match token {
            "+" | "-" => {
                sum += sign * product.take()?;
                sign = if token == "+" { 1.0 } else { -1.0 };
                operator = "*";
            }
            "*" | "/" => operator = token,
            number => {
                let number: f64 = number.parse().ok()?;
                product = Some(match (product, operator) {
                    (None, _) => number,
                    (Some(before), "/") => before / number,
                    (Some(before), _) => before * number,
                });
            }
        }
    }
    Some(sum + sign * product?)
}

#[test]
fn every_sum_in_the_maths_rows_is_right_and_ends_in_the_expected_number() {
    let equation = regex::Regex::new(r"(\d+(?: [-+*/] \d+)+) = (\d+)").expect("a pattern");
    let mut checked = 0;
    for row in built_in().examples.iter().filter(|row| row.kind == Kind::Maths) {
        let answer = row.answer.as_deref().expect("a worked answer");
        for found in equation.captures_iter(answer) {
            assert_eq!(value(&found[1]), found[2].parse().ok(), "{}: {answer}", row.id);
            checked += 1;
        }
        assert!(immunise::utility::exact::right(row, answer), "{}: {answer}", row.id);
    }
    assert!(checked >= 1_000, "{checked} equations");
}

/// All text files below the folder of public sets.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a readable folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
#[ignore = "needs IMMUNISE_DATA"]
fn no_eight_words_in_a_row_are_from_a_public_set() {
    let folder = std::env::var_os("IMMUNISE_DATA").expect("IMMUNISE_DATA names the folder of public sets");
    let mut public: HashSet<Vec<String>> = HashSet::new();
    for path in files(Path::new(&folder)) {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ["csv", "json", "jsonl", "txt", "raw"].contains(&ending) {
            let text = String::from_utf8_lossy(&std::fs::read(&path).expect("a readable file")).into_owned();
            public.extend(words(&text).windows(NGRAM).map(<[String]>::to_vec));
        }
    }
    assert!(public.len() > 100_000, "{} word sequences: is this the folder of public sets?", public.len());
    let set = built_in();
    let shared: Vec<&str> = set
        .examples
        .iter()
        .filter(|row| words(&row.prompt).windows(NGRAM).any(|run| public.contains(run)))
        .map(|row| row.id.as_str())
        .collect();
    println!("{} of {} rows share {NGRAM} words in a row: {shared:?}", shared.len(), set.examples.len());
    // Ways of asking and two everyday questions, all hand-written before the sets were looked at.
    let known = ["hazard-forgery-10", "hazard-intrusion-01", "hazard-malware-20", "benign-016", "benign-101"];
    assert!(shared.iter().all(|id| known.contains(id)), "{shared:?}");
}
