//! How two processes meet: who may, and the sockets they share.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rankine_transport::{Address, Connection, Error, Limits, Listener, Result};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    time,
};

use crate::{
    control::Account,
    place,
    receiver::ShmReceiver,
    sender::ShmSender,
    socket,
    wire::{BLOCK, Block},
};

/// Who connects greets at once.
const GREETING: Duration = Duration::from_secs(10);

pub(crate) struct Incoming {
    listener: UnixListener,
    address: Address,
    /// Visitors that have not greeted yet; none waits for another.
    greetings: FuturesUnordered<BoxFuture<'static, Result<Connection>>>,
}

impl Incoming {
    pub(crate) fn new(listener: UnixListener, address: Address) -> Self {
        Self { listener, address, greetings: FuturesUnordered::new() }
    }
}

impl Listener for Incoming {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        loop {
            if let Poll::Ready(Some(visitor)) = self.greetings.poll_next_unpin(cx) {
                return Poll::Ready(visitor);
            }
            let failed = |source| Error::Listen { address: self.address.clone(), source };
            let (stream, _) = ready!(self.listener.poll_accept(cx)).map_err(failed)?;
            self.greetings.push(Box::pin(welcome(stream, self.address.clone())));
        }
    }
}

/// Both ends of a socket must be one user's, unless it is root who connects.
fn check_user(connecting: u32, listening: u32) -> io::Result<()> {
    if connecting == listening || connecting == 0 {
        return Ok(());
    }
    let reason = format!(
        "the listener belongs to user {listening} and who connects to user {connecting}; only processes of one \
         user share memory, others may use tcp"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The connecting side: gives the other one end of the socket beside the messages.
pub(crate) async fn greet(stream: UnixStream, peer: &Address) -> io::Result<Connection> {
    let other = stream.peer_cred()?;
    check_user(this_user(), other.uid())?;
    let (ours, theirs) = UnixStream::pair()?;
    let hello = Block::Hello.bytes();
    let send = || socket::send(&stream, &[IoSlice::new(&hello)], &[theirs.as_fd()]);
    let sent = stream.async_io(Interest::WRITABLE, send).await?;
    if sent < hello.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "the socket takes no greeting"));
    }
    Ok(connection(stream, ours, place::process(Some(std::process::id().cast_signed())), peer.clone()))
}

/// The side that is connected to.
async fn welcome(stream: UnixStream, local: Address) -> Result<Connection> {
    let other = stream.peer_cred();
    let peer = place::process(other.as_ref().ok().and_then(|other| other.pid()));
    let lost = |source| Error::lost(&peer, source);
    check_user(other.map_err(lost)?.uid(), this_user()).map_err(lost)?;
    let greeting = time::timeout(GREETING, greeting(&stream)).await.unwrap_or_else(|_| {
        let reason = format!("it did not greet within {GREETING:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    });
    let (hello, mut descriptors) = greeting.map_err(lost)?;
    let refused = |reason: &str| Error::protocol(&peer, reason);
    let block = Block::read(&hello, &Limits::HANDSHAKE).map_err(|reason| refused(&reason))?;
    let control = descriptors.pop().filter(|_| block == Block::Hello && descriptors.is_empty());
    let control = control.ok_or_else(|| refused("it did not greet with one descriptor"))?;
    let fits = sockopt::socket_domain(&control) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&control) == Ok(SocketType::STREAM);
    if !fits {
        return Err(refused("the descriptor of its greeting is no UNIX socket"));
    }
    let control = std::os::unix::net::UnixStream::from(control);
    let control = control.set_nonblocking(true).and_then(|()| UnixStream::from_std(control)).map_err(lost)?;
    Ok(connection(stream, control, local, peer.clone()))
}

async fn greeting(stream: &UnixStream) -> io::Result<([u8; BLOCK], Vec<OwnedFd>)> {
    let (mut block, mut filled, mut descriptors) = ([0; BLOCK], 0, Vec::new());
    while filled < BLOCK {
        let receive = || socket::receive(stream, &mut block[filled..], &mut descriptors);
        filled += match stream.async_io(Interest::READABLE, receive).await? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it went without a greeting")),
            count => count,
        };
    }
    Ok((block, descriptors))
}

fn connection(stream: UnixStream, control: UnixStream, local: Address, peer: Address) -> Connection {
    let (sender, receiver) = halves(stream, control, &peer);
    let (sender, receiver) = (Box::new(sender), Box::new(receiver));
    Connection { sender, receiver, local, peer, carries_objects: false }
}

/// Both halves over the socket of the messages and the one beside it.
pub(crate) fn halves(stream: UnixStream, control: UnixStream, peer: &Address) -> (ShmSender, ShmReceiver) {
    let account = Account::open(control);
    let (reader, writer) = stream.into_split();
    (ShmSender::new(writer, peer.clone(), account.clone()), ShmReceiver::new(reader, peer.clone(), account))
}
