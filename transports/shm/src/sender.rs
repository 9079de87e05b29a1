//! The sending half.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rankine_transport::{
    Address, AlignedBuffer, Error, Message, Result, Sender,
    batch::{self, Batch},
};
use tokio::{io::Interest, net::unix::OwnedWriteHalf};

use crate::{
    control::Account,
    ledger::Ended,
    segment::{self, Segment},
    socket,
    wire::{self, Block, Slot},
};

/// A sender with this much waiting for the socket is not ready.
const HIGH_WATER: usize = 1 << 20;
/// Buffers handed to one system call.
const SLICES: usize = 64;
/// Frames in a segment are lent from this size up; below, two copies through the socket take less time.
pub(crate) const LENT: usize = 32 << 10;
/// Other frames are copied into a segment from this size up.
pub(crate) const COPIED: usize = segment::SMALLEST;
/// Bytes copied before others get their turn.
const TURN: usize = 2 << 20;
/// A frame that begins elsewhere is not lent: received frames are aligned.
const ALIGNMENT: usize = 64;

pub(crate) struct ShmSender {
    writer: OwnedWriteHalf,
    peer: Address,
    account: Arc<Account>,
    /// What goes before the batch.
    waiting: VecDeque<Piece>,
    /// Bytes of it.
    nbytes: usize,
    batch: Batch,
    /// The message after all those, while frames of it are copied.
    copying: Option<Outgoing>,
    closing: bool,
}

/// Bytes for the socket, and the segments whose descriptors travel with the first of them.
struct Piece {
    bytes: Bytes,
    segments: Vec<Arc<Segment>>,
}

/// A message, and how each of its frames will travel.
struct Outgoing {
    head: Bytes,
    frames: Vec<Frame>,
    /// The first frame that may still have to be copied.
    next: usize,
    /// The copy under way.
    copy: Option<AlignedBuffer>,
}

enum Frame {
    Inline(Bytes),
    ToCopy(Bytes),
    InSegment { bytes: Bytes, segment: Arc<Segment>, offset: usize, copied: bool },
}

impl Frame {
    fn new(bytes: Bytes) -> Self {
        if bytes.len() < LENT {
            return Self::Inline(bytes);
        }
        match Segment::holding(&bytes) {
            Some((segment, offset)) if segment.file().is_some() && offset % ALIGNMENT == 0 => {
                Self::InSegment { bytes, segment, offset, copied: false }
            }
            _ if bytes.len() >= COPIED => Self::ToCopy(bytes),
            _ => Self::Inline(bytes),
        }
    }
}

impl Outgoing {
    fn new(message: Message) -> Self {
        let frames = message.frames.into_iter().map(Frame::new).collect();
        Self { head: message.head, frames, next: 0, copy: None }
    }

    /// Copies up to so many bytes of what lies in no segment into one; true when all is done.
    fn copy(&mut self, mut most: usize) -> bool {
        while let Some(frame) = self.frames.get_mut(self.next) {
            if let Frame::ToCopy(bytes) = frame {
                let copy = match &mut self.copy {
                    Some(copy) => copy,
                    None => match segment_buffer(bytes.len()) {
                        Some(buffer) => self.copy.insert(buffer),
                        // Without a segment it takes the way through the socket.
                        None => {
                            *frame = Frame::Inline(std::mem::take(bytes));
                            continue;
                        }
                    },
                };
                let done = copy.as_ref().len();
                let count = most.min(bytes.len() - done);
                copy.extend(&bytes[done..done + count]);
                most -= count;
                if !copy.is_full() {
                    return false;
                }
                let original = std::mem::take(bytes);
                let copied = self.copy.take().map(AlignedBuffer::freeze).unwrap_or_default();
                *frame = match Segment::holding(&copied) {
                    Some((segment, offset)) => {
                        Frame::InSegment { bytes: copied, segment, offset, copied: true }
                    }
                    None => Frame::Inline(original),
                };
            }
            self.next += 1;
        }
        true
    }
}

/// A buffer that lies in a segment, where there is one to be had.
fn segment_buffer(length: usize) -> Option<AlignedBuffer> {
    let mut buffer = AlignedBuffer::new(length as u64).ok()?;
    let (segment, _) = Segment::holding(buffer.spare())?;
    segment.file().is_some().then_some(buffer)
}

impl ShmSender {
    pub(crate) fn new(writer: OwnedWriteHalf, peer: Address, account: Arc<Account>) -> Self {
        let (waiting, batch) = (VecDeque::new(), wire::batch());
        Self { writer, peer, account, waiting, nbytes: 0, batch, copying: None, closing: false }
    }

    fn push(&mut self, bytes: Bytes, segments: Vec<Arc<Segment>>) {
        if !bytes.is_empty() {
            self.nbytes += bytes.len();
            self.waiting.push_back(Piece { bytes, segments });
        }
    }

    fn end_batch(&mut self) {
        if !self.batch.is_empty() {
            let batch = wire::batched(&mut self.batch);
            self.push(batch, Vec::new());
        }
    }

    /// Lends what lies in segments, and queues the rest.
    fn enqueue(&mut self, message: Outgoing) -> Result<(), Ended> {
        let mut slots = Vec::with_capacity(message.frames.len());
        let mut inline = Vec::new();
        let mut new: Vec<(u64, Arc<Segment>)> = Vec::new();
        for frame in message.frames {
            match frame {
                Frame::InSegment { bytes, segment, offset, copied } => {
                    let lent = self.account.ledger.lend(&bytes, &segment, copied)?;
                    let (length, offset) = (bytes.len() as u64, offset as u64);
                    slots.push(Slot::Lent { length, segment: lent.segment, offset });
                    if lent.new {
                        new.push((lent.segment, segment));
                    }
                }
                Frame::Inline(bytes) | Frame::ToCopy(bytes) => {
                    slots.push(Slot::Inline { length: bytes.len() as u64 });
                    inline.push(bytes);
                }
            }
        }
        let mut new = new.into_iter().peekable();
        while let Some(&(first, _)) = new.peek() {
            let segments: Vec<_> =
                new.by_ref().take(socket::DESCRIPTORS).map(|(_, segment)| segment).collect();
            let block = Block::Segments { first, count: segments.len() as u64 };
            self.push(block.bytes(), segments);
        }
        for bytes in wire::start(message.head, &slots).into_iter().chain(inline) {
            self.push(bytes, Vec::new());
        }
        Ok(())
    }

    /// Copies what has to be, and queues the message it belongs to.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(mut message) = self.copying.take() else { return Poll::Ready(Ok(())) };
        if !message.copy(TURN) {
            self.copying = Some(message);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.enqueue(message).map_err(|ended| ended.error(&self.peer)))
    }

    /// Writes until no more than `left` bytes wait.
    fn poll_write(&mut self, cx: &mut Context<'_>, left: usize) -> Poll<Result<()>> {
        while self.nbytes + self.batch.nbytes() > left {
            // What is being copied comes after the batch.
            self.end_batch();
            let lost = |source| Error::lost(&self.peer, source);
            ready!(self.writer.as_ref().poll_write_ready(cx)).map_err(lost)?;
            match self.write() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(Error::lost(&self.peer, error)));
                }
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands as much to the socket as one call takes.
    fn write(&mut self) -> io::Result<()> {
        let first = self.waiting.front().map_or(&[][..], |piece| &piece.segments);
        let descriptors: Vec<BorrowedFd<'_>> = first.iter().filter_map(|segment| segment.file()).collect();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        // Descriptors travel with the first byte of a call.
        let together = |(i, piece): &(usize, &Piece)| *i == 0 || piece.segments.is_empty();
        for (slice, (_, piece)) in slices.iter_mut().zip(self.waiting.iter().enumerate().take_while(together))
        {
            *slice = IoSlice::new(&piece.bytes);
            count += 1;
        }
        let socket = self.writer.as_ref();
        let send = || socket::send(socket, &slices[..count], &descriptors);
        let mut written = socket.try_io(Interest::WRITABLE, send)?;
        self.nbytes -= written;
        while let Some(first) = self.waiting.front_mut() {
            first.segments.clear();
            if first.bytes.len() > written {
                first.bytes.advance(written);
                break;
            }
            written -= first.bytes.len();
            self.waiting.pop_front();
            if written == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl Sender for ShmSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_copy(cx))?;
        ready!(self.poll_write(cx, HIGH_WATER))?;
        let room = self.account.ledger.poll_room(&self.peer, cx)?;
        if room.is_pending() {
            // The other side reads only what was written.
            ready!(self.poll_write(cx, 0))?;
        }
        room.map(Ok)
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        if message.object.is_some() {
            return Err(Error::Object { peer: self.peer.clone() });
        }
        if self.closing {
            let source = io::Error::new(io::ErrorKind::BrokenPipe, "this direction was closed");
            return Err(Error::lost(&self.peer, source));
        }
        if let Some(mut before) = self.copying.take() {
            before.copy(usize::MAX);
            self.enqueue(before).map_err(|ended| ended.error(&self.peer))?;
        }
        if message.frames.is_empty() && message.head.len() <= batch::SMALL {
            if !self.batch.takes(message.head.len()) {
                self.end_batch();
            }
            self.batch.push(&message.head);
            return Ok(());
        }
        self.end_batch();
        let message = Outgoing::new(message);
        if message.frames.iter().any(|frame| matches!(frame, Frame::ToCopy(_))) {
            self.copying = Some(message);
            return Ok(());
        }
        self.enqueue(message).map_err(|ended| ended.error(&self.peer))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_copy(cx))?;
        self.poll_write(cx, 0)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_copy(cx))?;
        if !self.closing {
            self.closing = true;
            self.end_batch();
            self.push(Block::Close.bytes(), Vec::new());
        }
        ready!(self.poll_write(cx, 0))?;
        // Whoever has heard of the close may be gone by now.
        let _ = rustix::net::shutdown(self.writer.as_ref(), rustix::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
