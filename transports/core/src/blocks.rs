//! Where the blocks lie that big frames are received into, for those who keep knowledge about memory.
//!
//! To register memory with a device takes about as long as to send it, so a transport keeps registrations.
//! That is only right while the memory stays where it is, which [`block_of`] and a [`Watcher`] tell of the
//! blocks of this crate ([`AlignedBuffer`](crate::AlignedBuffer)s of 32 KiB and more). Of other memory, such as
//! a program's own vectors, nobody can tell when it goes.
//!
//! Blocks lie on the heap, unless a [`Source`] has better memory for them, such as memory that other processes
//! can map.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

/// Somebody who keeps knowledge about blocks.
pub trait Watcher: Send + Sync {
    /// Whether pages of the block are held in place. The system is then not told that it may take them while
    /// nobody uses the block: a device would go on writing into those that it had before.
    fn pins(&self, block: &Range<usize>) -> bool;

    /// The block is about to be given back to the system. Nobody uses it any more, and after this call
    /// nothing that was known about it is true. Called from whichever thread drops the last owner: it must not
    /// drop a buffer itself.
    fn forget(&self, block: &Range<usize>);
}

/// Where blocks lie instead of on the heap.
pub trait Source: Send + Sync {
    /// Bytes from which on blocks are asked of it; at least 32 KiB are.
    fn smallest(&self) -> usize;

    /// Memory for a block of `length` bytes, a multiple of the page size; `None` leaves it to the heap.
    ///
    /// # Errors
    /// If there is no such memory on the heap either.
    fn region(&self, length: usize) -> io::Result<Option<Box<dyn Region>>>;
}

/// Memory of one block, given back to the system when it is dropped.
///
/// # Safety
/// From `start`, which is aligned to a page, `length` bytes may be read and written as long as this lives, and
/// nobody else writes to them. Others may read them while they read what a lent frame holds.
pub unsafe trait Region: Send + Sync {
    /// Where it begins.
    fn start(&self) -> NonNull<u8>;

    /// Its bytes.
    fn length(&self) -> usize;

    /// Whether nobody but the block's owners reads it any more, so that other frames may be written there.
    fn reusable(&self) -> bool;
}

static SOURCE: OnceLock<&'static dyn Source> = OnceLock::new();

/// From now on blocks come from `source`, for the life of the process; false where they come from another
/// one already. Blocks that are in use stay where they are.
pub fn supply(source: &'static dyn Source) -> bool {
    SOURCE.set(source).is_ok()
}

pub(crate) fn source(length: usize) -> Option<&'static dyn Source> {
    SOURCE.get().copied().filter(|source| length >= source.smallest())
}

static BLOCKS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static WATCHERS: Mutex<Vec<Weak<dyn Watcher>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The block, as addresses, that these addresses lie in. What is said holds as long as somebody owns a buffer
/// there, and until a watcher is told otherwise.
pub fn block_of(memory: &Range<usize>) -> Option<Range<usize>> {
    let blocks = lock(&BLOCKS);
    let (&start, &end) = blocks.range(..=memory.start).next_back()?;
    (memory.end <= end).then_some(start..end)
}

/// Tells `watcher` of blocks that go, as long as it lives.
pub fn watch(watcher: Weak<dyn Watcher>) {
    let mut watchers = lock(&WATCHERS);
    watchers.retain(|watcher| watcher.strong_count() > 0);
    watchers.push(watcher);
}

fn watchers() -> Vec<Arc<dyn Watcher>> {
    lock(&WATCHERS).iter().filter_map(Weak::upgrade).collect()
}

pub(crate) fn pinned(block: &Range<usize>) -> bool {
    watchers().iter().any(|watcher| watcher.pins(block))
}

pub(crate) fn enter(block: &Range<usize>) {
    lock(&BLOCKS).insert(block.start, block.end);
}

/// The sizes of all blocks, in use or not.
#[cfg(any(test, feature = "conformance"))]
pub(crate) fn sizes() -> impl Iterator<Item = usize> {
    let sizes: Vec<usize> = lock(&BLOCKS).iter().map(|(start, end)| end - start).collect();
    sizes.into_iter()
}

pub(crate) fn leave(block: &Range<usize>) {
    lock(&BLOCKS).remove(&block.start);
    for watcher in watchers() {
        watcher.forget(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AlignedBuffer;

    struct Notes(Mutex<Vec<Range<usize>>>);

    impl Watcher for Notes {
        fn pins(&self, _: &Range<usize>) -> bool {
            false
        }
        fn forget(&self, block: &Range<usize>) {
            lock(&self.0).push(block.clone());
        }
    }

    fn place(bytes: &[u8]) -> Range<usize> {
        let range = bytes.as_ptr_range();
        range.start as usize..range.end as usize
    }

    #[test]
    fn a_frame_lies_in_its_block_and_a_vector_in_none() {
        let mut buffer = AlignedBuffer::new(100_000).unwrap();
        buffer.extend(&[1; 100_000]);
        let frame = buffer.freeze();
        let block = block_of(&place(&frame)).unwrap();
        assert!(block.start == frame.as_ptr() as usize && block.len() >= frame.len());
        assert_eq!(block_of(&place(&frame[5000..])), Some(block.clone()));
        assert_eq!(block_of(&(block.start..block.end + 1)), None);
        assert_eq!(block_of(&place(&vec![1; 100_000])), None);
    }

    #[test]
    fn who_watches_hears_of_a_block_once_it_is_given_back_and_not_before() {
        let notes = Arc::new(Notes(Mutex::new(Vec::new())));
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(notes.clone() as Arc<dyn Watcher>));
        watch(watcher);
        // More than is kept for later, so it is given back.
        let length = crate::memory::limit() + (8 << 20);
        let mut buffer = AlignedBuffer::new(length as u64).unwrap();
        buffer.extend(&[1; 1000]);
        let frame = buffer.freeze();
        let block = block_of(&place(&frame)).unwrap();
        let part = frame.slice(5..);
        drop(frame);
        assert!(!lock(&notes.0).contains(&block), "a part of it is still in use");
        drop(part);
        assert!(lock(&notes.0).contains(&block));
        assert_eq!(block_of(&block), None);
    }
}
