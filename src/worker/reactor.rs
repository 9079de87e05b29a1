//! All that can happen to a worker: one function each.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Instruction, Stimulus, TaskState, state::State};
use crate::{
    protocol::{ComputeTask, Dependency, FromWorker, TaskId, WorkerId},
    task::{TaskError, Value},
};

impl State {
    /// Takes in what happened at `now` (nanoseconds of any clock) and says what to do.
    pub fn handle(&mut self, stimulus: Stimulus, now: u64) -> Vec<Instruction> {
        self.handle_many([stimulus], now)
    }

    /// As [`State::handle`], for all that happened in one turn.
    #[inline(never)] // So that instructions can be counted in it.
    pub fn handle_many(&mut self, stimuli: impl IntoIterator<Item = Stimulus>, now: u64) -> Vec<Instruction> {
        (self.now, self.steps.now) = (now, now);
        for stimulus in stimuli {
            self.react(stimulus);
        }
        self.gather();
        self.spill();
        self.execute();
        self.send_due_reports();
        #[cfg(debug_assertions)]
        if self.checks.are_due(self.tasks.len()) {
            self.validate();
        }
        std::mem::take(&mut self.out)
    }

    fn react(&mut self, stimulus: Stimulus) {
        match stimulus {
            Stimulus::Compute(spec) => self.on_compute(spec),
            Stimulus::Free(ids) => ids.into_iter().for_each(|id| self.on_free(id)),
            Stimulus::Acquire(wanted) => self.on_acquire(wanted),
            Stimulus::WhoHas(held) => self.on_who_has(held),
            Stimulus::Forward { id, to } => self.on_forward(id, to),
            Stimulus::Forwarded(data) => self.on_forwarded(data),
            Stimulus::PeerGone(peer) => self.on_peer_gone(peer),
            Stimulus::Retire => self.on_retire(),
            Stimulus::GiveBack(ids) => self.on_give_back(ids),
            Stimulus::Put(data) => self.on_put(data),
            Stimulus::Gathered { peer, data } => self.on_gathered(peer, data),
            Stimulus::GatherFailed { peer, ids } => {
                self.on_gathered(peer, ids.into_iter().map(|id| (id, None)).collect());
            }
            Stimulus::Executed { id, result, nbytes, duration } => {
                self.on_executed(id, result, nbytes, duration);
            }
            Stimulus::Unstarted(ids) => ids.into_iter().for_each(|id| self.on_unstarted(id)),
            Stimulus::Report => self.send_reports(),
            Stimulus::Seceded(id) => self.on_seceded(id),
            Stimulus::Given(ids) => self.on_given(ids),
            Stimulus::Memory { resident } => self.on_memory(resident),
            Stimulus::Spilled(files) => self.on_spilled(files),
            Stimulus::Unspilled { id, file, value, occupied } => self.on_unspilled(id, file, value, occupied),
            Stimulus::UnspillFailed { id, file } => self.on_unspill_failed(id, file),
        }
    }

    fn on_compute(&mut self, spec: Arc<ComputeTask>) {
        // No id is ever assigned twice.
        if self.tasks.contains_key(&spec.id) {
            return;
        }
        if self.retiring {
            return self.send(FromWorker::GaveBack(vec![spec.id]));
        }
        self.critical = spec.critical;
        let (id, mut missing) = (spec.id, 0);
        if spec.dependencies.iter().any(|dependency| dependency.id == id) {
            let error = TaskError::refused("it was assigned as its own dependency");
            return self.send(FromWorker::Erred { id, error });
        }
        for dependency in &spec.dependencies {
            let here = self.tasks.entry(dependency.id).or_default();
            if here.dependents.contains(&id) {
                continue;
            }
            here.dependents.push(id);
            if here.state != TaskState::Memory {
                missing += 1;
                self.want(dependency);
            }
        }
        let task = self.tasks.entry(id).or_default();
        task.missing = missing;
        task.spec = Some(spec);
        self.assigned += 1;
        if missing > 0 {
            self.step(id, TaskState::Waiting);
            self.chain_from(id);
        } else {
            self.make_ready(id);
        }
    }

    fn on_free(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.acquired = false;
        let wanted_here = !task.dependents.is_empty();
        match task.state {
            TaskState::Memory => {
                task.passing = false;
                self.copies.retain(|copy| *copy != id);
                self.put_away(id);
                self.step(id, TaskState::Released);
                if wanted_here {
                    self.miss(id);
                }
            }
            TaskState::Waiting | TaskState::Ready | TaskState::Constrained | TaskState::Reading => {
                self.stop_reading(id);
                self.drop_spec(id);
                self.step(id, TaskState::Released);
            }
            TaskState::Executing | TaskState::LongRunning => {
                task.previous = task.state;
                self.step(id, TaskState::Cancelled);
            }
            TaskState::Fetch | TaskState::Flight if !wanted_here => self.give_up_fetch(id),
            _ => {}
        }
        self.forget_if_idle(id);
    }

    /// A result is here no more. Tasks that wait to run with it need it anew.
    pub(super) fn miss(&mut self, id: TaskId) {
        let mut needed = false;
        for dependent in self.dependents(id) {
            self.stop_reading(dependent);
            let Some(task) = self.tasks.get_mut(&dependent) else { continue };
            if matches!(task.state, TaskState::Waiting | TaskState::Ready | TaskState::Constrained) {
                task.missing += 1;
                needed = true;
                self.step(dependent, TaskState::Waiting);
            }
        }
        if needed {
            self.fetch(id, None);
        }
    }

    /// Tasks here that need a result.
    pub(super) fn dependents(&self, id: TaskId) -> SmallVec<[TaskId; 2]> {
        self.tasks.get(&id).map(|task| SmallVec::from_slice(&task.dependents)).unwrap_or_default()
    }

    /// Forgets what a task was to run, and lets go of its dependencies.
    pub(super) fn drop_spec(&mut self, id: TaskId) {
        let Some(spec) = self.tasks.get_mut(&id).and_then(|task| task.spec.take()) else { return };
        self.assigned -= 1;
        if !self.forwards.is_empty() {
            self.forwards.remove(&id);
        }
        for dependency in &spec.dependencies {
            let Some(task) = self.tasks.get_mut(&dependency.id) else { continue };
            task.dependents.retain(|d| *d != id);
            if task.dependents.is_empty() {
                match task.state {
                    TaskState::Memory if task.passing => self.let_pass(dependency.id),
                    TaskState::Fetch | TaskState::Flight if !task.acquired => {
                        self.give_up_fetch(dependency.id);
                    }
                    TaskState::Released => {}
                    _ => continue,
                }
                self.forget_if_idle(dependency.id);
            }
        }
    }

    pub(super) fn forget_if_idle(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|t| t.state == TaskState::Released && t.dependents.is_empty()) {
            self.tasks.remove(&id);
        }
    }

    fn on_acquire(&mut self, wanted: Vec<Dependency>) {
        for dependency in wanted {
            let id = dependency.id;
            let task = self.tasks.entry(id).or_default();
            if task.state == TaskState::Memory {
                // It is here to stay.
                if std::mem::take(&mut task.passing) {
                    self.send(FromWorker::Added(vec![id]));
                }
                continue;
            }
            task.acquired = true;
            self.want(&dependency);
            if self.tasks.get(&id).is_some_and(|t| t.state == TaskState::Fetch && t.queued_at.is_none()) {
                // It was thought to be here, and nobody else is known to have it.
                self.send(FromWorker::Missing { id, holder: None });
            }
        }
    }

    fn on_who_has(&mut self, held: Vec<Dependency>) {
        for dependency in held {
            let Some(task) = self.tasks.get_mut(&dependency.id) else { continue };
            let idle = task.state == TaskState::Fetch && task.queued_at.is_none();
            task.who_has = dependency.who_has;
            if idle && !task.who_has.is_empty() {
                self.fetch(dependency.id, None);
            }
        }
    }

    fn on_peer_gone(&mut self, peer: WorkerId) {
        self.to_fetch.remove(&peer);
        self.met.remove(&peer);
        let mut queued = Vec::new();
        for (id, task) in &mut self.tasks {
            task.who_has.retain(|holder| *holder != peer);
            if task.queued_at == Some(peer) {
                task.queued_at = None;
                queued.push(*id);
            }
        }
        for id in queued {
            self.fetch(id, Some(peer));
        }
    }

    /// Gives back what no compute thread has yet.
    fn on_retire(&mut self) {
        if std::mem::replace(&mut self.retiring, true) {
            return;
        }
        let mut assigned: Vec<TaskId> =
            self.tasks.iter().filter(|(_, task)| task.spec.is_some()).map(|(id, _)| *id).collect();
        assigned.sort_unstable();
        let (given_back, _) = self.give_back(assigned);
        if !given_back.is_empty() {
            self.send(FromWorker::GaveBack(given_back));
        }
    }

    fn on_give_back(&mut self, ids: Vec<TaskId>) {
        let (given_back, kept) = self.give_back(ids);
        if !given_back.is_empty() {
            self.send(FromWorker::GaveBack(given_back));
        }
        if !kept.is_empty() {
            self.send(FromWorker::Kept(kept));
        }
    }

    /// Gives up tasks that no compute thread has yet; gives those, and the others.
    fn give_back(&mut self, ids: Vec<TaskId>) -> (Vec<TaskId>, Vec<TaskId>) {
        let idle = |state| {
            use TaskState::{Constrained, Reading, Ready, Waiting};
            matches!(state, Waiting | Ready | Constrained | Reading)
        };
        let (given_back, kept): (Vec<TaskId>, _) =
            ids.into_iter().partition(|id| self.task_state(*id).is_some_and(idle));
        for id in &given_back {
            self.stop_reading(*id);
            self.drop_spec(*id);
            self.step(*id, TaskState::Released);
            self.forget_if_idle(*id);
        }
        (given_back, kept)
    }

    fn on_put(&mut self, data: Vec<(TaskId, Value)>) {
        for (id, value) in data {
            let nbytes = value.nbytes();
            // What is here or to be computed here needs no one's data.
            if self.tasks.get(&id).is_none_or(|t| t.state != TaskState::Memory && t.spec.is_none()) {
                self.hold(id, value, nbytes, false);
            }
        }
    }

    fn on_gathered(&mut self, peer: WorkerId, data: Vec<(TaskId, Option<Result<Value, TaskError>>)>) {
        let (mut came, mut awaited) = (0, false);
        for (id, answer) in data {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            match (task.state, answer) {
                (TaskState::Flight, Some(Ok(value))) => {
                    let nbytes = value.nbytes();
                    came += nbytes;
                    awaited |= task.acquired;
                    let passing = task.passing;
                    self.hold(id, value, nbytes, passing);
                    if !passing {
                        self.report_copy(id);
                    }
                }
                (TaskState::Flight, Some(Err(error))) => {
                    let (dependents, acquired) = (task.dependents.clone(), task.acquired);
                    task.acquired = false;
                    self.step(id, TaskState::Released);
                    if acquired {
                        self.send(FromWorker::NotAdded { id, error: error.clone() });
                    }
                    for dependent in dependents {
                        // One that runs has had it from before.
                        if self.task_state(dependent) == Some(TaskState::Waiting) {
                            self.fail(dependent, error.clone());
                        }
                    }
                    self.forget_if_idle(id);
                }
                (TaskState::Flight, None) => {
                    task.who_has.retain(|holder| *holder != peer);
                    self.fetch(id, Some(peer));
                }
                (TaskState::Cancelled, _) if task.previous == TaskState::Flight => {
                    task.previous = TaskState::Released;
                    self.step(id, TaskState::Released);
                    self.forget_if_idle(id);
                }
                _ => {}
            }
        }
        self.answered(peer, came);
        if awaited {
            self.send_reports();
        }
    }

    /// Keeps a value, in `passing` or to stay, and wakes the tasks that waited for it.
    pub(super) fn hold(&mut self, id: TaskId, value: Value, nbytes: u64, passing: bool) {
        let age = self.age();
        let task = self.tasks.entry(id).or_default();
        task.passing = passing;
        task.previous = TaskState::Released;
        task.who_has.clear();
        let (queued_at, dependents) =
            (task.queued_at.take(), SmallVec::<[_; 2]>::from_slice(&task.dependents));
        self.memory.put(id, task, value, nbytes, age);
        self.steps.take(id, task, TaskState::Memory);
        self.unqueue(id, queued_at);
        for dependent in dependents {
            let Some(task) = self.tasks.get_mut(&dependent) else { continue };
            match task.state {
                TaskState::Waiting => {
                    task.missing -= 1;
                    if task.missing == 0 {
                        self.make_ready(dependent);
                    }
                }
                // The compute threads have handed it over.
                _ if task.missing > 0 && task.is_executing() => {
                    task.missing -= 1;
                    self.chained -= u32::from(task.missing == 0);
                }
                _ => {}
            }
        }
    }
}
