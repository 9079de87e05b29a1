//! This process's membership of an MPI job: in the hands of its I/O thread, which makes all calls of MPI.

use std::{cell::RefCell, io};

use rankine_transport_mpi::{Membership, Mpi};

use super::{IoThread, cores::Binding, io_thread::at_end};
use crate::{Error, Result};

thread_local! {
    static MEMBERSHIP: RefCell<Option<Membership>> = const { RefCell::new(None) };
}

/// Joins the other ranks; gives this one's number and how many there are. It leaves once the I/O thread has
/// nothing left to serve.
///
/// # Errors
/// If there is no job to join, or not all ranks come.
pub(super) fn join(io: &IoThread) -> Result<(usize, usize)> {
    io.serve(|ready| async move {
        let joined = Mpi::join().map(|membership| {
            let place = (membership.rank(), membership.size());
            MEMBERSHIP.set(Some(membership));
            at_end(leave);
            place
        });
        let _ = ready.send(joined.map_err(Error::from));
    })
}

fn leave() {
    if let Some(Err(error)) = MEMBERSHIP.take().map(Membership::leave) {
        tracing::debug!(%error, "left MPI");
    }
}

/// Does something together with the other ranks.
///
/// # Errors
/// If they do not come.
fn together<R: Send + 'static>(
    io: &IoThread,
    attempt: &'static str,
    work: impl FnOnce(&Membership) -> io::Result<R> + Send + 'static,
) -> Result<R> {
    io.serve(move |ready| async move {
        let done = MEMBERSHIP.with_borrow(|membership| match membership {
            Some(membership) => work(membership).map_err(Error::io(attempt)),
            None => Err(Error::closed("this process has left its MPI job")),
        });
        let _ = ready.send(done);
    })
}

/// Gives all ranks what rank 0 says.
///
/// # Errors
/// As [`together`].
pub(super) fn broadcast(io: &IoThread, said: Vec<u8>) -> Result<Vec<u8>> {
    together(io, "hear where the scheduler is, from rank 0", move |membership| membership.broadcast(&said))
}

/// Where each rank is and to which cores it is bound.
///
/// # Errors
/// As [`together`].
pub(crate) fn bindings(io: &IoThread, mine: &Binding) -> Result<Vec<Binding>> {
    let mine = serde_json::to_vec(mine).map_err(|e| Error::Usage(e.to_string()))?;
    let all = together(io, "tell the other ranks of this one's cores", move |m| m.gather(&mine))?;
    all.iter()
        .map(|one| {
            serde_json::from_slice(one)
                .map_err(|e| Error::Usage(format!("what a rank says of its cores: {e}")))
        })
        .collect()
}
