//! A worker: the real machine, threads that take as long as tasks say, and a count of what it holds.

use std::collections::VecDeque;

use rankine::{
    protocol::ToWorker,
    worker::{self, Execution, Instruction, Stimulus},
};

use crate::{Problem, events::Event};

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
    waiting: VecDeque<Box<Execution>>,
    /// Bytes of all results here.
    pub(crate) nbytes: u64,
    /// Most bytes at a time.
    pub(crate) peak: u64,
}

impl Node {
    pub(crate) fn new(threads: u32, slowness: f64) -> Self {
        let config = worker::Config {
            nthreads: threads,
            memory_limit: 0,
            thresholds: worker::Thresholds::default(),
            resources: vec![],
            chains: false,
        };
        Self {
            machine: worker::State::new(config),
            life: Life::Up,
            slowness,
            idle: threads,
            waiting: VecDeque::new(),
            nbytes: 0,
            peak: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life == Life::Up
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
                ToWorker::Retire => Stimulus::Retire,
                ToWorker::GiveBack(ids) => Stimulus::GiveBack(ids),
                ToWorker::Close { .. } => {
                    leaves = true;
                    continue;
                }
                // Addresses mean nothing here, and no function is run but those of tasks.
                ToWorker::Welcome { .. }
                // Nothing depends on forwarding either.
                | ToWorker::Peer { .. }
                | ToWorker::Forward { .. }
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

    /// Runs a task as soon as a thread has time; gives when that one is done, if it begins at once.
    pub(crate) fn run(
        &mut self,
        this: usize,
        execution: Box<Execution>,
        problem: &Problem,
        now: u64,
    ) -> Option<(u64, Event)> {
        if self.idle == 0 {
            self.waiting.push_back(execution);
            return None;
        }
        self.idle -= 1;
        let task = &problem.tasks[Problem::task_of(&execution.arguments)];
        let duration = (task.duration as f64 * self.slowness) as u64;
        Some((now + duration, Event::Executed(this, execution, duration)))
    }

    /// A thread is done with its task: gives the next one to run.
    pub(crate) fn next(&mut self) -> Option<Box<Execution>> {
        self.idle += 1;
        self.waiting.pop_front()
    }
}
