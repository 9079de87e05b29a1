//! A task is given to a worker: at once where there is one for it, else it is queued, or waits for somebody who may run it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    Instruction, TaskState,
    explain::Choice,
    following::Start,
    placement::Placement,
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::protocol::{ComputeTask, Dependency, ToWorker, WorkerId};

/// Holders of a result that a worker is told of: one to be asked, and another one should that be gone. Where both are, it asks
/// for more.
pub(super) const HOLDERS_TOLD: usize = 2;
/// Results that so many tasks need, or fewer, pass: each copy is mostly for one task, and to hear of it and free it would cost
/// more than it is good for. Of what more need a copy is a source for the next, and one place more for it to run. (With eight,
/// shuffles and random graphs end later by half a percent.)
const FEW: u32 = 5;

impl State {
    pub(super) fn find_place(&mut self, id: TaskRef) {
        if self.limits.are_set() && self.has_to_wait(id) {
            self.no_worker.remove(&id);
            return self.set_state(id, TaskState::Queued);
        }
        if let Some(thief) = self.thief_of(id) {
            return self.assign(id, thief, true);
        }
        match self.place(id) {
            Placement::Worker(worker) if !self.has_neighbours(id) => self.assign(id, worker, false),
            // Those that have neighbours are handed out at the end of the turn, when all of them are there.
            Placement::Worker(_) | Placement::Queue => {
                self.queue(id);
                self.no_worker.remove(&id);
                self.set_state(id, TaskState::Queued);
            }
            Placement::Nobody => {
                if self.no_worker.insert(id) {
                    self.set_state(id, TaskState::NoWorker);
                }
            }
        }
    }

    /// Hands queued tasks to workers that have too little to do.
    pub(super) fn refill(&mut self) {
        // Both are asked, and begin anew.
        let may_change = self.workers.take_relieved() | self.queued.take_stirred();
        if self.in_queue == 0 {
            return self.queued.clear();
        }
        if !may_change {
            return;
        }
        while let Some(least) = self.workers.least_loaded().filter(|least| !self.takes_nothing_queued(*least))
        {
            let Some((standing, id)) = self.next_queued(least) else { return };
            if self.limits.are_set() && self.has_to_wait(id) {
                self.queued.remove(standing);
                continue;
            }
            match self.place(id) {
                Placement::Worker(worker) => {
                    self.take_queued(standing, worker);
                    self.assign(id, worker, false);
                }
                Placement::Queue => return,
                // Those that could are gone, or will be before it could be done.
                Placement::Nobody => {
                    self.queued.remove(standing);
                    self.no_worker.insert(id);
                    self.set_state(id, TaskState::NoWorker);
                }
            }
        }
    }

    pub(super) fn assign(&mut self, id: TaskRef, worker: WorkerId, stolen: bool) {
        self.assign_at(id, worker, stolen, None);
    }

    /// As [`Self::assign`], where it was found out how the worker would `start` it.
    pub(super) fn assign_at(&mut self, id: TaskRef, worker: WorkerId, stolen: bool, start: Option<Start>) {
        let Some(task) = self.task(id) else { return };
        let estimate = self.expected_on(worker, task);
        let options = self.options_of(task);
        let mut dependencies = Vec::with_capacity(task.cold.dependencies.len());
        dependencies.extend(self.tasks.dependencies(task).map(|other| told_of(other, worker)));
        let compute = Arc::new(ComputeTask {
            id: task.id(),
            key: task.cold.key,
            entry: self.functions[task.cold.function as usize].entry,
            arguments: task.arguments().clone(),
            dependencies,
            priority: task.cold.priority,
            resources: options.resources.clone(),
            wanted: task.is_wanted(),
            dependents: task.live_dependents,
            height: task.cold.height,
            critical: self.critical_height(),
        });
        self.no_worker.remove(&id);
        if let Some(mut task) = self.task_mut(id) {
            task.assign(worker);
            task.cold.estimate = estimate;
            task.set_long_running(false);
        }
        // What follows others starts when these are done; until then a thread may have nothing else to do.
        let follows = self.task(id).filter(|task| task.waiting_on > 0);
        let start = follows.map(|task| start.unwrap_or_else(|| self.start_of(task, worker)));
        let (starts, gap) = start.map_or((0, 0), |start| (start.at, start.gap));
        let (mut following, mut booked) = (0, estimate);
        if let Some(task) = self.task_mut(id) {
            task.cold.gap = gap;
            (following, booked) = (task.following(), task.booked());
        }
        let (mut held, mut missing) = (0, 0);
        for dependency in &compute.dependencies {
            let here = dependency.who_has.contains(&worker);
            *(if here { &mut held } else { &mut missing }) += dependency.nbytes;
        }
        let wait = self.workers.get(worker).map_or(0, Worker::queueing);
        self.story.assigned(id, worker, Choice { stolen, wait, held, missing });
        let (mut untidy, mut queueing, mut place, now) = (false, 0, 0, self.now);
        self.workers.change(worker, |worker| {
            if worker.busy == 0 {
                worker.since = now;
            }
            untidy = worker.processing.add(id);
            worker.busy += 1;
            worker.occupancy += booked;
            worker.following += following;
            (queueing, place) = (worker.queueing(), worker.done.wrapping_add(worker.occupancy));
        });
        let ends = self.now.saturating_add(queueing.max(estimate)).max(starts.saturating_add(estimate));
        if let Some(task) = self.task_mut(id) {
            (task.cold.place, task.cold.ends) = (place, ends);
        }
        if untidy && let Some(processing) = self.workers.get_mut(worker).map(|w| &mut w.processing) {
            processing.tidy(|place| self.tasks.at(place).is_some_and(|task| task.is_at(worker)));
        }
        self.set_state(id, TaskState::Processing);
        if self.limits.are_set() {
            self.count_in(id);
        }
        self.introduce(worker, &compute.dependencies);
        self.out.push(Instruction::ToWorker(worker, ToWorker::Compute(compute)));
        if self.task(id).is_some_and(|task| task.waiting_on > 0) {
            self.have_forwarded(id, worker);
        }
        self.lead(id);
    }

    /// A dependency as a worker is told of it.
    pub(super) fn dependency(&self, id: TaskRef, asker: WorkerId) -> Option<Dependency> {
        Some(told_of(self.task(id)?, asker))
    }

    /// Tells a worker who holds a dependency of what it was assigned already.
    pub(super) fn tell_holders(&mut self, worker: WorkerId, dependency: Dependency) {
        let held = vec![dependency];
        self.introduce(worker, &held);
        self.out.push(Instruction::ToWorker(worker, ToWorker::WhoHas(held)));
    }

    /// Tells a worker the addresses of the peers that dependencies are on.
    pub(super) fn introduce(&mut self, worker: WorkerId, dependencies: &[Dependency]) {
        let Some(receiver) = self.workers.get_mut(worker) else { return };
        let mut strangers = SmallVec::<[WorkerId; 8]>::new();
        for peer in dependencies.iter().flat_map(|dependency| &dependency.who_has) {
            if *peer != worker && receiver.told.insert(*peer) {
                strangers.push(*peer);
            }
        }
        self.out.extend(strangers.into_iter().map(|peer| Instruction::Introduce(worker, peer)));
    }

    /// Tells a worker the address of a peer, unless it knows it.
    pub(super) fn name_peer(&mut self, worker: WorkerId, peer: WorkerId) {
        if self.workers.get_mut(worker).is_some_and(|receiver| receiver.told.insert(peer)) {
            self.out.push(Instruction::Introduce(worker, peer));
        }
    }

    /// What a worker is told to know where a peer is reached. An instruction names the peer alone, since its addresses need not be
    /// looked at until they are written down.
    pub fn introduction(&self, peer: WorkerId) -> Option<ToWorker> {
        Some(ToWorker::Peer { worker: peer, address: self.workers.contact(peer)? })
    }
}

/// A dependency as a worker is told of it: where it has that itself, of no other holder; else of some, and of others than the
/// next who asks, so that not all ask the same.
fn told_of(task: Task<'_>, asker: WorkerId) -> Dependency {
    let mut who_has = SmallVec::new();
    if task.is_held_by(asker) {
        who_has.push(asker);
    } else if let Some(first) = (asker.0 as usize).checked_rem(task.who_has().len()) {
        let (before, after) = task.who_has().split_at(first);
        let others = after.iter().chain(before).copied().filter(|holder| *holder != asker);
        who_has.extend(others.take(HOLDERS_TOLD));
    }
    // What clients hold on to more may need later.
    let passing = task.live_dependents <= FEW && !task.is_wanted();
    Dependency { id: task.id(), nbytes: task.nbytes, who_has, passing }
}
