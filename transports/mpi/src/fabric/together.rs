//! What all ranks do together: they join, tell each other things, and leave.
//!
//! Who joins, or waits for what rank 0 tells, gives up on ranks that do not come; the memory that MPI may still write
//! to is left to it then.

use std::{
    ffi::c_int,
    io,
    marker::PhantomData,
    mem::{self, MaybeUninit},
    ptr,
    time::{Duration, Instant},
};

use mpi::{environment, ffi};

use super::{Fabric, Memory, byte, check, int};
use crate::pace::Pace;

/// What all ranks do together must be begun by all within this time of the first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a rank gives the others at once, at most.
pub(crate) const LONGEST: u64 = 1 << 20;

/// What all ranks agree on when they join.
pub(crate) struct Joined<N> {
    pub(crate) fabric: Fabric<N>,
    /// Drawn by rank 0.
    pub(crate) token: u64,
    /// The host of each rank.
    pub(crate) hosts: Vec<String>,
}

/// Items that any bytes are good for.
pub(crate) trait Figure {}
impl Figure for u8 {}
impl Figure for u64 {}

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
