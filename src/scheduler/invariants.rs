//! What must always hold of a scheduler.

use super::{
    TaskState,
    state::{NEVER, State},
    task::{SCATTERED, Task, TaskRef},
};
use crate::{graph::KeyMap, protocol::WorkerId};

impl State {
    /// Checks what must always hold.
    ///
    /// # Panics
    /// If it does not.
    pub fn validate(&self) {
        assert!(
            self.recommendations.is_empty() && self.unneeded.is_empty(),
            "all recommendations are followed"
        );
        let lists = |of: fn(&State, WorkerId) -> Vec<TaskRef>| -> KeyMap<WorkerId, Vec<TaskRef>> {
            self.workers.iter().map(|(id, _)| (id, of(self, id))).collect()
        };
        let (held, processed) = (self.held_by_each(|_| true), lists(Self::processed_by));
        let mut waiters = KeyMap::<TaskRef, u32>::default();
        let mut live = KeyMap::<TaskRef, u32>::default();
        for task in self.tasks.iter() {
            let (id, state) = (task.this, task.state);
            assert_eq!(self.tasks.find(task.cold.key), Some(id), "{id:?} is found by its key");
            assert_eq!(state == TaskState::Processing, task.worker().is_some(), "{id:?} {state:?}: worker");
            assert_eq!(state == TaskState::Memory, !task.who_has().is_empty(), "{id:?} {state:?}: holders");
            assert_eq!(task.has_copies(), task.who_has().len() > 1, "{id:?}: whether there are copies");
            assert_eq!(state == TaskState::Erred, task.error().is_some(), "{id:?} {state:?}: error");
            assert_eq!(state == TaskState::NoWorker, self.no_worker.contains(&id), "{id:?} {state:?}");
            assert_eq!(
                self.tasks.dependencies(task).count(),
                task.cold.dependencies.len(),
                "{id:?}: dependencies are not forgotten first"
            );
            for other in self.tasks.dependencies(task) {
                let dependency = other.this;
                let known = self.tasks.dependents(other).any(|dependent| dependent.this == id);
                assert!(known, "{dependency:?} knows its dependent {id:?}");
                *live.entry(dependency).or_default() += 1;
                if task.active() {
                    *waiters.entry(dependency).or_default() += 1;
                }
            }
            if task.active() && task.cold.function != SCATTERED {
                let missing = self.tasks.dependencies(task).filter(|other| other.state != TaskState::Memory);
                let missing = missing.count() as u32;
                if matches!(state, TaskState::Waiting | TaskState::Processing) {
                    assert_eq!(missing, task.waiting_on, "{id:?}: dependencies that are not in memory");
                    assert!(missing > 0 || state != TaskState::Waiting, "{id:?} waits for something");
                    let gone = self
                        .tasks
                        .dependencies(task)
                        .find(|other| !matches!(other.state, TaskState::Memory | TaskState::Processing));
                    assert!(
                        state == TaskState::Waiting || gone.is_none(),
                        "{id:?} follows what nobody computes"
                    );
                } else {
                    assert_eq!(missing, 0, "{id:?} {state:?}: dependencies that are not in memory");
                }
            }
            for worker in task.who_has() {
                assert!(held.get(worker).is_some_and(|held| held.contains(&id)), "{worker:?} has {id:?}");
            }
            if let Some(worker) = task.worker() {
                assert!(processed[&worker].contains(&id), "{worker:?} processes {id:?}");
            }
            if state == TaskState::Released {
                assert!(!task.needed(), "{id:?} is released and needed");
            }
            assert!(task.live_dependents > 0 || task.needed(), "{id:?} {state:?}: nobody refers to it");
        }
        for task in self.tasks.iter() {
            assert_eq!(
                task.waiters,
                waiters.get(&task.this).copied().unwrap_or(0),
                "{:?}: waiters",
                task.this
            );
            assert_eq!(task.live_dependents, live.get(&task.this).copied().unwrap_or(0), "{:?}", task.this);
            assert!(task.cold.dependents.len() >= task.live_dependents as usize, "{:?}", task.this);
        }
        let unfinished = self.tasks.iter().filter(|task| task.active()).count();
        assert_eq!(self.unfinished, unfinished as u64, "tasks that are not done are counted");
        let queued = self.tasks.iter().filter(|task| task.state == TaskState::Queued).count();
        assert_eq!(self.in_queue, queued as u64, "tasks that are queued are counted");
        self.workers.validate();
        self.validate_limits();
        for task in self.tasks.iter() {
            let stolen = self.is_being_stolen(task.this);
            assert!(!stolen || task.state == TaskState::Processing, "{:?} is waited for", task.this);
        }
        for (id, worker) in self.workers.iter() {
            worker.peers.validate();
            assert_eq!(worker.transient, worker.ends < NEVER, "{id:?}: whether it will leave");
            assert_eq!((worker.outgoing, worker.incoming), self.thefts(id), "{id:?}: thefts");
            assert_eq!(worker.trading, self.thefts(id) != (0, 0), "{id:?}: whether there are any");
            let tasks = |count: u64, members: &[TaskRef]| -> Vec<Task<'_>> {
                assert_eq!(count, members.len() as u64, "{id:?}: members are counted");
                members.iter().map(|id| self.task(*id).expect("members are known")).collect()
            };
            let processing = tasks(worker.processing.len() as u64, &processed[&id]);
            let busy = processing.iter().filter(|t| !t.is_long_running());
            assert_eq!(busy.clone().count() as u32, worker.busy, "{id:?}: busy");
            assert_eq!(
                busy.clone().map(|t| t.following()).sum::<u64>(),
                worker.following,
                "{id:?}: what follows"
            );
            assert_eq!(busy.map(|t| t.booked()).sum::<u64>(), worker.occupancy, "{id:?}: occupancy");
            let held = tasks(worker.results.into(), held.get(&id).map(Vec::as_slice).unwrap_or_default());
            assert_eq!(held.iter().map(|t| t.nbytes).sum::<u64>(), worker.nbytes, "{id:?}: bytes");
        }
    }
}
