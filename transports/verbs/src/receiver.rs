//! The receiving half: it takes the stream apart, and reads big frames out of the peer's memory.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use rankine_transport::{AlignedBuffer, Limits, Message, Receiver, Result, prefix};

use crate::{
    connection::{Broken, Flow, Half, Shared, State},
    queue_pair::QueuePair,
    region::{Access, Landing, Region},
    registrations::Registrations,
    wire::{DESCRIPTOR, Descriptor, HEADER, Header, PIECE, RENDEZVOUS},
};

/// Messages of so many bytes are begun before the ones before them are taken, so that the fabric is busy meanwhile.
const AHEAD: u64 = 8 << 20;
/// A READ is no longer than this.
const MAX_READ: u32 = 1 << 30;

/// What has come, and what is being read.
pub(crate) struct Incoming {
    segments: VecDeque<Segment>,
    parsing: Parsing,
    /// Messages that have begun, oldest first.
    messages: VecDeque<Arriving>,
    /// Bytes of these.
    ahead: u64,
    /// Pieces to be read.
    reads: VecDeque<Read>,
    /// READs under way, oldest first: of one that is its piece's last, the piece's length.
    posted: VecDeque<Option<u64>>,
    max_read: u32,
    limits: Limits,
    closed: bool,
    /// The peer's sending half went without closing.
    pub(crate) abandoned: bool,
    /// Addresses of all that was read into.
    #[cfg(test)]
    pub(crate) all_landings: Vec<usize>,
}

/// A segment that is not consumed to its end.
struct Segment {
    slot: u16,
    at: usize,
    length: usize,
}

/// How far the stream is taken apart.
enum Parsing {
    Header(Collected<HEADER>),
    /// A message that is not begun yet, as others before it are not taken.
    Known(Header),
    Table {
        head: u64,
        payload: u64,
        table: AlignedBuffer,
    },
    Blobs {
        lengths: std::vec::IntoIter<u64>,
        blob: Blob,
    },
}

/// The head or a frame on its way.
enum Blob {
    /// In the stream.
    Inline(AlignedBuffer),
    /// In the peer's memory, described so far.
    Lent { landing: Arc<Landing>, described: u64, descriptor: Collected<DESCRIPTOR> },
}

/// A few bytes that may come in parts.
struct Collected<const N: usize> {
    bytes: [u8; N],
    count: usize,
}

impl<const N: usize> Default for Collected<N> {
    fn default() -> Self {
        Self { bytes: [0; N], count: 0 }
    }
}

/// A message that has begun.
struct Arriving {
    parts: Vec<Part>,
    /// How many parts there will be, the head included.
    expected: usize,
    /// Parts known to be whole.
    whole: usize,
    nbytes: u64,
}

enum Part {
    Here(Bytes),
    Landing(Arc<Landing>),
}

/// A piece to be read.
struct Read {
    landing: Arc<Landing>,
    region: Arc<Region>,
    from: Descriptor,
    length: u64,
    left: u64,
}

impl Incoming {
    pub(crate) fn new(max_read: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            parsing: Parsing::Header(Collected::default()),
            messages: VecDeque::new(),
            ahead: 0,
            reads: VecDeque::new(),
            posted: VecDeque::new(),
            max_read: max_read.min(MAX_READ),
            limits: Limits::HANDSHAKE,
            closed: false,
            abandoned: false,
            #[cfg(test)]
            all_landings: Vec::new(),
        }
    }

    /// A segment came.
    pub(crate) fn push(&mut self, slot: u16, length: usize) {
        self.segments.push_back(Segment { slot, at: 0, length });
    }

    /// The oldest READ is done; gives the length of its piece if that is, too.
    pub(crate) fn transferred(&mut self) -> Option<u64> {
        self.posted.pop_front().flatten()
    }

    /// Whether READs are under way.
    pub(crate) fn is_reading(&self) -> bool {
        !self.posted.is_empty()
    }

    /// The next message if it is whole, `None` at the end.
    fn next(
        &mut self,
        pair: &mut QueuePair,
        flow: &mut Flow,
        registrations: &Registrations,
    ) -> Result<Option<Option<Message>>, Broken> {
        self.parse(pair, flow, registrations)?;
        self.post_reads(pair)?;
        if self.messages.front_mut().is_some_and(Arriving::is_whole)
            && let Some(message) = self.messages.pop_front()
        {
            self.ahead = self.ahead.saturating_sub(message.nbytes);
            return message.into_message().map(|message| Some(Some(message)));
        }
        Ok((self.closed && self.messages.is_empty()).then_some(None))
    }

    /// Takes the stream apart as far as it has come and may be gone on with.
    fn parse(
        &mut self,
        pair: &mut QueuePair,
        flow: &mut Flow,
        registrations: &Registrations,
    ) -> Result<(), Broken> {
        let protocol = Broken::Protocol;
        while !self.closed {
            match &mut self.parsing {
                Parsing::Header(header) => {
                    if !take(&mut self.segments, pair, flow, |bytes| header.extend(bytes))? {
                        break;
                    }
                    let header = Header::decode(&header.bytes).map_err(protocol)?;
                    self.parsing = Parsing::Known(header);
                }
                Parsing::Known(Header::Close) => self.closed = true,
                &mut Parsing::Known(header @ Header::Message { head, frames, payload }) => {
                    // The limits may have changed once those before it are taken: till then it waits.
                    let first = self.messages.is_empty();
                    let beyond = header.check(&self.limits);
                    if !first && (beyond.is_err() || self.ahead.saturating_add(header.nbytes()) > AHEAD) {
                        break;
                    }
                    beyond.map_err(protocol)?;
                    let table = AlignedBuffer::new(frames.saturating_mul(8))?;
                    self.ahead = self.ahead.saturating_add(header.nbytes());
                    self.messages.push_back(Arriving {
                        parts: Vec::new(),
                        expected: 1 + frames as usize,
                        whole: 0,
                        nbytes: header.nbytes(),
                    });
                    self.parsing = Parsing::Table { head, payload, table };
                }
                Parsing::Table { head, payload, table } => {
                    if !take(&mut self.segments, pair, flow, |bytes| fill(table, bytes))? {
                        break;
                    }
                    let lengths = prefix::read_lengths(table.as_ref(), *payload).map_err(protocol)?;
                    let blob = Blob::new(*head)?;
                    self.parsing = Parsing::Blobs { lengths: lengths.into_iter(), blob };
                }
                Parsing::Blobs { lengths, blob } => {
                    let whole = match blob {
                        Blob::Inline(buffer) => {
                            take(&mut self.segments, pair, flow, |bytes| fill(buffer, bytes))?
                        }
                        Blob::Lent { landing, described, descriptor } => {
                            if !take(&mut self.segments, pair, flow, |bytes| descriptor.extend(bytes))? {
                                break;
                            }
                            let from = Descriptor::decode(&descriptor.bytes);
                            *descriptor = Collected::default();
                            let memory = landing.addresses(*described, PIECE);
                            let length = memory.len() as u64;
                            if from.address.checked_add(length).is_none() {
                                return Err(protocol("a piece beyond the end of memory".into()));
                            }
                            let region = registrations.cover(&memory, Access::Both)?;
                            #[cfg(test)]
                            if *described == 0 {
                                self.all_landings.push(memory.start);
                            }
                            self.reads.push_back(Read {
                                landing: landing.clone(),
                                region,
                                from,
                                length,
                                left: length,
                            });
                            *described += length;
                            *described == landing.capacity()
                        }
                    };
                    if !whole {
                        // A piece of several, or the segments are used up.
                        if self.segments.is_empty() {
                            break;
                        }
                        continue;
                    }
                    let next = lengths.next();
                    let fresh = Blob::new(next.unwrap_or(0))?;
                    let part = match std::mem::replace(blob, fresh) {
                        Blob::Inline(buffer) => Part::Here(buffer.freeze()),
                        Blob::Lent { landing, .. } => Part::Landing(landing),
                    };
                    if let Some(message) = self.messages.back_mut() {
                        message.parts.push(part);
                    }
                    if next.is_none() {
                        self.parsing = Parsing::Header(Collected::default());
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the device read as much as it takes.
    fn post_reads(&mut self, pair: &mut QueuePair) -> Result<(), Broken> {
        while let Some(read) = self.reads.front_mut() {
            if !pair.may_transfer() {
                break;
            }
            let length = u32::try_from(read.left).unwrap_or(u32::MAX).min(self.max_read);
            let count =
                pair.post_read(&read.landing, &read.region, length, (read.from.address, read.from.key))?;
            read.from.address += u64::from(count);
            read.left -= u64::from(count);
            self.posted.push_back((read.left == 0).then_some(read.length));
            if read.left == 0 {
                self.reads.pop_front();
            }
        }
        Ok(())
    }
}

/// Hands the stream's next bytes to `consume`, which gives how many it took and whether it has enough; gives whether
/// it has. A segment that is used up goes back to the device.
fn take(
    segments: &mut VecDeque<Segment>,
    pair: &mut QueuePair,
    flow: &mut Flow,
    mut consume: impl FnMut(&[u8]) -> (usize, bool),
) -> Result<bool, Broken> {
    loop {
        let Some(segment) = segments.front_mut() else { return Ok(consume(&[]).1) };
        let bytes = pair.received(segment.slot, segment.length);
        let (count, enough) = consume(bytes.get(segment.at..).unwrap_or(&[]));
        segment.at += count;
        if segment.at >= segment.length {
            let slot = segment.slot;
            segments.pop_front();
            pair.post_receive(slot)?;
            flow.consumed += 1;
        }
        if enough {
            return Ok(true);
        }
    }
}

fn fill(buffer: &mut AlignedBuffer, bytes: &[u8]) -> (usize, bool) {
    let before = buffer.as_ref().len();
    buffer.extend(bytes);
    (buffer.as_ref().len() - before, buffer.is_full())
}

impl<const N: usize> Collected<N> {
    fn extend(&mut self, bytes: &[u8]) -> (usize, bool) {
        let count = bytes.len().min(N - self.count);
        self.bytes[self.count..self.count + count].copy_from_slice(&bytes[..count]);
        self.count += count;
        (count, self.count == N)
    }
}

impl Blob {
    fn new(length: u64) -> io::Result<Self> {
        if length < RENDEZVOUS {
            return Ok(Self::Inline(AlignedBuffer::new(length)?));
        }
        Ok(Self::Lent { landing: Landing::new(length)?, described: 0, descriptor: Collected::default() })
    }
}

impl Arriving {
    fn is_whole(&mut self) -> bool {
        while let Some(part) = self.parts.get(self.whole) {
            match part {
                Part::Landing(landing) if !landing.is_full() => return false,
                _ => self.whole += 1,
            }
        }
        self.whole == self.expected
    }

    fn into_message(self) -> Result<Message, Broken> {
        let mut parts = self.parts.into_iter().map(|part| match part {
            Part::Here(bytes) => Ok(bytes),
            Part::Landing(landing) => landing
                .into_frame()
                .ok_or_else(|| Broken::Lost(io::ErrorKind::Other, "a frame is still being read".into())),
        });
        let head = parts.next().transpose()?.unwrap_or_default();
        Ok(Message::new(head, parts.collect::<Result<_, _>>()?))
    }
}

pub(crate) struct VerbsReceiver {
    pub(crate) shared: Arc<Shared>,
}

impl VerbsReceiver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Receiver for VerbsReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let registrations = self.shared.registrations();
        self.shared.poll(Half::Receiver, cx, |state| {
            // What has come is good whatever happened since.
            let State { pair, flow, incoming, broken, .. } = state;
            match (incoming.next(pair, flow, registrations), &broken) {
                (Ok(Some(next)), _) => Ok(Some(next)),
                (Ok(None), Some(broken)) => Err(broken.clone()),
                (Ok(None), None) if incoming.abandoned => Err(Broken::gone()),
                (Ok(None), None) => Ok(None),
                (Err(reason), _) => {
                    state.fail(reason.clone());
                    Err(reason)
                }
            }
        })
    }

    fn set_limits(&mut self, limits: Limits) {
        self.shared.lock().incoming.limits = limits;
    }
}

impl Drop for VerbsReceiver {
    fn drop(&mut self) {
        self.shared.leave(Half::Receiver);
    }
}
