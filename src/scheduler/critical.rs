//! What the rest hangs on goes first.
//!
//! Tasks mostly run in an order that lets results go soon ([`crate::graph`]), which does not ask how many others wait
//! for a task one after the other, its *height*. Towards the end of a graph, or all the time where it is tall and
//! narrow, that takes longest: threads have nothing to do, since what they could do waits for a path that was begun too
//! late. So those tasks that are as high as a third of the rounds that the threads need for all that is left, *critical*
//! ones, run before others of the same rank, the highest first (the upward rank of H. Topcuoglu, S. Hariri and M.-Y. Wu,
//! "Performance-effective and low-complexity task scheduling for heterogeneous computing", 2002, with tasks for a measure,
//! since nobody knows beforehand how long they take). What is held meanwhile grows with the height, not with the graph.
//!
//! What is left is told of all graphs together, whoever may run them: beside much else nothing is critical, and the order
//! is as without. What is critical changes all the time, also for tasks that wait at their workers. So workers are told
//! the heights of tasks, and with each assignment from which height on they are critical, and choose among what they have
//! as the scheduler does among what is queued. Where limits are set, the queue keeps its order.
//!
//! Where one of them goes it is to be done first, not to start first (that paper's earliest finish time): a worker known
//! to be slow gets it, or steals it, only where others would take as long.

use super::{
    state::{State, Worker},
    task::Task,
};
use crate::protocol::Turn;

/// Rounds that each task of a path is taken for: where threads have other work it waits until one is through with that,
/// and the longest of many paths has tasks that take longer than others. Simulations with two or four end later, by some
/// tenths of a percent.
const ROUNDS: u64 = 3;
/// Of what waits at a worker, one part in so many is taken to go before a critical task that comes now.
const PART: u64 = 5;

impl State {
    /// The height from which on tasks are critical.
    pub(super) fn critical_height(&self) -> u32 {
        let least = self.unfinished.checked_div(ROUNDS * self.workers.threads());
        least.map_or(u32::MAX, |least| u32::try_from(least + 1).unwrap_or(u32::MAX))
    }

    /// Whether all would end later for this task's waiting.
    pub(super) fn is_critical(&self, task: Task<'_>) -> bool {
        task.cold.height >= self.critical_height()
    }

    /// Nanoseconds until a task would start that comes now, at whichever worker. Short ones overtake few: what their worker
    /// has is with its threads already. For critical ones it counts when they are done, so what a slow worker would take
    /// longer is waited for as well.
    pub(super) fn queueing(&self, task: Task<'_>) -> impl Fn(&Worker) -> u64 {
        let (critical, now) = (self.overtakes(task).then(|| self.expected_duration(task) as f64), self.now);
        move |worker| match critical {
            Some(takes) => {
                let longer = takes * (worker.slowness() - 1.0);
                worker.queueing_critical(now).saturating_add(longer as u64)
            }
            None => worker.queueing(),
        }
    }

    /// Nanoseconds until a task that waits at a worker is done there, if it is one that does not wait for all the others.
    pub(super) fn done_critical(&self, task: Task<'_>, worker: &Worker) -> Option<u64> {
        self.overtakes(task).then(|| worker.queueing_critical(self.now).saturating_add(task.cold.estimate))
    }

    fn overtakes(&self, task: Task<'_>) -> bool {
        self.is_critical(task) && !self.is_short(task)
    }

    /// When a task's turn comes, as things stand.
    pub(super) fn turn(&self, task: Task<'_>) -> Turn {
        task.cold.priority.turn(if self.is_critical(task) { task.cold.height } else { 0 })
    }
}

impl Worker {
    /// As [`Self::queueing`], where the task is critical: until the next of those that run is done, and what is critical
    /// as well.
    fn queueing_critical(&self, now: u64) -> u64 {
        let threads = u64::from(self.threads);
        if self.busy < self.threads {
            return 0;
        }
        let every = self.occupancy / u64::from(self.busy) / threads;
        every.saturating_sub(now.saturating_sub(self.since)) + self.queueing() / PART
    }
}
