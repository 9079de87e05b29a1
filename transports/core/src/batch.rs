//! Small messages that travel together, for transports over streams of bytes.
//!
//! A stream's messages begin with a block, of which a few bytes, the prefix, say what follows; the body begins
//! in the block itself, so that one read takes in a small message and nothing beyond it. The body of a batch is
//! its messages' heads one after the other, each but the first with its length, 4 bytes little-endian, before it:
//! two reads take in thousands of messages.

use bytes::{BufMut, Bytes, BytesMut};

use crate::Limits;

/// Bytes of a batch's body at most.
pub const MOST: usize = 64 << 10;
/// Heads up to this size are copied, to travel with what else is small.
pub const SMALL: usize = 4 << 10;

/// What the prefix of a batch's block is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// One message without frames, whose head is all of the body.
    One {
        /// Bytes of the head.
        head: u64,
    },
    /// Several.
    Many {
        /// Bytes of the body.
        body: usize,
        /// How many messages there are.
        messages: u64,
        /// Bytes of the first head.
        first: u64,
    },
}

/// Small messages without frames that wait to be written together.
pub struct Batch {
    bytes: BytesMut,
    messages: u64,
    first: u64,
    prefix: usize,
    block: usize,
}

impl Batch {
    /// An empty batch, for blocks of so many bytes of which so many are the prefix.
    pub fn new(block: usize, prefix: usize) -> Self {
        Self { bytes: BytesMut::new(), messages: 0, first: 0, prefix, block }
    }

    /// Whether a head of that size travels in a batch, and there is still room for it.
    pub fn takes(&self, head: usize) -> bool {
        head <= SMALL && self.bytes.len() + 4 + head <= self.prefix + MOST
    }

    /// Adds a message of this head, which it [`takes`](Self::takes).
    pub fn push(&mut self, head: &[u8]) {
        if self.messages == 0 {
            self.bytes.reserve(self.block);
            self.bytes.put_bytes(0, self.prefix);
            self.first = head.len() as u64;
        } else {
            self.bytes.put_u32_le(head.len() as u32);
        }
        self.bytes.put_slice(head);
        self.messages += 1;
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes that wait to be written.
    pub fn nbytes(&self) -> usize {
        if self.is_empty() { 0 } else { self.bytes.len().max(self.block) }
    }

    /// Its bytes, of which `write` writes the prefix; the batch is empty again.
    pub fn take(&mut self, write: impl FnOnce(&mut [u8], Contents)) -> Bytes {
        let mut bytes = self.bytes.split();
        let body = bytes.len().saturating_sub(self.prefix);
        let contents = match self.messages {
            1 => Contents::One { head: body as u64 },
            messages => Contents::Many { body, messages, first: self.first },
        };
        write(&mut bytes[..self.prefix], contents);
        if bytes.len() < self.block {
            bytes.resize(self.block, 0);
        }
        self.messages = 0;
        bytes.freeze()
    }
}

/// The heads of a received batch, one after the other.
pub struct Heads {
    body: Bytes,
    left: u64,
    next: u64,
}

impl Heads {
    /// Those of a batch as its block announced it.
    pub fn new(body: Bytes, messages: u64, first: u64) -> Self {
        Self { body, left: messages, next: first }
    }

    /// The next head, `None` after the last; an error where the batch is not what it said, or a head exceeds
    /// the limits.
    pub fn next(&mut self, limits: &Limits) -> Option<Result<Bytes, String>> {
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

/// Refuses what a message announces beyond what is taken.
///
/// # Errors
/// If it `is` more than `most`.
pub fn bounded(what: &str, is: u64, most: u64) -> Result<(), String> {
    if is <= most { Ok(()) } else { Err(format!("a message of {is} {what} where at most {most} are taken")) }
}
