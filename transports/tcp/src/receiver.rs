//! The receiving half.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rankine_transport::{
    Address, AlignedBuffer, Error, Limits, Message, Receiver, Result, batch::Heads, prefix,
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::wire::{self, BLOCK, Block, INLINE};

pub(crate) struct TcpReceiver<R> {
    reader: R,
    peer: Address,
    limits: Limits,
    pub(crate) state: Reading,
}

/// How far the message under way has come; kept here so that a dropped future loses nothing.
pub(crate) enum Reading {
    Block { bytes: [u8; BLOCK], filled: usize },
    Batch { body: AlignedBuffer, messages: u64, first: u64 },
    Heads(Heads),
    Body { head: AlignedBuffer, table: AlignedBuffer, payload: u64 },
    Frames { head: Bytes, lengths: std::vec::IntoIter<u64>, frames: Vec<Bytes>, current: AlignedBuffer },
    Closed,
    Failed,
}

impl Reading {
    const fn start() -> Self {
        Self::Block { bytes: [0; BLOCK], filled: 0 }
    }
}

fn ended(peer: &Address) -> Error {
    Error::lost(peer, io::Error::new(io::ErrorKind::UnexpectedEof, "it went without closing"))
}

fn take(buffer: &mut AlignedBuffer) -> io::Result<Bytes> {
    Ok(std::mem::replace(buffer, AlignedBuffer::new(0)?).freeze())
}

impl<R: AsyncRead + Unpin + Send> TcpReceiver<R> {
    pub(crate) fn new(reader: R, peer: Address) -> Self {
        Self { reader, peer, limits: Limits::HANDSHAKE, state: Reading::start() }
    }

    /// Fills a block: as many bytes as it has are read, and none of what follows.
    fn poll_block(
        reader: &mut R,
        peer: &Address,
        bytes: &mut [u8; BLOCK],
        filled: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        while *filled < BLOCK {
            let mut rest = ReadBuf::new(&mut bytes[*filled..]);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut rest))
                .map_err(|source| Error::lost(peer, source))?;
            match rest.filled().len() {
                0 => return Poll::Ready(Err(ended(peer))),
                count => *filled += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fills a buffer.
    fn poll_fill(
        reader: &mut R,
        peer: &Address,
        buffer: &mut AlignedBuffer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        while !buffer.is_full() {
            let count = ready!(buffer.poll_fill(Pin::new(&mut *reader), cx))
                .map_err(|source| Error::lost(peer, source))?;
            if count == 0 {
                return Poll::Ready(Err(ended(peer)));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let Self { reader, peer, limits, state } = self;
        let memory = |source| Error::lost(peer, source);
        let refused = |reason: String| Error::protocol(peer, reason);
        loop {
            match state {
                Reading::Block { bytes: block, filled } => {
                    ready!(Self::poll_block(reader, peer, block, filled, cx))?;
                    *state = match Block::read(block, limits).map_err(refused)? {
                        Block::Close => Reading::Closed,
                        Block::Message { head, frames: 0, .. } if head <= INLINE as u64 => {
                            let head = Bytes::copy_from_slice(wire::inline(block, head as usize));
                            *filled = 0;
                            return Poll::Ready(Ok(Some(Message::new(head, Vec::new()))));
                        }
                        Block::Batch { body: length, messages, first } => {
                            let mut body = AlignedBuffer::new(length as u64).map_err(memory)?;
                            body.extend(wire::inline(block, length));
                            Reading::Batch { body, messages, first }
                        }
                        Block::Message { head: length, frames, payload } => {
                            // Limits are far below what could overflow.
                            let (length, lengths) = (length as usize, 8 * frames as usize);
                            let inline = wire::inline(block, length + lengths);
                            let mut head = AlignedBuffer::new(length as u64).map_err(memory)?;
                            let mut table = AlignedBuffer::new(lengths as u64).map_err(memory)?;
                            head.extend(inline);
                            table.extend(&inline[length.min(inline.len())..]);
                            Reading::Body { head, table, payload }
                        }
                    };
                }
                Reading::Batch { body, messages, first } => {
                    ready!(Self::poll_fill(reader, peer, body, cx))?;
                    let body = take(body).map_err(memory)?;
                    *state = Reading::Heads(Heads::new(body, *messages, *first));
                }
                Reading::Heads(heads) => match heads.next(limits) {
                    Some(head) => {
                        let head = head.map_err(refused)?;
                        return Poll::Ready(Ok(Some(Message::new(head, Vec::new()))));
                    }
                    None => *state = Reading::start(),
                },
                Reading::Body { head, table, payload } => {
                    ready!(Self::poll_fill(reader, peer, head, cx))?;
                    ready!(Self::poll_fill(reader, peer, table, cx))?;
                    let lengths = prefix::read_lengths(table.as_ref(), *payload).map_err(refused)?;
                    let head = take(head).map_err(memory)?;
                    let mut lengths = lengths.into_iter();
                    let Some(first) = lengths.next() else {
                        *state = Reading::start();
                        return Poll::Ready(Ok(Some(Message::new(head, Vec::new()))));
                    };
                    let current = AlignedBuffer::new(first).map_err(memory)?;
                    *state = Reading::Frames { head, lengths, frames: Vec::new(), current };
                }
                Reading::Frames { head, lengths, frames, current } => {
                    ready!(Self::poll_fill(reader, peer, current, cx))?;
                    let next = lengths.next();
                    let fresh = AlignedBuffer::new(next.unwrap_or(0)).map_err(memory)?;
                    frames.push(std::mem::replace(current, fresh).freeze());
                    if next.is_none() {
                        let message = Message::new(std::mem::take(head), std::mem::take(frames));
                        *state = Reading::start();
                        return Poll::Ready(Ok(Some(message)));
                    }
                }
                Reading::Closed => return Poll::Ready(Ok(None)),
                Reading::Failed => {
                    let source = io::Error::other("this direction failed before");
                    return Poll::Ready(Err(Error::lost(peer, source)));
                }
            }
        }
    }
}

impl<R: AsyncRead + Unpin + Send> Receiver for TcpReceiver<R> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let received = ready!(self.poll_message(cx));
        if received.is_err() {
            self.state = Reading::Failed;
        }
        Poll::Ready(received)
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
}
