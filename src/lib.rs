//! Rankine.
pub mod graph;
pub mod protocol;
pub mod serialize;
pub mod task;
