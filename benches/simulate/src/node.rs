//! A worker: the real machine, threads that take as long as tasks say, and a count of what it holds.

use std::collections::VecDeque;

use rankine::{
    protocol::{TaskId, ToWorker},
    task::Value,
    worker::{self, Execution, Input, Instruction, Stimulus},
};

use crate::{Problem, Setting, disk::Disk, events::Event};

/// Whether a worker is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It is.
    Up,
    /// It is not, and nobody knows.
    Vanished,
    /// It is not.
    Gone,
}

pub(crate) struct Node {
    pub(crate) machine: worker::State,
    pub(crate) life: Life,
    slowness: f64,
    /// Threads without a task.
    idle: u32,
    /// Tasks that its threads were given and have no time for, or not all inputs of.
    waiting: VecDeque<Execution>,
    pub(crate) disk: Disk,
    /// When it looks whether reports are due.
    pub(crate) alarm: Option<u64>,
    /// It starts nothing, as its memory is short.
    pub(crate) paused: bool,
    limited: bool,
    /// Bytes of all results here.
    pub(crate) nbytes: u64,
    /// Most bytes at a time.
    pub(crate) peak: u64,
}

impl Node {
    pub(crate) fn new(setting: &Setting, slowness: f64) -> Self {
        let config = worker::Config {
            nthreads: setting.threads,
            memory_limit: setting.memory_limit,
            thresholds: worker::Thresholds::default(),
            resources: vec![],
            chains: true,
        };
        Self {
            machine: worker::State::new(config),
            life: Life::Up,
            slowness,
            idle: setting.threads,
            waiting: VecDeque::new(),
            disk: Disk::default(),
            alarm: None,
            paused: false,
            limited: setting.memory_limit > 0,
            nbytes: 0,
            peak: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life == Life::Up
    }

    /// Whether it may go on once it has looked at its memory again.
    pub(crate) fn hopes(&self) -> bool {
        let metrics = || self.machine.metrics();
        self.limited && self.is_up() && (self.paused || metrics().ready + metrics().executing > 0)
    }

    /// A result that it holds, in memory or on disk.
    pub(crate) fn given(&self, id: TaskId) -> Option<&Value> {
        self.machine.value(id).or_else(|| self.disk.get(self.machine.file(id)?))
    }

    /// Takes words of the scheduler in; says whether it is to leave.
    pub(crate) fn hear(&mut self, words: Vec<ToWorker>, now: u64) -> (Vec<Instruction>, bool) {
        let (mut stimuli, mut leaves) = (Vec::with_capacity(words.len()), false);
        for word in words {
            stimuli.push(match word {
                ToWorker::Compute(task) => Stimulus::Compute(task),
                ToWorker::Free(ids) => Stimulus::Free(ids),
                ToWorker::Acquire(wanted) => Stimulus::Acquire(wanted),
                ToWorker::WhoHas(held) => Stimulus::WhoHas(held),
                ToWorker::PeerGone(peer) => Stimulus::PeerGone(peer),
                ToWorker::Forward { id, to } => Stimulus::Forward { id, to },
                ToWorker::Retire => Stimulus::Retire,
                ToWorker::GiveBack(ids) => Stimulus::GiveBack(ids),
                ToWorker::Close { .. } => {
                    leaves = true;
                    continue;
                }
                // Addresses mean nothing here, and no function is run but those of tasks.
                ToWorker::Welcome { .. }
                | ToWorker::Peer { .. }
                | ToWorker::Alive
                | ToWorker::Run { .. }
                | ToWorker::Noted(_)
                | ToWorker::Resumed { .. } => continue,
            });
        }
        (self.react(stimuli, now), leaves)
    }

    /// Takes in what happened.
    pub(crate) fn react(&mut self, stimuli: Vec<Stimulus>, now: u64) -> Vec<Instruction> {
        if stimuli.is_empty() {
            return Vec::new();
        }
        let instructions = self.machine.handle_many(stimuli, now);
        self.nbytes = self.machine.metrics().managed;
        self.peak = self.peak.max(self.nbytes);
        instructions
    }

    /// Runs a task as soon as a thread has time and all inputs are there; gives when that one is done, if it begins at
    /// once.
    pub(crate) fn run(
        &mut self,
        this: usize,
        execution: Execution,
        problem: &Problem,
        now: u64,
    ) -> Option<(u64, Event)> {
        if self.idle == 0 || !has_all(&execution) {
            self.waiting.push_back(execution);
            return None;
        }
        self.idle -= 1;
        let task = &problem.tasks[Problem::task_of(&execution.task.arguments)];
        let duration = (task.duration as f64 * self.slowness) as u64;
        Some((now + duration, Event::Executed(this, Box::new(execution), duration)))
    }

    /// A thread has made this and hands it on: gives what to run next.
    pub(crate) fn next(&mut self, made: TaskId, value: &Value) -> Vec<Execution> {
        self.idle += 1;
        let inputs = self.waiting.iter_mut().flat_map(|execution| &mut execution.inputs);
        for input in inputs.filter(|input| matches!(input, Input::Coming(id) if *id == made)) {
            *input = Input::Here(value.clone());
        }
        // Others may be idle since nothing had all its inputs.
        let (mut next, mut place) = (Vec::new(), 0);
        while next.len() < self.idle as usize && place < self.waiting.len() {
            if has_all(&self.waiting[place]) {
                next.extend(self.waiting.remove(place));
            } else {
                place += 1;
            }
        }
        next
    }
}

/// Whether a task has all that it needs.
fn has_all(execution: &Execution) -> bool {
    execution.inputs.iter().all(|input| matches!(input, Input::Here(_)))
}
