//! The scheduler and the workers in virtual time.
//!
//! The real state machines ([`rankine::scheduler::State`], [`rankine::worker::State`]) exchange the real messages,
//! over a [`Network`] that is computed, about [`Problem`]s whose tasks take as long as is drawn from a seed. So ten
//! thousand workers run in one thread, and the same seed gives the same run, event by event: what a policy is worth
//! is a figure that repeats, and a failure is a seed. Nothing here waits, and no clock is read but to time the
//! scheduler itself, when it hears all that it heard once more ([`replay`]).
//!
//! Start with [`Simulation`]; [`Dask`] is the scheduler that Rankine's is compared with.

mod client;
mod dask;
mod disk;
mod events;
mod network;
mod node;
mod policy;
mod problem;
mod recording;
mod setting;
mod simulation;

pub use dask::Dask;
pub use network::Network;
pub use policy::Policy;
pub use problem::{Family, Problem, Sizes, Task};
pub use recording::{Recording, replay};
pub use setting::{Fault, Request, Setting};
pub use simulation::{Outcome, Run, Simulation};

/// Why a simulation did not come to a good end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asks for what there is not.
    #[error("{0}")]
    Usage(String),
    /// Nothing happens any more, and a client still waits.
    #[error(
        "after {seconds:.6} s nothing happens any more, and {missing} results are missing, one of task {task}"
    )]
    Stuck {
        /// Virtual seconds.
        seconds: f64,
        /// Results that clients wait for.
        missing: usize,
        /// The task of one of them.
        task: u32,
    },
    /// Far more time went by than all tasks take.
    #[error("after {seconds:.0} s there is no end yet")]
    Endless {
        /// Virtual seconds.
        seconds: f64,
    },
    /// A result is not what a sequential run gives.
    #[error("task {task} should give {expected:#x}, and gave {found}")]
    Wrong {
        /// The task.
        task: u32,
        /// What it should give.
        expected: u64,
        /// What it gave.
        found: String,
    },
    /// What a scheduler hears cannot be kept, or be heard once more.
    #[error("cannot measure the scheduler alone: {0}")]
    Recording(#[from] std::io::Error),
    /// Something is kept that nobody wants.
    #[error("nobody wants anything, and {0}")]
    Left(String),
}
