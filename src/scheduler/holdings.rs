//! Which results each worker holds.
//!
//! That is asked when a worker leaves, and rarely else, while results come and go all the time. A list with each worker would
//! be one more place in memory to wait for at each of them. So it is the other way round: tasks are looked through, of which
//! what is hot, and with it who holds the result first, lies beside each other.

use super::{TaskState, state::State, task::TaskRef};
use crate::{graph::KeyMap, protocol::WorkerId};

impl State {
    /// The tasks whose results a worker holds.
    pub(super) fn held_by(&self, id: WorkerId) -> Vec<TaskRef> {
        let results = self.workers.get(id).map_or(0, |worker| worker.results) as usize;
        let held = self.tasks.iter().filter(|task| task.who_has().contains(&id)).map(|task| task.this);
        held.take(results).collect()
    }

    /// The tasks whose results each of these workers holds, of those that hold any: takes as long as there are places.
    pub(super) fn held_by_each(&self, of: impl Fn(WorkerId) -> bool) -> KeyMap<WorkerId, Vec<TaskRef>> {
        let mut each = KeyMap::<WorkerId, Vec<TaskRef>>::default();
        self.tasks.iter().filter(|task| task.state == TaskState::Memory).for_each(|task| {
            for holder in task.places().iter().filter(|holder| of(**holder)) {
                each.entry(*holder).or_default().push(task.this);
            }
        });
        each
    }
}
