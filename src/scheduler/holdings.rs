//! Which results each worker holds.
//!
//! That is asked when a worker leaves, and rarely else, while results come and go all the time. A list with each worker would
//! be one more place in memory to wait for at each of them. So there is one for all, to the end of which is added, and from
//! which nothing is taken: what is held no more lingers until it is the great majority.

use crate::{
    graph::KeyMap,
    protocol::WorkerId,
    scheduler::{
        state::State,
        task::{Task, TaskRef},
    },
};

/// So many entries are not worth tidying.
const FEW: usize = 1024;

/// Of more, at most so many are listed for each that is held.
const MOST: usize = 4;

/// Who held which results, by their tasks' places; some may be held no more.
#[derive(Default)]
pub(super) struct Holdings {
    listed: Vec<(u32, WorkerId)>,
    held: usize,
}

impl Holdings {
    /// Notes that a worker holds the result of the task in a place. Says whether it is time to [`Self::tidy`].
    pub(super) fn add(&mut self, place: u32, worker: WorkerId) -> bool {
        self.listed.push((place, worker));
        self.held += 1;
        self.listed.len() > FEW && self.listed.len() > MOST * self.held
    }

    /// One is held no more.
    pub(super) fn remove_one(&mut self) {
        self.held -= 1;
    }

    /// Leaves those that `is_held`.
    pub(super) fn tidy(&mut self, is_held: impl Fn(u32, WorkerId) -> bool) {
        self.listed.retain(|(place, worker)| is_held(*place, *worker));
        // A worker may have come to hold the same twice.
        if self.listed.len() > self.held {
            self.listed.sort_unstable();
            self.listed.dedup();
        }
    }
}

impl Task {
    fn is_held_by(&self, worker: WorkerId) -> bool {
        self.who_has.contains(&worker)
    }
}

impl State {
    /// Notes that a worker came to hold a result.
    pub(super) fn note_held(&mut self, id: TaskRef, worker: WorkerId) {
        if self.holdings.add(id.index, worker) {
            let Self { holdings, tasks, .. } = self;
            holdings.tidy(|place, worker| tasks.at(place).is_some_and(|task| task.is_held_by(worker)));
        }
    }

    /// The tasks whose results a worker holds.
    pub(super) fn held_by(&self, id: WorkerId) -> Vec<TaskRef> {
        self.held_by_each(|worker| worker == id).remove(&id).unwrap_or_default()
    }

    /// The tasks whose results each of these workers holds, of those that hold any: takes as long as all results that are held.
    pub(super) fn held_by_each(&self, of: impl Fn(WorkerId) -> bool) -> KeyMap<WorkerId, Vec<TaskRef>> {
        let mut each = KeyMap::<WorkerId, Vec<TaskRef>>::default();
        for &(place, worker) in self.holdings.listed.iter().filter(|(_, worker)| of(*worker)) {
            if let Some(task) = self.tasks.at(place).filter(|task| task.is_held_by(worker)) {
                each.entry(worker).or_default().push(task.this);
            }
        }
        for tasks in each.values_mut() {
            tasks.sort_unstable();
            tasks.dedup();
        }
        each
    }

    /// How many results are held, counted once for each that holds them.
    pub(super) fn held(&self) -> usize {
        self.holdings.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes to be held, in whatever order, goes and comes again, nothing is lost, and little lingers.
        #[test]
        fn what_is_held_is_listed(
            steps in prop::collection::vec((0u32..40, 0u32..40, any::<bool>()), 0..6000),
        ) {
            let (mut holdings, mut held) = (Holdings::default(), BTreeSet::new());
            for (place, worker, comes) in steps {
                let one = (place, WorkerId(worker));
                if comes && held.insert(one) {
                    if holdings.add(place, WorkerId(worker)) {
                        holdings.tidy(|place, worker| held.contains(&(place, worker)));
                    }
                    prop_assert!(holdings.listed.len() <= FEW.max(MOST * held.len()), "few linger");
                } else if !comes && held.remove(&one) {
                    holdings.remove_one();
                }
                prop_assert_eq!(holdings.held, held.len());
            }
            let listed: BTreeSet<_> = holdings.listed.iter().copied().collect();
            prop_assert!(held.is_subset(&listed));
        }
    }
}
