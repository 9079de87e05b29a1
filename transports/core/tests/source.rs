//! Blocks that lie where a source has them. A process has one source for all its life, hence one test.

use std::{
    alloc::{Layout, alloc, dealloc},
    io,
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use rankine_transport::{
    AlignedBuffer,
    blocks::{self, Region, Source},
};

const SMALLEST: usize = 1 << 20;
const SCARCE: usize = 64 << 20;
const LEFT_TO_THE_HEAP: usize = 8 << 20;

/// Pages, counted.
struct Pages;

static LIVING: AtomicUsize = AtomicUsize::new(0);
static READ_BY_OTHERS: AtomicBool = AtomicBool::new(false);
static STARTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

struct Run(NonNull<u8>, Layout);

// SAFETY: it owns its memory alone.
unsafe impl Send for Run {}
// SAFETY: a shared one only tells where its memory is.
unsafe impl Sync for Run {}

// SAFETY: the memory is allocated until this is dropped, and nobody else's.
unsafe impl Region for Run {
    fn start(&self) -> NonNull<u8> {
        self.0
    }
    fn length(&self) -> usize {
        self.1.size()
    }
    fn reusable(&self) -> bool {
        !READ_BY_OTHERS.load(SeqCst)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        LIVING.fetch_sub(1, SeqCst);
        // SAFETY: allocated with this layout in `region`.
        unsafe { dealloc(self.0.as_ptr(), self.1) };
    }
}

impl Source for Pages {
    fn smallest(&self) -> usize {
        SMALLEST
    }

    fn region(&self, length: usize) -> io::Result<Option<Box<dyn Region>>> {
        match length {
            SCARCE => return Err(io::Error::other("scarce")),
            LEFT_TO_THE_HEAP => return Ok(None),
            _ => {}
        }
        let layout = Layout::from_size_align(length, 4096).map_err(io::Error::other)?;
        // SAFETY: a block's length is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        LIVING.fetch_add(1, SeqCst);
        STARTS.lock().unwrap().push(start.as_ptr() as usize);
        Ok(Some(Box::new(Run(start, layout))))
    }
}

fn frame(length: usize) -> bytes::Bytes {
    let mut buffer = AlignedBuffer::new(length as u64).unwrap();
    buffer.extend(&vec![7; length]);
    buffer.freeze()
}

fn from_the_source(frame: &bytes::Bytes) -> bool {
    STARTS.lock().unwrap().contains(&(frame.as_ptr() as usize))
}

#[test]
fn big_blocks_lie_where_the_source_has_them() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let memory = meminfo.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10;
    assert!(blocks::supply(&Pages));
    assert!(!blocks::supply(&Pages), "there is one source");

    assert!(!from_the_source(&frame(SMALLEST / 2)));
    assert!(!from_the_source(&frame(LEFT_TO_THE_HEAP)));
    let error = AlignedBuffer::new(SCARCE as u64).err().unwrap();
    assert_eq!(error.to_string(), "scarce");

    // Kept for the next frame when it goes,
    let first = frame(3 << 20);
    let place = first.as_ptr();
    assert!(from_the_source(&first) && first.iter().all(|&byte| byte == 7));
    assert!(blocks::block_of(&(place as usize..place as usize + (3 << 20))).is_some());
    drop(first);
    assert_eq!(LIVING.load(SeqCst), 1);
    let second = frame(3 << 20);
    assert_eq!(second.as_ptr(), place);

    // unless others may still read it,
    READ_BY_OTHERS.store(true, SeqCst);
    drop(second);
    assert_eq!(LIVING.load(SeqCst), 0);
    assert_eq!(blocks::block_of(&(place as usize..place as usize + 1)), None);
    READ_BY_OTHERS.store(false, SeqCst);

    // and within a bound. None of this memory is ever touched.
    let length = memory / 20;
    let many: Vec<_> = (0..5).map(|_| AlignedBuffer::new(length as u64).unwrap()).collect();
    assert_eq!(LIVING.load(SeqCst), 5);
    drop(many);
    assert!(length * LIVING.load(SeqCst) <= memory / 16);
}
