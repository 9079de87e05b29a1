//! Whom a worker met lately.

use crate::protocol::WorkerId;

/// The latest peers that were noted of a worker, in a line of a processor's cache. Of ten thousand workers each may meet any other,
/// but mostly meets some that it met shortly before.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Lately {
    /// The lower halves of their numbers, the latest first; where there are fewer, the first one again and again.
    peers: [u16; Self::MOST],
    count: u8,
    forgot: bool,
    /// The upper half of all their numbers.
    upper: u16,
}

const _: () = assert!(size_of::<Lately>() == 64);

impl Lately {
    const MOST: usize = 30;

    fn has(&self, peer: WorkerId) -> bool {
        let (upper, lower) = halves(peer);
        // All are looked at, several at a time, rather than one after the other until it is found.
        let among = self.peers.iter().fold(false, |among, peer| among | (*peer == lower));
        among && upper == self.upper && self.count > 0
    }

    /// Notes a peer, in place of the one that was noted first; says whether it is new.
    pub(super) fn insert(&mut self, peer: WorkerId) -> bool {
        if self.has(peer) {
            return false;
        }
        let (upper, lower) = halves(peer);
        if self.count == 0 || self.upper != upper {
            self.forgot |= self.count > 0;
            (self.peers, self.count, self.upper) = ([lower; Self::MOST], 1, upper);
            return true;
        }
        self.forgot |= usize::from(self.count) == Self::MOST;
        self.peers.copy_within(..Self::MOST - 1, 1);
        self.peers[0] = lower;
        self.count = (self.count + 1).min(Self::MOST as u8);
        true
    }

    /// Whether a peer was ever noted: if any was forgotten, it may have been.
    pub(super) fn may_have_had(&self, peer: WorkerId) -> bool {
        self.forgot || self.has(peer)
    }
}

fn halves(peer: WorkerId) -> (u16, u16) {
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
    fn peers_whose_numbers_end_alike_are_told_apart() {
        let mut lately = Lately::default();
        let (one, other) = (WorkerId(7), WorkerId(7 + (1 << 16)));
        for peer in [one, other, one, other] {
            assert!(lately.insert(peer) && !lately.insert(peer) && lately.may_have_had(peer));
        }
        assert!(lately.may_have_had(one), "nobody who was told is taken for one who was not");
    }
}
