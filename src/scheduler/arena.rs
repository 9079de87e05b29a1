//! Where tasks live: dense places in pages that never move, and an index of their keys.

use super::{
    TaskState,
    index::Index,
    places::Places,
    task::{Cold, Hot, Task, TaskMut, TaskRef},
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
        Self { hot: all(|| Hot::VACANT), cold: all(Cold::default) }
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
        *hot = Hot::new(hot.tenant());
        *cold = Cold { key, function, ..Cold::default() };
        self.index.insert(hash(key), place);
        TaskRef { index: place, tenant: hot.tenant() }
    }

    /// Takes a task out, whose place is then free for another; gives the places of the dependencies it had.
    pub(super) fn remove(&mut self, this: TaskRef) -> Places {
        let Some(task) = self.get_mut(this) else { return Places::default() };
        let (key, dependencies) = task.vacate();
        self.index.remove(hash(key), this.index);
        self.vacant.push(this.index);
        dependencies
    }

    /// Has the memory that finding these keys will touch brought near, all at the same time.
    pub(super) fn read_ahead(&self, keys: impl Iterator<Item = Key>) {
        self.index.read_ahead(keys.map(hash));
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

    pub(super) fn iter(&self) -> impl Iterator<Item = Task<'_>> {
        (0..self.used as u32).filter_map(|place| self.at(place))
    }

    /// The present tenant of a place.
    pub(super) fn at(&self, index: u32) -> Option<Task<'_>> {
        let (page, number) = (self.pages.get(index as usize / PAGE)?, index as usize % PAGE);
        let (hot, cold) = (&page.hot[number], &page.cold[number]);
        let this = TaskRef { index, tenant: hot.tenant() };
        (hot.state != TaskState::Forgotten).then_some(Task { this, hot, cold })
    }

    pub(super) fn at_mut(&mut self, index: u32) -> Option<TaskMut<'_>> {
        let (page, number) = (self.pages.get_mut(index as usize / PAGE)?, index as usize % PAGE);
        let (hot, cold) = (&mut page.hot[number], &mut page.cold[number]);
        let this = TaskRef { index, tenant: hot.tenant() };
        (hot.state != TaskState::Forgotten).then_some(TaskMut { this, hot, cold })
    }
}

/// A key is uniformly distributed: a part of it is hash enough.
fn hash(key: Key) -> u32 {
    key.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key(xxhash_rust::xxh3::xxh3_128(&n.to_le_bytes()))
    }

    #[test]
    fn tasks_are_found_by_key_whatever_comes_and_goes() {
        let mut arena = Arena::default();
        let mut known = std::collections::BTreeMap::new();
        for n in 0..20_000 {
            known.insert(n, arena.create(key(n), 0));
            // Two come for one that goes.
            if n % 2 == 0 {
                let victim = (n * 7919) % (n + 1);
                if let Some(gone) = known.remove(&victim) {
                    arena.remove(gone);
                    assert!(arena.get(gone).is_none() && arena.find(key(victim)).is_none());
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
