//! MPI's calls, behind a safe face.
//!
//! A [`Fabric`] is this process's membership of a private communicator. What it sends or receives it
//! owns until MPI is done with it, so no memory goes while MPI may still look at it, whatever
//! becomes of those who asked. It is neither `Send` nor `Sync`: its thread is the one that calls MPI. Here are the
//! calls between two ranks; `together` has those of all at once.

mod together;

use std::{
    ffi::c_int,
    io,
    marker::PhantomData,
    mem::{self, MaybeUninit},
};

use bytes::Bytes;
use mpi::{environment, ffi};
use rankine_transport::AlignedBuffer;

pub(crate) use together::{Joined, LONGEST, PATIENCE};

/// The calls of one thread over one communicator; `N` is what each operation is remembered by.
pub(crate) struct Fabric<N> {
    communicator: ffi::MPI_Comm,
    rank: c_int,
    size: c_int,
    last_tag: c_int,
    level: c_int,
    /// Whether this library was initialised here, and so is to be finalized here.
    initialised: bool,
    /// What MPI works on, one request an operation.
    requests: Vec<ffi::MPI_Request>,
    operations: Vec<Operation<N>>,
    indices: Vec<c_int>,
    statuses: Vec<ffi::MPI_Status>,
    ended: Vec<(usize, ffi::MPI_Status)>,
    of_one_thread: PhantomData<*const ()>,
}

struct Operation<N> {
    note: N,
    memory: Memory,
}

/// The memory that MPI reads or writes.
enum Memory {
    Sent(#[expect(dead_code, reason = "kept alive for MPI, which reads it")] Bytes),
    Received(AlignedBuffer),
}

/// An operation that came to its end.
pub(crate) struct Done<N> {
    pub(crate) note: N,
    pub(crate) outcome: io::Result<Outcome>,
}

/// What an operation gave.
pub(crate) enum Outcome {
    Sent,
    Received { buffer: AlignedBuffer, source: c_int },
}

/// A message that a probe took out of the queue, for its receive alone.
pub(crate) struct Matched {
    message: ffi::MPI_Message,
    pub(crate) length: usize,
}

/// What `code` means, in MPI's words.
pub(crate) fn check(code: c_int, what: &str) -> io::Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut words = [0u8; 1024];
    let mut length = 0;
    // SAFETY: MPI writes at most MPI_MAX_ERROR_STRING bytes, which is 256 or 512 in the libraries there are.
    unsafe { ffi::MPI_Error_string(code, words.as_mut_ptr().cast(), &mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(words.len());
    let words = String::from_utf8_lossy(&words[..length]);
    Err(io::Error::other(format!("{what}: {words} (MPI error {code})")))
}

/// The library's name and version, which it tells before it is initialised.
pub(crate) fn library() -> String {
    let version = environment::library_version().unwrap_or_default();
    // What follows is how it was built.
    let version = version.split([',', '\n']).next().unwrap_or_default();
    let words: Vec<&str> =
        version.split(|c: char| c.is_whitespace() || c == '\0').filter(|w| !w.is_empty()).collect();
    if words.is_empty() { "an MPI library without a name".into() } else { words.join(" ") }
}

impl<N> Fabric<N> {
    pub(crate) fn rank(&self) -> c_int {
        self.rank
    }

    pub(crate) fn size(&self) -> c_int {
        self.size
    }

    /// The largest tag there is.
    pub(crate) fn last_tag(&self) -> c_int {
        self.last_tag
    }

    /// The thread level that the library provides, in MPI's word.
    pub(crate) fn level(&self) -> &'static str {
        // SAFETY: constants of the library.
        unsafe {
            match self.level {
                level if level == ffi::RSMPI_THREAD_FUNNELED => "MPI_THREAD_FUNNELED",
                level if level == ffi::RSMPI_THREAD_SERIALIZED => "MPI_THREAD_SERIALIZED",
                level if level == ffi::RSMPI_THREAD_MULTIPLE => "MPI_THREAD_MULTIPLE",
                _ => "MPI_THREAD_SINGLE",
            }
        }
    }

    /// How many operations MPI works on.
    pub(crate) fn pending(&self) -> usize {
        self.requests.len()
    }

    /// How many of them are receives.
    pub(crate) fn receiving(&self) -> usize {
        self.operations.iter().filter(|operation| matches!(operation.memory, Memory::Received(_))).count()
    }

    /// Starts to send from the memory of `bytes` itself.
    ///
    /// # Errors
    /// If MPI refuses, or they are more than an `int` counts.
    pub(crate) fn send(&mut self, bytes: Bytes, to: c_int, tag: c_int, note: N) -> io::Result<()> {
        let count = int(bytes.len())?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the bytes stay where they are until the request is done: `operations` holds them.
        let code = unsafe {
            let start = bytes.as_ptr().cast();
            ffi::MPI_Isend(start, count, byte(), to, tag, self.communicator, request.as_mut_ptr())
        };
        check(code, "MPI_Isend")?;
        // SAFETY: MPI wrote it.
        self.started(unsafe { request.assume_init() }, note, Memory::Sent(bytes));
        Ok(())
    }

    /// Starts to receive a message of any rank into what is not filled of `buffer`.
    ///
    /// # Errors
    /// If MPI refuses, or the buffer is of more than an `int` counts.
    pub(crate) fn receive_any(&mut self, mut buffer: AlignedBuffer, tag: c_int, note: N) -> io::Result<()> {
        let spare = buffer.spare();
        let (start, count) = (spare.as_mut_ptr().cast(), int(spare.len())?);
        let mut request = MaybeUninit::uninit();
        // SAFETY: the memory stays where it is until the request is done: `operations` holds it.
        let code = unsafe {
            let any = ffi::RSMPI_ANY_SOURCE;
            ffi::MPI_Irecv(start, count, byte(), any, tag, self.communicator, request.as_mut_ptr())
        };
        check(code, "MPI_Irecv")?;
        // SAFETY: MPI wrote it.
        self.started(unsafe { request.assume_init() }, note, Memory::Received(buffer));
        Ok(())
    }

    /// Looks for a message, and takes it for a [`receive`](Self::receive) that must follow.
    ///
    /// # Errors
    /// MPI's.
    pub(crate) fn probe(&mut self, from: c_int, tag: c_int) -> io::Result<Option<Matched>> {
        let (mut found, mut message) = (0, MaybeUninit::uninit());
        let mut status = MaybeUninit::uninit();
        // SAFETY: the places are valid for the call.
        let code = unsafe {
            let message = message.as_mut_ptr();
            ffi::MPI_Improbe(from, tag, self.communicator, &mut found, message, status.as_mut_ptr())
        };
        check(code, "MPI_Improbe")?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: MPI wrote both, since it found a message.
        let (message, status) = unsafe { (message.assume_init(), status.assume_init()) };
        Ok(Some(Matched { message, length: count(&status) }))
    }

    /// Starts to receive a message that was found, straight into what is not filled of `buffer`. What
    /// exceeds that is lost, and the outcome an error.
    ///
    /// # Errors
    /// If MPI refuses.
    pub(crate) fn receive(&mut self, found: Matched, mut buffer: AlignedBuffer, note: N) -> io::Result<()> {
        let mut message = found.message;
        let spare = buffer.spare();
        // A frame of several pieces has more room than this one fills.
        let (start, count) = (spare.as_mut_ptr().cast(), int(spare.len().min(found.length))?);
        let mut request = MaybeUninit::uninit();
        // SAFETY: the memory stays where it is until the request is done: `operations` holds it.
        let code = unsafe { ffi::MPI_Imrecv(start, count, byte(), &mut message, request.as_mut_ptr()) };
        check(code, "MPI_Imrecv")?;
        // SAFETY: MPI wrote it.
        self.started(unsafe { request.assume_init() }, note, Memory::Received(buffer));
        Ok(())
    }

    fn started(&mut self, request: ffi::MPI_Request, note: N, memory: Memory) {
        self.requests.push(request);
        self.operations.push(Operation { note, memory });
    }

    /// Lets MPI work, and tells what it is done with.
    ///
    /// # Errors
    /// MPI's, where they concern no single operation.
    pub(crate) fn poll(&mut self, done: &mut Vec<Done<N>>) -> io::Result<()> {
        let pending = self.requests.len();
        self.indices.resize(pending, 0);
        // SAFETY: a status is plain figures, for which zero is good.
        self.statuses.resize_with(pending, || unsafe { mem::zeroed() });
        let mut ended = 0;
        // SAFETY: three arrays of `pending` places each.
        let code = unsafe {
            let (requests, indices) = (self.requests.as_mut_ptr(), self.indices.as_mut_ptr());
            let statuses = self.statuses.as_mut_ptr();
            ffi::MPI_Testsome(int(pending)?, requests, &mut ended, indices, statuses)
        };
        let each = code == ffi::MPI_ERR_IN_STATUS as c_int;
        if !each {
            check(code, "MPI_Testsome")?;
        }
        // None at all is told by MPI_UNDEFINED, which is negative.
        let ended = usize::try_from(ended).unwrap_or(0).min(pending);
        if ended == 0 {
            return Ok(());
        }
        let ended = self.indices.iter().zip(&self.statuses).take(ended);
        self.ended.extend(ended.filter_map(|(index, status)| Some((usize::try_from(*index).ok()?, *status))));
        // From the last, so that the others stay where they are.
        self.ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, status) in self.ended.drain(..).filter(|(index, _)| *index < pending) {
            self.requests.swap_remove(index);
            let operation = self.operations.swap_remove(index);
            let code = if each { status.MPI_ERROR } else { ffi::MPI_SUCCESS as c_int };
            let outcome = match operation.memory {
                Memory::Sent(_) => check(code, "sending").map(|()| Outcome::Sent),
                Memory::Received(mut buffer) => check(code, "receiving").map(|()| {
                    // SAFETY: MPI wrote that many.
                    unsafe { buffer.advance(count(&status)) };
                    Outcome::Received { buffer, source: status.MPI_SOURCE }
                }),
            };
            done.push(Done { note: operation.note, outcome });
        }
        Ok(())
    }

    /// The communicator, for calls that this face does not have.
    pub(crate) fn communicator(&self) -> ffi::MPI_Comm {
        self.communicator
    }
}

impl<N> Drop for Fabric<N> {
    fn drop(&mut self) {
        // MPI may write to it as long as the process lives.
        mem::forget(mem::take(&mut self.operations));
    }
}

pub(crate) fn byte() -> ffi::MPI_Datatype {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_UINT8_T }
}

pub(crate) fn int(count: usize) -> io::Result<c_int> {
    c_int::try_from(count).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{count} is more than MPI counts in one call"))
    })
}

fn count(status: &ffi::MPI_Status) -> usize {
    let mut count = 0;
    // SAFETY: a status that MPI wrote.
    unsafe { ffi::MPI_Get_count(status, byte(), &mut count) };
    usize::try_from(count).unwrap_or(0)
}
