//! What leaves this rank: packets of records, one filling a rank, and pieces.

use std::ffi::c_int;

use bytes::{Bytes, BytesMut};

use crate::{
    fabric::Fabric,
    packet::{PACKET, Record},
};

/// The tag of packets.
pub(crate) const PACKETS: c_int = 0;
/// The tag of what a benchmark sends without this transport.
pub(crate) const BARE: c_int = 1;
/// The tag of the pieces for connection 0; the others follow.
pub(crate) const PIECES: c_int = 2;

/// What an operation of MPI's is remembered by.
#[derive(Debug)]
pub(crate) enum Note {
    /// The receive of the next packet.
    Arrival,
    /// A packet to a rank.
    Packet { to: c_int },
    /// A piece that connection `id` sends.
    Sent { id: u32, bytes: usize },
    /// A piece that connection `id` receives into a slot of the message of this number.
    Received { id: u32, message: u64, slot: usize },
    /// A piece that connection `id` receives in vain.
    Drained { id: u32 },
}

/// Which connection: this rank's number for it, and the other rank and its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) id: u32,
    pub(crate) rank: c_int,
    pub(crate) remote: u32,
}

/// The way out.
pub(crate) struct Wire {
    pub(crate) fabric: Fabric<Note>,
    /// The packet that fills, for each rank.
    packets: Vec<BytesMut>,
    /// Ranks whose packet is not empty.
    unsent: Vec<c_int>,
    /// Ranks that could not be sent to, and why.
    pub(crate) broken: Vec<(c_int, String)>,
}

impl Wire {
    pub(crate) fn new(fabric: Fabric<Note>) -> Self {
        let packets = (0..fabric.size()).map(|_| BytesMut::new()).collect();
        Self { fabric, packets, unsent: Vec::new(), broken: Vec::new() }
    }

    /// Appends a record.
    pub(crate) fn put(&mut self, to: c_int, record: &Record<'_>) {
        if let Some(packet) = self.room(to, Record::LENGTH) {
            record.put(packet);
        }
    }

    /// The packet that fills for a rank, with room for a record of `length` bytes.
    pub(crate) fn room(&mut self, to: c_int, length: usize) -> Option<&mut BytesMut> {
        let index = usize::try_from(to).ok()?;
        if self.packets.get(index)?.len() + length > PACKET {
            self.post(to);
        }
        let packet = self.packets.get_mut(index)?;
        if packet.is_empty() {
            // Takes the memory of the packet before, if that is sent.
            packet.reserve(PACKET);
            self.unsent.push(to);
        }
        Some(packet)
    }

    /// Hands the packet for a rank to MPI, if there is anything in it.
    pub(crate) fn post(&mut self, to: c_int) {
        let Some(packet) = usize::try_from(to).ok().and_then(|index| self.packets.get_mut(index)) else {
            return;
        };
        if packet.is_empty() {
            return;
        }
        let packet = packet.split().freeze();
        self.unsent.retain(|rank| *rank != to);
        if let Err(error) = self.fabric.send(packet, to, PACKETS, Note::Packet { to }) {
            self.broken.push((to, error.to_string()));
        }
    }

    /// Hands all packets to MPI.
    pub(crate) fn post_all(&mut self) {
        while let Some(to) = self.unsent.last() {
            self.post(*to);
        }
    }

    /// Hands a piece to MPI; tells whether it took it.
    pub(crate) fn piece(&mut self, link: &Link, bytes: Bytes) -> bool {
        let note = Note::Sent { id: link.id, bytes: bytes.len() };
        let sent = self.fabric.send(bytes, link.rank, tag(link.remote), note);
        if let Err(error) = &sent {
            self.broken.push((link.rank, error.to_string()));
        }
        sent.is_ok()
    }
}

/// The tag of the pieces for a connection, by the number it has where they are received. Numbers are
/// given so that their tags are within MPI's bound.
pub(crate) fn tag(id: u32) -> c_int {
    c_int::try_from(id).unwrap_or(c_int::MAX - PIECES).saturating_add(PIECES)
}
