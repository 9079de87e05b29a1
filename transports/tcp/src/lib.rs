//! `tcp://host:port`: connections over TCP, IPv4 and IPv6, and over TLS where it is asked for.
//!
//! ```text
//!  start_send ─▶ small heads: one batch ┐                       ┌▶ heads: slices of the batch
//!                frames: by reference  ─┴▶ writev ─▶ … ─▶ read ─┴▶ each frame into its own,
//!                                                                  final, aligned memory
//! ```
//!
//! - **Copies.** One vectored write sends a message; frames are never copied on the way to it, and reads
//!   go straight into each frame's final memory (`wire` says how that is possible). Heads up to 4 KiB are
//!   copied once, to travel together. TLS encrypts from and decrypts into memory of its own: a copy more
//!   on each side.
//! - **Memory.** A sender is ready while less than 1 MiB waits, so a slow reader bounds its writer's memory. A
//!   receiver allocates what a message announces, after checking it against its limits, and 64 KiB for a batch.
//! - **Threads.** None of its own: everything happens where it is polled.
//! - **Death.** Nagle's delay is off; keep-alive and a user timeout show a peer that vanished (its host, the
//!   cable) within 30 s, or what [`Tcp::dead_after`] says; a peer that died is known at once.

mod bare;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod wire;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rankine_transport::{
    Address, Connection, Error, Listener, Result, Transport,
    bare::{Bare, Control},
};
use receiver::TcpReceiver;
use sender::TcpSender;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, lookup_host},
};

#[cfg(feature = "tls")]
pub use tls::Tls;

/// The transport.
#[derive(Debug, Clone)]
pub struct Tcp {
    interface: Option<String>,
    dead_after: Duration,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            interface: None,
            dead_after: Duration::from_secs(30),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl Tcp {
    /// Listeners at `tcp://*:PORT` are reached over this network interface, such as `ib0`.
    #[must_use]
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.interface = Some(name.into());
        self
    }

    /// A peer that acknowledges nothing for this long is dead.
    #[must_use]
    pub fn dead_after(mut self, silence: Duration) -> Self {
        self.dead_after = silence;
        self
    }

    /// All connections are over TLS, and peers are to be so as well.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// What to bind to for a place, of which `*` stands for the interface, or all of them.
    async fn resolve(&self, place: &str) -> io::Result<Vec<SocketAddr>> {
        let Some(port) = place.strip_prefix('*') else {
            return Ok(lookup_host(place).await?.collect());
        };
        let port = port.strip_prefix(':').unwrap_or("0").parse().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "what follows the colon is not a port number")
        })?;
        let Some(name) = &self.interface else {
            return Ok(vec![SocketAddr::new(IpAddr::from([0; 4]), port)]);
        };
        let mut found: Vec<IpAddr> =
            addresses()?.into_iter().filter(|(of, _)| of == name).map(|(_, ip)| ip).collect();
        // Peers without IPv6 are more common than peers without IPv4.
        found.sort_by_key(IpAddr::is_ipv6);
        if found.is_empty() {
            let mut names: Vec<String> = addresses()?.into_iter().map(|(name, _)| name).collect();
            names.dedup();
            let reason = format!(
                "no network interface {name} with an address is here; there are {}",
                names.join(", ")
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    /// Both halves over an established stream, encrypted if that is asked for.
    async fn connect_over(&self, stream: TcpStream, peer: Address) -> Result<Connection> {
        let failed = |source| Error::Connect { address: peer.clone(), source };
        let local = self.prepare(&stream).map_err(failed)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let (reader, writer) = tokio::io::split(tls.connect(stream, &peer).await?);
            return Ok(connection(local, peer, reader, writer));
        }
        let (reader, writer) = stream.into_split();
        Ok(connection(local, peer, reader, writer))
    }

    /// The same on the side that was connected to.
    async fn accept_over(&self, stream: TcpStream, peer: Address) -> Result<Connection> {
        let local = self.prepare(&stream).map_err(|source| Error::lost(&peer, source))?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let (reader, writer) = tokio::io::split(tls.accept(stream, &peer).await?);
            return Ok(connection(local, peer, reader, writer));
        }
        let (reader, writer) = stream.into_split();
        Ok(connection(local, peer, reader, writer))
    }

    /// Sets a socket's options; gives its own address.
    fn prepare(&self, stream: &TcpStream) -> io::Result<Address> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        // The user timeout bounds what keep-alive finds, too: probes only have to be sent before it is over.
        let beat = (self.dead_after / 6).max(Duration::from_secs(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(beat).with_interval(beat))?;
        socket.set_tcp_user_timeout(Some(self.dead_after))?;
        Ok(Address::new("tcp", stream.local_addr()?))
    }

    fn encrypts(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

fn connection(
    local: Address,
    peer: Address,
    reader: impl AsyncRead + Unpin + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
) -> Connection {
    Connection {
        sender: Box::new(TcpSender::new(writer, peer.clone())),
        receiver: Box::new(TcpReceiver::new(reader, peer.clone())),
        local,
        peer,
        carries_objects: false,
    }
}

impl Transport for Tcp {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let failed = |source| Error::Listen { address: address.clone(), source };
            let places = self.resolve(address.place()).await.map_err(failed)?;
            let listener = TcpListener::bind(&places[..]).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            let address = if bound.ip().is_unspecified() {
                Address::new("tcp", format_args!("{}:{}", host_name(), bound.port()))
            } else {
                Address::new("tcp", bound)
            };
            let handshakes = FuturesUnordered::new();
            Ok(Box::new(Incoming { tcp: self.clone(), listener, address, handshakes }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let failed = |source| Error::Connect { address: address.clone(), source };
            let places: Vec<SocketAddr> = lookup_host(address.place()).await.map_err(failed)?.collect();
            let stream = TcpStream::connect(&places[..]).await.map_err(failed)?;
            self.connect_over(stream, address.clone()).await
        })
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        if self.interface.is_some() {
            futures::executor::block_on(self.resolve("*")).map_err(|error| error.to_string())?;
        }
        let all = addresses().map_err(|error| format!("cannot list the network interfaces: {error}"))?;
        let chosen = |name: &String| self.interface.as_ref().is_none_or(|interface| interface == name);
        let mut lines: Vec<String> = all
            .into_iter()
            .filter(|(name, _)| chosen(name))
            .map(|(name, ip)| format!("{name} {ip}"))
            .collect();
        if self.encrypts() {
            lines.push("encrypted (TLS)".into());
        }
        Ok(lines)
    }

    fn bare(&self, control: &mut dyn Control, leads: bool) -> io::Result<Box<dyn Bare>> {
        bare::connect(self, control, leads)
    }
}

/// The addresses of this host, with the names of their interfaces.
fn addresses() -> io::Result<Vec<(String, IpAddr)>> {
    Ok(if_addrs::get_if_addrs()?
        .into_iter()
        .map(|interface| (interface.name.clone(), interface.ip()))
        .collect())
}

/// What a listener on all interfaces is reached by.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_owned() }
}

struct Incoming {
    tcp: Tcp,
    listener: TcpListener,
    address: Address,
    /// Visitors whose connection is being encrypted; none waits for another.
    handshakes: FuturesUnordered<BoxFuture<'static, Result<Connection>>>,
}

impl Listener for Incoming {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        loop {
            if let Poll::Ready(Some(visitor)) = self.handshakes.poll_next_unpin(cx) {
                return Poll::Ready(visitor);
            }
            let failed = |source| Error::Listen { address: self.address.clone(), source };
            let (stream, peer) = ready!(self.listener.poll_accept(cx)).map_err(failed)?;
            let (tcp, peer) = (self.tcp.clone(), Address::new("tcp", peer));
            self.handshakes.push(Box::pin(async move { tcp.accept_over(stream, peer).await }));
        }
    }
}
