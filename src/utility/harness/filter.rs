//! From a generated answer to the text that is compared, and the comparison itself.

use super::pattern::Pattern;
use crate::{Error, Result};

/// A named row of steps, each of which the answer goes through.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Name, part of the metric's.
    pub name: String,
    /// Steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a filter.
#[derive(Debug, Clone)]
pub enum Step {
    /// A match of a pattern, counted from the first (0, 1, …) or from the last (−1, −2, …), without the spaces around it.
    Regex {
        /// What is looked for.
        pattern: Pattern,
        /// Which match.
        select: i64,
        /// The text where there is no such match, or the pattern takes too long to tell.
        fallback: String,
    },
    /// Without the spaces around the text.
    RemoveWhitespace,
    /// Lower case.
    Lowercase,
    /// Upper case.
    Uppercase,
}

impl Filter {
    /// The text that is compared.
    #[must_use]
    pub fn apply(&self, answer: &str) -> String {
        self.steps.iter().fold(answer.to_owned(), |text, step| step.apply(&text))
    }
}

impl Step {
    fn apply(&self, text: &str) -> String {
        match self {
            Self::Regex { pattern, select, fallback } => {
                // What a model writes ends no run: an answer that cannot be read is one that does not match.
                let found = pattern.find_all(text).unwrap_or_default();
                let index = if *select < 0 { select.saturating_add_unsigned(found.len() as u64) } else { *select };
                match usize::try_from(index).ok().and_then(|index| found.get(index)) {
                    Some(chosen) => chosen.as_deref().unwrap_or(fallback).trim().to_owned(),
                    None => fallback.clone(),
                }
            }
            Self::RemoveWhitespace => text.trim().to_owned(),
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
        }
    }
}

/// What two texts may differ in and be equal all the same; applied in the order of the fields.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    /// Matches of these are removed.
    pub regexes_to_ignore: Vec<Pattern>,
    /// Both are put in lower case.
    pub ignore_case: bool,
    /// ASCII punctuation is removed.
    pub ignore_punctuation: bool,
    /// ASCII digits are removed.
    pub ignore_numbers: bool,
}

impl ExactMatch {
    /// Whether an answer is the right one; one that a pattern takes too long to read is not.
    #[must_use]
    pub fn holds(&self, answer: &str, right: &str) -> bool {
        matches!((self.plain(answer), self.plain(right)), (Ok(answer), Ok(right)) if answer == right)
    }

    /// A text without what may differ.
    ///
    /// # Errors
    /// [`Error::Input`] when a pattern takes too long.
    pub(super) fn plain(&self, text: &str) -> Result<String> {
        let mut plain = text.to_owned();
        for pattern in &self.regexes_to_ignore {
            plain = pattern.remove(&plain).map_err(|error| gave_up(pattern, &error))?;
        }
        if self.ignore_case {
            plain = plain.to_lowercase();
        }
        let ignored = |c: &char| {
            (self.ignore_punctuation && c.is_ascii_punctuation()) || (self.ignore_numbers && c.is_ascii_digit())
        };
        Ok(plain.chars().filter(|c| !ignored(c)).collect())
    }
}

fn gave_up(pattern: &Pattern, error: &str) -> Error {
    Error::input(format!("pattern `{}`", pattern.as_str()), error.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(pattern: &str, select: i64) -> Step {
        Step::Regex { pattern: Pattern::new(pattern).unwrap(), select, fallback: "[invalid]".into() }
    }

    #[test]
    fn gsm8k_is_read_strictly_and_flexibly() {
        let strict = Filter { name: "strict".into(), steps: vec![regex(r"#### (\-?[0-9\.\,]+)", 0)] };
        let flexible = Filter { name: "flexible".into(), steps: vec![regex("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)] };
        let read = |text: &str| [strict.apply(text), flexible.apply(text)];
        assert_eq!(read("5 + 7 = 12\n#### 12"), ["12", "12"]);
        assert_eq!(read("She pays $1,200."), ["[invalid]", "$1,200."]);
        assert_eq!(read("no number"), ["[invalid]", "[invalid]"]);
        let ignore = [",", "\\$", "(?s).*#### ", "\\.$"].map(|text| Pattern::new(text).unwrap());
        let exact = ExactMatch { regexes_to_ignore: ignore.into(), ignore_case: true, ..ExactMatch::default() };
        assert!(exact.holds("$1,200.", "first 600\n#### 1200"));
        assert!(!exact.holds("[invalid]", "#### 1200"));
    }

    #[test]
    fn what_is_ignored_is_ignored_on_both_sides() {
        let exact = |ignore_case, ignore_punctuation, ignore_numbers| ExactMatch {
            ignore_case,
            ignore_punctuation,
            ignore_numbers,
            ..ExactMatch::default()
        };
        assert!(!exact(false, false, false).holds("Red.", "red"));
        assert!(exact(true, true, false).holds("Red.", "r(ed)"));
        assert!(exact(false, false, true).holds("red 12", "3red 4"));
        assert!(!exact(false, true, false).holds("«red»", "red"), "not ASCII");
    }

    #[test]
    fn a_match_that_is_not_there_is_none() {
        let read = |select| regex("a.", select).apply("ab ac");
        assert_eq!([read(1), read(-2)], ["ac", "ab"]);
        assert_eq!([read(2), read(-3), read(i64::MIN)], ["[invalid]"; 3]);
    }

    #[test]
    fn an_answer_that_takes_too_long_does_not_match() {
        // Each attempt fails at the end only, and every split of the row of letters is tried: beyond the engine's limit.
        let (hostile, answer) = (r"(a|b|ab)*(?=c)\1d", "ab".repeat(40) + "c");
        let pattern = Pattern::new(hostile).unwrap();
        assert!(pattern.find_all(&answer).is_err());
        assert_eq!(regex(hostile, 0).apply(&answer), "[invalid]");
        let exact = ExactMatch { regexes_to_ignore: vec![pattern], ..ExactMatch::default() };
        assert!(exact.holds("d", "d") && !exact.holds(&answer, &answer));
        assert!(exact.plain(&answer).is_err());
    }
}
