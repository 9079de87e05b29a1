//! One message on its way in: what of it is here, and where the next piece goes.

use std::{io, mem};

use bytes::Bytes;
use rankine_transport::{AlignedBuffer, Limits, Message, prefix};

use crate::packet::{Described, PIECE, Room};

/// The slot of the list of lengths; then come the head's and the frames'.
const LIST: usize = 0;
const HEAD: usize = 1;
const FRAMES: usize = 2;

/// A message on its way in.
pub(crate) struct Arriving {
    /// Bytes of its record.
    pub(crate) size: usize,
    /// Bytes of it that come as pieces.
    pub(crate) ahead: u64,
    /// Its pieces may be received.
    pub(crate) begun: bool,
    head_length: u64,
    frame_count: u32,
    payload: u64,
    list: Slot,
    head: Slot,
    frames: Vec<Slot>,
    /// The slot of the next piece.
    next: usize,
    /// Slots that are not whole.
    missing: usize,
}

/// A part of a message: where it is.
enum Slot {
    /// So many bytes are to come.
    Awaited(u64),
    /// Between pieces.
    Partly(AlignedBuffer),
    /// MPI has its memory; whether that is the last piece.
    InFlight { last: bool },
    /// Here.
    Whole(Bytes),
}

/// Where the next piece goes.
pub(crate) enum Next {
    /// Into this slot, whose memory is there.
    Slot(usize),
    /// That shows when the piece before it is received.
    InFlight,
    /// All pieces were found.
    Nothing,
}

impl Arriving {
    /// What a record describes; what is in the record finds its final memory at once.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn new(described: Described<'_>) -> io::Result<Self> {
        let Described { head, frames, payload, lengths, mut data, size } = described;
        let mut arriving = Self {
            size,
            ahead: 0,
            begun: false,
            head_length: head,
            frame_count: frames,
            payload,
            list: Slot::Whole(Bytes::new()),
            head: Slot::Awaited(head),
            frames: Vec::new(),
            next: LIST,
            missing: 0,
        };
        let mut room = Room::of(frames as usize);
        let mut here = |length: u64| {
            let length = usize::try_from(length).ok().filter(|_| room.takes(length))?;
            let (part, rest) = data.split_at_checked(length)?;
            data = rest;
            Some(part)
        };
        match here(head) {
            Some(part) => arriving.head = Slot::Whole(Bytes::copy_from_slice(part)),
            None => arriving.await_part(head),
        }
        let Some(lengths) = lengths else {
            let list = 8 * u64::from(frames);
            arriving.list = Slot::Awaited(list);
            arriving.await_part(list);
            arriving.ahead = arriving.ahead.saturating_add(payload);
            return Ok(arriving);
        };
        arriving.frames.reserve_exact(lengths.len());
        for length in lengths {
            let slot = match here(length) {
                Some(part) => {
                    let mut buffer = AlignedBuffer::new(length)?;
                    buffer.extend(part);
                    Slot::Whole(buffer.freeze())
                }
                None => {
                    arriving.await_part(length);
                    Slot::Awaited(length)
                }
            };
            arriving.frames.push(slot);
        }
        Ok(arriving)
    }

    /// Whether the reader takes a message like this.
    ///
    /// # Errors
    /// What there is too much of.
    pub(crate) fn within(&self, limits: &Limits) -> Result<(), String> {
        limits.check(self.head_length, self.frame_count.into(), self.payload)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// The message, which is whole.
    pub(crate) fn into_message(self) -> Message {
        let bytes = |slot| if let Slot::Whole(bytes) = slot { bytes } else { Bytes::new() };
        Message::new(bytes(self.head), self.frames.into_iter().map(bytes).collect())
    }

    /// Where the next piece goes. Makes its memory.
    ///
    /// # Errors
    /// If there is no such memory.
    pub(crate) fn next(&mut self) -> io::Result<Next> {
        loop {
            let index = self.next;
            let Some(slot) = self.slot(index) else { return Ok(Next::Nothing) };
            match slot {
                Slot::Awaited(length) => {
                    *slot = Slot::Partly(AlignedBuffer::new(*length)?);
                    return Ok(Next::Slot(index));
                }
                Slot::Partly(_) => return Ok(Next::Slot(index)),
                // What follows the list is known only by it.
                Slot::InFlight { last } if !*last || index == LIST => return Ok(Next::InFlight),
                Slot::InFlight { .. } | Slot::Whole(_) => self.next += 1,
            }
        }
    }

    /// The memory for a piece of so many bytes; `None` if no such piece belongs there.
    pub(crate) fn take_buffer(&mut self, index: usize, length: usize) -> Option<AlignedBuffer> {
        let slot = self.slot(index)?;
        let Slot::Partly(buffer) = slot else { return None };
        let left = buffer.capacity() - buffer.as_ref().len();
        if length != left.min(PIECE) {
            return None;
        }
        match mem::replace(slot, Slot::InFlight { last: left <= PIECE }) {
            Slot::Partly(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Gives the memory back, with the piece in it.
    ///
    /// # Errors
    /// If the lengths of the frames were in it, and cannot be.
    pub(crate) fn put_buffer(&mut self, index: usize, buffer: AlignedBuffer) -> Result<(), String> {
        let Some(slot) = self.slot(index) else { return Ok(()) };
        if !buffer.is_full() {
            *slot = Slot::Partly(buffer);
            return Ok(());
        }
        let bytes = buffer.freeze();
        *slot = Slot::Whole(bytes.clone());
        self.missing -= 1;
        if index == LIST {
            for length in prefix::read_lengths(&bytes, self.payload)? {
                if length == 0 {
                    self.frames.push(Slot::Whole(Bytes::new()));
                } else {
                    self.frames.push(Slot::Awaited(length));
                    self.missing += 1;
                }
            }
        }
        Ok(())
    }

    fn await_part(&mut self, length: u64) {
        self.missing += 1;
        self.ahead = self.ahead.saturating_add(length);
    }

    fn slot(&mut self, index: usize) -> Option<&mut Slot> {
        match index {
            LIST => Some(&mut self.list),
            HEAD => Some(&mut self.head),
            index => self.frames.get_mut(index - FRAMES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{LISTED, SMALL};

    fn arriving(head: u64, lengths: &[u64], data: &[u8]) -> Arriving {
        let payload = lengths.iter().fold(0, |sum: u64, length| sum.saturating_add(*length));
        let frames = lengths.len() as u32;
        let lengths = (lengths.len() <= LISTED).then(|| lengths.to_vec());
        Arriving::new(Described { head, frames, payload, lengths, data, size: 100 }).unwrap()
    }

    /// Fills the next slot as a piece of this length would.
    fn receive(arriving: &mut Arriving, length: usize) -> Result<(), String> {
        let Next::Slot(slot) = arriving.next().unwrap() else { panic!("no slot is next") };
        let mut buffer = arriving.take_buffer(slot, length).expect("such a piece belongs there");
        buffer.extend(&vec![slot as u8; length]);
        arriving.put_buffer(slot, buffer)
    }

    #[test]
    fn what_is_in_the_record_is_whole_at_once() {
        let message = arriving(3, &[2, 0], b"abcde");
        assert!(message.is_whole() && message.ahead == 0);
        let message = message.into_message();
        assert_eq!((&message.head[..], &message.frames[0][..]), (&b"abc"[..], &b"de"[..]));
        assert!(message.frames[1].is_empty());
    }

    #[test]
    fn pieces_go_where_they_belong_and_only_there() {
        const LONG: usize = PIECE + 5;
        let mut message = arriving(1, &[LONG as u64, 2, 5000], b"hzz");
        assert_eq!(message.ahead, LONG as u64 + 5000);
        let Next::Slot(slot) = message.next().unwrap() else { panic!("the long frame is next") };
        for wrong in [0, 5, PIECE - 1, PIECE + 1, LONG] {
            assert!(message.take_buffer(slot, wrong).is_none(), "a piece of {wrong}");
        }
        receive(&mut message, PIECE).unwrap();
        receive(&mut message, 5).unwrap();
        assert!(!message.is_whole());
        receive(&mut message, 5000).unwrap();
        assert!(matches!(message.next(), Ok(Next::Nothing)) && message.is_whole());
        let lengths: Vec<usize> = message.into_message().frames.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [LONG, 2, 5000]);
    }

    #[test]
    fn a_piece_of_the_same_frame_waits_for_the_one_before() {
        let mut message = arriving(0, &[2 * PIECE as u64, 5000], b"");
        let Next::Slot(slot) = message.next().unwrap() else { panic!("the long frame is next") };
        let buffer = message.take_buffer(slot, PIECE).unwrap();
        assert!(matches!(message.next(), Ok(Next::InFlight)));
        drop(buffer);
    }

    #[test]
    fn lengths_that_come_by_themselves_must_add_up() {
        let mut message = arriving(0, &[1; LISTED + 1], b"");
        let Next::Slot(slot) = message.next().unwrap() else { panic!("the list is next") };
        let list = 8 * (LISTED + 1);
        let mut buffer = message.take_buffer(slot, list).unwrap();
        assert!(matches!(message.next(), Ok(Next::InFlight)));
        buffer.extend(&vec![0xff; list]);
        assert!(message.put_buffer(slot, buffer).is_err());
    }

    #[test]
    fn what_is_announced_beyond_the_limits_is_told() {
        let hostile = arriving(1 << 63, &[u64::MAX], b"");
        assert!(hostile.within(&Limits::PEER).is_err() && hostile.ahead == u64::MAX);
        assert!(arriving(SMALL as u64 + 1, &[], b"").within(&Limits::HANDSHAKE).is_err());
        assert!(arriving(128, &[], &[0; 128]).within(&Limits::HANDSHAKE).is_ok());
    }
}
