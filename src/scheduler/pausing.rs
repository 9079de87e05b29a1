//! Workers whose memory is short, and results that went with a worker's disk.

use super::{
    Instruction, TaskState,
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::protocol::{TaskId, ToWorker, WorkerId};

/// How often a task is taken back from workers whose memory is short. What it needs may be why: then it would go round
/// among them for ever, while the one that keeps it runs it in the end, alone if need be.
const DISPLACED: u8 = 2;

impl State {
    /// A worker starts no more tasks, or does so again. Nothing new goes to one that does not; what others can do
    /// is taken back, unless that happened to it before.
    pub(super) fn on_paused(&mut self, id: WorkerId, paused: bool) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.paused != paused) else { return };
        worker.paused = paused;
        if paused {
            self.workers.stand_aside(id);
            self.queued.give_up(id);
            let tasks = self.processed_by(id);
            let waiting: Vec<TaskId> = tasks.into_iter().filter_map(|task| self.displace(task)).collect();
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

    /// The computation of a task, if another worker is to run it.
    fn displace(&mut self, id: TaskRef) -> Option<TaskId> {
        let task = self.task(id).filter(|task| !task.is_long_running() && !self.is_being_stolen(id))?;
        let goes = |(_, worker): (WorkerId, &Worker)| worker.stands() && self.may_run(worker, task);
        if task.trouble().is_some_and(|trouble| trouble.displaced >= DISPLACED)
            || !self.workers.iter().any(goes)
        {
            return None;
        }
        let mut task = self.task_mut(id)?;
        task.trouble_mut().displaced += 1;
        Some(task.id())
    }

    /// A worker cannot read results back that it had written to disk.
    pub(super) fn on_lost(&mut self, worker: WorkerId, ids: Vec<TaskId>) {
        for id in ids {
            let Some(task) = self.tasks.computation(id).map(|task| task.this) else { continue };
            tracing::warn!(key = ?self.task(task).map(|task| task.cold.key), "a worker's disk lost a result");
            self.drop_holder(task, worker, None);
            self.name_holders(task, worker);
        }
    }

    /// A worker has a result no more that others still have: who is to run there and needs it may have been sent there
    /// before it was in anybody's memory, and without a word of who has it.
    fn name_holders(&mut self, id: TaskRef, worker: WorkerId) {
        let runs_there = |dependent: Task<'_>| dependent.is_at(worker);
        if !self.task(id).is_some_and(|task| self.tasks.dependents(task).any(runs_there)) {
            return;
        }
        let Some(dependency) = self.dependency(id, worker) else { return };
        self.tell_holders(worker, dependency);
    }
}
