//! Eight half words that are searched at once.

/// Eight half words. Where it is as good as random which of them is looked for, a processor foretells the end of a search one after
/// the other wrongly most times, and that costs more than to look at all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eight(u128);

impl Eight {
    /// A one in each.
    const ONES: u64 = 0x0001_0001_0001_0001;
    /// The highest bit of each.
    const HIGHEST: u128 = Self::all(0x8000).0;

    /// Eight times the same.
    pub(super) const fn all(value: u16) -> Self {
        let four = value as u64 * Self::ONES;
        Self((four as u128) << 64 | four as u128)
    }

    pub(super) fn get(self, place: usize) -> u16 {
        (self.0 >> (16 * place)) as u16
    }

    pub(super) fn set(&mut self, place: usize, value: u16) {
        let before = self.get(place);
        self.0 ^= u128::from(before ^ value) << (16 * place);
    }

    /// Where the first of them is that has this value: 8 if none has.
    pub(super) fn first(self, value: u16) -> usize {
        let differs = self.0 ^ Self::all(value).0;
        // What borrows is 0, or comes after one that is (Knuth, The Art of Computer Programming, volume 4A, section 7.1.3).
        let is = differs.wrapping_sub(Self::all(1).0) & !differs & Self::HIGHEST;
        is.trailing_zeros() as usize / 16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Eight;

    proptest! {
        /// Whatever else is there, and what differs by little.
        #[test]
        fn the_first_of_several_alike_is_found_wherever_it_is(
            values in prop::array::uniform8(prop_oneof![0u16..3, 0x7ffeu16..0x8002, 0xfffdu16..=0xffff]),
            sought in prop_oneof![0u16..3, 0x7ffeu16..0x8002, 0xfffdu16..=0xffff],
        ) {
            let mut eight = Eight::all(values[0]);
            values.iter().enumerate().for_each(|(place, value)| eight.set(place, *value));
            prop_assert!(values.iter().enumerate().all(|(place, value)| eight.get(place) == *value));
            let first = values.iter().position(|value| *value == sought);
            prop_assert_eq!(eight.first(sought), first.unwrap_or(8));
        }
    }
}
