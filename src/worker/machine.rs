//! The worker's state machine.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use smallvec::SmallVec;

use super::{Execution, Instruction, Stimulus};
use crate::{
    graph::KeyMap,
    protocol::{ComputeTask, Dependency, Finished, FromWorker, Metrics, Priority, TaskId, WorkerId},
    task::{EntryRef, TaskError, Value},
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

/// Peers asked at once.
const GATHERS_AT_ONCE: usize = 50;
/// Bytes asked of a peer in one request, one result at least.
const GATHER_BYTES: u64 = 64 << 20;
/// Results up to this many bytes go along with the report when a client wants them.
const INLINE_BYTES: u64 = 4096;
/// Short tasks are handed to the compute threads ahead of time, this many nanoseconds of them a
/// thread, so that no thread waits for the next one to cross over.
const AHEAD_NS: u64 = 250_000;
/// And never more than this many a thread.
const AHEAD_TASKS: u32 = 256;

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
    /// In flight, freed, and then assigned to be run here.
    Resumed,
}

#[derive(Debug)]
struct Task {
    state: TaskState,
    /// Of a cancelled or resumed one, what goes on.
    previous: TaskState,
    /// What to run, of what is to be run here.
    spec: Option<Box<ComputeTask>>,
    /// Tasks here that need it.
    dependents: SmallVec<[TaskId; 2]>,
    /// Dependencies that are not here.
    missing: u32,
    who_has: SmallVec<[WorkerId; 2]>,
    nbytes: u64,
    value: Option<Value>,
    /// The scheduler asked for a copy, whether or not a task here needs it.
    acquired: bool,
    /// What it added to the backlog of the compute threads.
    estimate: u64,
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
    config: Config,
    tasks: KeyMap<TaskId, Task>,
    ready: BinaryHeap<Reverse<(Priority, TaskId)>>,
    constrained: BinaryHeap<Reverse<(Priority, TaskId)>>,
    available: Vec<(String, f64)>,
    /// To be fetched, by the peer that will be asked.
    to_fetch: BTreeMap<WorkerId, VecDeque<TaskId>>,
    asked: SmallVec<[WorkerId; 8]>,
    executing: u32,
    backlog: u64,
    durations: KeyMap<EntryRef, u64>,
    managed: u64,
    fetched: u64,
    story: VecDeque<Step>,
    now: u64,
    out: Vec<Instruction>,
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
            executing: 0,
            backlog: 0,
            durations: KeyMap::default(),
            managed: 0,
            fetched: 0,
            story: VecDeque::new(),
            now: 0,
            out: Vec::new(),
        }
    }

    /// Takes in what happened at `now` (nanoseconds of any clock) and says what to do.
    pub fn handle(&mut self, stimulus: Stimulus, now: u64) -> Vec<Instruction> {
        self.handle_many([stimulus], now)
    }

    /// As [`State::handle`], for all that happened in one turn.
    pub fn handle_many(&mut self, stimuli: impl IntoIterator<Item = Stimulus>, now: u64) -> Vec<Instruction> {
        self.now = now;
        for stimulus in stimuli {
            self.react(stimulus);
        }
        self.gather();
        self.execute();
        #[cfg(debug_assertions)]
        if self.tasks.len() < 1000 {
            self.validate();
        }
        std::mem::take(&mut self.out)
    }

    /// The value of a result that is here.
    pub fn value(&self, id: TaskId) -> Option<&Value> {
        self.tasks.get(&id)?.value.as_ref()
    }

    /// Where a task stands here.
    pub fn task_state(&self, id: TaskId) -> Option<TaskState> {
        self.tasks.get(&id).map(|task| task.state)
    }

    /// What happened to a task here, oldest first, as far as remembered.
    pub fn story(&self, id: TaskId) -> Vec<Step> {
        self.story.iter().filter(|step| step.id == id).copied().collect()
    }

    /// Figures for a heartbeat.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            managed: self.managed,
            resident: 0,
            executing: self.executing,
            ready: (self.ready.len() + self.constrained.len()) as u32,
            fetched: self.fetched,
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
            if let Some(value) = &task.value {
                let _ = value;
                managed += task.nbytes;
            }
            if state == TaskState::Executing || task.previous == TaskState::Executing {
                executing += 1;
            }
            if matches!(state, TaskState::Waiting | TaskState::Ready | TaskState::Constrained) {
                let spec = task.spec.as_ref().expect("what is to be run has something to run");
                let missing = spec.dependencies.iter().filter(|d| self.value(d.id).is_none()).count();
                assert_eq!(missing as u32, task.missing, "{id:?}: dependencies that are not here");
                assert_eq!(state == TaskState::Waiting, missing > 0, "{id:?} {state:?}: {missing} missing");
            }
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

    fn react(&mut self, stimulus: Stimulus) {
        match stimulus {
            Stimulus::Compute(spec) => self.on_compute(spec),
            Stimulus::Free(ids) => ids.into_iter().for_each(|id| self.on_free(id)),
            Stimulus::Acquire(wanted) => self.on_acquire(wanted),
            Stimulus::WhoHas(held) => self.on_who_has(held),
            Stimulus::PeerGone(peer) => self.on_peer_gone(peer),
            Stimulus::Put(data) => self.on_put(data),
            Stimulus::Gathered { peer, data } => self.on_gathered(peer, data),
            Stimulus::GatherFailed { peer, ids } => {
                self.on_gathered(peer, ids.into_iter().map(|id| (id, None)).collect());
            }
            Stimulus::Executed { id, result, nbytes, duration } => {
                self.on_executed(id, result, nbytes, duration);
            }
            Stimulus::Seceded(id) => self.on_seceded(id),
        }
    }

    fn on_compute(&mut self, spec: ComputeTask) {
        let id = spec.id;
        let task = self.tasks.entry(id).or_default();
        match task.state {
            TaskState::Memory => {
                let (nbytes, value) = (task.nbytes, task.value.clone());
                let value = value.filter(|_| spec.wanted && nbytes <= INLINE_BYTES);
                self.send(FromWorker::Finished(Finished { id, nbytes, duration: 0, value }));
                return;
            }
            TaskState::Cancelled if task.previous == TaskState::Flight => {
                task.spec = Some(Box::new(spec));
                self.step(id, TaskState::Resumed);
                return;
            }
            TaskState::Cancelled => {
                // It still runs: let it. What was freed meanwhile it has in hand already.
                let running = task.previous;
                task.previous = TaskState::Released;
                task.spec = Some(Box::new(spec));
                self.step(id, running);
                return;
            }
            TaskState::Flight => {
                // A dependency of other tasks here, and now to be run here too: what arrives first counts.
                task.spec = Some(Box::new(spec));
                task.previous = TaskState::Flight;
                self.step(id, TaskState::Resumed);
                return;
            }
            TaskState::Released | TaskState::Fetch => {}
            _ => return,
        }
        self.prepare(id, spec);
    }

    /// Makes a task wait for its dependencies, or ready where it has them.
    fn prepare(&mut self, id: TaskId, spec: ComputeTask) {
        let mut missing = 0;
        for dependency in &spec.dependencies {
            let here = self.tasks.entry(dependency.id).or_default();
            if !here.dependents.contains(&id) {
                here.dependents.push(id);
            }
            if here.state == TaskState::Memory {
                continue;
            }
            missing += 1;
            self.want(dependency);
        }
        let task = self.tasks.entry(id).or_default();
        task.missing = missing;
        task.spec = Some(Box::new(spec));
        if missing > 0 {
            self.step(id, TaskState::Waiting);
        } else {
            self.make_ready(id);
        }
    }

    /// Sees to it that a dependency that is not here is fetched.
    fn want(&mut self, dependency: &Dependency) {
        let id = dependency.id;
        let task = self.tasks.entry(id).or_default();
        task.nbytes = dependency.nbytes;
        task.who_has = dependency.who_has.clone();
        match task.state {
            TaskState::Released => self.fetch(id),
            TaskState::Cancelled if task.previous == TaskState::Flight => {
                task.previous = TaskState::Released;
                self.step(id, TaskState::Flight);
            }
            _ => {}
        }
    }

    /// Queues a fetch from one of the holders, or says that nobody is known to hold it.
    fn fetch(&mut self, id: TaskId) {
        self.step(id, TaskState::Fetch);
        let Some(task) = self.tasks.get(&id) else { return };
        if task.who_has.is_empty() {
            return;
        }
        // Different results are asked of different holders.
        let peer = task.who_has[id.index() % task.who_has.len()];
        self.to_fetch.entry(peer).or_default().push_back(id);
    }

    fn make_ready(&mut self, id: TaskId) {
        let Some(spec) = self.tasks.get(&id).and_then(|task| task.spec.as_ref()) else { return };
        let place = Reverse((spec.priority, id));
        if spec.resources.is_empty() {
            self.ready.push(place);
            self.step(id, TaskState::Ready);
        } else {
            self.constrained.push(place);
            self.step(id, TaskState::Constrained);
        }
    }

    fn on_free(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.acquired = false;
        match task.state {
            TaskState::Memory => {
                task.value = None;
                self.managed -= task.nbytes;
                self.step(id, TaskState::Released);
                // Should a task here still need it, it is missing again and nobody is known to have it.
                let dependents = self.tasks.get(&id).map(|t| t.dependents.clone()).unwrap_or_default();
                let mut needed = false;
                for dependent in dependents {
                    let Some(task) = self.tasks.get_mut(&dependent) else { continue };
                    if matches!(task.state, TaskState::Waiting | TaskState::Ready | TaskState::Constrained) {
                        task.missing += 1;
                        needed = true;
                        self.step(dependent, TaskState::Waiting);
                    }
                }
                if needed {
                    if let Some(task) = self.tasks.get_mut(&id) {
                        task.who_has.clear();
                    }
                    self.step(id, TaskState::Fetch);
                    self.send(FromWorker::Missing { id, worker: WorkerId(u32::MAX) });
                }
            }
            TaskState::Waiting | TaskState::Ready | TaskState::Constrained => {
                self.drop_spec(id);
                self.step(id, TaskState::Released);
                self.refetch_if_needed(id);
            }
            TaskState::Executing | TaskState::LongRunning => {
                task.previous = task.state;
                self.step(id, TaskState::Cancelled);
            }
            TaskState::Resumed => {
                let needed = !task.dependents.is_empty();
                self.drop_spec(id);
                if needed {
                    self.tasks.entry(id).or_default().previous = TaskState::Released;
                    self.step(id, TaskState::Flight);
                } else {
                    self.step(id, TaskState::Cancelled);
                }
            }
            TaskState::Flight if task.dependents.is_empty() => {
                task.previous = TaskState::Flight;
                self.step(id, TaskState::Cancelled);
            }
            TaskState::Fetch if task.dependents.is_empty() => self.step(id, TaskState::Released),
            _ => {}
        }
        self.forget_if_idle(id);
    }

    /// What other tasks here need but is no longer to be run here must come from elsewhere.
    fn refetch_if_needed(&mut self, id: TaskId) {
        let needed = self.tasks.get(&id).is_some_and(|t| !t.dependents.is_empty());
        if needed {
            self.fetch(id);
            if self.tasks.get(&id).is_some_and(|t| t.who_has.is_empty()) {
                self.send(FromWorker::Missing { id, worker: WorkerId(u32::MAX) });
            }
        }
    }

    /// Forgets what a task was to run, and lets go of its dependencies.
    fn drop_spec(&mut self, id: TaskId) {
        let Some(spec) = self.tasks.get_mut(&id).and_then(|task| task.spec.take()) else { return };
        for dependency in spec.dependencies {
            let Some(task) = self.tasks.get_mut(&dependency.id) else { continue };
            task.dependents.retain(|d| *d != id);
            if task.dependents.is_empty() && !task.acquired {
                match task.state {
                    TaskState::Fetch => self.step(dependency.id, TaskState::Released),
                    TaskState::Flight => {
                        task.previous = TaskState::Flight;
                        self.step(dependency.id, TaskState::Cancelled);
                    }
                    _ => {}
                }
            }
            self.forget_if_idle(dependency.id);
        }
    }

    fn forget_if_idle(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|t| t.state == TaskState::Released && t.dependents.is_empty()) {
            self.tasks.remove(&id);
        }
    }

    fn on_acquire(&mut self, wanted: Vec<Dependency>) {
        for dependency in wanted {
            if self.value(dependency.id).is_none() {
                self.tasks.entry(dependency.id).or_default().acquired = true;
                self.want(&dependency);
            }
        }
    }

    fn on_who_has(&mut self, held: Vec<Dependency>) {
        for dependency in held {
            let Some(task) = self.tasks.get_mut(&dependency.id) else { continue };
            let idle = task.state == TaskState::Fetch && task.who_has.is_empty();
            task.who_has = dependency.who_has;
            if idle {
                self.fetch(dependency.id);
            }
        }
    }

    fn on_peer_gone(&mut self, peer: WorkerId) {
        self.to_fetch.remove(&peer);
        let concerned: Vec<TaskId> =
            self.tasks.iter().filter(|(_, t)| t.who_has.contains(&peer)).map(|(id, _)| *id).collect();
        for id in concerned {
            self.lose_holder(id, peer);
        }
    }

    /// `peer` does not have the result: others may, else the scheduler must say.
    fn lose_holder(&mut self, id: TaskId, peer: WorkerId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.who_has.retain(|w| *w != peer);
        if task.state == TaskState::Fetch {
            if task.who_has.is_empty() {
                self.send(FromWorker::Missing { id, worker: peer });
            } else {
                self.fetch(id);
            }
        }
    }

    fn on_put(&mut self, data: Vec<(TaskId, Value)>) {
        for (id, value) in data {
            let nbytes = value.nbytes();
            if self.tasks.get(&id).is_none_or(|t| t.value.is_none()) {
                self.hold(id, value, nbytes);
            }
        }
    }

    fn on_gathered(&mut self, peer: WorkerId, data: Vec<(TaskId, Option<Result<Value, TaskError>>)>) {
        self.asked.retain(|w| *w != peer);
        let mut added = Vec::new();
        for (id, answer) in data {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            let state = task.state;
            match (state, answer) {
                (TaskState::Flight | TaskState::Resumed, Some(Ok(value))) => {
                    let nbytes = value.nbytes();
                    self.fetched += nbytes;
                    task.previous = TaskState::Released;
                    let asked = task.spec.is_some();
                    let wanted = task.spec.as_ref().is_some_and(|spec| spec.wanted);
                    self.drop_spec(id);
                    self.hold(id, value.clone(), nbytes);
                    if asked {
                        let value = Some(value).filter(|_| wanted && nbytes <= INLINE_BYTES);
                        self.send(FromWorker::Finished(Finished { id, nbytes, duration: 0, value }));
                    } else {
                        added.push(id);
                    }
                }
                (TaskState::Flight, Some(Err(error))) => {
                    let dependents = task.dependents.clone();
                    self.step(id, TaskState::Released);
                    for dependent in dependents {
                        self.fail(dependent, error.clone());
                    }
                    self.forget_if_idle(id);
                }
                (TaskState::Flight, None) => {
                    self.step(id, TaskState::Fetch);
                    self.lose_holder(id, peer);
                }
                (TaskState::Resumed, _) => {
                    task.previous = TaskState::Released;
                    if let Some(spec) = task.spec.take() {
                        self.step(id, TaskState::Released);
                        self.prepare(id, *spec);
                    }
                }
                (TaskState::Cancelled, _) if task.previous == TaskState::Flight => {
                    task.previous = TaskState::Released;
                    self.step(id, TaskState::Released);
                    self.forget_if_idle(id);
                }
                _ => {}
            }
        }
        if !added.is_empty() {
            self.send(FromWorker::Added(added));
        }
    }

    /// Keeps a value and wakes the tasks that waited for it.
    fn hold(&mut self, id: TaskId, value: Value, nbytes: u64) {
        let task = self.tasks.entry(id).or_default();
        task.value = Some(value);
        task.nbytes = nbytes;
        task.who_has.clear();
        let dependents = task.dependents.clone();
        self.managed += nbytes;
        self.step(id, TaskState::Memory);
        for dependent in dependents {
            let Some(task) = self.tasks.get_mut(&dependent) else { continue };
            if task.state == TaskState::Waiting {
                task.missing -= 1;
                if task.missing == 0 {
                    self.make_ready(dependent);
                }
            }
        }
    }

    fn on_executed(&mut self, id: TaskId, result: Result<Value, TaskError>, nbytes: u64, duration: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let cancelled = task.state == TaskState::Cancelled;
        let running = if cancelled { task.previous } else { task.state };
        if !matches!(running, TaskState::Executing | TaskState::LongRunning) {
            return;
        }
        task.previous = TaskState::Released;
        self.leave_threads(id, running == TaskState::Executing);
        if let Some(entry) = self.tasks.get(&id).and_then(|t| t.spec.as_ref()).map(|spec| spec.entry) {
            let mean = self.durations.entry(entry).or_insert(duration);
            *mean = (*mean * 7 + duration) / 8;
        }
        let wanted = self.tasks.get(&id).and_then(|t| t.spec.as_ref()).is_some_and(|spec| spec.wanted);
        if cancelled {
            self.drop_spec(id);
            self.step(id, TaskState::Released);
            self.refetch_if_needed(id);
            self.forget_if_idle(id);
            return;
        }
        match result {
            Ok(value) => {
                self.drop_spec(id);
                self.hold(id, value.clone(), nbytes);
                let value = Some(value).filter(|_| wanted && nbytes <= INLINE_BYTES);
                self.send(FromWorker::Finished(Finished { id, nbytes, duration, value }));
            }
            Err(error) => self.fail(id, error),
        }
    }

    /// Reports that a task failed and lets go of it.
    fn fail(&mut self, id: TaskId, error: TaskError) {
        self.drop_spec(id);
        self.step(id, TaskState::Error);
        self.send(FromWorker::Erred { id, error });
        self.step(id, TaskState::Released);
        self.forget_if_idle(id);
    }

    fn on_seceded(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match task.state {
            TaskState::Executing => {
                self.step(id, TaskState::LongRunning);
                self.leave_count(id);
                self.send(FromWorker::LongRunning(id));
            }
            TaskState::Cancelled if task.previous == TaskState::Executing => {
                task.previous = TaskState::LongRunning;
                self.leave_count(id);
            }
            _ => {}
        }
    }

    /// A task is off its compute thread: its resources are free again.
    fn leave_threads(&mut self, id: TaskId, counted: bool) {
        if counted {
            self.leave_count(id);
        }
        let Some(spec) = self.tasks.get(&id).and_then(|task| task.spec.as_ref()) else { return };
        for (name, amount) in &spec.resources {
            if let Some((_, free)) = self.available.iter_mut().find(|(n, _)| n == name) {
                *free += amount;
            }
        }
    }

    fn leave_count(&mut self, id: TaskId) {
        self.executing -= 1;
        if let Some(task) = self.tasks.get_mut(&id) {
            self.backlog -= std::mem::take(&mut task.estimate);
        }
    }

    /// Asks peers that are not being asked already.
    fn gather(&mut self) {
        let mut exhausted = SmallVec::<[WorkerId; 8]>::new();
        let peers: SmallVec<[WorkerId; 8]> = self.to_fetch.keys().copied().collect();
        for peer in peers {
            if self.asked.len() >= GATHERS_AT_ONCE {
                break;
            }
            if self.asked.contains(&peer) {
                continue;
            }
            let Some(mut queue) = self.to_fetch.remove(&peer) else { continue };
            let (mut ids, mut nbytes) = (Vec::new(), 0);
            while let Some(&id) = queue.front() {
                let Some(task) = self.tasks.get(&id).filter(|t| t.state == TaskState::Fetch) else {
                    queue.pop_front();
                    continue;
                };
                if !ids.is_empty() && nbytes + task.nbytes > GATHER_BYTES {
                    break;
                }
                nbytes += task.nbytes;
                queue.pop_front();
                ids.push(id);
                self.step(id, TaskState::Flight);
            }
            if !queue.is_empty() {
                self.to_fetch.insert(peer, queue);
            }
            if ids.is_empty() {
                exhausted.push(peer);
            } else {
                self.asked.push(peer);
                self.out.push(Instruction::Gather { peer, ids });
            }
        }
    }

    /// Hands tasks to the compute threads while they have room.
    fn execute(&mut self) {
        self.execute_constrained();
        while let Some(&Reverse((priority, id))) = self.ready.peek() {
            let current = self.tasks.get(&id).filter(|t| t.state == TaskState::Ready);
            let Some(spec) = current.and_then(|t| t.spec.as_ref()).filter(|s| s.priority == priority) else {
                self.ready.pop();
                continue;
            };
            let estimate = self.durations.get(&spec.entry).copied();
            if !self.has_room(estimate) {
                break;
            }
            self.ready.pop();
            self.start(id, estimate.unwrap_or(AHEAD_NS));
        }
    }

    fn execute_constrained(&mut self) {
        let mut waiting = Vec::new();
        while let Some(place) = self.constrained.pop() {
            let Reverse((_, id)) = place;
            let current = self.tasks.get(&id).filter(|t| t.state == TaskState::Constrained);
            let Some(spec) = current.and_then(|t| t.spec.as_ref()) else { continue };
            if self.executing >= self.config.nthreads {
                waiting.push(place);
                break;
            }
            let enough = spec.resources.iter().all(|(name, amount)| {
                self.available.iter().any(|(n, free)| n == name && *free + 1e-9 >= *amount)
            });
            if !enough {
                waiting.push(place);
                continue;
            }
            for (name, amount) in spec.resources.clone() {
                if let Some((_, free)) = self.available.iter_mut().find(|(n, _)| *n == name) {
                    *free -= amount;
                }
            }
            self.start(id, AHEAD_NS);
        }
        self.constrained.extend(waiting);
    }

    /// Whether the compute threads take another task: one each, and short ones ahead of time.
    fn has_room(&self, estimate: Option<u64>) -> bool {
        let threads = self.config.nthreads;
        if self.config.memory_limit > 0 && self.managed > self.config.memory_limit / 5 * 4 {
            return self.executing == 0;
        }
        self.executing < threads
            || estimate.is_some_and(|estimate| {
                self.executing < threads * AHEAD_TASKS
                    && self.backlog + estimate <= AHEAD_NS * u64::from(threads)
            })
    }

    fn start(&mut self, id: TaskId, estimate: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.estimate = estimate;
        self.executing += 1;
        self.backlog += estimate;
        self.step(id, TaskState::Executing);
        let Some(spec) = self.tasks.get(&id).and_then(|task| task.spec.as_ref()) else { return };
        let dependencies = spec.dependencies.iter().filter_map(|d| self.value(d.id).cloned()).collect();
        let execution = Execution {
            id,
            key: spec.key,
            entry: spec.entry,
            arguments: spec.arguments.clone(),
            dependencies,
        };
        self.out.push(Instruction::Execute(execution));
    }

    fn step(&mut self, id: TaskId, finish: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let start = std::mem::replace(&mut task.state, finish);
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(Step { at: self.now, id, start, finish });
    }

    fn send(&mut self, message: FromWorker) {
        self.out.push(Instruction::Send(message));
    }
}
