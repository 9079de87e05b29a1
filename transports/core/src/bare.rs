//! The bare fabric under a transport: what a benchmark compares the transport with.
//!
//! Blocking calls of the fabric's own on the calling thread, in the way its own benchmarks make them (a
//! socket, `MPI_Send`, `ibv_post_send`), without anything of Rankine's.

use std::{io, time::Duration};

/// What two processes that set up a fabric tell each other.
pub trait Control {
    /// Sends some bytes to the other side and gives what that sent in the same call.
    ///
    /// # Errors
    /// If the other side went.
    fn exchange(&mut self, mine: &[u8]) -> io::Result<Vec<u8>>;
}

/// One of two ends of a bare fabric. Both ends make the same calls with the same figures; `leads` was
/// said when they were made.
pub trait Bare {
    /// What it is, for a table: `blocking socket`, `MPI_Send`, `ibv_post_send`.
    fn name(&self) -> &'static str;

    /// `rounds` times the leader sends `size` bytes and the other side answers with as many; gives how
    /// long each round took on this side.
    ///
    /// # Errors
    /// If the other side or the fabric went.
    fn ping_pong(&mut self, size: usize, rounds: usize) -> io::Result<Vec<Duration>>;

    /// The leader sends `count` messages of `size` bytes, as fast as the fabric takes them, and waits for
    /// one answer to all; gives how long that took.
    ///
    /// # Errors
    /// If the other side or the fabric went.
    fn stream(&mut self, size: usize, count: usize) -> io::Result<Duration>;
}
