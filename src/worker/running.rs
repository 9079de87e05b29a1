//! Tasks to the compute threads and back.

use std::{cmp::Reverse, mem, sync::Arc};

use super::{Execution, Input, Instruction, TaskState, reporting::SHORT, state::State};
use crate::{
    graph::KeySet,
    protocol::{ComputeTask, Finished, FromWorker, TaskId},
    task::{TaskError, Value},
};

/// Results up to this many bytes go along with the report when a client wants them.
const INLINE_BYTES: u64 = 4096;
/// Short tasks are handed to the compute threads ahead of time, this many nanoseconds of them a
/// thread, so that no thread waits for the next one to cross over.
const AHEAD_NS: u64 = 2_000_000;
/// And never more than this many a thread.
const AHEAD_TASKS: u32 = 512;

impl State {
    pub(super) fn make_ready(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(spec) = &task.spec else { return };
        let state = if spec.resources.is_empty() {
            self.ready.push(spec.priority, spec.height, id);
            TaskState::Ready
        } else {
            self.constrained.push(Reverse((spec.priority, id)));
            TaskState::Constrained
        };
        self.steps.take(id, task, state);
    }

    /// Hands tasks to the compute threads while they have room.
    pub(super) fn execute(&mut self) {
        self.execute_constrained();
        while let Some(id) = self.next_ready() {
            let Some(spec) = self.tasks.get(&id).and_then(|task| task.spec.clone()) else { break };
            let estimate = self.durations.get(&spec.entry).copied();
            if !self.has_room(estimate) || !self.fits(&spec) {
                break;
            }
            self.start(&spec, estimate.unwrap_or(AHEAD_NS));
        }
        self.admit();
    }

    fn next_ready(&mut self) -> Option<TaskId> {
        let Self { ready, tasks, .. } = self;
        ready.next(self.critical, |id| {
            let task = tasks.get(&id).filter(|task| task.state == TaskState::Ready)?;
            task.spec.as_ref().map(|spec| (spec.priority, spec.height))
        })
    }

    fn execute_constrained(&mut self) {
        let mut waiting = Vec::new();
        while let Some(place) = self.constrained.pop() {
            let Reverse((_, id)) = place;
            let current = self.tasks.get(&id).filter(|t| t.state == TaskState::Constrained);
            let Some(spec) = current.and_then(|t| t.spec.clone()) else { continue };
            if self.occupied() >= self.config.nthreads || !self.has_memory() || !self.fits(&spec) {
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
            for (name, amount) in &spec.resources {
                if let Some((_, free)) = self.available.iter_mut().find(|(n, _)| n == name) {
                    *free -= amount;
                }
            }
            self.start(&spec, AHEAD_NS);
        }
        self.constrained.extend(waiting);
    }

    /// Whether the compute threads take another task: one each, and short ones ahead of time.
    fn has_room(&self, estimate: Option<u64>) -> bool {
        let threads = self.config.nthreads;
        if !self.has_memory() {
            return false;
        }
        self.occupied() < threads
            || estimate.is_some_and(|estimate| {
                self.executing < threads * AHEAD_TASKS
                    && self.backlog.saturating_add(estimate) <= AHEAD_NS * u64::from(threads)
            })
    }

    /// Tasks that keep a compute thread busy, or will as soon as one is free.
    fn occupied(&self) -> u32 {
        self.executing - self.chained
    }

    /// Gives a task its place among the compute threads. What it needs of the disk is read first.
    fn start(&mut self, spec: &Arc<ComputeTask>, estimate: u64) {
        self.executing += 1;
        self.backlog += estimate;
        let unread = self.pin_inputs(spec);
        let Some(task) = self.tasks.get_mut(&spec.id) else { return };
        task.estimate = estimate;
        if unread > 0 {
            task.missing = unread;
            self.steps.take(spec.id, task, TaskState::Reading);
        } else {
            self.launch(spec);
        }
    }

    /// Hands a task to the compute threads: all it needs can be read.
    pub(super) fn launch(&mut self, spec: &Arc<ComputeTask>) {
        let Some(task) = self.tasks.get_mut(&spec.id) else { return };
        self.steps.take(spec.id, task, TaskState::Executing);
        let leads = !task.dependents.is_empty();
        let known = self.durations.get(&spec.entry).copied();
        let execution = self.execution(spec, known);
        self.out.push(Instruction::Execute(execution));
        if leads {
            self.chain_after(spec.id);
        }
    }

    /// A task is with the compute threads: short ones that wait for nothing but such tasks join them, so that no thread
    /// waits for what it makes itself to be reported and come back.
    fn chain_after(&mut self, id: TaskId) {
        let mut leaders = vec![id];
        while let Some(leader) = leaders.pop() {
            for dependent in self.dependents(leader) {
                if self.chain(dependent) {
                    leaders.push(dependent);
                }
            }
        }
    }

    /// As [`Self::chain_after`], for a task that came after those it waits for.
    pub(super) fn chain_from(&mut self, id: TaskId) {
        if self.chain(id) {
            self.chain_after(id);
        }
    }

    /// The compute threads are done with something: those that were kept out join them, as far as there is room and nothing
    /// that can start comes before them.
    fn admit(&mut self) {
        if self.kept_out.is_empty() {
            return;
        }
        let critical = self.critical;
        let next = self.next_ready().and_then(|id| self.tasks.get(&id)?.spec.as_ref());
        let constrained = self.constrained.peek().map(|Reverse((priority, _))| priority.turn(0));
        let first = next.map(|spec| spec.turn(critical)).into_iter().chain(constrained).min();
        while let Some(&id) = self.kept_out.front() {
            if let Some((spec, estimate)) = self.chainable(id) {
                let later = first.is_some_and(|first| first < spec.turn(critical));
                if later || !self.has_room(Some(estimate)) {
                    return;
                }
            }
            self.kept_out.pop_front();
            self.chain_from(id);
        }
    }

    /// A waiting task whose missing inputs are all made by others with the compute threads, and how long it will take.
    fn chainable(&self, id: TaskId) -> Option<(&Arc<ComputeTask>, u64)> {
        let task =
            self.tasks.get(&id).filter(|task| self.config.chains && task.state == TaskState::Waiting)?;
        let spec = task.spec.as_ref().filter(|spec| spec.resources.is_empty())?;
        let comes = |id| {
            self.tasks.get(&id).is_some_and(|needed: &super::state::Task| {
                needed.value.is_some() || needed.state == TaskState::Executing && needed.estimate < AHEAD_NS
            })
        };
        if !spec.dependencies.iter().all(|dependency| comes(dependency.id)) {
            return None;
        }
        let estimate = *self.durations.get(&spec.entry)?;
        self.fits(spec).then_some((spec, estimate))
    }

    /// Hands a waiting task to the compute threads, if others there make all that it still needs and there is room; else
    /// keeps it out for now.
    fn chain(&mut self, id: TaskId) -> bool {
        let Some((spec, estimate)) = self.chainable(id) else { return false };
        if !self.has_room(Some(estimate)) {
            // What takes longer has room only where the threads have nothing else.
            if estimate <= AHEAD_NS * u64::from(self.config.nthreads) {
                self.kept_out.push_back(id);
            }
            return false;
        }
        let spec = spec.clone();
        self.chained += 1;
        self.executing += 1;
        self.backlog += estimate;
        // What is here is in memory.
        self.pin_inputs(&spec);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.estimate = estimate;
            self.steps.take(id, task, TaskState::Executing);
        }
        self.out.push(Instruction::Execute(self.execution(&spec, Some(estimate))));
        true
    }

    /// A task for the compute threads, which is `known` to take so long.
    fn execution(&self, spec: &Arc<ComputeTask>, known: Option<u64>) -> Execution {
        let awaited = spec.wanted || !self.forwards.is_empty() && self.forwards.contains_key(&spec.id);
        let brief = known.is_some_and(|known| known < SHORT) && !awaited;
        let input = |id| self.value(id).cloned().map_or(Input::Coming(id), Input::Here);
        let inputs = spec.dependencies.iter().map(|dependency| input(dependency.id)).collect();
        Execution { task: spec.clone(), inputs, brief }
    }

    /// The compute threads could not start a task, since another failed that should have made what it needs.
    pub(super) fn on_unstarted(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.is_executing()) else { return };
        let cancelled = task.state == TaskState::Cancelled;
        self.leave_threads(id, true);
        if cancelled {
            return self.end_cancelled(id);
        }
        let dependencies =
            self.tasks.get(&id).and_then(|task| task.spec.as_ref()).map(|spec| &spec.dependencies);
        let mut seen = KeySet::<TaskId>::default();
        let missing: Vec<_> = dependencies
            .into_iter()
            .flatten()
            .filter(|dependency| !self.has(dependency.id) && seen.insert(dependency.id))
            .cloned()
            .collect();
        if let Some(task) = self.tasks.get_mut(&id) {
            task.missing = missing.len() as u32;
        }
        self.step(id, TaskState::Waiting);
        if missing.is_empty() {
            return self.make_ready(id);
        }
        // The scheduler takes the task back, or says where else it is.
        missing.iter().for_each(|dependency| self.want(dependency));
    }

    /// A task that nobody wants any more is off the compute threads.
    fn end_cancelled(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.previous = TaskState::Released;
        }
        self.drop_spec(id);
        self.step(id, TaskState::Released);
        self.forget_if_idle(id);
    }

    /// A task that was about to run leaves its place, if it has one.
    pub(super) fn stop_reading(&mut self, id: TaskId) {
        if self.task_state(id) != Some(TaskState::Reading) {
            return;
        }
        self.leave_threads(id, true);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.missing = 0;
            self.steps.take(id, task, TaskState::Waiting);
        }
    }

    pub(super) fn on_executed(
        &mut self,
        id: TaskId,
        result: Result<Value, TaskError>,
        nbytes: u64,
        duration: u64,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let cancelled = task.state == TaskState::Cancelled;
        let running = if cancelled { task.previous } else { task.state };
        if !matches!(running, TaskState::Executing | TaskState::LongRunning) {
            return;
        }
        task.previous = TaskState::Released;
        self.busy += duration;
        let Some(spec) = self.leave_threads(id, running == TaskState::Executing) else { return };
        let mean = self.durations.entry(spec.entry).or_insert(duration);
        *mean = mean.saturating_mul(7).saturating_add(duration) / 8;
        let followed = self.is_followed(&spec);
        if cancelled {
            return self.end_cancelled(id);
        }
        match result.and_then(|value| self.refusal(nbytes).map_or(Ok(value), Err)) {
            Ok(value) => {
                self.forward_to_all(id, &value, nbytes);
                self.drop_spec(id);
                self.hold(id, value.clone(), nbytes, false);
                let value = Some(value).filter(|_| spec.wanted && nbytes <= INLINE_BYTES);
                self.report(Finished { id, nbytes, duration, value }, spec.wanted, followed);
            }
            Err(error) => self.fail(id, error),
        }
    }

    /// Reports that a task failed and lets go of it.
    pub(super) fn fail(&mut self, id: TaskId, error: TaskError) {
        self.drop_spec(id);
        self.step(id, TaskState::Error);
        self.send(FromWorker::Erred { id, error });
        self.step(id, TaskState::Released);
        self.forget_if_idle(id);
    }

    pub(super) fn on_seceded(&mut self, id: TaskId) {
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

    /// A task is off its compute thread: its inputs may go, and its resources are free again. Gives what it was.
    fn leave_threads(&mut self, id: TaskId, counted: bool) -> Option<Arc<ComputeTask>> {
        if counted {
            self.leave_count(id);
        }
        let spec = self.tasks.get(&id)?.spec.clone()?;
        self.unpin_inputs(&spec);
        for (name, amount) in &spec.resources {
            if let Some((_, free)) = self.available.iter_mut().find(|(n, _)| n == name) {
                *free += amount;
            }
        }
        Some(spec)
    }

    fn leave_count(&mut self, id: TaskId) {
        self.executing -= 1;
        if let Some(task) = self.tasks.get_mut(&id) {
            // One that is being read counts there what is not read yet.
            if task.state != TaskState::Reading {
                self.chained -= u32::from(mem::take(&mut task.missing) > 0);
            }
            self.backlog -= mem::take(&mut task.estimate);
        }
    }
}
