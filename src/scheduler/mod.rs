//! The scheduler: a pure state machine, and the server around it.
//!
//! [`State`] decides, without a clock or a socket: stimuli in, instructions out. `reactor` lists all
//! that can happen to it, `transitions` is the table of a task's states, `placement` chooses workers, `assigning` gives
//! them tasks, those first that `critical` says are, and `following` has short tasks assigned before what they depend on is in
//! memory.
//!
//! ```text
//!              wanted or needed              dependencies in memory
//!  released ---------------------> waiting -------------------------> processing --> memory
//!     ^  |                            |                                ^  ^   |         |
//!     |  v  nobody refers to it       |   no worker may run it         |  |   |         |
//!     |  forgotten                    +------> no-worker --------------+  |   v         |
//!     |                               |   all workers have enough to do   |  erred      |
//!     |                               +------> queued --------------------+             |
//!     +------------------ needed no more; or lost, and waiting again -------------------+
//! ```

mod arena;
mod assigning;
mod bit_set;
mod copies;
mod critical;
mod cycles;
mod edges;
mod eight;
mod explain;
mod following;
mod freeing;
mod holdings;
mod hot;
mod index;
mod invariants;
pub(crate) mod journal;
mod lately;
mod limits;
mod links;
mod pausing;
mod placement;
mod places;
mod pool;
mod prefetch;
mod queue;
mod reactor;
mod recall;
pub(crate) mod restoring;
mod retiring;
pub(crate) mod server;
mod short;
mod state;
mod stealing;
mod stimulus;
mod story;
mod submit;
mod task;
mod task_list;
#[cfg(test)]
mod tests;
mod transitions;

pub use state::{Config, State};
pub use stimulus::{Instruction, Stimulus};
pub use task::TaskState;
