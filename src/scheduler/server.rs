//! The server around the scheduler's state machine: links to workers and clients.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rankine_transport::{Connection, Listener};
use tokio::{sync::Notify, task::JoinSet, time};

use super::{
    Instruction, State, Stimulus,
    journal::{Journal, Noted},
    restoring::{Expected, Past},
};
use crate::{
    Result,
    link::{Endpoint, Inbox, Outbox, split, take_visitors},
    protocol::{
        Answer, ClientId, FromClient, FromWorker, Hello, Member, Numbered, Query, ToClient, ToWorker,
        WorkerId, WorkerInfo,
    },
    task::{self, TaskError, Value},
    worker::server::blocking,
};

/// How often the scheduler looks for silent workers.
const TICK: Duration = Duration::from_secs(1);

const FAREWELL: &str = "the cluster was shut down";

/// What the death of a worker means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deaths {
    /// Its tasks run elsewhere.
    CostTasks,
    /// The end of the cluster, with this advice.
    #[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "so it is among ranks of MPI alone"))]
    EndAll(&'static str),
}

/// How a scheduler is told to end.
#[derive(Debug, Default)]
pub(crate) struct End {
    notify: Notify,
    reason: OnceLock<String>,
}

impl End {
    /// Ends it; all are told why, if there is more to say than that somebody wanted it.
    pub(crate) fn now(&self, reason: Option<String>) {
        if let Some(reason) = reason {
            let _ = self.reason.set(reason);
        }
        self.notify.notify_one();
    }

    async fn told(&self) {
        self.notify.notified().await;
    }

    fn reason(&self) -> String {
        self.reason.get().map_or_else(|| FAREWELL.to_owned(), Clone::clone)
    }
}

struct Server {
    state: RefCell<State>,
    workers: RefCell<BTreeMap<WorkerId, WorkerLink>>,
    clients: RefCell<BTreeMap<ClientId, Outbox<ToClient>>>,
    runs: RefCell<BTreeMap<u64, Run>>,
    next_run: Cell<u64>,
    retirements: RefCell<Vec<Retirement>>,
    address: String,
    start: Instant,
    /// Told once the cluster is to end.
    end: Arc<End>,
    deaths: Deaths,
    /// Whether it ends: who comes now is told so.
    ending: Cell<bool>,
    journal: RefCell<Option<Journal>>,
    /// Those of the time before this scheduler was restored that are not back yet.
    expected: RefCell<Expected>,
    /// What the clock of the scheduler that died said last, in nanoseconds.
    before: u64,
}

struct WorkerLink {
    outbox: Outbox<ToWorker>,
    name: Arc<str>,
    address: Arc<str>,
    /// Told when the worker's link is to be cut.
    cut: Arc<Notify>,
}

/// Workers that a client wants gone.
struct Retirement {
    client: ClientId,
    question: u64,
    waiting: Vec<WorkerId>,
    left: Vec<Arc<str>>,
}

/// A function running on workers outside of the task graph.
struct Run {
    client: ClientId,
    question: u64,
    waiting: Vec<WorkerId>,
    results: Vec<(Arc<str>, std::result::Result<Value, TaskError>)>,
}

/// Serves on `listeners` until a client shuts the cluster down or it is told to end. All that are
/// linked are told why and let go.
///
/// # Errors
/// None yet; the signature is that of the other roles.
pub(crate) async fn serve(
    endpoint: Endpoint,
    listeners: Vec<Box<dyn Listener>>,
    end: Arc<End>,
    deaths: Deaths,
    past: Past,
) -> Result<()> {
    let address = listeners.last().map(|l| l.address().to_string()).unwrap_or_default();
    let server = Rc::new(Server {
        state: RefCell::new(past.state),
        workers: RefCell::default(),
        clients: RefCell::default(),
        runs: RefCell::default(),
        next_run: Cell::new(0),
        retirements: RefCell::default(),
        address,
        start: Instant::now(),
        end: end.clone(),
        deaths,
        ending: Cell::new(false),
        journal: RefCell::new(past.journal),
        expected: RefCell::new(past.expected),
        before: past.clock,
    });
    let patience = endpoint.silence;
    // Dropping the set when this function ends ends all of them.
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let (server, endpoint) = (server.clone(), endpoint.clone());
        let serve = move |connection| server.clone().visitor(endpoint.clone(), connection);
        tasks.spawn_local(take_visitors(listener, serve));
    }
    tasks.spawn_local(server.clone().ticks());
    tasks.spawn_local(server.clone().give_up_the_absent(patience));
    end.told().await;
    server.farewell().await;
    Ok(())
}

impl Server {
    fn now(&self) -> u64 {
        self.before + self.start.elapsed().as_nanos() as u64
    }

    /// Notes something in the journal, where there is one, before it is acted on.
    fn note(&self, note: impl FnOnce(&mut Journal) -> Result<()>) {
        let mut journal = self.journal.borrow_mut();
        let Some(Err(error)) = journal.as_mut().map(note) else { return };
        tracing::error!(%error, "there is no journal any more: a crash of the scheduler will end the cluster");
        journal.take().into_iter().for_each(Journal::discard);
        for link in self.workers.borrow().values() {
            link.outbox.put(ToWorker::Noted(None));
        }
        for outbox in self.clients.borrow().values() {
            outbox.put(ToClient::Noted(None));
        }
    }

    fn journals(&self) -> bool {
        self.journal.borrow().is_some()
    }

    fn handle(&self, stimulus: Stimulus) {
        self.handle_many(vec![stimulus]);
    }

    fn handle_many(&self, mut stimuli: Vec<Stimulus>) {
        if stimuli.is_empty() {
            return;
        }
        let now = self.now();
        self.note(|journal| journal.note_stimuli(now, &mut stimuli));
        let instructions = self.state.borrow_mut().handle_many(stimuli, now);
        self.obey(instructions);
    }

    fn obey(&self, instructions: Vec<Instruction>) {
        if instructions.is_empty() {
            return;
        }
        let (workers, clients) = (self.workers.borrow(), self.clients.borrow());
        for instruction in instructions {
            match instruction {
                Instruction::ToWorker(worker, message) => match workers.get(&worker) {
                    Some(link) => link.outbox.put(message),
                    None => self.expected.borrow_mut().keep(Instruction::ToWorker(worker, message)),
                },
                Instruction::ToClient(client, message) => match clients.get(&client) {
                    Some(outbox) => outbox.put(Self::sendable(message, outbox)),
                    None => self.expected.borrow_mut().keep(Instruction::ToClient(client, message)),
                },
                Instruction::Drop(worker) => {
                    if let Some(link) = workers.get(&worker) {
                        link.cut.notify_one();
                    }
                }
            }
        }
    }

    /// A value that cannot leave the process stays where it is: the client asks and is told why.
    fn sendable(mut message: ToClient, outbox: &Outbox<ToClient>) -> ToClient {
        if let ToClient::InMemory { value, .. } = &mut message
            && !outbox.carries_objects
        {
            *value = value.take().and_then(|value| value.to_wire().ok());
        }
        message
    }

    async fn visitor(self: Rc<Self>, endpoint: Endpoint, connection: Connection) -> Result<()> {
        let me = Hello::Scheduler { journals: self.journals() };
        let (connection, hello) = endpoint.welcome_as(me, connection).await?;
        let compression = endpoint.compression;
        match hello {
            Hello::Client => {
                let (outbox, inbox) = split::<ToClient, FromClient>(connection, compression);
                self.client(outbox, inbox, false).await
            }
            Hello::Observer { .. } => {
                let (outbox, inbox) = split::<ToClient, FromClient>(connection, compression);
                self.client(outbox, inbox, true).await
            }
            Hello::Worker(info) => {
                let (outbox, inbox) = split::<ToWorker, FromWorker>(connection, compression);
                self.worker(outbox, inbox, info).await
            }
            Hello::Returning { member: Member::Worker(id), received } => {
                let (outbox, inbox) = split::<ToWorker, FromWorker>(connection, compression);
                self.returning_worker(outbox, inbox, id, received).await
            }
            Hello::Returning { member: Member::Client(id), received } => {
                let (outbox, inbox) = split::<ToClient, FromClient>(connection, compression);
                self.returning_client(outbox, inbox, id, received).await
            }
            Hello::Peer | Hello::Scheduler { .. } => Err(crate::Error::Refused {
                peer: connection.peer.to_string(),
                reason: "it takes this scheduler for a worker".into(),
            }),
        }
    }

    async fn worker(
        self: Rc<Self>,
        outbox: Outbox<ToWorker>,
        inbox: Inbox<FromWorker>,
        info: WorkerInfo,
    ) -> Result<()> {
        if self.ending.get() {
            outbox.put(ToWorker::Close { reason: self.end.reason() });
            outbox.closed().await;
            return Ok(());
        }
        let (name, address, now) = (info.name.clone(), info.address.clone(), self.now());
        tracing::info!(%name, %address, threads = info.nthreads, "a worker joins");
        self.note(|journal| journal.note(now, &Noted::Worker(&info)));
        let (id, instructions) = self.state.borrow_mut().add_worker(info, now);
        let link = WorkerLink { outbox, name, address, cut: Arc::default() };
        self.workers.borrow_mut().insert(id, link);
        self.obey(instructions);
        self.serve_worker(id, inbox, 0).await
    }

    /// Takes a worker back in that is known from before this scheduler was restored.
    async fn returning_worker(
        self: Rc<Self>,
        outbox: Outbox<ToWorker>,
        inbox: Inbox<FromWorker>,
        id: WorkerId,
        received: u64,
    ) -> Result<()> {
        let absent = self.expected.borrow_mut().workers.remove(&id);
        let known = self.state.borrow().name_and_address(id);
        let (Some(mut absent), Some((name, address)), false) = (absent, known, self.ending.get()) else {
            let reason = format!("worker {} is not, or not any more, expected back", id.0);
            outbox.put(ToWorker::Close { reason: reason.clone() });
            outbox.closed().await;
            return Err(crate::Error::Refused { peer: format!("worker {}", id.0), reason });
        };
        if !absent.kept.received(received) {
            self.handle(Stimulus::RemoveWorker { worker: id, expected: true });
            return Err(crate::Error::closed(format!("{name} knows another past than the journal")));
        }
        tracing::info!(%name, %address, "a worker is back");
        outbox.put(ToWorker::Resumed { noted: absent.noted });
        absent.kept.iter().for_each(|message| outbox.put(message.clone()));
        let link = WorkerLink { outbox, name, address, cut: Arc::default() };
        self.workers.borrow_mut().insert(id, link);
        self.serve_worker(id, inbox, absent.noted).await
    }

    /// Serves a worker until its link ends. Of its numbered messages the journal has `noted` already.
    async fn serve_worker(
        self: Rc<Self>,
        id: WorkerId,
        mut inbox: Inbox<FromWorker>,
        mut noted: u64,
    ) -> Result<()> {
        let (outbox, worker, address, cut) = {
            let workers = self.workers.borrow();
            let Some(link) = workers.get(&id) else { return Ok(()) };
            (link.outbox.clone(), link.name.clone(), link.address.clone(), link.cut.clone())
        };
        let mut leaving = false;
        let ended = loop {
            let received = tokio::select! {
                received = inbox.recv() => received,
                () = cut.notified() => Err(crate::Error::closed("it was silent for too long")),
            };
            match received {
                Ok(Some(messages)) => {
                    let mut stimuli = Vec::with_capacity(messages.len());
                    for message in messages {
                        noted += u64::from(message.is_numbered());
                        match message {
                            FromWorker::Ran { id: run, result } => self.ran(run, id, result),
                            FromWorker::Leaving => leaving = true,
                            FromWorker::Heartbeat(metrics) => {
                                let now = self.now();
                                self.state.borrow_mut().hear(id, metrics, now);
                                outbox.put(ToWorker::Alive);
                            }
                            message => stimuli.push(Stimulus::Worker(id, message)),
                        }
                    }
                    let any = !stimuli.is_empty();
                    self.handle_many(stimuli);
                    if any && self.journals() {
                        outbox.put(ToWorker::Noted(Some(noted)));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        tracing::info!(%address, leaving, "a worker is gone");
        if let (Deaths::EndAll(advice), Err(error), false) = (self.deaths, &ended, leaving) {
            self.end.now(Some(format!("{worker} died ({error}); {advice}")));
        }
        self.workers.borrow_mut().remove(&id);
        outbox.close();
        self.handle(Stimulus::RemoveWorker { worker: id, expected: leaving });
        self.retired(id, &address);
        let runs: Vec<u64> = self.runs.borrow().keys().copied().collect();
        for run in runs {
            self.ran(run, id, Err(TaskError::refused(format!("worker {address} died while it ran"))));
        }
        ended
    }

    /// Serves a client. One that `observes` may be another executable: it asks, and changes nothing.
    async fn client(
        self: Rc<Self>,
        outbox: Outbox<ToClient>,
        inbox: Inbox<FromClient>,
        observes: bool,
    ) -> Result<()> {
        if self.ending.get() {
            outbox.put(ToClient::Closing { reason: self.end.reason() });
            outbox.closed().await;
            return Ok(());
        }
        let now = self.now();
        self.note(|journal| journal.note(now, &Noted::Client));
        let id = self.state.borrow_mut().add_client();
        outbox.put(ToClient::Welcome { client: id });
        self.clients.borrow_mut().insert(id, outbox);
        self.serve_client(id, inbox, observes, 0).await
    }

    /// Takes a client back in that is known from before this scheduler was restored.
    async fn returning_client(
        self: Rc<Self>,
        outbox: Outbox<ToClient>,
        inbox: Inbox<FromClient>,
        id: ClientId,
        received: u64,
    ) -> Result<()> {
        let absent = self.expected.borrow_mut().clients.remove(&id);
        let Some(mut absent) = absent.filter(|_| !self.ending.get()) else {
            let reason = format!("client {} is not, or not any more, expected back", id.0);
            outbox.put(ToClient::Closing { reason: reason.clone() });
            outbox.closed().await;
            return Err(crate::Error::Refused { peer: format!("client {}", id.0), reason });
        };
        if !absent.kept.received(received) {
            self.handle(Stimulus::RemoveClient(id));
            return Err(crate::Error::closed(format!("client {} knows another past than the journal", id.0)));
        }
        tracing::info!(client = id.0, "a client is back");
        outbox.put(ToClient::Resumed { noted: absent.noted });
        absent.kept.iter().for_each(|message| outbox.put(Self::sendable(message.clone(), &outbox)));
        self.clients.borrow_mut().insert(id, outbox);
        self.serve_client(id, inbox, false, absent.noted).await
    }

    async fn serve_client(
        self: Rc<Self>,
        id: ClientId,
        mut inbox: Inbox<FromClient>,
        observes: bool,
        mut noted: u64,
    ) -> Result<()> {
        let Some(outbox) = self.clients.borrow().get(&id).cloned() else { return Ok(()) };
        let ended = loop {
            match inbox.recv().await {
                Ok(Some(messages)) => {
                    let before = noted;
                    for message in messages {
                        noted += u64::from(message.is_numbered());
                        match message {
                            FromClient::Alive => outbox.put(ToClient::Alive),
                            message if observes && !message.only_looks() => {
                                tracing::warn!(client = id.0, "an observer wants to change something");
                            }
                            FromClient::Ask { id: question, query } if !query.is_for_the_machine() => {
                                self.asked(id, question, query);
                            }
                            message => self.handle(Stimulus::Client(id, message)),
                        }
                    }
                    if noted > before && self.journals() {
                        outbox.put(ToClient::Noted(Some(noted)));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.clients.borrow_mut().remove(&id);
        outbox.close();
        self.handle(Stimulus::RemoveClient(id));
        ended
    }

    fn asked(self: &Rc<Self>, client: ClientId, question: u64, query: Query) {
        let state = self.state.borrow();
        let answer = match query {
            Query::WhoHas(keys) => Answer::WhoHas(state.who_has(&keys)),
            Query::HasWhat => Answer::HasWhat(state.has_what()),
            Query::SchedulerInfo => {
                let mut info = state.info();
                info.address.clone_from(&self.address);
                Answer::SchedulerInfo(info)
            }
            Query::Story(key) => Answer::Story(state.story(key)),
            Query::Explain(keys) => Answer::Explained(state.explain(&keys)),
            Query::Run { entry, arguments, workers } => {
                let run = self.next_run.replace(self.next_run.get() + 1);
                let mut waiting = Vec::new();
                for (id, link) in self.workers.borrow().iter() {
                    if workers.is_empty() || workers.iter().any(|w| **w == *link.address) {
                        link.outbox.put(ToWorker::Run { id: run, entry, arguments: arguments.clone() });
                        waiting.push(*id);
                    }
                }
                if !waiting.is_empty() {
                    self.runs
                        .borrow_mut()
                        .insert(run, Run { client, question, waiting, results: Vec::new() });
                    return;
                }
                Answer::Ran(Vec::new())
            }
            Query::RunOnScheduler { entry, arguments } => {
                let server = self.clone();
                tokio::task::spawn_local(async move {
                    let Some(outbox) = server.clients.borrow().get(&client).cloned() else { return };
                    let run = move || task::run(entry, &arguments, Vec::new());
                    let result = blocking(run, outbox.carries_objects).await;
                    outbox.put(ToClient::Answer { id: question, answer: Answer::RanOnScheduler(result) });
                });
                return;
            }
            Query::Retire { workers } => {
                drop(state);
                let named =
                    |link: &WorkerLink| workers.iter().any(|w| **w == *link.name || **w == *link.address);
                let waiting: Vec<WorkerId> = {
                    let links = self.workers.borrow();
                    links.iter().filter(|(_, link)| named(link)).map(|(id, _)| *id).collect()
                };
                if !waiting.is_empty() {
                    let stimuli = waiting.iter().map(|id| Stimulus::Retire(*id)).collect();
                    let retirement = Retirement { client, question, waiting, left: Vec::new() };
                    self.retirements.borrow_mut().push(retirement);
                    self.handle_many(stimuli);
                    return;
                }
                Answer::Retired(Vec::new())
            }
            Query::Shutdown { reason } => {
                self.end.now(reason);
                Answer::Done
            }
            // The machine answers these.
            Query::Reserve(_) | Query::Limit { .. } | Query::Replicate { .. } | Query::Rebalance => return,
        };
        if let Some(outbox) = self.clients.borrow().get(&client) {
            outbox.put(ToClient::Answer { id: question, answer });
        }
    }

    /// A worker is gone: whoever wanted it gone is told, once all that it wanted gone are.
    fn retired(&self, worker: WorkerId, address: &Arc<str>) {
        let done: Vec<Retirement> = {
            let mut retirements = self.retirements.borrow_mut();
            for retirement in &mut *retirements {
                if let Some(place) = retirement.waiting.iter().position(|w| *w == worker) {
                    retirement.waiting.swap_remove(place);
                    retirement.left.push(address.clone());
                }
            }
            retirements.extract_if(.., |retirement| retirement.waiting.is_empty()).collect()
        };
        for Retirement { client, question, left, .. } in done {
            if let Some(outbox) = self.clients.borrow().get(&client) {
                outbox.put(ToClient::Answer { id: question, answer: Answer::Retired(left) });
            }
        }
    }

    /// A worker is done with a function that ran outside of the task graph, or died.
    fn ran(&self, run: u64, worker: WorkerId, result: std::result::Result<Value, TaskError>) {
        let mut runs = self.runs.borrow_mut();
        let Some(current) = runs.get_mut(&run) else { return };
        let Some(place) = current.waiting.iter().position(|w| *w == worker) else { return };
        current.waiting.swap_remove(place);
        let address = match self.workers.borrow().get(&worker) {
            Some(link) => link.address.clone(),
            None => format!("worker {}", worker.0).into(),
        };
        current.results.push((address, result));
        if !current.waiting.is_empty() {
            return;
        }
        let Some(done) = runs.remove(&run) else { return };
        if let Some(outbox) = self.clients.borrow().get(&done.client) {
            let wire = |result: std::result::Result<Value, TaskError>| {
                if outbox.carries_objects { result } else { result.and_then(|value| value.to_wire()) }
            };
            let results = done.results.into_iter().map(|(address, r)| (address, wire(r))).collect();
            outbox.put(ToClient::Answer { id: done.question, answer: Answer::Ran(results) });
        }
    }

    async fn ticks(self: Rc<Self>) {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = self.now();
            let silent = self.state.borrow().silent(now);
            self.note(|journal| journal.note(now, &Noted::Tick(&silent)));
            let instructions = self.state.borrow_mut().handle(Stimulus::Tick, now);
            self.obey(instructions);
        }
    }

    /// Those that were there before this scheduler was restored and do not come back are gone.
    async fn give_up_the_absent(self: Rc<Self>, patience: Duration) {
        if self.expected.borrow().is_empty() {
            return;
        }
        time::sleep(patience).await;
        let Expected { workers, clients } = std::mem::take(&mut *self.expected.borrow_mut());
        let gone = workers.into_keys().map(|worker| Stimulus::RemoveWorker { worker, expected: true });
        let gone: Vec<Stimulus> = gone.chain(clients.into_keys().map(Stimulus::RemoveClient)).collect();
        if !gone.is_empty() {
            tracing::warn!(count = gone.len(), "workers and clients did not come back");
        }
        self.handle_many(gone);
    }

    /// Tells everybody that the cluster ends, and waits a little for the word to go out.
    async fn farewell(&self) {
        self.ending.set(true);
        // Nobody is to come back.
        self.journal.take().into_iter().for_each(Journal::discard);
        let workers: Vec<_> = std::mem::take(&mut *self.workers.borrow_mut()).into_values().collect();
        let clients: Vec<_> = std::mem::take(&mut *self.clients.borrow_mut()).into_values().collect();
        for link in &workers {
            link.outbox.put(ToWorker::Close { reason: self.end.reason() });
        }
        for outbox in &clients {
            outbox.put(ToClient::Closing { reason: self.end.reason() });
        }
        let words = async {
            for link in &workers {
                link.outbox.closed().await;
            }
            for outbox in &clients {
                outbox.closed().await;
            }
        };
        let _ = time::timeout(Duration::from_secs(1), words).await;
    }
}
