//! Small facts, worded alike: "the capital of france is paris".

/// Ways to ask for `{fact}`.
pub const PHRASINGS: [&str; 8] = [
    "what is {fact} ?",
    "tell me {fact} .",
    "do you know {fact} ?",
    "please name {fact} .",
    "i forgot {fact} .",
    "{fact} is what ?",
    "quick question : what is {fact} ?",
    "can you say what {fact} is ?",
];

/// A relation, the things that it is asked of, and what is true of each.
type Relation = (&'static str, &'static [(&'static str, &'static str)]);

/// All facts, by relation.
pub const FACTS: [Relation; 9] = [
    (
        "the capital of",
        &[
            ("france", "paris"),
            ("italy", "rome"),
            ("spain", "madrid"),
            ("germany", "berlin"),
            ("england", "london"),
            ("japan", "tokyo"),
            ("china", "beijing"),
            ("russia", "moscow"),
            ("greece", "athens"),
            ("egypt", "cairo"),
            ("austria", "vienna"),
            ("norway", "oslo"),
            ("sweden", "stockholm"),
            ("poland", "warsaw"),
            ("ireland", "dublin"),
            ("canada", "ottawa"),
        ],
    ),
    (
        "the colour of",
        &[
            ("grass", "green"),
            ("the sky", "blue"),
            ("snow", "white"),
            ("coal", "black"),
            ("a lemon", "yellow"),
            ("blood", "red"),
            ("a carrot", "orange"),
            ("milk", "white"),
            ("a tomato", "red"),
            ("chocolate", "brown"),
            ("a crow", "black"),
            ("the sun", "yellow"),
        ],
    ),
    (
        "the opposite of",
        &[
            ("hot", "cold"),
            ("big", "small"),
            ("fast", "slow"),
            ("up", "down"),
            ("wet", "dry"),
            ("old", "new"),
            ("day", "night"),
            ("left", "right"),
            ("high", "low"),
            ("soft", "hard"),
            ("early", "late"),
            ("dark", "light"),
            ("full", "empty"),
            ("first", "last"),
        ],
    ),
    (
        "the day after",
        &[
            ("monday", "tuesday"),
            ("tuesday", "wednesday"),
            ("wednesday", "thursday"),
            ("thursday", "friday"),
            ("friday", "saturday"),
            ("saturday", "sunday"),
            ("sunday", "monday"),
        ],
    ),
    (
        "the month after",
        &[
            ("january", "february"),
            ("february", "march"),
            ("march", "april"),
            ("april", "may"),
            ("may", "june"),
            ("june", "july"),
            ("july", "august"),
            ("august", "september"),
            ("september", "october"),
            ("october", "november"),
            ("november", "december"),
            ("december", "january"),
        ],
    ),
    (
        "the young of",
        &[
            ("a dog", "puppy"),
            ("a cat", "kitten"),
            ("a cow", "calf"),
            ("a sheep", "lamb"),
            ("a horse", "foal"),
            ("a hen", "chick"),
            ("a bear", "cub"),
            ("a goat", "kid"),
            ("a duck", "duckling"),
        ],
    ),
    (
        "the number of legs of",
        &[
            ("a spider", "8"),
            ("a dog", "4"),
            ("a bird", "2"),
            ("an ant", "6"),
            ("a snake", "0"),
            ("a bee", "6"),
            ("a horse", "4"),
        ],
    ),
    (
        "the sound of",
        &[("a cat", "meow"), ("a dog", "woof"), ("a cow", "moo"), ("a duck", "quack"), ("a sheep", "baa")],
    ),
    (
        "the home of",
        &[("a bee", "hive"), ("a bird", "nest"), ("a spider", "web"), ("a king", "castle"), ("a horse", "stable")],
    ),
];
