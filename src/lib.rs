//! Rankine.
mod error;
pub mod graph;
pub mod protocol;
pub mod serialize;
pub mod task;
pub use error::{Error, Result};
