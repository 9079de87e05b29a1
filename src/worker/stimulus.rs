//! What can happen to a worker, and what it then wants done.

use std::sync::Arc;

use crate::{
    protocol::{ComputeTask, Dependency, FromWorker, TaskId, TaskIds, WorkerId},
    task::{TaskError, Value},
};

/// What can happen to a worker.
#[derive(Debug, Clone)]
pub enum Stimulus {
    /// The scheduler assigns a task.
    Compute(Arc<ComputeTask>),
    /// The scheduler needs these no more.
    Free(TaskIds),
    /// The scheduler wants copies of these here.
    Acquire(Vec<Dependency>),
    /// The scheduler says who holds these.
    WhoHas(Vec<Dependency>),
    /// The scheduler says that a peer waits for a result of this worker's.
    Forward {
        /// The result.
        id: TaskId,
        /// The peer.
        to: WorkerId,
    },
    /// A peer forwards what tasks here wait for.
    Forwarded(Vec<(TaskId, Value)>),
    /// A peer is gone.
    PeerGone(WorkerId),
    /// Others are to run these, unless they are started.
    GiveBack(Vec<TaskId>),
    /// The worker is to leave soon: it starts nothing more.
    Retire,
    /// A client put data here.
    Put(Vec<(TaskId, Value)>),
    /// A peer answered a request: `None` for what it does not hold.
    Gathered {
        /// The peer.
        peer: WorkerId,
        /// Its answer.
        data: Vec<(TaskId, Option<Result<Value, TaskError>>)>,
    },
    /// A peer could not be asked, or did not answer.
    GatherFailed {
        /// The peer.
        peer: WorkerId,
        /// What was asked for.
        ids: Vec<TaskId>,
    },
    /// A compute thread is done with a task.
    Executed {
        /// The task.
        id: TaskId,
        /// What came of it.
        result: Result<Value, TaskError>,
        /// Bytes of the result.
        nbytes: u64,
        /// Nanoseconds it took.
        duration: u64,
    },
    /// Compute threads did not run these: a task that was to hand them its result failed.
    Unstarted(Vec<TaskId>),
    /// Reports waited for others long enough.
    Report,
    /// A running task says that it will take its time.
    Seceded(TaskId),
    /// A peer is given these, so they are in use.
    Given(Vec<TaskId>),
    /// So many bytes does the worker's process occupy, as far as they are this worker's. Comes some times a second.
    Memory {
        /// The bytes.
        resident: u64,
    },
    /// Results were written, with the bytes that each takes on disk, or could not be, and nothing is left of the
    /// attempt; answers [`Instruction::Spill`].
    Spilled(Vec<(FileId, Result<u64, SpillError>)>),
    /// A result was read; answers [`Instruction::Unspill`].
    Unspilled {
        /// The result.
        id: TaskId,
        /// Where from.
        file: FileId,
        /// The value.
        value: Value,
        /// Bytes of memory it takes: what is a view of the file takes none.
        occupied: u64,
    },
    /// A result that should be in a file could not be read from it.
    UnspillFailed {
        /// The result.
        id: TaskId,
        /// The file.
        file: FileId,
    },
}

/// A file that holds one result; no number is used twice by a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Why a result could not be written to disk.
#[derive(Debug, Clone, PartialEq)]
pub enum SpillError {
    /// Its type cannot be serialized.
    Value(TaskError),
    /// The disk did not take it: what was attempted, and why it failed.
    Disk(String),
}

/// A task for a compute thread.
#[derive(Debug, Clone)]
pub struct Execution {
    /// The task, as it was assigned.
    pub task: Arc<ComputeTask>,
    /// Its dependencies, in their order.
    pub inputs: Vec<Input>,
    /// It is known to be short and nobody elsewhere waits for it: that it is done may be told with others.
    pub brief: bool,
}

/// What a task for a compute thread needs.
#[derive(Debug, Clone)]
pub enum Input {
    /// Here it is.
    Here(Value),
    /// The compute threads were given the task that makes it before, and have not reported it yet: they hand its
    /// result on themselves.
    Coming(TaskId),
}

impl Input {
    /// The value, if it is here.
    pub fn value(self) -> Option<Value> {
        match self {
            Self::Here(value) => Some(value),
            Self::Coming(_) => None,
        }
    }
}

/// What a worker wants done.
#[derive(Debug, Clone)]
pub enum Instruction {
    /// Give this to the compute threads; answered by [`Stimulus::Executed`], or by [`Stimulus::Unstarted`] where
    /// what it needs does not come.
    Execute(Execution),
    /// Somebody elsewhere waits for this task after all, which is no longer brief.
    Hasten(TaskId),
    /// Send a result to a peer whose tasks wait for it.
    Forward {
        /// The peer.
        peer: WorkerId,
        /// The result.
        id: TaskId,
        /// Its value.
        value: Value,
    },
    /// Ask a peer for results; answered by [`Stimulus::Gathered`] or [`Stimulus::GatherFailed`].
    Gather {
        /// The peer.
        peer: WorkerId,
        /// The results.
        ids: Vec<TaskId>,
    },
    /// Write results to disk, in a file each; answered by [`Stimulus::Spilled`].
    Spill(Vec<(FileId, Value)>),
    /// Read a result from disk; answered by [`Stimulus::Unspilled`] or [`Stimulus::UnspillFailed`].
    Unspill {
        /// The result.
        id: TaskId,
        /// Where it is.
        file: FileId,
    },
    /// A file is needed no more.
    Discard(FileId),
    /// Tell the scheduler.
    Send(FromWorker),
}
