//! Where tasks live: dense places in pages that never move, and an index of their keys.

use super::{
    index::Index,
    places::Places,
    task::{Task, TaskRef},
};
use crate::{graph::Key, protocol::TaskId};

/// Places in a page.
const PAGE: usize = 1024;

type Page = [Option<Task>; PAGE];

/// A page of vacant places, made where it stays.
fn page() -> Box<Page> {
    let places: Box<[Option<Task>]> = std::iter::repeat_with(|| None).take(PAGE).collect();
    places.try_into().unwrap_or_else(|_| unreachable!("it has as many places as a page"))
}

/// All tasks of a scheduler.
#[derive(Default)]
pub(super) struct Arena {
    pages: Vec<Box<Page>>,
    /// Places that are or were taken.
    used: usize,
    /// Vacant ones of these, and the generations that their next tenants are.
    vacant: Vec<(u32, u32)>,
    index: Index,
}

impl Arena {
    /// Makes a task in state released.
    pub(super) fn create(&mut self, key: Key, function: u32) -> TaskRef {
        let this = match self.vacant.pop() {
            Some((place, tenant)) => TaskRef { index: place, tenant },
            None => {
                if self.used == self.pages.len() * PAGE {
                    self.pages.push(page());
                }
                self.used += 1;
                TaskRef { index: self.used as u32 - 1, tenant: 0 }
            }
        };
        if let Some(place) = self.place_mut(this.index as usize) {
            *place = Some(Task::new(this, key, function));
        }
        self.index.insert(hash(key), this.index);
        this
    }

    /// Takes a task out, whose place is then free for another; gives the places of the dependencies it had.
    pub(super) fn remove(&mut self, this: TaskRef) -> Places {
        let Some(task) = self.get_mut(this) else { return Places::default() };
        let (key, id, dependencies) = (task.key, task.id(), std::mem::take(&mut task.dependencies));
        self.index.remove(hash(key), this.index);
        self.vacant.push((this.index, id.generation() + 1));
        if let Some(place) = self.place_mut(this.index as usize) {
            *place = None;
        }
        dependencies
    }

    /// Has the memory that finding these keys will touch brought near, all at the same time.
    pub(super) fn read_ahead(&self, keys: impl Iterator<Item = Key>) {
        self.index.read_ahead(keys.map(hash));
    }

    pub(super) fn find(&self, key: Key) -> Option<TaskRef> {
        let is_it = |place: u32| self.at(place).is_some_and(|task| task.key == key);
        let place = self.index.find(hash(key), is_it)?;
        Some(self.at(place)?.this)
    }

    pub(super) fn get(&self, this: TaskRef) -> Option<&Task> {
        self.at(this.index).filter(|task| task.this == this)
    }

    pub(super) fn get_mut(&mut self, this: TaskRef) -> Option<&mut Task> {
        self.at_mut(this.index).filter(|task| task.this == this)
    }

    /// The task that a worker means, unless that computation of it is over.
    pub(super) fn computation(&self, id: TaskId) -> Option<&Task> {
        self.at(id.index() as u32).filter(|task| task.id() == id)
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.pages.iter().flat_map(|page| page.iter().flatten())
    }

    /// The present tenant of a place.
    pub(super) fn at(&self, place: u32) -> Option<&Task> {
        let place = place as usize;
        self.pages.get(place / PAGE)?[place % PAGE].as_ref()
    }

    pub(super) fn at_mut(&mut self, place: u32) -> Option<&mut Task> {
        self.place_mut(place as usize)?.as_mut()
    }

    fn place_mut(&mut self, place: usize) -> Option<&mut Option<Task>> {
        Some(&mut self.pages.get_mut(place / PAGE)?[place % PAGE])
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
            assert_eq!(arena.get(this).map(|task| task.key), Some(key(n)));
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
