//! Where tasks live: dense places in pages that never move, and an index of their keys.

use super::{
    hot::Hot,
    index::Index,
    places::Places,
    prefetch::prefetch,
    task::{Cold, Task, TaskMut, TaskRef},
};
use crate::{graph::Key, protocol::TaskId};

/// Places in a page.
const PAGE: usize = 1024;

/// Some places. What is hot of all tasks there is beside each other.
struct Page {
    hot: Box<[Hot; PAGE]>,
    cold: Box<[Cold; PAGE]>,
}

impl Page {
    /// A page of vacant places.
    fn new() -> Self {
        Self { hot: all(|| Hot::vacant(0)), cold: all(Cold::default) }
    }
}

/// As many of something as places are in a page, made where they stay.
fn all<T>(one: impl FnMut() -> T) -> Box<[T; PAGE]> {
    let all: Box<[T]> = std::iter::repeat_with(one).take(PAGE).collect();
    all.try_into().unwrap_or_else(|_| unreachable!("it has as many places as a page"))
}

/// All tasks of a scheduler.
#[derive(Default)]
pub(super) struct Arena {
    pages: Vec<Page>,
    /// Places that are or were taken.
    used: usize,
    /// Vacant ones of these.
    vacant: Vec<u32>,
    index: Index,
}

impl Arena {
    /// Makes a task in state released.
    pub(super) fn create(&mut self, key: Key, function: u32) -> TaskRef {
        let place = self.vacant.pop().unwrap_or_else(|| {
            if self.used == self.pages.len() * PAGE {
                self.pages.push(Page::new());
            }
            self.used += 1;
            self.used as u32 - 1
        });
        let (page, number) = (place as usize / PAGE, place as usize % PAGE);
        let Page { hot, cold } = &mut self.pages[page];
        let (hot, cold) = (&mut hot[number], &mut cold[number]);
        *hot = Hot::new(hot.tenant);
        *cold = Cold { key, function, ..Cold::default() };
        self.index.insert(hash(key), place);
        TaskRef { index: place, tenant: hot.tenant }
    }

    /// Takes a task out, whose place is then free for another; gives the places of the dependencies it had.
    pub(super) fn remove(&mut self, this: TaskRef) -> Places {
        let Some(task) = self.get_mut(this) else { return Places::default() };
        let (key, dependencies) = task.vacate();
        self.index.remove(hash(key), this.index);
        self.vacant.push(this.index);
        dependencies
    }

    /// Asks for what finding these keys will look at, and for what is looked at of their tasks then: of all at the same time.
    pub(super) fn prefetch(&self, keys: impl Iterator<Item = Key> + Clone) {
        keys.clone().for_each(|key| self.index.prefetch(hash(key)));
        for place in keys.filter_map(|key| self.index.find(hash(key), |_| true)) {
            self.prefetch_hot(place);
            self.prefetch_cold(place);
        }
    }

    pub(super) fn find(&self, key: Key) -> Option<TaskRef> {
        let is_it = |place: u32| self.at(place).is_some_and(|task| task.cold.key == key);
        let place = self.index.find(hash(key), is_it)?;
        Some(self.at(place)?.this)
    }

    pub(super) fn get(&self, this: TaskRef) -> Option<Task<'_>> {
        self.at(this.index).filter(|task| task.this == this)
    }

    pub(super) fn get_mut(&mut self, this: TaskRef) -> Option<TaskMut<'_>> {
        self.at_mut(this.index).filter(|task| task.this == this)
    }

    /// The task that a worker means, unless that computation of it is over.
    pub(super) fn computation(&self, id: TaskId) -> Option<Task<'_>> {
        self.at(id.index() as u32).filter(|task| task.id() == id)
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// All tasks, by their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = Task<'_>> {
        self.pages.iter().zip((0u32..).step_by(PAGE)).flat_map(|(page, first)| {
            let tasks = page.hot.iter().zip(page.cold.iter()).zip(first..);
            tasks.filter_map(|((hot, cold), index)| Task::in_place(index, hot, cold))
        })
    }

    /// What is in a place, vacant or not.
    fn place(&self, index: u32) -> Option<(&Hot, &Cold)> {
        let (page, number) = (self.pages.get(index as usize / PAGE)?, index as usize % PAGE);
        Some((&page.hot[number], &page.cold[number]))
    }

    /// The present tenant of a place.
    pub(super) fn at(&self, index: u32) -> Option<Task<'_>> {
        let (hot, cold) = self.place(index)?;
        Task::in_place(index, hot, cold)
    }

    /// As [`Self::at`], for changes.
    pub(super) fn at_mut(&mut self, index: u32) -> Option<TaskMut<'_>> {
        let (page, number) = (self.pages.get_mut(index as usize / PAGE)?, index as usize % PAGE);
        TaskMut::in_place(index, &mut page.hot[number], &mut page.cold[number])
    }

    /// Asks for what steps of its neighbours look at of the tenant of a place.
    pub(super) fn prefetch_hot(&self, index: u32) {
        if let Some((hot, _)) = self.place(index) {
            prefetch(hot);
        }
    }

    /// As [`Self::prefetch_hot`], for who its neighbours are and what placing it takes.
    pub(super) fn prefetch_cold(&self, index: u32) {
        if let Some((_, cold)) = self.place(index) {
            prefetch(&cold.key);
            prefetch(&cold.estimate);
        }
    }

    /// As [`Self::prefetch_hot`], for what it is called with.
    pub(super) fn prefetch_rest(&self, index: u32) {
        if let Some((_, cold)) = self.place(index) {
            prefetch(&cold.rest);
        }
    }
}

/// A key is uniformly distributed: a part of it is hash enough.
fn hash(key: Key) -> u32 {
    key.0 as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        graph::Arguments,
        protocol::{ClientId, Priority, WorkerId},
        scheduler::TaskState,
    };

    fn key(n: usize) -> Key {
        Key(xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes()))
    }

    #[test]
    fn tasks_are_found_by_key_whatever_comes_and_goes() {
        let mut arena = Arena::default();
        let mut known = std::collections::BTreeMap::new();
        for n in 0..20_000 {
            known.insert(n, arena.create(key(n), 0));
            // Two come for one that goes, mostly.
            if n % 2 == 0 {
                let victim = (n * 7919) % (n + 1);
                if let Some(gone) = known.remove(&victim) {
                    arena.remove(gone);
                    assert!(arena.get(gone).is_none() && arena.find(key(victim)).is_none());
                    // It may come back before its place is taken out of the index.
                    if n % 3 == 0 {
                        known.insert(victim, arena.create(key(victim), 0));
                    }
                }
            }
        }
        assert_eq!(arena.len(), known.len());
        assert_eq!(arena.iter().count(), known.len());
        for (n, this) in known {
            assert_eq!(arena.find(key(n)), Some(this));
            assert_eq!(arena.get(this).map(|task| task.cold.key), Some(key(n)));
        }
    }

    #[test]
    fn the_next_tenant_of_a_place_has_nothing_of_the_one_before() {
        let mut arena = Arena::default();
        let (dependency, workers) = (arena.create(key(0), 0), [1, 2, 3].map(WorkerId));
        let mut generations = BTreeSet::new();
        for n in 1..100 {
            let this = arena.create(key(n), 7);
            arena.link(this, dependency);
            let mut task = arena.get_mut(this).unwrap();
            assert_eq!((task.state, task.needed(), task.worker()), (TaskState::Released, false, None));
            assert!(task.clients().is_empty() && task.trouble().is_none() && task.places().is_empty());
            assert!(task.arguments().head().is_empty() && !task.is_long_running());
            assert_eq!((task.nbytes, task.waiting_on, task.cold.height, task.cold.options), (0, 0, 0, 0));
            assert_eq!((task.cold.estimate, task.cold.priority), (0, Priority::default()));
            assert!(generations.insert(task.id().generation()), "workers call each by another name");
            // All of this is left behind now and then, some of it by others.
            let does = |what: usize| n & 1 << what != 0;
            (0..n % 3).for_each(|_| task.compute_anew());
            generations.insert(task.id().generation());
            (0..n % 3).filter(|_| does(0)).for_each(|client| task.want(ClientId(client as u32)));
            if does(1) {
                task.trouble_mut().retried = 1;
            }
            if does(2) {
                task.state = TaskState::Memory;
                workers.into_iter().take(n % 4).for_each(|worker| task.add_holder(worker));
            }
            if does(3) {
                task.set_arguments(Arguments::copied(&[1; 100], vec![]));
            }
            if does(4) {
                task.set_long_running(true);
                (task.nbytes, task.waiting_on, task.cold.height, task.cold.options) = (1, 2, 3, 4);
                (task.cold.estimate, task.cold.priority.user) = (5, 6);
            }
            assert_eq!(arena.remove(this)[..], [dependency.index]);
        }
    }

    #[test]
    fn a_place_is_never_the_same_again() {
        let mut arena = Arena::default();
        let first = arena.create(key(1), 0);
        let id = arena.get(first).unwrap().id();
        arena.remove(first);
        let second = arena.create(key(2), 0);
        assert_eq!((first.index, arena.get(second).unwrap().id().index()), (second.index, id.index()));
        assert!(arena.get(first).is_none() && arena.computation(id).is_none());
    }
}
