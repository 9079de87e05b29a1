//! The scheduler's workers: by id, and the least loaded first.

use std::{collections::VecDeque, iter};

use super::state::Worker;
use crate::protocol::WorkerId;

/// The load of a worker that has a task for each thread.
pub(super) const FULL: u64 = 1 << 16;
/// Stands nowhere in the order.
const ASIDE: u32 = u32::MAX;

/// All workers. Ids are dense and never used again, so they are places in a vector; the order by load
/// is a binary heap that knows where in it each worker stands.
#[derive(Default)]
pub(super) struct Pool {
    workers: Vec<Option<Box<Worker>>>,
    /// Load and worker: no entry is less than its parent, that of half its place.
    heap: Vec<(u64, WorkerId)>,
    /// Where in the heap each worker stands.
    standing: Vec<u32>,
    /// Those that have more than they run.
    loaded: Members,
    /// Those that ran out of work: the latest first, then those that found none.
    hungry: VecDeque<WorkerId>,
}

impl Pool {
    /// Takes a worker in, under the next id.
    pub(super) fn add(&mut self, worker: Worker) -> WorkerId {
        let id = WorkerId(self.workers.len() as u32);
        self.hungry.push_front(id);
        self.standing.push(self.heap.len() as u32);
        self.heap.push((worker.load(), id));
        self.workers.push(Some(Box::new(worker)));
        self.settle(self.heap.len() - 1);
        id
    }

    pub(super) fn remove(&mut self, id: WorkerId) {
        if self.contains(id) {
            self.stand_aside(id);
            self.workers[id.0 as usize] = None;
        }
    }

    /// Takes a worker out of the order: it is not to be given anything.
    pub(super) fn stand_aside(&mut self, id: WorkerId) {
        self.loaded.remove(id);
        let standing = std::mem::replace(&mut self.standing[id.0 as usize], ASIDE) as usize;
        if standing < self.heap.len() {
            self.heap.swap_remove(standing);
            if standing < self.heap.len() {
                self.settle(standing);
            }
        }
    }

    /// Puts a worker back into the order.
    pub(super) fn stand_again(&mut self, id: WorkerId) {
        let Some(worker) = self.get(id) else { return };
        let (load, loaded) = (worker.load(), worker.busy > worker.threads);
        if self.standing[id.0 as usize] != ASIDE {
            return;
        }
        if loaded {
            self.loaded.insert(id);
        }
        self.hungry.push_back(id);
        self.standing[id.0 as usize] = self.heap.len() as u32;
        self.heap.push((load, id));
        self.settle(self.heap.len() - 1);
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(id.0 as usize)?.as_deref()
    }

    /// A worker, for changes that leave its load as it is.
    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(id.0 as usize)?.as_deref_mut()
    }

    /// Changes a worker and keeps its place in the order by load.
    pub(super) fn change(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.get_mut(id) else { return };
        let (threads, before) = (worker.threads, worker.busy);
        change(worker);
        let (busy, load, standing) = (worker.busy, worker.load(), self.standing[id.0 as usize] as usize);
        if (before > threads) != (busy > threads) && standing < self.heap.len() {
            if busy > threads { self.loaded.insert(id) } else { self.loaded.remove(id) }
        }
        if busy < before && busy < threads {
            self.hungry.push_front(id);
        }
        if let Some(entry) = self.heap.get_mut(standing).filter(|entry| entry.0 != load) {
            entry.0 = load;
            self.settle(standing);
        }
    }

    /// The least loaded worker; of several the one that came first.
    pub(super) fn least_loaded(&self) -> Option<WorkerId> {
        Some(self.heap.first()?.1)
    }

    /// Whether any worker has more than it runs.
    pub(super) fn any_loaded(&self) -> bool {
        self.loaded.count > 0
    }

    /// Those that have more than they run, from one of them on and around.
    pub(super) fn loaded_from(&self, first: WorkerId) -> impl Iterator<Item = WorkerId> {
        self.loaded.around(first)
    }

    /// Up to `count` of those that ran out of work, each once.
    pub(super) fn take_hungry(&mut self, count: usize) -> Vec<WorkerId> {
        let mut hungry: Vec<WorkerId> = self.hungry.drain(..count.min(self.hungry.len())).collect();
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
        let mut places = vec![0];
        while let Some(place) = places.pop() {
            if let Some((_, id)) = self.heap.get(place).filter(|(load, _)| *load < FULL) {
                self.hungry.push_back(*id);
                places.extend([2 * place + 1, 2 * place + 2]);
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

    pub(super) fn contains(&self, id: WorkerId) -> bool {
        self.get(id).is_some()
    }

    /// In order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let named = |(place, worker): (usize, _)| Some((WorkerId(place as u32), Option::as_deref(worker)?));
        self.workers.iter().enumerate().filter_map(named)
    }

    /// As [`Self::iter`], for changes that leave loads as they are.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Worker)> {
        let named =
            |(place, worker): (usize, _)| Some((WorkerId(place as u32), Option::as_deref_mut(worker)?));
        self.workers.iter_mut().enumerate().filter_map(named)
    }

    /// Puts what stands at `standing` where it belongs, after its load changed.
    fn settle(&mut self, standing: usize) {
        let moved = self.heap[standing];
        let mut hole = standing;
        while hole > 0 && moved < self.heap[(hole - 1) / 2] {
            self.stand(hole, self.heap[(hole - 1) / 2]);
            hole = (hole - 1) / 2;
        }
        loop {
            let (left, right) = (2 * hole + 1, 2 * hole + 2);
            if left >= self.heap.len() {
                break;
            }
            let least =
                if right < self.heap.len() && self.heap[right] < self.heap[left] { right } else { left };
            if moved <= self.heap[least] {
                break;
            }
            self.stand(hole, self.heap[least]);
            hole = least;
        }
        self.stand(hole, moved);
    }

    fn stand(&mut self, standing: usize, entry: (u64, WorkerId)) {
        self.heap[standing] = entry;
        self.standing[entry.1.0 as usize] = standing as u32;
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
        assert_eq!(self.loaded.count, loaded.len());
        for (standing, (load, id)) in self.heap.iter().enumerate() {
            let worker = self.get(*id).expect("the ordered are there");
            assert!(worker.stands(), "{id:?} leaves or is paused");
            let stands = self.standing[id.0 as usize] as usize;
            assert_eq!((stands, worker.load()), (standing, *load), "{id:?} is ordered by its load");
            assert!(self.heap[standing.saturating_sub(1) / 2] <= (*load, *id), "{id:?} stands too high");
        }
    }
}

/// Some of the workers, a bit for each: ten thousand of them fit into the fastest of a processor's caches.
#[derive(Default)]
struct Members {
    words: Vec<u64>,
    count: usize,
}

impl Members {
    fn place(id: WorkerId) -> (usize, u64) {
        (id.0 as usize / 64, 1 << (id.0 % 64))
    }

    fn insert(&mut self, id: WorkerId) {
        let (word, bit) = Self::place(id);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.count += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    fn remove(&mut self, id: WorkerId) {
        let (word, bit) = Self::place(id);
        let Some(bits) = self.words.get_mut(word) else { return };
        self.count -= usize::from(*bits & bit != 0);
        *bits &= !bit;
    }

    /// In order, from one of them on and around.
    fn around(&self, first: WorkerId) -> impl Iterator<Item = WorkerId> {
        let (middle, bit) = Self::place(first);
        let before = bit - 1;
        let others = (middle + 1..self.words.len()).chain(0..middle.min(self.words.len()));
        self.of_word(middle, !before)
            .chain(others.flat_map(|word| self.of_word(word, u64::MAX)))
            .chain(self.of_word(middle, before))
    }

    fn of_word(&self, word: usize, mask: u64) -> impl Iterator<Item = WorkerId> + use<> {
        let mut bits = self.words.get(word).copied().unwrap_or(0) & mask;
        iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros())?;
            bits &= bits - 1;
            Some(WorkerId(word as u32 * 64 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_from_any_on_and_around() {
        let mut members = Members::default();
        let ids = [0, 1, 63, 64, 65, 127, 128, 300];
        ids.into_iter().chain(ids).for_each(|id| members.insert(WorkerId(id)));
        [64, 64, 5, 9999].into_iter().for_each(|id| members.remove(WorkerId(id)));
        assert_eq!(members.count, 7);
        let around = |first| members.around(WorkerId(first)).map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(around(0), [0, 1, 63, 65, 127, 128, 300]);
        assert_eq!(around(64), [65, 127, 128, 300, 0, 1, 63]);
        assert_eq!(around(66), [127, 128, 300, 0, 1, 63, 65]);
        assert_eq!(around(301), [0, 1, 63, 65, 127, 128, 300]);
        assert_eq!(around(9999), [0, 1, 63, 65, 127, 128, 300]);
    }
}
