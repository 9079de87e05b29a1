//! Places by hashes: the arena's index of keys.

use std::collections::VecDeque;

use super::prefetch::prefetch;

/// An open-addressing table of places, probed linearly (Knuth, The Art of Computer Programming, volume
/// 3, algorithms 6.4 L and R). A lookup reads one cache line of it where a table that keeps keys, or
/// metadata apart from entries, reads two; the key itself is compared where the task lies.
#[derive(Default)]
pub(super) struct Index {
    /// A power of two of them, or none.
    slots: Vec<Slot>,
    /// Some of those that were taken out may still be there.
    len: usize,
    /// Those, the latest last.
    gone: VecDeque<Slot>,
}

/// So many are taken out later: what that looks at has come by then.
const DELAY: usize = 8;

#[derive(Clone, Copy, PartialEq)]
struct Slot {
    hash: u32,
    /// One more than the place; 0 where the slot is empty.
    place: u32,
}

const EMPTY: Slot = Slot { hash: 0, place: 0 };

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first place of that hash which `is_it`; some that were taken out may be asked about, too.
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.place == 0 {
                return None;
            }
            if slot.hash == hash && is_it(slot.place - 1) {
                return Some(slot.place - 1);
            }
            at = (at + 1) & mask;
        }
    }

    /// Asks for where a probe for this hash begins.
    pub(super) fn prefetch(&self, hash: u32) {
        if let Some(mask) = self.slots.len().checked_sub(1) {
            prefetch(&self.slots[hash as usize & mask]);
        }
    }

    /// Adds a place that is not there.
    pub(super) fn insert(&mut self, hash: u32, place: u32) {
        // Two thirds full at most: probes stay short.
        if self.slots.len() * 2 < (self.len + self.gone.len() + 1) * 3 {
            let larger = vec![EMPTY; (self.slots.len() * 2).max(64)];
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot.place != 0 {
                    self.settle(slot);
                }
            }
        }
        self.len += 1;
        self.settle(Slot { hash, place: place + 1 });
    }

    fn settle(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = slot.hash as usize & mask;
        while self.slots[at].place != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    /// Takes a place out that is there.
    pub(super) fn remove(&mut self, hash: u32, place: u32) {
        self.prefetch(hash);
        self.gone.push_back(Slot { hash, place: place + 1 });
        self.len -= 1;
        if self.gone.len() > DELAY
            && let Some(gone) = self.gone.pop_front()
        {
            self.vacate(gone);
        }
    }

    fn vacate(&mut self, gone: Slot) {
        let Some(mask) = self.slots.len().checked_sub(1) else { return };
        let mut hole = gone.hash as usize & mask;
        // Another one may have come to the place since, by another hash.
        while self.slots[hole] != gone {
            if self.slots[hole].place == 0 {
                return;
            }
            hole = (hole + 1) & mask;
        }
        // Those behind move up, unless that would put them before where their probes begin.
        let mut next = (hole + 1) & mask;
        while self.slots[next].place != 0 {
            let home = self.slots[next].hash as usize & mask;
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.slots[hole] = EMPTY;
    }
}
