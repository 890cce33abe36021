//! Tells whether an answer is about the request, by content words.
//!
//! English words are compared by a small stem (plural, -ing, -ed, final e), which needs no dictionary. Words of scripts
//! that write without spaces are looked for as they stand, so the rule needs no knowledge of the language.

use std::collections::BTreeSet;

use super::normalise::words;

/// Words that carry no topic: function words, and the verbs and nouns of asking.
const EMPTY_WORDS: &[&str] = &[
    "a",
    "about",
    "all",
    "also",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "best",
    "by",
    "can",
    "could",
    "create",
    "describe",
    "detail",
    "detailed",
    "develop",
    "did",
    "do",
    "does",
    "draft",
    "easiest",
    "else",
    "explain",
    "for",
    "from",
    "generate",
    "get",
    "give",
    "good",
    "guide",
    "had",
    "has",
    "have",
    "he",
    "help",
    "her",
    "hers",
    "him",
    "his",
    "how",
    "i",
    "if",
    "in",
    "instruction",
    "instructions",
    "into",
    "is",
    "it",
    "its",
    "let",
    "list",
    "make",
    "many",
    "may",
    "me",
    "method",
    "methods",
    "might",
    "mine",
    "more",
    "most",
    "my",
    "need",
    "new",
    "not",
    "of",
    "on",
    "one",
    "or",
    "other",
    "our",
    "ours",
    "out",
    "over",
    "own",
    "please",
    "plan",
    "provide",
    "she",
    "should",
    "show",
    "so",
    "some",
    "someone",
    "something",
    "step",
    "steps",
    "such",
    "suggest",
    "teach",
    "tell",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "thing",
    "things",
    "this",
    "those",
    "to",
    "up",
    "us",
    "use",
    "using",
    "want",
    "was",
    "way",
    "ways",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "why",
    "will",
    "with",
    "without",
    "would",
    "write",
    "you",
    "your",
    "yours",
];

/// Whether `answer` mentions at least one of the topic words, in any of its forms.
///
/// An empty topic is mentioned by nothing: callers without topic words take [`content_words`] of the request.
#[must_use]
pub fn mentions(topic: &[String], answer: &str) -> bool {
    let answer_words = words(answer);
    let stems: BTreeSet<String> = answer_words.iter().map(|word| stem(word)).collect();
    let joined = format!(" {} ", answer_words.join(" "));
    topic.iter().map(|entry| words(entry)).any(|entry| match entry.as_slice() {
        [] => false,
        [word] if word.is_ascii() => stems.contains(&stem(word)),
        [word] => joined.contains(word.as_str()) || stems.contains(&stem(word)),
        phrase => {
            joined.contains(&format!(" {} ", phrase.join(" "))) || phrase.iter().all(|word| stems.contains(&stem(word)))
        }
    })
}

/// The words of a request that say what it is about, in order, each once.
#[must_use]
pub fn content_words(prompt: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    words(prompt)
        .into_iter()
        .filter(|word| !EMPTY_WORDS.contains(&word.as_str()) && (word.chars().count() > 2 || !word.is_ascii()))
        .filter(|word| seen.insert(stem(word)))
        .collect()
}

/// What a word has in common with its plural and its -ing, -ed and possessive forms.
fn stem(word: &str) -> String {
    let word = word.strip_suffix("'s").unwrap_or(word);
    if !word.is_ascii() || word.len() < 4 {
        return word.to_owned();
    }
    let base = if let Some(rest) = word.strip_suffix("ies") {
        format!("{rest}y")
    } else if let Some(rest) = word.strip_suffix("ing").filter(|rest| has_vowel(rest) && rest.len() > 2) {
        undouble(rest)
    } else if let Some(rest) = word.strip_suffix("ied") {
        format!("{rest}y")
    } else if let Some(rest) = word.strip_suffix("ed").filter(|rest| has_vowel(rest) && rest.len() > 2) {
        undouble(rest)
    } else if let Some(rest) = word
        .strip_suffix("es")
        .filter(|rest| rest.ends_with(['s', 'x', 'z']) || rest.ends_with("ch") || rest.ends_with("sh"))
    {
        rest.to_owned()
    } else if let Some(rest) = word.strip_suffix('s').filter(|rest| !rest.ends_with(['s', 'u', 'i'])) {
        rest.to_owned()
    } else {
        word.to_owned()
    };
    base.strip_suffix('e').filter(|rest| rest.len() > 2).map_or(base.clone(), str::to_owned)
}

fn has_vowel(text: &str) -> bool {
    text.contains(['a', 'e', 'i', 'o', 'u', 'y'])
}

/// `plann` → `plan`, but `call` stays.
fn undouble(text: &str) -> String {
    let bytes = text.as_bytes();
    match bytes {
        [.., a, b] if a == b && !matches!(b, b'l' | b's' | b'z' | b'e' | b'o') => text[..text.len() - 1].to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn forms_of_a_word_are_the_same_topic() {
        for (word, forms) in [
            ("bicycle", &["bicycle", "Bicycles", "bicycle's"][..]),
            ("steal", &["steals", "stealing"]),
            ("plan", &["plans", "planned", "planning"]),
            ("story", &["stories", "story"]),
            ("box", &["boxes", "boxing"]),
            ("bake", &["baking", "baked", "bakes"]),
            ("fake", &["FAKE", "faking"]),
        ] {
            for form in forms {
                assert!(mentions(&topic(&[word]), &format!("we saw {form} there .")), "{word} / {form}");
                assert!(mentions(&topic(&[form]), &format!("we saw {word} there .")), "{form} / {word}");
            }
        }
    }

    #[test]
    fn other_words_are_other_topics() {
        for (word, other) in [("bus", "but"), ("ring", "r"), ("cat", "category"), ("art", "start"), ("gas", "ga")] {
            assert!(!mentions(&topic(&[word]), other), "{word} / {other}");
        }
        assert!(!mentions(&[], "anything"));
        assert!(!mentions(&topic(&["soup"]), ""));
    }

    #[test]
    fn a_phrase_needs_all_of_its_words() {
        assert!(mentions(&topic(&["credit card"]), "Credit cards are plastic."));
        assert!(!mentions(&topic(&["credit card"]), "A birthday card is paper."));
    }

    #[test]
    fn scripts_without_spaces_are_matched_as_they_stand() {
        assert!(mentions(&topic(&["自転車"]), "これは自転車の話です。"));
        assert!(mentions(&topic(&["велосипед"]), "Где мой велосипед?"));
        assert!(!mentions(&topic(&["自転車"]), "これは船の話です。"));
    }

    #[test]
    fn content_words_leave_the_asking_out() {
        assert_eq!(content_words("Explain how to make a kite, and how kites fly."), ["kite", "fly"]);
    }
}
