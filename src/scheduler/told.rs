//! Whom a worker was told of lately.

use crate::protocol::WorkerId;

/// The latest peers that a worker was told the addresses of, in a line of a processor's cache. Of ten thousand workers each may
/// meet any other, but mostly meets some that it met shortly before: who is forgotten here is told of again, should it ever
/// matter.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Told {
    /// The lower halves of their numbers, the latest first.
    latest: [u16; Self::MOST],
    count: u8,
    forgot: bool,
    /// The upper half of all their numbers.
    upper: u16,
}

const _: () = assert!(size_of::<Told>() == 64);

impl Told {
    const MOST: usize = 30;

    fn knows(&self, peer: WorkerId) -> bool {
        let (upper, lower) = halves(peer);
        upper == self.upper && self.latest[..usize::from(self.count)].contains(&lower)
    }

    /// The worker is to know this peer; says whether it has to be told.
    pub(super) fn insert(&mut self, peer: WorkerId) -> bool {
        if self.knows(peer) {
            return false;
        }
        let (upper, lower) = halves(peer);
        if self.upper != upper {
            self.forgot |= self.count > 0;
            (self.count, self.upper) = (0, upper);
        }
        self.forgot |= usize::from(self.count) == Self::MOST;
        self.latest.copy_within(..Self::MOST - 1, 1);
        self.latest[0] = lower;
        self.count = (self.count + 1).min(Self::MOST as u8);
        true
    }

    /// Whether the worker may know this peer: it does, unless any was forgotten.
    pub(super) fn may_know(&self, peer: WorkerId) -> bool {
        self.forgot || self.knows(peer)
    }
}

fn halves(peer: WorkerId) -> (u16, u16) {
    ((peer.0 >> 16) as u16, peer.0 as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_told_once_and_who_may_know_a_peer_is_never_missed() {
        let mut told = Told::default();
        let peers = |from: u32| (from..).map(WorkerId).take(Told::MOST);
        assert!(!told.may_know(WorkerId(0)));
        assert!(peers(0).all(|peer| told.insert(peer)) && !peers(0).any(|peer| told.insert(peer)));
        assert!(peers(0).all(|peer| told.may_know(peer)));
        assert!(!peers(Told::MOST as u32).any(|peer| told.may_know(peer)), "none was forgotten");
        assert!(told.insert(WorkerId(1000)) && !told.insert(WorkerId(1000)), "one more");
        assert!(told.may_know(WorkerId(0)) && told.insert(WorkerId(0)), "it took the place of the first");
        assert!(!told.insert(WorkerId(Told::MOST as u32 - 1)));
    }

    #[test]
    fn peers_whose_numbers_end_alike_are_told_apart() {
        let mut told = Told::default();
        let (one, other) = (WorkerId(7), WorkerId(7 + (1 << 16)));
        for peer in [one, other, one, other] {
            assert!(told.insert(peer) && !told.insert(peer) && told.may_know(peer));
        }
        assert!(told.may_know(one), "nobody who was told is taken for one who was not");
    }
}
