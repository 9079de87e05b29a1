//! The scheduler's workers: by id, and the least loaded first.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::{bit_set::BitSet, prefetch::prefetch, state::Worker};
use crate::protocol::{Contact, Contacts, WorkerId};

/// The load of a worker that has a task for each thread.
pub(super) const FULL: u64 = 1 << 16;
/// Stands nowhere in the order.
const ASIDE: u32 = u32::MAX;
/// Children of an entry in the heap: with so many next to each other it is low.
const ARITY: usize = 8;
/// Workers that may have less to do than the heap knows.
const LIGHTER: usize = 8;

/// Load and worker, in a word: the less, the sooner it gets something; among equals the one that came first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ByLoad(u64);

impl ByLoad {
    /// After all others.
    const NOBODY: Self = Self(u64::MAX);

    fn new(load: u64, id: WorkerId) -> Self {
        // A load beyond this (65,000 tasks for each thread) is as good as any.
        Self(load.min(u64::from(u32::MAX)) << 32 | u64::from(id.0))
    }

    fn of(worker: &Worker, id: WorkerId) -> Self {
        Self::new(worker.load(), id)
    }

    fn worker(self) -> WorkerId {
        WorkerId(self.0 as u32)
    }
}

/// Where a worker is: the numbers of its host, and of its process there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) host: u32,
    pub(super) process: u32,
}

impl Location {
    /// Of those that are gone.
    const NOWHERE: Self = Self { host: u32::MAX, process: u32::MAX };
}

/// A few workers and their loads; there is nobody in a place that is vacant.
struct Lighter([ByLoad; LIGHTER]);

impl Default for Lighter {
    fn default() -> Self {
        Self([ByLoad::NOBODY; LIGHTER])
    }
}

impl Lighter {
    /// Where a worker is among them, or nobody is.
    fn place(&self, id: WorkerId) -> Option<usize> {
        // All are looked at, several at a time: who is among them is as good as random.
        let places = self.0.iter().zip(0..);
        let places =
            places.fold(0u32, |places, (one, place)| places | u32::from(one.worker() == id) << place);
        (places != 0).then(|| places.trailing_zeros() as usize)
    }

    fn remove(&mut self, id: WorkerId) {
        if let Some(place) = self.place(id) {
            self.0[place] = ByLoad::NOBODY;
        }
    }

    fn iter(&self) -> impl Iterator<Item = ByLoad> {
        self.0.into_iter().filter(|one| *one != ByLoad::NOBODY)
    }
}

/// All workers. Ids are dense and never used again, so they are places in a vector; the order by load
/// is a heap that knows where in it each worker stands.
#[derive(Default)]
pub(super) struct Pool {
    /// Beside each other, so that where one lies need not be looked up; those that are gone left their places.
    workers: Vec<Worker>,
    /// Where each is: of ten thousand these fit into a processor's caches, beside each other.
    locations: Vec<Location>,
    /// How each is reached.
    contacts: Contacts,
    /// By load: no entry is less than its parent.
    heap: Vec<ByLoad>,
    /// Where in the heap each worker stands.
    standing: Vec<u32>,
    /// Those that have less to do than the heap knows: most that are done with a task get another one at once, and need
    /// not move up and down again.
    lighter: Lighter,
    /// Whether anything happened by which any of them may be given more.
    relieved: bool,
    /// Compute threads of all that stand in the order.
    threads: u64,
    /// Those that have more than they run.
    loaded: BitSet<WorkerId>,
    /// Those that ran out of work: the latest first, then those that found none.
    hungry: VecDeque<WorkerId>,
}

impl Pool {
    /// Takes a worker in, on the host of that number, under the next id.
    pub(super) fn add(&mut self, mut worker: Worker, host: u32) -> WorkerId {
        worker.there = true;
        let id = WorkerId(self.workers.len() as u32);
        self.hungry.push_front(id);
        self.standing.push(self.heap.len() as u32);
        self.heap.push(ByLoad::of(&worker, id));
        self.threads += u64::from(worker.threads);
        self.locations.push(Location { host, process: worker.info.pid });
        self.contacts.push(worker.info.contact.clone());
        self.workers.push(worker);
        self.rise(self.heap.len() - 1);
        self.relieved = true;
        id
    }

    pub(super) fn remove(&mut self, id: WorkerId) {
        if self.contains(id) {
            self.stand_aside(id);
            self.workers[id.0 as usize] = Worker::default();
            self.locations[id.0 as usize] = Location::NOWHERE;
        }
    }

    /// Takes a worker out of the order: it is not to be given anything.
    pub(super) fn stand_aside(&mut self, id: WorkerId) {
        // What went to it, or waited for it, goes elsewhere.
        self.relieved = true;
        self.loaded.remove(id);
        self.lighter.remove(id);
        let standing = std::mem::replace(&mut self.standing[id.0 as usize], ASIDE) as usize;
        if standing < self.heap.len() {
            self.threads -= self.get(id).map_or(0, |worker| u64::from(worker.threads));
            self.heap.swap_remove(standing);
            if standing < self.heap.len() {
                self.sink(standing);
                self.rise(standing);
            }
        }
    }

    /// Puts a worker back into the order.
    pub(super) fn stand_again(&mut self, id: WorkerId) {
        let Some(worker) = self.get(id) else { return };
        let (entry, loaded, threads) = (ByLoad::of(worker, id), worker.busy > worker.threads, worker.threads);
        if self.standing[id.0 as usize] != ASIDE {
            return;
        }
        if loaded {
            self.loaded.insert(id);
        }
        self.hungry.push_back(id);
        self.threads += u64::from(threads);
        self.standing[id.0 as usize] = self.heap.len() as u32;
        self.heap.push(entry);
        self.rise(self.heap.len() - 1);
        self.relieved = true;
    }

    /// Where a worker is: nowhere, if it is gone.
    pub(super) fn location(&self, id: WorkerId) -> Location {
        self.locations.get(id.0 as usize).copied().unwrap_or(Location::NOWHERE)
    }

    /// How a worker is reached, or was.
    pub(super) fn contact(&self, id: WorkerId) -> Option<Contact> {
        self.contacts.get(id.0 as usize)
    }

    /// Asks for what placing a task looks at of a worker.
    pub(super) fn prefetch(&self, id: WorkerId) {
        self.workers.get(id.0 as usize).into_iter().for_each(prefetch);
    }

    /// Asks for what else changes with each task of a worker, and what it was told.
    pub(super) fn prefetch_rest(&self, id: WorkerId) {
        if let Some(worker) = self.workers.get(id.0 as usize) {
            prefetch(&worker.heard);
            prefetch(&worker.told);
        }
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(id.0 as usize).filter(|worker| worker.there)
    }

    /// A worker, for changes that leave its load as it is.
    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(id.0 as usize).filter(|worker| worker.there)
    }

    /// Changes a worker and keeps its place in the order by load.
    pub(super) fn change(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.get_mut(id) else { return };
        let (threads, before) = (worker.threads, worker.busy);
        change(worker);
        let (busy, changed, standing) =
            (worker.busy, ByLoad::of(worker, id), self.standing[id.0 as usize] as usize);
        if (before > threads) != (busy > threads) && standing < self.heap.len() {
            let _ = if busy > threads { self.loaded.insert(id) } else { self.loaded.remove(id) };
        }
        if busy < before && busy < threads {
            self.hungry.push_front(id);
        }
        let Some(known) = self.heap.get(standing).copied() else { return };
        self.relieved |= busy < before;
        if changed >= known {
            self.lighter.remove(id);
            if changed > known {
                self.heap[standing] = changed;
                self.sink(standing);
            }
            return;
        }
        let place = self.lighter.place(id).or_else(|| self.lighter.place(WorkerId::NOBODY));
        let place = place.unwrap_or_else(|| {
            self.make_known();
            0
        });
        self.lighter.0[place] = changed;
    }

    /// Has the heap know of all that have less to do.
    fn make_known(&mut self) {
        for entry in std::mem::take(&mut self.lighter).iter() {
            let standing = self.standing[entry.worker().0 as usize] as usize;
            self.heap[standing] = entry;
            self.rise(standing);
        }
    }

    /// Whether any may take more than when this was last asked.
    pub(super) fn take_relieved(&mut self) -> bool {
        std::mem::take(&mut self.relieved)
    }

    /// The least loaded worker; of several the one that came first.
    pub(super) fn least_loaded(&self) -> Option<WorkerId> {
        let first = self.heap.first().copied().unwrap_or(ByLoad::NOBODY);
        let least = self.lighter.0.into_iter().fold(first, ByLoad::min);
        (least != ByLoad::NOBODY).then(|| least.worker())
    }

    /// Whether any worker has more than it runs.
    pub(super) fn any_loaded(&self) -> bool {
        self.loaded.len() > 0
    }

    /// Those that have more than they run, from one of them on and around.
    pub(super) fn loaded_from(&self, first: WorkerId) -> impl Iterator<Item = WorkerId> {
        self.loaded.around(first)
    }

    /// Up to `count` of those that ran out of work, each once.
    pub(super) fn take_hungry(&mut self, count: usize) -> SmallVec<[WorkerId; 4]> {
        let mut hungry: SmallVec<[WorkerId; 4]> = self.hungry.drain(..count.min(self.hungry.len())).collect();
        hungry.sort_unstable();
        hungry.dedup();
        hungry
    }

    /// A worker found no work: it looks again after all others.
    pub(super) fn stay_hungry(&mut self, id: WorkerId) {
        self.hungry.push_back(id);
    }

    /// Nobody needs to look after those that ran out of work.
    pub(super) fn feed(&mut self) {
        self.hungry.clear();
    }

    /// All that could do more are looked after once more. They stand at the top of the order, so this costs as much
    /// as there are of them.
    pub(super) fn starve(&mut self) {
        self.hungry.clear();
        self.relieved = true;
        self.make_known();
        let (full, mut places) = (ByLoad::new(FULL, WorkerId(0)), vec![0]);
        while let Some(place) = places.pop() {
            if let Some(entry) = self.heap.get(place).filter(|entry| **entry < full) {
                self.hungry.push_back(entry.worker());
                places.extend(ARITY * place + 1..=ARITY * place + ARITY);
            }
        }
    }

    /// Whether any worker may be given something.
    pub(super) fn any_stands(&self) -> bool {
        !self.heap.is_empty()
    }

    /// How many workers may be given something.
    pub(super) fn standing(&self) -> usize {
        self.heap.len()
    }

    /// Compute threads of all that may be given something.
    pub(super) fn threads(&self) -> u64 {
        self.threads
    }

    pub(super) fn contains(&self, id: WorkerId) -> bool {
        self.location(id) != Location::NOWHERE
    }

    /// In order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let named = |(place, worker)| (WorkerId(place as u32), worker);
        self.workers.iter().enumerate().map(named).filter(|(_, worker)| worker.there)
    }

    /// As [`Self::iter`], for changes that leave loads as they are.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Worker)> {
        let named = |(place, worker)| (WorkerId(place as u32), worker);
        self.workers.iter_mut().enumerate().map(named).filter(|(_, worker)| worker.there)
    }

    /// Moves up what stands at `standing` and became less.
    fn rise(&mut self, standing: usize) {
        let moved = self.heap[standing];
        let mut hole = standing;
        while hole > 0 && moved < self.heap[(hole - 1) / ARITY] {
            self.stand(hole, self.heap[(hole - 1) / ARITY]);
            hole = (hole - 1) / ARITY;
        }
        self.stand(hole, moved);
    }

    /// Moves down what stands at `standing` and became more.
    fn sink(&mut self, standing: usize) {
        let moved = self.heap[standing];
        let mut hole = standing;
        loop {
            let first = ARITY * hole + 1;
            let children = self.heap.get(first..(first + ARITY).min(self.heap.len())).unwrap_or_default();
            // Which of them it is is as good as random: this takes no branch for each.
            let least = children.iter().zip(first..).fold((moved, hole), |least, (child, place)| {
                if *child < least.0 { (*child, place) } else { least }
            });
            if least.1 == hole {
                break;
            }
            self.stand(hole, least.0);
            hole = least.1;
        }
        self.stand(hole, moved);
    }

    fn stand(&mut self, standing: usize, entry: ByLoad) {
        self.heap[standing] = entry;
        self.standing[entry.worker().0 as usize] = standing as u32;
    }

    /// Checks that the order is one.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn validate(&self) {
        let ordered = self.iter().filter(|(_, worker)| worker.stands()).count();
        assert_eq!(self.heap.len(), ordered, "each worker that stays is ordered once");
        let loaded = |(_, worker): &(_, &Worker)| worker.stands() && worker.busy > worker.threads;
        let loaded: Vec<WorkerId> = self.iter().filter(loaded).map(|(id, _)| id).collect();
        assert_eq!(
            self.loaded.around(WorkerId(0)).collect::<Vec<_>>(),
            loaded,
            "those that have more than they run"
        );
        assert_eq!(self.loaded.len(), loaded.len());
        let threads: u64 =
            self.heap.iter().filter_map(|entry| Some(u64::from(self.get(entry.worker())?.threads))).sum();
        assert_eq!(self.threads, threads, "threads of those that stay are counted");
        let mut lighter: Vec<WorkerId> = self.lighter.iter().map(|entry| entry.worker()).collect();
        lighter.sort_unstable();
        lighter.dedup();
        assert_eq!(lighter.len(), self.lighter.iter().count(), "those with less to do are noted once");
        assert!(lighter.into_iter().all(|id| self.get(id).is_some_and(Worker::stands)), "and are ordered");
        for (standing, entry) in self.heap.iter().enumerate() {
            let id = entry.worker();
            let worker = self.get(id).expect("the ordered are there");
            assert!(worker.stands(), "{id:?} leaves or is paused");
            assert_eq!(
                self.standing[id.0 as usize] as usize, standing,
                "{id:?} stands where it is thought to"
            );
            let load = ByLoad::of(worker, id);
            let lighter = self.lighter.iter().any(|lighter| lighter == load) && load < *entry;
            assert!(lighter || load == *entry, "{id:?} is ordered by its load");
            assert!(self.heap[standing.saturating_sub(1) / ARITY] <= *entry, "{id:?} stands too high");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worker(threads: u32) -> Worker {
        Worker { threads, ..Worker::default() }
    }

    proptest! {
        /// Whoever gets, does, leaves and comes back, in whatever order.
        #[test]
        fn the_least_loaded_is_known(steps in prop::collection::vec((0u32..40, 0u32..4), 0..400)) {
            let mut pool = Pool::default();
            (0..40).for_each(|n| { pool.add(worker(1 + n % 3), 0); });
            for (id, step) in steps {
                let id = WorkerId(id);
                match step {
                    0 => pool.change(id, |worker| worker.busy += 1),
                    1 => pool.change(id, |worker| worker.busy = worker.busy.saturating_sub(1)),
                    2 => {
                        if let Some(worker) = pool.get_mut(id) {
                            worker.paused = true;
                        }
                        pool.stand_aside(id);
                    }
                    _ => {
                        if let Some(worker) = pool.get_mut(id) {
                            worker.paused = false;
                        }
                        pool.stand_again(id);
                    }
                }
                pool.validate();
                let standing = pool.iter().filter(|(_, worker)| worker.stands());
                let least = standing.map(|(id, worker)| ByLoad::of(worker, id)).min();
                prop_assert_eq!(pool.least_loaded(), least.map(ByLoad::worker));
            }
        }
    }
}
