//! Task Bench for Rankine.
//!
//! Task Bench (Slaughter et al., "Task Bench: A Parameterized Benchmark for Evaluating Parallel Runtime
//! Performance", SC 2020) asks a runtime for graphs of one shape after the other: in each of some steps there is a row
//! of tasks, and a [`Pattern`] says which tasks of the row before each one needs. What a task does is a [`Kernel`];
//! every task checks that what it was given is what its pattern asks for. By making the tasks ever shorter one
//! finds the *minimum effective task granularity* ([`metg`]): how short tasks may be for half of the time to
//! be spent on useful work.
//!
//! Start with [`Graph`] and [`run`]. Everything goes through what a user of Rankine has, `Client::options` and futures,
//! but for [`ByHand`], which runs graphs without Rankine.

mod by_hand;
mod graph;
mod kernel;
pub mod metg;
mod options;
mod pattern;
mod place;
mod plot;
mod report;
mod run;

pub use by_hand::ByHand;
pub use graph::{Call, Graph, WrongInput, point};
pub use kernel::{Kernel, Work};
pub use options::{GraphOptions, Options, Transport};
pub use pattern::{Columns, Pattern, Shape};
pub use place::Place;
pub use plot::plot;
pub use report::Report;
pub use run::{Run, run};

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user asks for what there is not.
    #[error("{0}")]
    Usage(String),
    /// The cluster did not do what it was asked for.
    #[error("the graph did not run: {0}")]
    Rankine(#[from] rankine::Error),
    /// The last row is not what it should be.
    #[error("a result is wrong: {0}")]
    Wrong(#[from] WrongInput),
    /// A file cannot be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A run by hand failed: there are no threads or sockets, or one of them ended early.
    #[error("the graph did not run by hand: {0}")]
    ByHand(std::io::Error),
    /// A plot cannot be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}
