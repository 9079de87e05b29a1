//! What the rest hangs on goes first.
//!
//! Tasks mostly run in an order that lets results go soon ([`crate::graph`]), which does not ask how many others wait for
//! a task one after the other. Towards the end of a graph, or all the time where it is tall and narrow, that takes longest: threads
//! have nothing to do, since what they could do waits for a path that was begun too late. So those tasks that have as many
//! after them as the threads need rounds for all that is left, *critical* ones, run before others of their graph, the
//! highest first (the upward rank of H. Topcuoglu, S. Hariri and M.-Y. Wu, "Performance-effective and low-complexity task
//! scheduling for heterogeneous computing", 2002, with tasks for a measure, since nobody knows beforehand how long they take).

use super::{state::State, task::Task};
use crate::protocol::Priority;

/// Rounds that a task of a path takes, halved: each waits until a thread is through with something else.
const HALF_ROUNDS: u64 = 3;

impl State {
    /// Whether waiting for this task would have everything end later.
    pub(super) fn is_critical(&self, task: &Task) -> bool {
        let path = u64::from(task.height) * HALF_ROUNDS * self.workers.threads();
        task.height > 0 && path >= 2 * self.unfinished
    }
}

impl Task {
    /// Its priority where it is critical: before all of its graph that are not.
    pub(super) fn rushed(&self) -> Priority {
        Priority { order: -i32::try_from(self.height).unwrap_or(i32::MAX), ..self.priority }
    }

    /// The priority that its worker was told.
    pub(super) fn told_priority(&self) -> Priority {
        if self.critical { self.rushed() } else { self.priority }
    }
}
