//! `inproc://`: connections within a process. Messages change hands as they are: frames by
//! reference, values ([`Message::object`]) themselves; the cost does not depend on their size.
//!
//! A listener's name is free again once the listener is dropped; `inproc://*` picks a new one. Each
//! direction holds at most 128 messages, then its sender is not ready.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    io,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use futures::future::BoxFuture;
use rankine_transport::{
    Address, Connection, Error, Limits, Listener, Message, Receiver, Result, Sender, Transport,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Messages a direction holds.
const CAPACITY: usize = 128;

/// The transport.
#[derive(Debug, Default, Clone, Copy)]
pub struct Inproc;

static LISTENERS: Mutex<Option<HashMap<String, UnboundedSender<Connection>>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unique(prefix: &str) -> Address {
    // Told from those of other processes: an address may travel to where it does not reach.
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    Address::new("inproc", format_args!("{prefix}{:016x}-{count}", *PROCESS))
}

impl Transport for Inproc {
    fn scheme(&self) -> &'static str {
        "inproc"
    }

    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let address = if address.place() == "*" { unique("") } else { address.clone() };
            let mut listeners = lock(&LISTENERS);
            let listeners = listeners.get_or_insert_default();
            if listeners.contains_key(address.place()) {
                let source = io::Error::new(io::ErrorKind::AddrInUse, "the name is taken in this process");
                return Err(Error::Listen { address, source });
            }
            let (visitors, arrivals) = unbounded_channel();
            listeners.insert(address.place().to_owned(), visitors);
            Ok(Box::new(InprocListener { address, arrivals }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async move {
            let nobody = || {
                let source =
                    io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there in this process");
                Error::Connect { address: address.clone(), source }
            };
            let listener = lock(&LISTENERS).as_ref().and_then(|l| l.get(address.place()).cloned());
            let listener = listener.ok_or_else(nobody)?;
            let here = unique("client-");
            let (there, back) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
            let ours = connection(&there, &back, &here, address);
            let theirs = connection(&back, &there, address, &here);
            listener.send(theirs).map_err(|_| nobody())?;
            Ok(ours)
        })
    }

    fn survey(&self) -> Result<Vec<String>, String> {
        Ok(vec!["within a process; values themselves change hands".into()])
    }

    fn reaches(&self, address: &Address) -> bool {
        let known = |listeners: &HashMap<String, _>| listeners.contains_key(address.place());
        address.scheme() == "inproc" && lock(&LISTENERS).as_ref().is_some_and(known)
    }
}

fn connection(out: &Arc<Pipe>, back: &Arc<Pipe>, local: &Address, peer: &Address) -> Connection {
    Connection {
        sender: Box::new(InprocSender { pipe: out.clone(), peer: peer.clone() }),
        receiver: Box::new(InprocReceiver {
            pipe: back.clone(),
            peer: peer.clone(),
            limits: Limits::HANDSHAKE,
        }),
        local: local.clone(),
        peer: peer.clone(),
        carries_objects: true,
    }
}

struct InprocListener {
    address: Address,
    arrivals: UnboundedReceiver<Connection>,
}

impl Listener for InprocListener {
    fn address(&self) -> &Address {
        &self.address
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        match ready!(self.arrivals.poll_recv(cx)) {
            Some(connection) => Poll::Ready(Ok(connection)),
            // The table holds a sender as long as the listener lives.
            None => Poll::Pending,
        }
    }
}

impl Drop for InprocListener {
    fn drop(&mut self) {
        if let Some(listeners) = &mut *lock(&LISTENERS) {
            listeners.remove(self.address.place());
        }
    }
}

/// One direction.
#[derive(Default)]
struct Pipe(Mutex<State>);

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    /// The sender closed in order.
    closed: bool,
    sender_gone: bool,
    receiver_gone: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

struct InprocSender {
    pipe: Arc<Pipe>,
    peer: Address,
}

impl InprocSender {
    fn check(&self, state: &State) -> Result<()> {
        let gone = |what| Err(Error::lost(&self.peer, io::Error::new(io::ErrorKind::BrokenPipe, what)));
        match (state.receiver_gone, state.closed) {
            (true, _) => gone("it is gone"),
            (_, true) => gone("this direction was closed"),
            _ => Ok(()),
        }
    }
}

impl Sender for InprocSender {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = lock(&self.pipe.0);
        self.check(&state)?;
        if state.messages.len() < CAPACITY {
            return Poll::Ready(Ok(()));
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(&mut self, message: Message) -> Result<()> {
        let mut state = lock(&self.pipe.0);
        self.check(&state)?;
        state.messages.push_back(message);
        let waker = state.receiver.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        // A message is the receiver's as soon as it is sent.
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = lock(&self.pipe.0);
        state.closed = true;
        let waker = state.receiver.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl Drop for InprocSender {
    fn drop(&mut self) {
        let mut state = lock(&self.pipe.0);
        state.sender_gone = true;
        let waker = state.receiver.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

struct InprocReceiver {
    pipe: Arc<Pipe>,
    peer: Address,
    limits: Limits,
}

impl Receiver for InprocReceiver {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>>> {
        let mut state = lock(&self.pipe.0);
        if let Some(message) = state.messages.pop_front() {
            let waker = state.sender.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
            let payload: u64 = message.frames.iter().map(|f| f.len() as u64).sum();
            let too_much = message.head.len() as u64 > self.limits.head
                || message.frames.len() as u64 > self.limits.frames
                || payload > self.limits.payload
                || (message.object.is_some() && self.limits == Limits::HANDSHAKE);
            return Poll::Ready(if too_much {
                Err(Error::protocol(&self.peer, "a message beyond the limits of this connection"))
            } else {
                Ok(Some(message))
            });
        }
        if state.closed {
            return Poll::Ready(Ok(None));
        }
        if state.sender_gone {
            let source = io::Error::new(io::ErrorKind::UnexpectedEof, "it went without closing");
            return Poll::Ready(Err(Error::lost(&self.peer, source)));
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
}

impl Drop for InprocReceiver {
    fn drop(&mut self) {
        let mut state = lock(&self.pipe.0);
        state.receiver_gone = true;
        let dropped = std::mem::take(&mut state.messages);
        let waker = state.sender.take();
        drop(state);
        drop(dropped);
        waker.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    rankine_transport::conformance_suite!(Inproc, "inproc://*");

    #[tokio::test]
    async fn frames_and_values_change_hands_untouched() {
        let mut listener = Inproc.listen(&"inproc://*".parse().unwrap()).await.unwrap();
        let mut ours = Inproc.connect(&listener.address().clone()).await.unwrap();
        let mut theirs = listener.accept().await.unwrap();
        theirs.receiver.set_limits(Limits::PEER);
        let frame = bytes::Bytes::from(vec![1; 1 << 20]);
        ours.sender.send(Message::new("", vec![frame.clone()])).await.unwrap();
        let lock = Arc::new(Mutex::new(5));
        ours.sender.send(Message::object(lock.clone())).await.unwrap();
        let got = theirs.receiver.recv().await.unwrap().unwrap();
        assert_eq!(got.frames[0].as_ptr(), frame.as_ptr());
        let got = theirs.receiver.recv().await.unwrap().unwrap().object.unwrap();
        assert!(Arc::ptr_eq(&lock, got.downcast_ref().unwrap()));
    }
}
