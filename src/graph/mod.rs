//! Keys and task graphs: what is to be computed, before anything knows where.
//!
//! Nothing here does I/O or knows a worker. Start with [`Key`], then [`Graph`].

mod arguments;
mod key;
mod order;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use arguments::Arguments;
pub use key::{Key, KeyMap, KeySet};
pub(crate) use order::{Lists, Order, order};

use crate::task::EntryRef;

/// Tasks submitted together, in one message.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Graph {
    /// The functions that the tasks call.
    pub functions: Vec<Function>,
    /// The options of the tasks. May be empty: a task whose index lies beyond has the default ones.
    pub options: Vec<TaskOptions>,
    /// The tasks, in the order in which they should run where nothing else decides.
    pub tasks: Vec<GraphTask>,
}

impl Graph {
    /// For each task its place in the order in which they should run where nothing else decides: every task comes
    /// after those that it depends on, and results go soon.
    pub fn order(&self) -> Vec<u32> {
        let places: KeyMap<Key, u32> =
            self.tasks.iter().zip(0..).map(|(task, place)| (task.key, place)).collect();
        let mut links = Lists::new(self.tasks.len());
        for (number, task) in self.tasks.iter().enumerate() {
            task.dependencies.iter().filter_map(|key| places.get(key)).for_each(|place| links.add(*place));
            links.end(number);
        }
        order(links).places
    }
}

/// A function named by where its code lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Where its entry lies in the executable.
    pub entry: EntryRef,
    /// `std::any::type_name` of the function, for people.
    pub name: Arc<str>,
}

/// One call of a function.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GraphTask {
    /// The task's and its result's name.
    pub key: Key,
    /// Index into [`Graph::functions`].
    pub function: u32,
    /// Index into [`Graph::options`].
    pub options: u32,
    /// The keys of the results it needs, each once; arguments refer to them by index.
    pub dependencies: SmallVec<[Key; 2]>,
    /// The encoded arguments.
    pub arguments: Arguments,
}

/// What a user may say of a task besides its function and arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskOptions {
    /// Higher runs first. 0 unless said otherwise.
    pub priority: i32,
    /// How often the task is tried again after it failed.
    pub retries: u32,
    /// Workers (by name or address) that may run it; empty for any.
    pub workers: Vec<String>,
    /// Whether others may run it when none of `workers` is there.
    pub allow_other_workers: bool,
    /// How much of each abstract resource it holds while it runs.
    pub resources: Vec<(String, f64)>,
    /// What the user called the task, if he did.
    pub name: Option<String>,
    /// Whether equal calls share one key: whoever makes the key goes by it, the scheduler does not.
    pub pure: bool,
}

impl TaskOptions {
    /// Whether not every worker may run the task.
    pub(crate) fn restrict(&self) -> bool {
        !self.workers.is_empty() || !self.resources.is_empty()
    }
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            priority: 0,
            retries: 0,
            workers: Vec::new(),
            allow_other_workers: false,
            resources: Vec::new(),
            name: None,
            pure: true,
        }
    }
}
