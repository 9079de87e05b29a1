//! Which worker a task goes to.

use smallvec::SmallVec;

use super::{
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::{graph::TaskOptions, protocol::WorkerId};

/// Nanoseconds that a task is taken for until one of its function has run.
const UNKNOWN_DURATION: u64 = 500_000;
/// Nanoseconds of short tasks without dependencies that a thread is given ahead of time.
const AHEAD: u64 = 2_000_000;
/// And never more than this many tasks a thread.
const AHEAD_TASKS: u64 = 2048;

/// What is to become of a task that can run.
pub(super) enum Placement {
    /// Run it there.
    Worker(WorkerId),
    /// All workers have enough to do.
    Queue,
    /// None of the workers may run it.
    Nobody,
}

impl State {
    /// Where a task whose dependencies are in memory runs: where it is expected to start first,
    /// counting the work that waits there and the bytes to be moved there; among equals where
    /// fewer bytes are held.
    pub(super) fn place(&self, id: TaskRef) -> Placement {
        let Some(task) = self.task(id) else { return Placement::Nobody };
        if task.options != 0 {
            let options = self.options_of(task);
            if !options.workers.is_empty() || !options.resources.is_empty() {
                return self.place_restricted(task);
            }
        }
        let Some(least) = self.workers.least_loaded() else { return Placement::Nobody };
        if !self.workers.get(least).is_some_and(|worker| self.lasts(worker, task)) {
            return self.place_lasting(task);
        }
        if task.dependencies.is_empty() {
            return match self.workers.get(least) {
                Some(worker) if u64::from(worker.busy) < self.slots(worker, task) => Placement::Worker(least),
                _ => Placement::Queue,
            };
        }
        let mut candidates: SmallVec<[WorkerId; 8]> = SmallVec::from_slice(&[least]);
        for dependency in &task.dependencies {
            for holder in self.task(*dependency).map(|t| t.who_has.as_slice()).unwrap_or_default() {
                if !candidates.contains(holder) {
                    candidates.push(*holder);
                }
            }
            // Of very many holders some are enough.
            if candidates.len() > 32 {
                break;
            }
        }
        self.soonest(task, candidates.into_iter()).map_or(Placement::Nobody, Placement::Worker)
    }

    /// Where there are workers that will leave before the task would be done: among the others.
    fn place_lasting(&self, task: &Task) -> Placement {
        let all = self.workers.iter().map(|(id, _)| id);
        let Some(soonest) = self.soonest(task, all) else { return Placement::Nobody };
        match self.workers.get(soonest) {
            Some(worker)
                if task.dependencies.is_empty() && u64::from(worker.busy) >= self.slots(worker, task) =>
            {
                Placement::Queue
            }
            _ => Placement::Worker(soonest),
        }
    }

    /// Whether a worker stays for as long as a task is expected to take. A task that would take longer
    /// than the worker's whole life might nowhere be done: it is tried.
    pub(super) fn lasts(&self, worker: &Worker, task: &Task) -> bool {
        let Some(ends) = worker.ends else { return true };
        let estimate = self.expected_duration(task);
        self.now.saturating_add(estimate) <= ends || worker.info.lifetime.is_some_and(|life| life < estimate)
    }

    /// Whether a task may run on a worker at all, and would be done before that leaves.
    pub(super) fn may_run(&self, worker: &Worker, task: &Task) -> bool {
        let options = self.options_of(task);
        let free = task.options == 0
            || supplied(worker, options)
                && (options.workers.is_empty() || options.allow_other_workers || named(worker, options));
        free && self.lasts(worker, task)
    }

    fn place_restricted(&self, task: &Task) -> Placement {
        let options = self.options_of(task);
        let named = |worker: &Worker| named(worker, options);
        let supplied = |worker: &Worker| supplied(worker, options);
        let fit = |only_named: bool| {
            self.workers
                .iter()
                .filter(move |(_, worker)| supplied(worker) && (!only_named || named(worker)))
                .map(|(id, _)| id)
        };
        let chosen = if options.workers.is_empty() {
            self.soonest(task, fit(false))
        } else {
            let chosen = self.soonest(task, fit(true));
            if options.allow_other_workers {
                chosen.or_else(|| self.soonest(task, fit(false)))
            } else {
                chosen
            }
        };
        chosen.map_or(Placement::Nobody, Placement::Worker)
    }

    fn soonest(&self, task: &Task, candidates: impl Iterator<Item = WorkerId>) -> Option<WorkerId> {
        candidates
            .filter_map(|id| {
                let worker = self.workers.get(id).filter(|w| w.stands() && self.lasts(w, task))?;
                let wait = worker.occupancy / u64::from(worker.info.nthreads.max(1));
                Some((wait + self.transfer(task, id), worker.nbytes, id))
            })
            .min()
            .map(|(_, _, id)| id)
    }

    /// How many tasks like this one a worker is given at a time: somewhat more than it has threads
    /// and, of short ones, enough to keep it busy until more can come.
    pub(super) fn slots(&self, worker: &Worker, task: &Task) -> u64 {
        let threads = u64::from(worker.info.nthreads.max(1));
        let saturated = (threads as f64 * self.config.saturation).ceil() as u64;
        match self.functions.get(task.function as usize).and_then(|f| f.duration) {
            Some(duration) => saturated.max(threads * (AHEAD / duration.max(1)).min(AHEAD_TASKS)),
            None => saturated,
        }
    }

    /// Nanoseconds that a task is expected to take.
    pub(super) fn expected_duration(&self, task: &Task) -> u64 {
        let known = self.functions.get(task.function as usize).and_then(|f| f.duration);
        known.unwrap_or(UNKNOWN_DURATION)
    }
}

/// Whether a worker is one of those that a task is restricted to.
pub(super) fn named(worker: &Worker, options: &TaskOptions) -> bool {
    options.workers.iter().any(|wanted| is_meant(worker, wanted))
}

/// Whether a worker goes by this name: its own, its address or its host's.
pub(super) fn is_meant(worker: &Worker, name: &str) -> bool {
    [&worker.info.name, &worker.info.address, &worker.info.host].into_iter().any(|own| **own == *name)
}

/// Whether a worker has the resources that a task holds while it runs.
pub(super) fn supplied(worker: &Worker, options: &TaskOptions) -> bool {
    options.resources.iter().all(|(name, amount)| {
        worker.info.resources.iter().any(|(has, supply)| has == name && *supply >= *amount)
    })
}
