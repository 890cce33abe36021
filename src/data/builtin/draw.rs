//! Choices that look random and never change: a fixed hash of a stream's name and a row's id.
//!
//! Every choice has its own named stream, so adding one to the world leaves all the others as they were. The standard
//! library's hasher is not used: it may change between releases, and the world's digest is pinned.

/// A small stream of draws (splitmix64), seeded by a name and an id.
pub struct Draw(u64);

/// The stream `name` of row `id`.
pub fn draw(name: &str, id: &str) -> Draw {
    // FNV-1a, with a separator that occurs in neither part.
    let bytes = name.bytes().chain([0xff]).chain(id.bytes());
    Draw(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; the bias of the remainder is below 2⁻⁵⁰ for the limits used here.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An index into a list of `length` entries.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("it is below a usize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_itself_and_differs_from_its_neighbours() {
        let take = |name, id| {
            let mut stream = draw(name, id);
            [stream.below(1 << 40), stream.below(1 << 40)]
        };
        assert_eq!(take("opening", "a"), take("opening", "a"));
        assert_ne!(take("opening", "a"), take("opening", "b"));
        assert_ne!(take("opening", "a"), take("refusal", "a"));
    }

    #[test]
    fn draws_are_spread_evenly() {
        let mut counts = [0_u32; 10];
        for id in 0..10_000 {
            counts[draw("spread", &id.to_string()).index(10)] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
