//! Payload is copied by nobody but MPI.
//!
//! MPI's profiling interface lets a program stand between itself and the library: the calls defined here
//! are those that the transport makes, and note the memory that MPI is given.

use std::{cell::RefCell, ffi::c_int, ffi::c_void};

use bytes::Bytes;
use mpi::ffi;

use crate::{Ranks, receive, send};

/// Start and length of memory.
type Memory = (usize, usize);

thread_local! {
    static SENT: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
    static RECEIVED: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn MPI_Isend(
    buffer: *const c_void,
    count: c_int,
    datatype: ffi::MPI_Datatype,
    to: c_int,
    tag: c_int,
    communicator: ffi::MPI_Comm,
    request: *mut ffi::MPI_Request,
) -> c_int {
    SENT.with_borrow_mut(|sent| sent.push((buffer as usize, count as usize)));
    // SAFETY: the caller's own arguments.
    unsafe { ffi::PMPI_Isend(buffer, count, datatype, to, tag, communicator, request) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn MPI_Imrecv(
    buffer: *mut c_void,
    count: c_int,
    datatype: ffi::MPI_Datatype,
    message: *mut ffi::MPI_Message,
    request: *mut ffi::MPI_Request,
) -> c_int {
    RECEIVED.with_borrow_mut(|received| received.push((buffer as usize, count as usize)));
    // SAFETY: the caller's own arguments.
    unsafe { ffi::PMPI_Imrecv(buffer, count, datatype, message, request) }
}

/// Every byte of a big frame is given to MPI where it lies, and once.
pub(crate) async fn frames_leave_from_and_arrive_in_their_own_memory(ranks: &mut Ranks<'_>) {
    let Some(mut connection) = ranks.pair().await else { return };
    for lengths in [&[4097][..], &[20_000, 1 << 20], &[40 << 20, 5000], &[(8 << 20) + 1]] {
        let frames: Vec<Bytes> = lengths.iter().map(|length| Bytes::from(vec![7; *length])).collect();
        SENT.take();
        RECEIVED.take();
        let (frames, calls) = if ranks.rank() == 1 {
            send(&mut connection, "frames", frames.clone()).await;
            (frames, SENT.take())
        } else {
            let got = receive(&mut connection).await.frames;
            assert!(got == frames);
            (got, RECEIVED.take())
        };
        for frame in &frames {
            let within: Vec<&Memory> = (calls.iter())
                .filter(|(start, _)| frame.as_ptr_range().contains(&(*start as *const u8)))
                .collect();
            // One piece after the other, from the first byte to the last.
            let mut at = frame.as_ptr() as usize;
            for (start, length) in within {
                assert_eq!(*start, at);
                at += length;
            }
            assert_eq!(at, frame.as_ptr() as usize + frame.len(), "all of {} bytes", frame.len());
        }
        // And nothing of them went another way: what else was sent is records.
        let all: usize = calls.iter().map(|(_, length)| length).sum();
        assert!(all < frames.iter().map(Bytes::len).sum::<usize>() + 1000, "{all} bytes were given to MPI");
    }
}
