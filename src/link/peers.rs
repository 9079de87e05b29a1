//! A pool of links to workers, over which results are fetched and put.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rankine_transport::{Address, Connection, Listener, Registry, Secret, Side, compression::Compression};
use tokio::sync::{Mutex, oneshot};

use super::{Inbox, Outbox, open, split};
use crate::{
    Error, Result,
    graph::KeyMap,
    protocol::{FromPeer, Hello, TaskId, ToPeer},
    task::{TaskError, Value},
};

/// Links kept open at most; the least recently used idle ones go first.
const LINKS: usize = 512;

/// What a process needs to reach others and be reached: its transports, the preferred first, and the
/// cluster's secret.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) registry: Arc<Registry>,
    pub(crate) secret: Arc<Secret>,
    pub(crate) compression: Compression,
    /// How long a peer that should say something may be silent before it counts as gone.
    pub(crate) silence: Duration,
}

impl Endpoint {
    /// Connects to a peer, proves the secret and says who this is. Of the peer's addresses, which are
    /// written one after the other with spaces between, the best is taken that reaches it.
    ///
    /// # Errors
    /// If the peer cannot be reached or either side refuses the other.
    pub(crate) async fn connect(&self, addresses: &str, hello: Hello) -> Result<Connection> {
        Ok(self.join(addresses, hello).await?.0)
    }

    /// As [`Self::connect`], and gives who the peer says it is.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn join(&self, addresses: &str, hello: Hello) -> Result<(Connection, Hello)> {
        let all: Vec<Address> = addresses.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let mut refused = None;
        for address in self.registry.within_reach(&all) {
            match self.registry.connect(address).await {
                Ok(connection) => {
                    tracing::info!(peer = %address, of = addresses, "a pair of peers talks over {}", address.scheme());
                    return open(connection, &self.secret, Side::Connecting, hello).await;
                }
                Err(error) => {
                    tracing::info!(peer = %address, %error, "a transport does not reach a peer");
                    refused = Some(error);
                }
            }
        }
        match (refused, all.first()) {
            (Some(error), _) => Err(error.into()),
            (None, Some(address)) => Err(self.registry.unreachable(address).into()),
            (None, None) => Err(Error::Usage("there is no address to connect to".into())),
        }
    }

    /// Listens on `address`.
    ///
    /// # Errors
    /// If it is taken or not this host's.
    pub(crate) async fn listen(&self, address: &str) -> Result<Box<dyn Listener>> {
        Ok(self.registry.listen(&address.parse()?).await?)
    }

    /// Listens on all transports that work here, the preferred first; on TCP at `tcp`, if that is given.
    ///
    /// # Errors
    /// If `tcp` is taken or not this host's, or if no transport works here.
    pub(crate) async fn listen_everywhere(&self, tcp: Option<&str>) -> Result<Vec<Box<dyn Listener>>> {
        let mut listeners = Vec::new();
        let mut missing = Vec::new();
        for transport in self.registry.transports() {
            let scheme = transport.scheme();
            let address = match (tcp, scheme) {
                (Some(address), "tcp") => {
                    listeners.push(self.listen(address).await?);
                    continue;
                }
                // Queue pairs meet over a socket, which may stay on the machine as well.
                (Some(address), "verbs") if address.starts_with("tcp://127.") => {
                    Address::new("verbs", "127.0.0.1:0")
                }
                _ => transport.anywhere(),
            };
            let listened = match transport.survey() {
                Ok(_) => transport.listen(&address).await.map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            match listened {
                Ok(listener) => listeners.push(listener),
                Err(reason) => {
                    tracing::info!(reason, "does not listen on {scheme}://");
                    missing.push(format!("{scheme}: {reason}"));
                }
            }
        }
        if listeners.is_empty() {
            return Err(Error::Usage(format!("none of the transports works here: {}", missing.join("; "))));
        }
        Ok(listeners)
    }

    /// Takes a visitor in.
    ///
    /// # Errors
    /// If either side refuses the other.
    pub(crate) async fn welcome(&self, connection: Connection) -> Result<(Connection, Hello)> {
        self.welcome_as(Hello::Peer, connection).await
    }

    /// As [`Self::welcome`], by somebody particular.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn welcome_as(&self, me: Hello, visitor: Connection) -> Result<(Connection, Hello)> {
        open(visitor, &self.secret, Side::Accepting, me).await
    }
}

/// What a worker answers to one request.
type Reply = Result<ToPeer>;

/// Links to workers by address, made when first needed.
pub(crate) struct Peers {
    endpoint: Endpoint,
    links: RefCell<HashMap<Arc<str>, Rc<Link>>>,
    most: usize,
    clock: Cell<u64>,
}

struct Link {
    /// Made once; held while connecting, so that nobody connects twice.
    outbox: Mutex<Option<Outbox<FromPeer>>>,
    pending: RefCell<KeyMap<u64, oneshot::Sender<Reply>>>,
    next: Cell<u64>,
    used: Cell<u64>,
}

impl Peers {
    /// A pool without links.
    pub(crate) fn new(endpoint: Endpoint) -> Rc<Self> {
        Self::with_at_most(LINKS, endpoint)
    }

    fn with_at_most(most: usize, endpoint: Endpoint) -> Rc<Self> {
        Rc::new(Self { endpoint, links: RefCell::default(), most, clock: Cell::new(0) })
    }

    /// Asks the worker at `address` for results, in one request.
    ///
    /// # Errors
    /// If it cannot be reached or leaves before it answers.
    pub(crate) async fn get(
        self: &Rc<Self>,
        address: &Arc<str>,
        ids: Vec<TaskId>,
    ) -> Result<Vec<Option<Result<Value, TaskError>>>> {
        let expected = ids.len();
        match self.ask(address, |request| FromPeer::Get { request, ids }).await? {
            ToPeer::Data { data, .. } if data.len() == expected => Ok(data),
            _ => Err(self.malformed(address)),
        }
    }

    /// Puts data on the worker at `address`; gives the bytes each value occupies there.
    ///
    /// # Errors
    /// If it cannot be reached, leaves, or a value cannot be sent there.
    pub(crate) async fn put(
        self: &Rc<Self>,
        address: &Arc<str>,
        data: Vec<(TaskId, Value)>,
    ) -> Result<Vec<u64>> {
        let expected = data.len();
        let link = self.link(address).await?;
        let carries = link.outbox.lock().await.as_ref().is_some_and(|o| o.carries_objects);
        let data = if carries {
            data
        } else {
            data.into_iter().map(|(id, value)| Ok((id, value.to_wire()?))).collect::<Result<_>>()?
        };
        match self.ask(address, |request| FromPeer::Put { request, data }).await? {
            ToPeer::Stored { nbytes, .. } if nbytes.len() == expected => Ok(nbytes),
            _ => Err(self.malformed(address)),
        }
    }

    /// Sends a result to the worker at `address`, whose tasks wait for it. It is not told whether it came: whoever does
    /// not get it fetches it.
    pub(crate) fn forward(self: &Rc<Self>, address: &Arc<str>, id: TaskId, value: Value) {
        let send = move |outbox: &Outbox<FromPeer>, value: Value| {
            // What cannot leave the process is asked for, and why is told then.
            let value = if outbox.carries_objects { Some(value) } else { value.to_wire().ok() };
            value.into_iter().for_each(|value| outbox.put(FromPeer::Forward(vec![(id, value)])));
        };
        let known = self.links.borrow().get(address).cloned();
        if let Some(link) = known
            && let Ok(outbox) = link.outbox.try_lock()
            && let Some(outbox) = &*outbox
        {
            return send(outbox, value);
        }
        let (peers, address) = (self.clone(), address.clone());
        tokio::task::spawn_local(async move {
            match peers.link(&address).await {
                Ok(link) => link.outbox.lock().await.iter().for_each(|outbox| send(outbox, value.clone())),
                Err(error) => tracing::debug!(%error, "cannot forward a result to a peer"),
            }
        });
    }

    /// Bytes of other processes' memory that are mapped in this one.
    pub(crate) fn borrowed(&self) -> u64 {
        self.endpoint.registry.borrowed()
    }

    fn malformed(&self, address: &Arc<str>) -> Error {
        Error::Refused { peer: address.to_string(), reason: "its answer does not fit the request".into() }
    }

    async fn ask(self: &Rc<Self>, address: &Arc<str>, make: impl FnOnce(u64) -> FromPeer) -> Reply {
        let link = self.link(address).await?;
        let request = link.next.replace(link.next.get() + 1);
        let (tell, told) = oneshot::channel();
        link.pending.borrow_mut().insert(request, tell);
        match &*link.outbox.lock().await {
            Some(outbox) => outbox.put(make(request)),
            None => return Err(Error::closed(format!("the link to {address} broke"))),
        }
        told.await.unwrap_or_else(|_| Err(Error::closed(format!("{address} left before it answered"))))
    }

    async fn link(self: &Rc<Self>, address: &Arc<str>) -> Result<Rc<Link>> {
        let now = self.clock.replace(self.clock.get() + 1);
        let known = self.links.borrow().get(address).cloned();
        let link = known.unwrap_or_else(|| {
            self.make_room();
            let link = Rc::new(Link {
                outbox: Mutex::new(None),
                pending: RefCell::default(),
                next: Cell::new(0),
                used: Cell::new(now),
            });
            self.links.borrow_mut().insert(address.clone(), link.clone());
            link
        });
        link.used.set(now);
        let mut outbox = link.outbox.lock().await;
        if outbox.is_none() {
            match self.endpoint.connect(address, Hello::Peer).await {
                Ok(connection) => {
                    let (to, from) = split::<FromPeer, ToPeer>(connection, self.endpoint.compression);
                    *outbox = Some(to);
                    tokio::task::spawn_local(answers(
                        Rc::downgrade(self),
                        link.clone(),
                        address.clone(),
                        from,
                    ));
                }
                Err(error) => {
                    self.links.borrow_mut().remove(address);
                    return Err(error);
                }
            }
        }
        drop(outbox);
        Ok(link)
    }

    /// A worker is gone, whatever its link says: who waits for its answers waits no more.
    pub(crate) fn give_up(&self, address: &Arc<str>) {
        let Some(link) = self.links.borrow_mut().remove(address) else { return };
        for (_, asker) in link.pending.borrow_mut().drain() {
            let _ = asker.send(Err(Error::closed(format!("{address} is gone"))));
        }
        if let Ok(outbox) = link.outbox.try_lock()
            && let Some(outbox) = &*outbox
        {
            outbox.close();
        }
    }

    /// Closes the least recently used idle link when there are too many.
    fn make_room(&self) {
        let mut links = self.links.borrow_mut();
        if links.len() < self.most {
            return;
        }
        let idle = links.iter().filter(|(_, link)| link.pending.borrow().is_empty());
        let Some(oldest) = idle.min_by_key(|(_, link)| link.used.get()).map(|(a, _)| a.clone()) else {
            return;
        };
        if let Some(link) = links.remove(&oldest)
            && let Ok(outbox) = link.outbox.try_lock()
            && let Some(outbox) = &*outbox
        {
            outbox.close();
        }
    }

    /// Closes every link.
    pub(crate) fn close(&self) {
        for (_, link) in self.links.borrow_mut().drain() {
            if let Ok(outbox) = link.outbox.try_lock()
                && let Some(outbox) = &*outbox
            {
                outbox.close();
            }
        }
    }
}

/// Hands answers to those who asked, until the link ends; who still waits then is told so.
async fn answers(pool: std::rc::Weak<Peers>, link: Rc<Link>, address: Arc<str>, mut from: Inbox<ToPeer>) {
    let reason = loop {
        match from.recv().await {
            Ok(Some(answers)) => {
                for answer in answers {
                    let (ToPeer::Data { request, .. } | ToPeer::Stored { request, .. }) = &answer;
                    if let Some(asker) = link.pending.borrow_mut().remove(request) {
                        let _ = asker.send(Ok(answer));
                    }
                }
            }
            Ok(None) => break "it left".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    if let Some(pool) = pool.upgrade() {
        let mut links = pool.links.borrow_mut();
        if links.get(&address).is_some_and(|current| Rc::ptr_eq(current, &link)) {
            links.remove(&address);
        }
    }
    *link.outbox.lock().await = None;
    for (_, asker) in link.pending.borrow_mut().drain() {
        let _ = asker.send(Err(Error::closed(format!("{address}: {reason}"))));
    }
}

#[cfg(test)]
mod tests {
    use rankine_transport_inproc::Inproc;
    use tokio::task::LocalSet;

    use super::*;
    use crate::link::take_visitors;

    fn endpoint(registry: Registry) -> Endpoint {
        let (registry, secret) = (Arc::new(registry), Arc::new(Secret::random()));
        Endpoint { registry, secret, compression: Compression::Auto, silence: Duration::from_secs(30) }
    }

    /// A peer that has nothing, and counts who comes.
    async fn peer(endpoint: Endpoint) -> (Arc<str>, Rc<Cell<usize>>) {
        let listener = endpoint.listen("inproc://*").await.unwrap();
        let address = listener.address().as_str().into();
        let came = Rc::new(Cell::new(0));
        let count = came.clone();
        let serve = move |connection| {
            let endpoint = endpoint.clone();
            count.set(count.get() + 1);
            async move {
                let connection = endpoint.welcome(connection).await?.0;
                let (to, mut from) = split::<ToPeer, FromPeer>(connection, Compression::Off);
                while let Some(requests) = from.recv().await? {
                    for request in requests {
                        let FromPeer::Get { request, ids } = request else { continue };
                        to.put(ToPeer::Data { request, data: vec![None; ids.len()] });
                    }
                }
                to.close();
                Ok(())
            }
        };
        tokio::task::spawn_local(take_visitors(listener, serve));
        (address, came)
    }

    #[test]
    fn who_waits_for_a_silent_worker_is_told_when_it_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let endpoint = endpoint(Registry::new().with(Inproc));
            let listener = endpoint.listen("inproc://*").await.unwrap();
            let address: Arc<str> = listener.address().as_str().into();
            let silent = endpoint.clone();
            let serve = move |connection| {
                let silent = silent.clone();
                async move {
                    let _connection = silent.welcome(connection).await?;
                    std::future::pending().await
                }
            };
            tokio::task::spawn_local(take_visitors(listener, serve));
            let pool = Peers::new(endpoint);
            let (asked, there) = (pool.clone(), address.clone());
            let mut asking =
                tokio::task::spawn_local(async move { asked.get(&there, vec![TaskId(1)]).await });
            let early = tokio::time::timeout(Duration::from_millis(50), &mut asking).await;
            assert!(early.is_err(), "it waits");
            pool.give_up(&address);
            let told = asking.await.unwrap().unwrap_err().to_string();
            assert!(told.contains("is gone"), "{told}");
        });
    }

    #[test]
    fn links_are_kept_and_the_least_recently_used_go_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let registry = Registry::new().with(Inproc);
            let endpoint = endpoint(registry);
            let mut all = vec![];
            for _ in 0..3 {
                all.push(peer(endpoint.clone()).await);
            }
            let pool = Peers::with_at_most(2, endpoint);
            let ask = async |n: usize| {
                assert_eq!(pool.get(&all[n].0, vec![TaskId(1)]).await.unwrap().len(), 1);
            };
            let came = || all.iter().map(|(_, came)| came.get()).collect::<Vec<_>>();
            for n in [0, 1, 0, 1, 0] {
                ask(n).await;
            }
            assert_eq!(came(), [1, 1, 0], "a link is made once");
            ask(2).await;
            assert_eq!(pool.links.borrow().len(), 2);
            ask(0).await;
            assert_eq!(came(), [1, 1, 1], "1 was used least recently, so its link went");
            ask(1).await;
            assert_eq!(came(), [1, 2, 1]);
        });
    }

    #[test]
    fn a_peer_that_is_not_there_is_an_error_each_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let registry = Registry::new().with(Inproc);
            let endpoint = endpoint(registry);
            let pool = Peers::new(endpoint);
            for _ in 0..2 {
                assert!(pool.get(&"inproc://nobody".into(), vec![TaskId(1)]).await.is_err());
                assert!(pool.links.borrow().is_empty());
            }
        });
    }
}
