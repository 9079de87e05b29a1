//! The one error of the crate.

use std::io;

use crate::{graph::Key, task::TaskError};

/// What can go wrong: what was attempted, on what, and what to do.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The task, or one it depends on, has no result.
    #[error("{0}")]
    Task(TaskError),
    /// The future was cancelled.
    #[error("task {key} was cancelled")]
    Cancelled {
        /// The task.
        key: Key,
    },
    /// The connection to the scheduler is gone.
    #[error("the cluster is gone: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
    /// A connection could not be made or broke.
    #[error(transparent)]
    Transport(#[from] rankine_transport::Error),
    /// A message could not be written or read.
    #[error("cannot read what {peer} sent: {source}")]
    Message {
        /// Who sent it.
        peer: String,
        /// What was wrong.
        source: crate::serialize::Error,
    },
    /// The peer is not of this cluster or speaks another version.
    #[error("{peer} was refused: {reason}")]
    Refused {
        /// The peer.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A file or process could not be dealt with.
    #[error("cannot {attempt}: {source}")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Slurm could not be dealt with, or a job is not right.
    #[error(transparent)]
    Slurm(#[from] rankine_slurm::Error),
    /// A worker ended before the system would have ended it.
    #[error(
        "this worker ends, since its memory runs out: its process occupies {resident} bytes, {managed} of them \
         results, and its limit is {limit}; what it ran runs elsewhere. Give workers more memory or fewer threads, or \
         make the tasks smaller"
    )]
    Memory {
        /// Bytes that the process occupies.
        resident: u64,
        /// Of these, the bytes of results.
        managed: u64,
        /// Bytes that it may occupy.
        limit: u64,
    },
    /// An option, address or file of the user's is not right.
    #[error("{0}")]
    Usage(String),
}

// A `main` that returns an error shows its `Debug`: people read that.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(error) => write!(f, "{error:?}"),
            other => write!(f, "{other}"),
        }
    }
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        Self::Task(error)
    }
}

impl Error {
    pub(crate) fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { attempt: attempt.into(), source }
    }

    pub(crate) fn closed(reason: impl Into<String>) -> Self {
        Self::Closed { reason: reason.into() }
    }
}

/// A result of Rankine's.
pub type Result<T, E = Error> = std::result::Result<T, E>;
