#![cfg(feature = "mpi")]
//! `mpi://`: connections between the ranks of an MPI job.
//!
//! (protocol)

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

/// The transport.
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
