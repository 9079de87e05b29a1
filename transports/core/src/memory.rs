//! Blocks of memory for big frames, kept for the next ones.
//!
//! The system clears every page that it hands out, which takes about as long as receiving into it.
//! So big blocks are not given back when a chunk goes but kept, up to a sixteenth of the machine's
//! memory, and marked as free to be taken: where memory gets scarce the system takes their pages without
//! asking.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Blocks from this size up are kept.
const BIG: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Memory of a size and alignment. What it holds at first is undefined.
pub(crate) struct Block {
    memory: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block owns its memory alone, like a `Box<[MaybeUninit<u8>]>`.
unsafe impl Send for Block {}
// SAFETY: a shared block only tells where its memory is.
unsafe impl Sync for Block {}

impl Block {
    /// A block of at least `size` bytes, `None` where there is no such memory. Aligned to 64 bytes, to a
    /// page from 64 KiB up and to a huge page from 4 MiB up.
    pub(crate) fn new(size: usize) -> Option<Self> {
        if size < BIG {
            let align = if size < 0x1_0000 { 64 } else { 4096 };
            return Self::fresh(Layout::from_size_align(size, align).ok()?);
        }
        // In steps of an eighth, so that blocks fit for other frames of about their size.
        let step = (size.checked_next_power_of_two()? / 16).max(HUGE_PAGE);
        let layout = Layout::from_size_align(size.checked_next_multiple_of(step)?, HUGE_PAGE).ok()?;
        let kept = pool().lock().unwrap_or_else(PoisonError::into_inner).take(layout.size());
        kept.or_else(|| Self::fresh(layout))
    }

    fn fresh(layout: Layout) -> Option<Self> {
        if layout.size() == 0 {
            return Some(Self { memory: NonNull::dangling(), layout });
        }
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        let block = Self { memory, layout };
        if layout.align() == HUGE_PAGE {
            block.advise(libc::MADV_HUGEPAGE);
        }
        Some(block)
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
        if layout.size() >= BIG && layout.align() == HUGE_PAGE {
            let mut pool = pool().lock().unwrap_or_else(PoisonError::into_inner);
            if pool.bytes + layout.size() <= pool.limit {
                let block = Self { memory, layout };
                block.advise(libc::MADV_FREE);
                return pool.keep(block);
            }
        }
        if layout.size() > 0 {
            // SAFETY: allocated in `fresh` with this layout; who kept it would have returned above.
            unsafe { dealloc(memory.as_ptr(), layout) };
        }
    }
}

/// Blocks for frames to come, by size.
struct Pool {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
    limit: usize,
}

fn pool() -> &'static Mutex<Pool> {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    POOL.get_or_init(|| Mutex::new(Pool { blocks: BTreeMap::new(), bytes: 0, limit: machine_memory() / 16 }))
}

impl Pool {
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
        let mut pool = Pool { blocks: BTreeMap::new(), bytes: 0, limit: usize::MAX };
        let layout = |size| Layout::from_size_align(size, 64).unwrap();
        pool.keep(Block::fresh(layout(100)).unwrap());
        pool.keep(Block::fresh(layout(120)).unwrap());
        assert!(pool.take(121).is_none() && pool.take(79).is_none());
        assert_eq!(pool.take(96).unwrap().layout.size(), 100);
        assert_eq!(pool.take(96).unwrap().layout.size(), 120);
        assert!(pool.take(96).is_none() && pool.bytes == 0);
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let limit = pool().lock().unwrap().limit;
        assert!(limit > 0);
        drop(Block::new(limit + BIG));
        assert!(pool().lock().unwrap().bytes <= limit);
    }
}
