//! Memory that frames are received into.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    slice,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::memory::Block;

/// A buffer of fixed length which is filled once and then becomes [`Bytes`], without a copy.
///
/// Aligned to 64 bytes and to a page from 64 KiB up, so that what it holds is viewed as numbers of any
/// type.
pub struct AlignedBuffer {
    /// At least `length` bytes.
    block: Block,
    length: usize,
    filled: usize,
}

impl AlignedBuffer {
    /// An empty buffer of `length` bytes; memory on the heap is touched only as it is filled.
    ///
    /// # Errors
    /// If there is no such memory.
    pub fn new(length: u64) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::OutOfMemory, format!("no memory for {length} bytes"));
        let length = usize::try_from(length).map_err(|_| none())?;
        Ok(Self { block: Block::new(length)?, length, filled: 0 })
    }

    /// How many bytes it takes in all.
    pub fn capacity(&self) -> usize {
        self.length
    }

    /// Whether all of it is filled.
    pub fn is_full(&self) -> bool {
        self.filled == self.capacity()
    }

    /// Appends bytes, as many as fit.
    pub fn extend(&mut self, bytes: &[u8]) {
        let spare = self.spare();
        let count = bytes.len().min(spare.len());
        // SAFETY: initialised bytes may be seen as maybe initialised ones.
        let bytes = unsafe { &*(std::ptr::from_ref(bytes) as *const [MaybeUninit<u8>]) };
        spare[..count].copy_from_slice(&bytes[..count]);
        self.filled += count;
    }

    /// All of it as initialised bytes, to be written to by what takes no others: what was not filled is
    /// zero, and the buffer is full.
    pub fn zeroed(&mut self) -> &mut [u8] {
        self.spare().fill(MaybeUninit::new(0));
        self.filled = self.capacity();
        // SAFETY: all bytes were written, the last of them just now; borrowed mutably with the buffer.
        unsafe { slice::from_raw_parts_mut(self.block.as_ptr(), self.filled) }
    }

    /// Reads once into what is not filled; gives how many bytes came, 0 at the end of the stream.
    ///
    /// # Errors
    /// The reader's.
    pub fn poll_fill(
        &mut self,
        reader: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::uninit(self.spare());
        ready!(reader.poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        self.filled += count;
        Poll::Ready(Ok(count))
    }

    /// Nothing is filled any more; the memory stays, for the next to come.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// What is filled, as shared bytes.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The memory that is not filled yet, for a library or a device that writes into it. It stays where
    /// it is for as long as the buffer lives, wherever the buffer itself is moved.
    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the memory from `filled` to the end is this buffer's, borrowed mutably with it.
        unsafe {
            let start = self.block.as_ptr().add(self.filled).cast();
            slice::from_raw_parts_mut(start, self.capacity() - self.filled)
        }
    }

    /// Counts what was written into [`spare`](Self::spare) as filled, at most as much as that takes.
    ///
    /// # Safety
    /// The first `count` bytes of it have been written.
    pub unsafe fn advance(&mut self, count: usize) {
        self.filled += count.min(self.capacity() - self.filled);
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes were written by `extend`, a reader, or whom `advance` speaks for.
        unsafe { slice::from_raw_parts(self.block.as_ptr(), self.filled) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_keep_what_they_were_given() {
        for length in [0u64, 1, 63, 4096, 0x1_0000, 0x40_0000] {
            let mut buffer = AlignedBuffer::new(length).unwrap();
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            buffer.extend(&bytes[..bytes.len() / 2]);
            buffer.extend(&bytes[bytes.len() / 2..]);
            buffer.extend(b"too much");
            assert!(buffer.is_full());
            assert_eq!(buffer.zeroed(), bytes);
            let frozen = buffer.freeze();
            assert_eq!(frozen, bytes);
            let align = if length < 0x1_0000 { 64 } else { 4096 };
            assert!(length == 0 || frozen.as_ptr().align_offset(align) == 0);
        }
    }

    #[test]
    fn what_was_not_filled_is_zeroed() {
        let mut buffer = AlignedBuffer::new(5).unwrap();
        buffer.extend(b"ab");
        assert_eq!(buffer.zeroed(), b"ab\0\0\0");
        buffer.zeroed()[4] = 1;
        assert_eq!(&buffer.freeze()[..], b"ab\0\0\x01");
    }

    #[test]
    fn others_write_into_the_spare_memory_and_say_how_much() {
        let mut buffer = AlignedBuffer::new(10).unwrap();
        buffer.extend(b"ab");
        let place = buffer.spare().as_ptr();
        for (spare, byte) in buffer.spare().iter_mut().zip(b"cdef") {
            spare.write(*byte);
        }
        // SAFETY: four bytes were written.
        unsafe { buffer.advance(4) };
        assert_eq!(buffer.as_ref(), b"abcdef");
        assert_eq!(buffer.spare().len(), 4);
        buffer.clear();
        assert!(buffer.as_ref().is_empty());
        assert_eq!(buffer.spare().as_ptr(), place.wrapping_sub(2));
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert!(AlignedBuffer::new(1 << 63).is_err());
        assert!(AlignedBuffer::new(u64::MAX).is_err());
    }
}
