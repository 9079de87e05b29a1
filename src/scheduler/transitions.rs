//! The table of a task's transitions.
//!
//! Whatever happens changes one task and *recommends* what should follow for its neighbours.
//! Recommendations are followed one after the other, never by recursion, so that chains of any
//! length work; each is checked again when its turn comes, since the one before may have changed why.
//! What nobody seems to need is let go of after all others were followed: where several tasks that need each other
//! start over, there are moments in which none of them does.

use super::{
    Instruction, TaskState,
    state::State,
    task::{SCATTERED, Task, TaskRef},
};
use crate::{
    protocol::{ClientId, ToClient, WorkerId},
    task::{FailureKind, TaskError, Value},
};

/// By the time that so many recommendations are followed, what was asked for has come; and of so many neighbours of a task.
pub(super) const SOON: usize = 8;

impl State {
    pub(super) fn recommend(&mut self, id: TaskRef, finish: TaskState) {
        match finish {
            TaskState::Released | TaskState::Forgotten => self.unneeded.push_back((id, finish)),
            _ => self.recommendations.push_back((id, finish)),
        }
    }

    /// Follows all recommendations, and those that follow from them.
    pub(super) fn settle(&mut self) {
        while let Some((id, finish)) = self.recommendations.pop_front().or_else(|| self.unneeded.pop_front())
        {
            self.prefetch_next();
            self.transition(id, finish);
        }
    }

    /// Where many recommendations are still to be followed: asks for what one of them will look at, and of the one that this was
    /// done for some time ago, for its dependencies and who holds its result.
    fn prefetch_next(&self) {
        let next = if self.recommendations.is_empty() { &self.unneeded } else { &self.recommendations };
        if let Some((later, _)) = next.get(2 * SOON) {
            self.tasks.prefetch_hot(later.index);
            self.tasks.prefetch_cold(later.index);
        }
        if let Some(later) = next.get(SOON).and_then(|(later, _)| self.task(*later)) {
            later.cold.dependencies.iter().take(SOON).for_each(|place| self.tasks.prefetch_hot(*place));
            later.first_holder().into_iter().for_each(|holder| self.workers.prefetch(holder));
        }
    }

    /// Asks for what steps of a task look at of its neighbours.
    pub(super) fn prefetch_neighbours(&self, task: Task<'_>) {
        for neighbours in [&task.cold.dependents, &task.cold.dependencies] {
            neighbours.iter().take(SOON).for_each(|place| self.tasks.prefetch_hot(*place));
        }
    }

    /// Asks for what those that can run once a task is done need.
    fn prefetch_needs(&self, task: Task<'_>) {
        for follower in self.tasks.last_waiting(task) {
            follower.cold.dependencies.iter().take(SOON).for_each(|place| self.tasks.prefetch_hot(*place));
        }
    }

    /// Asks for who holds what a task needs, and may run it therefore.
    fn prefetch_holders(&self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        for need in self.tasks.dependencies(task).take(SOON) {
            need.first_holder().into_iter().for_each(|holder| self.workers.prefetch(holder));
        }
        self.tasks.prefetch_rest(id.index);
    }

    fn transition(&mut self, id: TaskRef, finish: TaskState) {
        use TaskState::{Erred, Forgotten, Memory, NoWorker, Processing, Queued, Released, Waiting};
        let Some(task) = self.task(id) else { return };
        match (task.state, finish) {
            (Released, Waiting) if task.needed() => self.released_waiting(id),
            (Waiting, Processing) if task.waiting_on == 0 => self.find_place(id),
            (Waiting, Processing) => self.follow(id),
            (Processing, Waiting) if task.waiting_on > 0 => self.start_over_later(id),
            (NoWorker | Queued, Processing) => self.find_place(id),
            (Waiting | NoWorker | Queued | Processing, Released) if !task.needed() => {
                self.active_released(id)
            }
            (Waiting | NoWorker | Queued | Processing, Erred) => {
                let cause = self.tasks.dependencies(task).find_map(|other| other.error().cloned());
                if let Some(cause) = cause {
                    self.fail(id, cause);
                }
            }
            (Memory, Released) if !task.needed() => self.memory_released(id),
            (Released | Erred, Forgotten) if task.live_dependents == 0 && !task.needed() => self.forget(id),
            // What was recommended holds no more.
            _ => {}
        }
    }

    pub(super) fn set_state(&mut self, id: TaskRef, finish: TaskState) {
        let Some(mut task) = self.task_mut(id) else { return };
        let was_active = task.active();
        let start = std::mem::replace(&mut task.state, finish);
        let (is_active, worker) = (task.active(), task.worker());
        let known_to_workers = |state| matches!(state, TaskState::Processing | TaskState::Memory);
        if known_to_workers(start) && !known_to_workers(finish) {
            // What workers say of this computation from now on is about the past.
            task.compute_anew();
            if start == TaskState::Processing {
                self.strand_followers(id);
            }
        }
        self.unfinished = self.unfinished + u64::from(is_active) - u64::from(was_active);
        let queued = |state| u64::from(state == TaskState::Queued);
        self.in_queue = self.in_queue + queued(finish) - queued(start);
        if start == TaskState::Queued && finish != TaskState::Processing {
            // Others may have waited behind it.
            self.queued.stir();
        }
        self.story.note((self.now, self.stimulus), id, (start, finish), worker);
    }

    /// Recommends what follows where nobody needs a task any more.
    pub(super) fn reconsider(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        if !task.needed() {
            let finish = match task.state {
                TaskState::Released | TaskState::Erred => TaskState::Forgotten,
                _ => TaskState::Released,
            };
            self.recommend(id, finish);
        }
    }

    fn released_waiting(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        if task.cold.function == SCATTERED {
            let error = TaskError::new(
                FailureKind::DataLost,
                "the data was scattered, and the workers that held it are gone; \
                 scatter it again, or broadcast it to keep copies",
            );
            return self.fail(id, error);
        }
        let (mut missing, mut under_way, mut erred) = (0, 0, false);
        for number in 0..task.cold.dependencies.len() {
            let Some(mut other) = self.tasks.dependency_mut(id, number) else { continue };
            other.waiters += 1;
            let (dependency, state) = (other.this, other.state);
            match state {
                TaskState::Memory => continue,
                TaskState::Released => self.recommend(dependency, TaskState::Waiting),
                TaskState::Erred => erred = true,
                TaskState::Processing => under_way += 1,
                _ => {}
            }
            missing += 1;
        }
        if let Some(mut task) = self.task_mut(id) {
            task.waiting_on = missing;
        }
        self.set_state(id, TaskState::Waiting);
        if erred {
            self.recommend(id, TaskState::Erred);
        } else if missing == under_way {
            self.recommend(id, TaskState::Processing);
        }
    }

    /// An active task is active no more: its worker is rid of it, its dependencies may not be needed.
    fn leave_active(&mut self, id: TaskRef) {
        if self.leave_worker(id) {
            self.leave_dependencies(id);
        }
    }

    /// An active task is active no more: its worker is rid of it. Says whether it was active.
    fn leave_worker(&mut self, id: TaskRef) -> bool {
        let Some(mut task) = self.task_mut(id).filter(|task| task.active()) else { return false };
        let following = task.following();
        let counted = (!task.is_long_running()).then(|| task.booked());
        task.waiting_on = 0;
        let worker = task.take_worker();
        self.end_theft(id);
        if let Some(worker) = worker {
            if self.limits.are_set() {
                self.count_out(id);
            }
            self.workers.change(worker, |worker| {
                worker.processing.remove(id);
                worker.following -= following;
                if let Some(booked) = counted {
                    worker.busy -= 1;
                    worker.occupancy -= booked;
                }
            });
        }
        self.no_worker.remove(&id);
        true
    }

    /// A task that was active needs its dependencies no more.
    fn leave_dependencies(&mut self, id: TaskRef) {
        for number in 0..self.task(id).map_or(0, |task| task.cold.dependencies.len()) {
            let Some(mut other) = self.tasks.dependency_mut(id, number) else { continue };
            other.waiters -= 1;
            let (dependency, waiters, copies) = (other.this, other.waiters, other.has_copies());
            if waiters == 0 {
                other.first_holder().into_iter().for_each(|holder| self.workers.prefetch(holder));
                self.reconsider(dependency);
            }
            if copies {
                self.reconsider_copies(dependency);
            }
        }
    }

    /// As [`Self::leave_active`], for a task that its worker does not know to have ended.
    fn take_back(&mut self, id: TaskRef) {
        if let Some(task) = self.task(id)
            && let Some(worker) = task.worker()
        {
            let id = task.id();
            self.free(worker, id);
        }
        self.leave_active(id);
        self.set_state(id, TaskState::Released);
    }

    fn active_released(&mut self, id: TaskRef) {
        self.take_back(id);
        self.reconsider(id);
    }

    /// A task is to be computed again from the start, if it is needed.
    pub(super) fn start_over(&mut self, id: TaskRef) {
        self.recommend(id, TaskState::Waiting);
        self.leave_active(id);
        self.set_state(id, TaskState::Released);
        self.reconsider(id);
    }

    /// A task that follows others is taken back, and waits for them again.
    fn start_over_later(&mut self, id: TaskRef) {
        self.recommend(id, TaskState::Waiting);
        self.take_back(id);
        self.reconsider(id);
    }

    /// The result is in `worker`'s memory.
    pub(super) fn finish(&mut self, id: TaskRef, worker: WorkerId, nbytes: u64) {
        if let Some(task) = self.task(id) {
            self.prefetch_neighbours(task);
            self.prefetch_needs(task);
        }
        let counted = |task: &Task<'_>| task.is_at(worker) && !task.is_long_running();
        let booked = self.task(id).filter(counted).map(|task| task.booked());
        let now = self.now;
        let was_active = self.leave_worker(id);
        if let Some(booked) = booked
            && let Some(worker) = self.workers.get_mut(worker)
        {
            worker.done = worker.done.wrapping_add(booked);
            worker.since = now;
        }
        let Some(mut task) = self.task_mut(id) else { return };
        task.nbytes = nbytes;
        task.absolve();
        self.tasks.tidy_dependents(id);
        let dependents = self.task(id).map_or(0, |task| task.cold.dependents.len());
        self.set_state(id, TaskState::Memory);
        self.add_holder(id, worker);
        for number in 0..dependents {
            let Some(mut other) = self.tasks.dependent_mut(id, number) else { continue };
            let dependent = other.this;
            if other.state == TaskState::Waiting {
                other.waiting_on -= 1;
                if other.waiting_on == 0 {
                    self.recommend(dependent, TaskState::Processing);
                    self.prefetch_holders(dependent);
                }
            } else if other.state == TaskState::Processing && other.waiting_on > 0 {
                self.dependency_done(dependent, id);
            }
        }
        if was_active {
            self.leave_dependencies(id);
        }
        let value = self.passing.take();
        for number in 0..self.task(id).map_or(0, |task| task.clients().len()) {
            if let Some(client) = self.task(id).and_then(|task| task.clients().get(number).copied()) {
                self.report_memory(client, id, value.clone());
            }
        }
        self.want_done(id);
        self.reconsider(id);
    }

    pub(super) fn add_holder(&mut self, id: TaskRef, worker: WorkerId) {
        let Some(holder) = self.workers.get_mut(worker) else { return };
        let Some(mut task) = self.tasks.get_mut(id).filter(|task| !task.who_has().contains(&worker)) else {
            return;
        };
        task.add_holder(worker);
        let several = task.has_copies();
        holder.nbytes += task.nbytes;
        holder.results += 1;
        self.held_anew(id);
        if several {
            self.reconsider_copies(id);
        }
    }

    /// `worker` does not have a result (any more); says whether that left nobody.
    pub(super) fn remove_holder(&mut self, id: TaskRef, worker: WorkerId) -> bool {
        let Some(mut task) = self.tasks.get_mut(id) else { return false };
        if !task.remove_holder(worker) {
            return false;
        }
        task.presume_no_more(worker);
        let (nbytes, nobody) = (task.nbytes, task.first_holder().is_none());
        self.holds_no_more(worker, nbytes);
        nobody
    }

    fn holds_no_more(&mut self, worker: WorkerId, nbytes: u64) {
        if let Some(holder) = self.workers.get_mut(worker) {
            holder.results -= 1;
            holder.nbytes -= nbytes;
        }
    }

    fn memory_released(&mut self, id: TaskRef) {
        let Some(mut task) = self.tasks.get_mut(id) else { return };
        let (computation, nbytes, holders) = (task.id(), task.nbytes, task.take_holders());
        for worker in holders {
            self.holds_no_more(worker, nbytes);
            self.free(worker, computation);
        }
        self.set_state(id, TaskState::Released);
        self.reconsider(id);
    }

    /// What depends on a task, for walks on which much changes.
    fn dependents_of(&self, task: Task<'_>) -> Vec<TaskRef> {
        self.tasks.dependents(task).map(|dependent| dependent.this).collect()
    }

    /// Nobody holds a result any more: who needs it waits until it is computed again.
    pub(super) fn lose(&mut self, id: TaskRef) {
        self.tasks.tidy_dependents(id);
        let Some(task) = self.task(id) else { return };
        let (dependents, clients, key) = (self.dependents_of(task), task.clients().to_vec(), task.cold.key);
        self.set_state(id, TaskState::Released);
        for dependent in dependents {
            let Some(mut other) = self.task_mut(dependent) else { continue };
            if other.state == TaskState::Waiting {
                other.waiting_on += 1;
            } else if other.active() {
                self.recommend(dependent, TaskState::Waiting);
                self.take_back(dependent);
                self.reconsider(dependent);
            }
        }
        for client in clients {
            self.out.push(Instruction::ToClient(client, ToClient::Lost(key)));
        }
        self.recommend(id, TaskState::Waiting);
        self.reconsider(id);
    }

    /// A task has no result and never will: neither have those that need it.
    pub(super) fn fail(&mut self, id: TaskRef, error: TaskError) {
        if self.task(id).is_some_and(|task| task.worker().is_some()) {
            self.take_back(id);
        }
        self.leave_active(id);
        let Some(mut task) = self.task_mut(id) else { return };
        task.trouble_mut().error = Some(error.clone());
        let Some(task) = self.task(id) else { return };
        let (dependents, clients, key) = (self.dependents_of(task), task.clients().to_vec(), task.cold.key);
        self.set_state(id, TaskState::Erred);
        for dependent in dependents {
            if self.task(dependent).is_some_and(|other| other.active()) {
                self.recommend(dependent, TaskState::Erred);
            }
        }
        for client in clients {
            self.out.push(Instruction::ToClient(client, ToClient::Erred { key, error: error.clone() }));
        }
        self.want_done(id);
        self.reconsider(id);
    }

    /// What was only wanted to be done is done.
    fn want_done(&mut self, id: TaskRef) {
        if let Some(mut task) = self.task_mut(id).filter(|task| task.is_wanted_by(ClientId::NOBODY)) {
            task.keep_clients(|client| *client != ClientId::NOBODY);
            let error = task.error().cloned();
            if let Some(error) = error {
                tracing::warn!(%error, "a task that nobody waits for failed");
            }
        }
    }

    fn forget(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        task.cold.dependencies.iter().take(SOON).for_each(|place| self.tasks.prefetch_hot(*place));
        let (key, start) = (task.cold.key, task.state);
        self.story.note((self.now, self.stimulus), id, (start, TaskState::Forgotten), None);
        self.story.forgotten(key, id);
        for place in self.tasks.remove(id).iter() {
            if let Some(mut other) = self.tasks.at_mut(*place) {
                other.live_dependents -= 1;
                if other.live_dependents == 0 {
                    let dependency = other.this;
                    self.reconsider(dependency);
                    self.tasks.prefetch_cold(dependency.index);
                }
            }
        }
    }

    /// Tells a client where a result is, and the result itself where it passes through.
    pub(super) fn report_memory(&mut self, client: ClientId, id: TaskRef, value: Option<Value>) {
        let Some(task) = self.task(id) else { return };
        let (key, computation, nbytes) = (task.cold.key, task.id(), task.nbytes);
        let Some(&worker) = task.who_has().first() else { return };
        let Some(receiver) = self.clients.get_mut(&client) else { return };
        if receiver.told.insert(worker) {
            let Some(address) = self.workers.contact(worker) else { return };
            self.out.push(Instruction::ToClient(client, ToClient::Worker { worker, address }));
        }
        let report = ToClient::InMemory { key, id: computation, nbytes, worker, value };
        self.out.push(Instruction::ToClient(client, report));
    }
}
