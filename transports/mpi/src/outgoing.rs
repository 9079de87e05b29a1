//! The sending direction of a connection.

use std::{collections::VecDeque, io, task::Waker};

use bytes::Bytes;
use rankine_transport::Message;

use crate::{
    failure::Failure,
    packet::{self, EAGER, PIECE, Record},
    wire::{Link, Wire},
};

/// Bytes of records that may be under way to a reader who does not read.
pub(crate) const WINDOW: usize = 256 << 10;
/// A sender with more payload than this waiting is not ready: so the next big frame is announced before
/// the one before it is through.
const HIGH_WATER: usize = 8 << 20;
/// Bytes of pieces, each counted up to [`EAGER`], that the other side's library may have to keep.
pub(crate) const UNRECEIVED: usize = 1 << 20;
/// Pieces that MPI works on at a time.
const IN_FLIGHT: usize = 16;
/// Bytes of them from which on no other is begun.
const IN_FLIGHT_BYTES: usize = 2 * PIECE;

/// The sending direction.
pub(crate) struct Outgoing {
    /// Bytes of records that the reader has room for. The last one may exceed it.
    credit: i64,
    /// Taken, but the reader has no room for their records.
    waiting: VecDeque<Message>,
    pieces: VecDeque<Bytes>,
    /// Bytes of pieces that wait or are in flight.
    queued: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    /// Bytes of pieces that were handed to MPI and may not be received yet, each counted up to [`EAGER`].
    unreceived: usize,
    /// Pieces ever handed to MPI.
    posted: u64,
    /// The last word was said.
    ended: bool,
    /// The reader's last word was heard.
    pub(crate) stopped: bool,
    failure: Option<Failure>,
    /// Something that was taken was not handed to MPI, and will not be.
    cut: bool,
    pub(crate) waker: Option<Waker>,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self {
            credit: WINDOW as i64,
            waiting: VecDeque::new(),
            pieces: VecDeque::new(),
            queued: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            unreceived: 0,
            posted: 0,
            ended: false,
            stopped: false,
            failure: None,
            cut: false,
            waker: None,
        }
    }

    /// Whether another message may be handed over.
    pub(crate) fn is_ready(&self) -> bool {
        self.waiting.is_empty() && self.credit > 0 && self.queued <= HIGH_WATER
    }

    /// Whether all that was taken has left; an error if not all of it can. A reader that went when it had
    /// all is none.
    pub(crate) fn is_flushed(&self) -> Result<bool, Failure> {
        if self.cut {
            self.check()?;
        }
        Ok(self.waiting.is_empty() && self.queued == 0)
    }

    /// Whether more can be sent.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.ended => Err(Failure::lost(io::ErrorKind::BrokenPipe, "this direction was closed")),
            None => Ok(()),
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether MPI works for it.
    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// Takes a message.
    pub(crate) fn start(&mut self, message: Message, link: &Link, wire: &mut Wire) {
        if self.waiting.is_empty() && self.credit > 0 {
            self.record(&message, link, wire);
        } else {
            self.waiting.push_back(message);
        }
    }

    /// Hands to MPI what it may work on now.
    pub(crate) fn pump(&mut self, link: &Link, wire: &mut Wire) {
        while self.credit > 0
            && let Some(message) = self.waiting.pop_front()
        {
            self.record(&message, link, wire);
        }
        // The reader learns what comes before it comes.
        wire.post(link.rank);
        while self.in_flight < IN_FLIGHT
            && self.in_flight_bytes < IN_FLIGHT_BYTES
            && self.unreceived < UNRECEIVED
            && let Some(piece) = self.pieces.pop_front()
        {
            let bytes = piece.len();
            if !wire.piece(link, piece) {
                break;
            }
            self.in_flight += 1;
            self.in_flight_bytes += bytes;
            self.unreceived += bytes.min(EAGER);
            self.posted += 1;
        }
    }

    /// The reader took records of so many bytes.
    pub(crate) fn credited(&mut self, bytes: u32, link: &Link, wire: &mut Wire) {
        self.credit = (self.credit + i64::from(bytes)).min(WINDOW as i64);
        self.pump(link, wire);
        self.wake();
    }

    /// The other side received pieces of so many bytes.
    pub(crate) fn received(&mut self, bytes: u32, link: &Link, wire: &mut Wire) {
        self.unreceived = self.unreceived.saturating_sub(bytes as usize);
        self.pump(link, wire);
    }

    /// MPI is done with a piece.
    pub(crate) fn sent(&mut self, bytes: usize, link: &Link, wire: &mut Wire) {
        self.in_flight -= 1;
        self.in_flight_bytes -= bytes;
        self.queued = self.queued.saturating_sub(bytes);
        self.pump(link, wire);
        if self.queued <= HIGH_WATER {
            self.wake();
        }
    }

    /// Says the last word, once; what was not handed to MPI before is dropped.
    pub(crate) fn end(&mut self, orderly: bool, link: &Link, wire: &mut Wire) {
        if !self.ended {
            self.ended = true;
            self.abandon();
            wire.put(link.rank, &Record::End { to: link.remote, orderly, pieces: self.posted });
        }
    }

    /// The reader went.
    pub(crate) fn stop(&mut self, link: &Link, wire: &mut Wire) {
        self.stopped = true;
        if !self.ended {
            self.failure.get_or_insert(Failure::lost(io::ErrorKind::BrokenPipe, "it receives no more"));
            self.end(false, link, wire);
            self.wake();
        }
    }

    /// Nothing can be sent any more, and what MPI works on may not arrive.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.abandon();
        self.cut |= self.in_flight > 0;
        self.failure.get_or_insert(failure);
        self.wake();
    }

    fn record(&mut self, message: &Message, link: &Link, wire: &mut Wire) {
        let length = packet::length(message);
        let Some(packet) = wire.room(link.rank, length) else { return };
        let (pieces, queued) = (&mut self.pieces, &mut self.queued);
        packet::write(packet, link.remote, length, message, |part| {
            *queued += part.len();
            for start in (0..part.len()).step_by(PIECE) {
                pieces.push_back(part.slice(start..part.len().min(start + PIECE)));
            }
        });
        self.credit -= length as i64;
    }

    fn abandon(&mut self) {
        self.cut |= !(self.waiting.is_empty() && self.pieces.is_empty());
        self.waiting.clear();
        self.pieces.clear();
        self.queued = self.in_flight_bytes;
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
