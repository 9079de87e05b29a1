//! What a packet holds: records, one after the other, of any of the connections between two ranks.
//!
//! ```text
//! record:   length | kind | to | argument         four u32, little endian; the length is the whole record's
//! Message:  ... | head length | payload bytes     two u64
//!           | the frames' lengths, a u64 each, if there are at most LISTED of them
//!           | the head, if it is small | the small frames
//! End:      ... | pieces                          a u64
//! ```
//!
//! What of a message does not travel in its record follows as pieces of its own, in this order: the
//! list of lengths, the head, the frames. Both sides reckon by the same rule ([`Room`]) which these are.

use bytes::{BufMut, Bytes, BytesMut};
use rankine_transport::{Message, prefix};

/// Bytes of a packet at most.
pub(crate) const PACKET: usize = 16 << 10;
/// A head or frame of more bytes travels by itself.
pub(crate) const SMALL: usize = 4 << 10;
/// The lengths of more frames travel by themselves, and so do all these frames.
pub(crate) const LISTED: usize = 256;
/// Bytes of a piece at most. MPI counts up to 2 GiB; that smaller ones come one after the other shows that
/// something moves, and leaves less to be received in vain where a receiver goes.
pub(crate) const PIECE: usize = 8 << 20;

/// What an MPI library sends at once although nobody receives it yet is no longer than this, where it is set
/// up as it comes: the receiving library keeps it.
pub(crate) const EAGER: usize = 64 << 10;

const HEADER: usize = 16;
const MESSAGE: usize = HEADER + 16;

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// The sending rank's connection `from` asks for a listener.
    Connect { port: u32, from: u32 },
    /// A listener took connection `to`; it is the sending rank's connection `from`.
    Accept { to: u32, from: u32 },
    /// Nobody takes connection `to`.
    Refuse { to: u32 },
    /// A message.
    Message { to: u32, message: Described<'a> },
    /// Records of so many bytes were taken by the reader.
    Credit { to: u32, bytes: u32 },
    /// Pieces of so many bytes, each counted up to [`EAGER`], were received.
    Received { to: u32, bytes: u32 },
    /// The sender's last word: so many pieces it sent in all, and it closed in order or not.
    End { to: u32, orderly: bool, pieces: u64 },
    /// The receiver's last word.
    Stop { to: u32 },
}

/// A message as its record describes it. Nothing it says is bounded yet but by what is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Described<'a> {
    pub(crate) head: u64,
    pub(crate) frames: u32,
    pub(crate) payload: u64,
    /// The lengths of the frames, where they are in the record.
    pub(crate) lengths: Option<Vec<u64>>,
    /// What of head and frames is in the record, in this order.
    pub(crate) data: &'a [u8],
    /// Bytes of the whole record.
    pub(crate) size: usize,
}

/// What room a record has left: the rule by which parts travel in it.
pub(crate) struct Room(usize);

impl Room {
    pub(crate) fn of(frames: usize) -> Self {
        let list = if frames <= LISTED { 8 * frames } else { 0 };
        Self(PACKET - MESSAGE - list)
    }

    /// Whether a part of this length is in the record.
    pub(crate) fn takes(&mut self, length: u64) -> bool {
        match usize::try_from(length) {
            Ok(length) if length <= SMALL && length <= self.0 => {
                self.0 -= length;
                true
            }
            _ => false,
        }
    }
}

impl Record<'_> {
    /// Bytes of any record but a message's, at most.
    pub(crate) const LENGTH: usize = HEADER + 8;

    /// Appends any record but a message's, of which [`write`] is.
    pub(crate) fn put(&self, packet: &mut BytesMut) {
        let (kind, to, argument, pieces) = match *self {
            Self::Connect { port, from } => (0, port, from, None),
            Self::Accept { to, from } => (1, to, from, None),
            Self::Refuse { to } => (2, to, 0, None),
            Self::Message { .. } => return,
            Self::Credit { to, bytes } => (4, to, bytes, None),
            Self::End { to, orderly, pieces } => (5, to, u32::from(orderly), Some(pieces)),
            Self::Stop { to } => (6, to, 0, None),
            Self::Received { to, bytes } => (7, to, bytes, None),
        };
        put_header(packet, HEADER + 8 * usize::from(pieces.is_some()), kind, to, argument);
        if let Some(pieces) = pieces {
            packet.put_u64_le(pieces);
        }
    }
}

fn put_header(packet: &mut BytesMut, length: usize, kind: u32, to: u32, argument: u32) {
    let mut header = [0; HEADER];
    header[0..4].copy_from_slice(&(length as u32).to_le_bytes());
    header[4..8].copy_from_slice(&kind.to_le_bytes());
    header[8..12].copy_from_slice(&to.to_le_bytes());
    header[12..16].copy_from_slice(&argument.to_le_bytes());
    packet.put_slice(&header);
}

/// Bytes of the record of `message`; no more than a packet's.
pub(crate) fn length(message: &Message) -> usize {
    let frames = message.frames.len();
    let mut length = MESSAGE + if frames <= LISTED { 8 * frames } else { 0 };
    let mut room = Room::of(frames);
    let frames = if frames <= LISTED { &message.frames[..] } else { &[] };
    for part in std::iter::once(&message.head).chain(frames) {
        if room.takes(part.len() as u64) {
            length += part.len();
        }
    }
    length
}

/// Appends the record of `message`, of [`length`] bytes, and gives what does not travel in it to `part`.
pub(crate) fn write(
    packet: &mut BytesMut,
    to: u32,
    length: usize,
    message: &Message,
    mut part: impl FnMut(Bytes),
) {
    let frames = message.frames.len();
    let payload: u64 = message.frames.iter().map(|frame| frame.len() as u64).sum();
    put_header(packet, length, 3, to, frames as u32);
    packet.put_u64_le(message.head.len() as u64);
    packet.put_u64_le(payload);
    let listed = frames <= LISTED;
    if listed {
        message.frames.iter().for_each(|frame| packet.put_u64_le(frame.len() as u64));
    } else {
        part(message.frames.iter().flat_map(|frame| (frame.len() as u64).to_le_bytes()).collect());
    }
    let mut room = Room::of(frames);
    if room.takes(message.head.len() as u64) {
        packet.put_slice(&message.head);
    } else {
        part(message.head.clone());
    }
    for frame in &message.frames {
        if listed && room.takes(frame.len() as u64) {
            packet.put_slice(frame);
        } else if !frame.is_empty() {
            part(frame.clone());
        }
    }
}

/// The records of a packet. An error is the last item: what follows cannot be told apart.
pub(crate) struct Records<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = if self.0.len() < HEADER { 0 } else { u32_at(self.0, 0) as usize };
        if length < HEADER || length > self.0.len() {
            let left = std::mem::take(&mut self.0).len();
            return Some(Err(format!("a record of {length} bytes where {left} are left")));
        }
        let (record, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(read(record))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Reads a whole record of at least a header.
fn read(record: &[u8]) -> Result<Record<'_>, String> {
    let (kind, to, argument) = (u32_at(record, 4), u32_at(record, 8), u32_at(record, 12));
    let expected = match kind {
        3 => return read_message(record, to, argument),
        5 => HEADER + 8,
        _ => HEADER,
    };
    if record.len() != expected {
        return Err(format!("a record of kind {kind} and {} bytes", record.len()));
    }
    Ok(match kind {
        0 => Record::Connect { port: to, from: argument },
        1 => Record::Accept { to, from: argument },
        2 => Record::Refuse { to },
        4 => Record::Credit { to, bytes: argument },
        5 => Record::End { to, orderly: argument == 1, pieces: u64_at(record, HEADER) },
        6 => Record::Stop { to },
        7 => Record::Received { to, bytes: argument },
        kind => return Err(format!("a record of unknown kind {kind}")),
    })
}

fn read_message(record: &[u8], to: u32, frames: u32) -> Result<Record<'_>, String> {
    let short = || format!("a message in a record of {} bytes", record.len());
    let (head, payload) = (u64_at(record, HEADER), u64_at(record, HEADER + 8));
    let mut data = record.get(MESSAGE..).ok_or_else(short)?;
    let count = frames as usize;
    let mut room = Room::of(count);
    let mut here = if room.takes(head) { head } else { 0 };
    let mut lengths = None;
    if count <= LISTED {
        let (list, rest) = data.split_at_checked(8 * count).ok_or_else(short)?;
        let listed = prefix::read_lengths(list, payload)?;
        here += listed.iter().filter(|length| room.takes(**length)).sum::<u64>();
        lengths = Some(listed);
        data = rest;
    }
    if here != data.len() as u64 {
        return Err(format!("a message with {} bytes in its record where {here} belong", data.len()));
    }
    let message = Described { head, frames, payload, lengths, data, size: record.len() };
    Ok(Record::Message { to, message })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The record of a message, and what does not travel in it.
    fn written(message: &Message) -> (BytesMut, Vec<Bytes>) {
        let (mut packet, mut parts) = (BytesMut::new(), Vec::new());
        write(&mut packet, 7, length(message), message, |part| parts.push(part));
        assert_eq!(packet.len(), length(message));
        assert!(packet.len() <= PACKET);
        (packet, parts)
    }

    fn sized(head: usize, frames: &[usize]) -> Message {
        let frame = |length: &usize| Bytes::from(vec![*length as u8; *length]);
        Message::new(vec![1; head], frames.iter().map(frame).collect())
    }

    #[test]
    fn small_parts_are_in_the_record_and_others_follow_in_their_order() {
        for (head, frames, follow) in [
            (8, vec![], vec![]),
            (SMALL, vec![0, SMALL, 5], vec![]),
            (SMALL + 1, vec![9, SMALL + 2], vec![SMALL + 1, SMALL + 2]),
            (1, vec![SMALL; 5], vec![SMALL, SMALL]),
            (0, vec![1; LISTED + 1], [vec![8 * (LISTED + 1)], vec![1; LISTED + 1]].concat()),
        ] {
            let message = sized(head, &frames);
            let (packet, parts) = written(&message);
            assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), follow, "{head}, {frames:?}");
            let mut records = Records(&packet);
            let Some(Ok(Record::Message { to: 7, message: described })) = records.next() else { panic!() };
            assert!(records.next().is_none());
            assert_eq!((described.head, described.frames as usize), (head as u64, frames.len()));
            assert_eq!(described.payload, frames.iter().sum::<usize>() as u64);
            assert_eq!(described.lengths.is_some(), frames.len() <= LISTED);
            let total = described.data.len() + parts.iter().map(Bytes::len).sum::<usize>();
            let list = if frames.len() <= LISTED { 0 } else { 8 * frames.len() };
            assert_eq!(total, message.nbytes() as usize + list);
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let records = [
            Record::Connect { port: 1, from: 2 },
            Record::Accept { to: 3, from: 4 },
            Record::Refuse { to: 5 },
            Record::Credit { to: 6, bytes: 7 },
            Record::Received { to: 8, bytes: 9 },
            Record::End { to: 10, orderly: true, pieces: u64::MAX },
            Record::End { to: 11, orderly: false, pieces: 0 },
            Record::Stop { to: 12 },
        ];
        let mut packet = BytesMut::new();
        for record in &records {
            let before = packet.len();
            record.put(&mut packet);
            assert!(packet.len() - before <= Record::LENGTH);
        }
        let read: Vec<_> = Records(&packet).map(Result::unwrap).collect();
        assert_eq!(read, records);
    }

    #[test]
    fn a_packet_cut_off_anywhere_is_refused() {
        let (packet, _) = written(&sized(100, &[50, SMALL + 1]));
        for cut in 1..packet.len() {
            assert!(Records(&packet[..cut]).next().unwrap().is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn lengths_that_are_not_there_are_refused() {
        let (packet, _) = written(&sized(8, &[16]));
        // The head's, the payload's, the number of frames, and the frame's.
        for (at, hostile) in [(16, 9), (16, u64::MAX), (24, 17), (24, 1 << 63), (12, 2), (32, 1 << 63)] {
            let mut packet = packet.clone();
            packet[at..at + if at == 12 { 4 } else { 8 }]
                .copy_from_slice(&u64::to_le_bytes(hostile)[..if at == 12 { 4 } else { 8 }]);
            assert!(Records(&packet).next().unwrap().is_err(), "{hostile} at {at}");
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_read_or_refused(mut packet in prop::collection::vec(any::<u8>(), 0..200), kind in 0..9u8) {
            if packet.len() >= HEADER {
                // Far enough to reach what depends on the kind.
                packet[..8].fill(0);
                packet[0] = packet.len() as u8;
                packet[4] = kind;
            }
            for record in Records(&packet) {
                if let Ok(Record::Message { message, .. }) = record {
                    prop_assert!(message.data.len() < packet.len());
                    prop_assert!(message.lengths.is_none_or(|l| l.iter().sum::<u64>() == message.payload));
                }
            }
        }
    }
}
