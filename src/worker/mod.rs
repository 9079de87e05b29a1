//! A worker: a pure state machine, and around it the executor, the links to peers, and the server.
//!
//! [`State`] decides, without a clock, a socket or a thread: stimuli in, instructions out. The
//! server (`server`) brings it what arrives and does what it says; the executor runs tasks on
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
//! What is freed while it executes or is in flight is *cancelled* until that ends; what is asked
//! for again meanwhile is *resumed* (in flight) or goes on executing.

mod executor;
mod machine;
pub(crate) mod server;
mod stimulus;

pub use executor::{secede, worker_name};
pub use machine::{Config, State, TaskState};
pub use stimulus::{Execution, Instruction, Stimulus};
