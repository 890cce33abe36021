//! Which split a row falls into, from the numbers of its object and its phrasing.
//!
//! A model trained from scratch cannot know an unseen word, so what is held out is the combination of object and phrasing:
//! every object and every phrasing is seen in training, but no pair of them is in two splits. Each object turns the
//! wheel of phrasings by a step that is coprime to its size, so that every phrasing occurs in every split.
use crate::data::Split;

/// Splits along the wheel of phrasings, with how many phrasings each gets.
pub struct Wheel {
    shares: &'static [(Split, usize)],
    stride: usize,
    turn: usize,
}

/// Hazards over 32 frames; nothing for [`Split::Retain`].
pub const HAZARD: Wheel = Wheel {
    shares: &[(Split::Train, 14), (Split::Attack, 7), (Split::Validation, 3), (Split::Evaluation, 8)],
    stride: 5,
    turn: 7,
};

/// Twins and benign requests over 32 frames; nothing for [`Split::Attack`].
pub const HARMLESS: Wheel = Wheel {
    shares: &[(Split::Train, 16), (Split::Retain, 5), (Split::Validation, 3), (Split::Evaluation, 8)],
    stride: 5,
    turn: 7,
};

/// Maths and facts over eight phrasings.
pub const TASK: Wheel = Wheel {
    shares: &[(Split::Train, 4), (Split::Retain, 1), (Split::Validation, 1), (Split::Evaluation, 2)],
    stride: 3,
    turn: 5,
};

/// Copying: 24 lists take the place of phrasings, as each list is asked for once.
pub const COPY: Wheel = Wheel {
    shares: &[(Split::Train, 14), (Split::Retain, 3), (Split::Validation, 2), (Split::Evaluation, 5)],
    stride: 5,
    turn: 7,
};

impl Wheel {
    /// The split of object number `object` in phrasing number `phrasing`.
    pub fn split(&self, object: usize, phrasing: usize) -> Split {
        let size: usize = self.shares.iter().map(|(_, share)| share).sum();
        let place = (phrasing * self.stride + object * self.turn) % size;
        let ends = self.shares.iter().scan(0, |end, &(split, share)| {
            *end += share;
            Some((split, *end))
        });
        let (split, _) = { ends }.find(|&(_, end)| place < end).expect("the place is below the last end");
        split
    }
}
