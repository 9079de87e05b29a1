//! Rankine.
mod error;
pub mod worker;
pub mod graph;
pub mod protocol;
pub mod serialize;
pub mod task;
pub use error::{Error, Result};
