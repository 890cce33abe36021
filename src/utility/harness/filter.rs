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
        /// The text where there is no match.
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
    ///
    /// # Errors
    /// [`Error::Input`] when a pattern takes too long, or is asked for a match that an answer does not have.
    pub fn apply(&self, answer: &str) -> Result<String> {
        self.steps.iter().try_fold(answer.to_owned(), |text, step| step.apply(&text))
    }
}

impl Step {
    fn apply(&self, text: &str) -> Result<String> {
        Ok(match self {
            Self::Regex { pattern, select, fallback } => {
                let found = pattern.find_all(text).map_err(|error| gave_up(pattern, &error))?;
                if found.is_empty() {
                    return Ok(fallback.clone());
                }
                let length = found.len() as i64;
                let index = if *select < 0 { length + select } else { *select };
                let chosen = usize::try_from(index).ok().and_then(|index| found.get(index));
                let chosen = chosen.ok_or_else(|| {
                    let problem = format!("expected match {select} of `{}`, got {length} matches", pattern.as_str());
                    Error::input("group_select", problem)
                })?;
                chosen.as_deref().unwrap_or(fallback).trim().to_owned()
            }
            Self::RemoveWhitespace => text.trim().to_owned(),
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
        })
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
    /// Whether an answer is the right one.
    ///
    /// # Errors
    /// [`Error::Input`] when a pattern takes too long.
    pub fn holds(&self, answer: &str, right: &str) -> Result<bool> {
        Ok(self.plain(answer)? == self.plain(right)?)
    }

    fn plain(&self, text: &str) -> Result<String> {
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
        let read = |text: &str| [strict.apply(text).unwrap(), flexible.apply(text).unwrap()];
        assert_eq!(read("5 + 7 = 12\n#### 12"), ["12", "12"]);
        assert_eq!(read("She pays $1,200."), ["[invalid]", "$1,200."]);
        assert_eq!(read("no number"), ["[invalid]", "[invalid]"]);
        let ignore = [",", "\\$", "(?s).*#### ", "\\.$"].map(|text| Pattern::new(text).unwrap());
        let exact = ExactMatch { regexes_to_ignore: ignore.into(), ignore_case: true, ..ExactMatch::default() };
        assert!(exact.holds("$1,200.", "first 600\n#### 1200").unwrap());
        assert!(!exact.holds("[invalid]", "#### 1200").unwrap());
    }

    #[test]
    fn what_is_ignored_is_ignored_on_both_sides() {
        let exact = |ignore_case, ignore_punctuation, ignore_numbers| ExactMatch {
            ignore_case,
            ignore_punctuation,
            ignore_numbers,
            ..ExactMatch::default()
        };
        assert!(!exact(false, false, false).holds("Red.", "red").unwrap());
        assert!(exact(true, true, false).holds("Red.", "r(ed)").unwrap());
        assert!(exact(false, false, true).holds("red 12", "3red 4").unwrap());
        assert!(!exact(false, true, false).holds("«red»", "red").unwrap(), "not ASCII");
    }

    #[test]
    fn a_match_that_is_not_there_is_an_error() {
        let error = regex("a", 3).apply("aa").unwrap_err().to_string();
        assert!(error.contains("expected match 3 of `a`, got 2 matches"), "{error}");
    }
}
