//! The server around a worker's state machine: links, the executor, heartbeats; `giving` serves peers, `memory` its disk.

mod giving;
mod memory;

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rankine_transport::Listener;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time,
};

use super::{
    Config, Instruction, State, Stimulus, Thresholds, executor::Executor, resident::Part, store::Store,
};
use crate::{
    Error, Result,
    graph::KeyMap,
    link::{Endpoint, Inbox, Peers, Upstream, expecting, split, take_visitors, traffic},
    protocol::{FromWorker, Hello, Member, TaskId, ToWorker, WorkerId, WorkerInfo},
    task::{self, TaskError, Value},
};

/// Results read from disk at once: each takes a thread, with a stack that counts where memory is limited.
const READS: usize = 4;
/// How often a worker says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);

/// After so many failures in a row a peer that lives is one that cannot be reached.
const UNREACHED: u32 = 5;
/// A peer that cannot be asked is asked again after this long, and twice as long each time.
const RETRY: Duration = Duration::from_millis(5);

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Its name; made up where `None`.
    pub(crate) name: Option<String>,
    /// Where it listens for peers.
    pub(crate) listen: Listen,
    pub(crate) nthreads: u32,
    pub(crate) memory: Allowance,
    pub(crate) resources: Vec<(String, f64)>,
    /// How long until it has to leave, where that is known.
    pub(crate) lifetime: Option<Duration>,
    /// How long it may take to hand its results over before it goes.
    pub(crate) handover: Duration,
}

/// What a worker may use of memory and disk.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    /// Bytes of memory; 0 for no limit.
    pub(crate) limit: u64,
    pub(crate) thresholds: Thresholds,
    /// Where results go for which memory has no room.
    pub(crate) directory: PathBuf,
    /// Whether the process is the worker's own: then it ends when memory runs out, before the system ends it.
    pub(crate) expendable: bool,
}

/// How a worker came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The whole cluster ended.
    WithAll,
    /// It left, and the others go on.
    Alone,
}

/// How a worker is told to go.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    at_once: Notify,
    in_order: Notify,
}

impl Departure {
    /// Go now; what only this worker holds is lost.
    pub(crate) fn at_once(&self) {
        self.at_once.notify_one();
    }

    /// Start nothing more, and go once others hold the results.
    pub(crate) fn in_order(&self) {
        self.in_order.notify_one();
    }
}

/// Where a worker listens for peers.
#[derive(Debug, Clone)]
pub(crate) enum Listen {
    /// At these addresses.
    At(Vec<String>),
    /// On all transports that work here; over TCP at this address.
    Everywhere { tcp: String },
    /// Where those of the same process reach it.
    Within,
}

impl Listen {
    /// Where somebody listened before, as far as that is a place that others can take.
    pub(crate) fn again(contact: &str) -> Self {
        let addresses: Vec<String> = contact.split_whitespace().map(str::to_owned).collect();
        match addresses.iter().find(|address| address.starts_with("tcp://")) {
            Some(tcp) if addresses.len() > 1 => Self::Everywhere { tcp: tcp.clone() },
            _ => Self::At(addresses),
        }
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// If an address is taken or not this host's, or no transport works here.
    pub(crate) async fn begin(&self, endpoint: &Endpoint) -> Result<Vec<Box<dyn Listener>>> {
        match self {
            Self::At(addresses) => {
                let mut listeners = Vec::new();
                for address in addresses {
                    listeners.push(endpoint.listen(address).await?);
                }
                Ok(listeners)
            }
            Self::Everywhere { tcp } => endpoint.listen_everywhere(Some(tcp)).await,
            Self::Within if endpoint.registry.schemes().any(|scheme| scheme == "inproc") => {
                Ok(vec![endpoint.listen("inproc://*").await?])
            }
            // Whoever rules it out wants to see what another transport makes of the same.
            Self::Within => endpoint.listen_everywhere(Some("tcp://127.0.0.1:0")).await,
        }
    }
}

/// The address that stands for who listens there, and all of them.
pub(crate) fn addresses(listeners: &[Box<dyn Listener>]) -> (Arc<str>, Arc<str>) {
    let all: Vec<&str> = listeners.iter().map(|listener| listener.address().as_str()).collect();
    (all.last().copied().unwrap_or_default().into(), all.join(" ").into())
}

struct Server {
    state: RefCell<State>,
    executor: Executor,
    endpoint: Endpoint,
    scheduler: Upstream<FromWorker>,
    /// Where the scheduler is reached, and under which number it knows this worker.
    contact: String,
    id: Cell<Option<WorkerId>>,
    peers: Rc<Peers>,
    addresses: RefCell<KeyMap<WorkerId, Arc<str>>>,
    /// How often in a row each peer could not be asked.
    unreached: RefCell<KeyMap<WorkerId, u32>>,
    /// When reports that wait for others will be looked after, in nanoseconds since the start.
    alarm: Cell<Option<u64>>,
    start: Instant,
    heard: Cell<Instant>,
    /// Told once the worker is to leave, whatever it still holds.
    leave: Notify,
    store: Arc<Store>,
    /// A turn for each of [`READS`].
    reads: Semaphore,
    /// Whether there is a limit to its memory.
    limited: bool,
    /// This worker's part of what its process occupies.
    part: RefCell<Part>,
}

/// Runs a worker of the scheduler at `scheduler` until that closes it or goes, or it is told to depart.
///
/// # Errors
/// If the scheduler cannot be reached, refuses the worker, or vanishes.
pub(crate) async fn serve(
    endpoint: Endpoint,
    scheduler: &str,
    options: Options,
    departure: Arc<Departure>,
) -> Result<Ended> {
    let listeners = options.listen.begin(&endpoint).await?;
    let (address, contact) = addresses(&listeners);
    let name: Arc<str> = options.name.map_or_else(|| address.clone(), Arc::from);
    let info = WorkerInfo {
        name: name.clone(),
        address,
        contact,
        nthreads: options.nthreads,
        memory_limit: options.memory.limit,
        resources: options.resources.clone(),
        pid: std::process::id(),
        host: hostname().into(),
        lifetime: options.lifetime.map(|lifetime| lifetime.as_nanos() as u64),
    };
    let (connection, hello) = endpoint.join(scheduler, Hello::Worker(info)).await?;
    let journals = matches!(hello, Hello::Scheduler { journals: true });
    let (to_scheduler, from_scheduler) = split::<FromWorker, ToWorker>(connection, endpoint.compression);
    let executor =
        Executor::start(name.clone(), options.nthreads).map_err(Error::io("start compute threads"))?;
    let server = Rc::new(Server {
        state: RefCell::new(State::new(Config {
            nthreads: options.nthreads,
            memory_limit: options.memory.limit,
            thresholds: options.memory.thresholds,
            resources: options.resources,
            chains: true,
        })),
        executor,
        endpoint: endpoint.clone(),
        scheduler: Upstream::new(to_scheduler, journals),
        contact: scheduler.to_owned(),
        id: Cell::new(None),
        peers: Peers::new(endpoint.clone()),
        addresses: RefCell::default(),
        unreached: RefCell::default(),
        alarm: Cell::new(None),
        start: Instant::now(),
        heard: Cell::new(Instant::now()),
        leave: Notify::new(),
        store: Arc::new(Store::new(options.memory.directory.clone())),
        reads: Semaphore::new(READS),
        limited: options.memory.limit > 0,
        part: RefCell::new(Part::new()),
    });
    // Dropping the set when this function ends, however it does, ends all of them.
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let (host, endpoint) = (server.clone(), endpoint.clone());
        let serve = move |connection| host.clone().visitor(endpoint.clone(), connection);
        tasks.spawn_local(take_visitors(listener, serve));
    }
    tasks.spawn_local(server.clone().computed());
    tasks.spawn_local(server.clone().heartbeats());
    tasks.spawn_local(server.clone().retire(departure.clone(), options.lifetime, options.handover));
    let ended = tokio::select! {
        ended = server.clone().linked(from_scheduler) => ended,
        () = server.leave.notified() => server.take_leave(),
        () = departure.at_once.notified() => server.take_leave(),
        error = server.clone().watch_memory(options.memory) => Err(error),
        () = server.silence() => {
            Err(Error::closed(format!("the scheduler was silent for {:?}", server.endpoint.silence)))
        }
    };
    let _ = time::timeout(Duration::from_secs(1), server.scheduler.closed()).await;
    server.peers.close();
    tracing::info!(worker = %name, "worker ended");
    ended
}

impl Server {
    fn handle(self: &Rc<Self>, stimuli: Vec<Stimulus>) {
        if stimuli.is_empty() {
            return;
        }
        let instructions = self.state.borrow_mut().handle_many(stimuli, self.now());
        let (mut executions, mut hastened, mut discarded) = (Vec::new(), Vec::new(), Vec::new());
        for instruction in instructions {
            match instruction {
                Instruction::Execute(execution) => executions.push(execution),
                Instruction::Forward { peer, id, value } => {
                    let address = self.addresses.borrow().get(&peer).cloned();
                    if let Some(address) = address {
                        self.peers.forward(&address, id, value);
                    }
                }
                Instruction::Hasten(id) => hastened.push(id),
                Instruction::Gather { peer, ids } => {
                    tokio::task::spawn_local(self.clone().gather(peer, ids));
                }
                Instruction::Spill(batch) => {
                    tokio::task::spawn_local(self.clone().spill(batch));
                }
                Instruction::Unspill { id, file } => {
                    tokio::task::spawn_local(self.clone().unspill(id, file));
                }
                Instruction::Discard(file) => discarded.push(file),
                Instruction::Send(message) => self.scheduler.put(self.sendable(message)),
            }
        }
        if !discarded.is_empty() {
            let store = self.store.clone();
            tokio::task::spawn_blocking(move || discarded.into_iter().for_each(|file| store.discard(file)));
        }
        if !executions.is_empty() {
            self.executor.execute(executions);
        }
        hastened.into_iter().for_each(|id| self.executor.hasten(id));
        if self.state.borrow().waits_for_peers() {
            expecting();
        }
        self.see_to_reports();
    }

    /// Sees to it that reports are sent, should nothing happen here.
    fn see_to_reports(self: &Rc<Self>) {
        let Some(due) = self.state.borrow().reports_due() else { return };
        if self.alarm.get().is_none_or(|alarm| due < alarm) {
            self.alarm.set(Some(due));
            tokio::task::spawn_local(self.clone().send_reports(due));
        }
    }

    async fn send_reports(self: Rc<Self>, due: u64) {
        time::sleep(Duration::from_nanos(due.saturating_sub(self.now()))).await;
        // Else another one rings sooner.
        if self.alarm.get() == Some(due) {
            self.alarm.set(None);
            let are_due = self.state.borrow().reports_due().is_some_and(|due| due <= self.now());
            if are_due { self.handle(vec![Stimulus::Report]) } else { self.see_to_reports() }
        }
    }

    /// Nanoseconds since the server's start.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Values that cannot leave the process stay: whoever wants one asks and is told why not.
    fn sendable(&self, mut message: FromWorker) -> FromWorker {
        if let FromWorker::Finished(finished) = &mut message
            && !self.scheduler.carries_objects()
        {
            finished.value = finished.value.take().and_then(|value| value.to_wire().ok());
        }
        message
    }

    /// Hears the scheduler out; one that keeps a journal may die and come back.
    async fn linked(self: Rc<Self>, mut from: Inbox<ToWorker>) -> Result<Ended> {
        loop {
            let lost = match self.clone().scheduled(from).await {
                Err(error) if self.scheduler.outlives_the_scheduler() => error,
                ended => return ended,
            };
            let Some(id) = self.id.get() else { return Err(lost) };
            let heard = || self.heard.set(Instant::now());
            let member = Member::Worker(id);
            from = self.scheduler.rejoin(&self.endpoint, &self.contact, member, lost, heard).await?;
        }
    }

    async fn scheduled(self: Rc<Self>, mut from: Inbox<ToWorker>) -> Result<Ended> {
        loop {
            let Some(messages) = from.recv().await? else {
                return Err(Error::closed("the scheduler left"));
            };
            self.heard.set(Instant::now());
            let mut stimuli = Vec::with_capacity(messages.len());
            for message in messages {
                self.scheduler.count(&message);
                match message {
                    ToWorker::Compute(task) => stimuli.push(Stimulus::Compute(task)),
                    ToWorker::Free(ids) => stimuli.push(Stimulus::Free(ids)),
                    ToWorker::Acquire(wanted) => stimuli.push(Stimulus::Acquire(wanted)),
                    ToWorker::WhoHas(held) => stimuli.push(Stimulus::WhoHas(held)),
                    ToWorker::Forward { id, to } => stimuli.push(Stimulus::Forward { id, to }),
                    ToWorker::PeerGone(peer) => {
                        self.unreached.borrow_mut().remove(&peer);
                        if let Some(address) = self.addresses.borrow_mut().remove(&peer) {
                            self.peers.give_up(&address);
                        }
                        stimuli.push(Stimulus::PeerGone(peer));
                    }
                    ToWorker::Peer { worker, address } => {
                        self.addresses.borrow_mut().insert(worker, address.into());
                    }
                    ToWorker::Run { id, entry, arguments } => {
                        let server = self.clone();
                        tokio::task::spawn_local(async move {
                            let run = move || task::run(entry, &arguments, Vec::new());
                            let result = blocking(run, server.scheduler.carries_objects()).await;
                            server.scheduler.put(FromWorker::Ran { id, result });
                        });
                    }
                    ToWorker::Retire => stimuli.push(Stimulus::Retire),
                    ToWorker::GiveBack(ids) => stimuli.push(Stimulus::GiveBack(ids)),
                    ToWorker::Welcome { worker } => self.id.set(Some(worker)),
                    ToWorker::Noted(count) => self.scheduler.noted(count),
                    ToWorker::Resumed { .. } | ToWorker::Alive => {}
                    ToWorker::Close { reason } => {
                        tracing::info!(reason, "the scheduler closes this worker");
                        // It may have been told to leave by the same message.
                        self.handle(stimuli);
                        let retired = self.state.borrow().is_retiring();
                        return Ok(if retired { Ended::Alone } else { Ended::WithAll });
                    }
                }
            }
            self.handle(stimuli);
        }
    }

    /// Waits until the worker is to go or its time is nearly up, says so, and goes when the time for handing
    /// over is, unless the scheduler let it go before.
    async fn retire(
        self: Rc<Self>,
        departure: Arc<Departure>,
        lifetime: Option<Duration>,
        handover: Duration,
    ) {
        let end_of_life = async {
            match lifetime {
                Some(lifetime) => time::sleep(lifetime).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = departure.in_order.notified() => tracing::info!(?handover, "this worker is to leave; it hands its results over"),
            () = end_of_life => tracing::info!(?handover, "this worker's time is nearly up; it hands its results over"),
        }
        self.scheduler.put(FromWorker::Retiring);
        self.handle(vec![Stimulus::Retire]);
        time::sleep(handover).await;
        tracing::warn!(?handover, "not all results could be handed over in time");
        self.leave.notify_one();
    }

    fn take_leave(self: &Rc<Self>) -> Result<Ended> {
        self.handle(vec![Stimulus::Report]);
        self.scheduler.put(FromWorker::Leaving);
        Ok(Ended::Alone)
    }

    async fn computed(self: Rc<Self>) {
        loop {
            let stimuli = self.executor.happened().await;
            self.handle(stimuli);
        }
    }

    async fn gather(self: Rc<Self>, peer: WorkerId, ids: Vec<TaskId>) {
        let address = self.addresses.borrow().get(&peer).cloned();
        let answer = match address {
            Some(address) => self.peers.get(&address, ids.clone()).await,
            None => Err(Error::closed(format!("worker {} is not known here", peer.0))),
        };
        let stimulus = match answer {
            Ok(data) => {
                self.unreached.borrow_mut().remove(&peer);
                Stimulus::Gathered { peer, data: ids.into_iter().zip(data).collect() }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot fetch from a peer");
                let failures = {
                    let mut unreached = self.unreached.borrow_mut();
                    let failures = unreached.entry(peer).or_default();
                    *failures += 1;
                    *failures
                };
                if failures == UNREACHED {
                    tracing::warn!(
                        %error,
                        "a worker that lives cannot be reached from here; should workers be reached over \
                         another network (--interface)?"
                    );
                }
                // The scheduler looks for another holder, or computes it again: at first at once.
                if failures > 1 {
                    time::sleep(RETRY * (1 << failures.min(UNREACHED + 2))).await;
                }
                Stimulus::GatherFailed { peer, ids }
            }
        };
        self.handle(vec![stimulus]);
    }

    async fn heartbeats(self: Rc<Self>) {
        let mut beat = time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let mut metrics = self.state.borrow().metrics();
            metrics.resident = self.occupied();
            let traffic = traffic();
            (metrics.sent, metrics.saved) = (traffic.sent, traffic.saved);
            let fetches = self.state.borrow_mut().take_fetches();
            if !fetches.is_empty() {
                self.scheduler.put(FromWorker::Fetched(fetches));
            }
            self.scheduler.put(FromWorker::Heartbeat(metrics));
        }
    }

    /// Ends once the scheduler has been silent for too long.
    async fn silence(&self) {
        let silence = self.endpoint.silence;
        while self.heard.get().elapsed() < silence {
            time::sleep(silence.saturating_sub(self.heard.get().elapsed())).await;
        }
    }
}

/// Runs a function off the I/O thread; its result is made fit for the link it goes over.
pub(crate) async fn blocking(
    run: impl FnOnce() -> Result<Value, TaskError> + Send + 'static,
    carries_objects: bool,
) -> Result<Value, TaskError> {
    let job = move || run().and_then(|value| if carries_objects { Ok(value) } else { value.to_wire() });
    tokio::task::spawn_blocking(job)
        .await
        .unwrap_or_else(|e| Err(TaskError::refused(format!("the function could not be run: {e}"))))
}

/// This host's name, for people.
pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}
