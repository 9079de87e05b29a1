//! What went wrong in a task, as it travels to whoever awaits its result.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a task has no result. Cheap to clone: dependents err with the same cause.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskError(Arc<Report>);

/// The report inside a [`TaskError`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What kind of failure it was.
    pub kind: FailureKind,
    /// The message of the panic or the error.
    pub message: String,
    /// The messages of the error's sources, outermost first.
    pub chain: Vec<String>,
    /// The function.
    pub function: String,
    /// The key of the task that failed first.
    pub key: String,
    /// The worker it ran on.
    pub worker: String,
    /// Of a panic, `file:line:column`.
    pub location: Option<String>,
    /// Of a panic, the stack.
    pub backtrace: Option<String>,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// The function panicked.
    Panicked,
    /// The function returned `Err`.
    Failed,
    /// Too many workers died while they ran it.
    KilledWorkers,
    /// The function, its arguments or its result could not be read or sent.
    Refused,
    /// Data that nothing can compute again (it was scattered) went with the worker that held it.
    DataLost,
    /// The result found no place: the worker's memory is full, and its disk does not take what should make room.
    OutOfMemory,
}

impl TaskError {
    /// A failure of `kind`; where it happened is added by who knows.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Report {
            kind,
            message: message.into(),
            chain: Vec::new(),
            function: String::new(),
            key: String::new(),
            worker: String::new(),
            location: None,
            backtrace: None,
        }))
    }

    /// Something that could not be read or sent.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Refused, message)
    }

    /// The error a function returned, with its sources.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = Vec::new();
        let mut source = error.source();
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        Self::new(FailureKind::Failed, error.to_string()).with(|report| report.chain = chain)
    }

    /// The same with some of the report filled in.
    pub fn with(mut self, fill: impl FnOnce(&mut Report)) -> Self {
        fill(Arc::make_mut(&mut self.0));
        self
    }
}

impl std::ops::Deref for TaskError {
    type Target = Report;

    fn deref(&self) -> &Report {
        &self.0
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = if self.function.is_empty() { "a task" } else { &self.function };
        match self.kind {
            FailureKind::Panicked => write!(f, "{function} panicked: {}", self.message)?,
            FailureKind::Failed => write!(f, "{function} failed: {}", self.message)?,
            _ => write!(f, "{function} has no result: {}", self.message)?,
        }
        for source in &self.chain {
            write!(f, ": {source}")?;
        }
        if let Some(location) = &self.location {
            write!(f, " (at {location})")?;
        }
        if !self.worker.is_empty() {
            write!(f, " [task {} on {}]", self.key, self.worker)?;
        }
        Ok(())
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.backtrace {
            Some(backtrace) => write!(f, "\n{backtrace}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for TaskError {}
