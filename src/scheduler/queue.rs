//! Tasks that wait in the scheduler until a worker has too little to do.
//!
//! They go by priority, and neighbours go together: those that follow each other in the order of a graph have results
//! that soon meet, so whoever gets one has the next ones reserved (what Dask calls co-assignment). How many is a part
//! of what is left for each, so that all are done at the same time (*guided self-scheduling*: C. D. Polychronopoulos
//! and D. J. Kuck, 1987); what is reserved for one goes to another who would have nothing to do.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, VecDeque},
};

use super::{
    TaskState,
    state::State,
    task::{Task, TaskRef},
};
use crate::protocol::{Priority, WorkerId};

/// Tasks that are reserved for a thread, at most.
const TOGETHER: usize = 8;

type Entry = (Priority, TaskRef);

/// Tasks that wait, and some that do not any more: see [`State::next_queued`].
#[derive(Default)]
pub(super) struct Queue {
    free: BinaryHeap<Reverse<Entry>>,
    /// Of each worker, in order.
    reserved: Vec<VecDeque<Entry>>,
    /// Those that anything is reserved for.
    holders: BTreeSet<WorkerId>,
}

/// Where in the queue a task waits.
#[derive(Clone, Copy)]
pub(super) enum Standing {
    Free,
    /// The first of what is reserved for a worker, or the last.
    First(WorkerId),
    Last(WorkerId),
}

impl Queue {
    pub(super) fn push(&mut self, priority: Priority, task: TaskRef) {
        self.free.push(Reverse((priority, task)));
    }

    /// Takes a task off, and reserves for `worker` up to `more` of those that follow it.
    pub(super) fn take(&mut self, standing: Standing, worker: WorkerId, more: usize) {
        let taken = self.remove(standing);
        let (Standing::Free, Some((first, _))) = (standing, taken) else { return };
        for _ in 0..more {
            let follows = |next: &Reverse<Entry>| rank(next.0.0) == rank(first);
            let Some(Reverse(next)) = self.free.peek().filter(|next| follows(next)).copied() else { break };
            self.free.pop();
            let place = worker.0 as usize;
            if self.reserved.len() <= place {
                self.reserved.resize_with(place + 1, VecDeque::new);
            }
            self.reserved[place].push_back(next);
            self.holders.insert(worker);
        }
    }

    /// A worker gets nothing more: what was reserved for it is free.
    pub(super) fn give_up(&mut self, worker: WorkerId) {
        if self.holders.remove(&worker) {
            let reserved = self.reserved.get_mut(worker.0 as usize).map(std::mem::take);
            self.free.extend(reserved.unwrap_or_default().into_iter().map(Reverse));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty() && self.holders.is_empty()
    }

    /// How many wait that are more urgent.
    pub(super) fn before(&self, priority: Priority) -> usize {
        let free = self.free.iter().map(|Reverse(entry)| entry);
        free.chain(self.reserved.iter().flatten()).filter(|(other, _)| *other < priority).count()
    }

    /// What a worker gets next: what is reserved for it, unless something more urgent came.
    fn first_for(&self, worker: WorkerId) -> Option<(Standing, Entry)> {
        let free = self.free.peek().map(|Reverse(first)| (Standing::Free, *first));
        let own = self.reserved.get(worker.0 as usize).and_then(VecDeque::front);
        match (own.map(|own| (Standing::First(worker), *own)), free) {
            (Some(own), Some(free)) if rank(free.1.0) < rank(own.1.0) => Some(free),
            (Some(own), _) => Some(own),
            (None, Some(free)) => Some(free),
            (None, None) => {
                let other = self.holders.range(worker..).chain(self.holders.range(..worker)).next()?;
                Some((Standing::Last(*other), *self.reserved[other.0 as usize].back()?))
            }
        }
    }

    fn remove(&mut self, standing: Standing) -> Option<Entry> {
        let holder = match standing {
            Standing::Free => return self.free.pop().map(|Reverse(first)| first),
            Standing::First(holder) | Standing::Last(holder) => holder,
        };
        let reserved = self.reserved.get_mut(holder.0 as usize)?;
        let taken =
            if matches!(standing, Standing::First(_)) { reserved.pop_front() } else { reserved.pop_back() };
        if reserved.is_empty() {
            self.holders.remove(&holder);
        }
        taken
    }
}

/// Of different ranks, the lower goes first wherever it is; of equal ones neighbours stay together.
fn rank(priority: Priority) -> (i32, u32) {
    (priority.user, priority.submission)
}

impl State {
    /// The queued task that a worker gets next. Those that do not wait any more are dropped on the way.
    pub(super) fn next_queued(&mut self, worker: WorkerId) -> Option<(Standing, TaskRef)> {
        while let Some((standing, (priority, id))) = self.queued.first_for(worker) {
            if self.task(id).is_some_and(|t| t.state == TaskState::Queued && t.priority == priority) {
                return Some((standing, id));
            }
            self.queued.remove(standing);
        }
        None
    }

    /// How many tasks that follow a queued one are reserved for the worker that gets it: their results meet, where
    /// anything needs them.
    pub(super) fn following(&self, task: &Task, worker: WorkerId) -> usize {
        if task.live_dependents == 0 {
            return 0;
        }
        let threads = self.workers.get(worker).map_or(1, |worker| worker.info.nthreads.max(1)) as usize;
        (self.queued.free.len() / (2 * self.workers.standing().max(1)))
            .min(TOGETHER * threads)
            .saturating_sub(1)
    }
}
