//! Work stealing: a worker with too little to do takes over what waits at another.
//!
//! Tasks without dependencies wait in the scheduler's queue; those with dependencies are assigned at once, where
//! they are expected to start first, and estimates may be wrong. Dask bins the tasks of all workers by what moving
//! them costs beside what computing them does, and looks at all of them ten times a second. Here a worker that runs
//! out of work looks for some at once, among a few of those that have more than they run; of the tasks that would
//! start sooner with it, those go first that cost least to move for what they compute.
//!
//! The exchange has two steps, so that no task runs twice: the victim is asked to give tasks back; what it has not
//! started it gives back, and only then the thief gets it, as another computation.

use super::{
    Instruction,
    state::{State, Worker},
    task::{Task, TaskRef},
};
use crate::{
    graph::KeyMap,
    protocol::{TaskId, ToWorker, WorkerId},
};

/// Nanoseconds that the exchange takes: a task that waits no longer than that stays where it is.
const EXCHANGE: u64 = 300_000;
/// Workers that look for work in a turn.
const THIEVES: usize = 4;
/// Workers looked at for one that runs out of work.
const VICTIMS: usize = 16;
/// Tasks of one of them looked at, the last assigned first: they would wait longest, but for critical ones, which go
/// before others there.
const TASKS: usize = 64;

/// Of a worker that has more tasks than this, they are not all looked at again at each surprise.
const MANY: usize = 64;

/// What is under way.
#[derive(Default)]
pub(super) struct Stealing {
    /// Tasks that their workers were asked to give back.
    asked: KeyMap<TaskRef, Theft>,
    /// Tasks that were given back, and who gets them.
    given: KeyMap<TaskRef, WorkerId>,
    /// With whom the search for victims goes on.
    next: u32,
}

struct Theft {
    victim: WorkerId,
    thief: WorkerId,
    /// Nanoseconds by which the thief will have more to do, and the victim less.
    estimate: u64,
}

/// A task that may be stolen: what moving it costs for each nanosecond it computes, then what it needs.
struct Loot {
    ratio: u64,
    task: TaskRef,
    transfer: u64,
    estimate: u64,
    /// When the victim would be done with it, where that is sooner than with all it has.
    sooner: Option<u64>,
}

/// Nanoseconds by which a task's time must differ from its estimate, besides twofold, to be a surprise.
const SURPRISE: u64 = 1_000_000;

/// Whether what else a worker has may take far longer, or shorter, than was thought.
pub(super) fn is_surprising(estimate: u64, duration: u64) -> bool {
    let (less, more) = (estimate.min(duration), estimate.max(duration));
    more - less > SURPRISE && more / 2 > less
}

impl State {
    /// A task took its worker far longer than was thought, or shorter: what else it has may as well. With many tasks it
    /// is estimated anew only where what is `known` of such tasks by now differs from the `estimate` by half of that: an
    /// exception changes that little, and each time that all are looked at it has to change as much again.
    pub(super) fn on_surprise(&mut self, id: WorkerId, estimate: u64, known: u64) {
        let few = self.workers.get(id).is_some_and(|worker| worker.processing.len() <= MANY);
        if few || known.abs_diff(estimate) > estimate / 2 {
            self.estimate_anew(id);
        }
    }

    /// A worker's tasks are estimated by what is known now. Where that is more, those that have too little to
    /// do look again.
    fn estimate_anew(&mut self, id: WorkerId) {
        let (mut before, mut after, mut followed, mut follow) = (0, 0, 0, 0);
        let Some(mut place) = self.workers.get(id).map(|worker| worker.done) else { return };
        let mut tasks = self.processed_by(id);
        tasks.sort_by_key(|task| self.task(*task).map(|task| task.cold.place.wrapping_sub(place) as i64));
        for task in tasks {
            let Some(expected) = self.task(task).map(|task| self.expected_on(id, task)) else { continue };
            if let Some(task) = self.task_mut(task).filter(|task| !task.is_long_running()) {
                (before, followed) = (before + task.cold.estimate, followed + task.following());
                task.cold.ends = task.cold.ends.saturating_add(expected).saturating_sub(task.cold.estimate);
                task.cold.estimate = expected;
                (after, follow) = (after + task.cold.estimate, follow + task.following());
                place = place.wrapping_add(task.booked());
                task.cold.place = place;
            }
        }
        self.workers.change(id, |worker| {
            worker.occupancy = worker.occupancy + after - before;
            worker.following = worker.following + follow - followed;
        });
        if after > before {
            self.workers.starve();
        }
    }

    /// Lets workers that have too little to do take over from those that have too much.
    pub(super) fn balance(&mut self) {
        // By now each has its place, or something else came in between.
        self.stealing.given.clear();
        if !self.workers.any_loaded() || !self.none_queued() || !self.config.stealing {
            // Nobody waits anywhere, or there is enough for all.
            return self.workers.feed();
        }
        for thief in self.workers.take_hungry(THIEVES) {
            match self.victim_for(thief) {
                Some(victim) => self.steal(victim, thief),
                None if self.workers.get(thief).is_some_and(Worker::is_hungry) => {
                    self.workers.stay_hungry(thief);
                }
                None => {}
            }
        }
    }

    /// Of some workers that have more than they run, the one where tasks wait longest.
    fn victim_for(&mut self, thief: WorkerId) -> Option<WorkerId> {
        let hungry = self.workers.get(thief).filter(|worker| worker.is_hungry())?;
        let start = hungry.wait() + EXCHANGE;
        let next = self.stealing.next;
        let candidates: smallvec::SmallVec<[WorkerId; VICTIMS]> =
            self.workers.loaded_from(WorkerId(next)).filter(|id| *id != thief).take(VICTIMS).collect();
        self.stealing.next = candidates.last()?.0 + 1;
        let wait = |id: &WorkerId| self.workers.get(*id).map_or(0, Worker::wait_for_others);
        candidates.into_iter().max_by_key(wait).filter(|victim| wait(victim) > start)
    }

    fn steal(&mut self, victim: WorkerId, thief: WorkerId) {
        let (Some(from), Some(to)) = (self.workers.get(victim), self.workers.get(thief)) else {
            return;
        };
        let pace = to.slowness() / from.slowness();
        // Who is slower is not to take what would be done here long before all that waits here is.
        let sooner = |task: Task<'_>| (pace > 1.0).then(|| self.done_critical(task, from)).flatten();
        let mut loot: Vec<Loot> = from
            .processing
            .latest()
            .take(TASKS)
            .filter_map(|place| self.tasks.at(place))
            .filter(|task| task.is_at(victim) && !task.is_long_running() && task.waiting_on == 0)
            .filter(|task| !self.stealing.asked.contains_key(&task.this) && self.may_run(to, *task))
            .map(|task| {
                let (transfer, estimate) =
                    (self.transfer(&self.needs(task), thief), task.cold.estimate.max(1));
                let ratio = transfer.saturating_mul(1024) / estimate;
                Loot { ratio, task: task.this, transfer, estimate, sooner: sooner(task) }
            })
            .collect();
        // Stable: of equal ones the last assigned go first.
        loot.sort_by_key(|loot| loot.ratio);
        let (mut here, mut there) = (from.wait_for_others(), to.wait());
        let threads = |worker: &Worker| u64::from(worker.threads);
        let (from_threads, to_threads) = (threads(from), threads(to));
        let (mut asked, mut moved) = (Vec::new(), 0);
        for Loot { task, transfer, estimate, sooner, .. } in loot {
            let start = there + EXCHANGE + transfer;
            // It is among the last that the victim would run, and each thread of that is half through with what it
            // runs, on average (as Dask has it).
            let done = estimate / 2;
            let takes = (estimate as f64 * pace) as u64;
            let later = sooner.is_some_and(|sooner| start + takes + done >= sooner);
            if later || start + takes / to_threads + done >= here {
                continue;
            }
            // A task that came to a worker twice may be listed twice.
            let listed = self.task(task).filter(|task| !self.stealing.asked.contains_key(&task.this));
            let Some(id) = listed.map(|task| task.id()) else { continue };
            here = here.saturating_sub(estimate / from_threads);
            there += estimate / to_threads;
            self.stealing.asked.insert(task, Theft { victim, thief, estimate });
            moved += estimate;
            asked.push(id);
        }
        if let Some(victim) = self.workers.get_mut(victim) {
            victim.trade(victim.outgoing + moved, victim.incoming);
        }
        if let Some(thief) = self.workers.get_mut(thief) {
            thief.trade(thief.outgoing, thief.incoming + moved);
        }
        if !asked.is_empty() {
            self.out.push(Instruction::ToWorker(victim, ToWorker::GiveBack(asked)));
        }
    }

    /// Workers gave tasks back that were to be stolen: the thief gets each when its place is looked for.
    pub(super) fn on_stolen(&mut self, task: TaskRef) {
        if let Some(thief) = self.end_theft(task) {
            self.stealing.given.insert(task, thief);
        }
    }

    /// The victim runs these already, or is done with them.
    pub(super) fn on_kept(&mut self, worker: WorkerId, ids: Vec<TaskId>) {
        for id in ids {
            let kept = self.tasks.computation(id).filter(|task| task.is_at(worker));
            if let Some(task) = kept.map(|task| task.this) {
                self.end_theft(task);
            }
        }
    }

    /// A task is not waited for any more; gives who was to have it.
    pub(super) fn end_theft(&mut self, task: TaskRef) -> Option<WorkerId> {
        let Theft { victim, thief, estimate } = self.stealing.asked.remove(&task)?;
        if let Some(victim) = self.workers.get_mut(victim) {
            victim.trade(victim.outgoing - estimate, victim.incoming);
        }
        if let Some(thief) = self.workers.get_mut(thief) {
            thief.trade(thief.outgoing, thief.incoming - estimate);
        }
        Some(thief)
    }

    /// Who gets a task that was given back for somebody.
    pub(super) fn thief_of(&mut self, task: TaskRef) -> Option<WorkerId> {
        if self.stealing.given.is_empty() {
            return None;
        }
        let thief = self.stealing.given.remove(&task)?;
        let worker = self.workers.get(thief).filter(|worker| worker.stands())?;
        self.may_run(worker, self.task(task)?).then_some(thief)
    }

    /// What is under way from and to a worker, for the invariants.
    pub(super) fn thefts(&self, id: WorkerId) -> (u64, u64) {
        let thefts = self.stealing.asked.values();
        let sum = |of: fn(&Theft) -> WorkerId| {
            thefts.clone().filter(|theft| of(theft) == id).map(|theft| theft.estimate).sum()
        };
        (sum(|theft| theft.victim), sum(|theft| theft.thief))
    }

    /// Whether a task is waited for.
    pub(super) fn is_being_stolen(&self, task: TaskRef) -> bool {
        self.stealing.asked.contains_key(&task)
    }
}

impl Worker {
    /// By how much it is slower than others. Tasks of a function differ: only what is much slower is called so.
    pub(super) fn slowness(&self) -> f64 {
        if self.pace > 1.5 { f64::from(self.pace) } else { 1.0 }
    }

    /// Nanoseconds until a task that comes now would start.
    pub(super) fn queueing(&self) -> u64 {
        self.occupancy / u64::from(self.threads)
    }

    /// Whether it could do more, and nothing is under way to it.
    fn is_hungry(&self) -> bool {
        let (_, incoming) = self.under_way();
        self.stands() && self.busy < self.threads && incoming == 0
    }

    /// So many nanoseconds of work are under way from it, and to it.
    fn trade(&mut self, outgoing: u64, incoming: u64) {
        (self.outgoing, self.incoming) = (outgoing, incoming);
        self.trading = outgoing > 0 || incoming > 0;
    }

    /// Nanoseconds of work that are under way from it, and to it.
    fn under_way(&self) -> (u64, u64) {
        if self.trading { (self.outgoing, self.incoming) } else { (0, 0) }
    }

    /// Nanoseconds until a task that comes now would start, once what is under way has changed hands.
    fn wait(&self) -> u64 {
        let (outgoing, incoming) = self.under_way();
        (self.occupancy + incoming).saturating_sub(outgoing) / u64::from(self.threads)
    }

    /// As [`Self::wait`], of what others could do meanwhile: not of what follows the rest, and would follow it there.
    fn wait_for_others(&self) -> u64 {
        let following = self.following / u64::from(self.threads);
        self.wait().saturating_sub(following)
    }
}
