//! Which results each worker holds.
//!
//! That is asked when a worker leaves, and rarely else, while results come and go all the time. A list with each worker would
//! be one more place in memory to wait for at each of them. So it is the other way round: the tasks' places have the first
//! holder of each result beside each other, to be looked through; of results with several holders the others are found
//! where copies are listed ([`super::copies`]).

use super::{
    state::State,
    task::{Task, TaskRef},
};
use crate::{graph::KeyMap, protocol::WorkerId};

/// The first holder of each result, by its task's place.
#[derive(Default)]
pub(super) struct Holdings {
    /// [`WorkerId::NOBODY`] where there is none.
    first: Vec<WorkerId>,
}

impl Holdings {
    /// Notes who holds the result of a task.
    #[inline]
    pub(super) fn note(&mut self, task: &Task) {
        let (place, first) = (task.this.index as usize, task.who_has.first().copied());
        if self.first.len() <= place {
            self.first.resize(place + 1, WorkerId::NOBODY);
        }
        self.first[place] = first.unwrap_or(WorkerId::NOBODY);
    }
}

impl State {
    /// The tasks whose results a worker holds.
    pub(super) fn held_by(&self, id: WorkerId) -> Vec<TaskRef> {
        self.held_by_each(|worker| worker == id).remove(&id).unwrap_or_default()
    }

    /// The tasks whose results each of these workers holds, of those that hold any: takes as long as there are places.
    pub(super) fn held_by_each(&self, of: impl Fn(WorkerId) -> bool) -> KeyMap<WorkerId, Vec<TaskRef>> {
        let mut each = KeyMap::<WorkerId, Vec<TaskRef>>::default();
        let mut add = |holder: WorkerId, place: u32| {
            if of(holder) {
                each.entry(holder).or_default().extend(self.tasks.at(place).map(|task| task.this));
            }
        };
        for (place, first) in self.holdings.first.iter().enumerate() {
            if *first != WorkerId::NOBODY {
                add(*first, place as u32);
            }
        }
        for place in self.copied_places() {
            let others = self.tasks.at(place).and_then(|task| task.who_has.get(1..)).unwrap_or_default();
            others.iter().for_each(|holder| add(*holder, place));
        }
        each.values_mut().for_each(|tasks| tasks.sort_unstable());
        each
    }
}
