//! Dynamic task graphs over array chunks, from a laptop to a supercomputer: Dask.distributed's idea
//! in Rust.
//!
//! ```
//! use rankine::Client;
//!
//! fn sum(numbers: Vec<i64>) -> i64 {
//!     numbers.iter().sum()
//! }
//!
//! #[rankine::main]
//! async fn main(client: Client) -> rankine::Result<()> {
//!     let squares = client.map(|x: i64| x * x, 0..1000);
//!     let total = client.submit(sum, (squares,));
//!     println!("{}", total.await?);
//!     Ok(())
//! }
//! ```
//!
//! The program runs on a cluster within its process, or as `prog --processes 4`, or as the roles
//! `prog scheduler`, `prog worker` and `prog client` on many machines. Start with [`Client`] and
//! [`LocalCluster`].

// The derive and attribute macros name this crate from outside.
extern crate self as rankine;

mod amounts;
pub mod array;
#[cfg(debug_assertions)]
mod checks;
#[cfg(feature = "cli")]
pub mod cli;
mod client;
mod cluster;
mod error;
pub mod graph;
mod link;
mod map;
mod output;
pub mod protocol;
pub mod scheduler;
pub mod serialize;
pub mod settings;
pub mod task;
pub mod worker;

pub use amounts::parse_bytes;
pub use client::{AsCompleted, Awaited, Client, Options, ReturnWhen, Status, TaskFuture, blocking};
pub use cluster::{Builder, LocalCluster, SchedulerFile, args, init, run, transports};
pub use cluster::{SlurmBuilder, SlurmCluster};
pub use error::{Error, Result};
pub use rankine_macros::main;
pub use rankine_slurm as slurm;
pub use serialize::Local;
pub use settings::Settings;
pub use task::{FailureKind, TaskError};
pub use worker::{secede, worker_name};
