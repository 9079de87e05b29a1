//! How messages look on a queue pair.
//!
//! Each direction is a stream of bytes, cut into segments that are sent as they fill or as nothing more waits:
//!
//! ```text
//! header, 32 bytes:  magic | kind | head length | frames | payload bytes
//! the frames' lengths, 8 bytes each
//! the head
//! the frames
//! ```
//!
//! A head or frame shorter than [`RENDEZVOUS`] lies in the stream itself. Of a longer one only descriptors do, one for
//! each piece of at most [`PIECE`] bytes: the address and the key by which the receiver reads it.
//!
//! Beside each segment travels a word (verbs' immediate data): how many segments its sender has consumed and how many
//! pieces it has read so far, both modulo 2^14, and flags. A word may come alone.

use rankine_transport::{Limits, Message, prefix};

/// Bytes of a segment.
pub(crate) const SEGMENT: usize = 8 << 10;
/// Segments that a peer may send before this side has consumed any.
pub(crate) const CREDITS: u16 = 32;
/// Frames from this length up are read by the receiver instead of being sent.
pub(crate) const RENDEZVOUS: u64 = 32 << 10;
/// Longer frames are read in pieces of this length.
pub(crate) const PIECE: u64 = 64 << 20;
/// Bytes of a message's header.
pub(crate) const HEADER: usize = prefix::length(3);
/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 16;

const MAGIC: [u8; 4] = *b"RKV1";

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// A message begins.
    Message { head: u64, frames: u64, payload: u64 },
    /// No more messages come.
    Close,
}

impl Header {
    pub(crate) fn of(message: &Message) -> Self {
        let payload = message.frames.iter().map(|frame| frame.len() as u64).sum();
        Self::Message { head: message.head.len() as u64, frames: message.frames.len() as u64, payload }
    }

    pub(crate) fn encode(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        match self {
            Self::Message { head, frames, payload } => {
                prefix::write(&mut header, MAGIC, 0, &[head, frames, payload]);
            }
            Self::Close => prefix::write(&mut header, MAGIC, 1, &[]),
        }
        header
    }

    /// # Errors
    /// If it is none.
    pub(crate) fn decode(header: &[u8; HEADER]) -> Result<Self, String> {
        match prefix::read(header, MAGIC)? {
            (0, [head, frames, payload]) => Ok(Self::Message { head, frames, payload }),
            (1, _) => Ok(Self::Close),
            (kind, _) => Err(format!("a message of unknown kind {kind}")),
        }
    }

    /// # Errors
    /// If the message is beyond the limits.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), String> {
        match *self {
            Self::Message { head, frames, payload } => limits.check(head, frames, payload),
            Self::Close => Ok(()),
        }
    }

    /// Bytes of memory that the message will take, as far as its header tells.
    pub(crate) fn nbytes(&self) -> u64 {
        match *self {
            Self::Message { head, payload, .. } => head.saturating_add(payload),
            Self::Close => 0,
        }
    }
}

/// Where a piece of a frame lies in the sender's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) key: u32,
}

impl Descriptor {
    pub(crate) fn encode(self) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; DESCRIPTOR]) -> Self {
        let (mut address, mut key) = ([0; 8], [0; 4]);
        address.copy_from_slice(&bytes[..8]);
        key.copy_from_slice(&bytes[8..12]);
        Self { address: u64::from_le_bytes(address), key: u32::from_le_bytes(key) }
    }
}

const COUNT: u32 = (1 << 14) - 1;

/// What travels beside each segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Word {
    /// A segment of the stream comes with it, which used up one credit.
    pub(crate) segment: bool,
    /// The sending half went without closing.
    pub(crate) abandoned: bool,
    /// Segments consumed so far.
    pub(crate) consumed: u64,
    /// Pieces read so far.
    pub(crate) read: u64,
}

impl Word {
    pub(crate) fn encode(self) -> u32 {
        let flags = u32::from(self.segment) | u32::from(self.abandoned) << 1;
        flags << 28 | (self.consumed as u32 & COUNT) << 14 | (self.read as u32 & COUNT)
    }

    /// Reads a word of a peer that had told `before` last: counts only grow, by less than 2^14 at once.
    pub(crate) fn decode(word: u32, before: &Self) -> Self {
        let grown = |before: u64, count: u32| before + u64::from(count.wrapping_sub(before as u32) & COUNT);
        Self {
            segment: word >> 28 & 1 == 1,
            abandoned: word >> 29 & 1 == 1,
            consumed: grown(before.consumed, word >> 14 & COUNT),
            read: grown(before.read, word & COUNT),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_come_as_they_went() {
        let message = Message::new("four", vec![vec![0; 5].into(), vec![0; 6].into()]);
        assert_eq!(Header::of(&message), Header::Message { head: 4, frames: 2, payload: 11 });
        for header in [Header::of(&message), Header::Close] {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    proptest! {
        #[test]
        fn counts_in_words_go_on_past_their_end(consumed: u32, read: u32, more in 0u64..1 << 13) {
            let before = Word { consumed: consumed.into(), read: read.into(), ..Word::default() };
            let now = Word { segment: true, consumed: before.consumed + more, ..before };
            prop_assert_eq!(Word::decode(now.encode(), &before), now);
        }

        #[test]
        fn any_header_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), HEADER)) {
            let mut header = [0; HEADER];
            header.copy_from_slice(&bytes);
            let _ = Header::decode(&header);
            header[..4].copy_from_slice(&MAGIC);
            header[4] &= 1;
            let decoded = Header::decode(&header).unwrap();
            if decoded.check(&Limits::PEER).is_ok() {
                prop_assert!(decoded.nbytes() <= Limits::PEER.head + Limits::PEER.payload);
            }
        }
    }
}
