//! One task, as the scheduler knows it.

use smallvec::SmallVec;

use super::places::Places;
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

/// One task. What steps of its neighbours look at lies in the first of four lines of a processor's cache, who these are in
/// the second, what placing it takes in the third: of a million tasks hardly any line is in the caches when its turn comes.
#[repr(C, align(64))]
pub(super) struct Task {
    pub(super) nbytes: u64,
    pub(super) who_has: SmallVec<[WorkerId; 4]>,
    pub(super) this: TaskRef,
    /// Which of those in its place its present computation is.
    generation: u32,
    pub(super) state: TaskState,
    /// It takes its time, as its worker said, or waits for one that does without a word: it counts neither for occupancy
    /// nor for slots.
    pub(super) long_running: bool,
    /// Whether any client wants its result.
    wanted: bool,
    /// Whether there is [`Trouble`].
    troubled: bool,
    /// Dependencies that are not in memory, while waiting or following others.
    pub(super) waiting_on: u32,
    /// Dependents that are to be computed and need its result.
    pub(super) waiters: u32,
    /// Dependents that are not forgotten.
    pub(super) live_dependents: u32,
    /// [`WorkerId::NOBODY`] unless it is processing.
    computing: WorkerId,

    pub(super) key: Key,
    /// They stay in their places for as long as this task is there.
    pub(super) dependencies: Places,
    /// Forgotten ones may linger: see [`super::edges`].
    pub(super) dependents: Places,

    /// Nanoseconds that it is expected to take its worker.
    pub(super) estimate: u64,
    /// While it follows others: nanoseconds that a thread of its worker is expected to wait for them, and to have nothing
    /// else to do.
    pub(super) gap: u64,
    /// While it is processed: how much of its worker's work will be behind that with it, in nanoseconds.
    pub(super) place: u64,
    /// While it is processed: when its worker is expected to be done with it, by the scheduler's clock in nanoseconds.
    pub(super) ends: u64,
    pub(super) priority: Priority,
    pub(super) function: u32,
    /// 0 for the default ones.
    pub(super) options: u32,
    /// Tasks of its graph, one after the other, that depend on it.
    pub(super) height: u32,

    pub(super) rest: Rest,
}

/// What its neighbours and its placing do not look at: a line of its own.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Rest {
    pub(super) arguments: Arguments,
    who_wants: Clients,
    trouble: Option<Box<Trouble>>,
}

/// What went wrong with a task so far: with few anything did.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    /// How many workers died that may have run it.
    pub(super) suspicious: u8,
    /// How often a worker whose memory was short was asked to give it back.
    pub(super) displaced: u8,
    /// Its result was recalled, and nobody has said since that it holds it.
    pub(super) recalled: bool,
    /// Of those that are taken for its holders, who has not said so yet.
    pub(super) presumed: Vec<WorkerId>,
    /// How often it was tried again.
    pub(super) retried: u32,
    /// Why it failed for good.
    pub(super) error: Option<TaskError>,
}

const _: () = assert!(size_of::<Option<Task>>() == 256);
const _: () = assert!(std::mem::offset_of!(Task, key) == 64);
const _: () = assert!(std::mem::offset_of!(Task, estimate) == 128);
const _: () = assert!(std::mem::offset_of!(Task, rest) == 192);

impl Task {
    /// A task in state released.
    pub(super) fn new(this: TaskRef, key: Key, function: u32) -> Self {
        Self {
            nbytes: 0,
            who_has: SmallVec::new(),
            this,
            generation: this.tenant,
            state: TaskState::Released,
            long_running: false,
            wanted: false,
            troubled: false,
            waiting_on: 0,
            waiters: 0,
            live_dependents: 0,
            computing: WorkerId::NOBODY,
            key,
            dependencies: Places::default(),
            dependents: Places::default(),
            estimate: 0,
            gap: 0,
            place: 0,
            ends: 0,
            priority: Priority::default(),
            function,
            options: 0,
            height: 0,
            rest: Rest::default(),
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
        self.waiters > 0 || self.wanted
    }

    /// Whether any client wants the result.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The clients that want the result.
    pub(super) fn clients(&self) -> &[ClientId] {
        if self.wanted { self.rest.who_wants.as_slice() } else { &[] }
    }

    pub(super) fn is_wanted_by(&self, client: ClientId) -> bool {
        self.clients().contains(&client)
    }

    /// A client wants the result.
    pub(super) fn want(&mut self, client: ClientId) {
        self.rest.who_wants.add(client);
        self.wanted = true;
    }

    /// Some clients do not want the result any more.
    pub(super) fn keep_clients(&mut self, keep: impl FnMut(&ClientId) -> bool) {
        if self.wanted {
            self.rest.who_wants.retain(keep);
            self.wanted = !self.rest.who_wants.as_slice().is_empty();
        }
    }

    /// The worker that it was assigned to, while it is processing.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        (self.computing != WorkerId::NOBODY).then_some(self.computing)
    }

    pub(super) fn is_at(&self, worker: WorkerId) -> bool {
        self.computing == worker
    }

    pub(super) fn assign(&mut self, worker: WorkerId) {
        self.computing = worker;
    }

    /// It is processing no more; gives the worker that it was assigned to.
    pub(super) fn take_worker(&mut self) -> Option<WorkerId> {
        let worker = self.worker();
        self.computing = WorkerId::NOBODY;
        worker
    }

    /// What went wrong so far.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        if self.troubled { self.rest.trouble.as_deref() } else { None }
    }

    /// What went wrong so far, to be changed.
    pub(super) fn trouble_mut(&mut self) -> &mut Trouble {
        self.troubled = true;
        self.rest.trouble.get_or_insert_default()
    }

    /// Why it failed for good.
    pub(super) fn error(&self) -> Option<&TaskError> {
        self.trouble()?.error.as_ref()
    }

    /// Whether a worker is taken for a holder of the result, and has not said so yet.
    pub(super) fn is_presumed(&self, worker: WorkerId) -> bool {
        self.trouble().is_some_and(|trouble| trouble.presumed.contains(&worker))
    }

    /// A worker that may only have been taken for a holder said whether it is one.
    pub(super) fn presume_no_more(&mut self, worker: WorkerId) {
        if self.is_presumed(worker) {
            self.trouble_mut().presumed.retain(|presumed| *presumed != worker);
        }
    }

    /// The workers that hold the result, without those that only may.
    pub(super) fn holders(&self) -> impl Iterator<Item = WorkerId> {
        self.who_has.iter().copied().filter(|holder| !self.is_presumed(*holder))
    }

    /// Whether a worker is one of these.
    pub(super) fn is_held_by(&self, worker: WorkerId) -> bool {
        self.who_has.contains(&worker) && !self.is_presumed(worker)
    }

    /// Whether workers died that may have run it.
    pub(super) fn is_suspicious(&self) -> bool {
        self.trouble().is_some_and(|trouble| trouble.suspicious > 0)
    }

    /// It ran, or is tried as if it never had: what went wrong counts no more, but for how often it was tried.
    pub(super) fn absolve(&mut self) {
        if self.troubled
            && let Some(trouble) = &mut self.rest.trouble
        {
            **trouble = Trouble { retried: trouble.retried, ..Trouble::default() };
        }
    }

    /// What it added to the work at its worker that follows other tasks, in nanoseconds.
    pub(super) fn following(&self) -> u64 {
        if self.follows() { self.booked() } else { 0 }
    }

    fn follows(&self) -> bool {
        self.computing != WorkerId::NOBODY && self.waiting_on > 0 && !self.long_running
    }

    /// What it adds to the work at its worker, in nanoseconds.
    pub(super) fn booked(&self) -> u64 {
        self.estimate + if self.follows() { self.gap } else { 0 }
    }

    /// The workers that hold the result, or the one that computes it.
    pub(super) fn places(&self) -> &[WorkerId] {
        if self.computing == WorkerId::NOBODY { &self.who_has } else { std::slice::from_ref(&self.computing) }
    }

    /// Whether it is to be computed or being computed.
    pub(super) fn active(&self) -> bool {
        matches!(
            self.state,
            TaskState::Waiting | TaskState::NoWorker | TaskState::Queued | TaskState::Processing
        )
    }
}

/// Clients, once each: mostly there is one, if any.
///
/// Were its tag larger than a byte, it would also be what says that a place in the arena is vacant; so that is a flag in a
/// task's first line, which whoever comes to a task looks at anyway.
#[derive(Debug, Clone, Default)]
#[repr(u8)]
enum Clients {
    #[default]
    Nobody,
    One(ClientId),
    #[expect(
        clippy::box_collection,
        reason = "few tasks have several, and all have half a line with their arguments"
    )]
    Several(Box<Vec<ClientId>>),
}

const _: () = assert!(size_of::<Clients>() == 16);

impl Clients {
    fn as_slice(&self) -> &[ClientId] {
        match self {
            Self::Nobody => &[],
            Self::One(client) => std::slice::from_ref(client),
            Self::Several(clients) => clients,
        }
    }

    fn add(&mut self, client: ClientId) {
        match self {
            Self::Nobody => *self = Self::One(client),
            _ if self.as_slice().contains(&client) => {}
            Self::One(first) => *self = Self::Several(vec![*first, client].into()),
            Self::Several(clients) => clients.push(client),
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&ClientId) -> bool) {
        match self {
            Self::One(client) if !keep(client) => *self = Self::Nobody,
            Self::Nobody | Self::One(_) => {}
            Self::Several(clients) => clients.retain(keep),
        }
    }
}

/// Tasks, listed in the order in which they came. Of many, those that are no members any more linger until they are the
/// majority, so that adding and removing cost next to nothing; few lie in place, in a line of a processor's cache. They are
/// listed by their places: whoever asks knows whether the tenant there is a member.
#[derive(Default)]
pub(super) struct TaskList {
    listed: SmallVec<[u32; 6]>,
    members: u32,
}

const _: () = assert!(size_of::<TaskList>() == 40);

/// So many are looked through for one that is no member any more.
const FEW: usize = 64;

impl TaskList {
    pub(super) fn len(&self) -> usize {
        self.members as usize
    }

    /// Lists a task. Says whether it is time to [`Self::tidy`].
    pub(super) fn add(&mut self, task: TaskRef) -> bool {
        self.listed.push(task.index);
        self.members += 1;
        self.listed.len() > FEW && self.listed.len() > 2 * self.len()
    }

    /// One of those listed is no member any more.
    pub(super) fn remove(&mut self, task: TaskRef) {
        let exact = self.listed.len() == self.len() && self.len() <= FEW;
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

    #[test]
    fn clients_want_a_result_once_each_however_many_they_are() {
        let mut task = Task::new(task_at(0), Key(0), 0);
        let wanting = |task: &Task| (task.is_wanted(), task.clients().to_vec());
        assert_eq!(wanting(&task), (false, vec![]));
        for client in [1, 1, 2, 1, 3] {
            task.want(ClientId(client));
        }
        assert_eq!(wanting(&task), (true, [1, 2, 3].map(ClientId).to_vec()));
        task.keep_clients(|client| client.0 != 1);
        assert_eq!(wanting(&task), (true, [2, 3].map(ClientId).to_vec()));
        task.keep_clients(|_| false);
        assert_eq!((wanting(&task), task.needed()), ((false, vec![]), false));
        task.want(ClientId(4));
        task.keep_clients(|client| client.0 != 5);
        assert!(task.needed() && task.is_wanted_by(ClientId(4)) && !task.is_wanted_by(ClientId(5)));
        task.keep_clients(|client| client.0 != 4);
        assert_eq!(wanting(&task), (false, vec![]));
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
