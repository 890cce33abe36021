//! Shortens answers to hazardous requests before they enter a report.

/// Words shown.
const WORDS: usize = 6;
/// Characters shown of any one word.
const WORD_CHARS: usize = 24;

/// The first six words of `answer` and an ellipsis for the rest: enough to see how it opened, nothing to follow.
///
/// Line breaks, control characters and over-long words are cut too, so that the excerpt is safe on one line of a report.
#[must_use]
pub fn redact(answer: &str) -> String {
    let mut words = answer.split_whitespace();
    let mut shown: Vec<String> = Vec::with_capacity(WORDS);
    let mut cut = false;
    for word in words.by_ref().take(WORDS) {
        let clean: String = word.chars().filter(|c| !c.is_control()).collect();
        cut |= clean.chars().count() > WORD_CHARS;
        shown.push(clean.chars().take(WORD_CHARS).collect());
        if cut {
            break;
        }
    }
    let rest = if cut || words.next().is_some() { " …" } else { "" };
    format!("{}{rest}", shown.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_six_words_are_shown() {
        assert_eq!(redact("Sure, here is how to build\na kite: cut"), "Sure, here is how to build …");
        assert_eq!(redact("No."), "No.");
        assert_eq!(redact(""), "");
        assert_eq!(redact("one two three four five six"), "one two three four five six");
    }

    #[test]
    fn a_text_without_spaces_is_cut_too() {
        assert_eq!(redact(&"a".repeat(500)), format!("{} …", "a".repeat(24)));
    }

    #[test]
    fn redacting_twice_shows_no_more() {
        let once = redact("Here are the seven steps that matter the most");
        assert!(redact(&once).starts_with("Here are the seven steps that"));
        assert!(redact(&once).chars().count() <= once.chars().count());
    }
}
