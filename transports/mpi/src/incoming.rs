//! The receiving direction of a connection: messages as their records announce them, and how their pieces
//! come into their final memory.

use std::{
    collections::VecDeque,
    io,
    task::{Poll, Waker},
};

use rankine_transport::{AlignedBuffer, Limits, Message};

use crate::{
    arriving::{Arriving, Next},
    failure::Failure,
    outgoing::{UNRECEIVED, WINDOW},
    packet::{Described, EAGER, PACKET, PIECE, Record},
    wire::{Link, Note, Wire, tag},
};

/// Bytes of pieces that are received before the reader asks, as a socket's buffer would take them.
const READ_AHEAD: u64 = 1 << 20;
/// Pieces that MPI receives at a time.
const IN_FLIGHT: usize = 8;

/// The receiving direction.
pub(crate) struct Incoming {
    inbox: VecDeque<Arriving>,
    /// Messages that left the inbox: the number of its first.
    taken: u64,
    /// Which of the inbox the next piece belongs to.
    cursor: usize,
    /// Bytes of the inbox's records.
    held: usize,
    /// Bytes of records that were taken, not yet told to the sender.
    consumed: usize,
    /// Bytes of pieces that were received, each counted up to [`EAGER`], not yet told to the sender.
    received: usize,
    /// Bytes of pieces of messages of the inbox that are received or asked for.
    ahead: u64,
    pub(crate) limits: Limits,
    /// The reader waits.
    wanted: bool,
    in_flight: usize,
    /// Pieces ever found.
    found: u64,
    end: Option<End>,
    /// The last word was said: what comes is received in vain.
    stopped: bool,
    failure: Option<Failure>,
    /// Whether the engine looks for pieces for it.
    pub(crate) listed: bool,
    pub(crate) waker: Option<Waker>,
}

/// The sender's last word.
#[derive(Debug, Clone, Copy)]
struct End {
    orderly: bool,
    pieces: u64,
}

/// What came of looking for pieces.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pulled {
    /// One was there.
    pub(crate) found: bool,
    /// One more may come.
    pub(crate) waits: bool,
}

impl Incoming {
    pub(crate) fn new() -> Self {
        Self {
            inbox: VecDeque::new(),
            taken: 0,
            cursor: 0,
            held: 0,
            consumed: 0,
            received: 0,
            ahead: 0,
            limits: Limits::HANDSHAKE,
            wanted: false,
            in_flight: 0,
            found: 0,
            end: None,
            stopped: false,
            failure: None,
            listed: false,
            waker: None,
        }
    }

    /// A record came.
    pub(crate) fn message(&mut self, described: Described<'_>, link: &Link, wire: &mut Wire) {
        if self.stopped {
            return;
        }
        if self.end.is_some() || self.held >= WINDOW + PACKET {
            return self.refuse("a message after its last word, or more than it was let".into(), link, wire);
        }
        match Arriving::new(described) {
            Ok(arriving) => {
                self.held += arriving.size;
                self.inbox.push_back(arriving);
                self.wake();
            }
            Err(error) => {
                self.stop(link, wire);
                self.fail(Failure::lost(error.kind(), error.to_string()));
            }
        }
    }

    /// The sender's last word came.
    pub(crate) fn end(&mut self, orderly: bool, pieces: u64) {
        self.end.get_or_insert(End { orderly, pieces });
        self.wake();
    }

    /// The next message, if it is whole.
    pub(crate) fn poll(&mut self, link: &Link, wire: &mut Wire) -> Poll<Result<Option<Message>, Failure>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let lost = || Failure::lost(io::ErrorKind::UnexpectedEof, "it went without closing");
        let Some(first) = self.inbox.front() else {
            return match self.end {
                Some(End { orderly: true, .. }) => Poll::Ready(Ok(None)),
                Some(End { orderly: false, .. }) => Poll::Ready(Err(lost())),
                None => Poll::Pending,
            };
        };
        if let Err(reason) = first.within(&self.limits) {
            self.refuse(reason, link, wire);
            return self.poll(link, wire);
        }
        if !first.is_whole() {
            self.wanted = true;
            let cut = self.end.is_some_and(|end| self.found >= end.pieces) && self.in_flight == 0;
            return if cut { Poll::Ready(Err(lost())) } else { Poll::Pending };
        }
        self.wanted = false;
        let Some(first) = self.inbox.pop_front() else { return Poll::Pending };
        self.taken += 1;
        self.cursor = self.cursor.saturating_sub(1);
        self.held -= first.size;
        self.ahead -= first.ahead;
        self.consumed += first.size;
        if self.consumed >= WINDOW / 2 {
            let bytes = u32::try_from(std::mem::take(&mut self.consumed)).unwrap_or(u32::MAX);
            wire.put(link.rank, &Record::Credit { to: link.remote, bytes });
            wire.post(link.rank);
        }
        Poll::Ready(Ok(Some(first.into_message())))
    }

    /// Whether there are pieces that are not found yet.
    pub(crate) fn lacks_pieces(&self) -> bool {
        self.cursor < self.inbox.len() || (self.stopped && !self.is_drained())
    }

    /// Takes the pieces that are there for the messages whose turn it is.
    pub(crate) fn pull(&mut self, link: &Link, wire: &mut Wire) -> Pulled {
        let mut pulled = Pulled::default();
        loop {
            if self.in_flight >= IN_FLIGHT {
                // Looked for again as soon as one of them is done.
                return pulled;
            }
            let slot = if self.stopped { None } else { self.next_slot(link, wire) };
            if slot.is_none() && (!self.stopped || self.is_drained()) {
                return Pulled { waits: false, ..pulled };
            }
            let found = match wire.fabric.probe(link.rank, tag(link.id)) {
                Ok(Some(found)) => found,
                Ok(None) => return Pulled { waits: true, ..pulled },
                Err(error) => {
                    wire.broken.push((link.rank, error.to_string()));
                    return Pulled { waits: false, ..pulled };
                }
            };
            pulled.found = true;
            self.found += 1;
            self.count(found.length, link, wire);
            let fits = slot.and_then(|slot| {
                let arriving = self.inbox.get_mut(self.cursor)?;
                let buffer = arriving.take_buffer(slot, found.length)?;
                Some((buffer, Note::Received { id: link.id, message: self.taken + self.cursor as u64, slot }))
            });
            let (buffer, note) = match fits {
                Some(fits) => fits,
                None => {
                    if !self.stopped {
                        let reason = format!("a piece of {} bytes where it does not belong", found.length);
                        self.refuse(reason, link, wire);
                    }
                    // Nobody wants it, but MPI has to be rid of it. Where there is no memory for it
                    // MPI cuts it off.
                    let length = found.length.min(PIECE) as u64;
                    let nowhere = AlignedBuffer::new(length).or_else(|_| AlignedBuffer::new(0));
                    let Ok(nowhere) = nowhere else { return pulled };
                    (nowhere, Note::Drained { id: link.id })
                }
            };
            match wire.fabric.receive(found, buffer, note) {
                Ok(()) => self.in_flight += 1,
                Err(error) => wire.broken.push((link.rank, error.to_string())),
            }
        }
    }

    /// MPI is done with a piece: its buffer, or why not.
    pub(crate) fn received(
        &mut self,
        (message, slot): (u64, usize),
        buffer: io::Result<AlignedBuffer>,
        link: &Link,
        wire: &mut Wire,
    ) {
        self.in_flight -= 1;
        if self.stopped {
            return;
        }
        let buffer = match buffer {
            Ok(buffer) => buffer,
            Err(error) => {
                self.stop(link, wire);
                return self.fail(Failure::lost(error.kind(), error.to_string()));
            }
        };
        let index = message.checked_sub(self.taken).and_then(|index| usize::try_from(index).ok());
        let Some(arriving) = index.and_then(|index| self.inbox.get_mut(index)) else { return };
        match arriving.put_buffer(slot, buffer) {
            Ok(()) if index == Some(0) => self.wake(),
            Ok(()) => {}
            Err(reason) => self.refuse(reason, link, wire),
        }
    }

    /// MPI is done with a piece that nobody wanted.
    pub(crate) fn drained(&mut self) {
        self.in_flight -= 1;
    }

    /// Says the last word, once: the reader went, or wants no more.
    pub(crate) fn stop(&mut self, link: &Link, wire: &mut Wire) {
        if !self.stopped {
            self.stopped = true;
            self.taken += self.inbox.len() as u64;
            self.inbox.clear();
            (self.cursor, self.held, self.ahead) = (0, 0, 0);
            wire.put(link.rank, &Record::Stop { to: link.remote });
        }
    }

    /// Every call from now on is an error.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.wake();
    }

    /// Whether nothing more comes, ever.
    pub(crate) fn is_over(&self) -> bool {
        self.stopped && self.is_drained() && self.in_flight == 0
    }

    /// Whether MPI works for it.
    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// Tells the sender now and then what its pieces no longer keep of the library's memory.
    fn count(&mut self, length: usize, link: &Link, wire: &mut Wire) {
        self.received += length.min(EAGER);
        if self.received >= UNRECEIVED / 2 {
            let bytes = u32::try_from(std::mem::take(&mut self.received)).unwrap_or(u32::MAX);
            wire.put(link.rank, &Record::Received { to: link.remote, bytes });
        }
    }

    fn is_drained(&self) -> bool {
        self.end.is_some_and(|end| self.found >= end.pieces)
    }

    fn refuse(&mut self, reason: String, link: &Link, wire: &mut Wire) {
        self.stop(link, wire);
        self.fail(Failure::Protocol { reason });
    }

    /// The slot of the message under the cursor that the next piece belongs to, once it may be received.
    fn next_slot(&mut self, link: &Link, wire: &mut Wire) -> Option<usize> {
        while let Some(arriving) = self.inbox.get_mut(self.cursor) {
            if !arriving.begun {
                let asked = self.cursor == 0 && self.wanted && arriving.within(&self.limits).is_ok();
                let ahead = self.ahead.saturating_add(arriving.ahead);
                if ahead > READ_AHEAD && !asked {
                    return None;
                }
                arriving.begun = true;
                self.ahead = ahead;
            }
            match arriving.next() {
                Ok(Next::Slot(slot)) => return Some(slot),
                Ok(Next::InFlight) => return None,
                Ok(Next::Nothing) => self.cursor += 1,
                Err(error) => {
                    self.stop(link, wire);
                    self.fail(Failure::lost(error.kind(), error.to_string()));
                    return None;
                }
            }
        }
        None
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
