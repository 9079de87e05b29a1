//! MPI without this transport, to compare with: the calls that the OSU benchmarks make.

use std::{
    ffi::c_int,
    io,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use mpi::ffi;
use rankine_transport::bare::{Bare, Control};

use crate::{
    fabric::{byte, check, int},
    local,
    wire::BARE,
};

/// Messages under way at a time, as in OSU's measurement of bandwidth.
const WINDOW: usize = 64;

/// One of two ranks.
pub(crate) struct BareMpi {
    peer: c_int,
    leads: bool,
    communicator: ffi::MPI_Comm,
    ours: Vec<u8>,
    theirs: Vec<u8>,
}

impl BareMpi {
    /// # Errors
    /// If the other side is no other rank of this job.
    pub(crate) fn meet(control: &mut dyn Control, leads: bool) -> io::Result<Self> {
        let world = local::join().map_err(io::Error::other)?;
        let mine = [&world.token.to_le_bytes()[..], &world.rank.to_le_bytes()].concat();
        let theirs = control.exchange(&mine)?;
        let peer = theirs.strip_prefix(&world.token.to_le_bytes()).and_then(|rank| rank.try_into().ok());
        let peer = peer.map(c_int::from_le_bytes).filter(|peer| (0..world.size).contains(peer));
        match peer {
            Some(peer) if peer != world.rank => {
                let communicator = local::with(|engine| engine.fabric().communicator())?;
                Ok(Self { peer, leads, communicator, ours: Vec::new(), theirs: Vec::new() })
            }
            Some(_) => Err(io::Error::other("blocking calls of MPI's need two ranks, and this is one")),
            None => Err(io::Error::other("the other side is no rank of this MPI job")),
        }
    }

    fn send(&self, size: usize) -> io::Result<()> {
        let (start, count, to) = (self.ours.as_ptr().cast(), int(size)?, self.peer);
        // SAFETY: `ours` has at least `size` bytes, and the call waits until it is done with them.
        check(unsafe { ffi::MPI_Send(start, count, byte(), to, BARE, self.communicator) }, "MPI_Send")
    }

    fn receive(&mut self, size: usize) -> io::Result<()> {
        let (start, count, from) = (self.theirs.as_mut_ptr().cast(), int(size)?, self.peer);
        let mut status = MaybeUninit::uninit();
        // SAFETY: `theirs` has at least `size` bytes, and the call waits until it is done with them.
        let code = unsafe {
            let status = status.as_mut_ptr();
            ffi::MPI_Recv(start, count, byte(), from, BARE, self.communicator, status)
        };
        check(code, "MPI_Recv")
    }

    /// A window of messages at a time, all from and into the same memory.
    fn window(&mut self, size: usize, count: usize) -> io::Result<()> {
        let (ours, theirs) = (self.ours.as_ptr().cast(), self.theirs.as_mut_ptr().cast());
        let (size, peer, communicator) = (int(size)?, self.peer, self.communicator);
        let mut requests = Vec::with_capacity(count);
        for _ in 0..count {
            let mut request = MaybeUninit::uninit();
            // SAFETY: both have at least `size` bytes, and stay until the requests are waited for below.
            // That several receives share a buffer is as in OSU's benchmark; nobody reads it.
            let code = unsafe {
                let request = request.as_mut_ptr();
                if self.leads {
                    ffi::MPI_Isend(ours, size, byte(), peer, BARE, communicator, request)
                } else {
                    ffi::MPI_Irecv(theirs, size, byte(), peer, BARE, communicator, request)
                }
            };
            check(code, "MPI_Isend or MPI_Irecv")?;
            // SAFETY: MPI wrote it.
            requests.push(unsafe { request.assume_init() });
        }
        let mut statuses = Vec::with_capacity(count);
        // SAFETY: as many requests, and places for statuses.
        let code = unsafe { ffi::MPI_Waitall(int(count)?, requests.as_mut_ptr(), statuses.as_mut_ptr()) };
        check(code, "MPI_Waitall")
    }

    fn make_room(&mut self, size: usize) {
        self.ours.resize(size.max(1), 1);
        self.theirs.resize(size.max(1), 0);
    }
}

impl Bare for BareMpi {
    fn name(&self) -> &'static str {
        "MPI_Send"
    }

    fn ping_pong(&mut self, size: usize, rounds: usize) -> io::Result<Vec<Duration>> {
        local::with(|_| ())?;
        self.make_room(size);
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            if self.leads {
                self.send(size)?;
                self.receive(size)?;
            } else {
                self.receive(size)?;
                self.send(size)?;
            }
            times.push(start.elapsed());
        }
        Ok(times)
    }

    fn stream(&mut self, size: usize, count: usize) -> io::Result<Duration> {
        local::with(|_| ())?;
        self.make_room(size);
        let start = Instant::now();
        for begun in (0..count).step_by(WINDOW) {
            self.window(size, WINDOW.min(count - begun))?;
        }
        if self.leads {
            self.receive(1)?
        } else {
            self.send(1)?
        }
        Ok(start.elapsed())
    }
}
