//! What clients and the scheduler say to each other.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{ClientId, Contact, Metrics, TaskId, WorkerId, WorkerInfo};
use crate::{
    graph::{Arguments, Graph, Key},
    task::{EntryRef, TaskError, Value},
};

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
    /// Seconds of work expected to be waiting there, and of gaps in which it waits for what others compute.
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
        /// Its addresses.
        address: Contact,
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
        /// The answer: of the messages that are many none is as big.
        answer: Box<Answer>,
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
