//! A connection: what its two halves share, how it waits, and how it ends.

use std::{
    fmt,
    future::Future,
    io,
    pin::pin,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use rankine_transport::{Address, Connection, Error};
use tokio::{net::TcpStream, sync::Notify, task, time};

use crate::{
    completion::Completion,
    engine::Engine,
    queue_pair::{QueuePair, Shape},
    receiver::{Incoming, VerbsReceiver},
    registrations::Registrations,
    sender::{HIGH_WATER, Outgoing, VerbsSender},
    wire::{CREDITS, SEGMENT, Word},
};

/// Words that may be under way alone, and for which the peer has segments posted beyond the credits.
const SIGNALS: u16 = 8;
/// What a connection's queue pair has room for.
pub(crate) const SHAPE: Shape =
    Shape { receives: CREDITS + SIGNALS, sends: 16, signals: SIGNALS, transfers: 16, segment: SEGMENT };
/// Whoever waits for a small message looks so many times by itself, some microseconds in all, with all other tasks in
/// between, before it has itself woken. Counted and not measured: to ask for the time may cost as much as to look.
const SPINS: u32 = 20;
/// Where there is one core the peer, if it is on the same host, gets on only while this side does not. So it is let in
/// so many times instead.
const YIELDS: u32 = 4;
static ALONE: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|cores| cores.get() == 1));
/// Turns of a half that finds something each time, before others get theirs.
const TURNS: u32 = 16;
/// A connection that is dropped has this long to hand over what it had taken on.
const LINGER: Duration = Duration::from_secs(2);

/// What the halves of a connection share.
pub(crate) struct Shared {
    state: Mutex<State>,
    engine: Arc<Engine>,
    /// Under which the engine knows it.
    number: usize,
    /// Told once neither half is left.
    dropped: Notify,
    /// Told of events, for whoever sees to its end.
    event: Notify,
    pub(crate) peer: Address,
}

/// One of the halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

pub(crate) struct State {
    /// Goes first: what the others hold may be in the device's use until then.
    pub(crate) pair: QueuePair,
    pub(crate) flow: Flow,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) broken: Option<Broken>,
    armed: Armed,
    /// The halves' wakers, sender's first; and which halves are left.
    wakers: [Option<Waker>; 2],
    halves: [bool; 2],
    /// Looks since something last happened.
    pub(crate) spins: u32,
}

/// What was sent and received, as both sides count it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Segments sent.
    pub(crate) sent: u64,
    /// What the peer told last.
    pub(crate) theirs: Word,
    /// Segments consumed here.
    pub(crate) consumed: u64,
    /// Pieces read here.
    pub(crate) read: u64,
    /// Bytes of the pieces read of which the peer was not told.
    untold: u64,
    /// What the peer was told last.
    told: Word,
    /// The sending half went without closing.
    abandoned: bool,
}

/// What completions the channel was asked to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Armed {
    No,
    /// Messages and failures.
    Messages,
    Any,
}

/// Why a connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It is lost.
    Lost(io::ErrorKind, String),
    /// The peer broke the protocol.
    Protocol(String),
}

impl Broken {
    pub(crate) fn error(&self, peer: &Address) -> Error {
        match self {
            Self::Lost(kind, reason) => Error::lost(peer, io::Error::new(*kind, reason.clone())),
            Self::Protocol(reason) => Error::protocol(peer, reason.clone()),
        }
    }

    pub(crate) fn gone() -> Self {
        Self::Lost(io::ErrorKind::UnexpectedEof, "it went without closing".into())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.kind(), error.to_string())
    }
}

impl Flow {
    /// Segments that the peer has room for.
    pub(crate) fn credits(&self) -> u64 {
        u64::from(CREDITS).saturating_sub(self.sent - self.theirs.consumed)
    }

    /// The word that goes with a segment, after which the peer knows.
    pub(crate) fn word(&mut self, segment: bool) -> u32 {
        self.untold = 0;
        self.told = Word { segment, abandoned: self.abandoned, consumed: self.consumed, read: self.read };
        self.told.encode()
    }
}

impl State {
    fn new(pair: QueuePair, max_read: u32) -> Self {
        Self {
            pair,
            flow: Flow::default(),
            outgoing: Outgoing::default(),
            incoming: Incoming::new(max_read),
            broken: None,
            armed: Armed::No,
            wakers: [None, None],
            halves: [true, true],
            spins: 0,
        }
    }

    /// Takes in all that completed; gives whether there was anything.
    pub(crate) fn progress(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.pair.poll() {
                Ok(Some(completion)) => self.on_completion(completion),
                Ok(None) => break,
                Err(error) => {
                    self.fail(error.into());
                    break;
                }
            }
            any = true;
        }
        if any {
            self.spins = 0;
        }
        any
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Received { slot, length, word } => {
                let word = Word::decode(word, &self.flow.theirs);
                if word.consumed > self.flow.sent || word.read > self.outgoing.lent() {
                    return self.fail(Broken::Protocol("it consumed what was not sent".into()));
                }
                self.flow.theirs = word;
                self.outgoing.release(word.read);
                self.incoming.abandoned |= word.abandoned;
                if word.segment {
                    self.incoming.push(slot, length);
                } else if let Err(error) = self.pair.post_receive(slot) {
                    self.fail(error.into());
                }
            }
            Completion::Transferred => {
                if let Some(bytes) = self.incoming.transferred() {
                    self.flow.read += 1;
                    self.flow.untold += bytes;
                }
            }
            Completion::Sent | Completion::Signalled => {}
            Completion::Failed(failure) => {
                // The first failure is the reason; what follows from it says nothing.
                let follows = failure.is_flush() && self.broken.is_some();
                if !follows {
                    self.fail(Broken::Lost(io::ErrorKind::ConnectionAborted, failure.to_string()));
                }
            }
        }
    }

    /// Keeps the first reason.
    pub(crate) fn fail(&mut self, reason: Broken) {
        self.broken.get_or_insert(reason);
    }

    /// Tells the peer what it waits for, unless a segment did.
    fn settle(&mut self) {
        if self.broken.is_some() || !self.owes() {
            return;
        }
        let (told, untold) = (self.flow.told, self.flow.untold);
        let word = self.flow.word(false);
        match self.pair.post_signal(word) {
            Ok(true) => {}
            Ok(false) => (self.flow.told, self.flow.untold) = (told, untold),
            Err(error) => self.fail(error.into()),
        }
    }

    /// Whether the peer waits for a word and no segment is about to bring it.
    fn owes(&self) -> bool {
        let Flow { told, consumed, read, untold, abandoned, .. } = &self.flow;
        // Of what is read it is told at the end, or soon enough to have more lent before that. Each word wakes it.
        let read = *read > told.read && (!self.incoming.is_reading() || *untold >= HIGH_WATER / 2);
        consumed - told.consumed >= u64::from(CREDITS / 2) || read || *abandoned && !told.abandoned
    }

    /// Has the channel told of what this connection waits for; false if it was before.
    fn arm(&mut self) -> bool {
        // Of what it sent it need not hear; unless nothing has told so far that it arrived, as some devices do not
        // count a failure as something to tell of.
        let any = self.incoming.is_reading() || !self.pair.is_idle() || self.owes();
        let wanted = if any { Armed::Any } else { Armed::Messages };
        if self.armed >= wanted || self.broken.is_some() {
            return false;
        }
        self.armed = wanted;
        match self.pair.arm(any) {
            Ok(()) => {}
            Err(error) => self.fail(error.into()),
        }
        true
    }

    /// Whether it is worth looking again soon rather than to be woken.
    fn spin(&mut self) -> bool {
        self.spins = self.spins.saturating_add(1);
        let bulk = self.incoming.is_reading() || self.outgoing.is_lending();
        self.broken.is_none() && !bulk && self.spins <= if *ALONE { 1 } else { SPINS }
    }

    fn wake(&mut self, half: Half) {
        if let Some(waker) = self.wakers[half as usize].take() {
            waker.wake();
        }
    }
}

impl Half {
    fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registrations(&self) -> &Registrations {
        &self.engine.registrations
    }

    /// Takes in what completed and tries a `step`, until it gives something or there is nothing to be done but
    /// wait.
    pub(crate) fn poll<T>(
        &self,
        half: Half,
        cx: &mut Context<'_>,
        mut step: impl FnMut(&mut State) -> Result<Option<T>, Broken>,
    ) -> Poll<Result<T, Error>> {
        let mut state = self.lock();
        for _ in 0..TURNS {
            let active = state.progress();
            if active {
                // What came may be for the other half.
                state.wake(half.other());
            }
            let stepped = step(&mut state);
            state.settle();
            match stepped {
                Ok(Some(result)) => return Poll::Ready(Ok(result)),
                Ok(None) => {}
                Err(broken) => return Poll::Ready(Err(broken.error(&self.peer))),
            }
            if active {
                continue;
            }
            if !state.wakers[half as usize].as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.wakers[half as usize] = Some(cx.waker().clone());
            }
            if state.spin() {
                if *ALONE {
                    let came = (0..YIELDS).any(|_| {
                        thread::yield_now();
                        state.progress()
                    });
                    if came {
                        state.wake(half.other());
                        continue;
                    }
                }
                // Woken once all other tasks had their turn and the runtime looked for events.
                drop(state);
                let _ = pin!(task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            // Once armed it looks again: what came just before tells nobody.
            if !state.arm() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The completion queue has something, or the side channel ended: whoever waits looks.
    pub(crate) fn on_event(&self) {
        let mut state = self.lock();
        state.armed = Armed::No;
        state.wake(Half::Sender);
        state.wake(Half::Receiver);
        self.event.notify_one();
    }

    /// A half goes.
    pub(crate) fn leave(&self, half: Half) {
        let mut state = self.lock();
        state.halves[half as usize] = false;
        state.wakers[half as usize] = None;
        if half == Half::Sender {
            state.flow.abandoned = !state.outgoing.is_closed();
            state.settle();
        }
        if state.halves == [false, false] {
            self.dropped.notify_one();
        }
    }

    /// Waits until the peer has all that was sent.
    async fn linger(&self) {
        loop {
            {
                let mut state = self.lock();
                state.progress();
                if state.broken.is_some() || state.pair.is_idle() {
                    return;
                }
                if state.arm() {
                    continue;
                }
            }
            self.event.notified().await;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.engine.leave(self.number);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared(to {})", self.peer)
    }
}

/// A connection over a queue pair that is connected, with the side channel that it was connected by.
pub(crate) fn connection(
    engine: &Arc<Engine>,
    number: usize,
    pair: QueuePair,
    max_read: u32,
    stream: TcpStream,
    [local, peer]: [Address; 2],
) -> Connection {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::new(pair, max_read)),
        engine: engine.clone(),
        number,
        dropped: Notify::new(),
        event: Notify::new(),
        peer: peer.clone(),
    });
    engine.enter(number, &shared);
    tokio::spawn(attend(stream, shared.clone()));
    Connection {
        sender: Box::new(VerbsSender::new(shared.clone())),
        receiver: Box::new(VerbsReceiver::new(shared)),
        local,
        peer,
        carries_objects: false,
    }
}

/// Watches the side channel, whose end is the peer's; and sees to the connection's own end.
async fn attend(stream: TcpStream, connection: Arc<Shared>) {
    tokio::select! {
        reason = end_of(&stream) => {
            connection.lock().fail(reason);
            connection.on_event();
            connection.dropped.notified().await;
        }
        () = connection.dropped.notified() => {
            let _ = time::timeout(LINGER, connection.linger()).await;
        }
    }
    // The queue pair first, then the side channel: who sees the latter's end can be sure of all that came.
    drop(connection);
    drop(stream);
}

/// Waits for the end of a side channel.
async fn end_of(stream: &TcpStream) -> Broken {
    loop {
        if let Err(error) = stream.readable().await {
            return error.into();
        }
        match stream.try_read(&mut [0]) {
            Ok(0) => return Broken::gone(),
            Ok(_) => return Broken::Protocol("it wrote to the side channel".into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.into(),
        }
    }
}
