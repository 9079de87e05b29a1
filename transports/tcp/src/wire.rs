//! How a message looks on the wire.
//!
//! ```text
//! block, 256 bytes:  magic | kind | head length | frames | payload bytes | the head's first 224 bytes
//! the rest of the head, if it is longer
//! the frames' lengths, 8 bytes each
//! the frames
//! ```
//!
//! A small message is one block: one read takes it in and nothing beyond it, so that no byte of a
//! frame ever passes through a buffer that is not its own.

use rankine_transport::{Limits, Message};

/// Bytes of the block that begins every message.
pub(crate) const BLOCK: usize = 256;
/// Bytes of the head that fit into the block.
pub(crate) const INLINE: usize = BLOCK - 32;

const MAGIC: [u8; 4] = *b"RKN1";

/// What a block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// A message begins.
    Message { head: u64, frames: u64, payload: u64 },
    /// No more messages come.
    Close,
}

impl Block {
    /// The block of `message`, with the beginning of its head.
    pub(crate) fn of(message: &Message) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(&MAGIC);
        let payload: u64 = message.frames.iter().map(|f| f.len() as u64).sum();
        for (i, number) in
            [message.head.len() as u64, message.frames.len() as u64, payload].iter().enumerate()
        {
            block[8 + 8 * i..16 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        let inline = message.head.len().min(INLINE);
        block[32..32 + inline].copy_from_slice(&message.head[..inline]);
        block
    }

    /// The block that closes a direction.
    pub(crate) fn close() -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(&MAGIC);
        block[4] = 1;
        block
    }

    /// Reads a block. Nothing it says is used before it is within `limits`.
    pub(crate) fn read(block: &[u8; BLOCK], limits: &Limits) -> Result<Self, String> {
        if block[..4] != MAGIC {
            return Err("it does not begin like a message of Rankine's".into());
        }
        match block[4] {
            0 => {}
            1 => return Ok(Self::Close),
            kind => return Err(format!("a message of unknown kind {kind}")),
        }
        let number = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[8 + 8 * i..16 + 8 * i]);
            u64::from_le_bytes(bytes)
        };
        let (head, frames, payload) = (number(0), number(1), number(2));
        for (what, is, most) in [
            ("head bytes", head, limits.head),
            ("frames", frames, limits.frames),
            ("payload bytes", payload, limits.payload),
        ] {
            if is > most {
                return Err(format!("a message of {is} {what} where at most {most} are taken"));
            }
        }
        Ok(Self::Message { head, frames, payload })
    }
}

/// The frames' lengths, which must add up to what the block said.
pub(crate) fn read_lengths(table: &[u8], payload: u64) -> Result<Vec<u64>, String> {
    let lengths: Vec<u64> =
        table.chunks_exact(8).map(|bytes| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes)).collect();
    let sum = lengths.iter().try_fold(0u64, |sum, length| sum.checked_add(*length));
    if sum == Some(payload) { Ok(lengths) } else { Err("frames that do not add up to their sum".into()) }
}
