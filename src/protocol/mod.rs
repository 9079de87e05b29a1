//! The messages between client, scheduler and workers.
//!
//! Types only: what each means, who sends it, what follows. Their bytes are the business of
//! [`crate::serialize`], their journey that of the transports.

mod client;
mod contact;
mod numbered;
mod peer;
mod worker;

use std::{cmp::Reverse, fmt, sync::Arc};

pub use client::{
    Answer, Explanation, FromClient, Query, Scattered, SchedulerInfo, StoryEvent, ToClient, WorkerStatus,
};
pub use contact::Contact;
pub(crate) use contact::Contacts;
pub(crate) use numbered::{Numbered, Resumed};
pub use peer::{FromPeer, ToPeer};
use serde::{Deserialize, Serialize};
pub use worker::{ComputeTask, Dependency, Fetch, Finished, FromWorker, Metrics, TaskIds, ToWorker};

/// One computation of a task, and its result: dense, and never used again, neither for another task
/// nor for the same one computed again. So no message, however late, is about the wrong computation.
///
/// The low half is a place in the scheduler's arena, the high half counts what was computed there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId(pub u64);

impl TaskId {
    /// The `generation`th computation in place `index`.
    pub fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// The place in the arena.
    pub fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// Which computation in that place.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}.{}", self.index(), self.generation())
    }
}

/// A worker, numbered by the scheduler in order of arrival; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct WorkerId(pub u32);

impl WorkerId {
    /// Stands for none where there are so many that an [`Option`] takes too much room.
    pub(crate) const NOBODY: Self = Self(u32::MAX);
}

impl From<u32> for WorkerId {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl From<WorkerId> for u32 {
    fn from(id: WorkerId) -> Self {
        id.0
    }
}

/// A client, numbered by the scheduler in order of arrival; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ClientId(pub u32);

impl ClientId {
    /// Who wants tasks to be done whose results nobody waits for.
    pub(crate) const NOBODY: Self = Self(u32::MAX);
}

/// Bytes and nanoseconds beyond this (a million gigabytes, thirteen days) are taken for this much by who is told of them,
/// so that sums of them never overflow.
pub(crate) const CREDIBLE: u64 = 1 << 50;

/// Which task runs first, unless one is critical: the least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Priority {
    /// The user's priority, negated.
    pub user: i32,
    /// Which submission brought the task: earlier ones first.
    pub submission: u32,
    /// The task's place in its graph.
    pub order: u32,
}

impl Priority {
    /// Of different ranks, the lower goes first, critical or not.
    pub(crate) fn rank(self) -> (i32, u32) {
        (self.user, self.submission)
    }

    /// When the turn of a critical task of this height comes; of one that is not for 0.
    pub(crate) fn turn(self, height: u32) -> Turn {
        let Self { order, .. } = self;
        Turn { rank: self.rank(), height: Reverse(height), order }
    }
}

/// Which task runs first: the least. Of a rank, that is the highest of those that are critical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Turn {
    pub(crate) rank: (i32, u32),
    pub(crate) height: Reverse<u32>,
    order: u32,
}

/// Who comes, said first on every connection once the secret is proved.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Hello {
    /// A client at the scheduler.
    Client,
    /// A worker at the scheduler.
    Worker(WorkerInfo),
    /// A client or worker at a worker, to fetch or put data.
    Peer,
    /// The scheduler, to who comes: whether it keeps a journal, so that it may come back after its death.
    Scheduler {
        /// Whether it does.
        journals: bool,
    },
    /// A worker or client at a scheduler that was restored.
    Returning {
        /// Who it was to the scheduler that died.
        member: Member,
        /// Messages that it received of those that are numbered.
        received: u64,
    },
    /// Somebody at the scheduler who only asks: it may be another executable, of this version.
    Observer {
        /// Its version of Rankine, and so of these messages.
        version: String,
    },
}

/// Who is known to the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// A worker.
    Worker(WorkerId),
    /// A client.
    Client(ClientId),
}

/// What a worker says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// A name for people and restrictions; unique in the cluster.
    pub name: Arc<str>,
    /// Where peers fetch results, over the most general of its transports; it stands for the worker.
    pub address: Arc<str>,
    /// All addresses under which it is reached, the preferred first, with spaces between.
    pub contact: Arc<str>,
    /// Compute threads.
    pub nthreads: u32,
    /// Bytes it may hold; 0 for no limit.
    pub memory_limit: u64,
    /// Its supply of abstract resources.
    pub resources: Vec<(String, f64)>,
    /// Its process.
    pub pid: u32,
    /// Its host.
    pub host: Arc<str>,
    /// Nanoseconds until it will leave by itself, where it knows: tasks that would take longer do not
    /// go there.
    pub lifetime: Option<u64>,
}

/// The opening of every connection, in both directions, before any other message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// Which executable the sender runs.
    pub build: String,
    /// Who it is; the accepting side answers [`Hello::Peer`].
    pub hello: Hello,
}
