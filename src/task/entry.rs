//! Entries.
use serde::{Deserialize, Serialize};

/// Where a task's entry lies: an offset in a module of the executable, and a hash of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryRef {
    /// Hash of the module's file name; 0 for the executable itself.
    pub module: u64,
    /// Bytes from the module's base to the entry.
    pub offset: u64,
    /// Hash of the function's name.
    pub name: u64,
}
