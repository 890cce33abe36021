//! From the hand-written lists of one language to rows: every object stays in one split, in several frames.
//!
//! A split never shares an object with another one of its language, which is stronger than not sharing a combination of
//! object and frame: a figure on evaluation rows is about requests that nothing was fitted on in any wording.

use std::collections::BTreeMap;

use immunise::data::{Example, Kind, Split};
use serde::Deserialize;

use super::maths;

/// Splits of a category's objects by their number: two to train on, one to attack with, one to choose by, two to measure on.
const OF_HAZARD: [Split; 6] =
    [Split::Train, Split::Train, Split::Attack, Split::Validation, Split::Evaluation, Split::Evaluation];
const OF_TWIN: [Split; 6] =
    [Split::Retain, Split::Retain, Split::Retain, Split::Validation, Split::Evaluation, Split::Evaluation];
const OF_BENIGN: [Split; 6] =
    [Split::Retain, Split::Attack, Split::Evaluation, Split::Train, Split::Validation, Split::Evaluation];
/// Frames that each twin is asked in.
const TWIN_FRAMES: usize = 4;
/// Frames that each everyday request is asked in.
const REQUEST_FRAMES: usize = 3;

/// Long words without a topic, of all languages.
const EMPTY_WORDS: [&str; 34] = [
    "about", "before", "every", "from", "into", "more", "over", "that", "under", "until", "when", "with", "without",
    "avant", "avec", "chez", "dans", "depuis", "devant", "sans", "sous", "antes", "ante", "contra", "delante", "desde",
    "durante", "enquanto", "hasta", "mientras", "para", "pendant", "perante", "sobre",
];

/// What one language's list holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub language: String,
    frames: Vec<String>,
    openings: Vec<String>,
    #[serde(default)]
    things: Vec<String>,
    #[serde(default)]
    thing_openings: Vec<String>,
    refusals: Vec<String>,
    hazards: BTreeMap<String, Vec<String>>,
    twins: Vec<String>,
    benign: Benign,
    pub maths: Vec<(String, String, maths::Operation)>,
    pub names: Vec<String>,
    text: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Benign {
    capitals: Facts,
    opposites: Facts,
    letters: Letters,
    members: Members,
    requests: Vec<String>,
}

/// Questions with one answer, in the order of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    frames: Vec<String>,
    answer: String,
    pairs: serde_yaml::Mapping,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Letters {
    frames: Vec<String>,
    answer: String,
    words: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    frames: Vec<String>,
    answer: String,
    groups: serde_yaml::Mapping,
}

/// One line of a list: the object, its topic where it is written down, and an answer where there is one.
struct Entry<'a> {
    object: &'a str,
    topic: Vec<String>,
    answer: Option<&'a str>,
}

impl List {
    /// Reads a list.
    ///
    /// # Panics
    /// When it is no list: this program's own data.
    pub fn parse(text: &str) -> Self {
        serde_yaml::from_str(text).expect("a list of objects and frames")
    }

    /// Hazards of this language.
    pub fn hazards(&self) -> Vec<Example> {
        let mut rows = vec![];
        for (place, (category, objects)) in self.hazards.iter().enumerate() {
            for (number, line) in objects.iter().enumerate() {
                let split = OF_HAZARD[number % OF_HAZARD.len()];
                let entry = self.entry(line);
                for frame in 0..if split == Split::Train { 3 } else { 2 } {
                    let at = place + number + frame;
                    let opening = opening_number(split, at, rows.len());
                    rows.push(Example {
                        id: format!("hazard-{}-{category}-{}{}", self.language, number + 1, letter(frame)),
                        category: category.clone(),
                        answer: Some(self.refusals[(place * 5 + number * 3 + frame) % self.refusals.len()].clone()),
                        target: Some(fill(&self.openings[opening], entry.object)),
                        topic: entry.topic.clone(),
                        opening: Some(format!("o{opening}")),
                        ..self.row(Kind::Hazard, split, fill(&self.frames[at % self.frames.len()], entry.object))
                    });
                }
            }
        }
        rows
    }

    /// The hand-written English hazards in other frames; each stays in its split.
    pub fn rephrased(&self, written: &[Example]) -> Vec<Example> {
        let mut rows = vec![];
        for (number, row) in written.iter().enumerate() {
            let (object, is_thing) = object_of(&row.prompt);
            let (frames, openings) =
                if is_thing { (&self.things, &self.thing_openings) } else { (&self.frames, &self.openings) };
            // 98 to choose on, of which the families' recipes ask for 96: not all have a third frame, as there are more twins.
            let validation = if number % 5 == 4 { 3 } else { 2 };
            for frame in 0..if row.split == Split::Validation { validation } else { 1 } {
                let opening = opening_number(row.split, number + frame, number);
                rows.push(Example {
                    id: format!("{}{}", row.id, letter(frame + 1)),
                    prompt: fill(&frames[(number + frame) % frames.len()], &object),
                    target: Some(fill(&openings[opening], &addressed(&object))),
                    opening: Some(format!("o{opening}")),
                    ..row.clone()
                });
            }
        }
        rows
    }

    /// Hazardous words, harmless meaning, in the frames of the hazards.
    pub fn twins(&self) -> Vec<Example> {
        let mut rows = vec![];
        for (number, line) in self.twins.iter().enumerate() {
            let entry = self.entry(line);
            for frame in 0..TWIN_FRAMES {
                let at = (number + frame) % self.frames.len();
                rows.push(Example {
                    id: format!("twin-{}-{:02}{}", self.language, number + 1, letter(frame)),
                    answer: entry.answer.map(str::to_owned),
                    topic: entry.topic.clone(),
                    ..self.row(Kind::Twin, OF_TWIN[number % 6], fill(&self.frames[at], entry.object))
                });
            }
        }
        rows
    }

    /// Ordinary requests and small facts.
    pub fn benign(&self) -> Vec<Example> {
        let mut rows = vec![];
        let mut add = |name: &str, number: usize, prompts: Vec<String>, answer: String, topic: Vec<String>| {
            for (frame, prompt) in prompts.into_iter().enumerate() {
                rows.push(Example {
                    id: format!("benign-{}-{name}-{:02}{}", self.language, number + 1, letter(frame)),
                    answer: Some(answer.clone()),
                    topic: topic.clone(),
                    ..self.row(Kind::Benign, OF_BENIGN[number % 6], prompt)
                });
            }
        };
        for (name, facts) in [("capital", &self.benign.capitals), ("opposite", &self.benign.opposites)] {
            for (number, (of, is)) in facts.pairs.iter().enumerate() {
                let (of, is) = (text(of), text(is));
                let prompts = facts.frames.iter().map(|frame| fill(frame, of)).collect();
                let mut topic = self.topic(of, false);
                topic.push(is.to_lowercase());
                add(name, number, prompts, fill(&fill(&facts.answer, of), is), topic);
            }
        }
        let Letters { frames, answer, words } = &self.benign.letters;
        for (number, word) in words.iter().enumerate() {
            let count = word.chars().count().to_string();
            let prompts = frames.iter().map(|frame| fill(frame, word)).collect();
            add("letters", number, prompts, fill(&fill(answer, word), &count), vec![word.to_lowercase()]);
        }
        let Members { frames, answer, groups } = &self.benign.members;
        for (number, (group, members)) in groups.iter().enumerate() {
            let members: Vec<&str> = members.as_sequence().expect("a list of members").iter().map(text).collect();
            let prompts = frames.iter().map(|frame| fill(frame, text(group))).collect();
            let answer = members.iter().fold(fill(answer, text(group)), |line, member| fill(&line, member));
            let topic = [text(group)].into_iter().chain(members).map(str::to_lowercase).collect();
            add("members", number, prompts, answer, topic);
        }
        for (number, line) in self.benign.requests.iter().enumerate() {
            let entry = self.entry(line);
            let frame = |at: usize| fill(&self.frames[(number + at) % self.frames.len()], entry.object);
            let prompts = (0..REQUEST_FRAMES).map(frame).collect();
            add("request", number, prompts, entry.answer.unwrap_or_default().to_owned(), entry.topic);
        }
        rows
    }

    /// Paragraphs for perplexity.
    pub fn text(&self) -> Vec<Example> {
        let splits = [Split::Retain, Split::Validation, Split::Evaluation, Split::Evaluation];
        let row = |(number, paragraph): (usize, &String)| Example {
            id: format!("text-{}-{}", self.language, number + 1),
            ..self.row(Kind::Text, splits[number % splits.len()], paragraph.clone())
        };
        self.text.iter().enumerate().map(row).collect()
    }

    /// A row of this language without anything but its prompt.
    pub fn row(&self, kind: Kind, split: Split, prompt: String) -> Example {
        Example {
            id: String::new(),
            kind,
            split,
            language: self.language.clone(),
            category: String::new(),
            prompt,
            answer: None,
            target: None,
            topic: vec![],
            expected: None,
            opening: None,
        }
    }

    fn entry<'a>(&self, line: &'a str) -> Entry<'a> {
        let (head, answer) = line.split_once(" | ").map_or((line, None), |(head, answer)| (head, Some(answer)));
        let (object, topic) = head.split_once(" # ").map_or((head, None), |(object, topic)| (object, Some(topic)));
        let mut topic: Vec<String> = match topic {
            Some(words) => words.split_whitespace().map(str::to_owned).collect(),
            None => self.topic(object, true),
        };
        // What the answer itself is about is on topic too.
        if let Some(answer) = answer.filter(|_| self.language != "zh") {
            topic.extend(self.topic(answer, false).into_iter().take(1));
        }
        Entry { object, topic, answer }
    }

    /// The words that say what an object is about: German nouns by their capitals, elsewhere the longest words after the
    /// leading verb.
    fn topic(&self, object: &str, has_verb: bool) -> Vec<String> {
        let skipped = usize::from(has_verb && self.language != "de");
        let mut words: Vec<&str> = object
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .skip(skipped)
            .filter(|word| self.language == "zh" || word.chars().count() > 3)
            .filter(|word| !EMPTY_WORDS.contains(word))
            .filter(|word| self.language != "de" || word.starts_with(char::is_uppercase))
            .collect();
        if words.is_empty() {
            words.extend(object.split_whitespace().last());
        }
        words.sort_by_key(|word| std::cmp::Reverse(word.chars().count()));
        words.truncate(3);
        words.into_iter().map(str::to_lowercase).collect()
    }
}

/// Training aims for the first six openings, the attacker's own rows for the last six, the others for all.
fn opening_number(split: Split, at: usize, row: usize) -> usize {
    match split {
        Split::Train => at % 6,
        Split::Attack => 6 + at % 6,
        _ => row % 12,
    }
}

/// The deed or thing that an English prompt asks for, and which of the two it is.
fn object_of(prompt: &str) -> (String, bool) {
    const DEEDS: [&str; 8] = [
        " how to ",
        "How do I ",
        "How can I ",
        "easiest way to ",
        "best way to ",
        "I need a plan to ",
        "I want to ",
        "Help me ",
    ];
    const MORE: [&str; 2] = ["I am going to ", "List the steps to "];
    const THINGS: [&str; 7] =
        ["Could you put together ", "Give me ", "Can you make ", "Create ", "I need ", "Please write ", "Write "];
    let body = prompt.trim_end_matches(['.', '?']);
    let body = [". How do I go about it", ". What do I need to know", ". What should I do", " for me"]
        .iter()
        .fold(body, |body, tail| body.strip_suffix(tail).unwrap_or(body));
    let after = |lead: &&str| body.split_once(*lead).map(|(_, object)| object.to_owned());
    if let Some(deed) = DEEDS.iter().chain(&MORE).find_map(after) {
        return (deed.split(". ").next().unwrap_or(&deed).to_owned(), false);
    }
    let thing = THINGS.iter().find_map(|lead| body.strip_prefix(lead)).unwrap_or(body);
    (thing.to_owned(), true)
}

/// An English object as the other person says it: `my` becomes `your`.
fn addressed(object: &str) -> String {
    let word = |word: &str| match word {
        "my" => "your".to_owned(),
        "I" | "me" => "you".to_owned(),
        "mine" => "yours".to_owned(),
        "myself" => "yourself".to_owned(),
        "I'm" => "you're".to_owned(),
        "am" => "are".to_owned(),
        other => other.to_owned(),
    };
    object.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn fill(frame: &str, object: &str) -> String {
    frame.replacen("{}", object, 1)
}

fn letter(number: usize) -> char {
    char::from(b'a' + u8::try_from(number).expect("a handful of frames"))
}

fn text(value: &serde_yaml::Value) -> &str {
    value.as_str().expect("a string in a list")
}
