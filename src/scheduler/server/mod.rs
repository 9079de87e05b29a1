//! The server around the scheduler's state machine: links to workers and clients.

mod members;
mod questions;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rankine_transport::{Connection, Listener};
use tokio::{sync::Notify, task::JoinSet, time};

use questions::{Retirement, Run};

use super::{
    Instruction, State, Stimulus,
    journal::{Journal, Noted},
    restoring::{Expected, Past},
};
use crate::{
    Result,
    link::{Endpoint, Outbox, split, take_visitors},
    protocol::{ClientId, FromClient, FromWorker, Hello, Member, ToClient, ToWorker, WorkerId},
};

/// So much of what workers say waits at most for the scheduler's next turn.
const ARRIVED: usize = 1024;

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
    /// What workers said since the scheduler's last turn.
    arrived: RefCell<Vec<Stimulus>>,
    /// Told when anything did.
    arrival: Notify,
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
        arrived: RefCell::default(),
        arrival: Notify::new(),
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
    tokio::select! {
        () = end.told() => {}
        // Not one of the set, where nobody would notice its end.
        () = server.clone().turns() => {}
    }
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

    /// Workers said something: it is handled with all that others say until the scheduler's turn comes. So what follows from it
    /// goes to each at once, and what a stimulus will look at is on its way while those before it are handled.
    fn hear(&self, stimuli: Vec<Stimulus>) {
        let state = self.state.borrow();
        stimuli.iter().for_each(|stimulus| state.expect(stimulus, usize::MAX));
        drop(state);
        self.arrived.borrow_mut().extend(stimuli);
        if self.arrived.borrow().len() >= ARRIVED {
            self.turn();
        } else {
            self.arrival.notify_one();
        }
    }

    async fn turns(self: Rc<Self>) {
        loop {
            self.arrival.notified().await;
            self.turn();
        }
    }

    fn handle(&self, stimulus: Stimulus) {
        self.handle_many(vec![stimulus]);
    }

    /// Handles what happened, after all that arrived before.
    fn handle_many(&self, stimuli: Vec<Stimulus>) {
        self.arrived.borrow_mut().extend(stimuli);
        self.turn();
    }

    /// Handles all that arrived.
    fn turn(&self) {
        let mut stimuli = self.arrived.take();
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
        let (workers, clients, state) = (self.workers.borrow(), self.clients.borrow(), self.state.borrow());
        let keep = |instruction| self.expected.borrow_mut().keep(&state, instruction);
        for instruction in instructions {
            match instruction {
                Instruction::ToWorker(worker, message) => match workers.get(&worker) {
                    Some(link) => link.outbox.put(message),
                    None => keep(Instruction::ToWorker(worker, message)),
                },
                Instruction::Introduce(worker, peer) => match workers.get(&worker) {
                    Some(link) => state.introduction(peer).into_iter().for_each(|told| link.outbox.put(told)),
                    None => keep(instruction),
                },
                Instruction::ToClient(client, message) => match clients.get(&client) {
                    Some(outbox) => outbox.put(Self::sendable(message, outbox)),
                    None => keep(Instruction::ToClient(client, message)),
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

    async fn ticks(self: Rc<Self>) {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turn();
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
        self.turn();
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
