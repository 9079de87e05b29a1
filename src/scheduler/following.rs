//! Tasks that are assigned before all that they need is there.
//!
//! A task that waits for others usually gets its place when the last of them is done: a report comes, an assignment
//! goes. Where tasks are short, those two messages cost much beside them. So a short task whose dependencies
//! are all done or under way *follows* them: it is assigned at once, to where it is expected to start first, and
//! that worker starts it by itself when it has all it needs. What others compute for it they forward
//! ([`ToWorker::Forward`]) as soon as they have it; and once the scheduler hears where such a result is, it
//! says so ([`ToWorker::WhoHas`]), so that nothing depends on forwarding.
//!
//! Dependencies under way are named without a holder. Should one of them be computed elsewhere after all, it becomes
//! another computation, and whoever follows it is taken back and placed anew. So it is where one turns out to take
//! its time ([`crate::secede`]): it may be waiting for what would run in its followers' place. Where one is overdue
//! without a word, its followers stay, but count no more for what their worker has to do. And nothing follows a
//! task that a worker died with, since then it is to be known which task it ran.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::{
    Instruction, TaskState,
    placement::{AHEAD, AHEAD_TASKS},
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::protocol::{TaskId, ToWorker, WorkerId};

/// Nanoseconds up to which a task is short. Longer ones are placed when it is known where everything lies.
const SHORT: u64 = 10_000_000;
/// Nanoseconds of work that a worker has when nothing more follows others there. Reports tell of it last that tasks with
/// followers are done, and each time that all of it is done a worker waits for the way to the scheduler and back.
const ROOM: u64 = 8_000_000;
/// Nanoseconds after which a task that should be done is one that takes its time.
const OVERDUE: u64 = 100_000_000;
/// Holders of a result that are looked at.
const HOLDERS: usize = 4;
/// What has more dependencies, or dependents, is not worth looking at each of them so often.
const FEW: usize = 16;

/// Whom a task would follow.
struct Leader {
    worker: WorkerId,
    /// Whether nobody else ever comes into question.
    only: bool,
    /// How that one would start it, where it was looked.
    start: Option<Start>,
}

/// How a worker would start a task.
pub(super) struct Start {
    /// When, by the scheduler's clock in nanoseconds.
    pub(super) at: u64,
    /// Nanoseconds before that in which it would have nothing to do, as far as they count.
    pub(super) gap: u64,
    /// Where others compute some of what it needs: nanoseconds for which it would wait for that to come.
    pub(super) way: u64,
}

impl Worker {
    /// Whether it takes more that follows others.
    fn has_room(&self) -> bool {
        let tasks = AHEAD_TASKS * u64::from(self.threads);
        // However long they are, one may follow.
        let ahead = self.queueing() <= ROOM || self.following == 0;
        ahead && u64::from(self.busy) < tasks
    }
}

impl State {
    /// A task was just assigned: what waits for it may follow.
    pub(super) fn lead(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        if task.cold.dependents.is_empty() || task.cold.dependents.len() > FEW || !self.is_short(task) {
            return;
        }
        self.tasks.tidy_dependents(id);
        for number in 0..self.task(id).map_or(0, |task| task.cold.dependents.len()) {
            let Some(dependent) = self.tasks.dependent_mut(id, number) else { continue };
            if dependent.state == TaskState::Waiting {
                let dependent = dependent.this;
                self.recommend(dependent, TaskState::Processing);
            }
        }
    }

    /// Assigns a task that still waits for others, if it may follow them: to one of the workers that compute these, or to
    /// whoever has the least to do, wherever it would start first; between those that compute them a way counts twice.
    ///
    /// Where that one has no room, and nobody else would ever come into question, the task is kept out until it has.
    pub(super) fn follow(&mut self, id: TaskRef) {
        let Some(Leader { worker, only, start }) = self.leader_of(id) else { return };
        match self.workers.get_mut(worker) {
            Some(leader) if leader.has_room() => self.assign_at(id, worker, false, start),
            Some(leader) if only => leader.kept_out.get_or_insert_default().push_back(id),
            _ => {}
        }
    }

    /// A worker is done with something: those that were kept out there may follow, as far as there is room and nothing comes
    /// before them. Were they let in only when what they wait for is done, it would have nothing to do meanwhile.
    pub(super) fn admit(&mut self, worker: WorkerId) {
        while let Some(leader) = self.workers.get(worker).filter(|leader| leader.has_room())
            && let Some(&id) = leader.kept_out.as_deref().and_then(VecDeque::front)
        {
            // Who waits for nothing any more is placed like others.
            let waits = |task: &Task<'_>| task.state == TaskState::Waiting && task.waiting_on > 0;
            let waiting = self.task(id).filter(waits).map(|task| self.turn(task));
            if let Some(turn) = waiting {
                // With room for followers a worker never has room for what is queued.
                let queued = self.next_queued(worker).and_then(|(_, queued)| self.task(queued));
                if queued.is_some_and(|queued| self.turn(queued) < turn) {
                    return;
                }
            }
            if let Some(leader) = self.workers.get_mut(worker) {
                leader.kept_out.as_deref_mut().and_then(VecDeque::pop_front);
            }
            if waiting.is_some() {
                self.follow(id);
            }
        }
    }

    /// Whom a task would follow.
    fn leader_of(&self, id: TaskRef) -> Option<Leader> {
        let task = self.task(id)?;
        let options = self.options_of(task);
        // Where workers died, it is to be known which task they ran.
        let free = !options.restrict() && !task.is_suspicious();
        if !free || self.limits.are_set() || task.cold.dependencies.len() > FEW || !self.is_short(task) {
            return None;
        }
        let (mut leaders, mut holders) = (SmallVec::<[WorkerId; 8]>::new(), SmallVec::<[WorkerId; 8]>::new());
        for other in self.tasks.dependencies(task) {
            match other.state {
                TaskState::Memory => holders.extend(other.who_has().iter().copied().take(HOLDERS)),
                TaskState::Processing
                    if !other.is_long_running()
                        && !self.is_overdue(other)
                        && !other.is_suspicious()
                        && !self.is_being_stolen(other.this)
                        && self.is_short(other) =>
                {
                    leaders.extend(other.worker());
                }
                _ => return None,
            }
        }
        // A chain runs on where it is; what else needs the same may be done sooner by whoever has the least to do.
        let shared = self.tasks.dependencies(task).any(|other| other.live_dependents > 1);
        let least = || self.workers.least_loaded().filter(|_| shared);
        let fit = |id: &WorkerId| {
            self.workers.get(*id).is_some_and(|worker| worker.stands() && self.lasts(worker, task))
        };
        let worth = |id: WorkerId| {
            let held = self.workers.get(id).map_or(0, |worker| worker.nbytes);
            let start = self.start_of(task, id);
            // Where those that compute its inputs stay apart, whoever needs its own result waits for a way again. Whoever computes
            // none is worth a way to have them part.
            let second_way = if leaders.contains(&id) { start.way } else { 0 };
            ((start.at.saturating_add(second_way), held, id), start)
        };
        let mut candidates = SmallVec::<[WorkerId; 8]>::new();
        for id in leaders.iter().copied().chain(holders).chain(least()) {
            if !candidates.contains(&id) && fit(&id) {
                candidates.push(id);
            }
        }
        let (worker, start) = match candidates[..] {
            // In a chain, or on a single worker, nobody is to be compared.
            [alone] if leaders.contains(&alone) => (alone, None),
            _ => {
                let ((.., first), start) =
                    candidates.into_iter().map(worth).min_by_key(|(worth, _)| *worth)?;
                (first, Some(start))
            }
        };
        // Who computes none of what it needs is not kept from other work by waiting for it.
        let late = |start: &Start| start.at > self.now.saturating_add(AHEAD);
        if !leaders.contains(&worker) && start.as_ref().is_some_and(late) {
            return None;
        }
        // Columns that ended up on one worker may part at the next batch, if there is one.
        let only = !shared && leaders.iter().all(|leader| *leader == worker) || self.workers.standing() == 1;
        Some(Leader { worker, only, start })
    }

    /// When a worker would start a task: when it is through with what it has, and what the task needs of others is done
    /// and has come.
    pub(super) fn start_of(&self, task: Task<'_>, id: WorkerId) -> Start {
        let through = self.through(id);
        let (mut here, mut elsewhere) = (through, self.now);
        let (mut forwarded, mut apart, mut lacks) = (true, false, false);
        for other in self.tasks.dependencies(task) {
            match other.worker() {
                Some(worker) if worker == id => here = here.max(self.done(other)),
                Some(_) => {
                    elsewhere = elsewhere.max(self.done(other));
                    (apart, lacks) = (true, true);
                }
                None => {
                    let held = other.who_has().contains(&id);
                    (forwarded, lacks) = (forwarded && held, lacks || !held);
                }
            }
        }
        let fetching = || self.fetching(id, &self.needs(task), |costs| costs.hoped_latency(self.now));
        // What is forwarded is not asked for.
        let way = if lacks { fetching() / if forwarded { 2 } else { 1 } } else { 0 };
        let come = elsewhere.saturating_add(way);
        let at = here.max(come);
        // To others a worker that waits for long should not look busy.
        Start {
            at,
            gap: (at - through).min(SHORT),
            way: if apart { come.saturating_sub(here).min(way) } else { 0 },
        }
    }

    /// When a worker will be through with what it has.
    fn through(&self, id: WorkerId) -> u64 {
        self.now.saturating_add(self.workers.get(id).map_or(0, Worker::queueing))
    }

    /// When a task that is under way will be done. That is told from what its worker has to do until then and not by the
    /// clock, or what was wrong about one step of a chain would be wrong about all that follow.
    pub(super) fn done(&self, task: Task<'_>) -> u64 {
        let Some(worker) = task.worker().and_then(|worker| self.workers.get(worker)) else { return self.now };
        // Its worker may have run others first, or have been rid of some.
        let left = (task.cold.place.wrapping_sub(worker.done) as i64).max(0) as u64;
        let left = left.min(worker.occupancy);
        self.now.saturating_add((left / u64::from(worker.threads)).max(left.min(task.booked())))
    }

    /// Whether a task should have been done long ago.
    fn is_overdue(&self, task: Task<'_>) -> bool {
        self.now > task.cold.ends.saturating_add(OVERDUE)
    }

    /// Who follows what is overdue keeps no thread busy meanwhile: others may have it.
    pub(super) fn set_aside_who_follows_the_overdue(&mut self) {
        let overdue = |task: Task<'_>| task.state == TaskState::Processing && self.is_overdue(task);
        let mut waiting = Vec::new();
        for (id, worker) in self.workers.iter().filter(|(_, worker)| worker.following > 0) {
            let tasks = worker.processing.latest().filter_map(|place| self.tasks.at(place));
            let followers = tasks.filter(|task| task.is_at(id) && task.following() > 0);
            let late = followers.filter(|task| self.tasks.dependencies(*task).any(overdue));
            waiting.extend(late.map(|task| task.this));
        }
        // One that came to its worker twice may be listed twice: the second time it does not count any more.
        waiting.into_iter().for_each(|task| self.set_aside(task));
    }

    /// Whether a task is known to be short.
    pub(super) fn is_short(&self, task: Task<'_>) -> bool {
        let known = self.functions.get(task.cold.function as usize).and_then(|function| function.duration);
        known.is_some_and(|duration| duration <= SHORT)
    }

    /// A task was assigned to `worker` though others still compute what it needs: these forward it.
    pub(super) fn have_forwarded(&mut self, id: TaskRef, worker: WorkerId) {
        let Some(task) = self.task(id) else { return };
        let computed = self.tasks.dependencies(task).filter_map(|other| Some((other.id(), other.worker()?)));
        let elsewhere: SmallVec<[(TaskId, WorkerId); 4]> =
            computed.filter(|(_, computing)| *computing != worker).collect();
        for (result, computing) in elsewhere {
            self.name_peer(computing, worker);
            self.out.push(Instruction::ToWorker(computing, ToWorker::Forward { id: result, to: worker }));
        }
    }

    /// One of the dependencies of a task that follows is done: where it is is told to who has it not.
    pub(super) fn dependency_done(&mut self, follower: TaskRef, done: TaskRef) {
        let Some(mut task) = self.task_mut(follower) else { return };
        let (following, booked) = (task.following(), task.booked());
        task.waiting_on -= 1;
        let (follows_no_more, less) = (following - task.following(), booked - task.booked());
        let Some(worker) = task.worker() else { return };
        if let Some(worker) = self.workers.get_mut(worker).filter(|_| follows_no_more > 0) {
            worker.following -= follows_no_more;
            worker.occupancy -= less;
            worker.done = worker.done.wrapping_add(less);
        }
        let Some(dependency) = self.dependency(done, worker) else { return };
        if !dependency.who_has.contains(&worker) {
            self.tell_holders(worker, dependency);
        }
    }

    /// A computation will not end where it was: who follows it waits for another one, and is placed anew.
    pub(super) fn strand_followers(&mut self, id: TaskRef) {
        let Some(task) = self.task(id) else { return };
        let follows = |task: &Task<'_>| task.state == TaskState::Processing && task.waiting_on > 0;
        let followers = self.tasks.dependents(task).filter(follows);
        let followers: SmallVec<[TaskRef; 8]> = followers.map(|task| task.this).collect();
        for follower in followers {
            self.recommend(follower, TaskState::Waiting);
        }
    }
}
