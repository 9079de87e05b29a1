//! What a user of a connection holds: handles that reach the engine by a number.

use std::{
    io,
    task::{Context, Poll},
};

use rankine_transport::{Address, Connection, Error, Limits, Listener, Message, Receiver, Result, Sender};

use crate::{
    connection::Half, engine::Engine, failure::Failure, local, local::World, place::Place, progress,
    wire::Link,
};

/// A connection's two ends, as the traits want them.
pub(crate) fn connection(id: u32, local: Address, peer: Address) -> Connection {
    Connection {
        sender: Box::new(MpiSender { id, peer: peer.clone() }),
        receiver: Box::new(MpiReceiver { id, peer: peer.clone() }),
        local,
        peer,
        carries_objects: false,
    }
}

/// Who is at the end of a connection that does not listen: `<world>/<rank>#<number>`.
pub(crate) fn visitor(world: &World, rank: i32, id: u32) -> Address {
    Address::new("mpi", format_args!("{:016x}/{rank}#{id}", world.token))
}

/// Works with the engine, whose progress task is there.
fn poll<T>(peer: &Address, work: impl FnOnce(&mut Engine) -> Poll<Result<T, Failure>>) -> Poll<Result<T>> {
    let polled = local::with(|engine| {
        progress::ensure(&mut engine.progressing).map_err(io::Error::other)?;
        Ok(work(engine))
    });
    match polled.and_then(|polled| polled) {
        Ok(polled) => polled.map_err(|failure| failure.of(peer)),
        Err(error) => Poll::Ready(Err(Error::lost(peer, error))),
    }
}

struct MpiSender {
    id: u32,
    peer: Address,
}

impl Sender for MpiSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        poll(&self.peer, |engine| engine.poll_ready(self.id, cx))
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        if message.object.is_some() {
            return Err(Error::Object { peer: self.peer.clone() });
        }
        let started = local::with(|engine| engine.start_send(self.id, message));
        started.map_err(|error| Error::lost(&self.peer, error))?.map_err(|failure| failure.of(&self.peer))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        poll(&self.peer, |engine| engine.poll_flush(self.id, cx))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        poll(&self.peer, |engine| engine.poll_close(self.id, cx))
    }
}

impl Drop for MpiSender {
    fn drop(&mut self) {
        local::drop_half(self.id, Half::Sender);
    }
}

struct MpiReceiver {
    id: u32,
    peer: Address,
}

impl Receiver for MpiReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        poll(&self.peer, |engine| engine.poll_recv(self.id, cx))
    }

    fn set_limits(&mut self, limits: Limits) {
        // On another thread the next call tells what is wrong; until then the limits stay as narrow as they were.
        let _ = local::with(|engine| engine.set_limits(self.id, limits));
    }
}

impl Drop for MpiReceiver {
    fn drop(&mut self) {
        local::drop_half(self.id, Half::Receiver);
    }
}

/// A port of this rank.
pub(crate) struct MpiListener {
    place: Place,
    address: Address,
    world: &'static World,
}

impl MpiListener {
    pub(crate) fn new(place: Place, world: &'static World) -> Self {
        Self { place, address: Address::new("mpi", place), world }
    }
}

impl Listener for MpiListener {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        let polled = poll(&self.address, |engine| engine.poll_accept(self.place.port, cx).map(Ok));
        polled.map_ok(|Link { id, rank, remote }| {
            connection(id, self.address.clone(), visitor(self.world, rank, remote))
        })
    }
}

impl Drop for MpiListener {
    fn drop(&mut self) {
        let _ = local::with(|engine| engine.close_port(self.place.port));
    }
}
