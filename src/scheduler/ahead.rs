//! Memory that will be needed is read ahead.
//!
//! Of a million tasks and ten thousand workers hardly any is in the processor's caches when its turn comes, and most of
//! what a step takes is waiting for memory. What follows one after the other waits for each line in turn; loads of which
//! nothing depends on the other wait at the same time. So where it is known what a step will touch, a word of each line of that
//! is read before it.

use std::hint::black_box;

use super::{
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::protocol::{TaskId, WorkerId};

impl Task {
    /// A word of what changes when it is done.
    fn lines(&self) -> u64 {
        self.nbytes ^ u64::from(self.function) ^ self.estimate ^ self.who_wants.len() as u64
    }
}

impl Worker {
    /// A word of each line that changes when it is done with a task.
    fn lines(&self) -> u64 {
        u64::from(self.threads) ^ self.heard ^ (self.processing.len() ^ self.has.len()) as u64
    }
}

impl State {
    /// A worker says that it is done with a task.
    pub(super) fn read_finished(&self, worker: WorkerId, id: TaskId) {
        let task = self.tasks.at(id.index() as u32);
        let worker = self.workers.get(worker).map_or(0, Worker::lines);
        black_box(worker ^ task.map_or(0, Task::lines));
    }

    /// Tasks around one that is done.
    pub(super) fn read_around(&self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        let neighbours = task.dependencies.iter().chain(&task.dependents);
        let all = neighbours.take(8).filter_map(|id| self.tasks.at(id.index));
        black_box(all.fold(0, |all, task| all ^ task.nbytes));
    }

    /// Workers that a result is to go from.
    pub(super) fn read_holders(&self, holders: &[WorkerId]) {
        let all = holders.iter().filter_map(|holder| self.workers.get(*holder));
        black_box(all.fold(0, |all, worker| all ^ worker.has.len() as u64 ^ worker.heard));
    }

    /// Workers among which one is chosen.
    pub(super) fn read_candidates(&self, candidates: &[WorkerId]) {
        let all = candidates.iter().filter_map(|holder| self.workers.get(*holder));
        black_box(all.fold(0, |all, worker| all ^ u64::from(worker.threads) ^ u64::from(worker.peers.first())));
    }
}
