//! Why a task is not running, or why it ran where it did.
//!
//! What is so now is read off the state; what a worker was chosen for is remembered beside the latest steps of all tasks
//! ([`super::story`]).

use std::fmt;

use super::{
    TaskState,
    state::{State, Worker},
    task::{SCATTERED, Task},
};
use crate::{
    amounts::Bytes,
    graph::{Key, TaskOptions},
    protocol::{Explanation, WorkerId},
};

/// Tasks that are named where there are many.
const NAMED: usize = 3;
/// Tasks that are told of where none in particular was asked for.
const TOLD: usize = 20;

/// What a worker was given a task for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// It took the task over from another.
    pub(super) stolen: bool,
    /// Nanoseconds of work that waited there for each thread.
    pub(super) wait: u64,
    /// Bytes of the task's dependencies that it held.
    pub(super) held: u64,
    /// Bytes of them that it did not hold.
    pub(super) missing: u64,
}

impl State {
    /// Says of tasks why they are where they are; of those that could not be run yet if none is named.
    pub fn explain(&self, keys: &[Key]) -> Vec<Explanation> {
        if !keys.is_empty() {
            return keys.iter().map(|key| self.explain_one(*key)).collect();
        }
        let rank = |task: Task<'_>| match task.state {
            TaskState::NoWorker => Some(0),
            TaskState::Processing => Some(1),
            TaskState::Queued => Some(2),
            TaskState::Waiting => Some(3),
            _ => None,
        };
        let mut told: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|task| Some((rank(task)?, task.cold.priority, task.cold.key)))
            .collect();
        told.sort_unstable();
        told.into_iter().take(TOLD).map(|(.., key)| self.explain_one(key)).collect()
    }

    fn explain_one(&self, key: Key) -> Explanation {
        let Some(task) = self.tasks.find(key).and_then(|id| self.task(id)) else {
            let why = "The scheduler does not know it: it was never submitted, or nobody wants it any more.";
            return Explanation { key, function: "".into(), state: "unknown".into(), why: vec![why.into()] };
        };
        let function = match self.functions.get(task.cold.function as usize) {
            Some(function) => function.name.clone(),
            None => "scattered data".into(),
        };
        let why = match task.state {
            TaskState::Waiting => self.why_waiting(task),
            TaskState::NoWorker => self.why_no_worker(task),
            TaskState::Queued => self.why_queued(task),
            TaskState::Processing => self.why_processing(task),
            TaskState::Memory => self.why_in_memory(task),
            TaskState::Erred => {
                let error = task.error().map(ToString::to_string).unwrap_or_default();
                vec![format!("It failed: {error}.")]
            }
            TaskState::Released | TaskState::Forgotten => {
                vec!["Nobody needs its result now: it is kept for those that depend on it.".into()]
            }
        };
        Explanation { key, function, state: task.state.name().into(), why }
    }

    fn why_waiting(&self, task: Task<'_>) -> Vec<String> {
        if task.cold.function == SCATTERED {
            return vec!["Its data is on the way from the client that scatters it.".into()];
        }
        let others = self.tasks.dependencies(task);
        let missing: Vec<Task<'_>> = others.filter(|other| other.state != TaskState::Memory).collect();
        let mut why = vec![format!(
            "It waits for {} of its {}.",
            missing.len(),
            Count(task.cold.dependencies.len(), "dependency", "dependencies")
        )];
        for other in missing.iter().take(NAMED) {
            let place = match other.worker().and_then(|worker| self.workers.get(worker)) {
                Some(worker) => format!(" on {}", worker.info.name),
                None => String::new(),
            };
            why.push(format!("{} is {}{place}.", self.named(*other), other.state.name()));
        }
        why
    }

    /// A task's function and key, as people tell tasks apart.
    fn named(&self, task: Task<'_>) -> String {
        format!("{} ({})", self.function_name(task.this), task.cold.key)
    }

    fn why_no_worker(&self, task: Task<'_>) -> Vec<String> {
        let all: Vec<&Worker> = self.workers.iter().map(|(_, worker)| worker).collect();
        if all.is_empty() {
            return vec!["There is no worker: start some.".into()];
        }
        let options = self.options_of(task);
        let count = |belongs: &dyn Fn(&&&Worker) -> bool| all.iter().filter(belongs).count();
        let of = Count(all.len(), "worker", "workers");
        let mut why = Vec::new();
        let named = count(&|worker| super::placement::named(worker, options));
        if !options.workers.is_empty() && !options.allow_other_workers && named == 0 {
            let wanted = options.workers.join(", ");
            why.push(format!("It may run on {wanted} alone, and none of the {of} goes by that name."));
        }
        for (name, amount) in &options.resources {
            let one = TaskOptions { resources: vec![(name.clone(), *amount)], ..TaskOptions::default() };
            if count(&|worker| super::placement::supplied(worker, &one)) == 0 {
                why.push(format!("It needs {amount} of {name}, and none of the {of} supplies so much."));
            }
        }
        let leaving = count(&|worker| worker.retiring);
        if leaving > 0 {
            why.push(format!("{} of the {of} leave and take nothing new.", leaving));
        }
        let paused = count(&|worker| worker.paused && !worker.retiring);
        if paused > 0 {
            why.push(format!(
                "{paused} of the {of} are short of memory and take nothing new until they have room."
            ));
        }
        let brief = count(&|worker| !worker.retiring && !self.lasts(worker, task));
        if brief > 0 {
            let takes = Nanos(self.expected_duration(task));
            why.push(format!("{brief} of the {of} will leave before it would be done: it takes {takes}."));
        }
        if why.is_empty() {
            why.push(format!("None of the {of} meets all that it asks for at the same time."));
        }
        why
    }

    fn why_queued(&self, task: Task<'_>) -> Vec<String> {
        let workers = Count(self.workers.iter().filter(|(_, w)| !w.retiring).count(), "worker", "workers");
        if let Some((name, most)) = self.limited_by(task) {
            let most = Count(most as usize, "task", "tasks");
            return vec![format!("{most} of the name {name} may run at once, and as many do.")];
        }
        let before = self.queued_before(task);
        let mut why = vec![
            format!("All it needs is there, but each of the {workers} has enough to do."),
            match before {
                0 => "It is the next to be handed out.".into(),
                _ => format!("{} to be handed out before it.", Count(before, "task is", "tasks are")),
            },
        ];
        why.extend(self.why_critical(task));
        why
    }

    /// What others wait for goes first; what holds resources goes by priority alone.
    fn why_critical(&self, task: Task<'_>) -> Option<String> {
        let critical = self.is_critical(task) && self.options_of(task).resources.is_empty();
        let tasks = Count(task.cold.height as usize, "task depends", "tasks depend");
        critical.then(|| format!("{tasks} on it, one after the other: it goes before others."))
    }

    fn why_processing(&self, task: Task<'_>) -> Vec<String> {
        let Some((id, worker)) = task.worker().and_then(|id| Some((id, self.workers.get(id)?))) else {
            return Vec::new();
        };
        let mut why = vec![self.why_there(task, &worker.info.name)];
        let silent = self.now.saturating_sub(worker.heard);
        let others = self.processed_by(id).into_iter().filter_map(|other| self.task(other));
        let before =
            others.filter(|other| !other.is_long_running() && self.turn(*other) < self.turn(task)).count();
        let threads = worker.threads as usize;
        why.push(if task.is_long_running() && task.waiting_on > 0 {
            "It is short and follows another, which takes far longer than it should: it starts there once that is done."
                .into()
        } else if task.is_long_running() {
            "It runs there, and said that it will take its time.".into()
        } else if task.waiting_on > 0 {
            let missing =
                Count(task.waiting_on as usize, "of its dependencies is", "of its dependencies are");
            format!("{missing} still being computed: it is short, and starts there as soon as they are done.")
        } else if before < threads {
            let threads = Count(threads, "thread", "threads");
            format!("With {threads} and {before} before it, it runs, or will once it has what it needs.")
        } else {
            format!(
                "{} before it there, on {}.",
                Count(before, "task is", "tasks are"),
                Count(threads, "thread", "threads")
            )
        });
        if task.waiting_on == 0 && !task.is_long_running() {
            why.extend(self.why_critical(task));
        }
        if silent > 5_000_000_000 {
            let ttl = Nanos(self.config.worker_ttl);
            why.push(format!(
                "The worker has been silent for {}: after {ttl} it is taken for dead, and the task runs elsewhere.",
                Nanos(silent)
            ));
        }
        why
    }

    fn why_in_memory(&self, task: Task<'_>) -> Vec<String> {
        let name = |id: &WorkerId| Some(self.workers.get(*id)?.info.name.to_string());
        let holders: Vec<String> = task.who_has().iter().filter_map(name).collect();
        let mut why = Vec::new();
        if task.cold.function == SCATTERED {
            why.push("A client scattered it.".into());
        } else if let Some((_, ran)) = self.story.last_assignment(task.this) {
            let worker = name(&ran).unwrap_or_else(|| "a worker that is gone".into());
            why.push(self.why_there(task, &worker));
        }
        let (bytes, more) = (Bytes(task.nbytes), holders.len().saturating_sub(NAMED));
        let shown = holders.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let others = if more > 0 { format!(" and {more} others") } else { String::new() };
        why.push(format!("Its result, {bytes}, is in the memory of {shown}{others}."));
        why
    }

    fn why_there(&self, task: Task<'_>, worker: &str) -> String {
        let Some((choice, _)) = self.story.last_assignment(task.this) else {
            return format!("It went to {worker}, too long ago to remember why.");
        };
        let Choice { stolen, wait, held, missing } = choice;
        let options = self.options_of(task);
        let asked = match (options.workers.is_empty(), options.resources.first()) {
            (false, _) => format!(", one of those it is restricted to ({})", options.workers.join(", ")),
            (true, Some((name, amount))) => format!(", which supplies the {amount} of {name} it needs"),
            (true, None) => String::new(),
        };
        let wait = if wait == 0 {
            "nothing waited there".to_owned()
        } else {
            format!("{} of work waited there for each thread", Nanos(wait))
        };
        let took = if stolen { "took it over from another that had too much to do" } else { "was given it" };
        let needs = match (held, missing) {
            (0, 0) => "it would start there first".to_owned(),
            (_, 0) => format!("it held all {} that the task needs", Bytes(held)),
            (0, _) => format!("it would start there first though all {} had to be moved", Bytes(missing)),
            _ => format!("it held {} of the {} that the task needs", Bytes(held), Bytes(held + missing)),
        };
        format!("{worker}{asked} {took}: {needs}, and {wait}.")
    }
}

/// How many there are of something.
struct Count(usize, &'static str, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { self.1 } else { self.2 })
    }
}

/// Nanoseconds, for people.
struct Nanos(u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0 as f64;
        match self.0 {
            0..1_000_000 => write!(f, "{:.0} µs", nanos / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} ms", nanos / 1e6),
            _ => write!(f, "{:.1} s", nanos / 1e9),
        }
    }
}
