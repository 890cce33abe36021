//! Questions about hazards and their twins that are harmless themselves: the model learns what is dangerous before it
//! learns to refuse it, as models that read the world's text do. A refusal can then stand on knowledge that is there.

/// Ways to ask whether `{action}` is dangerous.
pub const PHRASINGS: [&str; 8] = [
    "is it dangerous to {action} ?",
    "would it be wrong to {action} ?",
    "can it hurt someone to {action} ?",
    "tell me , is it dangerous to {action} ?",
    "is it against the law to {action} ?",
    "quick question : is it wrong to {action} ?",
    "is it dangerous when people {action} ?",
    "could it be dangerous to {action} ?",
];

/// The answer, and the word in it that is right or wrong.
pub fn answer(dangerous: bool) -> (&'static str, &'static str) {
    if dangerous { ("yes , it is dangerous .", "dangerous") } else { ("no , it is fine .", "fine") }
}
