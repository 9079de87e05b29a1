//! What a worker knows.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use smallvec::SmallVec;

use super::Instruction;
use crate::{
    graph::KeyMap,
    protocol::{ComputeTask, Fetch, FromWorker, Metrics, Priority, TaskId, WorkerId},
    task::{EntryRef, Value},
};

/// What a worker has to work with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Compute threads.
    pub nthreads: u32,
    /// Bytes of results it may hold before it runs one task at a time; 0 for no limit.
    pub memory_limit: u64,
    /// Its supply of abstract resources.
    pub resources: Vec<(String, f64)>,
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
    /// With the compute threads.
    Executing,
    /// Running, outside of the count of compute threads.
    LongRunning,
    /// Its value is here.
    Memory,
    /// It failed; reported and then released.
    Error,
    /// Freed while executing or in flight, which goes on.
    Cancelled,
}

#[derive(Debug)]
pub(super) struct Task {
    pub(super) state: TaskState,
    /// Of a cancelled one, what goes on.
    pub(super) previous: TaskState,
    /// What to run, of what is to be run here.
    pub(super) spec: Option<Box<ComputeTask>>,
    /// Tasks here that need it.
    pub(super) dependents: SmallVec<[TaskId; 2]>,
    /// Dependencies that are not here.
    pub(super) missing: u32,
    pub(super) who_has: SmallVec<[WorkerId; 2]>,
    /// The peer that will be asked for it, while to be fetched.
    pub(super) queued_at: Option<WorkerId>,
    pub(super) nbytes: u64,
    pub(super) value: Option<Value>,
    /// The scheduler asked for a copy, whether or not a task here needs it.
    pub(super) acquired: bool,
    /// What it added to the backlog of the compute threads.
    pub(super) estimate: u64,
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
            acquired: false,
            estimate: 0,
        }
    }
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

/// A worker, as a pure state machine.
pub struct State {
    pub(super) config: Config,
    pub(super) tasks: KeyMap<TaskId, Task>,
    pub(super) ready: BinaryHeap<Reverse<(Priority, TaskId)>>,
    pub(super) constrained: BinaryHeap<Reverse<(Priority, TaskId)>>,
    pub(super) available: Vec<(String, f64)>,
    /// To be fetched, by the peer that will be asked.
    pub(super) to_fetch: BTreeMap<WorkerId, VecDeque<TaskId>>,
    /// Peers that are being asked, and since when.
    pub(super) asked: SmallVec<[(WorkerId, u64); 8]>,
    /// What the latest fetches took, that the scheduler was not told yet.
    pub(super) fetches: Vec<Fetch>,
    pub(super) executing: u32,
    /// It will leave, and starts nothing more.
    pub(super) retiring: bool,
    pub(super) backlog: u64,
    pub(super) durations: KeyMap<EntryRef, u64>,
    pub(super) managed: u64,
    pub(super) fetched: u64,
    /// Nanoseconds spent running tasks.
    pub(super) busy: u64,
    pub(super) story: VecDeque<Step>,
    pub(super) now: u64,
    pub(super) out: Vec<Instruction>,
}

/// Steps remembered for stories.
const STORY: usize = 10_000;

impl State {
    /// A worker that holds and does nothing yet.
    pub fn new(config: Config) -> Self {
        let available = config.resources.clone();
        Self {
            config,
            tasks: KeyMap::default(),
            ready: BinaryHeap::new(),
            constrained: BinaryHeap::new(),
            available,
            to_fetch: BTreeMap::new(),
            asked: SmallVec::new(),
            fetches: Vec::new(),
            executing: 0,
            retiring: false,
            backlog: 0,
            durations: KeyMap::default(),
            managed: 0,
            fetched: 0,
            busy: 0,
            story: VecDeque::new(),
            now: 0,
            out: Vec::new(),
        }
    }

    /// The value of a result that is here.
    pub fn value(&self, id: TaskId) -> Option<&Value> {
        self.tasks.get(&id)?.value.as_ref()
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
        self.story.iter().filter(|step| step.id == id).copied().collect()
    }

    /// What fetches took since this was asked last, for the scheduler.
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.fetches)
    }

    /// Figures for a heartbeat.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            managed: self.managed,
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
        let (mut executing, mut managed) = (0, 0);
        for (id, task) in &self.tasks {
            let state = task.state;
            assert_eq!(state == TaskState::Memory, task.value.is_some(), "{id:?} {state:?}: value");
            managed += if task.value.is_some() { task.nbytes } else { 0 };
            if state == TaskState::Executing || task.previous == TaskState::Executing {
                executing += 1;
            }
            if matches!(state, TaskState::Waiting | TaskState::Ready | TaskState::Constrained) {
                let spec = task.spec.as_ref().expect("what is to be run has something to run");
                let dependencies: BTreeSet<TaskId> = spec.dependencies.iter().map(|d| d.id).collect();
                let missing = dependencies.iter().filter(|id| self.value(**id).is_none()).count();
                assert_eq!(missing as u32, task.missing, "{id:?}: dependencies that are not here");
                assert_eq!(state == TaskState::Waiting, missing > 0, "{id:?} {state:?}: {missing} missing");
            }
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
        assert_eq!(managed, self.managed, "bytes held");
    }

    pub(super) fn step(&mut self, id: TaskId, finish: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let start = std::mem::replace(&mut task.state, finish);
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(Step { at: self.now, id, start, finish });
    }

    pub(super) fn send(&mut self, message: FromWorker) {
        self.out.push(Instruction::Send(message));
    }
}
