//! The receiving half.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rankine_transport::{Address, AlignedBuffer, Error, Limits, Message, Receiver, Result, batch::Heads};
use tokio::net::unix::OwnedReadHalf;

use crate::{
    control::Account,
    segment::{Refused, Segment},
    socket,
    waiting::Waiting,
    wire::{self, BLOCK, Block, Slot},
};

/// Bytes read ahead: a small message, or the start of a big one, takes one system call.
const AHEAD: usize = 8 << 10;

pub(crate) struct ShmReceiver {
    intake: Intake,
    peer: Address,
    limits: Limits,
    account: Arc<Account>,
    state: Reading,
}

/// How far the message under way has come; kept here so that a dropped future loses nothing.
enum Reading {
    Block,
    Batch { body: AlignedBuffer, messages: u64, first: u64 },
    Heads(Heads),
    Body { head: AlignedBuffer, table: AlignedBuffer, frames: u64, lent: u64, payload: u64 },
    Frames { head: Bytes, slots: std::vec::IntoIter<Travelling>, frames: Vec<Bytes>, lent: (u64, u64) },
    Closed,
    Failed,
}

/// A frame of the message under way.
enum Travelling {
    Inline(AlignedBuffer, u64),
    Lent(Bytes),
}

/// The socket, and what was read of it ahead.
struct Intake {
    reader: OwnedReadHalf,
    ahead: Box<[u8; AHEAD]>,
    start: usize,
    end: usize,
    descriptors: VecDeque<OwnedFd>,
    waiting: Waiting,
}

impl Intake {
    fn lost() -> io::Error {
        io::Error::new(io::ErrorKind::UnexpectedEof, "it went without closing")
    }

    /// Reads ahead until a block is there.
    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<[u8; BLOCK]>> {
        loop {
            let there = &self.ahead[self.start..self.end];
            if let Some(block) = there.first_chunk::<BLOCK>() {
                let block = *block;
                self.start += BLOCK;
                return Poll::Ready(Ok(block));
            }
            if there.is_empty() && !self.descriptors.is_empty() {
                let reason = "descriptors that no block announced";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason)));
            }
            self.ahead.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let Self { reader, ahead, end, descriptors, waiting, .. } = self;
            let socket = (*reader).as_ref();
            let Poll::Ready(ready) = socket.poll_read_ready(cx) else {
                waiting.wait(cx);
                return Poll::Pending;
            };
            ready?;
            match socket::receive_all(socket, &mut ahead[*end..], descriptors) {
                Ok(0) => return Poll::Ready(Err(Self::lost())),
                Ok(count) => {
                    *end += count;
                    waiting.came();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Fills a buffer: from what was read ahead, then straight from the socket.
    fn poll_fill(&mut self, buffer: &mut AlignedBuffer, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wanted = buffer.capacity() - buffer.as_ref().len();
        let count = wanted.min(self.end - self.start);
        buffer.extend(&self.ahead[self.start..self.start + count]);
        self.start += count;
        while !buffer.is_full() {
            if ready!(buffer.poll_fill(Pin::new(&mut self.reader), cx))? == 0 {
                return Poll::Ready(Err(Self::lost()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn take(buffer: &mut AlignedBuffer) -> io::Result<Bytes> {
    Ok(std::mem::replace(buffer, AlignedBuffer::new(0)?).freeze())
}

impl ShmReceiver {
    pub(crate) fn new(reader: OwnedReadHalf, peer: Address, account: Arc<Account>) -> Self {
        let ahead = Box::new([0; AHEAD]);
        let (descriptors, waiting) = (VecDeque::new(), Waiting::new());
        let intake = Intake { reader, ahead, start: 0, end: 0, descriptors, waiting };
        Self { intake, peer, limits: Limits::HANDSHAKE, account, state: Reading::Block }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let Self { intake, peer, limits, account, state } = self;
        let memory = |source| Error::lost(peer, source);
        let refused = |reason: String| Error::protocol(peer, reason);
        let read = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => Error::protocol(peer, error.to_string()),
            _ => Error::lost(peer, error),
        };
        let ledger = &account.ledger;
        loop {
            match state {
                Reading::Block => {
                    let block = ready!(intake.poll_block(cx)).map_err(read)?;
                    *state = match Block::read(&block, limits).map_err(refused)? {
                        Block::Close => {
                            ledger.stop_borrowing();
                            Reading::Closed
                        }
                        Block::Batch { body: length, messages, first } => {
                            let mut body = AlignedBuffer::new(length as u64).map_err(memory)?;
                            body.extend(wire::inline(&block, length));
                            Reading::Batch { body, messages, first }
                        }
                        Block::Message { head: length, frames, payload, lent } => {
                            let (length, tables) = (length as usize, wire::table_length(frames, lent));
                            let inline = wire::inline(&block, length + tables);
                            let mut head = AlignedBuffer::new(length as u64).map_err(memory)?;
                            let mut table = AlignedBuffer::new(tables as u64).map_err(memory)?;
                            head.extend(inline);
                            table.extend(&inline[length.min(inline.len())..]);
                            Reading::Body { head, table, frames, lent, payload }
                        }
                        Block::Segments { first, count } => {
                            for number in first..first + count {
                                let missing = || refused("memory segments without their descriptors".into());
                                let file = intake.descriptors.pop_front().ok_or_else(missing)?;
                                let segment = Segment::adopt(file).map_err(|error| match error {
                                    Refused::Unfit(reason) => refused(reason),
                                    Refused::Failed(error) => memory(error),
                                })?;
                                ledger.introduced(number, segment).map_err(refused)?;
                            }
                            Reading::Block
                        }
                        Block::Hello => return Poll::Ready(Err(refused("a second greeting".into()))),
                    };
                }
                Reading::Batch { body, messages, first } => {
                    ready!(intake.poll_fill(body, cx)).map_err(read)?;
                    let body = take(body).map_err(memory)?;
                    *state = Reading::Heads(Heads::new(body, *messages, *first));
                }
                Reading::Heads(heads) => match heads.next(limits) {
                    Some(head) => {
                        let head = head.map_err(refused)?;
                        return Poll::Ready(Ok(Some(Message::new(head, Vec::new()))));
                    }
                    None => *state = Reading::Block,
                },
                Reading::Body { head, table, frames, lent, payload } => {
                    ready!(intake.poll_fill(head, cx)).map_err(read)?;
                    ready!(intake.poll_fill(table, cx)).map_err(read)?;
                    let slots =
                        wire::read_table(table.as_ref(), *frames, *lent, *payload).map_err(refused)?;
                    let mut lent = (0, 0);
                    let mut travelling = Vec::with_capacity(slots.len());
                    for slot in slots {
                        travelling.push(match slot {
                            Slot::Inline { length } => {
                                Travelling::Inline(AlignedBuffer::new(0).map_err(memory)?, length)
                            }
                            Slot::Lent { length, segment, offset } => {
                                lent = (lent.0 + 1, lent.1 + length);
                                Travelling::Lent(ledger.borrow(segment, offset, length).map_err(refused)?)
                            }
                        });
                    }
                    let (head, frames) = (take(head).map_err(memory)?, Vec::with_capacity(travelling.len()));
                    *state = Reading::Frames { head, slots: travelling.into_iter(), frames, lent };
                }
                Reading::Frames { head, slots, frames, lent } => {
                    while let Some(slot) = slots.as_mut_slice().first_mut() {
                        if let Travelling::Inline(buffer, length) = slot {
                            if buffer.capacity() as u64 != *length {
                                *buffer = AlignedBuffer::new(*length).map_err(memory)?;
                            }
                            ready!(intake.poll_fill(buffer, cx)).map_err(read)?;
                        }
                        frames.extend(slots.next().map(|slot| match slot {
                            Travelling::Inline(buffer, _) => buffer.freeze(),
                            Travelling::Lent(bytes) => bytes,
                        }));
                    }
                    let message = Message::new(std::mem::take(head), std::mem::take(frames));
                    if lent.0 > 0 {
                        ledger.took(lent.0, lent.1);
                    }
                    *state = Reading::Block;
                    return Poll::Ready(Ok(Some(message)));
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

impl Receiver for ShmReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let received = ready!(self.poll_message(cx));
        if received.is_err() {
            self.state = Reading::Failed;
            self.intake.descriptors.clear();
            self.account.ledger.stop_borrowing();
        }
        Poll::Ready(received)
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
}
