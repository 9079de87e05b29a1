//! Running a task's function: panics become errors.

use std::{
    any::Any,
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use super::{ArgDecoder, EntryRef, FailureKind, TaskError, Value};
use crate::graph::Arguments;

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Calls the function at `entry`. A panic is caught, with its message, place and stack.
///
/// # Errors
/// If the entry or the arguments are refused, the function returned an error, or it panicked.
pub fn run(entry: EntryRef, arguments: &Arguments, dependencies: Vec<Value>) -> Result<Value, TaskError> {
    install_hook();
    let resolved = entry.resolve()?;
    let mut decoder = ArgDecoder::new(arguments, dependencies);
    IN_TASK.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| resolved.call(&mut decoder)));
    IN_TASK.set(false);
    let result = outcome.unwrap_or_else(|payload| {
        let (location, backtrace) = PANIC.take().unzip();
        Err(TaskError::new(FailureKind::Panicked, message(&*payload)).with(|report| {
            report.location = location;
            report.backtrace = backtrace;
        }))
    });
    result.map_err(|error| {
        if error.function.is_empty() {
            error.with(|report| report.function = resolved.name().to_owned())
        } else {
            error
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not a string".to_owned())
}

/// A panic inside a task is kept for its report instead of being printed; any other goes to the
/// hook that was there before.
fn install_hook() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IN_TASK.get() {
                let location = info.location().map(ToString::to_string).unwrap_or_default();
                PANIC.set(Some((location, Backtrace::force_capture().to_string())));
            } else {
                previous(info);
            }
        }));
    });
}
