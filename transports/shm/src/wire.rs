//! How messages look on the wire.
//!
//! ```text
//! block, 256 bytes:  magic | kind | A | B | C | D | the first 216 bytes of the body
//!                     4      4      8   8   8   8
//! the rest of the body, if it is longer
//! the frames that are not lent
//!
//! kind      body                                      A, B, C, D
//! message   the head, each frame's length, the loans  head bytes, frames, payload bytes, lent frames
//! batch     small heads, one after the other          body bytes, messages, bytes of the first head
//! close     nothing                                   -
//! segments  nothing; their descriptors come along     the first one's number, how many
//! hello     nothing; the descriptor of the socket     -
//!           beside the messages comes along
//! ```
//!
//! The length of a lent frame has its highest bit set; its loan, 16 bytes, says in which segment it lies and
//! where. In a batch each head but the first has its length, 4 bytes, before it. Numbers are little-endian.

use bytes::{BufMut, Bytes, BytesMut};
use rankine_transport::{
    Limits,
    batch::{self, Batch, Contents, bounded},
    prefix,
};

/// Bytes of the block that begins every message.
pub(crate) const BLOCK: usize = 256;
/// Bytes of a block before its body.
const PREFIX: usize = prefix::length(4);
/// Bytes of the body that fit into the block.
pub(crate) const INLINE: usize = BLOCK - PREFIX;
/// Marks the length of a lent frame.
const LENT: u64 = 1 << 63;

pub(crate) const MAGIC: [u8; 4] = *b"RKS1";

/// What a block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// A message.
    Message { head: u64, frames: u64, payload: u64, lent: u64 },
    /// No more messages come.
    Close,
    /// Small messages without frames.
    Batch { body: usize, messages: u64, first: u64 },
    /// Memory that frames to come lie in.
    Segments { first: u64, count: u64 },
    /// The first block of who connects.
    Hello,
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
            Contents::One { head } => Self::Message { head, frames: 0, payload: 0, lent: 0 },
            Contents::Many { body, messages, first } => Self::Batch { body, messages, first },
        }
    }
}

impl Block {
    /// The bytes before the body.
    fn prefix(self) -> [u8; PREFIX] {
        let (kind, numbers) = match self {
            Self::Message { head, frames, payload, lent } => (0, [head, frames, payload, lent]),
            Self::Close => (1, [0; 4]),
            Self::Batch { body, messages, first } => (2, [body as u64, messages, first, 0]),
            Self::Segments { first, count } => (3, [first, count, 0, 0]),
            Self::Hello => (4, [0; 4]),
        };
        let mut prefix = [0; PREFIX];
        prefix::write(&mut prefix, MAGIC, kind, &numbers);
        prefix
    }

    /// The whole block of a kind without a body.
    pub(crate) fn bytes(self) -> Bytes {
        let mut block = BytesMut::zeroed(BLOCK);
        block[..PREFIX].copy_from_slice(&self.prefix());
        block.freeze()
    }

    /// Reads a block. Nothing it says is used before it is within `limits`.
    pub(crate) fn read(block: &[u8; BLOCK], limits: &Limits) -> Result<Self, String> {
        match prefix::read(block, MAGIC)? {
            (0, [head, frames, payload, lent]) => {
                limits.check(head, frames, payload)?;
                bounded("lent frames", lent, frames)?;
                Ok(Self::Message { head, frames, payload, lent })
            }
            (1, _) => Ok(Self::Close),
            (2, [body, messages, first, _]) => {
                bounded("bytes of a batch", body, batch::MOST as u64)?;
                if messages == 0 {
                    return Err("a batch of no messages".into());
                }
                Ok(Self::Batch { body: body as usize, messages, first })
            }
            (3, [first, count, ..]) => {
                bounded("memory segments", count, limits.frames.min(crate::socket::DESCRIPTORS as u64))?;
                first.checked_add(count).ok_or("memory segments beyond all numbers")?;
                Ok(Self::Segments { first, count })
            }
            (4, _) => Ok(Self::Hello),
            (kind, _) => Err(format!("a message of unknown kind {kind}")),
        }
    }
}

/// How a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// So many bytes after the body.
    Inline { length: u64 },
    /// As it lies in a segment.
    Lent { length: u64, segment: u64, offset: u64 },
}

/// What goes before a message's inline frames: the block, and if they do not fit into it, its head, which is not
/// copied then, and its tables.
pub(crate) fn start(head: Bytes, slots: &[Slot]) -> [Bytes; 3] {
    let (mut payload, mut lent) = (0, 0);
    for slot in slots {
        match slot {
            Slot::Inline { length } => payload += length,
            Slot::Lent { length, .. } => (payload, lent) = (payload + length, lent + 1),
        }
    }
    let block = Block::Message { head: head.len() as u64, frames: slots.len() as u64, payload, lent };
    let copied = if head.len() <= batch::SMALL { head.len() } else { INLINE };
    let tables = 8 * slots.len() + 16 * lent as usize;
    let mut start = BytesMut::with_capacity(BLOCK.max(PREFIX + copied + tables));
    start.put_slice(&block.prefix());
    start.put_slice(&head[..copied]);
    let mut rest = BytesMut::new();
    let table = if copied == head.len() { &mut start } else { &mut rest };
    for slot in slots {
        table.put_u64_le(match slot {
            Slot::Inline { length } => *length,
            Slot::Lent { length, .. } => length | LENT,
        });
    }
    for slot in slots {
        if let Slot::Lent { segment, offset, .. } = slot {
            table.put_u64_le(*segment);
            table.put_u64_le(*offset);
        }
    }
    if start.len() < BLOCK {
        start.resize(BLOCK, 0);
    }
    [start.freeze(), head.slice(copied..), rest.freeze()]
}

/// Bytes of a message's tables.
pub(crate) fn table_length(frames: u64, lent: u64) -> usize {
    // Limits are far below what could overflow.
    8 * frames as usize + 16 * lent as usize
}

/// How the frames travel; what the tables say must add up to what the block said.
pub(crate) fn read_table(table: &[u8], frames: u64, lent: u64, payload: u64) -> Result<Vec<Slot>, String> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let (lengths, loans) = table.split_at(table.len().min(8 * frames as usize));
    let mut loans = loans.chunks_exact(16);
    let mut sum = Some(0u64);
    let mut slots = Vec::with_capacity(lengths.len() / 8);
    for bytes in lengths.chunks_exact(8) {
        let length = number(bytes);
        sum = sum.and_then(|sum| sum.checked_add(length & !LENT));
        slots.push(if length & LENT == 0 {
            Slot::Inline { length }
        } else {
            let loan = loans.next().ok_or("more lent frames than there are loans")?;
            let (segment, offset) = (number(&loan[..8]), number(&loan[8..]));
            Slot::Lent { length: length & !LENT, segment, offset }
        });
    }
    if sum != Some(payload)
        || loans.len() > 0
        || slots.len() as u64 != frames
        || table_length(frames, lent) != table.len()
    {
        return Err("frames that do not add up to their sum".into());
    }
    Ok(slots)
}

/// The inline part of a block's body, of which `length` bytes are meant.
pub(crate) fn inline(block: &[u8; BLOCK], length: usize) -> &[u8] {
    &block[PREFIX..PREFIX + length.min(INLINE)]
}
