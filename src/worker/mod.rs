//! A worker: a pure state machine, and around it the executor, the links to peers, and the server.
//!
//! [`State`] decides, without a clock, a socket or a thread: stimuli in, instructions out. `reactor`
//! lists all that can happen to it. The server (`server`) brings it what arrives and does what it says; the executor runs tasks on
//! compute threads that never touch a socket. Start reading at [`State::handle`].
//!
//! ```text
//!            Compute                     all here            a thread is free
//! released ----------> waiting ------------------> ready ---------------> executing --> memory
//!    |                    | needs                    \-> constrained -/      |   \
//!    |                    v                              (resources)         |    long-running
//!    |    a dependency:  fetch --> flight --> memory                         v
//!    |                      ^--------'  (its holder failed)              error: reported, released
//! ```
//!
//! What is freed while it executes or is in flight is *cancelled* until that ends; a fetch that is
//! wanted again meanwhile goes on. A task that is to be computed again comes under another id, so
//! nothing here is ever resumed that was given up.
//!
//! A short task may come before what it needs is computed, and be executing before that too: compute threads hand
//! results to the tasks that they were given after those that make them (`running`, `executor`), and workers forward
//! them to peers that wait for them (`forwarding`). The scheduler's `following` says why, and hears of short tasks some at
//! a time (`reporting`).

mod directory;
mod executor;
mod fetching;
mod forwarding;
mod memory;
mod reactor;
mod ready;
mod reporting;
mod resident;
mod running;
pub(crate) mod server;
mod state;
mod stimulus;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use executor::a_thread_is_idle;
pub use executor::{secede, worker_name};
pub use state::{Config, State, TaskState, Thresholds};
pub use stimulus::{Execution, FileId, Input, Instruction, SpillError, Stimulus};
