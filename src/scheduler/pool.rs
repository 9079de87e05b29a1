//! The scheduler's workers: by id, and the least loaded first.

use super::state::Worker;
use crate::protocol::WorkerId;

/// All workers. Ids are dense and never used again, so they are places in a vector; the order by load
/// is a binary heap that knows where in it each worker stands.
#[derive(Default)]
pub(super) struct Pool {
    workers: Vec<Option<Box<Worker>>>,
    /// Load and worker: no entry is less than its parent, that of half its place.
    heap: Vec<(u64, WorkerId)>,
}

impl Pool {
    /// Takes a worker in, under the next id.
    pub(super) fn add(&mut self, mut worker: Worker) -> WorkerId {
        let id = WorkerId(self.workers.len() as u32);
        worker.standing = self.heap.len();
        self.heap.push((worker.load(), id));
        self.workers.push(Some(Box::new(worker)));
        self.rise(self.heap.len() - 1);
        id
    }

    pub(super) fn remove(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(id.0 as usize).and_then(Option::take) else { return };
        self.heap.swap_remove(worker.standing);
        if worker.standing < self.heap.len() {
            self.settle(worker.standing);
        }
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
        change(worker);
        let (load, standing) = (worker.load(), worker.standing);
        if self.heap[standing].0 != load {
            self.heap[standing].0 = load;
            self.settle(standing);
        }
    }

    /// The least loaded worker; of several the one that came first.
    pub(super) fn least_loaded(&self) -> Option<WorkerId> {
        Some(self.heap.first()?.1)
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

    /// Puts a worker whose load changed where it belongs.
    fn settle(&mut self, standing: usize) {
        self.stand(standing);
        let standing = self.rise(standing);
        self.sink(standing);
    }

    fn rise(&mut self, mut standing: usize) -> usize {
        while standing > 0 && self.heap[standing] < self.heap[(standing - 1) / 2] {
            self.swap(standing, (standing - 1) / 2);
            standing = (standing - 1) / 2;
        }
        standing
    }

    fn sink(&mut self, mut standing: usize) {
        loop {
            let children = 2 * standing + 1..(2 * standing + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|child| self.heap[*child]) else { return };
            if self.heap[standing] <= self.heap[least] {
                return;
            }
            self.swap(standing, least);
            standing = least;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.stand(one);
        self.stand(other);
    }

    fn stand(&mut self, standing: usize) {
        let id = self.heap[standing].1;
        if let Some(worker) = self.get_mut(id) {
            worker.standing = standing;
        }
    }

    /// Checks that the order is one.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn validate(&self) {
        assert_eq!(self.heap.len(), self.iter().count(), "each worker is ordered once");
        for (standing, (load, id)) in self.heap.iter().enumerate() {
            let worker = self.get(*id).expect("the ordered are there");
            assert_eq!((worker.standing, worker.load()), (standing, *load), "{id:?} is ordered by its load");
            assert!(self.heap[standing.saturating_sub(1) / 2] <= (*load, *id), "{id:?} stands too high");
        }
    }
}
