//! Results whose known holders are gone.
//!
//! A copy of what few tasks need passes, and nobody hears of it ([`super::copies`]). Were its result given up with its last known
//! holder, it and what it was computed from would be computed anew, though those that need it mostly have it: a stencil would step
//! back to where results are still held. So it is *recalled*: workers that run what needs it are taken for holders and asked to
//! keep it ([`ToWorker::Acquire`](crate::protocol::ToWorker::Acquire)). Each answers, also where it has none after all and nobody
//! gave it one. Until then it is presumed: others are told of it, but nobody lets go of a copy for its sake.

use smallvec::SmallVec;

use super::{assigning::HOLDERS_TOLD, state::State, task::TaskRef};
use crate::protocol::{Dependency, WorkerId};

impl State {
    /// `worker` does not hold a result (any more), and neither does `asker`, should one have asked for it. Where nobody else is
    /// known to, it is recalled, or else lost.
    pub(super) fn drop_holder(&mut self, id: TaskRef, worker: WorkerId, asker: Option<WorkerId>) {
        if self.remove_holder(id, worker) && !self.recall(id, &[worker, asker.unwrap_or(worker)]) {
            self.lose(id);
        }
    }

    /// Takes workers for holders of a result that run what needs it, but for those that are `lacking` it, and asks them to keep
    /// it. False where there are none, or where that was tried, and nobody has said that it holds the result since.
    fn recall(&mut self, id: TaskRef, lacking: &[WorkerId]) -> bool {
        let Some(task) = self.task(id).filter(|task| !task.trouble().is_some_and(|t| t.recalled)) else {
            return false;
        };
        let runners = self.tasks.dependents(task).filter_map(|dependent| dependent.worker());
        let mut runners: SmallVec<[WorkerId; 8]> =
            runners.filter(|runner| !lacking.contains(runner)).collect();
        runners.sort_unstable();
        runners.dedup();
        if runners.is_empty() {
            return false;
        }
        let Some(dependency) = self.dependency(id, WorkerId::NOBODY) else { return false };
        let asked = runners.iter().map(|asked| {
            let others = runners.iter().copied().filter(|other| other != asked).take(HOLDERS_TOLD);
            (*asked, vec![Dependency { who_has: others.collect(), ..dependency.clone() }])
        });
        let asked = asked.collect();
        if let Some(mut task) = self.task_mut(id) {
            let trouble = task.trouble_mut();
            trouble.recalled = true;
            trouble.presumed = runners.to_vec();
        }
        for runner in runners {
            self.add_holder(id, runner);
        }
        self.ask_to_acquire(asked);
        true
    }

    /// A worker says that it holds a result. Should that be lost once more, it is recalled again.
    pub(super) fn is_there(&mut self, id: TaskRef, worker: WorkerId) {
        let Some(mut task) = self.task_mut(id) else { return };
        if task.is_presumed(worker) {
            task.presume_no_more(worker);
            self.held_anew(id);
            if self.task(id).is_some_and(|task| task.has_copies()) {
                self.reconsider_copies(id);
            }
        } else {
            self.add_holder(id, worker);
        }
        if let Some(mut task) = self.task_mut(id)
            && task.trouble().is_some_and(|trouble| trouble.recalled)
        {
            task.trouble_mut().recalled = false;
        }
        self.arrived(id, worker);
    }
}
