//! Prompt sets: what one row is, how rows are grouped into splits, and the digest that pins a set.
//!
//! A set is data that somebody can disagree with, so it is identified by the SHA-256 of its canonical JSON lines and never
//! by its name alone. This module owns the rows and their digest; reading files is [`load`], and generating the world of
//! the bundled model is [`builtin`]. It refuses to know about tokens, models or judges.

pub mod builtin;
pub mod load;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What a row asks for, which decides how its answer is judged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A request that an aligned model refuses.
    Hazard,
    /// A harmless request in hazardous words.
    Twin,
    /// An ordinary harmless request.
    Benign,
    /// Arithmetic with one right answer.
    Maths,
    /// Words to be repeated.
    Copy,
    /// A small fact with one right answer.
    Fact,
    /// Plain text, for perplexity.
    Text,
}

/// Who may see a row: no stage measures on rows that an earlier stage was fitted on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The model and its defence are trained on these.
    Train,
    /// The attacker fits its interventions on these.
    Attack,
    /// Harmless rows on which a defence must leave the model as it was.
    Retain,
    /// Choices (thresholds, stopping) are made on these.
    Validation,
    /// Reported numbers are measured on these, once.
    Evaluation,
}

impl Split {
    /// Whether answers to these rows are judged.
    #[must_use]
    pub const fn is_judged(self) -> bool {
        matches!(self, Self::Validation | Self::Evaluation)
    }
}

/// One row of a prompt set; one line of its JSON lines.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Stable name of the row, unique within its set.
    pub id: String,
    /// What the row asks for.
    pub kind: Kind,
    /// Who may see the row.
    pub split: Split,
    /// Language of the prompt, as in BCP 47 (`en`, `de`, `zh`); English unless it is given.
    #[serde(default = "english", skip_serializing_if = "is_english")]
    pub language: String,
    /// Hazard category, or the empty string.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub category: String,
    /// The user's text.
    pub prompt: String,
    /// What an aligned model answers (a refusal for hazards), for training and anchors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Hazards only: the affirmative answer or opening that an attacker aims for, with placeholder content only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Content words in lower case: an answer that is on topic mentions at least one. Without any, the prompt's own words count, which
    /// takes a script with spaces between them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topic: Vec<String>,
    /// Maths, facts and copying: the exact answer to match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Hazards of the built-in world: name of the compliance opening used in `target` (`o3`), so that a defence and an
    /// attack can use disjoint ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<String>,
}

impl Example {
    /// What the row asks for, whatever its words: rows for which this is the same are phrasings of one request. Those of one kind
    /// and topic are; a row without a topic is a request of its own, and so is a translation.
    #[must_use]
    pub fn request(&self) -> String {
        let mut topic: Vec<&str> = self.topic.iter().map(String::as_str).collect();
        topic.sort_unstable();
        match topic.as_slice() {
            [] => format!("row/{}", self.id),
            words => format!("{:?}/{}", self.kind, words.join(" ")),
        }
    }
}

/// The language of a row that names none.
#[must_use]
pub fn english() -> String {
    "en".to_owned()
}

fn is_english(language: &str) -> bool {
    language == "en"
}

/// A named list of rows, pinned by its digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PromptSet {
    /// What reports call the set.
    pub name: String,
    /// SHA-256, in lower-case hex, of [`PromptSet::to_jsonl`].
    pub digest: String,
    /// The rows, in the order of their file.
    pub examples: Vec<Example>,
}

impl PromptSet {
    /// A set of `examples`, with the digest computed from them.
    #[must_use]
    pub fn new(name: impl Into<String>, examples: Vec<Example>) -> Self {
        let digest = Sha256::digest(canonical(&examples).as_bytes());
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { name: name.into(), digest, examples }
    }

    /// The rows of one split and kind, in order.
    #[must_use]
    pub fn select(&self, split: Split, kind: Kind) -> Vec<&Example> {
        self.examples.iter().filter(|example| example.split == split && example.kind == kind).collect()
    }

    /// The rows in one of `languages`, as a set of its own digest; all of them where none is named.
    ///
    /// # Errors
    /// [`Error::Input`] naming a language that no row is in.
    pub fn in_languages(self, languages: &[String]) -> Result<Self> {
        if languages.is_empty() {
            return Ok(self);
        }
        let has = |language: &String| self.examples.iter().any(|row| row.language == *language);
        if let Some(missing) = languages.iter().find(|language| !has(language)) {
            let mut known: Vec<&str> = self.examples.iter().map(|row| row.language.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::input(&self.name, format!("expected rows in language `{missing}`, got none"))
                .hint(format!("its languages are {}", known.join(", "))));
        }
        let rows = self.examples.into_iter().filter(|row| languages.contains(&row.language)).collect();
        Ok(Self::new(self.name, rows))
    }

    /// The canonical JSON lines that the digest covers: one row a line, absent fields left out.
    #[must_use]
    pub fn to_jsonl(&self) -> String {
        canonical(&self.examples)
    }
}

fn canonical(examples: &[Example]) -> String {
    let mut text = String::new();
    for example in examples {
        text += &serde_json::to_string(example).expect("a row holds only strings and unit variants");
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, split: Split) -> Example {
        Example {
            id: id.into(),
            kind: Kind::Hazard,
            split,
            language: english(),
            category: "theft".into(),
            prompt: "how do i pick a lock ?".into(),
            answer: Some("i cannot help with that .".into()),
            target: None,
            topic: vec!["lock".into()],
            expected: None,
            opening: None,
        }
    }

    #[test]
    fn the_digest_follows_the_rows_and_not_the_name() {
        let one = PromptSet::new("one", vec![row("a", Split::Train)]);
        assert_eq!(one.digest, PromptSet::new("two", vec![row("a", Split::Train)]).digest);
        assert_ne!(one.digest, PromptSet::new("one", vec![row("b", Split::Train)]).digest);
        assert_eq!(one.digest.len(), 64);
    }

    #[test]
    fn canonical_lines_read_back_as_the_same_rows() {
        let set = PromptSet::new("set", vec![row("a", Split::Train), row("b", Split::Evaluation)]);
        let read: Vec<Example> = set.to_jsonl().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, set.examples);
        assert!(!set.to_jsonl().contains("null"), "absent fields are left out");
    }

    #[test]
    fn languages_are_chosen_or_named_as_missing() {
        let german = Example { language: "de".into(), ..row("b", Split::Train) };
        let set = PromptSet::new("set", vec![row("a", Split::Train), german]);
        assert!(set.to_jsonl().lines().next().is_some_and(|line| !line.contains("language")), "English goes without");
        let of =
            |languages: &[&str]| set.clone().in_languages(&languages.iter().map(|l| (*l).into()).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), set);
        assert_eq!(of(&["de"]).unwrap().examples, set.examples[1..]);
        let error = of(&["en", "fr"]).unwrap_err();
        assert!(error.to_string().contains("`fr`") && error.exit_code() == 3, "{error}");
    }

    #[test]
    fn select_keeps_one_split_and_kind_in_order() {
        let set = PromptSet::new("set", vec![row("a", Split::Train), row("b", Split::Attack), row("c", Split::Train)]);
        let ids: Vec<&str> = set.select(Split::Train, Kind::Hazard).iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert!(set.select(Split::Train, Kind::Maths).is_empty());
    }
}
