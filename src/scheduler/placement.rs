//! Which worker a task goes to.

use smallvec::SmallVec;

use super::{
    links::Needs,
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::{graph::TaskOptions, protocol::WorkerId};

/// Nanoseconds that a task is taken for until any has run; one of a function that has not run is taken for one like
/// the others.
const UNKNOWN_DURATION: u64 = 500_000;
/// Nanoseconds (five hours) that a task is taken for at most: a million of them can be summed.
const LONGEST: u64 = 1 << 44;
/// Nanoseconds of short tasks that a thread is given ahead of time.
pub(super) const AHEAD: u64 = 2_000_000;
/// And never more than this many tasks a thread.
pub(super) const AHEAD_TASKS: u64 = 2048;

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
        if task.cold.options != 0 {
            let options = self.options_of(task);
            if options.restrict() {
                return self.place_restricted(task);
            }
        }
        let Some(least) = self.workers.least_loaded() else { return Placement::Nobody };
        if !self.workers.get(least).is_some_and(|worker| self.lasts(worker, task)) {
            return self.place_lasting(task);
        }
        if task.cold.dependencies.is_empty() {
            return match self.workers.get(least) {
                Some(worker) if self.has_slot(worker, task) => Placement::Worker(least),
                _ => Placement::Queue,
            };
        }
        let needs = self.needs(task);
        let mut candidates: SmallVec<[WorkerId; 16]> = SmallVec::new();
        for need in &needs.0 {
            for holder in need.at {
                if !candidates.contains(holder) {
                    candidates.push(*holder);
                    self.workers.prefetch(*holder);
                }
            }
            // Of very many holders some are enough.
            if candidates.len() > 32 {
                break;
            }
        }
        for candidate in &candidates {
            self.prefetch_links(*candidate);
        }
        let holder = self.soonest(task, &needs, candidates.into_iter());
        let chosen = holder.filter(|holder| !self.gains(task, &needs, *holder, least)).unwrap_or(least);
        self.workers.prefetch_rest(chosen);
        Placement::Worker(chosen)
    }

    /// Whether a task is worth moving from one of its holders to the worker with the least to do. Who is idle need
    /// only be sooner; otherwise it waits here or there, and moves where that takes less than half as long: should
    /// others have nothing to do before it starts, they steal it.
    fn gains(&self, task: Task<'_>, needs: &Needs<'_>, holder: WorkerId, least: WorkerId) -> bool {
        let (Some(from), Some(to)) = (self.workers.get(holder), self.workers.get(least)) else {
            return false;
        };
        let queueing = self.queueing(task);
        let (here, there) = (queueing(from), queueing(to));
        let worth = if to.busy < to.threads { 1 } else { 2 };
        worth * there < here
            && worth * (there + self.transfer(needs, least)) < here + self.transfer(needs, holder)
    }

    /// Where there are workers that will leave before the task would be done: among the others.
    fn place_lasting(&self, task: Task<'_>) -> Placement {
        let all = self.workers.iter().map(|(id, _)| id);
        let Some(soonest) = self.soonest(task, &self.needs(task), all) else { return Placement::Nobody };
        match self.workers.get(soonest) {
            Some(worker) if task.cold.dependencies.is_empty() && !self.has_slot(worker, task) => {
                Placement::Queue
            }
            _ => Placement::Worker(soonest),
        }
    }

    /// Whether a worker stays for as long as a task is expected to take. A task that would take longer
    /// than the worker's whole life might nowhere be done: it is tried.
    pub(super) fn lasts(&self, worker: &Worker, task: Task<'_>) -> bool {
        if !worker.transient {
            return true;
        }
        let estimate = self.expected_duration(task);
        self.now.saturating_add(estimate) <= worker.ends
            || worker.info.lifetime.is_some_and(|life| life < estimate)
    }

    /// Whether a task may run on a worker at all, and would be done before that leaves.
    pub(super) fn may_run(&self, worker: &Worker, task: Task<'_>) -> bool {
        let options = self.options_of(task);
        let free = task.cold.options == 0
            || supplied(worker, options)
                && (options.workers.is_empty() || options.allow_other_workers || named(worker, options));
        free && self.lasts(worker, task)
    }

    fn place_restricted(&self, task: Task<'_>) -> Placement {
        let options = self.options_of(task);
        let needs = self.needs(task);
        let named = |worker: &Worker| named(worker, options);
        let supplied = |worker: &Worker| supplied(worker, options);
        let fit = |only_named: bool| {
            self.workers
                .iter()
                .filter(move |(_, worker)| supplied(worker) && (!only_named || named(worker)))
                .map(|(id, _)| id)
        };
        let chosen = if options.workers.is_empty() {
            self.soonest(task, &needs, fit(false))
        } else {
            let chosen = self.soonest(task, &needs, fit(true));
            if options.allow_other_workers {
                chosen.or_else(|| self.soonest(task, &needs, fit(false)))
            } else {
                chosen
            }
        };
        chosen.map_or(Placement::Nobody, Placement::Worker)
    }

    fn soonest(
        &self,
        task: Task<'_>,
        needs: &Needs<'_>,
        candidates: impl Iterator<Item = WorkerId>,
    ) -> Option<WorkerId> {
        let (mut best, queueing) = (None::<(u64, u64, WorkerId)>, self.queueing(task));
        for id in candidates {
            let fit = |worker: &&Worker| worker.stands() && self.lasts(worker, task);
            let Some(worker) = self.workers.get(id).filter(fit) else { continue };
            let wait = queueing(worker);
            // What it would have to fetch makes no difference where it starts too late as it is.
            if best.is_none_or(|best| wait <= best.0) {
                let this = (wait + self.transfer(needs, id), worker.nbytes, id);
                best = Some(best.map_or(this, |best| best.min(this)));
            }
        }
        best.map(|(_, _, id)| id)
    }

    /// Whether a worker may be given a task without dependencies. A task whose function others of the same graph
    /// call with dependencies is not one of those that bring data in: it need not wait (Dask calls only the others
    /// root-ish), and what depends on it would wait for it.
    fn has_slot(&self, worker: &Worker, task: Task<'_>) -> bool {
        self.is_inner(task) || u64::from(worker.busy) < self.slots(worker, task)
    }

    fn is_inner(&self, task: Task<'_>) -> bool {
        let function = self.functions.get(task.cold.function as usize);
        function.is_some_and(|function| function.inner == task.cold.priority.submission)
    }

    /// Whether a task brings data in with which others, brought in by other tasks, may meet.
    pub(super) fn has_neighbours(&self, id: TaskRef) -> bool {
        let brings = |task: Task<'_>| {
            task.cold.dependencies.is_empty() && task.live_dependents > 0 && !self.is_inner(task)
        };
        self.task(id).is_some_and(brings)
    }

    /// How many tasks like this one a worker is given at a time: somewhat more than it has threads
    /// and, of short ones, enough to keep it busy until more can come.
    pub(super) fn slots(&self, worker: &Worker, task: Task<'_>) -> u64 {
        match self.functions.get(task.cold.function as usize).and_then(|f| f.duration) {
            Some(duration) => self.slots_of(worker, duration),
            None => self.saturated(worker),
        }
    }

    /// How many tasks of so many nanoseconds a worker is given at a time.
    fn slots_of(&self, worker: &Worker, duration: u64) -> u64 {
        let ahead = (AHEAD / duration.max(1)).min(AHEAD_TASKS);
        self.saturated(worker).max(u64::from(worker.threads) * ahead)
    }

    /// How many tasks a worker may be given at a time whatever they take.
    fn saturated(&self, worker: &Worker) -> u64 {
        let exactly = f64::from(worker.threads) * self.config.saturation;
        // Rounded up, by what processors do without a call.
        let whole = exactly as u64;
        whole.saturating_add(u64::from(exactly > whole as f64))
    }

    /// Whether nothing that is queued may go to a worker, whatever comes first. Where that is not plain, no.
    pub(super) fn takes_nothing_queued(&self, worker: WorkerId) -> bool {
        let special = self.queued.any_restricted() || self.limits.are_set();
        // Who does not stay is passed over for others.
        let full = |worker: &Worker| {
            !worker.transient && u64::from(worker.busy) >= self.slots_of(worker, self.briefest)
        };
        !special && self.workers.get(worker).is_some_and(full)
    }

    /// Nanoseconds that a task is expected to take a worker.
    pub(super) fn expected_on(&self, worker: WorkerId, task: Task<'_>) -> u64 {
        let pace = self.workers.get(worker).map_or(1.0, Worker::slowness);
        ((self.expected_duration(task) as f64 * pace) as u64).min(LONGEST)
    }

    /// Nanoseconds that a task is expected to take.
    pub(super) fn expected_duration(&self, task: Task<'_>) -> u64 {
        let known = self.functions.get(task.cold.function as usize).and_then(|f| f.duration);
        known.or(self.usual_duration).unwrap_or(UNKNOWN_DURATION)
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
