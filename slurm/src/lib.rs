//! Programs as jobs under Slurm: batch scripts that are right, what became of the jobs, and how many of them a load
//! wants.
//!
//! ```
//! use rankine_slurm::{Job, Launcher, Script, TimeLimit};
//!
//! let mut job = Job::new("./anomaly");
//! job.arguments = vec!["input.npy".into()];
//! job.nodes = 4.try_into()?;
//! job.time = Some("1-12:30".parse()?);
//! job.launcher = Launcher::FaultTolerant;
//! let script = Script::new(&job)?;
//! assert!(script.as_str().contains("#SBATCH --time=1-12:30:00"));
//!
//! // Slurm would take this for a day, two hours and more.
//! let refusal = "25:99:99".parse::<TimeLimit>().unwrap_err();
//! assert!(refusal.to_string().contains("HH:MM:SS"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Slurm::check`] asks whether a partition could ever run a job, [`Slurm::submit`] gives its number, and
//! [`Slurm::job`], [`Slurm::record`], [`Slurm::log`] and [`Slurm::cancel`] go on from there. [`adaptive`] decides how
//! many jobs a load wants. This crate knows nothing of the rest of Rankine; its README leads from nothing to a job.

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
mod words;

pub use error::{Error, Invalid, Result};
pub use job::{Job, Launcher, Pmi};
pub use log::Log;
pub use partition::{Nodes, Partition};
pub use queue::{Queued, Record};
pub use script::Script;
pub use slurm::Slurm;
pub use state::{JobState, Reason};
pub use values::{Array, Dependency, JobId, Memory, TimeLimit};
pub use words::{Directive, Name, Output, Variable, Word};
