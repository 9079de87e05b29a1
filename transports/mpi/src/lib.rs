//! `mpi://WORLD/RANK:PORT`: connections between the ranks of an MPI job.
//!
//! It is built only with the feature `mpi`, where an MPI library with its headers and libclang are;
//! without it this crate is empty. `MPICC` chooses among several libraries.
//!
//! # Protocol
//!
//! All connections between two ranks share a private communicator: packets of records go under one tag,
//! the pieces for a connection under the tag of its number.
//!
//! ```text
//!   sender                                                        receiver
//!  head ─────┐ copied                                      copied ┌───▶ head
//!  frame ────┤                                                    ├───▶ frame (≤ 4 KiB)
//!            ▼                                                    │
//!         record ──▶ packet (≤ 16 KiB) ══ tag 0, posted receive ══╡
//!                                                                 └ what else comes, and how long
//!  frame ──┬─────▶ piece (≤ 8 MiB) ══════ tag of the connection, matched probe ════▶ frame
//!          └─────▶ piece ════════════════════════════════════════════════════════▶  (> 4 KiB)
//! ```
//!
//! - **Records.** A message is a record: its lengths, and of its head and frames those of up to 4 KiB, as
//!   long as all fit into a packet. What was started before a flush travels in one packet, whichever the
//!   connection.
//! - **Pieces.** A longer head or frame travels by itself, in pieces of up to 8 MiB: MPI is given the frame's
//!   own memory to send from, and the final, aligned memory to receive into. A piece is received when
//!   a matched probe finds it and it is of the length that the record announced.
//! - **Copies.** Of a frame of more than 4 KiB none on either side but MPI's own; a smaller one is copied
//!   into its packet and out of it.
//! - **Flow.** A sender may be 256 KiB of records ahead of its reader; of pieces that are not received, and
//!   that the library on the other side keeps if it sends them at once, 1 MiB (each counted up to
//!   64 KiB). Up to 1 MiB of pieces is received before the reader asks, whatever its limits: as much
//!   as a socket's buffer would take. A message beyond the limits is refused before memory for its pieces is
//!   made. A sender is ready while no more than 8 MiB wait.
//! - **Ends.** Each half says a last word. When both sides have heard both and taken in all pieces,
//!   the number is free for another connection. A half that is dropped breaks its direction
//!   at once; pieces of it that are under way are received in vain.
//!
//! # Threads and waiting
//!
//! One thread makes all calls of MPI (`MPI_THREAD_FUNNELED` is asked for): the one that joined, by
//! `Mpi::join` or by listening or connecting. It runs the tokio current-thread runtime, with I/O enabled,
//! that the connections are used on. A handle that is used on another thread gives an error that says so;
//! one that is dropped there is taken care of.
//!
//! A task on that runtime lets MPI work whenever nothing else there has anything to do. Who waits for a message
//! does not look for it: the others of the loop would wait too, and a look that finds nothing may give the core
//! away. The task spins for 20 µs after the last thing that happened, then yields to other processes, and from
//! 200 µs on sleeps for an eighth of the time that nothing has happened for, at most 4 ms. So an idle rank looks
//! 250 times a second, which costs about 1 % of a core, and is awake 4 ms after a message came at the latest.
//! While something big is under way it only yields, since MPI may copy at each look.
//!
//! # A rank that fails
//!
//! Under plain MPI the death of a rank ends the job: the launcher sees to it within seconds. Where it
//! must not, use `tcp://` or `verbs://` under a launcher that lets the others live.

#![cfg(feature = "mpi")]

mod arriving;
mod bare;
mod connection;
mod engine;
mod fabric;
mod failure;
mod halves;
mod incoming;
mod launch;
mod local;
mod outgoing;
mod pace;
mod packet;
mod place;
mod progress;
mod table;
mod timer;
mod wire;

use std::{env, future::poll_fn, io, marker::PhantomData, mem, task::Poll};

use bare::BareMpi;
use engine::Engine;
use failure::Failure;
use futures::future::BoxFuture;
use halves::{MpiListener, connection, visitor};
use launch::Launch;
use local::World;
use place::{Place, Wanted};
use rankine_transport::{
    Address, Connection, Error, Listener, Result, Transport,
    bare::{Bare, Control},
};

/// The transport. A program of two ranks, `mpirun -n 2 PROGRAM`:
///
/// ```no_run
/// # async fn program() -> Result<(), Box<dyn std::error::Error>> {
/// use rankine_transport::{Limits, Message, Transport};
/// use rankine_transport_mpi::Mpi;
///
/// // On the thread that runs the tokio current-thread runtime:
/// let membership = Mpi::join()?;
/// if membership.rank() == 0 {
///     let mut listener = Mpi::default().listen(&"mpi://*:1".parse()?).await?;
///     membership.broadcast(b"rank 0 listens")?;
///     let mut visitor = listener.accept().await?;
///     visitor.receiver.set_limits(Limits::PEER);
///     assert_eq!(visitor.receiver.recv().await?.expect("a message").head, "hello");
/// } else {
///     membership.broadcast(&[])?;
///     let mut connection = Mpi::default().connect(&membership.address(0, 1)).await?;
///     connection.sender.send(Message::new("hello", vec![])).await?;
///     connection.sender.close().await?;
/// }
/// membership.leave()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default, Clone, Copy)]
pub struct Mpi {}

impl Mpi {
    /// Joins the other ranks of the job: initialises MPI on this thread, which is from now on the one that
    /// makes all its calls. To listen and to connect do so too, but this gives the guard that says when
    /// MPI is finalized. All ranks of the job must join; this waits for them, up to a minute.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no launcher started this process, the library does not understand it, not
    /// all ranks join, or another thread has joined.
    pub fn join() -> Result<Membership> {
        let failed = |reason| Error::Unavailable { address: Mpi {}.anywhere(), reason };
        let world = local::join().map_err(failed)?;
        Ok(Membership { world, of_one_thread: PhantomData })
    }
}

impl Transport for Mpi {
    fn scheme(&self) -> &'static str {
        "mpi"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let failed = |source| Error::Listen { address: address.clone(), source };
            let world = join(address)?;
            let port = match address.place().parse().map_err(|reason| unreadable(address, reason))? {
                Wanted::Any => None,
                Wanted::Port(port) => Some(port),
                Wanted::Place(Place { world: token, rank, port }) => {
                    if (token, rank) != (world.token, world.rank) {
                        let why = "this is not that rank of that job; mpi://* listens on this one";
                        return Err(failed(io::Error::new(io::ErrorKind::AddrNotAvailable, why)));
                    }
                    Some(port)
                }
            };
            let port = here(address, |engine| engine.listen(port))?.map_err(failed)?;
            let place = Place { world: world.token, rank: world.rank, port };
            Ok(Box::new(MpiListener::new(place, world)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let failed = |kind, why: String| Error::Connect {
                address: address.clone(),
                source: io::Error::new(kind, why),
            };
            let world = join(address)?;
            let place: Place = address.place().parse().map_err(|reason| unreadable(address, reason))?;
            if place.world != world.token {
                let why = "it is an address of another MPI job".to_owned();
                return Err(failed(io::ErrorKind::HostUnreachable, why));
            }
            if place.rank >= world.size {
                let why = format!("this job has no rank {}: it has {}", place.rank, world.size);
                return Err(failed(io::ErrorKind::HostUnreachable, why));
            }
            let id = here(address, |engine| engine.connect(place.rank, place.port))?
                .map_err(|error| failed(error.kind(), error.to_string()))?;
            // From here on dropping this future drops the connection.
            let connection = connection(id, visitor(world, world.rank, id), address.clone());
            let connected = poll_fn(|cx| match here(address, |engine| engine.poll_connected(id, cx)) {
                Ok(polled) => polled.map_err(|failure| match failure {
                    Failure::Lost { kind, why } => failed(kind, why.into_owned()),
                    refused @ Failure::Protocol { .. } => refused.of(address),
                }),
                Err(error) => Poll::Ready(Err(error)),
            });
            connected.await?;
            Ok(connection)
        })
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        let library = fabric::library();
        let Some(world) = local::world() else {
            let Launch { ranks } = Launch::detect(|name| env::var(name).ok())?;
            let ranks = ranks.map_or_else(|| "ranks".to_owned(), |ranks| format!("{ranks} rank(s)"));
            return Ok(vec![library, format!("started by an MPI launcher with {ranks}; not joined yet")]);
        };
        let mut lines = vec![library, format!("rank {} of {}, {}", world.rank, world.size, world.level)];
        let mut hosts: Vec<(&str, Vec<usize>)> = Vec::new();
        for (rank, host) in world.hosts.iter().enumerate() {
            match hosts.iter_mut().find(|(name, _)| name == host) {
                Some((_, ranks)) => ranks.push(rank),
                None => hosts.push((host, vec![rank])),
            }
        }
        for (host, ranks) in hosts {
            let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
            lines.push(format!("on {host}: rank {}", ranks.join(", ")));
        }
        Ok(lines)
    }

    fn reaches(&self, address: &Address) -> bool {
        let place = (address.scheme() == "mpi").then(|| address.place().parse::<Place>().ok()).flatten();
        match (place, local::world()) {
            (Some(place), Some(world)) => place.world == world.token && place.rank < world.size,
            _ => false,
        }
    }

    fn bare(&self, control: &mut dyn Control, leads: bool) -> io::Result<Box<dyn Bare>> {
        Ok(Box::new(BareMpi::meet(control, leads)?))
    }
}

fn join(address: &Address) -> Result<&'static World> {
    local::join().map_err(|reason| Error::Unavailable { address: address.clone(), reason })
}

fn unreadable(address: &Address, reason: &str) -> Error {
    Error::Address { given: address.to_string(), reason: reason.into() }
}

/// Works with the engine, whose progress task is there.
fn here<R>(address: &Address, work: impl FnOnce(&mut Engine) -> R) -> Result<R> {
    let failed = |reason| Error::Unavailable { address: address.clone(), reason };
    let worked = local::with(|engine| {
        progress::ensure(&mut engine.progressing).map_err(io::Error::other)?;
        Ok(work(engine))
    });
    worked.and_then(|worked| worked).map_err(|error| failed(error.to_string()))
}

/// This process's membership of the job, in the hands of the thread that joined. Dropping it leaves.
///
/// Without it MPI is finalized when that thread ends. After that every call of `mpi://` is an error: MPI
/// cannot be initialised twice in a process.
#[derive(Debug)]
pub struct Membership {
    world: &'static World,
    of_one_thread: PhantomData<*const ()>,
}

impl Membership {
    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.world.rank.unsigned_abs() as usize
    }

    /// How many ranks the job has.
    pub fn size(&self) -> usize {
        self.world.size.unsigned_abs() as usize
    }

    /// Where a rank's listener on `mpi://*:PORT` is reached: so ranks find each other without being told.
    pub fn address(&self, rank: usize, port: u32) -> Address {
        let rank = i32::try_from(rank).unwrap_or(i32::MAX);
        Address::new("mpi", Place { world: self.world.token, rank, port })
    }

    /// Gives all ranks what rank 0 gives, such as the cluster's secret. All ranks must call it, in the same
    /// order as others of its kind; it waits for them, up to a minute, and blocks the thread.
    ///
    /// # Errors
    /// If not all ranks come, or MPI fails, or what is given is longer than 1 MiB.
    pub fn broadcast(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        local::with(|engine| engine.broadcast(bytes))?
    }

    /// Gives every rank what each gives, such as its host and cores, in the order of the ranks. All ranks must
    /// call it, as with [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// If not all ranks come, or MPI fails, or one gives more than 1 MiB.
    pub fn gather(&self, bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        local::with(|engine| engine.gather(bytes))?
    }

    /// Leaves: what was flushed is let through (10 s at most), other connections break, and once all ranks
    /// leave MPI is finalized. Until then this waits, asleep most of the time, and blocks the thread.
    ///
    /// # Errors
    /// If something could not be sent in time, or MPI fails.
    pub fn leave(self) -> io::Result<()> {
        let left = local::leave();
        mem::forget(self);
        left
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // Already left, or the words of the library itself are on standard error.
        if let Err(error) = local::leave() {
            tracing::debug!(%error, "left MPI");
        }
    }
}
