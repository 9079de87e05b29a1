//! `verbs://host:port`: connections over RDMA, on InfiniBand and RoCE.
//!
//! ```text
//!   sender                                                 receiver
//!  ┌──────────────────────┐   SEND, 8 KiB segments        ┌───────────────────────┐
//!  │ heads, small frames ─┼──────────────────────────────▶│ segments posted ahead │
//!  │ descriptors of       │                               │   │ copied out        │
//!  │   big frames         │                               │   ▼                   │
//!  │                      │   RDMA READ, 64 MiB pieces    │ heads, small frames   │
//!  │ the frames' memory ──┼──────────────────────────────▶│ the frames' memory    │
//!  │   is lent            │   word: consumed, read        │                       │
//!  │                    ◀─┼───────────────────────────────┤                       │
//!  └──────────────────────┘                               └───────────────────────┘
//!        side channel: TCP, for the queue pairs' addresses and the peer's death
//! ```
//!
//! **Messages** are a stream of bytes in each direction, cut into segments (`wire`). Frames and heads shorter than
//! 32 KiB lie in the stream: one copy into a segment (or, up to 256 bytes, inline into the work request) and one out
//! of it. Of a longer one only its address goes; the receiver reads it straight from where it lies to where it stays, and
//! then says so. Nobody copies it, except out of memory that no device reaches, such as some mapped files.
//!
//! **Flow control.** A side may send 32 segments beyond what the peer has consumed, so a segment is always posted for what
//! comes, and a slow reader stops its writer. A sender is ready while less than 8 MiB waits to be sent or read. At most
//! 256 MiB in 1,024 pieces is lent at once. The receiver begins to read up to 8 MiB of the messages after the one that
//! is asked for, so that the fabric is busy meanwhile.
//!
//! **Memory.** A connection has 40 segments to receive and 16 to send, 448 KiB, registered. Frames are received into
//! blocks that are kept for others (`rankine_transport::AlignedBuffer`), and so are their registrations, up to a bound,
//! each until its block is given back to the system. Other memory is registered for one transfer (`registrations`).
//! Registered memory is locked; the limit that `ulimit -l` shows must allow for it.
//!
//! **Waiting.** All runs on the threads that poll the connection. What waits for a small message looks again some 20
//! times, with all other tasks in between, and then has itself woken by the completion channel, a file that tokio watches, one for
//! all connections of a runtime (`engine`). A task a connection watches its side channel.
//!
//! **Failure.** A process that dies closes its side channel, and its peers know at once. A link or a device that goes is found
//! by work that fails, after some 4 s without an answer. Either ends this one connection, with the reason.
//!
//! **Security.** A peer that was told where a frame lies can read the block around it for as long as it is registered: the
//! members of a cluster trust each other. Before the secret is proved nothing is lent.
//!
//! The crate is empty without the feature `rdma-core`. With it, the build needs libibverbs and its development files
//! (Debian: `libibverbs-dev`; Red Hat: `rdma-core-devel`), libclang, cmake and pkg-config.
#![cfg(feature = "rdma-core")]

mod bare;
mod completion;
mod connection;
mod device;
mod engine;
mod exchange;
mod listener;
mod queue_pair;
mod receiver;
mod region;
mod registrations;
mod sender;
mod wire;

use std::{io, net::SocketAddr};

use futures::future::BoxFuture;
use rankine_transport::{
    Address, Connection, Error, Listener, Result, Transport,
    bare::{Bare, Control},
};
use tokio::net::{TcpListener, TcpStream, lookup_host};

use crate::{
    bare::BareVerbs,
    engine::Engine,
    listener::{Incoming, Setup},
    registrations::Registrations,
};

/// The transport. By default it uses the fastest port that is active; and of RoCE's GIDs that of RoCE v2 with an
/// IPv4 address, if there is one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verbs {
    /// The device to use, such as `mlx5_0`.
    pub device: Option<String>,
    /// The port to use, from 1.
    pub port: Option<u8>,
    /// The GID to use, by its index in the port's table. On InfiniBand, where peers find each other by LID otherwise,
    /// it makes packets pass routers between subnets.
    pub gid_index: Option<u32>,
    /// Bytes of memory that stay registered while unused; a quarter of what may be locked, and of the machine's memory, by
    /// default.
    pub registered_bytes: Option<u64>,
}

impl Transport for Verbs {
    fn scheme(&self) -> &'static str {
        "verbs"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let engine = Engine::open(self).map_err(|reason| unavailable(address, reason))?;
            let failed = |source| Error::Listen { address: address.clone(), source };
            let listener = TcpListener::bind(address.place()).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            let address = if bound.ip().is_unspecified() {
                Address::new("verbs", format_args!("{}:{}", host_name(), bound.port()))
            } else {
                Address::new("verbs", bound)
            };
            Ok(Box::new(Incoming::new(engine, listener, address)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let engine = Engine::open(self).map_err(|reason| unavailable(address, reason))?;
            let failed = |source| Error::Connect { address: address.clone(), source };
            let places: Vec<SocketAddr> = lookup_host(address.place()).await.map_err(failed)?.collect();
            let stream = TcpStream::connect(&places[..]).await.map_err(failed)?;
            let local = Address::new("verbs", stream.local_addr().map_err(failed)?);
            let connected = listener::connect(engine, stream, [local, address.clone()]).await;
            connected.map_err(|error| match error {
                Setup::Here(reason) => unavailable(address, reason.to_string()),
                Setup::Peer(reason) => failed(io::Error::new(io::ErrorKind::InvalidData, reason)),
                Setup::Link(source) => failed(source),
            })
        })
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        device::survey(self)
    }

    fn bare(&self, control: &mut dyn Control, leads: bool) -> io::Result<Box<dyn Bare>> {
        let registrations =
            Registrations::open(self).map_err(|reason| io::Error::new(io::ErrorKind::NotFound, reason))?;
        Ok(Box::new(BareVerbs::new(registrations, control, leads)?))
    }

    fn anywhere(&self) -> Address {
        Address::new("verbs", "0.0.0.0:0")
    }

    fn reaches(&self, address: &Address) -> bool {
        address.scheme() == "verbs" && Registrations::open(self).is_ok()
    }
}

fn unavailable(address: &Address, reason: String) -> Error {
    Error::Unavailable { address: address.clone(), reason }
}

/// What a listener on all interfaces is reached by.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests;
