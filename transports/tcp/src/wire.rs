//! How messages look on the wire.
//!
//! ```text
//! block, 256 bytes:  magic | kind | A | B | C | the first 224 bytes of the body
//!                     4      4      8   8   8
//! the rest of the body, if it is longer
//! the frames
//!
//! kind     body                                  A, B, C
//! message  the head, then each frame's length    head bytes, frames, payload bytes
//! batch    small heads, one after the other      body bytes, messages, bytes of the first head
//! close    nothing                               -
//! ```
//!
//! A small message is one block: one read takes it in and nothing beyond it, so that no byte of a
//! frame ever passes through a buffer that is not its own. Small messages without frames that wait at
//! the same time travel as a batch, which two reads take in; each head but the first has its length,
//! 4 bytes, before it. Numbers are little-endian.

use bytes::{BufMut, Bytes, BytesMut};
use rankine_transport::{
    Limits, Message,
    batch::{self, Batch, Contents, bounded},
    prefix,
};

/// Bytes of the block that begins every message.
pub(crate) const BLOCK: usize = 256;
/// Bytes of a block before its body.
const PREFIX: usize = prefix::length(3);
/// Bytes of the body that fit into the block.
pub(crate) const INLINE: usize = BLOCK - PREFIX;

const MAGIC: [u8; 4] = *b"RKN2";

/// What a block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// A message.
    Message { head: u64, frames: u64, payload: u64 },
    /// Small messages without frames.
    Batch { body: usize, messages: u64, first: u64 },
    /// No more messages come.
    Close,
}

/// A batch in blocks of this wire.
pub(crate) fn batch() -> Batch {
    Batch::new(BLOCK, PREFIX)
}

/// What waits in a batch, ready to be written.
pub(crate) fn batched(batch: &mut Batch) -> Bytes {
    batch.take(|prefix, contents| prefix.copy_from_slice(&Block::from(contents).prefix()))
}

impl From<Contents> for Block {
    fn from(contents: Contents) -> Self {
        match contents {
            Contents::One { head } => Self::Message { head, frames: 0, payload: 0 },
            Contents::Many { body, messages, first } => Self::Batch { body, messages, first },
        }
    }
}

impl Block {
    /// The bytes before the body.
    fn prefix(self) -> [u8; PREFIX] {
        let (kind, numbers) = match self {
            Self::Message { head, frames, payload } => (0, [head, frames, payload]),
            Self::Batch { body, messages, first } => (2, [body as u64, messages, first]),
            Self::Close => (1, [0; 3]),
        };
        let mut prefix = [0; PREFIX];
        prefix::write(&mut prefix, MAGIC, kind, &numbers);
        prefix
    }

    /// Reads a block. Nothing it says is used before it is within `limits`.
    pub(crate) fn read(block: &[u8], limits: &Limits) -> Result<Self, String> {
        match prefix::read(block, MAGIC)? {
            (0, [head, frames, payload]) => {
                limits.check(head, frames, payload)?;
                Ok(Self::Message { head, frames, payload })
            }
            (1, _) => Ok(Self::Close),
            (2, [body, messages, first]) => {
                bounded("bytes of a batch", body, batch::MOST as u64)?;
                if messages == 0 {
                    return Err("a batch of no messages".into());
                }
                Ok(Self::Batch { body: body as usize, messages, first })
            }
            (kind, _) => Err(format!("a message of unknown kind {kind}")),
        }
    }
}

/// A closed direction's last block.
pub(crate) fn close() -> Bytes {
    let mut block = BytesMut::zeroed(BLOCK);
    block[..PREFIX].copy_from_slice(&Block::Close.prefix());
    block.freeze()
}

/// A message in the pieces that are written one after the other. What is big is not copied.
pub(crate) fn pieces(message: Message) -> impl Iterator<Item = Bytes> {
    let payload = message.frames.iter().map(|f| f.len() as u64).sum();
    let (head, frames) = (message.head.len(), message.frames.len());
    let block = Block::Message { head: head as u64, frames: frames as u64, payload };
    let copied = if head <= batch::SMALL { head } else { INLINE };
    let mut start = BytesMut::with_capacity(BLOCK.max(PREFIX + copied + 8 * frames));
    start.put_slice(&block.prefix());
    start.put_slice(&message.head[..copied]);
    let mut rest = BytesMut::new();
    let table = if copied == head { &mut start } else { &mut rest };
    for frame in &message.frames {
        table.put_u64_le(frame.len() as u64);
    }
    if start.len() < BLOCK {
        start.resize(BLOCK, 0);
    }
    [start.freeze(), message.head.slice(copied..), rest.freeze()].into_iter().chain(message.frames)
}

/// The inline part of a block's body, of which `length` bytes are meant.
pub(crate) fn inline(block: &[u8], length: usize) -> &[u8] {
    &block[PREFIX..PREFIX + length.min(INLINE)]
}
