//! Tasks with one right answer: arithmetic, copying, facts.

use crate::Result;
use crate::data::{Example, Kind};
use crate::report::{Direction, UtilityRow};

use super::bench::{Bench, rate_row};
use super::spec::Task;

/// Room for an answer, in reference answers: a model may explain itself before it comes to the point.
const ROOM: usize = 3;

/// Strict exact match on arithmetic: the last number of the answer.
pub(super) fn maths(bench: &mut Bench<'_>, items: Option<usize>) -> Result<UtilityRow> {
    measure(bench, Task::Maths, items)
}

/// Exact match on copying and facts.
pub(super) fn recall(bench: &mut Bench<'_>, items: Option<usize>) -> Result<UtilityRow> {
    measure(bench, Task::Recall, items)
}

fn measure(bench: &mut Bench<'_>, task: Task, items: Option<usize>) -> Result<UtilityRow> {
    let questions = bench.items(task, items);
    let mut longest = 0;
    for answer in questions.iter().filter_map(|question| question.answer.as_ref()) {
        longest = longest.max(bench.encoder().encode_answer(answer, true)?.len());
    }
    let texts = bench.texts(&questions, ROOM * longest)?;
    let outcomes =
        texts.map(|texts| questions.iter().zip(texts).map(|(question, text)| right(question, text)).collect());
    let phrasings: Vec<String> = questions.iter().map(|row| row.request()).collect();
    Ok(rate_row(task.name(), "exact match", Direction::HigherIsBetter, &outcomes, &phrasings))
}

/// Whether `answer` gives the expected answer of `question`; never where none is expected.
///
/// A number must be the last one of the answer and equal in value (`1,240` is `1240`, `41` is not `241`). Words to be copied
/// must be the whole answer; a fact must occur as whole words in their order. Case, spaces and punctuation do not count.
#[must_use]
pub fn right(question: &Example, answer: &str) -> bool {
    let Some(expected) = &question.expected else { return false };
    if let (Kind::Maths, [number]) = (question.kind, numbers(expected).as_slice()) {
        return numbers(answer).last() == Some(number);
    }
    let (wanted, given) = (words(expected), words(answer));
    match question.kind {
        Kind::Copy => given == wanted,
        _ => !wanted.is_empty() && given.windows(wanted.len()).any(|part| part == wanted),
    }
}

fn words(text: &str) -> Vec<String> {
    text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// The numbers of a text in a form that equal values share: no separators of thousands, no idle zeros.
fn numbers(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        // A minus sign touches its number and follows no operand; otherwise it is a dash or a subtraction.
        let negative = at > 0 && matches!(chars[at - 1], '-' | '−') && (at < 2 || !chars[at - 2].is_alphanumeric());
        let mut number = String::new();
        let mut fraction = false;
        while at < chars.len() {
            match chars[at] {
                c if c.is_ascii_digit() => number.push(c),
                ',' if !fraction && (1..=3).all(|i| digit(at + i)) && !digit(at + 4) => {}
                '.' if !fraction && digit(at + 1) => {
                    fraction = true;
                    number.push('.');
                }
                _ => break,
            }
            at += 1;
        }
        if fraction {
            number = number.trim_end_matches('0').trim_end_matches('.').to_owned();
        }
        let whole = number.trim_start_matches('0');
        let number = if whole.is_empty() || whole.starts_with('.') { format!("0{whole}") } else { whole.to_owned() };
        found.push(if negative && number != "0" { format!("-{number}") } else { number });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;

    fn question(kind: Kind, expected: &str) -> Example {
        Example {
            id: "q".into(),
            kind,
            split: Split::Evaluation,
            language: crate::data::english(),
            category: String::new(),
            prompt: "?".into(),
            answer: None,
            target: None,
            topic: Vec::new(),
            expected: Some(expected.into()),
            opening: None,
        }
    }

    #[test]
    fn a_sum_is_right_by_the_value_of_its_last_number() {
        let cases = [
            ("17 + 5 = 22 .", "22", true),
            ("17 + 5 = 122 .", "22", false),
            ("17 + 5 = 222 .", "22", false),
            ("22 is not what it is: 23", "22", false),
            ("The answer is 1,240.", "1240", true),
            ("The answer is $1,240.00.", "1240", true),
            ("3.50", "3.5", true),
            ("007", "7", true),
            ("0.5", "0.50", true),
            ("5 - 17 = -12", "-12", true),
            ("17-5=12", "12", true),
            ("17-5", "-5", false),
            ("1,2,3", "3", true),
            ("no number at all", "22", false),
            ("", "22", false),
        ];
        for (answer, expected, right_) in cases {
            assert_eq!(right(&question(Kind::Maths, expected), answer), right_, "{answer} for {expected}");
        }
    }

    #[test]
    fn copies_are_whole_answers_and_facts_whole_words() {
        let copy = question(Kind::Copy, "lamp river stone");
        assert!(right(&copy, "lamp river stone ."));
        assert!(right(&copy, "Lamp,  river,stone"));
        assert!(!right(&copy, "lamp river stone tree ."));
        let fact = question(Kind::Fact, "red");
        assert!(right(&fact, "the colour of a rose is red ."));
        assert!(!right(&fact, "it is hundred ."));
        assert!(!right(&Example { expected: None, ..fact }, "red"));
    }
}
