//! Memory that several processes map: one segment a block.
//!
//! A segment is an anonymous file in memory (`memfd_create`), whose descriptor is all that names it. It goes
//! with the last process that maps it, however that ends; nothing is left to clean up.
//!
//! - Its pages are there from the start (`fallocate`): memory that is not there is an error then, not a signal
//!   later.
//! - It is sealed: nobody can cut it short under a reader's eyes, and nobody but its creator can write to it
//!   (where the kernel is 5.1 or later). A process takes in others' segments only with such seals, and with all
//!   their pages.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};
use rankine_transport::blocks::{Region, Source};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    io::Errno,
};

use crate::{ledger::Ledger, limits};

/// Blocks from this size up are segments.
pub(crate) const SMALLEST: usize = 256 << 10;
/// Before so much memory is taken at once it is looked whether it is there.
const MUCH: usize = 16 << 20;

/// All segments that this process maps, by their first address.
static SEGMENTS: Mutex<BTreeMap<usize, Weak<Segment>>> = Mutex::new(BTreeMap::new());
/// Descriptors of segments that this process has open.
static DESCRIPTORS: AtomicUsize = AtomicUsize::new(0);
static BORROWED: AtomicU64 = AtomicU64::new(0);

/// A segment that this process maps.
pub(crate) struct Segment {
    /// Told from all other segments of this process, past and present.
    pub(crate) id: u64,
    memory: MmapRaw,
    /// By which others map it. A borrowed one is closed where descriptors are scarce.
    file: Option<OwnedFd>,
    /// Whether another process made it (or this one, and lent it to itself).
    borrowed: bool,
    /// Whether somebody may still read what was lent, of whom no word will come any more.
    tainted: AtomicBool,
    /// The connections whose other side may have it mapped.
    known_to: Mutex<Vec<Weak<Ledger>>>,
}

/// Why a segment that somebody sent is not taken in.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is none, or would not be safe to read.
    Unfit(String),
    /// The system does not map it.
    Failed(io::Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that this process has mapped of other processes' segments. Pages of them that it has read count in its
/// resident set (as shared memory) and in their owners', too: to account for memory once, take this from the
/// resident set of those who borrow.
pub fn borrowed() -> u64 {
    BORROWED.load(Ordering::Relaxed)
}

impl Segment {
    /// A new segment of `length` bytes; `None` where descriptors are scarce or the system has no such files.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn create(length: usize) -> io::Result<Option<Arc<Self>>> {
        if DESCRIPTORS.load(Ordering::Relaxed) >= limits::segments() {
            return Ok(None);
        }
        let Some(file) = memory_file() else { return Ok(None) };
        reserve(&file, length)?;
        // Where there are too many mappings the heap may still have room in one of its own.
        let Ok(memory) = MmapOptions::new().len(length).map_raw(&file) else { return Ok(None) };
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        // Older kernels do not know the seal against writers to come.
        rustix::fs::fcntl_add_seals(&file, seals | SealFlags::FUTURE_WRITE)
            .or_else(|_| rustix::fs::fcntl_add_seals(&file, seals))?;
        Ok(Some(Self::enter(memory, Some(file), false)))
    }

    /// Maps a segment that somebody sent, to read it.
    ///
    /// # Errors
    /// If it is no segment, or one that could be cut short or has pages missing: to read there would end this
    /// process.
    pub(crate) fn adopt(file: OwnedFd) -> Result<Arc<Self>, Refused> {
        let unfit = |reason: &str| Refused::Unfit(reason.into());
        let failed = |errno: Errno| Refused::Failed(errno.into());
        let seals = rustix::fs::fcntl_get_seals(&file)
            .map_err(|_| unfit("a descriptor that is no memory segment's"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(unfit("a memory segment that is not sealed against being cut short"));
        }
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let length = u64::try_from(stat.st_size).ok().filter(|length| *length > 0);
        let length = length.ok_or_else(|| unfit("an empty memory segment"))?;
        // Blocks of a file are counted in 512 bytes, whatever its file system.
        if u64::try_from(stat.st_blocks).unwrap_or(0) < length / 512 {
            return Err(unfit("a memory segment whose pages are not all there"));
        }
        let length = usize::try_from(length).map_err(|_| unfit("a memory segment beyond addresses"))?;
        let memory =
            MmapOptions::new().len(length).map_raw_read_only(&file).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => unfit("a memory segment that may not be read"),
                _ => Refused::Failed(error),
            })?;
        let spare = DESCRIPTORS.load(Ordering::Relaxed) < limits::segments();
        BORROWED.fetch_add(length as u64, Ordering::Relaxed);
        Ok(Self::enter(memory, spare.then_some(file), true))
    }

    fn enter(memory: MmapRaw, file: Option<OwnedFd>, borrowed: bool) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        DESCRIPTORS.fetch_add(usize::from(file.is_some()), Ordering::Relaxed);
        let segment = Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            memory,
            file,
            borrowed,
            tainted: AtomicBool::new(false),
            known_to: Mutex::new(Vec::new()),
        });
        lock(&SEGMENTS).insert(segment.addresses().start, Arc::downgrade(&segment));
        segment
    }

    /// The segment that these bytes lie in, and where in it.
    pub(crate) fn holding<T>(bytes: &[T]) -> Option<(Arc<Self>, usize)> {
        let place = bytes.as_ptr_range();
        let place = place.start as usize..place.end as usize;
        let segment = lock(&SEGMENTS).range(..=place.start).next_back()?.1.upgrade()?;
        let within = segment.addresses();
        (place.end <= within.end).then(|| (segment, place.start - within.start))
    }

    fn addresses(&self) -> Range<usize> {
        let start = self.memory.as_ptr() as usize;
        start..start + self.memory.len()
    }

    /// What others map it by.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// A part of it.
    ///
    /// # Safety
    /// Nobody writes there as long as the bytes are borrowed.
    ///
    /// # Panics
    /// If it does not lie within.
    pub(crate) unsafe fn bytes(&self, part: Range<usize>) -> &[u8] {
        assert!(part.start <= part.end && part.end <= self.len());
        // SAFETY: the part lies within a mapping that lives as long as this, of a file that cannot be cut short;
        // all its pages are there, and by the caller's word nobody writes to them.
        unsafe { slice::from_raw_parts(self.memory.as_ptr().add(part.start), part.len()) }
    }

    /// Somebody may go on reading it for ever: it is not to be written to again.
    pub(crate) fn taint(&self) {
        self.tainted.store(true, Ordering::Release);
    }

    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted.load(Ordering::Acquire)
    }

    /// The other side of a connection is about to map it.
    pub(crate) fn made_known_to(&self, ledger: &Arc<Ledger>) {
        let mut known_to = lock(&self.known_to);
        known_to.retain(|known| known.strong_count() > 0);
        if !known_to.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(ledger))) {
            known_to.push(Arc::downgrade(ledger));
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        lock(&SEGMENTS).remove(&self.addresses().start);
        DESCRIPTORS.fetch_sub(usize::from(self.file.is_some()), Ordering::Relaxed);
        if self.borrowed {
            BORROWED.fetch_sub(self.len() as u64, Ordering::Relaxed);
        }
        let known_to = std::mem::take(&mut *lock(&self.known_to));
        for ledger in known_to.iter().filter_map(Weak::upgrade) {
            ledger.segment_goes(self.id);
        }
    }
}

/// A file in memory, where there is one to be had.
fn memory_file() -> Option<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Some systems allow only files that can never be executed, older kernels do not know that word.
    let create = |flags| rustix::fs::memfd_create("rankine", flags).ok();
    create(flags | MemfdFlags::NOEXEC_SEAL).or_else(|| create(flags))
}

/// Makes a file `length` bytes long and takes the memory for all of them.
fn reserve(file: &OwnedFd, length: usize) -> io::Result<()> {
    let none = |why: String| {
        let reason = format!(
            "out of shared memory: cannot take {length} bytes for a chunk: {why}; use smaller chunks, fewer \
             workers on this host, or leave shm out of the transports"
        );
        io::Error::new(io::ErrorKind::OutOfMemory, reason)
    };
    // Beyond this limit the system would send a signal that ends the process.
    let limit = limits::file_size();
    if length as u64 > limit {
        return Err(none(format!("files of this process may have {limit} bytes (ulimit -f)")));
    }
    if length >= MUCH
        && let Some(available) = limits::available_memory()
        && length as u64 > available
    {
        return Err(none(format!("{available} bytes of this host's memory are free")));
    }
    rustix::fs::ftruncate(file, length as u64)?;
    let allocate = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length as u64);
    rustix::io::retry_on_intr(allocate).map_err(|errno| none(errno.to_string()))
}

/// Whether the system has files in memory.
pub(crate) fn works() -> bool {
    memory_file().is_some()
}

/// Has the big blocks of this process lie in segments, for the rest of its life.
pub(crate) fn supply_blocks() {
    limits::segments();
    rankine_transport::blocks::supply(&Segments);
}

struct Segments;

impl Source for Segments {
    fn smallest(&self) -> usize {
        SMALLEST
    }

    fn region(&self, length: usize) -> io::Result<Option<Box<dyn Region>>> {
        Ok(Segment::create(length)?.map(|segment| Box::new(Own(segment)) as Box<dyn Region>))
    }
}

/// A segment of this process's own, as the one place that writes to it.
struct Own(Arc<Segment>);

// SAFETY: the mapping is readable and writable, begins at a page, and lives as long as the segment. The file was
// never given to anybody before it was sealed, so others only read it.
unsafe impl Region for Own {
    fn start(&self) -> NonNull<u8> {
        // A mapping is never at address 0; an empty block would be no harm.
        NonNull::new(self.0.memory.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }

    fn length(&self) -> usize {
        self.0.len()
    }

    fn reusable(&self) -> bool {
        !self.0.is_tainted()
    }
}
