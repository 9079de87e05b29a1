//! Memory that a device may reach: registered regions, segments for small messages, landings for big frames.
//!
//! All unsafe use of memory together with a device is here and in `queue_pair`. What a device may write to is
//! owned by this module's types while it may, so that nothing else sees it change.

use std::{
    io,
    ops::Range,
    ptr::NonNull,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use ibverbs_sys as ffi;
use rankine_transport::AlignedBuffer;

use crate::device::Device;

/// What a device may do with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Peers read it.
    Lend,
    /// Peers read it, and this device writes what it receives.
    Both,
    /// Peers write it, too.
    Open,
}

/// Registered memory; deregistered when it goes.
pub(crate) struct Region {
    raw: NonNull<ffi::ibv_mr>,
    device: Arc<Device>,
}

// SAFETY: a region's keys are plain numbers, and libibverbs deregisters from any thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Registers memory, by its addresses. To register what is not there is an error; to give memory back
    /// while it is registered makes the region useless and is no other harm: all that the device is ever told
    /// to write to is owned by this module's types.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn register(device: &Arc<Device>, memory: &Range<usize>, access: Access) -> io::Result<Self> {
        use ffi::ibv_access_flags as allow;
        let flags = match access {
            Access::Lend => allow::IBV_ACCESS_REMOTE_READ,
            Access::Both => allow::IBV_ACCESS_LOCAL_WRITE | allow::IBV_ACCESS_REMOTE_READ,
            Access::Open => {
                allow::IBV_ACCESS_LOCAL_WRITE | allow::IBV_ACCESS_REMOTE_READ | allow::IBV_ACCESS_REMOTE_WRITE
            }
        };
        let flags = i32::try_from(flags.0).unwrap_or(0);
        // SAFETY: the domain lives as long as the device; the system checks the addresses.
        let raw =
            unsafe { ffi::ibv_reg_mr(device.domain().as_ptr(), memory.start as *mut _, memory.len(), flags) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, device: device.clone() })
    }

    /// What this device's own work requests name it by.
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: registered as long as this value lives.
        unsafe { self.raw.as_ref() }.lkey
    }

    /// What a peer's READ names it by.
    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: registered as long as this value lives.
        unsafe { self.raw.as_ref() }.rkey
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered in `register`.
        let status = unsafe { ffi::ibv_dereg_mr(self.raw.as_ptr()) };
        if status != 0 {
            tracing::warn!("cannot deregister memory from {}: error {status}", self.device.name());
        }
    }
}

/// The addresses of some bytes.
pub(crate) fn addresses(bytes: &[u8]) -> Range<usize> {
    let range = bytes.as_ptr_range();
    range.start as usize..range.end as usize
}

/// Says why registering failed, and what to do.
pub(crate) fn explain(device: &Device, bytes: usize, error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => format!(
            "; this process may lock {}: raise that with `ulimit -l unlimited`, `* - memlock unlimited` in \
             /etc/security/limits.conf, LimitMEMLOCK=infinity for slurmd, and \
             PropagateResourceLimitsExcept=MEMLOCK in slurm.conf, without which a job has the limit of the host \
             that it was submitted on",
            locked_memory_limit()
        ),
        _ => String::new(),
    };
    let text = format!("cannot register {bytes} bytes of memory with {}: {error}{hint}", device.name());
    io::Error::new(error.kind(), text)
}

/// What `ulimit -l` says, in words.
pub(crate) fn locked_memory_limit() -> String {
    match locked_memory() {
        Some(bytes) => format!("{} KiB (ulimit -l)", bytes / 1024),
        None => "any amount (ulimit -l)".into(),
    }
}

/// Bytes that this process may lock; `None` where there is no limit.
pub(crate) fn locked_memory() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills the struct in.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Registered memory in pieces of one size, for small messages.
pub(crate) struct Segments {
    // Deregistered before its memory goes.
    region: Region,
    memory: NonNull<u8>,
    layout: std::alloc::Layout,
    size: usize,
}

// SAFETY: segments own their memory alone.
unsafe impl Send for Segments {}
// SAFETY: shared segments are only read, and only while no device writes them: see `bytes`.
unsafe impl Sync for Segments {}

impl Segments {
    /// `count` segments of `size` bytes.
    ///
    /// # Errors
    /// If they cannot be registered.
    pub(crate) fn new(device: &Arc<Device>, count: usize, size: usize) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::OutOfMemory, "no memory for message buffers");
        let bytes = count.checked_mul(size).filter(|bytes| *bytes > 0).ok_or_else(none)?;
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).map_err(|_| none())?;
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(none)?;
        let start = memory.as_ptr() as usize;
        match Region::register(device, &(start..start + bytes), Access::Both) {
            Ok(region) => Ok(Self { region, memory, layout, size }),
            Err(error) => {
                // SAFETY: allocated above with this layout.
                unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
                Err(explain(device, bytes, &error))
            }
        }
    }

    /// What a work request names a segment by: address, length and key.
    pub(crate) fn element(&self, index: usize, length: usize) -> ffi::ibv_sge {
        let addr = self.place(index).as_ptr() as u64;
        let length = u32::try_from(length.min(self.size)).unwrap_or(0);
        ffi::ibv_sge { addr, length, lkey: self.region.local_key() }
    }

    fn place(&self, index: usize) -> NonNull<u8> {
        assert!((index + 1) * self.size <= self.layout.size(), "there is such a segment");
        // SAFETY: within the allocation, as just checked.
        unsafe { self.memory.add(index * self.size) }
    }

    /// A segment that no device uses.
    ///
    /// # Safety
    /// No work request on it is outstanding.
    pub(crate) unsafe fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        // SAFETY: in bounds and initialised since it was allocated; only the caller uses it.
        unsafe { slice::from_raw_parts_mut(self.place(index).as_ptr(), self.size) }
    }

    /// The beginning of a segment that no device writes.
    ///
    /// # Safety
    /// No receive into it is outstanding.
    pub(crate) unsafe fn bytes(&self, index: usize, length: usize) -> &[u8] {
        // SAFETY: in bounds and initialised since it was allocated; nobody writes to it.
        unsafe { slice::from_raw_parts(self.place(index).as_ptr(), length.min(self.size)) }
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. The device no longer uses it: whoever posts it for work
        // destroys the queue pair first.
        unsafe { std::alloc::dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// The final memory of a frame, into which a device reads it, from its beginning to its end. Nobody looks at it before
/// all of it has come.
pub(crate) struct Landing {
    buffer: AlignedBuffer,
    start: usize,
    /// Bytes that READs were posted for.
    posted: AtomicU64,
    /// Bytes that came.
    landed: AtomicU64,
}

impl Landing {
    /// Room for a frame.
    ///
    /// # Errors
    /// If there is no such memory.
    pub(crate) fn new(length: u64) -> io::Result<Arc<Self>> {
        let mut buffer = AlignedBuffer::new(length)?;
        let start = buffer.spare().as_mut_ptr() as usize;
        Ok(Arc::new(Self { buffer, start, posted: AtomicU64::new(0), landed: AtomicU64::new(0) }))
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.buffer.capacity() as u64
    }

    /// The addresses of `length` bytes from `offset` on, cut off at the end.
    pub(crate) fn addresses(&self, offset: u64, length: u64) -> Range<usize> {
        let offset = offset.min(self.capacity());
        let length = length.min(self.capacity() - offset);
        let start = self.start + offset as usize;
        start..start + length as usize
    }

    /// The memory of the next READ of at most `length` bytes; each byte is given out once.
    pub(super) fn take(&self, length: u64) -> Range<usize> {
        let memory = self.addresses(self.posted.load(Ordering::Relaxed), length);
        self.posted.fetch_add(memory.len() as u64, Ordering::Relaxed);
        memory
    }

    /// A READ has written its part.
    ///
    /// # Safety
    /// So it has: `length` bytes of what [`take`](Self::take) gave, counted once.
    pub(super) unsafe fn came(&self, length: u64) {
        self.landed.fetch_add(length, Ordering::Release);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.landed.load(Ordering::Acquire) == self.capacity()
    }

    /// Forgets the frame, once it is whole, so that another is read to its place.
    pub(crate) fn clear(&self) {
        if self.is_full() {
            self.landed.store(0, Ordering::Relaxed);
            self.posted.store(0, Ordering::Relaxed);
        }
    }

    /// The frame, once it is whole and nobody else holds it.
    pub(crate) fn into_frame(self: Arc<Self>) -> Option<Bytes> {
        let mut landing = Arc::into_inner(self).filter(Self::is_full)?;
        let length = landing.buffer.capacity();
        // SAFETY: every byte was given out to one READ and all of them succeeded, as `landed` tells; since
        // nobody else holds the landing, none is under way.
        unsafe { landing.buffer.advance(length) };
        Some(landing.buffer.freeze())
    }
}
