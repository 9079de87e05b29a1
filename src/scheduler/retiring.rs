//! Workers that leave in order: nothing new goes to them, and what they hold moves to others first.

use super::{
    Instruction, TaskState,
    state::{State, Worker},
    task::TaskRef,
};
use crate::{
    graph::KeyMap,
    protocol::{Dependency, TaskId, ToWorker, WorkerId},
    task::TaskError,
};

/// Nanoseconds within which a worker that leaves is no home for what another one leaves behind.
const SOON: u64 = 120_000_000_000;

/// Those that leave, and the results on their way to somebody else.
#[derive(Default)]
pub(super) struct Retirement {
    /// Workers that have not been let go yet.
    pub(super) leaving: Vec<WorkerId>,
    /// Results to look at: one of those that leave holds them.
    unsettled: Vec<TaskRef>,
    /// Who was asked to take a copy of which computation's result.
    moving: KeyMap<TaskRef, (TaskId, WorkerId)>,
}

impl Retirement {
    /// A worker is gone.
    pub(super) fn on_gone(&mut self, gone: WorkerId) {
        self.leaving.retain(|worker| *worker != gone);
        self.moves_elsewhere(gone);
    }

    /// What was to move to a worker moves elsewhere.
    fn moves_elsewhere(&mut self, from: WorkerId) {
        let Self { unsettled, moving, .. } = self;
        moving.retain(|task, (_, target)| {
            let stays = *target != from;
            if !stays {
                unsettled.push(*task);
            }
            stays
        });
    }
}

impl State {
    /// Lets a worker go as soon as it runs nothing and others hold what it holds.
    pub(super) fn on_retire(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| !worker.retiring) else { return };
        worker.retiring = true;
        self.workers.stand_aside(id);
        self.queued.give_up(id);
        self.retirement.moves_elsewhere(id);
        self.retirement.leaving.push(id);
        self.retirement.unsettled.extend(self.held_by(id));
        self.out.push(Instruction::ToWorker(id, ToWorker::Retire));
    }

    /// A worker does not run what it was assigned: it leaves, or another is to have it.
    pub(super) fn on_gave_back(&mut self, worker: WorkerId, ids: Vec<TaskId>) {
        let assigned = |id| self.tasks.computation(id).filter(|task| task.is_at(worker));
        let tasks: Vec<TaskRef> =
            ids.into_iter().filter_map(|id| assigned(id).map(|task| task.this)).collect();
        for task in tasks {
            self.on_stolen(task);
            self.start_over(task);
        }
    }

    /// A worker cannot take a copy of a result: that cannot leave the process it is in. With its holder
    /// gone it is computed again.
    pub(super) fn on_not_added(&mut self, worker: WorkerId, id: TaskId, error: &TaskError) {
        let Some(task) = self.tasks.computation(id).map(|task| task.this) else { return };
        self.not_copied(task, worker, error);
        if self.task(task).is_some_and(|task| task.is_presumed(worker)) {
            self.drop_holder(task, worker, None);
        }
        if self.retirement.moving.get(&task) != Some(&(id, worker)) {
            return;
        }
        let key = self.task(task).map(|task| task.cold.key);
        tracing::warn!(?key, %error, "a result cannot leave the worker that retires");
        self.retirement.moving.remove(&task);
        for holder in self.leaving_holders(task) {
            self.let_go(task, holder);
        }
    }

    /// A result got a holder. Where somebody leaves, that may be what was waited for, or one more to move.
    pub(super) fn held_anew(&mut self, id: TaskRef) {
        if !self.retirement.leaving.is_empty() {
            self.retirement.unsettled.push(id);
        }
    }

    /// Moves what is to be moved, and lets those go that hold and run nothing any more.
    pub(super) fn retire(&mut self) {
        if self.retirement.leaving.is_empty() {
            return;
        }
        // With nobody else there, results wait for one to come.
        if self.workers.any_stands() {
            let unsettled = std::mem::take(&mut self.retirement.unsettled);
            let homeless = unsettled.into_iter().filter(|task| self.is_homeless(*task)).collect();
            self.find_homes(homeless);
        }
        // What others hold too is let go of; that may end tasks, and with them their results.
        self.settle();
        let empty = |state: &Self, id: &WorkerId| {
            state.workers.get(*id).is_some_and(|w| w.results == 0 && w.processing.len() == 0)
        };
        let (gone, leaving) = std::mem::take(&mut self.retirement.leaving)
            .into_iter()
            .partition::<Vec<_>, _>(|id| empty(self, id));
        self.retirement.leaving = leaving;
        for id in gone {
            let reason = "it was retired: others hold its results".to_owned();
            self.out.push(Instruction::ToWorker(id, ToWorker::Close { reason }));
        }
        if self.retirement.leaving.is_empty() {
            self.retirement = Retirement::default();
        }
    }

    /// Whether those that leave are the only ones that hold a result, and nobody takes it yet. Where
    /// others hold it, those that leave let go of it.
    fn is_homeless(&mut self, id: TaskRef) -> bool {
        let Some(task) = self.task(id).filter(|task| task.state == TaskState::Memory) else { return false };
        let (holders, computation) = (task.holders().count(), task.id());
        let leaving = self.leaving_holders(id);
        if leaving.is_empty() {
            return false;
        }
        if leaving.len() == holders {
            return self.retirement.moving.get(&id).is_none_or(|(moving, _)| *moving != computation);
        }
        self.retirement.moving.remove(&id);
        for holder in leaving {
            self.let_go(id, holder);
        }
        false
    }

    /// Asks others to take results: for each whoever will hold the fewest bytes, of those that stay for a while.
    fn find_homes(&mut self, mut homeless: Vec<TaskRef>) {
        homeless.sort_unstable();
        homeless.dedup();
        let staying = self.workers.iter().filter(|(_, worker)| !worker.retiring);
        let soon = self.now.saturating_add(SOON);
        let goes_soon = |worker: &Worker| worker.paused || worker.ends < soon;
        let mut homes: std::collections::BTreeSet<(bool, u64, WorkerId)> =
            staying.map(|(id, worker)| (goes_soon(worker), worker.nbytes, id)).collect();
        let mut asked = KeyMap::<WorkerId, Vec<Dependency>>::default();
        for id in homeless {
            let Some((goes, nbytes, home)) = homes.pop_first() else { break };
            let Some(dependency) = self.dependency(id, home) else {
                homes.insert((goes, nbytes, home));
                continue;
            };
            homes.insert((goes, nbytes.saturating_add(dependency.nbytes), home));
            self.retirement.moving.insert(id, (dependency.id, home));
            asked.entry(home).or_default().push(dependency);
        }
        self.ask_to_acquire(asked);
    }

    fn leaving_holders(&self, id: TaskRef) -> smallvec::SmallVec<[WorkerId; 2]> {
        let leaves = |holder: &WorkerId| self.workers.get(*holder).is_some_and(|worker| worker.retiring);
        self.task(id).map(|task| task.holders().filter(leaves).collect()).unwrap_or_default()
    }
}
