//! The sending half: a stream of segments, and pieces of memory that are lent to the peer until it has read them.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use rankine_transport::{AlignedBuffer, Error, Message, Result, Sender};

use crate::{
    connection::{Broken, Flow, Half, Shared, State},
    queue_pair::QueuePair,
    region::{self, Access, Region},
    registrations::Registrations,
    wire::{DESCRIPTOR, Descriptor, Header, PIECE, RENDEZVOUS, SEGMENT},
};

/// A sender with more than this waiting is not ready.
pub(crate) const HIGH_WATER: u64 = 8 << 20;
/// Bytes lent to a peer at once, where pieces are many; and how many pieces.
const LENT_BYTES: u64 = 256 << 20;
const LENT_PIECES: usize = 1024;

/// What waits to be sent or to be read by the peer.
#[derive(Default)]
pub(crate) struct Outgoing {
    parts: VecDeque<Part>,
    /// Bytes of the parts and of what is lent.
    waiting: u64,
    /// What the peer reads, oldest first.
    lent: VecDeque<Lent>,
    lent_bytes: u64,
    /// Pieces that the peer has read.
    released: u64,
    closed: bool,
    /// Addresses of all that was lent.
    #[cfg(test)]
    pub(crate) all_lent: Vec<usize>,
}

/// A part of the stream.
enum Part {
    /// Bytes to be sent as they are.
    Bytes(Bytes),
    /// A piece of a frame to be lent, whose descriptor is sent.
    Piece(Bytes),
}

/// Memory that the peer reads.
struct Lent {
    // Deregistered before the memory may go.
    region: Arc<Region>,
    bytes: Bytes,
}

impl Outgoing {
    fn push(&mut self, message: Message) {
        let mut prelude = Header::of(&message).encode().to_vec();
        prelude.extend(message.frames.iter().flat_map(|frame| (frame.len() as u64).to_le_bytes()));
        self.push_bytes(prelude.into());
        self.push_blob(message.head);
        for frame in message.frames {
            self.push_blob(frame);
        }
    }

    pub(crate) fn push_bytes(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.waiting += bytes.len() as u64;
            self.parts.push_back(Part::Bytes(bytes));
        }
    }

    fn push_blob(&mut self, mut blob: Bytes) {
        if (blob.len() as u64) < RENDEZVOUS {
            return self.push_bytes(blob);
        }
        while !blob.is_empty() {
            let piece = blob.split_to(blob.len().min(PIECE as usize));
            self.waiting += piece.len() as u64;
            self.parts.push_back(Part::Piece(piece));
        }
    }

    /// Posts what there is room for.
    fn pump(
        &mut self,
        pair: &mut QueuePair,
        flow: &mut Flow,
        registrations: &Registrations,
    ) -> Result<(), Broken> {
        while !self.parts.is_empty() && flow.credits() > 0 {
            let Some((_, space)) = pair.segment() else { break };
            let filled = self.fill(space, registrations)?;
            if filled == 0 {
                break;
            }
            pair.post_send(filled, flow.word(true))?;
            flow.sent += 1;
        }
        Ok(())
    }

    /// Fills a segment with the next bytes; gives how many.
    fn fill(&mut self, space: &mut [u8], registrations: &Registrations) -> Result<usize, Broken> {
        let mut filled = 0;
        while filled < space.len() {
            match self.parts.front_mut() {
                None => break,
                Some(Part::Bytes(bytes)) => {
                    let count = bytes.len().min(space.len() - filled);
                    space[filled..filled + count].copy_from_slice(&bytes[..count]);
                    filled += count;
                    bytes.advance(count);
                    self.waiting -= count as u64;
                    if bytes.is_empty() {
                        self.parts.pop_front();
                    }
                }
                Some(Part::Piece(piece)) => {
                    let full =
                        self.lent_bytes + piece.len() as u64 > LENT_BYTES || self.lent.len() == LENT_PIECES;
                    if full && !self.lent.is_empty() {
                        break;
                    }
                    let lent = lend(std::mem::take(piece), registrations)?;
                    let descriptor =
                        Descriptor { address: lent.bytes.as_ptr() as u64, key: lent.region.remote_key() };
                    #[cfg(test)]
                    self.all_lent.push(lent.bytes.as_ptr() as usize);
                    self.lent_bytes += lent.bytes.len() as u64;
                    self.lent.push_back(lent);
                    self.waiting += DESCRIPTOR as u64;
                    let descriptor = Bytes::copy_from_slice(&descriptor.encode());
                    self.parts[0] = Part::Bytes(descriptor);
                }
            }
        }
        Ok(filled)
    }

    /// Pieces lent so far.
    pub(crate) fn lent(&self) -> u64 {
        self.released + self.lent.len() as u64
    }

    /// Whether the peer has yet to read something.
    pub(crate) fn is_lending(&self) -> bool {
        !self.lent.is_empty()
    }

    /// The peer has read so many pieces.
    pub(crate) fn release(&mut self, read: u64) {
        while self.released < read {
            let Some(lent) = self.lent.pop_front() else { return };
            self.released += 1;
            self.lent_bytes -= lent.bytes.len() as u64;
            self.waiting -= lent.bytes.len() as u64;
        }
    }

    /// Whether the peer was told that no more comes.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Registers a piece, so that the peer can read it. Memory that no device reaches, such as some mapped files, is copied.
fn lend(bytes: Bytes, registrations: &Registrations) -> io::Result<Lent> {
    match registrations.cover(&region::addresses(&bytes), Access::Lend) {
        Ok(region) => Ok(Lent { region, bytes }),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            let mut copy = AlignedBuffer::new(bytes.len() as u64)?;
            copy.extend(&bytes);
            let bytes = copy.freeze();
            let region = registrations.cover(&region::addresses(&bytes), Access::Lend)?;
            Ok(Lent { region, bytes })
        }
        Err(error) => Err(error),
    }
}

pub(crate) struct VerbsSender {
    pub(crate) shared: Arc<Shared>,
}

impl VerbsSender {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends until `done`.
    fn poll_until(&self, cx: &mut Context<'_>, mut done: impl FnMut(&State) -> bool) -> Poll<Result<()>> {
        let registrations = self.shared.registrations();
        self.shared.poll(Half::Sender, cx, |state| {
            if state.broken.is_none() {
                let sent = state.flow.sent;
                let State { pair, flow, outgoing, .. } = &mut *state;
                if let Err(broken) = outgoing.pump(pair, flow, registrations) {
                    state.fail(broken);
                }
                if state.flow.sent > sent {
                    // An answer may come soon.
                    state.spins = 0;
                }
            }
            // What is done is done, whatever happened since.
            match &state.broken {
                _ if done(state) => Ok(Some(())),
                Some(broken) => Err(broken.clone()),
                None => Ok(None),
            }
        })
    }
}

impl Sender for VerbsSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let ready = |state: &State| state.broken.is_none() && state.outgoing.waiting <= HIGH_WATER;
        {
            // While the peer has something to read, what follows may wait for more, to go in one segment with it.
            let state = self.shared.lock();
            if ready(&state) && state.outgoing.is_lending() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_until(cx, ready)
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        let peer = &self.shared.peer;
        if message.object.is_some() {
            return Err(Error::Object { peer: peer.clone() });
        }
        let mut state = self.shared.lock();
        if state.outgoing.closed {
            let source = io::Error::new(io::ErrorKind::BrokenPipe, "this direction was closed");
            return Err(Error::lost(peer, source));
        }
        state.outgoing.push(message);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_until(cx, |state| state.outgoing.waiting == 0)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        {
            let mut state = self.shared.lock();
            if !state.outgoing.closed {
                state.outgoing.closed = true;
                state.outgoing.push_bytes(Bytes::copy_from_slice(&Header::Close.encode()));
            }
        }
        // Once it is closed the process may end: so not before the peer has all.
        self.poll_until(cx, |state| state.outgoing.waiting == 0 && state.pair.is_idle())
    }
}

impl Drop for VerbsSender {
    fn drop(&mut self) {
        self.shared.leave(Half::Sender);
    }
}

const _: () = assert!(DESCRIPTOR <= SEGMENT, "a segment has room for a descriptor");
