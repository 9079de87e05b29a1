//! Whom a worker knows.

use crate::protocol::WorkerId;

/// The latest peers that a worker was told of, and which of them it met since, in a line of a processor's cache. Of ten thousand
/// workers each may meet any other, but mostly meets some that it met shortly before.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Lately {
    /// The lower halves of their numbers; where there are fewer, the first one again and again.
    peers: [u16; Self::MOST],
    /// Those that were met, a bit for each place.
    met: u32,
    /// The upper half of all their numbers.
    upper: u16,
    /// How many were noted: where any was forgotten, one more than there is room for.
    noted: u8,
    /// Whose place the next one takes.
    next: u8,
}

const _: () = assert!(size_of::<Lately>() == 64);

impl Lately {
    const MOST: usize = 28;
    const TOO_MANY: u8 = Self::MOST as u8 + 1;

    /// Notes a peer, in place of the one that was noted first; says whether it is new.
    pub(super) fn insert(&mut self, peer: WorkerId) -> bool {
        let new = !self.has(peer);
        if new {
            self.note(peer);
        }
        new
    }

    /// Notes that a peer was met; says whether it was before, as far as is known.
    pub(super) fn meet(&mut self, peer: WorkerId) -> bool {
        let place = self.place(peer).unwrap_or_else(|| self.note(peer));
        let before = self.met & 1 << place != 0;
        self.met |= 1 << place;
        before
    }

    fn has(&self, peer: WorkerId) -> bool {
        let (upper, lower) = halves(peer);
        // All are looked at, several at a time, rather than one after the other until it is found: who is met next is as good as
        // random, and a processor would foretell the end of the search wrongly each time.
        let among = self.peers.iter().fold(false, |among, peer| among | (*peer == lower));
        among && upper == self.upper && self.noted > 0
    }

    /// Where a peer is, if it [`Self::has`] it.
    fn place(&self, peer: WorkerId) -> Option<usize> {
        let (upper, lower) = halves(peer);
        let places = self.peers.iter().zip(0..);
        let first = places.fold(i16::MAX, |first, (noted, place)| {
            first.min(if *noted == lower { place } else { i16::MAX })
        });
        (first < i16::MAX && upper == self.upper && self.noted > 0).then_some(first as usize)
    }

    /// Notes a peer that is new; says where.
    fn note(&mut self, peer: WorkerId) -> usize {
        let (upper, lower) = halves(peer);
        if self.noted == 0 || self.upper != upper {
            let noted = if self.noted == 0 { 1 } else { Self::TOO_MANY };
            *self = Self { peers: [lower; Self::MOST], met: 0, upper, noted, next: 1 };
            return 0;
        }
        let place = usize::from(self.next);
        self.peers[place] = lower;
        self.met &= !(1 << place);
        self.noted = (self.noted + 1).min(Self::TOO_MANY);
        self.next = (self.next + 1) % Self::MOST as u8;
        place
    }

    /// Whether a peer was ever noted: if any was forgotten, it may have been.
    pub(super) fn may_have_had(&self, peer: WorkerId) -> bool {
        self.noted == Self::TOO_MANY || self.has(peer)
    }
}

/// The upper and the lower half of a worker's number.
pub(super) fn halves(peer: WorkerId) -> (u16, u16) {
    ((peer.0 >> 16) as u16, peer.0 as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_told_once_and_who_may_have_had_a_peer_is_never_missed() {
        let mut lately = Lately::default();
        let peers = |from: u32| (from..).map(WorkerId).take(Lately::MOST);
        assert!(!lately.may_have_had(WorkerId(0)));
        assert!(peers(0).all(|peer| lately.insert(peer)) && !peers(0).any(|peer| lately.insert(peer)));
        assert!(peers(0).all(|peer| lately.may_have_had(peer)));
        assert!(!peers(Lately::MOST as u32).any(|peer| lately.may_have_had(peer)), "none was forgotten");
        assert!(lately.insert(WorkerId(1000)) && !lately.insert(WorkerId(1000)), "one more");
        assert!(
            lately.may_have_had(WorkerId(0)) && lately.insert(WorkerId(0)),
            "it took the place of the first"
        );
        assert!(!lately.insert(WorkerId(Lately::MOST as u32 - 1)));
    }

    #[test]
    fn who_was_met_is_known_as_long_as_who_was_told_of() {
        let mut lately = Lately::default();
        let peers = |from: u32| (from..).map(WorkerId).take(Lately::MOST);
        assert!(peers(0).all(|peer| lately.insert(peer)));
        assert!(!peers(0).any(|peer| lately.meet(peer)) && peers(0).all(|peer| lately.meet(peer)));
        // One more takes the place of the first, and was not met because that was.
        let (next, first) = (WorkerId(Lately::MOST as u32), WorkerId(0));
        assert!(lately.insert(next) && !lately.meet(next) && lately.meet(next));
        assert!(!lately.meet(first), "it was forgotten");
        assert!(!lately.insert(first) && lately.meet(first), "whom it met it knows");
    }

    #[test]
    fn peers_whose_numbers_end_alike_are_told_apart() {
        let mut lately = Lately::default();
        let (one, other) = (WorkerId(7), WorkerId(7 + (1 << 16)));
        for peer in [one, other, one, other] {
            assert!(lately.insert(peer) && !lately.insert(peer) && lately.may_have_had(peer));
            assert!(!lately.meet(peer) && lately.meet(peer));
        }
        assert!(lately.may_have_had(one), "nobody who was told is taken for one who was not");
    }
}
