//! Functions that travel: entries, arguments, outputs.
//!
//! All ranks run the same executable, so a task is a function named by where its code lies.

mod error;
mod value;
mod entry;

pub use entry::EntryRef;
pub use error::{FailureKind, Report, TaskError};
pub use value::{Data, Serialized, Value, type_hash};
