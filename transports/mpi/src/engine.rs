//! All that this rank has under way over MPI, in the hands of the thread that joined.
//!
//! [`Engine::turn`] lets MPI work and hands on what came of it: the progress task calls it whenever nobody
//! else runs, and who sends does for what it sent. Nothing here waits but [`Engine::leave`]. Here is what may be
//! asked of it; `events` has what it does by itself, as things come.

mod events;

use std::{
    collections::{HashMap, VecDeque},
    io,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use rankine_transport::{AlignedBuffer, Limits, Message};

use crate::{
    connection::{Connection, Half},
    fabric::{Done, Fabric, LONGEST, PATIENCE},
    failure::Failure,
    outgoing::Outgoing,
    pace::{Pace, Pause, Work},
    packet::{PACKET, Record},
    table::Table,
    wire::{Link, Note, PIECES, Wire},
};

/// Connections that wait at a listener, at most.
const BACKLOG: usize = 4096;
/// Looks that it takes to notice what is there: Open MPI may tell only at the next one what it came upon.
pub(crate) const NOTICE: usize = 2;
/// Looks without a find after which nothing more is taken to come once all ranks have left.
const LAST_LOOKS: usize = 16;
/// What is under way when this rank leaves is given this long.
const LINGER: Duration = Duration::from_secs(10);

/// The engine of one rank.
pub(crate) struct Engine {
    wire: Wire,
    connections: Table<Connection>,
    listeners: HashMap<u32, Arrivals>,
    next_port: u32,
    /// Connections that pieces are looked for.
    awaiting: Vec<u32>,
    /// Those of them that this turn has not come to.
    looking: Vec<u32>,
    done: Vec<Done<Note>>,
    pace: Pace,
    /// A progress task is there.
    pub(crate) progressing: bool,
    /// It sleeps.
    pub(crate) sleeper: Option<Waker>,
    /// MPI failed altogether.
    failed: Option<Failure>,
}

/// Who came to a listener.
#[derive(Default)]
struct Arrivals {
    waiting: VecDeque<Link>,
    waker: Option<Waker>,
}

impl Engine {
    /// The engine of a rank that has just joined.
    ///
    /// # Errors
    /// If MPI does not receive.
    pub(crate) fn new(fabric: Fabric<Note>) -> io::Result<Self> {
        let last = u32::try_from(fabric.last_tag().saturating_sub(PIECES)).unwrap_or(0);
        let mut engine = Self {
            wire: Wire::new(fabric),
            connections: Table::new(last),
            listeners: HashMap::new(),
            next_port: 1,
            awaiting: Vec::new(),
            looking: Vec::new(),
            done: Vec::new(),
            pace: Pace::begin(),
            progressing: false,
            sleeper: None,
            failed: None,
        };
        engine.expect_packet(AlignedBuffer::new(PACKET as u64)?)?;
        Ok(engine)
    }

    pub(crate) fn fabric(&mut self) -> &mut Fabric<Note> {
        &mut self.wire.fabric
    }

    /// What rank 0 gives, on all ranks.
    ///
    /// # Errors
    /// MPI's, or if not all ranks come, or it is too long.
    pub(crate) fn broadcast(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        if bytes.len() as u64 > LONGEST {
            let why = format!("{} bytes are more than the {LONGEST} of a broadcast", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let deadline = Instant::now() + PATIENCE;
        let length = self.wire.fabric.broadcast(vec![bytes.len() as u64], deadline)?[0];
        if length > LONGEST {
            return Err(io::Error::other(format!(
                "rank 0 broadcasts {length} bytes, which is no length of ours"
            )));
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(length as usize, 0);
        self.wire.fabric.broadcast(bytes, deadline)
    }

    /// Gives every rank what each gives.
    ///
    /// # Errors
    /// MPI's, or if not all ranks come, or it is too long.
    pub(crate) fn gather(&mut self, bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        if bytes.len() as u64 > LONGEST {
            let why = format!("{} bytes are more than the {LONGEST} that a rank gives", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.wire.fabric.gather(bytes, Instant::now() + PATIENCE)
    }

    /// How long to wait for the next turn.
    pub(crate) fn pause(&mut self) -> Pause {
        let work = self.work();
        self.pace.pause(work)
    }

    /// Whether anything may come to, or leave, this rank.
    pub(crate) fn has_business(&self) -> bool {
        !self.listeners.is_empty() || self.connections.len() > 0 || self.work() != Work::Nothing
    }

    /// Something is about to happen: the progress task looks often again.
    pub(crate) fn stir(&mut self) {
        if let Some(sleeper) = self.sleeper.take() {
            self.pace = Pace::begin();
            sleeper.wake();
        }
    }

    /// Lets MPI work, and hands on what came of it. Tells whether anything did.
    pub(crate) fn turn(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        if let Err(error) = self.wire.fabric.poll(&mut done) {
            self.fail_all(&error.to_string());
        }
        let mut active = !done.is_empty();
        done.drain(..).for_each(|done| self.completed(done));
        self.done = done;

        std::mem::swap(&mut self.awaiting, &mut self.looking);
        while let Some(id) = self.looking.pop() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            connection.incoming.listed = false;
            let pulled = connection.incoming.pull(&connection.link, &mut self.wire);
            active |= pulled.found;
            if pulled.waits {
                self.await_pieces(id);
            }
            self.retire(id);
        }
        self.wire.post_all();
        for (rank, why) in std::mem::take(&mut self.wire.broken) {
            self.fail_rank(rank, &why);
        }
        if active {
            self.pace = Pace::begin();
        }
        active
    }

    /// Opens a port, any if none is chosen; gives its number.
    ///
    /// # Errors
    /// If it is taken.
    pub(crate) fn listen(&mut self, port: Option<u32>) -> io::Result<u32> {
        let port = port.unwrap_or_else(|| {
            while self.listeners.contains_key(&self.next_port) {
                self.next_port = self.next_port.wrapping_add(1);
            }
            let port = self.next_port;
            // Not the same again soon: who comes late for a listener that went should find nobody.
            self.next_port = port.wrapping_add(1);
            port
        });
        if self.listeners.contains_key(&port) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "the port is taken on this rank"));
        }
        self.listeners.insert(port, Arrivals::default());
        Ok(port)
    }

    /// Closes a port; who waits there is turned away.
    pub(crate) fn close_port(&mut self, port: u32) {
        for link in self.listeners.remove(&port).into_iter().flat_map(|arrivals| arrivals.waiting) {
            self.drop_half(link.id, Half::Sender);
            self.drop_half(link.id, Half::Receiver);
        }
    }

    /// The next that came to a port.
    pub(crate) fn poll_accept(&mut self, port: u32, cx: &mut Context<'_>) -> Poll<Link> {
        if self.listeners.get(&port).is_some_and(|arrivals| arrivals.waiting.is_empty()) {
            self.turn();
        }
        let Some(arrivals) = self.listeners.get_mut(&port) else { return Poll::Pending };
        if let Some(link) = arrivals.waiting.pop_front() {
            return Poll::Ready(link);
        }
        arrivals.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Asks a rank's port for a connection; gives this side's number for it.
    ///
    /// # Errors
    /// If there are too many.
    pub(crate) fn connect(&mut self, rank: i32, port: u32) -> io::Result<u32> {
        let id = self.connections.insert_with(|id| Connection::asking(id, rank)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "MPI has no tag left for another connection")
        })?;
        self.wire.put(rank, &Record::Connect { port, from: id });
        self.wire.post(rank);
        self.stir();
        Ok(id)
    }

    /// Whether a connection that was asked for is there; `Err` once nobody takes it.
    pub(crate) fn poll_connected(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.turn();
        let nobody = || Failure::lost(io::ErrorKind::ConnectionRefused, "nobody listens there");
        match self.connections.get_mut(id) {
            None => Poll::Ready(Err(nobody())),
            Some(connection) => connection.poll_connected(cx),
        }
    }

    /// Whether a sender takes another message.
    pub(crate) fn poll_ready(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.poll_out(id, cx, |outgoing| outgoing.check().map(|()| outgoing.is_ready()))
    }

    /// Whether all that a sender took has left.
    pub(crate) fn poll_flush(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.outgoing.pump(&connection.link, &mut self.wire);
        }
        self.poll_out(id, cx, Outgoing::is_flushed)
    }

    /// Takes a message.
    pub(crate) fn start_send(&mut self, id: u32, message: Message) -> Result<(), Failure> {
        self.stir();
        let connection = self.connections.get_mut(id).ok_or_else(forgotten)?;
        connection.outgoing.check()?;
        connection.outgoing.start(message, &connection.link, &mut self.wire);
        Ok(())
    }

    /// Flushes, then says that no more comes.
    pub(crate) fn poll_close(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        std::task::ready!(self.poll_flush(id, cx))?;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.outgoing.end(true, &connection.link, &mut self.wire);
            self.wire.post(connection.link.rank);
        }
        Poll::Ready(Ok(()))
    }

    /// The next message.
    pub(crate) fn poll_recv(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Message>, Failure>> {
        let Some(connection) = self.connections.get_mut(id) else { return Poll::Ready(Err(forgotten())) };
        let received = connection.incoming.poll(&connection.link, &mut self.wire);
        if received.is_pending() {
            connection.incoming.waker = Some(cx.waker().clone());
            self.stir();
        }
        // Ready or not: what follows may be received from now on.
        self.await_pieces(id);
        received
    }

    /// Bounds what a receiver takes.
    pub(crate) fn set_limits(&mut self, id: u32, limits: Limits) {
        if let Some(connection) = self.connections.get_mut(id) {
            connection.incoming.limits = limits;
        }
    }

    /// A half of a connection went.
    pub(crate) fn drop_half(&mut self, id: u32, half: Half) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.drop_half(half, &mut self.wire);
        let rank = connection.link.rank;
        self.wire.post(rank);
        self.await_pieces(id);
        self.retire(id);
        self.stir();
    }

    /// Takes this rank out of the world: lets what is under way come to its end, waits until all other ranks
    /// leave too, and finalizes MPI.
    ///
    /// # Errors
    /// MPI's, or if something could not be sent in time.
    pub(crate) fn leave(mut self) -> io::Result<()> {
        for port in self.listeners.keys().copied().collect::<Vec<_>>() {
            self.close_port(port);
        }
        for id in self.connections.ids() {
            self.drop_half(id, Half::Sender);
            self.drop_half(id, Half::Receiver);
        }
        let deadline = Instant::now() + LINGER;
        self.turn();
        while self.work() != Work::Nothing && Instant::now() < deadline && self.failed.is_none() {
            self.turn();
            self.pace.wait();
        }
        let left = self.wire.fabric.pending().saturating_sub(1);
        if self.failed.is_none() {
            let mut barrier = self.wire.fabric.barrier()?;
            while !barrier.is_passed()? {
                self.turn();
                self.pace.wait();
            }
            // What the others said last: some libraries complain of messages that nobody received.
            let mut quiet = 0;
            while quiet < LAST_LOOKS && self.failed.is_none() {
                quiet = if self.turn() { 0 } else { quiet + 1 };
                std::thread::yield_now();
            }
        }
        self.wire.fabric.finalize()?;
        match left {
            0 => Ok(()),
            left => {
                let why = format!("{left} messages to or from other ranks were not done within {LINGER:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    /// What MPI works on, besides the receive of the next packet.
    fn work(&self) -> Work {
        match (self.wire.fabric.receiving(), self.wire.fabric.pending()) {
            (2.., _) => Work::Receiving,
            (_, 2..) => Work::Sending,
            _ => Work::Nothing,
        }
    }

    fn poll_out(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        is_done: impl Fn(&Outgoing) -> Result<bool, Failure>,
    ) -> Poll<Result<(), Failure>> {
        for look in 0..2 {
            let Some(connection) = self.connections.get_mut(id) else { return Poll::Ready(Err(forgotten())) };
            if is_done(&connection.outgoing)? {
                return Poll::Ready(Ok(()));
            }
            if look == 0 {
                connection.outgoing.pump(&connection.link, &mut self.wire);
                self.turn();
            } else {
                connection.outgoing.waker = Some(cx.waker().clone());
            }
        }
        self.stir();
        Poll::Pending
    }
}

fn forgotten() -> Failure {
    Failure::lost(io::ErrorKind::NotConnected, "the connection is over")
}
