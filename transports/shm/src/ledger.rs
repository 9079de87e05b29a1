//! What the two sides of a connection have lent each other.
//!
//! The lender keeps a frame, and so the memory it lies in, until the borrower has dropped the last bytes of it and
//! said so. Segments are numbered as they are first sent over the connection, leases as they are made; both sides
//! count alike. Four things are told of them, over a socket of their own that no message can hold up:
//!
//! ```text
//! borrower: taken through lease N     so many messages were read: there is room for more
//! borrower: lease N is returned       nobody reads it there any more
//! borrower: lease N is abandoned      others, whom the borrower lent it to, may read it for ever
//! lender:   forget segment N          it is gone, or was not used for long: unmap it
//! ```
//!
//! Where the connection ends while frames are lent, nobody will ever know whether they are still read. Their
//! segments are then tainted: never written to again, and given back to the system once this side is done with
//! them too.
//!
//! Nothing is dropped while the state is locked: what goes may be a segment, and tell other ledgers so.

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use rankine_transport::{Address, Error, Result};
use tokio::sync::Notify;

use crate::segment::Segment;

/// Lent frames that may be unread; a sender with more waits.
const UNREAD: usize = 64;
/// Bytes that were copied into segments and may be unread.
const COPIED: usize = 8 << 20;
/// A reader says what it has taken after so many frames,
const SAID_FRAMES: u64 = UNREAD as u64 / 4;
/// or so many bytes.
const SAID_BYTES: u64 = COPIED as u64 / 4;
/// Segments that the other side keeps mapped although nothing in them is lent.
const IDLE: usize = 256;
/// Bytes of a record.
pub(crate) const RECORD: usize = 16;

static LENT: AtomicU64 = AtomicU64::new(0);

/// Bytes of frames that other processes hold of this one's.
pub fn lent() -> u64 {
    LENT.load(Ordering::Relaxed)
}

/// What one side tells the other beside the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// By the borrower: the messages with all leases before this one were read.
    Taken(u64),
    /// By the borrower: it dropped the last bytes of this lease.
    Returned(u64),
    /// By the borrower: it dropped them as well, but others may go on reading what it lent them on.
    Abandoned(u64),
    /// By the lender: this segment will not be spoken of again.
    Forget(u64),
}

impl Record {
    fn write(self) -> [u8; RECORD] {
        let (kind, number) = match self {
            Self::Taken(number) => (1, number),
            Self::Returned(number) => (2, number),
            Self::Abandoned(number) => (3, number),
            Self::Forget(number) => (4, number),
        };
        let mut record = [0; RECORD];
        record[0] = kind;
        record[8..].copy_from_slice(&number.to_le_bytes());
        record
    }

    pub(crate) fn read(record: &[u8; RECORD]) -> Option<Self> {
        let mut number = [0; 8];
        number.copy_from_slice(&record[8..]);
        let number = u64::from_le_bytes(number);
        Some(match record[0] {
            1 => Self::Taken(number),
            2 => Self::Returned(number),
            3 => Self::Abandoned(number),
            4 => Self::Forget(number),
            _ => return None,
        })
    }
}

/// One side's account of a connection.
#[derive(Default)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    /// There is something to tell the other side.
    pub(crate) news: Notify,
}

#[derive(Default)]
struct State {
    /// Frames lent, by number.
    leases: HashMap<u64, Lease>,
    /// The next one's number.
    lease: u64,
    /// Those that the other side has not read yet, and what each cost in copies.
    unread: VecDeque<(u64, usize)>,
    /// Bytes of all those copies.
    copied: usize,
    /// Segments that the other side knows, by their id here.
    known: HashMap<u64, Known>,
    /// The next segment's number.
    segment: u64,
    room: Option<Waker>,

    /// Segments borrowed, by number.
    segments: HashMap<u64, Arc<Segment>>,
    /// The next one's number.
    next_segment: u64,
    /// The next borrowed frame's number.
    next_lease: u64,
    /// Frames and bytes taken since that was last said.
    taken: (u64, u64),

    /// What is to be told.
    records: Vec<u8>,
    ended: Option<Ended>,
}

struct Lease {
    frame: Bytes,
    segment: Arc<Segment>,
}

/// A segment that the other side has mapped.
struct Known {
    number: u64,
    /// Frames in it that are lent.
    leases: usize,
    /// The last lease there.
    last: u64,
}

/// Why nothing is told any more.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// One side went.
    Gone,
    /// The other side told what cannot be.
    Refused(&'static str),
}

impl Ended {
    pub(crate) fn error(&self, peer: &Address) -> Error {
        match self {
            Self::Gone => Error::lost(peer, io::Error::new(io::ErrorKind::BrokenPipe, "it is gone")),
            Self::Refused(reason) => Error::protocol(peer, *reason),
        }
    }
}

/// How a lent frame is named on the wire.
pub(crate) struct Lent {
    /// Its segment's number.
    pub(crate) segment: u64,
    /// Whether the other side does not know that segment yet.
    pub(crate) new: bool,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a frame that lies in `segment`; `copied` if it was only put there for this.
    ///
    /// # Errors
    /// If the connection ended.
    pub(crate) fn lend(
        self: &Arc<Self>,
        frame: &Bytes,
        segment: &Arc<Segment>,
        copied: bool,
    ) -> Result<Lent, Ended> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        let lease = state.lease;
        state.lease += 1;
        let next = state.segment;
        let known = state.known.entry(segment.id).or_insert(Known { number: next, leases: 0, last: lease });
        known.leases += 1;
        known.last = lease;
        let lent = Lent { segment: known.number, new: known.number == next };
        if lent.new {
            state.segment += 1;
            state.forget_idle();
        }
        state.leases.insert(lease, Lease { frame: frame.clone(), segment: segment.clone() });
        let cost = if copied { frame.len() } else { 0 };
        state.unread.push_back((lease, cost));
        state.copied += cost;
        let tell = !state.records.is_empty();
        drop(state);
        LENT.fetch_add(frame.len() as u64, Ordering::Relaxed);
        if lent.new {
            segment.made_known_to(self);
        }
        if tell {
            self.news.notify_one();
        }
        Ok(lent)
    }

    /// Ready while so little is unread that more may be lent.
    pub(crate) fn poll_room(&self, peer: &Address, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.error(peer)));
        }
        if state.unread.len() < UNREAD && state.copied < COPIED {
            return Poll::Ready(Ok(()));
        }
        state.room = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A segment of this process is gone.
    pub(crate) fn segment_goes(&self, id: u64) {
        let mut state = self.lock();
        if let Some(known) = state.known.remove(&id) {
            state.tell(Record::Forget(known.number));
            drop(state);
            self.news.notify_one();
        }
    }

    /// Takes in a segment that the other side sent.
    pub(crate) fn introduced(&self, number: u64, segment: Arc<Segment>) -> Result<(), String> {
        let mut state = self.lock();
        if number != state.next_segment {
            return Err(format!("memory segment {number} where {} was to come", state.next_segment));
        }
        state.next_segment += 1;
        state.segments.insert(number, segment);
        Ok(())
    }

    /// A frame that the other side lent: the next lease.
    pub(crate) fn borrow(self: &Arc<Self>, number: u64, offset: u64, length: u64) -> Result<Bytes, String> {
        let mut state = self.lock();
        let segment = state.segments.get(&number).cloned();
        let segment =
            segment.ok_or_else(|| format!("a frame in memory segment {number}, which was not sent"))?;
        let end = offset.checked_add(length).filter(|end| *end <= segment.len() as u64);
        let end = end.ok_or_else(|| format!("a frame beyond the end of memory segment {number}"))?;
        let lease = state.next_lease;
        state.next_lease += 1;
        drop(state);
        // Both lie within the segment, whose length is an address's.
        let part = offset as usize..end as usize;
        Ok(Bytes::from_owner(Borrowed { segment, part, lease, ledger: self.clone() }))
    }

    /// A message with so many borrowed frames, of so many bytes, was read.
    pub(crate) fn took(&self, frames: u64, bytes: u64) {
        let mut state = self.lock();
        let taken = (state.taken.0 + frames, state.taken.1 + bytes);
        state.taken = taken;
        if taken.0 >= SAID_FRAMES || taken.1 >= SAID_BYTES {
            state.taken = (0, 0);
            let next = state.next_lease;
            state.tell(Record::Taken(next));
            drop(state);
            self.news.notify_one();
        }
    }

    /// Nothing more comes that could be in a borrowed segment.
    pub(crate) fn stop_borrowing(&self) {
        let segments = std::mem::take(&mut self.lock().segments);
        drop(segments);
    }

    fn give_back(&self, record: Record) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.tell(record);
            drop(state);
            self.news.notify_one();
        }
    }

    /// The other side told something.
    ///
    /// # Errors
    /// If it cannot be.
    pub(crate) fn heard(&self, record: Record) -> Result<(), Ended> {
        let mut state = self.lock();
        match record {
            Record::Taken(through) => {
                if through > state.lease {
                    return Err(Ended::Refused("it has read frames that were never lent to it"));
                }
                while let Some(&(lease, copied)) = state.unread.front()
                    && lease < through
                {
                    state.unread.pop_front();
                    state.copied -= copied;
                }
                let room = state.room.take();
                drop(state);
                room.into_iter().for_each(Waker::wake);
            }
            Record::Returned(number) | Record::Abandoned(number) => {
                let lease = state.leases.remove(&number);
                let lease = lease.ok_or(Ended::Refused("it gave back a frame that it had not borrowed"))?;
                if let Some(known) = state.known.get_mut(&lease.segment.id) {
                    known.leases -= 1;
                }
                drop(state);
                if matches!(record, Record::Abandoned(_)) {
                    lease.segment.taint();
                }
                LENT.fetch_sub(lease.frame.len() as u64, Ordering::Relaxed);
            }
            Record::Forget(number) => {
                let forgotten = state.segments.remove(&number);
                drop(state);
                drop(forgotten);
            }
        }
        Ok(())
    }

    /// Nothing more will be told: what is lent stays so.
    pub(crate) fn end(&self, why: Ended) {
        let mut state = self.lock();
        state.ended.get_or_insert(why);
        let leases = std::mem::take(&mut state.leases);
        let room = state.room.take();
        state.known.clear();
        drop(state);
        for lease in leases.values() {
            lease.segment.taint();
            LENT.fetch_sub(lease.frame.len() as u64, Ordering::Relaxed);
        }
        room.into_iter().for_each(Waker::wake);
    }

    /// Whether something is left to be told, after as much of it was as `send` takes.
    pub(crate) fn tell_all(&self, send: impl Fn(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
        let mut state = self.lock();
        while !state.records.is_empty() {
            match send(&state.records) {
                Ok(count) => drop(state.records.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl State {
    fn tell(&mut self, record: Record) {
        self.records.extend(record.write());
    }

    /// Has the other side unmap the segment that was idle longest, where there are many.
    fn forget_idle(&mut self) {
        if self.known.len() <= IDLE {
            return;
        }
        let idle = self.known.iter().filter(|(_, known)| known.leases == 0);
        let oldest = idle.min_by_key(|(_, known)| known.last).map(|(id, known)| (*id, known.number));
        if let Some((id, number)) = oldest {
            self.known.remove(&id);
            self.tell(Record::Forget(number));
        }
    }
}

/// Bytes of another process.
struct Borrowed {
    segment: Arc<Segment>,
    part: Range<usize>,
    lease: u64,
    ledger: Arc<Ledger>,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the lender writes nothing there while it is lent, nor after if it does not hear that it was
        // returned. That it keeps to this is what its proof of the cluster's secret is good for.
        unsafe { self.segment.bytes(self.part.clone()) }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let record = if self.segment.is_tainted() { Record::Abandoned } else { Record::Returned };
        self.ledger.give_back(record(self.lease));
    }
}
