//! Whom a worker knows.

use crate::protocol::WorkerId;

/// The latest peers that a worker was told of, and which of them it met since, in a line of a processor's cache. Of ten thousand
/// workers each may meet any other, but mostly meets some that it met shortly before. Where numbers of two upper halves alternate,
/// as they may once 65,536 workers came and went, those of the other half are forgotten each time.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Lately {
    /// The lower halves of their numbers; where there are fewer, the first one again and again.
    peers: [u16; Self::MOST],
    /// Those that were met once, and those that were met again, a bit for each place.
    met: [u32; 2],
    /// The upper half of all their numbers.
    upper: u16,
    /// How many were noted: where any was forgotten, one more than there is room for.
    noted: u8,
    /// Whose place the next one takes.
    next: u8,
}

const _: () = assert!(size_of::<Lately>() == 64);

impl Lately {
    const MOST: usize = 26;
    const TOO_MANY: u8 = Self::MOST as u8 + 1;

    /// Notes a peer, in place of the one that was noted first; says whether it is new.
    pub(super) fn insert(&mut self, peer: WorkerId) -> bool {
        let new = !self.has(peer);
        if new {
            self.note(peer);
        }
        new
    }

    /// Notes that a peer was met, unless it was forgotten: whom a worker was told of does not go by what it says. Says whether it was
    /// met twice before, as far as is known.
    pub(super) fn meet(&mut self, peer: WorkerId) -> bool {
        let Some(place) = self.place(peer) else { return false };
        let ([once, again], bit) = (&mut self.met, 1 << place);
        let before = *again & bit != 0;
        *again |= *once & bit;
        *once |= bit;
        before
    }

    /// Whether any of them may be a peer: all, or none, have the same upper half.
    fn may_have(&self, peer: WorkerId) -> bool {
        self.noted > 0 && halves(peer).0 == self.upper
    }

    /// As [`Self::place`], for less where it does not matter where. All are looked at, several at a time, rather than one after the
    /// other until it is found: who is met next is as good as random, and a processor would foretell the end of the search wrongly
    /// each time.
    fn has(&self, peer: WorkerId) -> bool {
        let (_, lower) = halves(peer);
        self.peers.iter().fold(false, |among, peer| among | (*peer == lower)) & self.may_have(peer)
    }

    /// Where a peer is. Places are counted in half words, as many at a time as there are peers in a register.
    fn place(&self, peer: WorkerId) -> Option<usize> {
        let (_, lower) = halves(peer);
        let places = self.peers.iter().zip(0..);
        let first = places.fold(i16::MAX, |first, (noted, place)| {
            first.min(if *noted == lower { place } else { i16::MAX })
        });
        (first < i16::MAX && self.may_have(peer)).then_some(first as usize)
    }

    /// Notes a peer that is new.
    fn note(&mut self, peer: WorkerId) {
        let (upper, lower) = halves(peer);
        if self.noted == 0 || self.upper != upper {
            let noted = if self.noted == 0 { 1 } else { Self::TOO_MANY };
            *self = Self { peers: [lower; Self::MOST], met: [0; 2], upper, noted, next: 1 };
            return;
        }
        let place = usize::from(self.next);
        self.peers[place] = lower;
        self.met.iter_mut().for_each(|met| *met &= !(1 << place));
        self.noted = (self.noted + 1).min(Self::TOO_MANY);
        self.next = (self.next + 1) % Self::MOST as u8;
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
    use proptest::prelude::*;

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
        let mut all_met = || peers(0).map(|peer| lately.meet(peer)).collect::<Vec<_>>();
        assert_eq!(
            [all_met(), all_met(), all_met()],
            [false, false, true].map(|met| vec![met; Lately::MOST])
        );
        // One more takes the place of the first, and was not met because that was.
        let (next, first) = (WorkerId(Lately::MOST as u32), WorkerId(0));
        assert!(lately.insert(next) && !lately.meet(next) && !lately.meet(next) && lately.meet(next));
        assert!(!(0..9).any(|_| lately.meet(first)), "it was forgotten");
        assert!(lately.insert(first) && !lately.meet(first), "and is told of as anew");
    }

    #[test]
    fn peers_whose_numbers_end_alike_are_told_apart() {
        let mut lately = Lately::default();
        let (one, other) = (WorkerId(7), WorkerId(7 + (1 << 16)));
        for peer in [one, other, one, other] {
            assert!(lately.insert(peer) && !lately.insert(peer) && lately.may_have_had(peer));
            assert!(!lately.meet(peer) && !lately.meet(peer) && lately.meet(peer));
        }
        assert!(lately.may_have_had(one), "nobody who was told is taken for one who was not");
    }

    proptest! {
        /// Whoever is told of and met, of two upper halves of numbers now and then.
        #[test]
        fn all_that_is_said_of_the_latest_is_true(
            steps in prop::collection::vec((0u32..40, prop::bool::weighted(0.02), any::<bool>()), 0..300),
        ) {
            let (mut lately, mut ever) = (Lately::default(), std::collections::BTreeSet::new());
            // The latest, each with how often it was met; of one half.
            let mut latest = Vec::<(WorkerId, u32)>::new();
            for (number, other_half, is_met) in steps {
                let peer = WorkerId(number + if other_half { 1 << 16 } else { 0 });
                let place = latest.iter().position(|(known, _)| *known == peer);
                if is_met {
                    let met = place.map(|place| &mut latest[place].1);
                    prop_assert_eq!(lately.meet(peer), met.as_ref().is_some_and(|met| **met >= 2));
                    met.into_iter().for_each(|met| *met += 1);
                } else {
                    prop_assert_eq!(lately.insert(peer), place.is_none());
                    ever.insert(peer);
                    if place.is_none() {
                        latest.retain(|(known, _)| halves(*known).0 == halves(peer).0);
                        latest.push((peer, 0));
                        latest.drain(..latest.len().saturating_sub(Lately::MOST));
                    }
                }
                prop_assert!(ever.iter().all(|peer| lately.may_have_had(*peer)));
                prop_assert!(lately.noted > Lately::MOST as u8 || latest.len() == ever.len());
            }
        }
    }
}
