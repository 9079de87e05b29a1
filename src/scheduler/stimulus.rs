//! What can happen to the scheduler, and what it then wants done.

use serde::{Deserialize, Serialize};

use crate::protocol::{ClientId, FromClient, FromWorker, ToClient, ToWorker, WorkerId};

/// What can happen to the scheduler.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Stimulus {
    /// A worker is gone.
    RemoveWorker {
        /// Which.
        worker: WorkerId,
        /// Whether it said so before: then its end is not the fault of what it ran.
        expected: bool,
    },
    /// A client is gone: nobody wants what only it wanted.
    RemoveClient(ClientId),
    /// A client says something.
    Client(ClientId, FromClient),
    /// A worker says something.
    Worker(WorkerId, FromWorker),
    /// A worker is to leave, once others hold what it holds.
    Retire(WorkerId),
    /// Time passes: workers that were silent for too long are taken for dead.
    Tick,
}

/// What the scheduler wants done.
#[derive(Debug, Clone)]
pub enum Instruction {
    /// Tell a worker.
    ToWorker(WorkerId, ToWorker),
    /// Tell a worker where a peer is reached: see [`State::introduction`](super::State::introduction).
    Introduce(WorkerId, WorkerId),
    /// Tell a client.
    ToClient(ClientId, ToClient),
    /// A worker was silent for too long: cut its link.
    Drop(WorkerId),
}
