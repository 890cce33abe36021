//! Additions and subtractions of numbers up to twenty, written as text; the tokenizer makes every digit a token.

/// Ways to ask for `{sum}`.
pub const PHRASINGS: [&str; 8] = [
    "what is {sum} ?",
    "{sum} = ?",
    "work out {sum} .",
    "please solve {sum} .",
    "how much is {sum} ?",
    "tell me what {sum} is .",
    "i need the result of {sum} .",
    "can you count {sum} for me ?",
];

const LARGEST: u32 = 20;

/// One calculation and its result.
#[derive(Debug)]
pub struct Sum {
    /// As written: `17 + 5`.
    pub text: String,
    /// The result.
    pub result: u32,
}

/// Every `a + b` and, where the result is not negative, every `a - b`, with both numbers up to twenty.
pub fn sums() -> Vec<Sum> {
    let pairs = || (0..=LARGEST).flat_map(|a| (0..=LARGEST).map(move |b| (a, b)));
    let plus = pairs().map(|(a, b)| Sum { text: format!("{a} + {b}"), result: a + b });
    let minus = pairs().filter(|(a, b)| a >= b).map(|(a, b)| Sum { text: format!("{a} - {b}"), result: a - b });
    plus.chain(minus).collect()
}
