//! Workers whose memory is short, and results that went with a worker's disk.

use super::{Instruction, TaskState, state::State, task::TaskRef};
use crate::protocol::{TaskId, ToWorker, WorkerId};

impl State {
    /// A worker starts no more tasks, or does so again. Nothing new goes to one that does not; what others can do
    /// is taken back.
    pub(super) fn on_paused(&mut self, id: WorkerId, paused: bool) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.paused != paused) else { return };
        worker.paused = paused;
        if paused {
            self.workers.stand_aside(id);
            self.queued.give_up(id);
            let waiting: Vec<TaskId> =
                self.processed_by(id).into_iter().filter_map(|task| self.run_elsewhere(task)).collect();
            if !waiting.is_empty() {
                self.out.push(Instruction::ToWorker(id, ToWorker::GiveBack(waiting)));
            }
        } else if worker.stands() {
            self.workers.stand_again(id);
            let hopeful: Vec<TaskRef> = self.no_worker.iter().copied().collect();
            for task in hopeful {
                self.recommend(task, TaskState::Processing);
            }
        }
    }

    /// The computation of a task, if another worker may run it.
    fn run_elsewhere(&self, id: TaskRef) -> Option<TaskId> {
        let task = self.task(id).filter(|task| !task.long_running && !self.is_being_stolen(id))?;
        let mut others = self.workers.iter().filter(|(_, worker)| worker.stands());
        others.any(|(_, worker)| self.may_run(worker, task)).then_some(task.id)
    }

    /// A worker cannot read results back that it had written to disk.
    pub(super) fn on_lost(&mut self, worker: WorkerId, ids: Vec<TaskId>) {
        for id in ids {
            let Some(task) = self.tasks.computation(id).map(|task| task.this) else { continue };
            tracing::warn!(key = ?self.task(task).map(|task| task.key), "a worker's disk lost a result");
            if self.remove_holder(task, worker) {
                self.lose(task);
            }
        }
    }
}
