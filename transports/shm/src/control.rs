//! The socket beside the messages: what was lent, read and returned.

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use rustix::net::Shutdown;
use tokio::{io::Interest, net::UnixStream};

use crate::{
    ledger::{Ended, Ledger, RECORD, Record},
    socket,
};

/// What both halves of a connection share. When both are gone, so is the account between the two sides.
pub(crate) struct Account {
    pub(crate) ledger: Arc<Ledger>,
    control: Arc<UnixStream>,
}

impl Account {
    /// Opens the account, kept by a task of the runtime as long as a half of the connection lives.
    pub(crate) fn open(control: UnixStream) -> Arc<Self> {
        let (ledger, control) = (Arc::<Ledger>::default(), Arc::new(control));
        tokio::spawn(keep(ledger.clone(), control.clone()));
        Arc::new(Self { ledger, control })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _ = self.ledger.tell_all(|records| send(&self.control, records));
        self.ledger.end(Ended::Gone);
        // The other side, and the task of this one, hear the end of it.
        let _ = rustix::net::shutdown(&self.control, Shutdown::Both);
    }
}

fn send(control: &UnixStream, records: &[u8]) -> io::Result<usize> {
    control.try_io(Interest::WRITABLE, || socket::send(control, &[IoSlice::new(records)], &[]))
}

/// Ends the account also where the runtime drops the task.
struct EndWhenDropped(Arc<Ledger>);

impl Drop for EndWhenDropped {
    fn drop(&mut self) {
        self.0.end(Ended::Gone);
    }
}

async fn keep(ledger: Arc<Ledger>, control: Arc<UnixStream>) {
    let _end = EndWhenDropped(ledger.clone());
    let mut incoming = Incoming::default();
    loop {
        let Ok(more) = ledger.tell_all(|records| send(&control, records)) else { return };
        let ready = tokio::select! {
            () = ledger.news.notified(), if !more => continue,
            ready = control.readable() => ready.map(|()| true),
            ready = control.writable(), if more => ready.map(|()| false),
        };
        match ready.and_then(|readable| if readable { incoming.read(&control, &ledger) } else { Ok(()) }) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Records on their way in.
struct Incoming {
    bytes: [u8; 64 * RECORD],
    filled: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { bytes: [0; 64 * RECORD], filled: 0 }
    }
}

impl Incoming {
    fn read(&mut self, control: &UnixStream, ledger: &Ledger) -> io::Result<()> {
        // Descriptors have no business here, and are closed.
        let mut strays = Vec::new();
        let spare = &mut self.bytes[self.filled..];
        let receive = || socket::receive(control, spare, &mut strays);
        let count = control.try_io(Interest::READABLE, receive)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += count;
        let (records, rest) = self.bytes[..self.filled].as_chunks::<RECORD>();
        let rest = rest.len();
        for record in records {
            let heard = Record::read(record).ok_or(Ended::Refused("a record of unknown kind"));
            if let Err(refused) = heard.and_then(|record| ledger.heard(record)) {
                ledger.end(refused);
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        self.bytes.copy_within(self.filled - rest..self.filled, 0);
        self.filled = rest;
        Ok(())
    }
}
