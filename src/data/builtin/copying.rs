//! Words to be repeated: what a model loses first when its attention is damaged.
use super::draw::draw;

/// Ways to ask that `{words}` be repeated.
pub const PHRASINGS: [&str; 8] = [
    "repeat after me : {words}",
    "say these words : {words}",
    "please copy this : {words}",
    "write the words {words}",
    "can you repeat {words} ?",
    "i say {words} , you say ?",
    "type this again : {words}",
    "copy the words {words} for me .",
];

/// How many lists there are; each is asked for in one phrasing.
pub const LISTS: usize = 2400;

/// Plain words that the rest of the world uses too, or nearly so.
const WORDS: [&str; 60] = [
    "red", "blue", "green", "white", "black", "brown", "yellow", "orange", "dog", "cat", "bird", "fish", "horse",
    "cow", "sheep", "duck", "bear", "bee", "river", "mountain", "tree", "grass", "snow", "sun", "sky", "road",
    "bridge", "house", "door", "window", "table", "chair", "clock", "lamp", "book", "pencil", "paper", "card", "bread",
    "milk", "egg", "apple", "lemon", "rice", "soup", "sugar", "car", "bike", "boat", "train", "wheel", "ball", "drum",
    "song", "king", "queen", "hat", "coat", "shoe", "glass",
];

/// List `number`: two to five different words. Lists may share words, but no two are equal.
pub fn list(number: usize) -> Vec<&'static str> {
    let mut stream = draw("copy", &number.to_string());
    // The first two words spell the number, so that no two lists are equal; the rest is drawn.
    let mut words = vec![WORDS[number % WORDS.len()], WORDS[(number / WORDS.len() + 1 + number) % WORDS.len()]];
    let length = 2 + stream.index(4);
    while words.len() < length {
        let word = WORDS[stream.index(WORDS.len())];
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lists_are_distinct_and_have_two_to_five_different_words() {
        let lists: BTreeSet<Vec<&str>> = (0..LISTS).map(list).collect();
        assert_eq!(lists.len(), LISTS);
        for words in lists {
            assert!((2..=5).contains(&words.len()));
            assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        }
    }
}
