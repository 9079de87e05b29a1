//! What workers and the scheduler say to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Contact, Priority, TaskId, Turn, WorkerId};
use crate::{
    graph::{Arguments, Key},
    task::{EntryRef, TaskError, Value},
};

/// A dependency as told to the worker that needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dependency {
    /// The result.
    pub id: TaskId,
    /// Bytes in memory.
    pub nbytes: u64,
    /// Who holds it; nobody yet while it is being computed, and who does is told by [`ToWorker::WhoHas`]; nobody else where the
    /// worker is asked to keep what it may have.
    pub who_has: SmallVec<[WorkerId; 4]>,
    /// A copy of it is in passing: the scheduler is not told of it, and it goes with the last task there that needs it.
    pub passing: bool,
}

/// Tasks, of which there is mostly one.
pub type TaskIds = SmallVec<[TaskId; 2]>;

/// A task assigned to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComputeTask {
    /// The task.
    pub id: TaskId,
    /// Its user-visible name, for errors.
    pub key: Key,
    /// The function.
    pub entry: EntryRef,
    /// Its arguments.
    pub arguments: Arguments,
    /// What it needs, in the order that arguments refer to.
    pub dependencies: Vec<Dependency>,
    /// When to run it.
    pub priority: Priority,
    /// What it holds while it runs.
    pub resources: Vec<(String, f64)>,
    /// Whether a client wants the result itself: a small one then comes with the report.
    pub wanted: bool,
    /// Tasks that need the result, as far as they are known.
    pub dependents: u32,
    /// Tasks of its graph that depend on it, one after the other.
    pub height: u32,
    /// From this height on tasks are critical, as things stand now: they go before others of the same submission and user
    /// priority, the highest first. Those that hold resources go by priority alone.
    pub critical: u32,
}

impl ComputeTask {
    /// When its turn comes, where tasks are critical from a height on.
    pub(crate) fn turn(&self, critical: u32) -> Turn {
        self.priority.turn(if self.height >= critical { self.height } else { 0 })
    }
}

/// From the scheduler to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToWorker {
    /// The worker is taken in under this number.
    Welcome {
        /// Its number.
        worker: WorkerId,
    },
    /// Compute this.
    Compute(Arc<ComputeTask>),
    /// These are needed no more: forget results, give up tasks.
    Free(TaskIds),
    /// Hold copies of these: keep what is here in passing, fetch the others. Answered by [`FromWorker::Added`],
    /// [`FromWorker::NotAdded`], or [`FromWorker::Missing`].
    Acquire(Vec<Dependency>),
    /// Who holds these now. Answers [`FromWorker::Missing`], or tells of dependencies that were named without a
    /// holder since they were still to be computed.
    WhoHas(Vec<Dependency>),
    /// Send this result, small as it may be, to a peer that waits for it, as soon as it is there: by
    /// [`Forward`](super::FromPeer::Forward).
    Forward {
        /// The result of a task that was assigned to this worker.
        id: TaskId,
        /// Who needs it.
        to: WorkerId,
    },
    /// A peer and where it is reached. Comes before the first message that names it.
    Peer {
        /// Its number.
        worker: WorkerId,
        /// Its addresses.
        address: Contact,
    },
    /// A peer that is gone, of which the worker may have been told.
    PeerGone(WorkerId),
    /// Run a function outside of the task graph; answered by [`FromWorker::Ran`].
    Run {
        /// Number of the request.
        id: u64,
        /// The function.
        entry: EntryRef,
        /// Its arguments.
        arguments: Arguments,
    },
    /// Start nothing more and give back what was not started; [`ToWorker::Close`] follows once others hold
    /// what this worker holds.
    Retire,
    /// Another worker is to run these: give back what was not started. Answered by
    /// [`FromWorker::GaveBack`] and [`FromWorker::Kept`].
    GiveBack(Vec<TaskId>),
    /// So many of the worker's numbered messages are in the journal; `None` where there is none any more.
    Noted(Option<u64>),
    /// The scheduler was restored and knows the worker: what follows is what it has not received.
    Resumed {
        /// As in [`ToWorker::Noted`].
        noted: u64,
    },
    /// The scheduler is alive.
    Alive,
    /// Leave.
    Close {
        /// Why.
        reason: String,
    },
}

/// From a worker to the scheduler.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromWorker {
    /// A task's result is in this worker's memory.
    Finished(Finished),
    /// A task failed.
    Erred {
        /// The task.
        id: TaskId,
        /// Why.
        error: TaskError,
    },
    /// Copies of results that this worker holds: that it fetched, and that do not pass, or that it was asked to keep.
    Added(Vec<TaskId>),
    /// Who has this? Answered by [`ToWorker::WhoHas`]; where it is to be computed again what it is needed for is taken back, and
    /// it is freed.
    Missing {
        /// The result.
        id: TaskId,
        /// A holder that the scheduler named and that did not give it.
        holder: Option<WorkerId>,
    },
    /// What the latest fetches from peers took, so that it is known what moving results costs.
    Fetched(Vec<Fetch>),
    /// A running task left the pool of compute threads and will take its time.
    LongRunning(TaskId),
    /// Answers [`ToWorker::Run`].
    Ran {
        /// Number of the request.
        id: u64,
        /// What came of it.
        result: Result<Value, TaskError>,
    },
    /// The worker is alive; answered by [`ToWorker::Alive`].
    Heartbeat(Metrics),
    /// The worker cannot take a copy that it was asked to [`Acquire`](ToWorker::Acquire).
    NotAdded {
        /// The result.
        id: TaskId,
        /// Why it cannot be sent.
        error: TaskError,
    },
    /// The worker will leave soon and starts nothing more: what it holds is to move. Answered by
    /// [`ToWorker::Retire`], and by [`ToWorker::Close`] when that is done.
    Retiring,
    /// Tasks that the worker was assigned and did not start, and now never will: it leaves, or was asked to give
    /// them back.
    GaveBack(Vec<TaskId>),
    /// Tasks that the worker was asked to give back and has started, or is done with.
    Kept(Vec<TaskId>),
    /// Results that were on this worker's disk and cannot be read any more.
    Lost(Vec<TaskId>),
    /// Whether the worker starts no more tasks, since its memory is short: nothing is assigned to it then.
    Paused(bool),
    /// The worker leaves in order.
    Leaving,
}

/// The report of a finished task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// The task.
    pub id: TaskId,
    /// Bytes of the result in memory.
    pub nbytes: u64,
    /// Nanoseconds it computed.
    pub duration: u64,
    /// The result itself, where a client wants it and it is small.
    pub value: Option<Value>,
}

/// How long a peer took to answer with results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Who was asked.
    pub from: WorkerId,
    /// Bytes that came.
    pub nbytes: u64,
    /// Nanoseconds from the question to the answer.
    pub nanos: u64,
}

impl Fetch {
    /// Bytes up to which a fetch takes mostly the way there and back, and the first one of a peer connecting.
    pub(crate) const SMALL: u64 = 64 << 10;
}

/// What a worker tells of itself with each heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Bytes of results that it holds in memory.
    pub managed: u64,
    /// Bytes of results that it holds on disk alone.
    pub spilled: u64,
    /// Bytes of the files that it holds results in: less than the results where they are compressed.
    pub on_disk: u64,
    /// Bytes of memory that its process occupies: without views of files, which the system may drop, and without what
    /// another process shares with it and accounts for.
    pub resident: u64,
    /// Tasks running.
    pub executing: u32,
    /// Tasks ready to run.
    pub ready: u32,
    /// Bytes fetched from peers so far.
    pub fetched: u64,
    /// Bytes of chunks that its process sent to others so far, before compression.
    pub sent: u64,
    /// Of these, what compression spared the links.
    pub saved: u64,
    /// Nanoseconds that its threads spent running tasks so far.
    pub busy: u64,
}

impl Metrics {
    /// Bytes of memory that its process occupies besides results: the program's own, what tasks allocate, libraries.
    #[must_use]
    pub fn unmanaged(&self) -> u64 {
        self.resident.saturating_sub(self.managed)
    }
}
