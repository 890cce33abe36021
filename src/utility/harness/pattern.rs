//! Regular expressions as Python's `re` reads them, on an engine of our own language.
//!
//! Task files are written for Python. Where the two dialects read the same text differently, the pattern is rewritten: `$`
//! also matches before a final line end, `\Z` does not, and escaped punctuation is itself. What Python refuses or the engine
//! lacks is an error, never another match. Backtracking is bounded by the engine, so a hostile pattern ends.

use fancy_regex::{Captures, Regex};

use super::dialect::translated;

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    text: String,
}

impl Pattern {
    /// Compiles Python's notation; the error says what is wrong.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        let regex = Regex::new(&translated(text)?).map_err(|error| error.to_string())?;
        Ok(Self { regex, text: text.to_owned() })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `re.findall`, with the groups of a match joined as task files expect: the whole match without groups, the group if
    /// there is one, and of several the first that is not empty; `None` for a match whose groups are all empty.
    ///
    /// # Errors
    /// When the engine gives up.
    pub fn find_all(&self, text: &str) -> Result<Vec<Option<String>>, String> {
        self.regex
            .captures_iter(text)
            .map(|found| found.map(|found| chosen(&found)).map_err(|error| error.to_string()))
            .collect()
    }

    /// `re.sub(pattern, replacement, text)`, the replacement taken as it is.
    ///
    /// # Errors
    /// When the engine gives up.
    pub fn replace(&self, text: &str, replacement: &str) -> Result<String, String> {
        let replaced = self.regex.try_replacen(text, 0, fancy_regex::NoExpand(replacement));
        Ok(replaced.map_err(|error| error.to_string())?.into_owned())
    }

    /// `re.sub(pattern, "", text)`.
    ///
    /// # Errors
    /// When the engine gives up.
    pub fn remove(&self, text: &str) -> Result<String, String> {
        self.replace(text, "")
    }
}

fn chosen(found: &Captures<'_>) -> Option<String> {
    let group = |i: usize| found.get(i).map_or("", |part| part.as_str());
    match found.len() {
        1 => Some(group(0).to_owned()),
        // One group is a string to `findall`, empty or not; only of several is the first filled one taken.
        2 => Some(group(1).to_owned()),
        groups => (1..groups).map(group).find(|text| !text.is_empty()).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pattern: &str, text: &str) -> Vec<Option<String>> {
        Pattern::new(pattern).unwrap().find_all(text).unwrap()
    }

    fn words(words: &[&str]) -> Vec<Option<String>> {
        words.iter().map(|word| Some((*word).to_owned())).collect()
    }

    #[test]
    fn groups_are_joined_as_findall_and_the_filter_join_them() {
        assert_eq!(all("a.", "ab ac"), words(&["ab", "ac"]));
        assert_eq!(all("a(.)", "ab ac"), words(&["b", "c"]));
        assert_eq!(all("(-?[$0-9.,]{2,})|(-?[0-9]+)", "costs $1,200. or 7"), words(&["$1,200.", "7"]));
        assert_eq!(all("(x)?(y)?z", "z xz"), [None, Some("x".into())]);
        assert_eq!(all(r"#### (\-?[0-9\.\,]+)", "so\n#### -1,234.5"), words(&["-1,234.5"]));
    }

    #[test]
    fn the_dialects_differences_are_levelled() {
        let without = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().remove(text).unwrap();
        // In Python: re.sub(r"\.$", "", "5.\n") == "5\n", re.sub(r"\.\Z", "", "5.\n") == "5.\n".
        assert_eq!(without(r"\.$", "5.\n"), "5\n");
        assert_eq!(without(r"\.$", "5."), "5");
        assert_eq!(without(r"\.\Z", "5.\n"), "5.\n");
        assert_eq!(without("(?m)a$", "ba\nba"), "b\nb");
        assert_eq!(without("[[&&~~$]", "a[&~$]"), "a]");
        assert_eq!(without("[]a]", "]ab"), "b");
        assert_eq!(without("(?s).*#### ", "one\n#### 7"), "7");
        assert_eq!(without(r"a(?=b)|(c)\1", "ab ccd"), "b d");
        assert!(Pattern::new("(").is_err());
    }
}
