#![doc = include_str!("../README.md")]

pub mod adaptive;
mod error;
mod job;
mod log;
mod partition;
mod queue;
mod script;
mod slurm;
mod state;
mod values;

pub use error::{Error, Invalid, Result};
pub use job::{Job, Launcher, Pmi};
pub use log::Log;
pub use partition::{Nodes, Partition};
pub use queue::{Queued, Record};
pub use script::Script;
pub use slurm::Slurm;
pub use state::{JobState, Reason};
pub use values::{Array, Dependency, Directive, JobId, Memory, Name, Output, TimeLimit, Variable, Word};
