//! What the scheduler knows.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
};

use smallvec::SmallVec;

use super::Instruction;
use crate::{
    graph::{Arguments, Key, KeyMap, KeySet, TaskOptions},
    protocol::{
        ClientId, Metrics, Priority, SchedulerInfo, StoryEvent, TaskId, WorkerId, WorkerInfo, WorkerStatus,
    },
    task::{EntryRef, TaskError, Value},
};

/// What a scheduler is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// A task that took down more workers than this errs.
    pub allowed_failures: u32,
    /// Nanoseconds of silence after which a worker is taken for dead.
    pub worker_ttl: u64,
    /// Bytes a second between workers, for estimates.
    pub bandwidth: f64,
    /// Tasks without dependencies assigned to a worker ahead of time, in multiples of its threads.
    pub saturation: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { allowed_failures: 3, worker_ttl: 30_000_000_000, bandwidth: 1e9, saturation: 1.1 }
    }
}

/// Where a task stands. See the picture in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Known, neither computed nor to be computed.
    Released,
    /// To be computed; not all it needs is in memory.
    Waiting,
    /// Could run, but no worker there may run it.
    NoWorker,
    /// Could run, as soon as a worker has too little to do.
    Queued,
    /// Assigned to a worker.
    Processing,
    /// Its result is in a worker's memory.
    Memory,
    /// It failed for good.
    Erred,
    /// About to be removed.
    Forgotten,
}

impl TaskState {
    /// The state's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Waiting => "waiting",
            Self::NoWorker => "no-worker",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Memory => "memory",
            Self::Erred => "erred",
            Self::Forgotten => "forgotten",
        }
    }
}

/// A task's place in the arena, and which of the tenants that follow each other there is meant.
///
/// The scheduler's own name of a task. Workers know it by a [`TaskId`], and by another one each time
/// it is computed anew: so no word of theirs, however late, is ever about the wrong computation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TaskRef {
    index: u32,
    tenant: u32,
}

impl std::fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {}.{}", self.index, self.tenant)
    }
}

/// The function number of data that was scattered: nothing computes it.
pub(super) const SCATTERED: u32 = u32::MAX;

/// One task.
pub(super) struct Task {
    pub(super) this: TaskRef,
    /// What workers call its present computation and the result of that.
    pub(super) id: TaskId,
    pub(super) key: Key,
    pub(super) state: TaskState,
    /// A worker said that it will take its time: it counts neither for occupancy nor for slots.
    pub(super) long_running: bool,
    pub(super) suspicious: u8,
    pub(super) retries: u32,
    pub(super) function: u32,
    /// 0 for the default ones.
    pub(super) options: u32,
    /// Dependencies that are not in memory, while waiting.
    pub(super) waiting_on: u32,
    /// Dependents that are to be computed and need its result.
    pub(super) waiters: u32,
    /// Dependents that are not forgotten.
    pub(super) live_dependents: u32,
    pub(super) worker: Option<WorkerId>,
    pub(super) priority: Priority,
    pub(super) nbytes: u64,
    /// What it added to its worker's occupancy, in nanoseconds.
    pub(super) estimate: u64,
    pub(super) arguments: Arguments,
    pub(super) dependencies: SmallVec<[TaskRef; 2]>,
    /// Forgotten ones may linger: see `live_dependents`.
    pub(super) dependents: SmallVec<[TaskRef; 2]>,
    pub(super) who_has: SmallVec<[WorkerId; 2]>,
    pub(super) who_wants: SmallVec<[ClientId; 2]>,
    pub(super) error: Option<TaskError>,
}

impl Task {
    /// Whether somebody needs the result.
    pub(super) fn needed(&self) -> bool {
        self.waiters > 0 || !self.who_wants.is_empty()
    }

    /// Whether it is to be computed or being computed.
    pub(super) fn active(&self) -> bool {
        matches!(
            self.state,
            TaskState::Waiting | TaskState::NoWorker | TaskState::Queued | TaskState::Processing
        )
    }
}

pub(super) struct Worker {
    pub(super) info: WorkerInfo,
    pub(super) metrics: Metrics,
    pub(super) processing: KeySet<TaskRef>,
    /// Of these, the ones that count for slots.
    pub(super) busy: u32,
    pub(super) has: KeySet<TaskRef>,
    pub(super) nbytes: u64,
    /// Nanoseconds of work expected to be waiting.
    pub(super) occupancy: u64,
    pub(super) heard: u64,
    /// Peers it was told the addresses of.
    pub(super) told: KeySet<WorkerId>,
}

impl Worker {
    /// What the ordering by load goes by.
    pub(super) fn load(&self) -> u64 {
        (u64::from(self.busy) << 16) / u64::from(self.info.nthreads.max(1))
    }
}

#[derive(Default)]
pub(super) struct Client {
    pub(super) told: KeySet<WorkerId>,
}

pub(super) struct FunctionInfo {
    pub(super) entry: EntryRef,
    pub(super) name: Arc<str>,
    /// Mean nanoseconds, once known.
    pub(super) duration: Option<u64>,
}

struct Step {
    at: u64,
    stimulus: u64,
    key: Key,
    start: TaskState,
    finish: TaskState,
    worker: Option<WorkerId>,
}

/// Steps remembered for stories.
const STORY: usize = 100_000;

/// The scheduler, as a pure state machine.
pub struct State {
    pub(super) config: Config,
    pub(super) places: Vec<Option<Box<Task>>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    pub(super) by_key: KeyMap<Key, TaskRef>,
    pub(super) functions: Vec<FunctionInfo>,
    pub(super) function_numbers: KeyMap<EntryRef, u32>,
    pub(super) options: Vec<TaskOptions>,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    /// Workers by load, the least loaded first.
    pub(super) by_load: BTreeSet<(u64, WorkerId)>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) queued: BinaryHeap<Reverse<(Priority, TaskRef)>>,
    pub(super) no_worker: KeySet<TaskRef>,
    pub(super) submissions: u32,
    next_worker: u32,
    next_client: u32,
    story: VecDeque<Step>,
    pub(super) stimulus: u64,
    pub(super) now: u64,
    pub(super) recommendations: VecDeque<(TaskRef, TaskState)>,
    /// A small result on its way through to the clients that want it.
    pub(super) passing: Option<Value>,
    pub(super) out: Vec<Instruction>,
}

impl State {
    /// A scheduler without workers, clients or tasks.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            places: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            by_key: KeyMap::default(),
            functions: Vec::new(),
            function_numbers: KeyMap::default(),
            options: vec![TaskOptions::default()],
            workers: BTreeMap::new(),
            by_load: BTreeSet::new(),
            clients: BTreeMap::new(),
            queued: BinaryHeap::new(),
            no_worker: KeySet::default(),
            submissions: 0,
            next_worker: 0,
            next_client: 0,
            story: VecDeque::new(),
            stimulus: 0,
            now: 0,
            recommendations: VecDeque::new(),
            passing: None,
            out: Vec::new(),
        }
    }

    pub(super) fn new_worker_id(&mut self) -> WorkerId {
        self.next_worker += 1;
        WorkerId(self.next_worker - 1)
    }

    pub(super) fn new_client_id(&mut self) -> ClientId {
        self.next_client += 1;
        ClientId(self.next_client - 1)
    }

    pub(super) fn task(&self, id: TaskRef) -> Option<&Task> {
        self.places.get(id.index as usize)?.as_deref().filter(|task| task.this == id)
    }

    pub(super) fn task_mut(&mut self, id: TaskRef) -> Option<&mut Task> {
        self.places.get_mut(id.index as usize)?.as_deref_mut().filter(|task| task.this == id)
    }

    /// The task that a worker means, unless that computation of it is over.
    pub(super) fn computation(&self, id: TaskId) -> Option<&Task> {
        self.places.get(id.index())?.as_deref().filter(|task| task.id == id)
    }

    /// What workers say of a task's present computation from now on is about the past.
    fn end_computation(&mut self, id: TaskRef) {
        let generation = &mut self.generations[id.index as usize];
        *generation += 1;
        let next = TaskId::new(id.index, *generation);
        if let Some(task) = self.task_mut(id) {
            task.id = next;
        }
    }

    pub(super) fn set_state(&mut self, id: TaskRef, finish: TaskState) {
        let Some(task) = self.task_mut(id) else { return };
        let start = std::mem::replace(&mut task.state, finish);
        self.log(id, start, finish);
        let known_to_workers = |state| matches!(state, TaskState::Processing | TaskState::Memory);
        if known_to_workers(start) && !known_to_workers(finish) {
            self.end_computation(id);
        }
    }

    /// Makes a task in state released.
    pub(super) fn create(&mut self, key: Key, function: u32) -> TaskRef {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.generations.push(0);
            self.places.len() as u32 - 1
        });
        let generation = self.generations[index as usize];
        let id = TaskRef { index, tenant: generation };
        self.by_key.insert(key, id);
        self.places[index as usize] = Some(Box::new(Task {
            this: id,
            id: TaskId::new(index, generation),
            key,
            state: TaskState::Released,
            long_running: false,
            suspicious: 0,
            retries: 0,
            function,
            options: 0,
            waiting_on: 0,
            waiters: 0,
            live_dependents: 0,
            worker: None,
            priority: Priority::default(),
            nbytes: 0,
            estimate: 0,
            arguments: Arguments::default(),
            dependencies: SmallVec::new(),
            dependents: SmallVec::new(),
            who_has: SmallVec::new(),
            who_wants: SmallVec::new(),
            error: None,
        }));
        id
    }

    /// Frees a task's place for another.
    pub(super) fn remove(&mut self, id: TaskRef) -> Option<Box<Task>> {
        self.task(id)?;
        let task = self.places[id.index as usize].take()?;
        self.by_key.remove(&task.key);
        self.generations[id.index as usize] += 1;
        self.free.push(id.index);
        Some(task)
    }

    pub(super) fn options_of(&self, task: &Task) -> &TaskOptions {
        &self.options[task.options as usize]
    }

    pub(super) fn log(&mut self, id: TaskRef, start: TaskState, finish: TaskState) {
        let Some(task) = self.task(id) else { return };
        let (key, worker) = (task.key, task.worker);
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        let (at, stimulus) = (self.now, self.stimulus);
        self.story.push_back(Step { at, stimulus, key, start, finish, worker });
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> usize {
        self.by_key.len()
    }

    /// Where a task stands.
    pub fn task_state(&self, key: Key) -> Option<TaskState> {
        Some(self.task(*self.by_key.get(&key)?)?.state)
    }

    /// What happened to a task, oldest first, as far as remembered.
    pub fn story(&self, key: Key) -> Vec<StoryEvent> {
        let event = |step: &Step| StoryEvent {
            at: step.at,
            stimulus: step.stimulus,
            start: step.start.name().into(),
            finish: step.finish.name().into(),
            worker: step.worker,
        };
        self.story.iter().filter(|step| step.key == key).map(event).collect()
    }

    /// The addresses of the workers that hold each of these results; of all where `keys` is empty.
    pub fn who_has(&self, keys: &[Key]) -> Vec<(Key, Vec<Arc<str>>)> {
        let addresses = |id: &TaskRef| {
            let holders = self.task(*id).map(|task| task.who_has.as_slice()).unwrap_or_default();
            holders.iter().filter_map(|w| Some(self.workers.get(w)?.info.address.clone())).collect()
        };
        if keys.is_empty() {
            return self.by_key.iter().map(|(key, id)| (*key, addresses(id))).collect();
        }
        keys.iter().map(|key| (*key, self.by_key.get(key).map(addresses).unwrap_or_default())).collect()
    }

    /// The results that each worker holds.
    pub fn has_what(&self) -> Vec<(Arc<str>, Vec<Key>)> {
        let keys = |worker: &Worker| worker.has.iter().filter_map(|id| Some(self.task(*id)?.key)).collect();
        self.workers.values().map(|worker| (worker.info.address.clone(), keys(worker))).collect()
    }

    /// The cluster as a whole; the address is for the server to fill in.
    pub fn info(&self) -> SchedulerInfo {
        let mut counts = BTreeMap::<&str, u64>::new();
        for task in self.places.iter().flatten() {
            *counts.entry(task.state.name()).or_default() += 1;
        }
        let status = |(id, worker): (&WorkerId, &Worker)| WorkerStatus {
            id: *id,
            info: worker.info.clone(),
            processing: worker.processing.len() as u32,
            in_memory: worker.has.len() as u64,
            nbytes: worker.nbytes,
            occupancy: worker.occupancy as f64 / 1e9,
            metrics: worker.metrics,
        };
        SchedulerInfo {
            address: String::new(),
            workers: self.workers.iter().map(status).collect(),
            tasks: counts.into_iter().map(|(state, count)| (state.to_owned(), count)).collect(),
            clients: self.clients.len() as u32,
        }
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// If it does not.
    pub fn validate(&self) {
        assert!(self.recommendations.is_empty(), "all recommendations are followed");
        let mut waiters = KeyMap::<TaskRef, u32>::default();
        let mut live = KeyMap::<TaskRef, u32>::default();
        for task in self.places.iter().flatten() {
            let (id, state) = (task.this, task.state);
            assert_eq!(self.by_key.get(&task.key), Some(&id), "{id:?} is found by its key");
            assert_eq!(state == TaskState::Processing, task.worker.is_some(), "{id:?} {state:?}: worker");
            assert_eq!(state == TaskState::Memory, !task.who_has.is_empty(), "{id:?} {state:?}: holders");
            assert_eq!(state == TaskState::Erred, task.error.is_some(), "{id:?} {state:?}: error");
            assert_eq!(state == TaskState::NoWorker, self.no_worker.contains(&id), "{id:?} {state:?}");
            assert_ne!(state, TaskState::Forgotten, "{id:?} is forgotten and still here");
            for dependency in &task.dependencies {
                let other = self.task(*dependency).expect("dependencies are not forgotten first");
                assert!(other.dependents.contains(&id), "{dependency:?} knows its dependent {id:?}");
                *live.entry(*dependency).or_default() += 1;
                if task.active() {
                    *waiters.entry(*dependency).or_default() += 1;
                }
            }
            if task.active() && task.function != SCATTERED {
                let missing = task
                    .dependencies
                    .iter()
                    .filter(|d| self.task(**d).is_some_and(|t| t.state != TaskState::Memory));
                let missing = missing.count() as u32;
                if state == TaskState::Waiting {
                    assert_eq!(missing, task.waiting_on, "{id:?}: dependencies that are not in memory");
                    assert!(missing > 0, "{id:?} waits for something");
                } else {
                    assert_eq!(missing, 0, "{id:?} {state:?}: dependencies that are not in memory");
                }
            }
            for worker in &task.who_has {
                assert!(self.workers[worker].has.contains(&id), "{worker:?} has {id:?}");
            }
            if let Some(worker) = task.worker {
                assert!(self.workers[&worker].processing.contains(&id), "{worker:?} processes {id:?}");
            }
            if state == TaskState::Released {
                assert!(!task.needed(), "{id:?} is released and needed");
            }
            assert!(task.live_dependents > 0 || task.needed(), "{id:?} {state:?}: nobody refers to it");
        }
        for task in self.places.iter().flatten() {
            assert_eq!(
                task.waiters,
                waiters.get(&task.this).copied().unwrap_or(0),
                "{:?}: waiters",
                task.this
            );
            assert_eq!(task.live_dependents, live.get(&task.this).copied().unwrap_or(0), "{:?}", task.this);
        }
        for (id, worker) in &self.workers {
            let tasks = |ids: &KeySet<TaskRef>| -> Vec<&Task> {
                ids.iter().map(|id| self.task(*id).expect("a worker's tasks are known")).collect()
            };
            let processing = tasks(&worker.processing);
            assert!(processing.iter().all(|t| t.worker == Some(*id)), "{id:?} processes what it should");
            let busy = processing.iter().filter(|t| !t.long_running);
            assert_eq!(busy.clone().count() as u32, worker.busy, "{id:?}: busy");
            assert_eq!(busy.map(|t| t.estimate).sum::<u64>(), worker.occupancy, "{id:?}: occupancy");
            let held = tasks(&worker.has);
            assert_eq!(held.iter().map(|t| t.nbytes).sum::<u64>(), worker.nbytes, "{id:?}: bytes");
            assert!(self.by_load.contains(&(worker.load(), *id)), "{id:?} is ordered by its load");
        }
        assert_eq!(self.by_load.len(), self.workers.len(), "each worker is ordered once");
    }
}
