//! `tcp://host:port`: connections over TCP, IPv4 and IPv6.
//!
//! One vectored write sends a message; frames are never copied on the way to it. Reads go straight
//! into each frame's final, aligned memory (`wire` says how that is possible). Nagle's delay is off;
//! keep-alive and a user timeout of 30 s show a dead peer in bounded time. A sender is ready while
//! less than 1 MiB waits, so a slow reader bounds its writer's memory.

mod wire;

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use rankine_transport::{
    Address, AlignedBuffer, Connection, Error, Limits, Listener, Message, Receiver, Result, Sender, Transport,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWrite,
    net::{
        TcpListener, TcpStream, lookup_host,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use wire::{BLOCK, Block, INLINE};

/// A peer that does not acknowledge for this long is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// A sender with this much waiting is not ready.
const HIGH_WATER: usize = 1 << 20;
/// Buffers handed to one vectored write.
const SLICES: usize = 64;

/// The transport.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tcp {}

impl Transport for Tcp {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let failed = |source| Error::Listen { address: address.clone(), source };
            let listener = TcpListener::bind(address.place()).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            let address = if bound.ip().is_unspecified() {
                Address::new("tcp", format_args!("{}:{}", host_name(), bound.port()))
            } else {
                Address::new("tcp", bound)
            };
            Ok(Box::new(Incoming { listener, address }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let failed = |source| Error::Connect { address: address.clone(), source };
            let places: Vec<SocketAddr> = lookup_host(address.place()).await.map_err(failed)?.collect();
            let stream = TcpStream::connect(&places[..]).await.map_err(failed)?;
            connection(stream, address.clone()).map_err(failed)
        })
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        Ok(vec![format!("on all interfaces of {}", host_name())])
    }

    fn anywhere(&self) -> Address {
        Address::new("tcp", "0.0.0.0:0")
    }
}

/// What a listener on all interfaces is reached by.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_owned() }
}

struct Incoming {
    listener: TcpListener,
    address: Address,
}

impl Listener for Incoming {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        let failed = |source| Error::Listen { address: self.address.clone(), source };
        let (stream, peer) = ready!(self.listener.poll_accept(cx)).map_err(failed)?;
        Poll::Ready(connection(stream, Address::new("tcp", peer)).map_err(failed))
    }
}

fn connection(stream: TcpStream, peer: Address) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let beat = Duration::from_secs(5);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(beat).with_interval(beat))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let local = Address::new("tcp", stream.local_addr()?);
    let (reader, writer) = stream.into_split();
    Ok(Connection {
        sender: Box::new(TcpSender {
            writer,
            peer: peer.clone(),
            waiting: VecDeque::new(),
            nbytes: 0,
            closing: false,
        }),
        receiver: Box::new(TcpReceiver {
            reader,
            peer: peer.clone(),
            limits: Limits::HANDSHAKE,
            state: Reading::start(),
        }),
        local,
        peer,
        carries_objects: false,
    })
}

struct TcpSender {
    writer: OwnedWriteHalf,
    peer: Address,
    waiting: VecDeque<Bytes>,
    nbytes: usize,
    closing: bool,
}

impl TcpSender {
    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.nbytes += bytes.len();
            self.waiting.push_back(bytes);
        }
    }

    /// Writes until no more than `left` bytes wait.
    fn poll_write(&mut self, cx: &mut Context<'_>, left: usize) -> Poll<Result<()>> {
        while self.nbytes > left {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.waiting.len().min(SLICES);
            for (slice, bytes) in slices.iter_mut().zip(&self.waiting) {
                *slice = IoSlice::new(bytes);
            }
            let written = ready!(Pin::new(&mut self.writer).poll_write_vectored(cx, &slices[..count]))
                .map_err(|source| Error::lost(&self.peer, source))?;
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
        Poll::Ready(Ok(()))
    }
}

impl Sender for TcpSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_write(cx, HIGH_WATER)
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        if message.object.is_some() {
            return Err(Error::Object { peer: self.peer.clone() });
        }
        self.push(Bytes::copy_from_slice(&Block::of(&message)));
        if message.head.len() > INLINE {
            self.push(message.head.slice(INLINE..));
        }
        self.push(message.frames.iter().flat_map(|f| (f.len() as u64).to_le_bytes()).collect());
        for frame in message.frames {
            self.push(frame);
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_write(cx, 0)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if !self.closing {
            self.closing = true;
            self.push(Bytes::copy_from_slice(&Block::close()));
        }
        ready!(self.poll_write(cx, 0))?;
        Pin::new(&mut self.writer).poll_shutdown(cx).map_err(|source| Error::lost(&self.peer, source))
    }
}

struct TcpReceiver {
    reader: OwnedReadHalf,
    peer: Address,
    limits: Limits,
    state: Reading,
}

/// How far the message under way has come; kept here so that a dropped future loses nothing.
enum Reading {
    Block(AlignedBuffer),
    Rest { head: AlignedBuffer, table: AlignedBuffer, payload: u64 },
    Frames { head: Bytes, lengths: std::vec::IntoIter<u64>, frames: Vec<Bytes>, current: AlignedBuffer },
    Closed,
    Failed,
}

impl Reading {
    fn start() -> Self {
        AlignedBuffer::new(BLOCK as u64).map_or(Self::Failed, Self::Block)
    }
}

impl TcpReceiver {
    /// Fills a buffer.
    fn poll_fill(
        reader: &mut OwnedReadHalf,
        peer: &Address,
        buffer: &mut AlignedBuffer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<()>> {
        while !buffer.is_full() {
            let count = ready!(buffer.poll_fill(Pin::new(&mut *reader), cx))
                .map_err(|source| Error::lost(peer, source))?;
            if count == 0 {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "it went without closing");
                return Poll::Ready(Err(Error::lost(peer, source)));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let Self { reader, peer, limits, state } = self;
        let memory = |source| Error::lost(peer, source);
        loop {
            match state {
                Reading::Block(block) => {
                    ready!(Self::poll_fill(reader, peer, block, cx))?;
                    let mut bytes = [0; BLOCK];
                    bytes.copy_from_slice(block.as_ref());
                    let read = Block::read(&bytes, limits).map_err(|reason| Error::protocol(peer, reason))?;
                    let Block::Message { head: length, frames, payload } = read else {
                        *state = Reading::Closed;
                        continue;
                    };
                    let mut head = AlignedBuffer::new(length).map_err(memory)?;
                    head.extend(&bytes[32..32 + INLINE.min(length as usize)]);
                    let table = AlignedBuffer::new(8 * frames).map_err(memory)?;
                    *state = Reading::Rest { head, table, payload };
                }
                Reading::Rest { head, table, payload } => {
                    ready!(Self::poll_fill(reader, peer, head, cx))?;
                    ready!(Self::poll_fill(reader, peer, table, cx))?;
                    let lengths = wire::read_lengths(table.as_ref(), *payload)
                        .map_err(|reason| Error::protocol(peer, reason))?;
                    let empty = AlignedBuffer::new(0).map_err(memory)?;
                    let head = std::mem::replace(head, empty).freeze();
                    let mut lengths = lengths.into_iter();
                    let Some(first) = lengths.next() else {
                        *state = Reading::start();
                        return Poll::Ready(Ok(Some(Message::new(head, Vec::new()))));
                    };
                    let current = AlignedBuffer::new(first).map_err(memory)?;
                    *state = Reading::Frames { head, lengths, frames: Vec::new(), current };
                }
                Reading::Frames { head, lengths, frames, current } => {
                    ready!(Self::poll_fill(reader, peer, current, cx))?;
                    let next = lengths.next();
                    let fresh = AlignedBuffer::new(next.unwrap_or(0)).map_err(memory)?;
                    frames.push(std::mem::replace(current, fresh).freeze());
                    if next.is_none() {
                        let message = Message::new(std::mem::take(head), std::mem::take(frames));
                        *state = Reading::start();
                        return Poll::Ready(Ok(Some(message)));
                    }
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

impl Receiver for TcpReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let received = ready!(self.poll_message(cx));
        if received.is_err() {
            self.state = Reading::Failed;
        }
        Poll::Ready(received)
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
}

#[cfg(test)]
mod tests;
