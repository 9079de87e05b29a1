//! The messages between client, scheduler and workers.
//!
//! Types only: what each means, who sends it, what follows. Their bytes are the business of
//! [`crate::serialize`], their journey that of the transports.

mod numbered;

use std::{fmt, sync::Arc};

pub(crate) use numbered::{Numbered, Resumed};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    graph::{Arguments, Graph, Key},
    task::{EntryRef, TaskError, Value},
};

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

/// A client, numbered by the scheduler in order of arrival; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ClientId(pub u32);

impl ClientId {
    /// Who wants tasks to be done whose results nobody waits for.
    pub(crate) const NOBODY: Self = Self(u32::MAX);
}

/// Which task runs first: the least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Priority {
    /// The user's priority, negated.
    pub user: i32,
    /// Which submission brought the task: earlier ones first.
    pub submission: u32,
    /// The task's place in its graph.
    pub order: u32,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// From a client to the scheduler.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromClient {
    /// Compute these and keep the results that `wants` names until they are released.
    Submit {
        /// The tasks.
        graph: Graph,
        /// The keys the client holds futures of. Unknown keys of earlier submissions are fine.
        wants: Vec<Key>,
    },
    /// The client holds no more futures of these.
    Release(Vec<Key>),
    /// Give these up, wherever they stand; `force` even where other clients want them.
    Cancel {
        /// The tasks.
        keys: Vec<Key>,
        /// Whether other clients' interest counts for nothing.
        force: bool,
    },
    /// Run these even if nobody holds a future of them any more.
    FireAndForget(Vec<Key>),
    /// The client has put data on workers: results without a task.
    Scattered(Vec<Scattered>),
    /// A worker the client was sent to did not give the result.
    Missing {
        /// The result.
        id: TaskId,
        /// Who did not give it.
        worker: WorkerId,
    },
    /// A question; the answer bears the same number.
    Ask {
        /// Chosen by the client.
        id: u64,
        /// What it wants to know or have done.
        query: Query,
    },
    /// The client is alive; answered by [`ToClient::Alive`].
    Alive,
}

impl FromClient {
    /// Whether it asks for what the scheduler knows and leaves all as it is.
    pub(crate) fn only_looks(&self) -> bool {
        let Self::Ask { query, .. } = self else { return matches!(self, Self::Alive) };
        matches!(
            query,
            Query::WhoHas(_) | Query::HasWhat | Query::SchedulerInfo | Query::Story(_) | Query::Explain(_)
        )
    }
}

impl Query {
    /// Whether answering it changes what the scheduler knows of tasks, so that the state machine does.
    pub(crate) fn is_for_the_machine(&self) -> bool {
        matches!(self, Self::Reserve(_) | Self::Limit { .. } | Self::Replicate { .. } | Self::Rebalance)
    }
}

/// Data that a client put on a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scattered {
    /// Its name.
    pub key: Key,
    /// The id under which the worker holds it, from [`Answer::Reserved`].
    pub id: TaskId,
    /// Bytes in memory.
    pub nbytes: u64,
    /// Who holds it.
    pub workers: Vec<WorkerId>,
}

/// What a client may ask the scheduler.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Query {
    /// Ids for data about to be scattered. The scheduler holds each, wanted by this client and
    /// held by nobody, until [`FromClient::Scattered`] or a release.
    Reserve(Vec<Key>),
    /// Which workers hold these results; all results where empty.
    WhoHas(Vec<Key>),
    /// Which results each worker holds.
    HasWhat,
    /// The state of the cluster.
    SchedulerInfo,
    /// What happened to a task.
    Story(Key),
    /// Why these tasks are where they are; why tasks do not run where empty.
    Explain(Vec<Key>),
    /// Let at most so many tasks of a name run at once; any number for `None`.
    Limit {
        /// A function's name, or the end of its path; or the name given to tasks.
        name: String,
        /// How many.
        most: Option<u32>,
    },
    /// Have these results held by several workers. Answered once they are.
    Replicate {
        /// The results; those that are not in memory are left out.
        keys: Vec<Key>,
        /// By how many workers at least; by all for `None`.
        count: Option<u32>,
        /// Names, addresses or hosts of those that count; all where empty.
        workers: Vec<String>,
    },
    /// Move results to where fewer bytes are held. Answered once that is done.
    Rebalance,
    /// Run a function on workers, outside of the task graph; on all of them where `workers` is empty.
    Run {
        /// The function.
        entry: EntryRef,
        /// Its arguments.
        arguments: Arguments,
        /// Names or addresses.
        workers: Vec<String>,
    },
    /// Run a function in the scheduler's process.
    RunOnScheduler {
        /// The function.
        entry: EntryRef,
        /// Its arguments.
        arguments: Arguments,
    },
    /// Let workers leave, after what they hold has moved to others. Answered once they are gone.
    Retire {
        /// Names or addresses.
        workers: Vec<String>,
    },
    /// End the whole cluster.
    Shutdown {
        /// Why, if there is more to say than that somebody wanted it.
        reason: Option<String>,
    },
}

/// What the scheduler answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Query::Reserve`], in its order.
    Reserved(Vec<TaskId>),
    /// To [`Query::WhoHas`].
    WhoHas(Vec<(Key, Vec<Arc<str>>)>),
    /// To [`Query::HasWhat`].
    HasWhat(Vec<(Arc<str>, Vec<Key>)>),
    /// To [`Query::SchedulerInfo`].
    SchedulerInfo(SchedulerInfo),
    /// To [`Query::Story`].
    Story(Vec<StoryEvent>),
    /// To [`Query::Explain`].
    Explained(Vec<Explanation>),
    /// To [`Query::Replicate`] and [`Query::Rebalance`]: the results that could not be sent, and why.
    Copied(Vec<(Key, TaskError)>),
    /// To [`Query::Run`]: by worker address.
    Ran(Vec<(Arc<str>, Result<Value, TaskError>)>),
    /// To [`Query::RunOnScheduler`].
    RanOnScheduler(Result<Value, TaskError>),
    /// To [`Query::Retire`]: the addresses of those that left.
    Retired(Vec<Arc<str>>),
    /// Done.
    Done,
}

/// The cluster as the scheduler sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SchedulerInfo {
    /// Where the scheduler listens.
    pub address: String,
    /// The workers, in order of arrival.
    pub workers: Vec<WorkerStatus>,
    /// Number of tasks in each state that has any.
    pub tasks: Vec<(String, u64)>,
    /// Number of connected clients.
    pub clients: u32,
    /// Tasks that run, or could if there were a worker for them.
    pub runnable: u64,
    /// Seconds that these are expected to take one thread.
    pub work: f64,
}

/// A worker as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub id: WorkerId,
    /// What it said of itself.
    pub info: WorkerInfo,
    /// Tasks assigned to it and not finished.
    pub processing: u32,
    /// Results it holds.
    pub in_memory: u64,
    /// Bytes of these results.
    pub nbytes: u64,
    /// Seconds of work expected to be waiting there.
    pub occupancy: f64,
    /// What it last said of itself.
    pub metrics: Metrics,
    /// Seconds until it will leave by itself, where it knows.
    pub remaining: Option<f64>,
    /// Whether it is leaving: it gets nothing new, and what it holds moves to others.
    pub retiring: bool,
    /// Whether its memory is short: it gets nothing new until it has room again.
    pub paused: bool,
}

/// Why a task is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The task.
    pub key: Key,
    /// The function it calls; empty where the scheduler does not know it.
    pub function: Arc<str>,
    /// The state it is in.
    pub state: String,
    /// Why, a sentence each.
    pub why: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is {}.", self.function, self.key, self.state)?;
        self.why.iter().try_for_each(|sentence| write!(f, " {sentence}"))
    }
}

/// One step in the story of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoryEvent {
    /// Nanoseconds since the scheduler started.
    pub at: u64,
    /// Number of the stimulus that caused it.
    pub stimulus: u64,
    /// The state before.
    pub start: String,
    /// The state after.
    pub finish: String,
    /// The worker concerned, if one is.
    pub worker: Option<WorkerId>,
}

/// From the scheduler to a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToClient {
    /// A wanted result is in memory.
    InMemory {
        /// Its name.
        key: Key,
        /// The id under which workers hold it.
        id: TaskId,
        /// Bytes in memory.
        nbytes: u64,
        /// Who holds it.
        worker: WorkerId,
        /// The result itself, where it is small.
        value: Option<Value>,
    },
    /// Where a worker that results are on is reached. Comes before the first `InMemory` that names it.
    Worker {
        /// Its number.
        worker: WorkerId,
        /// Its address.
        address: Arc<str>,
    },
    /// A worker that is gone.
    WorkerGone(WorkerId),
    /// A wanted task failed for good.
    Erred {
        /// The task.
        key: Key,
        /// Why.
        error: TaskError,
    },
    /// A result that was in memory is not any more; it is being computed again.
    Lost(Key),
    /// A wanted task was cancelled, by this client or another.
    Cancelled(Key),
    /// The answer to [`FromClient::Ask`] of that number.
    Answer {
        /// The question's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// The client is taken in under this number.
    Welcome {
        /// Its number.
        client: ClientId,
    },
    /// So many of the client's numbered messages are in the journal; `None` where there is none any more.
    Noted(Option<u64>),
    /// The scheduler was restored and knows the client: what follows is what it has not received.
    Resumed {
        /// As in [`ToClient::Noted`].
        noted: u64,
    },
    /// The scheduler is alive.
    Alive,
    /// The scheduler ends; nothing more will come.
    Closing {
        /// Why.
        reason: String,
    },
}

/// A dependency as told to the worker that needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dependency {
    /// The result.
    pub id: TaskId,
    /// Bytes in memory.
    pub nbytes: u64,
    /// Who holds it; nobody yet while it is being computed, and who does is told by [`ToWorker::WhoHas`].
    pub who_has: SmallVec<[WorkerId; 2]>,
}

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
    Compute(ComputeTask),
    /// These are needed no more: forget results, give up tasks.
    Free(Vec<TaskId>),
    /// Fetch copies of these.
    Acquire(Vec<Dependency>),
    /// Who holds these now. Answers [`FromWorker::Missing`], or tells of dependencies that were named without a
    /// holder since they were still to be computed.
    WhoHas(Vec<Dependency>),
    /// Send this result, small as it may be, to a peer that waits for it, as soon as it is there: by
    /// [`FromPeer::Forward`].
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
        /// Its address.
        address: Arc<str>,
    },
    /// A peer that is gone.
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
    /// Copies of results that this worker fetched.
    Added(Vec<TaskId>),
    /// Who has this? Answered by [`ToWorker::WhoHas`], unless what it is needed for is taken back.
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
    /// another process shares with it and accounts for. What is beyond `managed` is unmanaged: the program's own.
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

/// From a peer (client or worker) to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromPeer {
    /// Send these results; answered by one [`ToPeer::Data`] of the same number.
    Get {
        /// Chosen by the asker.
        request: u64,
        /// The results.
        ids: Vec<TaskId>,
    },
    /// Keep this data; answered by [`ToPeer::Stored`].
    Put {
        /// Chosen by the asker.
        request: u64,
        /// The data.
        data: Vec<(TaskId, Value)>,
    },
    /// Results that tasks of the receiver wait for. Not answered.
    Forward(Vec<(TaskId, Value)>),
}

/// From a worker to a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToPeer {
    /// Answers [`FromPeer::Get`], in its order; `None` for what this worker does not hold.
    Data {
        /// The request's number.
        request: u64,
        /// The results, or why one cannot be sent.
        data: Vec<Option<Result<Value, TaskError>>>,
    },
    /// Answers [`FromPeer::Put`].
    Stored {
        /// The request's number.
        request: u64,
        /// Bytes of each value in memory, in the order put.
        nbytes: Vec<u64>,
    },
}
