//! The sending half.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rankine_transport::{
    Address, Error, Message, Result, Sender,
    batch::{self, Batch},
};
use tokio::io::AsyncWrite;

use crate::wire;

/// A sender with this much waiting is not ready.
const HIGH_WATER: usize = 1 << 20;
/// Buffers handed to one vectored write.
const SLICES: usize = 64;

pub(crate) struct TcpSender<W> {
    writer: W,
    peer: Address,
    /// What goes before the batch.
    pub(crate) waiting: VecDeque<Bytes>,
    /// Bytes of it.
    pub(crate) nbytes: usize,
    batch: Batch,
    closing: bool,
}

impl<W: AsyncWrite + Unpin + Send> TcpSender<W> {
    pub(crate) fn new(writer: W, peer: Address) -> Self {
        let (waiting, batch) = (VecDeque::new(), wire::batch());
        Self { writer, peer, waiting, nbytes: 0, batch, closing: false }
    }

    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.nbytes += bytes.len();
            self.waiting.push_back(bytes);
        }
    }

    fn end_batch(&mut self) {
        if !self.batch.is_empty() {
            let batch = wire::batched(&mut self.batch);
            self.push(batch);
        }
    }

    /// Writes until no more than `left` bytes wait.
    fn poll_write(&mut self, cx: &mut Context<'_>, left: usize) -> Poll<Result<()>> {
        let lost = |peer: &Address, source| Error::lost(peer, source);
        while self.nbytes + self.batch.nbytes() > left {
            self.end_batch();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.waiting.len().min(SLICES);
            for (slice, bytes) in slices.iter_mut().zip(&self.waiting) {
                *slice = IoSlice::new(bytes);
            }
            let written = ready!(Pin::new(&mut self.writer).poll_write_vectored(cx, &slices[..count]))
                .map_err(|source| lost(&self.peer, source))?;
            self.nbytes -= written;
            let mut rest = written;
            while let Some(first) = self.waiting.front_mut() {
                if first.len() > rest {
                    first.advance(rest);
                    break;
                }
                rest -= first.len();
                self.waiting.pop_front();
            }
        }
        if left == 0 {
            // A stream that encrypts may hold back what it took.
            ready!(Pin::new(&mut self.writer).poll_flush(cx)).map_err(|source| lost(&self.peer, source))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin + Send> Sender for TcpSender<W> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_write(cx, HIGH_WATER)
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        if message.object.is_some() {
            return Err(Error::Object { peer: self.peer.clone() });
        }
        if self.closing {
            let source = io::Error::new(io::ErrorKind::BrokenPipe, "this direction was closed");
            return Err(Error::lost(&self.peer, source));
        }
        if message.frames.is_empty() && message.head.len() <= batch::SMALL {
            if !self.batch.takes(message.head.len()) {
                self.end_batch();
            }
            self.batch.push(&message.head);
            return Ok(());
        }
        self.end_batch();
        wire::pieces(message).for_each(|piece| self.push(piece));
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_write(cx, 0)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if !self.closing {
            self.closing = true;
            self.end_batch();
            self.push(wire::close());
        }
        ready!(self.poll_write(cx, 0))?;
        Pin::new(&mut self.writer).poll_shutdown(cx).map_err(|source| Error::lost(&self.peer, source))
    }
}
