//! MPI's calls, behind a safe face.
//!
//! A [`Fabric`] is this process's membership of a private communicator. What it sends or receives it
//! owns until MPI is done with it, so no memory goes while MPI may still look at it, whatever
//! becomes of those who asked. It is neither `Send` nor `Sync`: its thread is the one that calls MPI.

use std::{
    ffi::c_int,
    io,
    marker::PhantomData,
    mem::{self, MaybeUninit},
    ptr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mpi::{environment, ffi};
use rankine_transport::AlignedBuffer;

use crate::pace::Pace;

/// What all ranks do together must be begun by all within this time of the first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a rank gives the others at once, at most.
pub(crate) const LONGEST: u64 = 1 << 20;

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

/// Where all ranks come before they leave.
pub(crate) struct Barrier(ffi::MPI_Request);

impl Barrier {
    /// Whether all have come. True once; not to be asked again then.
    ///
    /// # Errors
    /// MPI's.
    pub(crate) fn is_passed(&mut self) -> io::Result<bool> {
        test(&mut self.0, "MPI_Ibarrier")
    }
}

/// Items that any bytes are good for.
pub(crate) trait Figure {}
impl Figure for u8 {}
impl Figure for u64 {}

/// What all ranks agree on when they join.
pub(crate) struct Joined<N> {
    pub(crate) fabric: Fabric<N>,
    /// Drawn by rank 0.
    pub(crate) token: u64,
    /// The host of each rank.
    pub(crate) hosts: Vec<String>,
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
    /// Initialises MPI on this thread, unless the program has done so, and makes the communicator. All
    /// ranks must do so; gives up where some do not within [`PATIENCE`].
    pub(crate) fn join(token: u64) -> io::Result<Joined<N>> {
        let (level, initialised) = initialise()?;
        let deadline = Instant::now() + PATIENCE;
        let mut fabric = Self {
            // SAFETY: a constant of the library.
            communicator: unsafe { ffi::RSMPI_COMM_WORLD },
            rank: 0,
            size: 0,
            last_tag: 0,
            level,
            initialised,
            requests: Vec::new(),
            operations: Vec::new(),
            indices: Vec::new(),
            statuses: Vec::new(),
            ended: Vec::new(),
            of_one_thread: PhantomData,
        };
        fabric.return_errors()?;
        let world = fabric.communicator;
        // SAFETY: MPI is initialised; the places are valid for the calls.
        unsafe {
            check(ffi::MPI_Comm_rank(world, &mut fabric.rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(world, &mut fabric.size), "MPI_Comm_size")?;
        }
        fabric.last_tag = fabric.largest_tag()?;

        // What MPI writes to while it waits is left to it where the others do not come.
        let mut private = vec![world];
        let place = private.as_mut_ptr();
        // SAFETY: `private` outlives the request, which `settle` sees to.
        let request = |request: *mut _| unsafe { ffi::MPI_Comm_idup(world, place, request) };
        fabric.communicator = settle("MPI_Comm_idup", deadline, request, private)?[0];
        fabric.return_errors()?;

        let token = fabric.broadcast(vec![token], deadline)?[0];

        let host = environment::processor_name().unwrap_or_else(|_| "?".into());
        let hosts = fabric.gather(host.as_bytes(), deadline)?;
        let hosts = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        Ok(Joined { fabric, token, hosts })
    }

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

    /// Gives every rank what each gives, in the order of the ranks.
    ///
    /// # Errors
    /// If not all ranks come in time, or MPI fails.
    pub(crate) fn gather(&mut self, mine: &[u8], deadline: Instant) -> io::Result<Vec<Vec<u8>>> {
        let lengths = self.gather_equal(&(mine.len() as u64).to_le_bytes(), deadline)?;
        let length = |bytes: &[u8]| {
            let length = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            usize::try_from(length).ok().filter(|length| *length as u64 <= LONGEST)
        };
        let lengths: Option<Vec<usize>> = lengths.chunks_exact(8).map(length).collect();
        let lengths = lengths.ok_or_else(|| io::Error::other("a rank gives more than there is room for"))?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = mine.to_vec();
        padded.resize(longest, 0);
        let all = self.gather_equal(&padded, deadline)?;
        Ok(all.chunks_exact(longest).zip(lengths).map(|(bytes, length)| bytes[..length].to_vec()).collect())
    }

    /// The same where all give equally many bytes; they come one after the other.
    fn gather_equal(&mut self, mine: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        let (ranks, length) = (usize::try_from(self.size).unwrap_or(1), mine.len());
        let mut room = vec![0u8; ranks * length];
        room.extend_from_slice(mine);
        let all: *mut u8 = room.as_mut_ptr();
        let own = all.wrapping_add(ranks * length);
        let (count, private, byte) = (int(length)?, self.communicator, byte());
        // SAFETY: `room` has a place for what each rank gives, and behind them what this one does; it outlives
        // the request.
        let request = |request: *mut _| unsafe {
            ffi::MPI_Iallgather(own.cast(), count, byte, all.cast(), count, byte, private, request)
        };
        let mut room = settle("MPI_Iallgather", deadline, request, room)?;
        room.truncate(ranks * length);
        Ok(room)
    }

    /// Gives all ranks what rank 0 gives; all give as much, and come before `deadline`.
    ///
    /// # Errors
    /// MPI's, or if some do not come.
    pub(crate) fn broadcast<T: Figure>(
        &mut self,
        mut items: Vec<T>,
        deadline: Instant,
    ) -> io::Result<Vec<T>> {
        let (place, count): (*mut T, _) = (items.as_mut_ptr(), int(size_of_val(&items[..]))?);
        let communicator = self.communicator;
        // SAFETY: so many bytes, of which any are good for a figure; they outlive the request, which
        // `settle` sees to.
        let request = |request: *mut _| unsafe {
            ffi::MPI_Ibcast(place.cast(), count, byte(), 0, communicator, request)
        };
        settle("MPI_Ibcast", deadline, request, items)
    }

    /// Comes to where all ranks come before they leave.
    ///
    /// # Errors
    /// MPI's.
    pub(crate) fn barrier(&mut self) -> io::Result<Barrier> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the place is valid for the call.
        check(unsafe { ffi::MPI_Ibarrier(self.communicator, request.as_mut_ptr()) }, "MPI_Ibarrier")?;
        // SAFETY: MPI wrote it.
        Ok(Barrier(unsafe { request.assume_init() }))
    }

    /// Takes back the receives that nothing came for, and finalizes the library if it was initialised
    /// here. What MPI still works on is left to it.
    ///
    /// # Errors
    /// MPI's.
    pub(crate) fn finalize(mut self) -> io::Result<()> {
        let mut cancelled = Vec::new();
        for (request, operation) in self.requests.iter_mut().zip(&self.operations) {
            if matches!(operation.memory, Memory::Received(_)) {
                // SAFETY: a request under way.
                check(unsafe { ffi::MPI_Cancel(request) }, "MPI_Cancel")?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.receiving() > 0 && Instant::now() < deadline {
            self.poll(&mut cancelled)?;
        }
        if self.requests.is_empty() {
            // SAFETY: nothing is under way on it.
            check(unsafe { ffi::MPI_Comm_free(&mut self.communicator) }, "MPI_Comm_free")?;
        }
        if self.initialised {
            // SAFETY: this thread initialised the library, and makes no more calls.
            check(unsafe { ffi::MPI_Finalize() }, "MPI_Finalize")?;
        }
        Ok(())
    }

    /// The communicator, for calls that this face does not have.
    pub(crate) fn communicator(&self) -> ffi::MPI_Comm {
        self.communicator
    }

    fn return_errors(&self) -> io::Result<()> {
        // SAFETY: a valid communicator, and a constant of the library.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(self.communicator, ffi::RSMPI_ERRORS_RETURN) };
        check(code, "MPI_Comm_set_errhandler")
    }

    fn largest_tag(&self) -> io::Result<c_int> {
        let (mut value, mut found): (*mut c_int, c_int) = (ptr::null_mut(), 0);
        // SAFETY: this attribute's value is the address of an int; the places are valid for the call.
        let code = unsafe {
            let place: *mut *mut c_int = &mut value;
            #[allow(clippy::unnecessary_cast, reason = "libraries differ in the constant's type")]
            let key = ffi::MPI_TAG_UB as c_int;
            ffi::MPI_Comm_get_attr(ffi::RSMPI_COMM_WORLD, key, place.cast(), &mut found)
        };
        check(code, "MPI_Comm_get_attr")?;
        // SAFETY: as above; 32767 is what every library has at least.
        Ok(if found != 0 && !value.is_null() { unsafe { *value } } else { 32_767 })
    }
}

impl<N> Drop for Fabric<N> {
    fn drop(&mut self) {
        // MPI may write to it as long as the process lives.
        mem::forget(mem::take(&mut self.operations));
    }
}

/// The thread level, and whether this call initialised the library.
fn initialise() -> io::Result<(c_int, bool)> {
    let refuse = |why: &str| Err(io::Error::other(why.to_owned()));
    if environment::is_finalized() {
        return refuse("MPI was finalized before: it cannot be initialised again in this process");
    }
    let mut level = 0;
    // SAFETY: constants of the library; it is not initialised yet, and this thread becomes its main thread.
    // Where the program has initialised it, the calls only ask.
    unsafe {
        if !environment::is_initialized() {
            let wanted = ffi::RSMPI_THREAD_FUNNELED;
            let code = ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), wanted, &mut level);
            check(code, "MPI_Init_thread")?;
            if level < wanted {
                return refuse("this MPI library takes no calls in a program of several threads");
            }
            return Ok((level, true));
        }
        let mut is_main = 0;
        check(ffi::MPI_Query_thread(&mut level), "MPI_Query_thread")?;
        check(ffi::MPI_Is_thread_main(&mut is_main), "MPI_Is_thread_main")?;
        if level < ffi::RSMPI_THREAD_MULTIPLE && (level < ffi::RSMPI_THREAD_FUNNELED || is_main == 0) {
            return refuse(
                "the program initialised MPI itself, but not for calls from this thread: \
                 ask for MPI_THREAD_MULTIPLE there, or leave it to rankine",
            );
        }
    }
    Ok((level, false))
}

/// Starts something that all ranks must do, waits for it until `deadline`, and gives back its memory.
fn settle<M>(
    what: &str,
    deadline: Instant,
    start: impl FnOnce(*mut ffi::MPI_Request) -> c_int,
    memory: M,
) -> io::Result<M> {
    // MPI holds on to it until the request is done; on the ways out before that it is left to MPI.
    let memory = mem::ManuallyDrop::new(memory);
    let mut request = MaybeUninit::uninit();
    check(start(request.as_mut_ptr()), what)?;
    // SAFETY: MPI wrote it.
    let mut request = unsafe { request.assume_init() };
    let mut pace = Pace::begin();
    while !test(&mut request, what)? {
        if Instant::now() > deadline {
            let why = "not all ranks of the job joined in time: each one must use mpi://, or none";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        pace.wait();
    }
    Ok(mem::ManuallyDrop::into_inner(memory))
}

fn test(request: &mut ffi::MPI_Request, what: &str) -> io::Result<bool> {
    let (mut done, mut status) = (0, MaybeUninit::uninit());
    // SAFETY: a request under way; the places are valid for the call.
    check(unsafe { ffi::MPI_Test(request, &mut done, status.as_mut_ptr()) }, what)?;
    Ok(done != 0)
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
