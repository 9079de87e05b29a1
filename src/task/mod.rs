//! Functions that travel: entries, arguments, outputs.
//!
//! All ranks run the same executable, so a task is a function named by where its code lies (as in
//! UPC++): nothing is registered. Start with [`TaskFn`] (what can be a task) and [`IntoArg`] (what
//! can be passed); `entry` says how a function is named and checked, `value` how results are held.
//! Nothing here knows of workers or schedulers.

mod argument;
mod entry;
mod error;
mod function;
mod modules;
mod run;
mod value;

pub use argument::{
    ArgDecoder, ArgEncoder, ByFuture, ByFutures, ByShared, ByShareds, ByValue, IntoArg, ReadArg,
};
pub(crate) use argument::{Kept, write_many};
pub use entry::{EntryRef, TaskEntry};
pub use error::{FailureKind, Report, TaskError};
pub(crate) use function::entry_of;
pub use function::{Entry, Fallible, HasEntry, IntoArgs, IntoTaskError, Plain, ReadArgs, TaskFn, TaskOutput};
pub use modules::build_id;
pub use run::run;
pub use value::{Data, Object, Serialized, Value, type_hash};
