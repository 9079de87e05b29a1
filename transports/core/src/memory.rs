//! Blocks of memory for big frames, kept for the next ones.
//!
//! The system clears every page that it hands out, which takes about as long as receiving into it.
//! So big blocks are not given back when a chunk goes but kept, up to a sixteenth of the machine's
//! memory, and marked as free to be taken: where memory gets scarce the system takes their pages without
//! asking. Middling ones are kept as well, up to 64 MiB in all and unmarked, for the transports that keep what
//! it cost them to make a block known to a device (see [`blocks`]). Blocks of a [`Source`](blocks::Source) have
//! a bound of their own, since their pages cannot be marked as free: a sixteenth of a core's share of the memory.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    io,
    mem::ManuallyDrop,
    ops::Range,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use crate::blocks::{self, Region};

/// Blocks from this size up are kept.
const KEPT: usize = 32 << 10;
/// Blocks from this size up lie in huge pages and are marked as free while they are kept.
const BIG: usize = 4 << 20;
/// Bytes that are kept in smaller blocks.
const SMALL_LIMIT: usize = 64 << 20;
const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Memory of a size and alignment. What it holds at first is undefined.
pub(crate) struct Block {
    memory: NonNull<u8>,
    layout: Layout,
    /// What it lies in, unless that is the heap.
    region: Option<Box<dyn Region>>,
}

// SAFETY: a block owns its memory alone, like a `Box<[MaybeUninit<u8>]>`.
unsafe impl Send for Block {}
// SAFETY: a shared block only tells where its memory is.
unsafe impl Sync for Block {}

impl Block {
    /// A block of at least `size` bytes, aligned to 64 bytes, to a page from 32 KiB up and, on the heap, to a
    /// huge page from 4 MiB up.
    ///
    /// # Errors
    /// If there is no such memory.
    pub(crate) fn new(size: usize) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::OutOfMemory, format!("no memory for {size} bytes"));
        let Some(layout) = Self::layout(size) else { return Err(none()) };
        if layout.size() < KEPT {
            return Self::fresh(layout).ok_or_else(none);
        }
        let take = |pool: &Mutex<Pool>| lock(pool).take(layout.size());
        if let Some(source) = blocks::source(layout.size()) {
            if let Some(kept) = take(sourced_pool()) {
                return Ok(kept);
            }
            if let Some(region) = source.region(layout.size())? {
                return Ok(Self::within(region));
            }
        }
        take(heap_pool(layout)).or_else(|| Self::fresh(layout)).ok_or_else(none)
    }

    /// Big blocks come in steps of an eighth, so that they fit for other frames of about their size.
    fn layout(size: usize) -> Option<Layout> {
        let align = match size {
            ..KEPT => return Layout::from_size_align(size, 64).ok(),
            KEPT..BIG => PAGE,
            BIG.. => HUGE_PAGE,
        };
        let step = (size.checked_next_power_of_two()? / 16).max(align);
        Layout::from_size_align(size.checked_next_multiple_of(step)?, align).ok()
    }

    fn fresh(layout: Layout) -> Option<Self> {
        if layout.size() == 0 {
            return Some(Self { memory: NonNull::dangling(), layout, region: None });
        }
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        let block = Self { memory, layout, region: None };
        if layout.align() == HUGE_PAGE {
            block.advise(libc::MADV_HUGEPAGE);
        }
        if layout.size() >= KEPT {
            blocks::enter(&block.addresses());
        }
        Some(block)
    }

    fn within(region: Box<dyn Region>) -> Self {
        // No memory is longer than a layout can be; an empty block is no harm.
        let layout = Layout::from_size_align(region.length(), PAGE).unwrap_or(Layout::new::<()>());
        let block = Self { memory: region.start(), layout, region: Some(region) };
        blocks::enter(&block.addresses());
        block
    }

    fn pool(&self) -> &'static Mutex<Pool> {
        if self.region.is_some() { sourced_pool() } else { heap_pool(self.layout) }
    }

    fn addresses(&self) -> Range<usize> {
        let start = self.memory.as_ptr() as usize;
        start..start + self.layout.size()
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    fn advise(&self, advice: libc::c_int) {
        if cfg!(miri) {
            return;
        }
        // SAFETY: advice on whole pages of memory that is this block's, none of which changes what a
        // block promises: its content is undefined. Its failure is no harm.
        unsafe { libc::madvise(self.memory.as_ptr().cast(), self.layout.size(), advice) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let (memory, layout) = (self.memory, self.layout);
        if layout.size() >= KEPT {
            let reusable = self.region.as_ref().is_none_or(|region| region.reusable());
            let mut pool = lock(self.pool());
            if reusable && pool.bytes + layout.size() <= pool.limit {
                let block = Self { memory, layout, region: self.region.take() };
                if layout.align() == HUGE_PAGE && !blocks::pinned(&block.addresses()) {
                    block.advise(libc::MADV_FREE);
                }
                return pool.keep(block);
            }
            drop(pool);
        }
        self.go();
    }
}

impl Block {
    /// Gives the memory back to the system. Called once, as the last thing that happens to a block.
    fn go(&mut self) {
        if self.layout.size() >= KEPT {
            blocks::leave(&self.addresses());
        }
        if self.region.take().is_none() && self.layout.size() > 0 {
            // SAFETY: allocated in `fresh` with this layout; whoever calls this never uses or drops the block again.
            unsafe { dealloc(self.memory.as_ptr(), self.layout) };
        }
    }
}

/// Gives all memory back to the system that is kept for frames to come or that the heap holds free, since memory is
/// short. May take some milliseconds. Gives the bytes of the blocks that were kept.
pub fn give_back() -> usize {
    let mut bytes = 0;
    for pool in [sourced_pool(), small_pool(), big_pool()] {
        let kept = std::mem::take(&mut lock(pool).blocks);
        for block in kept.into_values().flatten() {
            let mut block = ManuallyDrop::new(block);
            let size = block.layout.size();
            block.go();
            lock(pool).bytes -= size;
            bytes += size;
        }
    }
    #[cfg(all(target_env = "gnu", not(miri)))]
    // SAFETY: the C library's own upkeep of its heap; it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
    bytes
}

/// Blocks for frames to come, by size.
struct Pool {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
    limit: usize,
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool for blocks of this layout on the heap.
fn heap_pool(layout: Layout) -> &'static Mutex<Pool> {
    if layout.align() < HUGE_PAGE { small_pool() } else { big_pool() }
}

fn small_pool() -> &'static Mutex<Pool> {
    static SMALL_POOL: Mutex<Pool> = Mutex::new(Pool::new(SMALL_LIMIT));
    &SMALL_POOL
}

fn big_pool() -> &'static Mutex<Pool> {
    static BIG_POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    BIG_POOL.get_or_init(|| Mutex::new(Pool::new(machine_memory() / 16)))
}

/// The pool for blocks of a source.
fn sourced_pool() -> &'static Mutex<Pool> {
    static SOURCED_POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    // With a process a core all of them together keep a sixteenth of the machine's memory.
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    SOURCED_POOL.get_or_init(|| Mutex::new(Pool::new(machine_memory() / 16 / cores())))
}

impl Pool {
    const fn new(limit: usize) -> Self {
        Self { blocks: BTreeMap::new(), bytes: 0, limit }
    }

    fn keep(&mut self, block: Block) {
        self.bytes += block.layout.size();
        self.blocks.entry(block.layout.size()).or_default().push(block);
    }

    /// A block of this size, or up to a quarter more.
    fn take(&mut self, size: usize) -> Option<Block> {
        let (&size, kept) = self.blocks.range_mut(size..=size + size / 4).next()?;
        let block = kept.pop();
        if kept.is_empty() {
            self.blocks.remove(&size);
        }
        self.bytes -= block.as_ref().map_or(0, |block| block.layout.size());
        block
    }
}

/// Bytes of the blocks of these sizes, each at least 32 KiB, that are in use.
#[cfg(any(test, feature = "conformance"))]
pub(crate) fn in_use(sizes: &Range<usize>) -> usize {
    let kept = |pool: &Mutex<Pool>| -> usize {
        lock(pool).blocks.range(sizes.clone()).map(|(size, blocks)| size * blocks.len()).sum()
    };
    // Blocks that go from one state to the other meanwhile are counted or not.
    let known = blocks::sizes().filter(|size| sizes.contains(size)).sum::<usize>();
    let pools = [sourced_pool(), small_pool(), big_pool()];
    known.saturating_sub(pools.into_iter().map(kept).sum())
}

/// Bytes that are kept in big blocks.
#[cfg(test)]
pub(crate) fn limit() -> usize {
    machine_memory() / 16
}

/// Bytes of memory that the machine has; none where it does not tell.
fn machine_memory() -> usize {
    if cfg!(miri) {
        return 1 << 30;
    }
    // SAFETY: asks the system for figures and touches no memory.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    usize::try_from(pages).unwrap_or(0).saturating_mul(usize::try_from(size).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_block_that_goes_comes_again_for_one_of_about_its_size() {
        // A size of this test's own: tests share the pool.
        let size = 37 << 20;
        let first = Block::new(size).unwrap();
        let place = first.as_ptr();
        assert_eq!(place.align_offset(HUGE_PAGE), 0);
        drop(first);
        let other = Block::new(size - 1000).unwrap();
        assert_eq!(other.as_ptr(), place);
        let beside = Block::new(size).unwrap();
        assert_ne!(beside.as_ptr(), place, "what is in use is nobody else's");
    }

    #[test]
    fn a_block_far_too_big_is_not_taken_and_none_too_small() {
        let mut pool = Pool::new(usize::MAX);
        let layout = |size| Layout::from_size_align(size, 64).unwrap();
        pool.keep(Block::fresh(layout(100)).unwrap());
        pool.keep(Block::fresh(layout(120)).unwrap());
        assert!(pool.take(121).is_none() && pool.take(79).is_none());
        assert_eq!(pool.take(96).unwrap().layout.size(), 100);
        assert_eq!(pool.take(96).unwrap().layout.size(), 120);
        assert!(pool.take(96).is_none() && pool.bytes == 0);
    }

    #[test]
    fn what_is_in_use_is_told_from_what_is_kept() {
        // No other test has blocks of these sizes or up to a quarter more.
        for size in [72 << 10, 29 << 20] {
            let sizes = size..size + size / 16;
            let blocks = [Block::new(size).unwrap(), Block::new(size).unwrap()];
            let length = blocks[0].layout.size();
            assert_eq!(in_use(&sizes), 2 * length);
            let [first, second] = blocks;
            drop(first);
            assert_eq!(in_use(&sizes), length);
            drop(second);
            assert_eq!(in_use(&sizes), 0);
        }
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        for (size, limit) in [(limit() + BIG, limit()), (BIG - 1, SMALL_LIMIT)] {
            assert!(limit > 0);
            let blocks: Vec<Block> = (0..=limit / size).filter_map(|_| Block::new(size).ok()).collect();
            let layout = blocks[0].layout;
            drop(blocks);
            let pool = heap_pool(layout).lock().unwrap();
            assert!(pool.bytes <= limit && pool.limit == limit);
        }
    }
}
