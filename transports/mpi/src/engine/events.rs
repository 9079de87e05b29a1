//! What came: operations that are done and packets of other ranks, handed on to the connections they concern; and what
//! failed.

use std::io;

use rankine_transport::AlignedBuffer;

use super::{BACKLOG, Engine};
use crate::{
    connection::Connection,
    fabric::{Done, Outcome},
    failure::Failure,
    packet::{PACKET, Record, Records},
    wire::{Link, Note, PACKETS},
};

impl Engine {
    pub(super) fn completed(&mut self, done: Done<Note>) {
        match (done.note, done.outcome) {
            (Note::Arrival, Ok(Outcome::Received { mut buffer, source })) => {
                self.packet(source, buffer.as_ref());
                buffer.clear();
                if let Err(error) = self.expect_packet(buffer) {
                    self.fail_all(&error.to_string());
                }
            }
            (Note::Arrival, outcome) => {
                // Cut off, since it was no packet of ours; or MPI itself failed, as the next call then does.
                tracing::warn!(error = ?outcome.err(), "could not receive a packet");
                let next = AlignedBuffer::new(PACKET as u64).and_then(|buffer| self.expect_packet(buffer));
                if let Err(error) = next {
                    self.fail_all(&error.to_string());
                }
            }
            (Note::Packet { .. }, Ok(_)) => {}
            (Note::Packet { to }, Err(error)) => self.fail_rank(to, &error.to_string()),
            (Note::Sent { id, bytes }, outcome) => {
                let Some(connection) = self.connections.get_mut(id) else { return };
                connection.outgoing.sent(bytes, &connection.link, &mut self.wire);
                if let Err(error) = outcome {
                    connection.sever(&Failure::lost(error.kind(), error.to_string()));
                }
                self.retire(id);
            }
            (Note::Received { id, message, slot }, outcome) => {
                let Some(connection) = self.connections.get_mut(id) else { return };
                let buffer = outcome.and_then(|outcome| match outcome {
                    Outcome::Received { buffer, .. } => Ok(buffer),
                    Outcome::Sent => Err(io::Error::other("MPI sent where it was to receive")),
                });
                connection.incoming.received((message, slot), buffer, &connection.link, &mut self.wire);
                self.await_pieces(id);
            }
            (Note::Drained { id }, _) => {
                let Some(connection) = self.connections.get_mut(id) else { return };
                connection.incoming.drained();
                self.await_pieces(id);
            }
        }
    }

    fn packet(&mut self, from: i32, packet: &[u8]) {
        for record in Records(packet) {
            match record {
                Ok(record) => self.record(from, record),
                Err(reason) => {
                    tracing::warn!(rank = from, reason, "refused what a rank sent");
                    return self.fail_rank(from, &format!("it sent {reason}"));
                }
            }
        }
    }

    fn record(&mut self, from: i32, record: Record<'_>) {
        let to = match record {
            Record::Connect { port, from: remote } => return self.visitor(from, remote, port),
            Record::Accept { to, .. } | Record::Refuse { to } | Record::Message { to, .. } => to,
            Record::Credit { to, .. } | Record::Received { to, .. } => to,
            Record::End { to, .. } | Record::Stop { to } => to,
        };
        // Whom the peer has not told yet that it is over still gets words; others are no peer's business.
        let Some(connection) = self.connections.get_mut(to).filter(|c| c.link.rank == from) else { return };
        let (link, wire) = (connection.link, &mut self.wire);
        match record {
            Record::Accept { from: remote, .. } => connection.accepted(remote, wire),
            Record::Refuse { .. } => connection.refused(),
            Record::Message { message, .. } => connection.incoming.message(message, &link, wire),
            Record::Credit { bytes, .. } => connection.outgoing.credited(bytes, &link, wire),
            Record::Received { bytes, .. } => connection.outgoing.received(bytes, &link, wire),
            Record::End { orderly, pieces, .. } => connection.incoming.end(orderly, pieces),
            Record::Stop { .. } => connection.outgoing.stop(&link, wire),
            Record::Connect { .. } => {}
        }
        self.await_pieces(to);
        self.retire(to);
    }

    fn visitor(&mut self, rank: i32, remote: u32, port: u32) {
        let arrivals = self.listeners.get_mut(&port).filter(|arrivals| arrivals.waiting.len() < BACKLOG);
        let accepted = arrivals.and_then(|arrivals| {
            let id = self.connections.insert_with(|id| Connection::accepting(Link { id, rank, remote }))?;
            arrivals.waiting.push_back(Link { id, rank, remote });
            if let Some(waker) = arrivals.waker.take() {
                waker.wake();
            }
            Some(id)
        });
        let answer = match accepted {
            Some(id) => Record::Accept { to: remote, from: id },
            None => Record::Refuse { to: remote },
        };
        self.wire.put(rank, &answer);
    }

    /// Looks for pieces for a connection from now on, if it lacks any.
    pub(super) fn await_pieces(&mut self, id: u32) {
        if let Some(connection) = self.connections.get_mut(id)
            && connection.incoming.lacks_pieces()
            && !std::mem::replace(&mut connection.incoming.listed, true)
        {
            self.awaiting.push(id);
        }
    }

    pub(super) fn retire(&mut self, id: u32) {
        if self.connections.get_mut(id).is_some_and(|connection| connection.is_over()) {
            self.connections.remove(id);
        }
    }

    pub(super) fn expect_packet(&mut self, buffer: AlignedBuffer) -> io::Result<()> {
        self.wire.fabric.receive_any(buffer, PACKETS, Note::Arrival)
    }

    pub(super) fn fail_rank(&mut self, rank: i32, why: &str) {
        for id in self.connections.ids() {
            if let Some(connection) = self.connections.get_mut(id)
                && connection.link.rank == rank
            {
                connection.sever(&Failure::lost(io::ErrorKind::ConnectionAborted, why.to_owned()));
                self.retire(id);
            }
        }
    }

    pub(super) fn fail_all(&mut self, why: &str) {
        tracing::error!(why, "MPI failed");
        let failure = Failure::lost(io::ErrorKind::ConnectionAborted, why.to_owned());
        self.failed.get_or_insert(failure.clone());
        for id in self.connections.ids() {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.sever(&failure);
                self.retire(id);
            }
        }
    }
}
