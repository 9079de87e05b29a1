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
use rankine_transport::Limits;

/// Bytes of the block that begins every message.
pub(crate) const BLOCK: usize = 256;
/// Bytes of a block before its body.
const PREFIX: usize = 40;
/// Bytes of the body that fit into the block.
pub(crate) const INLINE: usize = BLOCK - PREFIX;
/// Bytes of a batch's body at most.
pub(crate) const BATCH: usize = 64 << 10;
/// Heads up to this size are copied, to travel with what else is small.
pub(crate) const SMALL: usize = 4 << 10;
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
        prefix[..4].copy_from_slice(&MAGIC);
        prefix[4] = kind;
        for (place, number) in prefix[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
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
        if block[..4] != MAGIC {
            return Err("it does not begin like a message of this version of Rankine".into());
        }
        let number = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[8 + 8 * i..16 + 8 * i]);
            u64::from_le_bytes(bytes)
        };
        match block[4] {
            0 => {
                let (head, frames, payload, lent) = (number(0), number(1), number(2), number(3));
                bounded("head bytes", head, limits.head)?;
                bounded("frames", frames, limits.frames)?;
                bounded("payload bytes", payload, limits.payload)?;
                bounded("lent frames", lent, frames)?;
                Ok(Self::Message { head, frames, payload, lent })
            }
            1 => Ok(Self::Close),
            2 => {
                let (body, messages, first) = (number(0), number(1), number(2));
                bounded("bytes of a batch", body, BATCH as u64)?;
                if messages == 0 {
                    return Err("a batch of no messages".into());
                }
                Ok(Self::Batch { body: body as usize, messages, first })
            }
            3 => {
                let (first, count) = (number(0), number(1));
                bounded("memory segments", count, limits.frames.min(crate::socket::DESCRIPTORS as u64))?;
                first.checked_add(count).ok_or("memory segments beyond all numbers")?;
                Ok(Self::Segments { first, count })
            }
            4 => Ok(Self::Hello),
            kind => Err(format!("a message of unknown kind {kind}")),
        }
    }
}

fn bounded(what: &str, is: u64, most: u64) -> Result<(), String> {
    if is <= most { Ok(()) } else { Err(format!("a message of {is} {what} where at most {most} are taken")) }
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
    let copied = if head.len() <= SMALL { head.len() } else { INLINE };
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

/// Small messages that wait to be written together.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: BytesMut,
    messages: u64,
    first: u64,
}

impl Batch {
    /// Whether a head of that size travels in a batch, and there is still room for it.
    pub(crate) fn takes(&self, head: usize) -> bool {
        head <= SMALL && self.bytes.len() + 4 + head <= PREFIX + BATCH
    }

    /// Adds a message of this head, which it [`takes`](Self::takes).
    pub(crate) fn push(&mut self, head: &[u8]) {
        if self.messages == 0 {
            self.bytes.reserve(BLOCK);
            self.bytes.put_slice(&[0; PREFIX]);
            self.first = head.len() as u64;
        } else {
            self.bytes.put_u32_le(head.len() as u32);
        }
        self.bytes.put_slice(head);
        self.messages += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Its bytes; the batch is empty again.
    pub(crate) fn take(&mut self) -> Bytes {
        let mut bytes = self.bytes.split();
        let body = bytes.len() - PREFIX;
        let block = match self.messages {
            1 => Block::Message { head: body as u64, frames: 0, payload: 0, lent: 0 },
            messages => Block::Batch { body, messages, first: self.first },
        };
        bytes[..PREFIX].copy_from_slice(&block.prefix());
        if bytes.len() < BLOCK {
            bytes.resize(BLOCK, 0);
        }
        self.messages = 0;
        bytes.freeze()
    }

    pub(crate) fn len(&self) -> usize {
        if self.is_empty() { 0 } else { self.bytes.len().max(BLOCK) }
    }
}

/// The heads of a received batch, one after the other.
pub(crate) struct Heads {
    body: Bytes,
    left: u64,
    next: u64,
}

impl Heads {
    /// Those of a batch as its block announced it.
    pub(crate) fn new(body: Bytes, messages: u64, first: u64) -> Self {
        Self { body, left: messages, next: first }
    }

    /// The next head, `None` after the last; an error where the batch is not what it said.
    pub(crate) fn next(&mut self, limits: &Limits) -> Option<Result<Bytes, String>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        if let Err(reason) = bounded("head bytes", self.next, limits.head) {
            return Some(Err(reason));
        }
        let short = || Some(Err("a batch that is shorter than its messages".into()));
        if self.next > self.body.len() as u64 {
            return short();
        }
        let head = self.body.split_to(self.next as usize);
        if self.left > 0 {
            let Some(length) = self.body.first_chunk::<4>() else { return short() };
            self.next = u64::from(u32::from_le_bytes(*length));
            let _ = self.body.split_to(4);
        } else if !self.body.is_empty() {
            return Some(Err("a batch that is longer than its messages".into()));
        }
        Some(Ok(head))
    }
}
