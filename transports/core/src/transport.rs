//! The traits a transport implements.

use std::{
    fmt,
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use futures::future::BoxFuture;

use crate::{
    Address, Message, Result,
    bare::{Bare, Control},
    batch::bounded,
};

/// A way to carry messages, known by its URL scheme.
pub trait Transport: Send + Sync {
    /// The scheme of its addresses, such as `tcp`.
    fn scheme(&self) -> &'static str;

    /// Listens on `address`; a place that leaves something open (port 0) is filled in by
    /// [`Listener::address`].
    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>>;

    /// Connects to a listener at `address`.
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>>;

    /// What of it there is on this machine, a line each (devices, limits, libraries); or why it does
    /// not work here, and what would change that.
    ///
    /// # Errors
    /// If a listener of this process could reach nobody.
    fn survey(&self) -> Result<Vec<String>, String>;

    /// Where a process listens that is to be reached by all it can be reached by.
    fn anywhere(&self) -> Address {
        Address::new(self.scheme(), "*")
    }

    /// Whether this process may reach a listener at `address`, as far as can be told without trying:
    /// false for a listener in another process, host or communicator than the transport spans.
    fn reaches(&self, address: &Address) -> bool {
        address.scheme() == self.scheme()
    }

    /// Bytes that this process has mapped of other processes' memory. They count in its resident set, but it
    /// is their owner who accounts for them.
    fn borrowed(&self) -> u64 {
        0
    }

    /// Two ends of the bare fabric, which a benchmark compares this transport with. Both processes call
    /// it at the same time, one as the leader, and tell each other over `control` what they need to know.
    ///
    /// # Errors
    /// If the fabric cannot be used, or nothing lies below this transport.
    fn bare(&self, _control: &mut dyn Control, _leads: bool) -> io::Result<Box<dyn Bare>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing lies below this transport"))
    }
}

/// Takes the connections of those who come.
pub trait Listener: Send {
    /// Where peers reach this listener.
    fn address(&self) -> &Address;

    /// The next connection. An error concerns one visitor; the listener lives on.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>>;
}

impl dyn Listener {
    /// Waits for the next connection. Cancel safe.
    pub async fn accept(&mut self) -> Result<Connection> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

/// The sending half of a connection.
///
/// State lives in the half, not in the futures, so that a dropped future loses nothing.
pub trait Sender: Send {
    /// Ready once so little waits to be sent that another message may be handed over. This is
    /// the back-pressure: a reader that is slow keeps its writer from being ready.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Takes a message; call when ready. It is under way only while `poll_flush` or `poll_ready` is polled.
    fn start_send(&mut self, message: Message) -> Result<()>;

    /// Ready once all that was taken has left this side's user space.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Flushes, then tells the peer that no more will come (half-close); the other direction stays open.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>>;
}

impl dyn Sender {
    /// Sends one message. A dropped future either did not take the message or will go on
    /// sending it at the next call; it never corrupts the stream.
    pub async fn send(&mut self, message: Message) -> Result<()> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        self.start_send(message)?;
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Flushes, then closes this direction.
    pub async fn close(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_close(cx)).await
    }
}

/// The receiving half of a connection.
pub trait Receiver: Send {
    /// The next message; `None` once the peer closed its direction in order. A peer that died is
    /// an error, never `None`.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>>;

    /// Bounds what the peer may send from now on.
    fn set_limits(&mut self, limits: Limits);
}

impl dyn Receiver {
    /// Waits for the next message. Cancel safe.
    pub async fn recv(&mut self) -> Result<Option<Message>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }
}

/// Bounds on one incoming message; what exceeds them is refused before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the head.
    pub head: u64,
    /// Number of frames.
    pub frames: u64,
    /// Bytes of all frames together.
    pub payload: u64,
}

impl Limits {
    /// Before the peer has proved the cluster's secret: a short head and nothing else.
    pub const HANDSHAKE: Self = Self { head: 128, frames: 0, payload: 0 };
    /// Among peers that share the secret: 1 GiB of head, a million frames, 16 TiB.
    pub const PEER: Self = Self { head: 1 << 30, frames: 1 << 20, payload: 1 << 44 };

    /// Refuses a message that is announced as one of so many bytes of head, frames and bytes of frames, if that
    /// is beyond these bounds.
    ///
    /// # Errors
    /// What there is too much of.
    pub fn check(&self, head: u64, frames: u64, payload: u64) -> std::result::Result<(), String> {
        bounded("head bytes", head, self.head)?;
        bounded("frames", frames, self.frames)?;
        bounded("payload bytes", payload, self.payload)
    }
}

/// An ordered, reliable, message-oriented connection whose two directions work at once.
pub struct Connection {
    /// The sending half.
    pub sender: Box<dyn Sender>,
    /// The receiving half. A fresh connection starts with [`Limits::HANDSHAKE`].
    pub receiver: Box<dyn Receiver>,
    /// This side.
    pub local: Address,
    /// The other side.
    pub peer: Address,
    /// Whether [`Message::object`] travels: both ends are in one process.
    pub carries_objects: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} to {})", self.local, self.peer)
    }
}
