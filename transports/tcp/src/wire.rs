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
use rankine_transport::{Limits, Message};

/// Bytes of the block that begins every message.
pub(crate) const BLOCK: usize = 256;
/// Bytes of a block before its body.
const PREFIX: usize = 32;
/// Bytes of the body that fit into the block.
pub(crate) const INLINE: usize = BLOCK - PREFIX;
/// Bytes of a batch's body at most.
pub(crate) const BATCH: usize = 64 << 10;
/// Heads up to this size are copied, to travel with what else is small.
pub(crate) const SMALL: usize = 4 << 10;

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

impl Block {
    /// The bytes before the body.
    fn prefix(self) -> [u8; PREFIX] {
        let (kind, numbers) = match self {
            Self::Message { head, frames, payload } => (0, [head, frames, payload]),
            Self::Batch { body, messages, first } => (2, [body as u64, messages, first]),
            Self::Close => (1, [0; 3]),
        };
        let mut prefix = [0; PREFIX];
        prefix[..4].copy_from_slice(&MAGIC);
        prefix[4] = kind;
        for (place, number) in prefix[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        prefix
    }

    /// Reads a block. Nothing it says is used before it is within `limits`.
    pub(crate) fn read(block: &[u8], limits: &Limits) -> Result<Self, String> {
        if block.len() != BLOCK || block[..4] != MAGIC {
            return Err("it does not begin like a message of this version of Rankine".into());
        }
        let number = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&block[8 + 8 * i..16 + 8 * i]);
            u64::from_le_bytes(bytes)
        };
        let bounded = |what: &str, is: u64, most: u64| {
            if is <= most {
                return Ok(());
            }
            Err(format!("a message of {is} {what} where at most {most} are taken"))
        };
        match block[4] {
            0 => {
                let (head, frames, payload) = (number(0), number(1), number(2));
                bounded("head bytes", head, limits.head)?;
                bounded("frames", frames, limits.frames)?;
                bounded("payload bytes", payload, limits.payload)?;
                Ok(Self::Message { head, frames, payload })
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
            kind => Err(format!("a message of unknown kind {kind}")),
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
    let copied = if head <= SMALL { head } else { INLINE };
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
            1 => Block::Message { head: body as u64, frames: 0, payload: 0 },
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

/// The inline part of a block's body, of which `length` bytes are meant.
pub(crate) fn inline(block: &[u8], length: usize) -> &[u8] {
    &block[PREFIX..PREFIX + length.min(INLINE)]
}

/// The frames' lengths, which must add up to what the block said.
pub(crate) fn read_lengths(table: &[u8], payload: u64) -> Result<Vec<u64>, String> {
    let lengths: Vec<u64> =
        table.chunks_exact(8).map(|bytes| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes)).collect();
    let sum = lengths.iter().try_fold(0u64, |sum, length| sum.checked_add(*length));
    if sum == Some(payload) { Ok(lengths) } else { Err("frames that do not add up to their sum".into()) }
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
        if self.next > limits.head {
            let reason =
                format!("a message of {} head bytes where at most {} are taken", self.next, limits.head);
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
