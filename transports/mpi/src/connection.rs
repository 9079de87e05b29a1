//! A connection: its two directions, and how it begins and ends.
//!
//! Each of its four halves says a last word: a sender `End`, a receiver `Stop`. Once both sides have heard
//! both and received all pieces that were sent, nothing more can come for its number, which is free
//! for another.

use std::{
    io,
    task::{Context, Poll, Waker},
};

use crate::{
    failure::Failure,
    incoming::Incoming,
    outgoing::Outgoing,
    wire::{Link, Wire},
};

/// A connection, on one of its sides.
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    state: State,
    sender_gone: bool,
    receiver_gone: bool,
}

/// Which half of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

enum State {
    /// The listener has not answered.
    Asking {
        waker: Option<Waker>,
    },
    Open,
    /// Nobody took it.
    Refused,
    /// Its peer can be reached no more.
    Severed,
}

impl Connection {
    /// One that a listener is asked for.
    pub(crate) fn asking(id: u32, rank: i32) -> Self {
        Self::new(Link { id, rank, remote: u32::MAX }, State::Asking { waker: None })
    }

    /// One that a listener takes.
    pub(crate) fn accepting(link: Link) -> Self {
        Self::new(link, State::Open)
    }

    fn new(link: Link, state: State) -> Self {
        let (outgoing, incoming) = (Outgoing::new(), Incoming::new());
        Self { link, outgoing, incoming, state, sender_gone: false, receiver_gone: false }
    }

    /// A listener took it.
    pub(crate) fn accepted(&mut self, remote: u32, wire: &mut Wire) {
        if let State::Asking { waker } = &mut self.state {
            let waker = waker.take();
            self.state = State::Open;
            self.link.remote = remote;
            // Who asked may have gone meanwhile.
            self.last_words(wire);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// No listener took it.
    pub(crate) fn refused(&mut self) {
        if let State::Asking { waker } = &mut self.state {
            let waker = waker.take();
            self.state = State::Refused;
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Whether it is there; `Err` if it will not be.
    pub(crate) fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match &mut self.state {
            State::Asking { waker } => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Open => Poll::Ready(Ok(())),
            State::Refused => {
                let why = "nobody listens there";
                Poll::Ready(Err(Failure::lost(io::ErrorKind::ConnectionRefused, why)))
            }
            State::Severed => Poll::Ready(self.outgoing.check()),
        }
    }

    /// A half went.
    pub(crate) fn drop_half(&mut self, half: Half, wire: &mut Wire) {
        match half {
            Half::Sender => self.sender_gone = true,
            Half::Receiver => self.receiver_gone = true,
        }
        self.last_words(wire);
    }

    /// The peer can be reached no more.
    pub(crate) fn sever(&mut self, failure: &Failure) {
        self.outgoing.fail(failure.clone());
        self.incoming.fail(failure.clone());
        if let State::Asking { waker: Some(waker) } = std::mem::replace(&mut self.state, State::Severed) {
            waker.wake();
        }
    }

    /// Whether both halves are gone and nothing more comes for them.
    pub(crate) fn is_over(&self) -> bool {
        let said = match self.state {
            State::Asking { .. } => false,
            State::Open => self.outgoing.is_ended() && self.outgoing.stopped && self.incoming.is_over(),
            State::Refused | State::Severed => true,
        };
        let in_flight = self.outgoing.in_flight() || self.incoming.in_flight();
        said && self.sender_gone && self.receiver_gone && !in_flight
    }

    fn last_words(&mut self, wire: &mut Wire) {
        if !matches!(self.state, State::Open) {
            return;
        }
        if self.sender_gone {
            self.outgoing.end(false, &self.link, wire);
        }
        if self.receiver_gone {
            self.incoming.stop(&self.link, wire);
        }
    }
}
