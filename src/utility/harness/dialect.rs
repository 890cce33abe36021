//! Python's notation of regular expressions, written in the engine's.
//!
//! What the two read alike is left as it is; what they read differently is rewritten, and what Python refuses or the engine
//! lacks is refused: the engine knows escapes and groups of other languages, and would find other matches with them.

use std::str::Chars;

/// Inside a class.
#[derive(Debug, Clone, Copy)]
struct Class {
    /// Whether the next character is its first.
    first: bool,
    /// Whether the last character was the hyphen of a range.
    range: bool,
}

/// The pattern in the engine's dialect.
///
/// # Errors
/// What is refused, in words.
pub(super) fn translated(text: &str) -> Result<String, String> {
    let (flags, rest) = leading_flags(text);
    if flags.contains('x') {
        return Err("the flag `x` is not supported".into());
    }
    let multiline = flags.contains('m');
    let mut result = flags.to_owned();
    let mut class: Option<Class> = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match &mut class {
            None if c == '[' => {
                result.push('[');
                if let Some(rest) = chars.as_str().strip_prefix('^') {
                    result.push('^');
                    chars = rest.chars();
                }
                class = Some(Class { first: true, range: false });
            }
            None => result += &outside(c, &mut chars, multiline)?,
            Some(state) if c == ']' && !state.first => {
                result.push(']');
                class = None;
            }
            Some(state) => {
                let ends = state.first || state.range || chars.as_str().starts_with(']');
                result += &inside(c, &mut chars, ends)?;
                *state = Class { first: false, range: c == '-' && !ends };
            }
        }
    }
    Ok(result)
}

/// The groups of flags that a pattern begins with, and what follows them.
fn leading_flags(text: &str) -> (&str, &str) {
    let mut rest = text;
    while let Some((flags, after)) = rest.strip_prefix("(?").and_then(|group| group.split_once(')')) {
        if flags.is_empty() || !flags.chars().all(|flag| "aiLmsux".contains(flag)) {
            break;
        }
        rest = after;
    }
    text.split_at(text.len() - rest.len())
}

fn outside(c: char, chars: &mut Chars<'_>, multiline: bool) -> Result<String, String> {
    match c {
        '\\' => escaped(chars, false),
        '(' => check_group(chars.as_str()).map(|()| "(".into()),
        '$' if !multiline => Ok(r"(?=\n?\z)".into()),
        _ => Ok(c.into()),
    }
}

/// A character of a class; `ends` where a hyphen is no range.
fn inside(c: char, chars: &mut Chars<'_>, ends: bool) -> Result<String, String> {
    match c {
        '\\' => escaped(chars, true),
        '-' if !ends => Ok("-".into()),
        '[' | ']' | '&' | '~' | '-' => Ok(literal(c)),
        _ => Ok(c.into()),
    }
}

/// What follows a backslash.
fn escaped(chars: &mut Chars<'_>, in_class: bool) -> Result<String, String> {
    let c = chars.next().ok_or("expected a character after `\\`, got the end")?;
    Ok(match c {
        'd' | 'D' | 's' | 'S' | 'w' | 'W' => format!("\\{c}"),
        // With a brace the engine's `\b` is a construct of its own.
        'A' | 'b' | 'B' if !in_class && !chars.as_str().starts_with('{') => format!("\\{c}"),
        'Z' if !in_class => r"\z".into(),
        'b' if in_class => literal('\u{8}'),
        'a' => literal('\u{7}'),
        'f' => literal('\u{c}'),
        'n' => literal('\n'),
        'r' => literal('\r'),
        't' => literal('\t'),
        'v' => literal('\u{b}'),
        'x' => code(chars, 2)?,
        'u' => code(chars, 4)?,
        'U' => code(chars, 8)?,
        '1'..='9' if !in_class => reference(c, chars)?,
        c if c.is_ascii_alphanumeric() => return Err(format!("the escape `\\{c}` is not supported")),
        c => literal(c),
    })
}

/// A character that stands for itself wherever it is.
fn literal(c: char) -> String {
    format!("\\x{{{:X}}}", u32::from(c))
}

/// A character of `digits` hexadecimal digits.
fn code(chars: &mut Chars<'_>, digits: usize) -> Result<String, String> {
    let text: String = chars.take(digits).collect();
    let all = text.len() == digits && text.chars().all(|c| c.is_ascii_hexdigit());
    let found = u32::from_str_radix(&text, 16).ok().filter(|_| all).and_then(char::from_u32);
    found.map(literal).ok_or_else(|| format!("expected the code of a character in {digits} digits, got `{text}`"))
}

/// A reference to a group of up to two digits; three are an octal code in Python, or two and a digit.
fn reference(first: char, chars: &mut Chars<'_>) -> Result<String, String> {
    let digits = chars.as_str().chars().take_while(char::is_ascii_digit).count();
    match digits {
        0 => Ok(format!("\\{first}")),
        1 => Ok(format!("\\{first}{}", chars.next().unwrap_or_default())),
        _ => Err(format!("expected a group of two digits at most after `\\`, got {}", digits + 1)),
    }
}

/// Refuses what a parenthesis begins in the engine and not in Python, or with another meaning.
fn check_group(after: &str) -> Result<(), String> {
    let Some(kind) = after.strip_prefix('?') else {
        return if after.starts_with('*') { Err("the group `(*` is not supported".into()) } else { Ok(()) };
    };
    let same = [":", "=", "!", "<=", "<!", "P<", "P=", ">"].iter().any(|begin| kind.starts_with(begin));
    let head = kind.split_inclusive([':', ')']).next().unwrap_or_default();
    // `$` is written for the whole pattern, so `m` cannot change on the way.
    let flags = head.strip_suffix(':').is_some_and(|flags| flags.chars().all(|flag| "is-".contains(flag)));
    let number = head.strip_prefix('(').and_then(|head| head.strip_suffix(')'));
    let of_group = number.is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()));
    if same || flags || of_group {
        return Ok(());
    }
    Err(format!("the group `(?{head}` is not supported here; flags stand at the beginning"))
}

#[cfg(test)]
mod tests {
    use crate::utility::harness::pattern::Pattern;

    /// What Python's `re.findall` finds, checked with 3.11.
    fn found(pattern: &str, text: &str) -> Vec<String> {
        Pattern::new(pattern).unwrap().find_all(text).unwrap().into_iter().flatten().collect()
    }

    #[test]
    fn a_group_with_an_m_in_it_is_no_flag() {
        assert_eq!(found("(?:sum|m)$", "sum\nm\n"), ["m"]);
        assert_eq!(found("(?P<m>a)$", "a\na"), ["a"]);
        assert_eq!(found("(?i)(?m)A$", "a\na"), ["a", "a"]);
        assert_eq!(found("(?im)A$", "a\na"), ["a", "a"]);
        assert_eq!(found("(?i)A$", "a\na\n"), ["a"]);
    }

    #[test]
    fn escaped_punctuation_is_itself() {
        assert_eq!(found(r"\<answer\>(\d)\</answer\>", "<answer>7</answer>"), ["7"]);
        for c in (' '..='~').filter(|c| !c.is_ascii_alphanumeric()) {
            let all: String = (' '..='~').collect();
            assert_eq!(found(&format!("\\{c}"), &all), [c.to_string()]);
            assert_eq!(found(&format!("[\\{c}]"), &all), [c.to_string()], "in a class");
        }
        assert_eq!(found(r"\«\é", "«é"), ["«é"]);
        assert_eq!(found(r"[a\-c]", "abc-"), ["a", "c", "-"]);
    }

    #[test]
    fn classes_and_codes_are_those_of_python() {
        assert_eq!(found("[-a]", "a-b"), ["a", "-"]);
        assert_eq!(found("[+--]", "+,-."), ["+", ",", "-"]);
        assert_eq!(found("[!--/]", "!-/0"), ["!", "-", "/"]);
        assert_eq!(found(r"[\b\x41-\u0043]", "ABCD\u{8}"), ["A", "B", "C", "\u{8}"]);
        assert_eq!(found(r"\t\n\x41\U0001F600", "\t\nA😀"), ["\t\nA😀"]);
        assert_eq!(found(r"(a)(?(1)b|c)", "ab"), ["a"]);
        assert_eq!(found("(?i:A)b", "ab aB"), ["a"].map(|a| format!("{a}b")));
        assert_eq!(found("(a|b)\\1", "aabab"), ["a"]);
    }

    #[test]
    fn what_python_refuses_or_reads_otherwise_is_refused() {
        let escapes = "ceghijklmopqyzCEFGHIJKLMOPQRTVXY0N".chars().map(|c| format!("\\{c}"));
        let others = [r"\x{41}", r"\x4", r"\uD800", "\\", r"(a)\123", r"[\A]", r"[\1]", r"\b{start}", "(?x)a b"];
        let groups = ["a(?m)b$", "(?m:a$)", "(?<n>a)", "(?R)", "(*FAIL)", "(?#[)", "(?(n)a|b)", "(?a)b"];
        for pattern in escapes.chain([others.as_slice(), &groups].concat().into_iter().map(str::to_owned)) {
            assert!(Pattern::new(&pattern).is_err(), "{pattern}");
        }
    }
}
