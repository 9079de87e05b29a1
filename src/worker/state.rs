//! What a worker knows.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    mem,
    sync::Arc,
};

use smallvec::SmallVec;

use super::{FileId, Instruction, memory::Memory, ready::Ready};
use crate::{
    graph::{KeyMap, KeySet},
    protocol::{ComputeTask, Fetch, Finished, FromWorker, Metrics, Priority, TaskId, WorkerId},
    task::{EntryRef, Value},
};

/// What a worker has to work with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Compute threads.
    pub nthreads: u32,
    /// Bytes of memory it may use; 0 for no limit.
    pub memory_limit: u64,
    /// What it does as these fill up.
    pub thresholds: Thresholds,
    /// Its supply of abstract resources.
    pub resources: Vec<(String, f64)>,
    /// Whether its compute threads hand results to tasks that they were given before these were there, and short tasks
    /// are reported some at a time.
    pub chains: bool,
}

/// What a worker does as its memory fills up: shares of its limit, from 0 to 1; `None` switches one off.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Results in memory beyond this are written to disk.
    pub target: Option<f64>,
    /// So are they when the process occupies more than this, whatever with.
    pub spill: Option<f64>,
    /// When the process occupies more than this, no more tasks are started.
    pub pause: Option<f64>,
    /// When the process occupies more than this, it ends, if it is a worker's own.
    pub terminate: Option<f64>,
}

/// As Dask has them.
impl Default for Thresholds {
    fn default() -> Self {
        Self { target: Some(0.6), spill: Some(0.7), pause: Some(0.8), terminate: Some(0.95) }
    }
}

/// Where a task or a dependency stands on this worker. See the picture in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Named by others, neither wanted nor here.
    Released,
    /// To be run; its dependencies are not all here.
    Waiting,
    /// To be fetched from a peer.
    Fetch,
    /// Being fetched from a peer.
    Flight,
    /// To be run as soon as a thread is free.
    Ready,
    /// To be run as soon as a thread and its resources are free.
    Constrained,
    /// About to run: it has its place among the compute threads, and what it needs is being read from disk.
    Reading,
    /// With the compute threads.
    Executing,
    /// Running, outside of the count of compute threads.
    LongRunning,
    /// Its value is here, in memory or on disk.
    Memory,
    /// It failed; reported and then released.
    Error,
    /// Freed while executing or in flight, which goes on.
    Cancelled,
}

/// What there is of a result on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Disk {
    /// Nothing.
    #[default]
    Nothing,
    /// It is being written.
    Writing(FileId),
    /// It is there, in so many bytes.
    Written(FileId, u64),
    /// It can never be there: its type cannot be serialized.
    Refused,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) state: TaskState,
    /// Of a cancelled one, what goes on.
    pub(super) previous: TaskState,
    /// What to run, of what is to be run here.
    pub(super) spec: Option<Arc<ComputeTask>>,
    /// Tasks here that need it.
    pub(super) dependents: SmallVec<[TaskId; 2]>,
    /// Dependencies that are not here; while reading, those that are not read yet; while executing, those that other
    /// executing tasks hand over.
    pub(super) missing: u32,
    pub(super) who_has: SmallVec<[WorkerId; 4]>,
    /// The peer that will be asked for it, while to be fetched.
    pub(super) queued_at: Option<WorkerId>,
    pub(super) nbytes: u64,
    /// The result, where tasks can read it at once.
    pub(super) value: Option<Value>,
    /// Bytes of memory that the value takes: those of a mapped file take none.
    pub(super) occupied: u64,
    pub(super) disk: Disk,
    /// It is being read from disk.
    pub(super) reading: bool,
    /// When it was used last, by [`State::age`].
    pub(super) used: u64,
    /// Tasks that run with it in hand, or are about to; those that name it twice count twice.
    pub(super) pins: u32,
    /// The bytes that these count for.
    pub(super) pinned: u64,
    /// The scheduler asked for a copy, whether or not a task here needs it.
    pub(super) acquired: bool,
    /// It comes from a peer for the tasks here that need it, and goes with the last of them; nobody else knows of it.
    pub(super) passing: bool,
    /// What it added to the backlog of the compute threads.
    pub(super) estimate: u64,
}

impl Task {
    /// Whether the compute threads have it, whether or not anybody still wants it.
    pub(super) fn is_executing(&self) -> bool {
        self.state == TaskState::Executing
            || self.state == TaskState::Cancelled && self.previous == TaskState::Executing
    }
}

impl Default for Task {
    fn default() -> Self {
        Self {
            state: TaskState::Released,
            previous: TaskState::Released,
            spec: None,
            dependents: SmallVec::new(),
            missing: 0,
            who_has: SmallVec::new(),
            queued_at: None,
            nbytes: 0,
            value: None,
            occupied: 0,
            disk: Disk::Nothing,
            reading: false,
            used: 0,
            pins: 0,
            pinned: 0,
            acquired: false,
            passing: false,
            estimate: 0,
        }
    }
}

/// A peer that is being asked for results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) peer: WorkerId,
    /// Since when.
    pub(super) since: u64,
    /// Bytes that were asked for.
    pub(super) nbytes: u64,
}

/// One step in the story of a task on this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Nanoseconds, by the caller's clock.
    pub at: u64,
    /// The task.
    pub id: TaskId,
    /// The state before.
    pub start: TaskState,
    /// The state after.
    pub finish: TaskState,
}

/// The steps that tasks took, and how many wait.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) now: u64,
    story: VecDeque<Step>,
    /// Tasks that wait for what is not here.
    waiting: u32,
}

impl Steps {
    /// A task changes its state.
    pub(super) fn take(&mut self, id: TaskId, task: &mut Task, finish: TaskState) {
        let start = mem::replace(&mut task.state, finish);
        self.waiting += u32::from(finish == TaskState::Waiting);
        self.waiting -= u32::from(start == TaskState::Waiting);
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(Step { at: self.now, id, start, finish });
    }
}

/// A worker, as a pure state machine.
pub struct State {
    pub(super) config: Config,
    pub(super) tasks: KeyMap<TaskId, Task>,
    pub(super) ready: Ready,
    /// From this height on they are critical.
    pub(super) critical: u32,
    pub(super) constrained: BinaryHeap<Reverse<(Priority, TaskId)>>,
    pub(super) available: Vec<(String, f64)>,
    /// To be fetched, by the peer that will be asked.
    pub(super) to_fetch: BTreeMap<WorkerId, VecDeque<TaskId>>,
    /// Peers that are being asked.
    pub(super) asked: SmallVec<[Asked; 8]>,
    /// What the latest fetches took, that the scheduler was not told yet.
    pub(super) fetches: Vec<Fetch>,
    /// When reports took them along.
    pub(super) fetches_told: u64,
    /// Peers that answered before.
    pub(super) met: KeySet<WorkerId>,
    /// Peers that wait for results of tasks here.
    pub(super) forwards: KeyMap<TaskId, SmallVec<[WorkerId; 1]>>,
    /// Tasks with the compute threads, or about to be.
    pub(super) executing: u32,
    /// Those of them that cannot start yet: others with the compute threads make what they need.
    pub(super) chained: u32,
    /// Tasks that would wait for others there, had there been room.
    pub(super) kept_out: VecDeque<TaskId>,
    /// Tasks that were assigned and are not done.
    pub(super) assigned: u32,
    /// Reports of short tasks that wait for others, and until when at most.
    pub(super) reports: Vec<Finished>,
    pub(super) reports_due: u64,
    /// Copies that came and are not reported, and until when that waits for others at most.
    pub(super) copies: Vec<TaskId>,
    pub(super) copies_due: u64,
    /// It will leave, and starts nothing more.
    pub(super) retiring: bool,
    pub(super) backlog: u64,
    pub(super) durations: KeyMap<EntryRef, u64>,
    pub(super) memory: Memory,
    pub(super) fetched: u64,
    /// Nanoseconds spent running tasks.
    pub(super) busy: u64,
    pub(super) steps: Steps,
    pub(super) now: u64,
    pub(super) out: Vec<Instruction>,
    #[cfg(debug_assertions)]
    pub(super) checks: crate::checks::Checks,
}

/// Steps remembered for stories.
const STORY: usize = 10_000;

impl State {
    /// A worker that holds and does nothing yet.
    pub fn new(config: Config) -> Self {
        let available = config.resources.clone();
        Self {
            memory: Memory::new(&config),
            config,
            tasks: KeyMap::default(),
            ready: Ready::default(),
            critical: u32::MAX,
            constrained: BinaryHeap::new(),
            available,
            to_fetch: BTreeMap::new(),
            asked: SmallVec::new(),
            fetches: Vec::new(),
            fetches_told: 0,
            met: KeySet::default(),
            forwards: KeyMap::default(),
            executing: 0,
            chained: 0,
            kept_out: VecDeque::new(),
            assigned: 0,
            reports: Vec::new(),
            reports_due: 0,
            copies: Vec::new(),
            copies_due: 0,
            retiring: false,
            backlog: 0,
            durations: KeyMap::default(),
            fetched: 0,
            busy: 0,
            steps: Steps::default(),
            now: 0,
            out: Vec::new(),
            #[cfg(debug_assertions)]
            checks: Default::default(),
        }
    }

    /// The value of a result that is here and can be read at once.
    pub fn value(&self, id: TaskId) -> Option<&Value> {
        self.tasks.get(&id)?.value.as_ref()
    }

    /// The file of a result that is on disk.
    pub fn file(&self, id: TaskId) -> Option<FileId> {
        match self.tasks.get(&id)?.disk {
            Disk::Written(file, _) => Some(file),
            _ => None,
        }
    }

    /// Whether a result is here, in memory or on disk.
    pub(super) fn has(&self, id: TaskId) -> bool {
        self.tasks.get(&id).is_some_and(|task| task.state == TaskState::Memory)
    }

    /// Whether compute threads are idle, and what could run there waits for others, mostly at peers.
    pub fn waits_for_peers(&self) -> bool {
        let running = self.executing - self.chained;
        running < self.config.nthreads && self.ready.is_empty() && self.steps.waiting > 0
    }

    /// Whether it is to leave.
    pub fn is_retiring(&self) -> bool {
        self.retiring
    }

    /// Where a task stands here.
    pub fn task_state(&self, id: TaskId) -> Option<TaskState> {
        self.tasks.get(&id).map(|task| task.state)
    }

    /// What happened to a task here, oldest first, as far as remembered.
    pub fn story(&self, id: TaskId) -> Vec<Step> {
        self.steps.story.iter().filter(|step| step.id == id).copied().collect()
    }

    /// What fetches took since this was asked last, for the scheduler.
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        mem::take(&mut self.fetches)
    }

    /// Figures for a heartbeat.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            managed: self.memory.managed,
            spilled: self.memory.spilled,
            on_disk: self.memory.on_disk,
            resident: 0,
            executing: self.executing,
            ready: (self.ready.len() + self.constrained.len()) as u32,
            fetched: self.fetched,
            sent: 0,
            saved: 0,
            busy: self.busy,
        }
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// If it does not.
    pub fn validate(&self) {
        let (mut executing, mut chained) = (0, 0);
        for (id, task) in &self.tasks {
            let state = task.state;
            let here = task.value.is_some() || matches!(task.disk, Disk::Written(..));
            assert_eq!(state == TaskState::Memory, here, "{id:?} {state:?}: value");
            let places = [state, task.previous];
            if places.contains(&TaskState::Executing) || state == TaskState::Reading {
                executing += 1;
                chained += u32::from(state != TaskState::Reading && task.missing > 0);
            }
            if state == TaskState::Reading {
                let spec = task.spec.as_ref().expect("what is to be run has something to run");
                let unread: BTreeSet<TaskId> = spec.dependencies.iter().map(|d| d.id).collect();
                let unread: Vec<&Task> =
                    unread.iter().map(|d| &self.tasks[d]).filter(|d| d.value.is_none()).collect();
                assert!(unread.iter().all(|d| d.reading), "{id:?}: what it lacks is being read");
                assert!(unread.len() as u32 == task.missing && !unread.is_empty(), "{id:?}: unread");
            }
            if matches!(state, TaskState::Waiting | TaskState::Ready | TaskState::Constrained) {
                let spec = task.spec.as_ref().expect("what is to be run has something to run");
                let dependencies: BTreeSet<TaskId> = spec.dependencies.iter().map(|d| d.id).collect();
                let missing = dependencies.iter().filter(|id| !self.has(**id)).count();
                assert_eq!(missing as u32, task.missing, "{id:?}: dependencies that are not here");
                assert_eq!(state == TaskState::Waiting, missing > 0, "{id:?} {state:?}: {missing} missing");
            }
            let passed = state == TaskState::Memory && task.passing && task.dependents.is_empty();
            assert!(!passed, "{id:?} passed, and is still here");
            let queued =
                task.queued_at.is_some_and(|p| self.to_fetch.get(&p).is_some_and(|q| q.contains(id)));
            assert_eq!(queued, task.queued_at.is_some(), "{id:?}: queued where it says");
            assert!(!queued || state == TaskState::Fetch, "{id:?} {state:?}: queued");
            for dependent in &task.dependents {
                let other = self.tasks.get(dependent).expect("dependents exist");
                let spec = other.spec.as_ref().expect("dependents are to be run");
                assert!(
                    spec.dependencies.iter().any(|d| d.id == *id),
                    "{id:?} is no dependency of {dependent:?}"
                );
            }
            assert!(
                state != TaskState::Released || !task.dependents.is_empty(),
                "{id:?}: released and nobody's dependency"
            );
        }
        assert_eq!(executing, self.executing, "tasks with the compute threads");
        let assigned = self.tasks.values().filter(|task| task.spec.is_some()).count();
        assert_eq!(assigned as u32, self.assigned, "tasks that were assigned and are not done");
        assert_eq!(chained, self.chained, "tasks that wait for others there");
        let waiting = self.tasks.values().filter(|task| task.state == TaskState::Waiting).count();
        assert_eq!(waiting as u32, self.steps.waiting, "tasks that wait for what is not here");
        for id in self.forwards.keys() {
            assert!(
                self.tasks.get(id).is_some_and(|task| task.spec.is_some()),
                "{id:?} is not to be run here"
            );
        }
        self.validate_memory();
    }

    pub(super) fn step(&mut self, id: TaskId, finish: TaskState) {
        if let Some(task) = self.tasks.get_mut(&id) {
            self.steps.take(id, task, finish);
        }
    }

    pub(super) fn send(&mut self, message: FromWorker) {
        self.send_reports();
        self.out.push(Instruction::Send(message));
    }
}
