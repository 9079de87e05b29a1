//! What is asked of a worker about the results it holds, and what it says.

use serde::{Deserialize, Serialize};

use super::TaskId;
use crate::task::{TaskError, Value};

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
