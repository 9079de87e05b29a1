//! Sets of what is numbered densely.

use std::{iter, marker::PhantomData};

/// Some of the workers, or of the tasks' places, a bit for each: ten thousand fit into the fastest of a processor's caches,
/// a million into the next one.
pub(super) struct BitSet<M> {
    words: Box<[u64]>,
    count: u32,
    members: PhantomData<M>,
}

// It lies in a line of a processor's cache beside what else is looked at with it.
const _: () = assert!(size_of::<BitSet<u32>>() == 24);

impl<M> Default for BitSet<M> {
    fn default() -> Self {
        Self { words: Box::default(), count: 0, members: PhantomData }
    }
}

impl<M: From<u32> + Into<u32>> BitSet<M> {
    fn place(member: M) -> (usize, u64) {
        let number = member.into();
        (number as usize / 64, 1 << (number % 64))
    }

    pub(super) fn len(&self) -> usize {
        self.count as usize
    }

    /// Says whether it is a new member.
    pub(super) fn insert(&mut self, member: M) -> bool {
        let (word, bit) = Self::place(member);
        if self.words.len() <= word {
            self.grow(word + 1);
        }
        let bits = &mut self.words[word];
        let new = *bits & bit == 0;
        *bits |= bit;
        self.count += u32::from(new);
        new
    }

    #[cold]
    fn grow(&mut self, words: usize) {
        let mut grown = std::mem::take(&mut self.words).into_vec();
        grown.resize(words.next_power_of_two(), 0);
        self.words = grown.into();
    }

    /// Says whether it was a member.
    pub(super) fn remove(&mut self, member: M) -> bool {
        let (word, bit) = Self::place(member);
        let Some(bits) = self.words.get_mut(word) else { return false };
        let member = *bits & bit != 0;
        self.count -= u32::from(member);
        *bits &= !bit;
        member
    }

    /// In order, from one of them on and around.
    pub(super) fn around(&self, first: M) -> impl Iterator<Item = M> {
        let (middle, bit) = Self::place(first);
        let before = bit - 1;
        let others = (middle + 1..self.words.len()).chain(0..middle.min(self.words.len()));
        self.of_word(middle, !before)
            .chain(others.flat_map(|word| self.of_word(word, u64::MAX)))
            .chain(self.of_word(middle, before))
    }

    fn of_word(&self, word: usize, mask: u64) -> impl Iterator<Item = M> + use<M> {
        let mut bits = self.words.get(word).copied().unwrap_or(0) & mask;
        iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros())?;
            bits &= bits - 1;
            Some(M::from(word as u32 * 64 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_from_any_on_and_around() {
        let mut members = BitSet::<u32>::default();
        let ids = [0, 1, 63, 64, 65, 127, 128, 300];
        let new = ids.into_iter().chain(ids).filter(|id| members.insert(*id)).count();
        assert_eq!(new, ids.len());
        let gone = [64, 64, 5, 9999].into_iter().filter(|id| members.remove(*id)).count();
        assert_eq!(gone, 1);
        assert_eq!(members.len(), 7);
        let around = |first| members.around(first).collect::<Vec<_>>();
        assert_eq!(around(0), [0, 1, 63, 65, 127, 128, 300]);
        assert_eq!(around(64), [65, 127, 128, 300, 0, 1, 63]);
        assert_eq!(around(66), [127, 128, 300, 0, 1, 63, 65]);
        assert_eq!(around(301), [0, 1, 63, 65, 127, 128, 300]);
        assert_eq!(around(9999), [0, 1, 63, 65, 127, 128, 300]);
    }
}
