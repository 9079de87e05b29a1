//! Typed links between roles over any transport: batches of messages, and who may open one.
//!
//! Within a process a batch changes hands as it is; between processes it is encoded once, with
//! big buffers out of band. Nothing here knows what the messages mean.

mod packing;
mod peers;
mod session;
mod spin;

use std::{
    cell::{Cell, RefCell},
    io,
    marker::PhantomData,
    rc::Rc,
    time::{Duration, Instant},
};

use packing::{NOTHING_PACKED, Packer, Unpacked, unpack};
use rankine_transport::{
    Address, Connection, Listener, Message, Receiver, Secret, Sender, Side, authenticate,
    compression::Compression,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Notify, task::JoinHandle};

pub(crate) use packing::traffic;
pub(crate) use peers::{Endpoint, Peers};
pub(crate) use session::{Kept, Upstream};
pub(crate) use spin::{expecting, spin};

use crate::{
    Error, Result,
    protocol::{Hello, Opening},
    serialize::{Decoder, Encoder},
    task::build_id,
};

/// Messages encoded together at most, so that no head grows beyond some MiB.
const BATCH: usize = 4096;
/// What a peer has to say who it is.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// The version of Rankine, and of the messages that observers understand.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Proves the secret and exchanges openings; gives the connection and who the peer is.
///
/// # Errors
/// If the peer does not share the secret, runs another executable, or says nothing in time.
pub(crate) async fn open(
    mut connection: Connection,
    secret: &Secret,
    side: Side,
    hello: Hello,
) -> Result<(Connection, Hello)> {
    authenticate(&mut connection, secret, side).await?;
    let peer = connection.peer.to_string();
    let observes = matches!(hello, Hello::Observer { .. });
    let mine = Opening { build: build_id().to_owned(), hello };
    let exchange = async {
        connection.sender.send(encode(vec![mine], connection.carries_objects)?).await?;
        match connection.receiver.recv().await? {
            // Nobody compresses an opening.
            Some(message) => match unpack(message) {
                Ok(Unpacked::Now(message)) => decode::<Opening>(message, &peer),
                _ => Err(Error::Refused { peer: peer.clone(), reason: "its opening is malformed".into() }),
            },
            None => Err(Error::closed(format!("{peer} left without a word"))),
        }
    };
    let opening = match tokio::time::timeout(OPENING_TIMEOUT, exchange).await {
        Ok(opening) => opening?,
        Err(_) => {
            let reason = format!("it did not say who it is within {OPENING_TIMEOUT:?}");
            return Err(Error::Refused { peer, reason });
        }
    };
    let [Opening { build, hello }] = <[Opening; 1]>::try_from(opening)
        .map_err(|_| Error::Refused { peer: peer.clone(), reason: "its opening is malformed".into() })?;
    if let Hello::Observer { version } = &hello {
        if *version != VERSION {
            let reason =
                format!("it is of version {version} of Rankine, here is {VERSION}; take the one that fits");
            return Err(Error::Refused { peer, reason });
        }
    } else if build != build_id() && !observes {
        let reason = format!(
            "it runs another executable (build {build}, here {}); start all ranks from the same file",
            build_id()
        );
        return Err(Error::Refused { peer, reason });
    }
    Ok((connection, hello))
}

/// Takes visitors in, each served by itself, for ever: what goes wrong with one is no other's business.
pub(crate) async fn take_visitors<Served>(
    mut listener: Box<dyn Listener>,
    serve: impl Fn(Connection) -> Served,
) where
    Served: Future<Output = Result<()>> + 'static,
{
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let peer = connection.peer.clone();
                let served = serve(connection);
                tokio::task::spawn_local(async move {
                    if let Err(error) = served.await {
                        tracing::info!(%peer, %error, "a visitor's link ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Splits an opened connection into where to put messages and where they come from.
pub(crate) fn split<Out, In>(connection: Connection, compression: Compression) -> (Outbox<Out>, Inbox<In>)
where
    Out: Serialize + Send + 'static,
    In: DeserializeOwned + Send + 'static,
{
    let carries_objects = connection.carries_objects;
    let queue = Rc::new(Queue {
        waiting: RefCell::new(Vec::new()),
        closing: Cell::new(false),
        broken: Cell::new(false),
        changed: Notify::new(),
        taken: Notify::new(),
        flushed: Notify::new(),
    });
    let packer = (!carries_objects).then(|| Packer::new(compression, &connection.peer));
    tokio::task::spawn_local(write(queue.clone(), connection.sender, packer));
    let inbox = Inbox {
        receiver: connection.receiver,
        peer: connection.peer,
        unpacking: None,
        unread: None,
        messages: PhantomData,
    };
    (Outbox { queue, carries_objects }, inbox)
}

struct Queue<M> {
    waiting: RefCell<Vec<M>>,
    /// No more is put; what waits is still sent.
    closing: Cell<bool>,
    /// Nothing can be sent any more.
    broken: Cell<bool>,
    changed: Notify,
    /// Told whenever what waited is about to be sent.
    taken: Notify,
    flushed: Notify,
}

/// Where to put messages for a peer. What is put in one turn of the loop travels together.
pub(crate) struct Outbox<M> {
    queue: Rc<Queue<M>>,
    /// Whether values travel as they are.
    pub(crate) carries_objects: bool,
}

impl<M> Clone for Outbox<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), carries_objects: self.carries_objects }
    }
}

impl<M> Outbox<M> {
    /// Puts a message. Without effect once the link is closed or broken; the inbox tells that.
    pub(crate) fn put(&self, message: M) {
        if self.queue.closing.get() || self.queue.broken.get() {
            return;
        }
        let mut waiting = self.queue.waiting.borrow_mut();
        waiting.push(message);
        if waiting.len() == 1 {
            self.queue.changed.notify_one();
        }
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.queue.broken.get()
    }

    /// Waits until all that was put is being sent, or nothing can be sent any more. Cancel safe.
    pub(crate) async fn drained(&self) {
        while !self.queue.waiting.borrow().is_empty() && !self.queue.broken.get() {
            self.queue.taken.notified().await;
        }
    }

    /// Sends what waits, then closes this direction.
    pub(crate) fn close(&self) {
        self.queue.closing.set(true);
        self.queue.changed.notify_one();
    }

    /// Waits until all is sent and closed, or cannot be.
    pub(crate) async fn closed(&self) {
        self.close();
        while !self.queue.broken.get() {
            self.queue.flushed.notified().await;
        }
    }
}

async fn write<M: Serialize + Send + 'static>(
    queue: Rc<Queue<M>>,
    mut sender: Box<dyn Sender>,
    mut packer: Option<Packer>,
) {
    loop {
        let mut batch = std::mem::take(&mut *queue.waiting.borrow_mut());
        if batch.is_empty() {
            if queue.closing.get() {
                let _ = sender.close().await;
                break;
            }
            queue.changed.notified().await;
            continue;
        }
        queue.taken.notify_waiters();
        spin::active();
        let mut sent = Ok(());
        while sent.is_ok() && !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(BATCH));
            sent = match encode(batch, packer.is_none()) {
                Ok(message) => send(&mut *sender, &mut packer, message).await,
                Err(error) => Err(error),
            };
            batch = rest;
        }
        if let Err(error) = sent {
            tracing::debug!(%error, "a link broke while sending");
            break;
        }
    }
    queue.broken.set(true);
    queue.waiting.borrow_mut().clear();
    queue.taken.notify_waiters();
    queue.flushed.notify_waiters();
    queue.flushed.notify_one();
}

async fn send(
    sender: &mut (dyn Sender + 'static),
    packer: &mut Option<Packer>,
    message: Message,
) -> Result<()> {
    let Some(packer) = packer else { return Ok(sender.send(message).await?) };
    let message = packer.pack(message).await;
    let (nbytes, start) = (message.nbytes(), Instant::now());
    sender.send(message).await?;
    packer.sent(nbytes, start);
    Ok(())
}

/// Where a peer's messages come from.
pub(crate) struct Inbox<M> {
    receiver: Box<dyn Receiver>,
    peer: Address,
    /// The message that came last, while its frames are decompressed.
    unpacking: Option<JoinHandle<io::Result<Message>>>,
    /// Messages that were looked at and are to come once more.
    unread: Option<Vec<M>>,
    messages: PhantomData<fn() -> M>,
}

impl<M: DeserializeOwned + Send + 'static> Inbox<M> {
    /// The next messages, at least one; `None` once the peer closed in order. Cancel safe.
    ///
    /// # Errors
    /// If the link broke or the peer sent what cannot be read.
    pub(crate) async fn recv(&mut self) -> Result<Option<Vec<M>>> {
        if let Some(messages) = self.unread.take() {
            return Ok(Some(messages));
        }
        if self.unpacking.is_none() {
            let Some(message) = self.receiver.recv().await? else { return Ok(None) };
            match unpack(message).map_err(|reason| self.refused(reason))? {
                Unpacked::Now(message) => return decode(message, self.peer.as_str()).map(Some),
                Unpacked::Soon(work) => self.unpacking = Some(work),
            }
        }
        let Some(work) = &mut self.unpacking else { return Ok(None) };
        let done = work.await;
        self.unpacking = None;
        let message =
            done.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|reason| self.refused(reason))?;
        decode(message, self.peer.as_str()).map(Some)
    }

    /// Puts messages back: they come next.
    pub(crate) fn unread(&mut self, messages: Vec<M>) {
        self.unread = Some(messages);
    }

    fn refused(&self, reason: impl std::fmt::Display) -> Error {
        Error::Refused { peer: self.peer.to_string(), reason: reason.to_string() }
    }
}

fn encode<M: Serialize + Send + 'static>(batch: Vec<M>, objects: bool) -> Result<Message> {
    if objects {
        return Ok(Message::object(batch));
    }
    let mut encoder = Encoder::default();
    let unwritable = |source| Error::Message { peer: "this process".into(), source };
    encoder.encode(&batch).map_err(unwritable)?;
    encoder.encode(&NOTHING_PACKED).map_err(unwritable)?;
    let (head, frames) = encoder.finish();
    Ok(Message::new(head, frames))
}

fn decode<M: DeserializeOwned + Send + 'static>(message: Message, peer: &str) -> Result<Vec<M>> {
    if let Some(object) = message.object {
        return object.downcast::<Vec<M>>().map(|batch| *batch).map_err(|_| Error::Refused {
            peer: peer.into(),
            reason: "it sent messages of another role".into(),
        });
    }
    let unreadable = |source| Error::Message { peer: peer.into(), source };
    let mut decoder = Decoder::new(&message.head, message.frames);
    let batch = decoder.decode().map_err(unreadable)?;
    decoder.finish().map_err(unreadable)?;
    Ok(batch)
}
