//! `shm://host/name`: between processes of one host a chunk stays where it is, and only word of it travels.
//!
//! ```text
//!   lender                                                            borrower
//!  ┌──────────────┐   heads, small frames, loans (segment, offset)   ┌──────────────┐
//!  │ sender       │ ────────────── UNIX socket, in order ──────────▶ │ receiver     │
//!  └──────────────┘   a new segment's descriptor, once               └──────┬───────┘
//!         ▲                                                                 │ maps it, read-only
//!  ┌──────┴───────┐   taken, returned; forget this segment           ┌──────▼───────┐
//!  │ ledger       │ ◀─────────── a socket beside it ───────────────▶ │ ledger       │
//!  └──────┬───────┘                                                  └──────┬───────┘
//!         ▼                                                                 ▼
//!   ══════════════════ the same pages of memory: a segment a block ══════════════════
//! ```
//!
//! - **Segments.** From the first listener or connection on, the big blocks of this process
//!   ([`AlignedBuffer`](rankine_transport::AlignedBuffer)s from 256 KiB up, so also what other transports
//!   receive) are each a sealed file in memory: see `segment`. Where descriptors are scarce they are on the heap
//!   as before; each takes one, and up to half of those that the process may open.
//! - **Copies.** None of a frame from 32 KiB up that lies in a segment, this process's or one that it borrows
//!   itself: the receiver reads the very pages that the sender wrote. Other frames are copied once from 256 KiB up,
//!   into a segment, and below that twice, by the kernel, through the socket. Heads up to 4 KiB are copied, to
//!   travel together.
//! - **Lifetime.** The sender keeps a frame as long as the receiver has bytes of it: see `ledger`. Where either
//!   ends before that, however it ends, the other goes on reading what it has, and the memory goes with the last
//!   who maps it.
//! - **Memory.** A sender is ready while less than 1 MiB waits for the socket, less than 8 MiB of copies and fewer
//!   than 64 lent frames are unread. What is lent takes no memory at the receiver, although it counts in the
//!   resident sets of both: [`borrowed`] says how much.
//! - **Threads.** None of its own: everything happens where it is polled, and in a task per connection. While
//!   answers come at once, a receiver looks for them some microseconds before it sleeps: see `waiting`.
//! - **Trust.** Only processes of the same user, or root's, may connect; all else is the secret's to tell. A peer
//!   that shares it may lie about what it lends but can neither write to what others lend nor make who reads fail.
//! - **Death.** The system closes a dead process's sockets: it is known at once.

mod control;
mod ledger;
mod limits;
mod listener;
mod place;
mod receiver;
mod segment;
mod sender;
mod socket;
#[cfg(test)]
mod tests;
mod waiting;
mod wire;

use std::{io, os::linux::net::SocketAddrExt, time::Duration};

use futures::future::BoxFuture;
use rankine_transport::{Address, Connection, Error, Listener, Result, Transport};
use tokio::net::{UnixListener, UnixStream};

pub use ledger::lent;
pub use segment::borrowed;

/// The transport.
#[derive(Debug, Default, Clone, Copy)]
pub struct Shm;

impl Transport for Shm {
    fn scheme(&self) -> &'static str {
        "shm"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let failed = |source| Error::Listen { address: address.clone(), source };
            let address = place::resolve(address).map_err(failed)?;
            let listener =
                UnixListener::bind(place::socket_name(&address).map_err(failed)?).map_err(failed)?;
            segment::supply_blocks();
            Ok(Box::new(listener::Incoming::new(listener, address)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let connecting = async {
                let stream = dial(&place::socket_name(address)?).await?;
                segment::supply_blocks();
                listener::greet(stream, address).await
            };
            connecting.await.map_err(|source| Error::Connect { address: address.clone(), source })
        })
    }

    fn borrowed(&self) -> u64 {
        borrowed()
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        if !segment::works() {
            return Err("this system has no files in memory (memfd_create), or no descriptor is free".into());
        }
        let nobody = format!("rankine/survey-{:016x}", rand::random::<u64>());
        std::os::unix::net::SocketAddr::from_abstract_name(nobody)
            .and_then(|name| std::os::unix::net::UnixListener::bind_addr(&name))
            .map_err(|error| format!("UNIX sockets without a file do not work here: {error}"))?;
        place::resolve(&self.anywhere()).map_err(|error| error.to_string())?;
        let mut lines = vec![
            format!(
                "memory segments (memfd) of this host; {} bytes lent, {} bytes borrowed",
                lent(),
                borrowed()
            ),
            format!("at most {} segments, of {} open files", limits::segments(), limits::open_files()),
        ];
        if let Some(limit) = limits::memory_of_group() {
            lines.push(format!("this control group may take {limit} bytes of memory, segments included"));
        }
        if limits::file_size() < u64::MAX {
            lines.push(format!("a segment may have {} bytes (ulimit -f)", limits::file_size()));
        }
        Ok(lines)
    }

    fn reaches(&self, address: &Address) -> bool {
        address.scheme() == "shm" && place::is_here(address)
    }
}

/// Connects to a socket, also where many do so at the same time.
async fn dial(name: &str) -> io::Result<UnixStream> {
    const TRIES: u32 = 1000;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..TRIES {
        match UnixStream::connect(name).await {
            // The listener's queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(PAUSE).await,
            connected => return connected,
        }
    }
    UnixStream::connect(name).await
}
