//! A client: what it wants, and what came of that.

use rankine::{
    graph::{Key, KeyMap},
    protocol::ClientId,
};

use crate::{Error, Problem, Request};

/// What came of something wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Awaited,
    Here(u64),
    Cancelled,
    Failed(String),
}

pub(crate) struct Client {
    pub(crate) id: ClientId,
    pub(crate) request: Request,
    fates: KeyMap<Key, Fate>,
    /// Wanted, and not settled.
    open: usize,
}

impl Client {
    pub(crate) fn new(id: ClientId, request: Request) -> Self {
        let fates: KeyMap<Key, Fate> =
            request.wants.iter().map(|task| (Problem::key(*task as usize), Fate::Awaited)).collect();
        Self { id, request, open: fates.len(), fates }
    }

    /// How much it waits for.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.request.wants.iter().map(|task| Problem::key(*task as usize)).collect()
    }

    /// The keys of what it now cancels: it waits for none of that any more.
    pub(crate) fn cancel(&mut self) -> Vec<Key> {
        let tasks = self.request.cancels.as_ref().map(|(_, tasks)| tasks.clone()).unwrap_or_default();
        let keys: Vec<Key> = tasks.into_iter().map(|task| Problem::key(task as usize)).collect();
        keys.iter().for_each(|key| self.cancelled(*key));
        keys
    }

    pub(crate) fn awaits(&self, key: Key) -> bool {
        self.fates.get(&key) == Some(&Fate::Awaited)
    }

    pub(crate) fn got(&mut self, key: Key, value: u64) {
        self.settle(key, Fate::Here(value));
    }

    pub(crate) fn failed(&mut self, key: Key, error: String) {
        self.settle(key, Fate::Failed(error));
    }

    pub(crate) fn cancelled(&mut self, key: Key) {
        self.settle(key, Fate::Cancelled);
    }

    /// A result that it heard of is being computed again.
    pub(crate) fn lost(&mut self, key: Key) {
        if let Some(fate) = self.fates.get_mut(&key).filter(|fate| matches!(fate, Fate::Here(_))) {
            *fate = Fate::Awaited;
            self.open += 1;
        }
    }

    fn settle(&mut self, key: Key, now: Fate) {
        let Some(fate) = self.fates.get_mut(&key).filter(|fate| **fate != Fate::Cancelled) else { return };
        self.open -= usize::from(*fate == Fate::Awaited);
        *fate = now;
    }

    /// One of the tasks that it waits for.
    pub(crate) fn awaited(&self) -> Option<u32> {
        self.request.wants.iter().copied().find(|task| self.awaits(Problem::key(*task as usize)))
    }

    /// Checks that it has what a sequential run gives, of all that was not cancelled.
    pub(crate) fn check(&self, results: &[u64]) -> Result<(), Error> {
        for &task in &self.request.wants {
            let expected = results[task as usize];
            match &self.fates[&Problem::key(task as usize)] {
                Fate::Here(value) if *value == expected => {}
                Fate::Cancelled if self.request.cancels.is_some() => {}
                Fate::Here(value) => {
                    return Err(Error::Wrong { task, expected, found: format!("{value:#x}") });
                }
                other => return Err(Error::Wrong { task, expected, found: format!("{other:?}") }),
            }
        }
        Ok(())
    }
}
