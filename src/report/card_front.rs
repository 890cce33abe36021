//! Edits the YAML front matter of a model card in place: the keys it owns change, every other byte stays.
//!
//! Cards are written by people, with comments and an order of their own, so the YAML is edited line by line and never
//! re-serialised. Front matter that is not a YAML map is left alone. A byte order mark is left out: many readers see no front
//! matter behind one.

use serde_yaml::Value;

/// What the front matter has to say afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Front<'a> {
    /// Hub id of the un-hardened model; absent: whatever the card says stays.
    pub base_model: Option<&'a str>,
    /// Tags to add.
    pub tags: &'a [&'a str],
}

/// The card with its front matter edited, or begun when there is none.
pub fn edit(card: &str, front: Front<'_>) -> String {
    let newline = if card.contains("\r\n") { "\r\n" } else { "\n" };
    let (given, card) = (card, card.strip_prefix('\u{feff}').unwrap_or(card));
    let Some((head, rest)) = split(card) else {
        let mut lines = vec![];
        write(&mut lines, front);
        return format!("---{newline}{}{newline}---{newline}{newline}{card}", lines.join(newline));
    };
    let known: Value = match serde_yaml::from_str(head) {
        Ok(value @ (Value::Mapping(_) | Value::Null)) => value,
        _ => return given.to_owned(),
    };
    let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
    if let Some(base) = front.base_model {
        set(&mut lines, "base_model", &[format!("base_model: {}", scalar(base))]);
        set(&mut lines, "base_model_relation", &["base_model_relation: finetune".into()]);
    }
    if known.get("library_name").is_none() {
        set(&mut lines, "library_name", &["library_name: transformers".into()]);
    }
    add_tags(&mut lines, &known, front.tags);
    let head: String = lines.iter().flat_map(|line| [line.as_str(), newline]).collect();
    format!("---{newline}{head}{rest}")
}

fn write(lines: &mut Vec<String>, front: Front<'_>) {
    if let Some(base) = front.base_model {
        lines.push(format!("base_model: {}", scalar(base)));
        lines.push("base_model_relation: finetune".into());
    }
    lines.push("library_name: transformers".into());
    lines.push("tags:".into());
    lines.extend(front.tags.iter().map(|tag| format!("- {tag}")));
}

/// The lines between the fences, and everything from the closing fence on.
fn split(card: &str) -> Option<(&str, &str)> {
    let body = card.strip_prefix("---\n").or_else(|| card.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&body[..at], &body[at..]));
        }
        at += line.len();
    }
    None
}

/// The range of lines that a top-level key and its value take up.
fn extent(lines: &[String], key: &str) -> Option<std::ops::Range<usize>> {
    let start = lines.iter().position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))?;
    let inside = |line: &String| line.starts_with([' ', '\t', '-']) || line.trim().is_empty();
    let mut end = start + 1;
    end += lines[end..].iter().take_while(|line| inside(line)).count();
    // Blank lines after the value belong to whatever follows.
    while end > start + 1 && lines[end - 1].trim().is_empty() {
        end -= 1;
    }
    Some(start..end)
}

/// Replaces a key's lines, or adds them at the end.
fn set(lines: &mut Vec<String>, key: &str, new: &[String]) {
    match extent(lines, key) {
        Some(range) => {
            lines.splice(range, new.iter().cloned());
        }
        None => lines.extend(new.iter().cloned()),
    }
}

fn add_tags(lines: &mut Vec<String>, known: &Value, tags: &[&str]) {
    let present: Vec<String> = match known.get("tags") {
        Some(Value::Sequence(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => vec![],
    };
    let missing: Vec<&str> = tags.iter().copied().filter(|tag| !present.iter().any(|p| p == tag)).collect();
    if missing.is_empty() {
        return;
    }
    let block = extent(lines, "tags").filter(|range| lines[range.start].trim_end() == "tags:" && range.len() > 1);
    match block {
        // A block list: keep its items as they are and follow its indentation.
        Some(range) => {
            let last = &lines[range.end - 1];
            let indent: String = last.chars().take_while(|c| c.is_whitespace()).collect();
            let items: Vec<String> = missing.iter().map(|tag| format!("{indent}- {tag}")).collect();
            lines.splice(range.end..range.end, items);
        }
        None => {
            let all = present.iter().map(|tag| scalar(tag)).chain(missing.iter().map(|tag| (*tag).to_owned()));
            let new: Vec<String> = std::iter::once("tags:".into()).chain(all.map(|tag| format!("- {tag}"))).collect();
            set(lines, "tags", &new);
        }
    }
}

/// A YAML scalar on one line, quoted where it has to be.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let reads_back = serde_yaml::from_str::<Value>(text).is_ok_and(|value| value.as_str() == Some(text));
    if text.chars().all(plain) && reads_back {
        text.into()
    } else {
        Value::from(text).as_str().map_or_else(String::new, quoted)
    }
}

fn quoted(text: &str) -> String {
    // JSON strings are YAML strings.
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONT: Front<'_> = Front { base_model: Some("org/name"), tags: &["immunised"] };

    #[test]
    fn a_card_without_front_matter_gets_one() {
        let card = edit("# Model\n", FRONT);
        let expected = "---\nbase_model: org/name\nbase_model_relation: finetune\nlibrary_name: transformers\ntags:\n- immunised\n---\n\n# Model\n";
        assert_eq!(card, expected);
    }

    #[test]
    fn other_keys_comments_and_the_body_stay_byte_for_byte() {
        let card = "---\n# who wrote this\nlicense: apache-2.0   # kept\nbase_model:\n  - other/base\n\nlanguage: [en,  de]\ntags:\n  - chat\n\n---\n\n# Title  \n\ttext\n";
        let edited = edit(card, FRONT);
        let expected = "---\n# who wrote this\nlicense: apache-2.0   # kept\nbase_model: org/name\n\nlanguage: [en,  de]\ntags:\n  - chat\n  - immunised\n\nbase_model_relation: finetune\nlibrary_name: transformers\n---\n\n# Title  \n\ttext\n";
        assert_eq!(edited, expected);
    }

    #[test]
    fn editing_twice_changes_nothing() {
        for card in ["", "# x\n", "---\ntags: [a, 'b c']\n---\nx", "---\r\ntags: chat\r\n---\r\nx\r\n", "---\n---\n"] {
            let once = edit(card, FRONT);
            assert_eq!(edit(&once, FRONT), once, "{card:?}");
            let head = split(&once).unwrap().0;
            let value: Value = serde_yaml::from_str(head).unwrap();
            assert_eq!(value["base_model"], "org/name");
            assert!(value["tags"].as_sequence().unwrap().contains(&"immunised".into()), "{once}");
        }
    }

    #[test]
    fn flow_tags_are_kept() {
        let edited = edit("---\ntags: [a, 'b: c']\n---\n", FRONT);
        let value: Value = serde_yaml::from_str(split(&edited).unwrap().0).unwrap();
        assert_eq!(value["tags"], serde_yaml::from_str::<Value>("[a, 'b: c', immunised]").unwrap());
    }

    #[test]
    fn windows_line_ends_stay() {
        let edited = edit("---\r\nlicense: mit\r\n---\r\nbody\r\n", FRONT);
        assert!(!edited.replace("\r\n", "").contains('\n'), "{edited:?}");
        assert!(edited.ends_with("---\r\nbody\r\n"));
    }

    #[test]
    fn front_matter_behind_a_byte_order_mark_is_seen() {
        for card in
            ["---\nlicense: mit\nbase_model: other/base\n---\nbody\n", "---\r\ntags: chat\r\n---\r\nx", "# Model\n"]
        {
            assert_eq!(edit(&format!("\u{feff}{card}"), FRONT), edit(card, FRONT));
        }
        assert_eq!(edit("\u{feff}---\n- a\n---\nx", FRONT), "\u{feff}---\n- a\n---\nx", "left alone");
    }

    #[test]
    fn broken_front_matter_is_left_alone() {
        for card in ["---\n[1, 2\n---\nx", "---\n- a\n---\nx"] {
            assert_eq!(edit(card, FRONT), card);
        }
    }

    #[test]
    fn a_library_that_was_named_stays() {
        assert!(edit("---\nlibrary_name: peft\n---\n", FRONT).contains("library_name: peft\n"));
    }
}
