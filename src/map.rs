//! Files as memory.

use std::{fs::File, io};

use memmap2::Mmap;

/// Maps a file, to be read.
///
/// # Errors
/// If the system does not map it.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only. As with any map, another process that changes or cuts the file meanwhile changes
    // what is read or ends this process: of files that users name the documentation says so, others lie where no
    // other user reaches them.
    unsafe { Mmap::map(file) }
}
