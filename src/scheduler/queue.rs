//! Tasks that wait in the scheduler until a worker has too little to do.
//!
//! They go by priority, and neighbours go together: whoever gets one has those reserved that follow it in the order of
//! their graph and whose results meet its own (what Dask calls co-assignment). They are never more than a part of what
//! is left for each, so that all are done at the same time (*guided self-scheduling*: C. D. Polychronopoulos and D. J.
//! Kuck, 1987); what is reserved for one goes to another who would have nothing to do. Critical tasks go before
//! others, and go alone.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use super::{
    TaskState,
    bit_set::BitSet,
    prefetch::prefetch,
    state::State,
    task::{Task, TaskRef},
};
use crate::protocol::{Priority, Turn, WorkerId};

/// Tasks that are reserved for a thread, at most.
const TOGETHER: usize = 16;
/// Entries of tasks that wait no more are not looked for among so few.
const LINGERING: usize = 64;
/// Dependents of a task that are looked at for one that needs its neighbour too.
const DEPENDENTS: usize = 8;

type Entry = (Priority, TaskRef);

/// Tasks that wait, and some that do not any more: see [`State::next_queued`].
#[derive(Default)]
pub(super) struct Queue {
    free: Sorted<Entry>,
    /// Of all tasks here, reserved or not, those that others depend on: as if they were critical.
    high: Sorted<(Turn, TaskRef)>,
    /// Of each worker, in order.
    reserved: Vec<VecDeque<Entry>>,
    /// Those that anything is reserved for.
    holders: BitSet<WorkerId>,
    /// Whether anything happened by which one of them may find a place.
    stirred: bool,
    /// Whether any of those here may be restricted to some workers.
    restricted: bool,
}

/// Entries of which the least is taken first. Those of a graph mostly come in order, and wait in a line; what belongs
/// before its end goes into a heap, where each step would be one to another part of memory.
struct Sorted<E> {
    line: VecDeque<E>,
    heap: BinaryHeap<Reverse<E>>,
}

impl<E: Ord> Default for Sorted<E> {
    fn default() -> Self {
        Self { line: VecDeque::new(), heap: BinaryHeap::new() }
    }
}

impl<E: Ord> Sorted<E> {
    fn push(&mut self, entry: E) {
        if self.line.back().is_none_or(|last| *last < entry) {
            self.line.push_back(entry);
        } else {
            self.heap.push(Reverse(entry));
        }
    }

    fn first(&self) -> Option<&E> {
        match (self.line.front(), self.heap.peek()) {
            (Some(line), Some(Reverse(heap))) => Some(line.min(heap)),
            (line, heap) => line.or(heap.map(|Reverse(entry)| entry)),
        }
    }

    fn pop(&mut self) -> Option<E> {
        let in_line = match (self.line.front(), self.heap.peek()) {
            (Some(line), Some(Reverse(heap))) => line < heap,
            (line, _) => line.is_some(),
        };
        if in_line { self.line.pop_front() } else { self.heap.pop().map(|Reverse(entry)| entry) }
    }

    fn len(&self) -> usize {
        self.line.len() + self.heap.len()
    }

    fn iter(&self) -> impl Iterator<Item = &E> {
        self.line.iter().chain(self.heap.iter().map(|Reverse(entry)| entry))
    }

    fn retain(&mut self, keep: impl Fn(&E) -> bool) {
        self.line.retain(&keep);
        self.heap.retain(|Reverse(entry)| keep(entry));
    }

    fn clear(&mut self) {
        self.line.clear();
        self.heap.clear();
    }
}

/// Where in the queue a task waits.
#[derive(Clone, Copy)]
pub(super) enum Standing {
    Free,
    /// The first of those that others depend on.
    Critical,
    /// The first of what is reserved for a worker, or the last.
    First(WorkerId),
    Last(WorkerId),
}

impl Queue {
    /// Reserves the free task that comes first for a worker.
    fn reserve(&mut self, worker: WorkerId) {
        let Some(first) = self.free.pop() else { return };
        let place = worker.0 as usize;
        if self.reserved.len() <= place {
            self.reserved.resize_with(place + 1, VecDeque::new);
        }
        self.reserved[place].push_back(first);
        self.holders.insert(worker);
    }

    /// A worker gets nothing more: what was reserved for it is free.
    pub(super) fn give_up(&mut self, worker: WorkerId) {
        self.holders.remove(worker);
        let reserved = self.reserved.get_mut(worker.0 as usize).map(std::mem::take);
        reserved.into_iter().flatten().for_each(|entry| self.free.push(entry));
    }

    fn is_empty(&self) -> bool {
        self.free.len() == 0 && self.holders.len() == 0
    }

    /// Something happened by which one of those that wait may find a place.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Whether it did since this was last asked.
    pub(super) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// Drops those that wait no more.
    fn tidy(&mut self, waits: impl Fn(TaskRef) -> bool) {
        self.free.retain(|(_, id)| waits(*id));
        self.high.retain(|(_, id)| waits(*id));
    }

    /// Drops all: nobody waits any more.
    pub(super) fn clear(&mut self) {
        self.free.clear();
        self.high.clear();
        while self.holders.len() > 0 {
            let Some(holder) = self.holders.around(WorkerId(0)).next() else { break };
            self.reserved[holder.0 as usize].clear();
            self.holders.remove(holder);
        }
        self.restricted = false;
    }

    /// Whether any may be restricted to some workers.
    pub(super) fn any_restricted(&self) -> bool {
        self.restricted
    }

    /// All that wait, and some that do not any more.
    fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.free.iter().chain(self.reserved.iter().flatten())
    }

    /// Where some wait for limits, the highest is not looked for.
    pub(super) fn forget_heights(&mut self) {
        self.high.clear();
    }

    /// Asks for what is reserved for a worker.
    pub(super) fn prefetch(&self, worker: WorkerId) {
        self.reserved.get(worker.0 as usize).into_iter().for_each(prefetch);
    }

    /// What a worker gets next: what is reserved for it, unless something more urgent came.
    fn first_for(&self, worker: WorkerId) -> Option<(Standing, Entry)> {
        let free = self.free.first().map(|first| (Standing::Free, *first));
        let own = self.reserved.get(worker.0 as usize).and_then(VecDeque::front);
        match (own.map(|own| (Standing::First(worker), *own)), free) {
            (Some(own), Some(free)) if free.1.0.rank() < own.1.0.rank() => Some(free),
            (Some(own), _) => Some(own),
            (None, Some(free)) => Some(free),
            (None, None) => {
                let other = self.holders.around(worker).next()?;
                Some((Standing::Last(other), *self.reserved[other.0 as usize].back()?))
            }
        }
    }

    /// Takes a task off.
    pub(super) fn remove(&mut self, standing: Standing) -> Option<Entry> {
        let holder = match standing {
            Standing::Free => return self.free.pop(),
            // Where it stood besides, it is passed over.
            Standing::Critical => {
                self.high.pop();
                return None;
            }
            Standing::First(holder) | Standing::Last(holder) => holder,
        };
        let reserved = self.reserved.get_mut(holder.0 as usize)?;
        let taken =
            if matches!(standing, Standing::First(_)) { reserved.pop_front() } else { reserved.pop_back() };
        if reserved.is_empty() {
            self.holders.remove(holder);
        }
        taken
    }
}

impl State {
    /// Whether nobody waits here. Under limits others wait elsewhere; but then those that wait here no more are soon dropped.
    pub(super) fn none_queued(&self) -> bool {
        if self.limits.are_set() { self.queued.is_empty() } else { self.in_queue == 0 }
    }

    /// Has a task wait.
    pub(super) fn queue(&mut self, id: TaskRef) {
        let Some(task) = self.tasks.get(id) else { return };
        self.queued.stir();
        self.queued.restricted |= task.cold.options != 0 && self.options_of(task).restrict();
        self.queued.free.push((task.cold.priority, id));
        if task.cold.height > 0 && !self.limits.are_set() {
            self.queued.high.push((task.cold.priority.turn(task.cold.height), id));
        }
        // Those that were cancelled, or taken as critical, linger until they are the majority.
        let entries = self.queued.free.len().max(self.queued.high.len());
        if entries > LINGERING && entries > 2 * (self.in_queue as usize + 1) {
            let Self { queued, tasks, .. } = self;
            queued.tidy(|other| {
                other == id || tasks.get(other).is_some_and(|task| task.state == TaskState::Queued)
            });
        }
    }

    /// How many wait whose turn comes before that of a task.
    pub(super) fn queued_before(&self, task: Task<'_>) -> usize {
        let turn = self.turn(task);
        let waits = |(priority, id): &&Entry| {
            let other = self.task(*id).filter(|other| is_queued(*other, *priority));
            other.is_some_and(|other| self.turn(other) < turn)
        };
        self.queued.iter().filter(waits).count()
    }

    /// Asks for what is looked at of the queued task that a worker may get next.
    pub(super) fn prefetch_queued(&self, worker: WorkerId) {
        let reserved = self.queued.reserved.get(worker.0 as usize).and_then(VecDeque::front);
        if let Some((_, next)) = reserved.or(self.queued.free.first()) {
            self.tasks.prefetch_hot(next.index);
            self.tasks.prefetch_cold(next.index);
            self.tasks.prefetch_rest(next.index);
        }
    }

    /// The queued task that a worker gets next. Those that do not wait any more are dropped on the way.
    pub(super) fn next_queued(&mut self, worker: WorkerId) -> Option<(Standing, TaskRef)> {
        while let Some((standing, (priority, id))) = self.queued.first_for(worker) {
            if self.task(id).is_some_and(|task| is_queued(task, priority)) {
                let critical = self.next_critical(priority);
                return Some(critical.map_or((standing, id), |id| (Standing::Critical, id)));
            }
            self.queued.remove(standing);
        }
        self.queued.high.clear();
        self.queued.restricted = false;
        None
    }

    /// The highest of those that wait, if it is critical and of no higher rank than `first`, the next by priority.
    fn next_critical(&mut self, first: Priority) -> Option<TaskRef> {
        let critical = self.critical_height();
        while let Some(&(turn, id)) = self.queued.high.first() {
            let is_high = turn.height.0 >= critical;
            // Of a lower rank others may be left that were reserved; mostly those that do not wait any more.
            if turn.rank > first.rank() || turn.rank == first.rank() && !is_high {
                return None;
            }
            let waits = |task: Task<'_>| {
                task.state == TaskState::Queued && task.cold.priority.turn(task.cold.height) == turn
            };
            if self.task(id).is_some_and(waits) {
                return is_high.then_some(id);
            }
            self.queued.high.pop();
        }
        None
    }

    /// Takes a task off the queue for a worker, for which its neighbours are reserved.
    pub(super) fn take_queued(&mut self, standing: Standing, worker: WorkerId) {
        let taken = self.queued.remove(standing);
        let (Standing::Free, Some((priority, id))) = (standing, taken) else { return };
        let threads = self.workers.get(worker).map_or(1, |worker| worker.threads) as usize;
        let share = (self.queued.free.len() / (2 * self.workers.standing().max(1))).min(TOGETHER * threads);
        for _ in 1..share {
            let next = self.queued.free.first().filter(|next| next.0.rank() == priority.rank());
            if !next.is_some_and(|(_, next)| self.meet(id, *next)) {
                return;
            }
            self.queued.reserve(worker);
        }
    }

    /// Whether something needs both results.
    fn meet(&self, one: TaskRef, other: TaskRef) -> bool {
        let dependents = |id| {
            let task = self.task(id).filter(|task| task.live_dependents > 0);
            let dependents = task.map(|task| &task.cold.dependents[..]).unwrap_or_default();
            &dependents[..dependents.len().min(DEPENDENTS)]
        };
        dependents(one).iter().any(|dependent| dependents(other).contains(dependent))
    }
}

/// Whether a task waits where it stands with this priority.
fn is_queued(task: Task<'_>, priority: Priority) -> bool {
    task.state == TaskState::Queued && task.cold.priority == priority
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes, in whatever order, between whichever it is taken.
        #[test]
        fn the_least_is_taken_first(steps in prop::collection::vec(prop::option::of(0u32..50), 0..300)) {
            let entry = |order| (Priority { order, ..Priority::default() }, TaskRef { index: order, tenant: 0 });
            let (mut sorted, mut heap) = (Sorted::default(), BinaryHeap::new());
            for step in steps {
                match step {
                    Some(order) => {
                        sorted.push(entry(order));
                        heap.push(Reverse(entry(order)));
                    }
                    None => {
                        prop_assert_eq!(sorted.first().copied(), heap.peek().map(|Reverse(first)| *first));
                        prop_assert_eq!(sorted.pop(), heap.pop().map(|Reverse(first)| first));
                    }
                }
                prop_assert_eq!((sorted.len(), sorted.iter().count()), (heap.len(), heap.len()));
            }
        }
    }
}
