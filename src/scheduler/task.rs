//! One task, as the scheduler knows it.

use std::ops::{Deref, DerefMut};

use smallvec::{SmallVec, smallvec};

use super::{
    hot::{Flags, Hot},
    places::Places,
};
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
    /// Not known any more.
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

/// What a task's own steps look at, each in few of three lines of a processor's cache: who its neighbours are is in the first,
/// what placing it takes in the second.
#[repr(C, align(64))]
pub(super) struct Cold {
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

/// What placing a task does not look at of itself, and of what it needs only where several hold that: a line of its own.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Rest {
    arguments: Arguments,
    who_wants: Clients,
    /// All holders of the result, in the order in which they came, where there are several.
    who_has: Option<Box<SmallVec<[WorkerId; 14]>>>,
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

const _: () = assert!(size_of::<Cold>() == 192);
const _: () = assert!(std::mem::offset_of!(Cold, estimate) == 64);
const _: () = assert!(std::mem::offset_of!(Cold, rest) == 128);

impl Default for Cold {
    fn default() -> Self {
        Self {
            key: Key(0),
            dependencies: Places::default(),
            dependents: Places::default(),
            estimate: 0,
            gap: 0,
            place: 0,
            ends: 0,
            priority: Priority::default(),
            function: 0,
            options: 0,
            height: 0,
            rest: Rest::default(),
        }
    }
}

/// A task, to be looked at or changed: what is hot of it can be named as if it was its own.
#[derive(Clone, Copy)]
pub(super) struct View<H, C> {
    pub(super) this: TaskRef,
    pub(super) hot: H,
    pub(super) cold: C,
}

pub(super) type Task<'a> = View<&'a Hot, &'a Cold>;
pub(super) type TaskMut<'a> = View<&'a mut Hot, &'a mut Cold>;

impl<H: Deref<Target = Hot>, C> Deref for View<H, C> {
    type Target = Hot;

    fn deref(&self) -> &Hot {
        &self.hot
    }
}

impl<H: DerefMut<Target = Hot>, C> DerefMut for View<H, C> {
    fn deref_mut(&mut self) -> &mut Hot {
        &mut self.hot
    }
}

impl<H: Deref<Target = Hot>, C: Deref<Target = Cold>> View<H, C> {
    /// The tenant of a place, if it has one.
    pub(super) fn in_place(index: u32, hot: H, cold: C) -> Option<Self> {
        let this = TaskRef { index, tenant: hot.tenant };
        (hot.state != TaskState::Forgotten).then_some(Self { this, hot, cold })
    }

    /// What it is called with.
    pub(super) fn arguments(&self) -> &Arguments {
        &self.cold.rest.arguments
    }

    /// What workers call its present computation and the result of that.
    pub(super) fn id(&self) -> TaskId {
        TaskId::new(self.this.index, self.generation())
    }

    /// The clients that want the result.
    pub(super) fn clients(&self) -> &[ClientId] {
        if self.is_wanted() { self.cold.rest.who_wants.as_slice() } else { &[] }
    }

    pub(super) fn is_wanted_by(&self, client: ClientId) -> bool {
        self.clients().contains(&client)
    }

    /// What went wrong so far.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        if self.flags.has(Flags::TROUBLED) { self.cold.rest.trouble.as_deref() } else { None }
    }

    /// Why it failed for good.
    pub(super) fn error(&self) -> Option<&TaskError> {
        self.trouble()?.error.as_ref()
    }

    /// The workers that hold the result, in the order in which they came.
    pub(super) fn who_has(&self) -> &[WorkerId] {
        if self.state == TaskState::Memory { self.places() } else { &[] }
    }

    /// The workers that hold the result, or the one that computes it.
    pub(super) fn places(&self) -> &[WorkerId] {
        at(&self.hot, &self.cold)
    }

    /// Whether a worker is taken for a holder of the result, and has not said so yet.
    pub(super) fn is_presumed(&self, worker: WorkerId) -> bool {
        self.trouble().is_some_and(|trouble| trouble.presumed.contains(&worker))
    }

    /// The workers that hold the result, without those that only may.
    pub(super) fn holders(&self) -> impl Iterator<Item = WorkerId> {
        self.who_has().iter().copied().filter(|holder| !self.is_presumed(*holder))
    }

    /// Whether a worker is one of these.
    pub(super) fn is_held_by(&self, worker: WorkerId) -> bool {
        self.who_has().contains(&worker) && !self.is_presumed(worker)
    }

    /// Whether workers died that may have run it.
    pub(super) fn is_suspicious(&self) -> bool {
        self.trouble().is_some_and(|trouble| trouble.suspicious > 0)
    }

    /// What it added to the work at its worker that follows other tasks, in nanoseconds.
    pub(super) fn following(&self) -> u64 {
        if self.follows() { self.booked() } else { 0 }
    }

    /// What it adds to the work at its worker, in nanoseconds.
    pub(super) fn booked(&self) -> u64 {
        self.cold.estimate + if self.follows() { self.cold.gap } else { 0 }
    }
}

/// The workers that hold a task's result, or the one that computes it.
pub(super) fn at<'a>(hot: &'a Hot, cold: &'a Cold) -> &'a [WorkerId] {
    match (hot.at, hot.has_copies()) {
        (WorkerId::NOBODY, _) => &[],
        (_, false) => std::slice::from_ref(&hot.at),
        (_, true) => cold.rest.who_has.as_deref().map_or(&[], SmallVec::as_slice),
    }
}

impl TaskMut<'_> {
    /// The task leaves its place to the next tenant, whom workers call by another name; gives its key and what it depended on.
    pub(super) fn vacate(self) -> (Key, Places) {
        let Self { hot, cold, .. } = self;
        if hot.flags.has(Flags::OWNING) {
            cold.rest = Rest::default();
        }
        *hot = Hot::vacant(hot.next_tenant());
        cold.dependents.clear();
        (cold.key, std::mem::take(&mut cold.dependencies))
    }

    /// What it is called with.
    pub(super) fn set_arguments(&mut self, arguments: Arguments) {
        self.flags.set(Flags::BULKY, !arguments.in_place());
        self.cold.rest.arguments = arguments;
    }

    /// A client wants the result.
    pub(super) fn want(&mut self, client: ClientId) {
        self.cold.rest.who_wants.add(client);
        self.flags.set(Flags::WANTED, true);
    }

    /// Some clients do not want the result any more.
    pub(super) fn keep_clients(&mut self, keep: impl FnMut(&ClientId) -> bool) {
        if self.is_wanted() {
            self.cold.rest.who_wants.retain(keep);
            let wanted = !self.cold.rest.who_wants.as_slice().is_empty();
            self.flags.set(Flags::WANTED, wanted);
        }
    }

    /// What went wrong so far, to be changed.
    pub(super) fn trouble_mut(&mut self) -> &mut Trouble {
        self.hot.flags.set(Flags::TROUBLED, true);
        self.cold.rest.trouble.get_or_insert_default()
    }

    /// A worker that may only have been taken for a holder said whether it is one.
    pub(super) fn presume_no_more(&mut self, worker: WorkerId) {
        if self.is_presumed(worker) {
            self.trouble_mut().presumed.retain(|presumed| *presumed != worker);
        }
    }

    /// It ran, or is tried as if it never had: what went wrong counts no more, but for how often it was tried.
    pub(super) fn absolve(&mut self) {
        if self.flags.has(Flags::TROUBLED)
            && let Some(trouble) = &mut self.cold.rest.trouble
        {
            **trouble = Trouble { retried: trouble.retried, ..Trouble::default() };
        }
    }

    /// A worker holds the result, after all others that do.
    pub(super) fn add_holder(&mut self, worker: WorkerId) {
        debug_assert_eq!(self.state, TaskState::Memory, "before, this is who computes it");
        if self.hot.at == WorkerId::NOBODY {
            self.hot.at = worker;
            return;
        }
        let first = self.hot.at;
        self.hot.flags.set(Flags::SEVERAL, true);
        self.cold.rest.who_has.get_or_insert_with(|| Box::new(smallvec![first])).push(worker);
    }

    /// A worker does not hold the result any more. Says whether it did.
    pub(super) fn remove_holder(&mut self, worker: WorkerId) -> bool {
        let Some(place) = self.who_has().iter().position(|holder| *holder == worker) else { return false };
        if !self.has_copies() {
            self.hot.at = WorkerId::NOBODY;
        } else if let Some(who_has) = &mut self.cold.rest.who_has {
            who_has.remove(place);
            self.hot.at = who_has[0];
            if who_has.len() == 1 {
                self.cold.rest.who_has = None;
                self.hot.flags.set(Flags::SEVERAL, false);
            }
        }
        true
    }

    /// Nobody holds the result any more; gives those who did.
    pub(super) fn take_holders(&mut self) -> SmallVec<[WorkerId; 4]> {
        let holders = SmallVec::from_slice(self.who_has());
        if self.has_copies() {
            self.cold.rest.who_has = None;
            self.flags.set(Flags::SEVERAL, false);
        }
        self.hot.at = WorkerId::NOBODY;
        holders
    }
}

/// Clients, once each: mostly there is one, if any.
#[derive(Debug, Clone, Default)]
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
            Self::Several(clients) => {
                clients.retain(keep);
                if clients.is_empty() {
                    *self = Self::Nobody;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clients_want_a_result_once_each_however_many_they_are() {
        let (mut hot, mut cold) = (Hot::new(0), Cold::default());
        let this = TaskRef { index: 0, tenant: 0 };
        let mut task = TaskMut { this, hot: &mut hot, cold: &mut cold };
        let wanting = |task: &TaskMut<'_>| (task.is_wanted(), task.clients().to_vec());
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
        /// One, several or none, whoever comes and goes.
        #[test]
        fn holders_are_known_in_the_order_in_which_they_came(steps in prop::collection::vec((0u32..5, 0u32..9), 0..60)) {
            let (mut hot, mut cold) = (Hot::new(0), Cold::default());
            hot.state = TaskState::Memory;
            let mut task = TaskMut { this: TaskRef { index: 0, tenant: 0 }, hot: &mut hot, cold: &mut cold };
            let mut model = Vec::new();
            for (worker, step) in steps {
                let worker = WorkerId(worker);
                let place = model.iter().position(|holder| *holder == worker);
                match (step, place) {
                    (0, _) => prop_assert_eq!(&task.take_holders()[..], &std::mem::take(&mut model)[..]),
                    (1..5, None) => {
                        task.add_holder(worker);
                        model.push(worker);
                    }
                    (1..5, Some(_)) => {}
                    _ => {
                        prop_assert_eq!(task.remove_holder(worker), place.is_some());
                        place.map(|place| model.remove(place));
                    }
                }
                prop_assert_eq!(task.who_has(), &model[..]);
                prop_assert_eq!(task.first_holder(), model.first().copied());
                prop_assert_eq!(task.has_copies(), model.len() > 1);
                prop_assert_eq!(task.worker(), None);
            }
        }
    }
}
