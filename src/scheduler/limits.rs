//! Limits: how many tasks of a name run at once in the whole cluster, say those that ask one database.
//!
//! A name is that of a function, or the one that a user gave tasks. A task counts from its assignment until its
//! worker is rid of it; those beyond the limit are queued, each limit's by themselves.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use super::{
    TaskState,
    state::State,
    task::{Task, TaskRef},
};
use crate::protocol::Priority;

/// All limits that are set.
#[derive(Default)]
pub(super) struct Limits {
    by_name: BTreeMap<Arc<str>, Limit>,
    /// Whose limit each function, and each set of options, is under.
    functions: Vec<Option<Arc<str>>>,
    options: Vec<Option<Arc<str>>>,
}

#[derive(Default)]
struct Limit {
    most: u32,
    assigned: u32,
    /// Some may not wait any more.
    waiting: BinaryHeap<Reverse<(Priority, TaskRef)>>,
}

/// Whether a function, named with its path and types, is meant by what a user calls it.
fn is_called(function: &str, name: &str) -> bool {
    let path = function.split('<').next().unwrap_or(function);
    function == name || path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"))
}

impl State {
    /// Lets at most so many tasks of a name run at once; any number for `None`.
    pub(super) fn on_limit(&mut self, name: &str, most: Option<u32>) {
        let waiting = match most {
            Some(most) => {
                self.limits.by_name.entry(name.into()).or_default().most = most;
                Vec::new()
            }
            None => {
                self.limits.by_name.remove(name).map(|limit| limit.waiting.into_vec()).unwrap_or_default()
            }
        };
        self.queued.forget_heights();
        self.limits.functions.clear();
        self.limits.options.clear();
        self.know_limits();
        // Those that are assigned already count too.
        self.limits.by_name.values_mut().for_each(|limit| limit.assigned = 0);
        let limited = self.tasks.iter().filter(|task| task.state == TaskState::Processing);
        let limited: Vec<Arc<str>> = limited.filter_map(|task| self.limits.name_of(task).cloned()).collect();
        for name in limited {
            if let Some(limit) = self.limits.by_name.get_mut(&name) {
                limit.assigned += 1;
            }
        }
        for Reverse((_, task)) in waiting {
            self.recommend(task, TaskState::Processing);
        }
        let names: Vec<Arc<str>> = self.limits.by_name.keys().cloned().collect();
        names.iter().for_each(|name| self.let_in(name));
    }

    /// Finds out about functions and options that came since.
    pub(super) fn know_limits(&mut self) {
        if self.limits.by_name.is_empty() {
            return;
        }
        let Self { limits: Limits { by_name, functions, options, .. }, .. } = self;
        for function in &self.functions[functions.len()..] {
            functions.push(by_name.keys().find(|name| is_called(&function.name, name)).cloned());
        }
        for option in &self.options[options.len()..] {
            let name = option.name.as_deref();
            options.push(by_name.keys().find(|limited| Some(&***limited) == name).cloned());
        }
    }

    /// Whether a task has to wait until others of its name are done. Then it is noted as waiting.
    pub(super) fn has_to_wait(&mut self, id: TaskRef) -> bool {
        let Some(task) = self.task(id) else { return false };
        let (name, priority) = (self.limits.name_of(task).cloned(), task.cold.priority);
        let Some(limit) = name.and_then(|name| self.limits.by_name.get_mut(&name)) else { return false };
        let waits = limit.assigned >= limit.most;
        if waits {
            limit.waiting.push(Reverse((priority, id)));
        }
        waits
    }

    /// A task was assigned.
    pub(super) fn count_in(&mut self, id: TaskRef) {
        let name = self.task(id).and_then(|task| self.limits.name_of(task).cloned());
        if let Some(limit) = name.and_then(|name| self.limits.by_name.get_mut(&name)) {
            limit.assigned += 1;
        }
    }

    /// A task is assigned no more: another may be.
    pub(super) fn count_out(&mut self, id: TaskRef) {
        let Some(name) = self.task(id).and_then(|task| self.limits.name_of(task).cloned()) else { return };
        if let Some(limit) = self.limits.by_name.get_mut(&name) {
            limit.assigned -= 1;
            self.let_in(&name);
        }
    }

    fn let_in(&mut self, name: &str) {
        let Some(limit) = self.limits.by_name.get_mut(name) else { return };
        let mut room = limit.most.saturating_sub(limit.assigned);
        let mut let_in = Vec::new();
        while room > 0
            && let Some(Reverse((_, task))) = limit.waiting.pop()
        {
            // One that is about to be released would be assigned for nothing.
            if self.tasks.get(task).is_some_and(|task| task.state == TaskState::Queued && task.needed()) {
                let_in.push(task);
                room -= 1;
            }
        }
        for task in let_in {
            self.recommend(task, TaskState::Processing);
        }
    }

    /// The limit that keeps a task from being assigned, if one does: its name and how many it lets run.
    pub(super) fn limited_by(&self, task: Task<'_>) -> Option<(&str, u32)> {
        let name = self.limits.name_of(task)?;
        let limit = self.limits.by_name.get(name).filter(|limit| limit.assigned >= limit.most)?;
        Some((name, limit.most))
    }

    /// Checks that those assigned are counted.
    ///
    /// # Panics
    /// If they are not.
    pub(super) fn validate_limits(&self) {
        for (name, limit) in &self.limits.by_name {
            let mine = |task: &Task<'_>| self.limits.name_of(*task) == Some(name);
            let assigned = self.tasks.iter().filter(|task| task.state == TaskState::Processing).filter(mine);
            assert_eq!(assigned.count() as u32, limit.assigned, "tasks assigned under the limit {name}");
        }
    }
}

impl Limits {
    pub(super) fn are_set(&self) -> bool {
        !self.by_name.is_empty()
    }

    /// The name whose limit a task is under. What the user calls the task goes before its function.
    fn name_of(&self, task: Task<'_>) -> Option<&Arc<str>> {
        let named = |of: &[Option<Arc<str>>], number: u32| -> Option<usize> {
            let number = number as usize;
            of.get(number)?.is_some().then_some(number)
        };
        match named(&self.options, task.cold.options) {
            Some(number) => self.options[number].as_ref(),
            None => self.functions.get(task.cold.function as usize)?.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_called;

    #[test]
    fn a_function_is_called_by_its_path_or_the_end_of_it() {
        for name in ["load", "io::load", "prog::io::load"] {
            assert!(is_called("prog::io::load", name), "{name}");
            assert!(is_called("prog::io::load<f64>", name), "{name}");
        }
        for name in ["oad", "prog", "prog::io", "other::load", ""] {
            assert!(!is_called("prog::io::load", name), "{name}");
        }
        assert!(is_called("prog::main::{{closure}}", "prog::main::{{closure}}"));
    }
}
