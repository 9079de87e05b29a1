//! How connections are set up: by those who come, and by those who go to them.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use rankine_transport::{Address, Connection, Error, Listener, Result};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use crate::{
    connection::{self, SHAPE},
    engine::Engine,
    exchange::{self, Endpoint},
    queue_pair::QueuePair,
};

/// A side channel that does not acknowledge for this long is dead, and the peer with it.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Setting up a connection takes no longer.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Visitors that are being set up at once; more wait at the door.
const VISITORS: usize = 128;

/// Why a connection was not set up.
#[derive(Debug)]
pub(crate) enum Setup {
    /// Something is missing on this side.
    Here(io::Error),
    /// The peer says or is what does not do.
    Peer(String),
    /// The side channel broke.
    Link(io::Error),
}

impl From<io::Error> for Setup {
    fn from(error: io::Error) -> Self {
        Self::Link(error)
    }
}

/// A listener.
pub(crate) struct Incoming {
    engine: Arc<Engine>,
    listener: TcpListener,
    address: Address,
    visitors: FuturesUnordered<BoxFuture<'static, Result<Connection>>>,
}

impl Incoming {
    pub(crate) fn new(engine: Arc<Engine>, listener: TcpListener, address: Address) -> Self {
        Self { engine, listener, address, visitors: FuturesUnordered::new() }
    }
}

impl Listener for Incoming {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        while self.visitors.len() < VISITORS
            && let Poll::Ready(accepted) = self.listener.poll_accept(cx)
        {
            let failed = |source| Error::Listen { address: self.address.clone(), source };
            let (stream, place) = accepted.map_err(failed)?;
            let local = Address::new("verbs", stream.local_addr().map_err(failed)?);
            let peer = Address::new("verbs", place);
            let engine = self.engine.clone();
            self.visitors.push(Box::pin(async move {
                let accepted = accept(engine, stream, [local.clone(), peer.clone()]).await;
                accepted.map_err(|error| match error {
                    Setup::Here(reason) => crate::unavailable(&local, reason.to_string()),
                    Setup::Peer(reason) => Error::protocol(&peer, reason),
                    Setup::Link(source) => Error::lost(&peer, source),
                })
            }));
        }
        match ready!(self.visitors.poll_next_unpin(cx)) {
            Some(connection) => Poll::Ready(connection),
            // The socket wakes.
            None => Poll::Pending,
        }
    }
}

/// Sets up a connection to a listener.
///
/// # Errors
/// If it cannot be, within a bounded time.
pub(crate) async fn connect(
    engine: Arc<Engine>,
    mut stream: TcpStream,
    addresses: [Address; 2],
) -> Result<Connection, Setup> {
    in_time(async {
        prepare(&stream)?;
        let number = engine.number();
        let (pair, mine) = queue_pair(&engine, number).map_err(Setup::Here)?;
        exchange::send_hello(&mut stream, &mine).await?;
        let theirs = exchange::receive_hello(&mut stream).await?.map_err(Setup::Peer)?;
        finish(&engine, number, pair, mine, theirs, stream, addresses).await
    })
    .await
}

/// Sets up a connection with a visitor, for whom nothing is made before it has said who it is.
async fn accept(
    engine: Arc<Engine>,
    mut stream: TcpStream,
    addresses: [Address; 2],
) -> Result<Connection, Setup> {
    in_time(async {
        prepare(&stream)?;
        let theirs = exchange::receive_hello(&mut stream).await?.map_err(Setup::Peer)?;
        let number = engine.number();
        match queue_pair(&engine, number) {
            Ok((pair, mine)) => {
                exchange::send_hello(&mut stream, &mine).await?;
                finish(&engine, number, pair, mine, theirs, stream, addresses).await
            }
            Err(error) => {
                exchange::refuse(&mut stream, &error.to_string()).await?;
                Err(Setup::Here(error))
            }
        }
    })
    .await
}

async fn in_time<T>(setup: impl Future<Output = Result<T, Setup>>) -> Result<T, Setup> {
    time::timeout(SETUP_TIMEOUT, setup).await.unwrap_or_else(|_| {
        let reason = format!("the peer did not set up its side within {SETUP_TIMEOUT:?}");
        Err(Setup::Link(io::Error::new(io::ErrorKind::TimedOut, reason)))
    })
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let beat = Duration::from_secs(5);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(beat).with_interval(beat))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

fn queue_pair(engine: &Engine, number: usize) -> io::Result<(QueuePair, Endpoint)> {
    let device = engine.registrations.device();
    let pair = QueuePair::new(device, Some(&engine.channel), number, SHAPE)?;
    let endpoint = Endpoint::new(device, pair.number());
    Ok((pair, endpoint))
}

/// Connects the queue pairs, and goes on once both are.
async fn finish(
    engine: &Arc<Engine>,
    number: usize,
    mut pair: QueuePair,
    mine: Endpoint,
    theirs: Endpoint,
    mut stream: TcpStream,
    addresses: [Address; 2],
) -> Result<Connection, Setup> {
    let checked = theirs.check(engine.registrations.device());
    let connected = checked.and_then(|()| pair.connect(&mine, &theirs).map_err(|error| error.to_string()));
    let verdict = match &connected {
        Ok(()) => Ok(()),
        Err(reason) => Err(reason.as_str()),
    };
    exchange::send_verdict(&mut stream, verdict).await?;
    connected.map_err(Setup::Peer)?;
    let refused = |reason| Setup::Peer(format!("it refused: {reason}"));
    exchange::receive_verdict(&mut stream).await?.map_err(refused)?;
    let max_read = mine.max_message.min(theirs.max_message);
    Ok(connection::connection(engine, number, pair, max_read, stream, addresses))
}
