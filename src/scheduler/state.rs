//! What the scheduler knows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    Instruction, TaskState,
    arena::Arena,
    bit_set::BitSet,
    copies::Copies,
    freeing::Frees,
    lately::Lately,
    limits::Limits,
    links::{Links, Peers},
    pool::{FULL, Pool},
    queue::Queue,
    retiring::Retirement,
    stealing::Stealing,
    story::Story,
    task::{Task, TaskMut, TaskRef},
    task_list::TaskList,
};
use crate::{
    graph::{Key, KeyMap, KeySet, TaskOptions},
    protocol::{ClientId, Metrics, SchedulerInfo, StoryEvent, WorkerId, WorkerInfo, WorkerStatus},
    task::{EntryRef, Value},
};

/// What a scheduler is told at its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// A task that took down more workers than this errs.
    pub allowed_failures: u32,
    /// Nanoseconds of silence after which a worker is taken for dead.
    pub worker_ttl: u64,
    /// Bytes a second between hosts, until fetches tell.
    pub bandwidth: f64,
    /// Tasks without dependencies assigned to a worker ahead of time, in multiples of its threads.
    pub saturation: f64,
    /// Whether workers with too little to do take over from those with too much.
    pub stealing: bool,
    /// Whether copies of results that nobody needs are dropped.
    pub reduce_replicas: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_failures: 3,
            worker_ttl: 30_000_000_000,
            bandwidth: 1e9,
            saturation: 1.1,
            stealing: true,
            reduce_replicas: true,
        }
    }
}

/// One worker. What placing a task looks at lies in one line of a processor's cache, and its links in two others; what else changes
/// with each task of it in the next one: of ten thousand workers hardly any is in the caches when its turn comes.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Worker {
    /// Nanoseconds of work expected to be waiting, and of gaps before what follows others.
    pub(super) occupancy: u64,
    /// Of the work that waits, in nanoseconds: what follows others that are still to be done. Nobody else would get to it
    /// sooner.
    pub(super) following: u64,
    /// Nanoseconds of its work that are behind it, as far as a word holds that.
    pub(super) done: u64,
    /// Bytes of the results that it holds.
    pub(super) nbytes: u64,
    /// When one of its threads began another task, as far as reports tell, by the scheduler's clock.
    pub(super) since: u64,
    /// How many results it holds.
    pub(super) results: u32,
    /// Its compute threads; one at least.
    pub(super) threads: u32,
    /// Tasks that it was assigned and that count for slots.
    pub(super) busy: u32,
    /// How long its latest tasks took, in multiples of what others take.
    pub(super) pace: f32,
    /// It is not gone.
    pub(super) there: bool,
    /// It will begin to leave: when, [`Self::ends`] says.
    pub(super) transient: bool,
    /// It is to leave: nothing new goes there.
    pub(super) retiring: bool,
    /// Its memory is short: nothing new goes there until it says otherwise.
    pub(super) paused: bool,
    /// Work is under way from it or to it: how much, [`Self::outgoing`] and [`Self::incoming`] say. They lie in the next line, which
    /// whoever looks for work to take over need not look at where this says no.
    pub(super) trading: bool,

    /// When it was heard of.
    pub(super) heard: u64,
    pub(super) processing: TaskList,
    /// Tasks that would follow others here, had there been room.
    #[expect(
        clippy::box_collection,
        reason = "few workers have any, and all have one line for this and what they process"
    )]
    pub(super) kept_out: Option<Box<VecDeque<TaskRef>>>,
    /// Of the work that waits, in nanoseconds: what it was asked to give back, and what others were asked to give it.
    pub(super) outgoing: u64,
    pub(super) incoming: u64,

    /// What its fetches took.
    pub(super) peers: Peers,
    /// Peers it was told the addresses of lately, and which of them it fetched from since that are none of its `peers`; others it
    /// is told of again, should it need them again.
    pub(super) told: Lately,
    /// When it will begin to leave, by the scheduler's clock; [`NEVER`] where it does not know.
    pub(super) ends: u64,
    pub(super) metrics: Metrics,
    pub(super) info: WorkerInfo,
}

const _: () = assert!(std::mem::offset_of!(Worker, heard) == 64);
const _: () = assert!(std::mem::offset_of!(Worker, peers) == 128);

/// A time that does not come.
pub(super) const NEVER: u64 = u64::MAX;

impl Worker {
    /// Whether it may be given something.
    pub(super) fn stands(&self) -> bool {
        !self.retiring && !self.paused
    }

    /// What the ordering by load goes by.
    pub(super) fn load(&self) -> u64 {
        u64::from(self.busy) * FULL / u64::from(self.threads)
    }
}

#[derive(Default)]
pub(super) struct Client {
    /// Workers that it was told the addresses of.
    pub(super) told: BitSet<WorkerId>,
}

pub(super) struct FunctionInfo {
    pub(super) entry: EntryRef,
    pub(super) name: Arc<str>,
    /// Mean nanoseconds, once known.
    pub(super) duration: Option<u64>,
    /// The latest submission in which a task of it has dependencies.
    pub(super) inner: u32,
}

/// The scheduler, as a pure state machine.
pub struct State {
    pub(super) config: Config,
    pub(super) tasks: Arena,
    /// Of these, how many are to be computed or being computed.
    pub(super) unfinished: u64,
    /// And how many are queued.
    pub(super) in_queue: u64,
    pub(super) functions: Vec<FunctionInfo>,
    pub(super) function_numbers: KeyMap<EntryRef, u32>,
    pub(super) options: Vec<TaskOptions>,
    pub(super) workers: Pool,
    pub(super) links: Links,
    /// The numbers of hosts, by name.
    pub(super) hosts: BTreeMap<Arc<str>, u32>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) queued: Queue,
    pub(super) no_worker: KeySet<TaskRef>,
    pub(super) submissions: u32,
    /// Mean nanoseconds of all tasks, once any has run.
    pub(super) usual_duration: Option<u64>,
    /// No function's mean is less, in nanoseconds.
    pub(super) briefest: u64,
    pub(super) retirement: Retirement,
    pub(super) stealing: Stealing,
    pub(super) copies: Copies,
    pub(super) limits: Limits,
    next_client: u32,
    pub(super) story: Story,
    pub(super) stimulus: u64,
    pub(super) now: u64,
    pub(super) recommendations: VecDeque<(TaskRef, TaskState)>,
    /// Those by which something is let go of, which are followed last.
    pub(super) unneeded: VecDeque<(TaskRef, TaskState)>,
    /// A small result on its way through to the clients that want it.
    pub(super) passing: Option<Value>,
    pub(super) frees: Frees,
    pub(super) out: Vec<Instruction>,
    /// Whether a worker was removed in this turn.
    pub(super) any_gone: bool,
    /// How many there are in a turn that has any, lately.
    pub(super) usual: usize,
    #[cfg(debug_assertions)]
    pub(super) checks: crate::checks::Checks,
}

impl State {
    /// A scheduler without workers, clients or tasks.
    pub fn new(config: Config) -> Self {
        Self {
            links: Links::new(config.bandwidth),
            hosts: BTreeMap::new(),
            config,
            tasks: Arena::default(),
            unfinished: 0,
            in_queue: 0,
            functions: Vec::new(),
            function_numbers: KeyMap::default(),
            options: vec![TaskOptions::default()],
            workers: Pool::default(),
            clients: BTreeMap::new(),
            queued: Queue::default(),
            no_worker: KeySet::default(),
            submissions: 0,
            usual_duration: None,
            briefest: u64::MAX,
            retirement: Retirement::default(),
            stealing: Stealing::default(),
            copies: Copies::default(),
            limits: Limits::default(),
            next_client: 0,
            story: Story::default(),
            stimulus: 0,
            now: 0,
            recommendations: VecDeque::new(),
            unneeded: VecDeque::new(),
            passing: None,
            frees: Frees::default(),
            out: Vec::new(),
            any_gone: false,
            usual: 0,
            #[cfg(debug_assertions)]
            checks: Default::default(),
        }
    }

    pub(super) fn new_client_id(&mut self) -> ClientId {
        self.next_client += 1;
        ClientId(self.next_client - 1)
    }

    pub(super) fn task(&self, id: TaskRef) -> Option<Task<'_>> {
        self.tasks.get(id)
    }

    pub(super) fn task_mut(&mut self, id: TaskRef) -> Option<TaskMut<'_>> {
        self.tasks.get_mut(id)
    }

    pub(super) fn options_of(&self, task: Task<'_>) -> &TaskOptions {
        &self.options[task.cold.options as usize]
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Where a task stands.
    pub fn task_state(&self, key: Key) -> Option<TaskState> {
        Some(self.task(self.tasks.find(key)?)?.state)
    }

    /// What happened to a task, oldest first, as far as remembered.
    pub fn story(&self, key: Key) -> Vec<StoryEvent> {
        self.story.of(key, self.tasks.find(key))
    }

    /// The tasks that a worker was assigned and did not finish.
    pub(super) fn processed_by(&self, id: WorkerId) -> Vec<TaskRef> {
        let Some(worker) = self.workers.get(id) else { return Vec::new() };
        let tenant = |place| self.tasks.at(place).filter(|task| task.is_at(id));
        let places = worker.processing.members(|place| tenant(place).is_some());
        places.into_iter().filter_map(|place| Some(tenant(place)?.this)).collect()
    }

    /// The addresses of the workers that hold each of these results; of all where `keys` is empty.
    pub fn who_has(&self, keys: &[Key]) -> Vec<(Key, Vec<Arc<str>>)> {
        let addresses = |task: Task<'_>| {
            task.who_has().iter().filter_map(|w| Some(self.workers.get(*w)?.info.address.clone())).collect()
        };
        if keys.is_empty() {
            return self.tasks.iter().map(|task| (task.cold.key, addresses(task))).collect();
        }
        let task = |key: &Key| self.task(self.tasks.find(*key)?);
        keys.iter().map(|key| (*key, task(key).map(addresses).unwrap_or_default())).collect()
    }

    /// The results that each worker holds.
    pub fn has_what(&self) -> Vec<(Arc<str>, Vec<Key>)> {
        let mut held = self.held_by_each(|_| true);
        let mut keys = |id| {
            let tasks = held.remove(&id).unwrap_or_default();
            tasks.into_iter().filter_map(|task| Some(self.task(task)?.cold.key)).collect()
        };
        self.workers.iter().map(|(id, worker)| (worker.info.address.clone(), keys(id))).collect()
    }

    /// The cluster as a whole; the address is for the server to fill in.
    pub fn info(&self) -> SchedulerInfo {
        let mut counts = BTreeMap::<&str, u64>::new();
        let (mut runnable, mut work) = (0, 0);
        for task in self.tasks.iter() {
            *counts.entry(task.state.name()).or_default() += 1;
            if matches!(task.state, TaskState::Processing | TaskState::Queued | TaskState::NoWorker) {
                runnable += 1;
                // Dask's guess of what nobody has measured: it decides how many workers there should be.
                let known = self.functions.get(task.cold.function as usize).and_then(|f| f.duration);
                work += u128::from(known.unwrap_or(500_000_000));
            }
        }
        let status = |(id, worker): (WorkerId, &Worker)| WorkerStatus {
            id,
            info: worker.info.clone(),
            processing: worker.processing.len() as u32,
            in_memory: worker.results.into(),
            nbytes: worker.nbytes,
            occupancy: worker.occupancy as f64 / 1e9,
            metrics: worker.metrics,
            remaining: worker.transient.then(|| worker.ends.saturating_sub(self.now) as f64 / 1e9),
            retiring: worker.retiring,
            paused: worker.paused,
        };
        SchedulerInfo {
            address: String::new(),
            workers: self.workers.iter().map(status).collect(),
            tasks: counts.into_iter().map(|(state, count)| (state.to_owned(), count)).collect(),
            clients: self.clients.len() as u32,
            runnable,
            work: work as f64 / 1e9,
        }
    }
}
