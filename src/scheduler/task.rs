//! One task, as the scheduler knows it.

use smallvec::SmallVec;

use crate::{
    graph::{Arguments, Key},
    protocol::{ClientId, Priority, TaskId, WorkerId},
    task::TaskError,
};

/// Where a task stands. See the picture in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskState {
    /// Known, neither computed nor to be computed.
    Released,
    /// To be computed; not all it needs is in memory.
    Waiting,
    /// Could run, but no worker there may run it.
    NoWorker,
    /// Could run, as soon as a worker has too little to do.
    Queued,
    /// Assigned to a worker.
    Processing,
    /// Its result is in a worker's memory.
    Memory,
    /// It failed for good.
    Erred,
    /// About to be removed.
    Forgotten,
}

impl TaskState {
    /// The state's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Waiting => "waiting",
            Self::NoWorker => "no-worker",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Memory => "memory",
            Self::Erred => "erred",
            Self::Forgotten => "forgotten",
        }
    }
}

/// A task's place in the arena, and which of the tenants that follow each other there is meant.
///
/// The scheduler's own name of a task. Workers know it by a [`TaskId`], and by another one each time
/// it is computed anew: so no word of theirs, however late, is ever about the wrong computation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TaskRef {
    pub(super) index: u32,
    pub(super) tenant: u32,
}

impl std::fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {}.{}", self.index, self.tenant)
    }
}

/// The function number of data that was scattered: nothing computes it.
pub(super) const SCATTERED: u32 = u32::MAX;

/// One task. What every step of it and of its neighbours looks at lies in the first of four lines of a processor's cache,
/// its neighbours in the second, what placing it takes in the third: of a million tasks hardly any line is in the caches
/// when its turn comes.
#[repr(C, align(64))]
pub(super) struct Task {
    pub(super) key: Key,
    pub(super) this: TaskRef,
    /// Which of those in its place its present computation is.
    generation: u32,
    pub(super) state: TaskState,
    /// It takes its time, as its worker said, or waits for one that does without a word: it counts neither for occupancy
    /// nor for slots.
    pub(super) long_running: bool,
    pub(super) suspicious: u8,
    /// How often a worker whose memory was short was asked to give it back.
    pub(super) displaced: u8,
    /// Dependencies that are not in memory, while waiting or following others.
    pub(super) waiting_on: u32,
    /// Dependents that are to be computed and need its result.
    pub(super) waiters: u32,
    /// Dependents that are not forgotten.
    pub(super) live_dependents: u32,
    /// Tasks of its graph, one after the other, that depend on it.
    pub(super) height: u32,
    pub(super) worker: Option<WorkerId>,
    pub(super) nbytes: u64,

    pub(super) dependencies: SmallVec<[TaskRef; 2]>,
    /// Forgotten ones may linger: see `live_dependents`.
    pub(super) dependents: SmallVec<[TaskRef; 2]>,
    pub(super) priority: Priority,
    pub(super) function: u32,

    pub(super) who_has: SmallVec<[WorkerId; 4]>,
    /// Nanoseconds that it is expected to take its worker.
    pub(super) estimate: u64,
    /// While it follows others: nanoseconds that a thread of its worker is expected to wait for them, and to have nothing
    /// else to do.
    pub(super) gap: u64,
    /// While it is processed: how much of its worker's work will be behind that with it, in nanoseconds.
    pub(super) place: u64,
    /// While it is processed: when its worker is expected to be done with it, by the scheduler's clock in nanoseconds.
    pub(super) ends: u64,
    /// 0 for the default ones.
    pub(super) options: u32,
    pub(super) retries: u32,

    pub(super) arguments: Arguments,
    pub(super) who_wants: SmallVec<[ClientId; 4]>,
    pub(super) error: Option<TaskError>,
}

const _: () = assert!(size_of::<Option<Task>>() == 256);
const _: () = assert!(std::mem::offset_of!(Task, dependencies) == 64);
const _: () = assert!(std::mem::offset_of!(Task, who_has) == 128);
const _: () = assert!(std::mem::offset_of!(Task, arguments) == 192);

impl Task {
    /// A task in state released.
    pub(super) fn new(this: TaskRef, key: Key, function: u32) -> Self {
        Self {
            key,
            this,
            generation: this.tenant,
            state: TaskState::Released,
            long_running: false,
            suspicious: 0,
            displaced: 0,
            waiting_on: 0,
            waiters: 0,
            live_dependents: 0,
            height: 0,
            worker: None,
            nbytes: 0,
            dependencies: SmallVec::new(),
            dependents: SmallVec::new(),
            priority: Priority::default(),
            function,
            who_has: SmallVec::new(),
            estimate: 0,
            gap: 0,
            place: 0,
            ends: 0,
            options: 0,
            retries: 0,
            arguments: Arguments::default(),
            who_wants: SmallVec::new(),
            error: None,
        }
    }

    /// What workers call its present computation and the result of that.
    pub(super) fn id(&self) -> TaskId {
        TaskId::new(self.this.index, self.generation)
    }

    /// What workers say of its present computation from now on is about the past.
    pub(super) fn compute_anew(&mut self) {
        self.generation += 1;
    }

    /// Whether somebody needs the result.
    pub(super) fn needed(&self) -> bool {
        self.waiters > 0 || !self.who_wants.is_empty()
    }

    /// What it added to the work at its worker that follows other tasks, in nanoseconds.
    pub(super) fn following(&self) -> u64 {
        if self.follows() { self.booked() } else { 0 }
    }

    fn follows(&self) -> bool {
        self.worker.is_some() && self.waiting_on > 0 && !self.long_running
    }

    /// What it adds to the work at its worker, in nanoseconds.
    pub(super) fn booked(&self) -> u64 {
        self.estimate + if self.follows() { self.gap } else { 0 }
    }

    /// The workers that hold the result, or the one that computes it.
    pub(super) fn places(&self) -> &[WorkerId] {
        if self.worker.is_some() { self.worker.as_slice() } else { &self.who_has }
    }

    /// Whether it is to be computed or being computed.
    pub(super) fn active(&self) -> bool {
        matches!(
            self.state,
            TaskState::Waiting | TaskState::NoWorker | TaskState::Queued | TaskState::Processing
        )
    }
}

/// Tasks, listed in the order in which they came. Of many, those that are no members any more linger until they are the
/// majority, so that adding and removing cost next to nothing; few lie in place, in a line of a processor's cache. They are
/// listed by their places: whoever asks knows whether the tenant there is a member.
#[derive(Default)]
pub(super) struct TaskList {
    listed: SmallVec<[u32; 8]>,
    members: usize,
}

const _: () = assert!(size_of::<TaskList>() == 48);

/// So many are looked through for one that is no member any more.
const FEW: usize = 64;

impl TaskList {
    pub(super) fn len(&self) -> usize {
        self.members
    }

    /// Lists a task. Says whether it is time to [`Self::tidy`].
    pub(super) fn add(&mut self, task: TaskRef) -> bool {
        self.listed.push(task.index);
        self.members += 1;
        self.listed.len() > FEW && self.listed.len() > 2 * self.members
    }

    /// One of those listed is no member any more.
    pub(super) fn remove(&mut self, task: TaskRef) {
        let exact = self.listed.len() == self.members && self.members <= FEW;
        self.members -= 1;
        if exact && let Some(place) = self.listed.iter().position(|place| *place == task.index) {
            self.listed.remove(place);
        }
    }

    /// The places of all that are listed, the latest first; some may be no members any more.
    pub(super) fn latest(&self) -> impl Iterator<Item = u32> {
        self.listed.iter().rev().copied()
    }

    /// The places of the members: `belongs` tells them from those that linger.
    pub(super) fn members(&self, belongs: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut members: Vec<u32> = self.listed.iter().copied().filter(|place| belongs(*place)).collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    pub(super) fn tidy(&mut self, belongs: impl Fn(u32) -> bool) {
        self.listed = SmallVec::from_vec(self.members(belongs));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn task_at(index: u32) -> TaskRef {
        TaskRef { index, tenant: 0 }
    }

    proptest! {
        /// Few or many, in whatever order they come, go and come again.
        #[test]
        fn members_are_listed_whatever_comes_and_goes(
            steps in prop::collection::vec((0u32..120, any::<bool>()), 0..600),
        ) {
            let (mut list, mut members) = (TaskList::default(), BTreeSet::new());
            for (index, comes) in steps {
                let task = task_at(index);
                if comes && members.insert(task) {
                    if list.add(task) {
                        list.tidy(|place| members.contains(&task_at(place)));
                    }
                    prop_assert!(list.listed.len() <= FEW.max(2 * members.len()), "few linger");
                } else if !comes && members.remove(&task) {
                    list.remove(task);
                }
                prop_assert_eq!(list.len(), members.len());
                let listed = list.members(|place| members.contains(&task_at(place)));
                prop_assert_eq!(listed, Vec::from_iter(members.iter().map(|task| task.index)));
            }
        }
    }
}
