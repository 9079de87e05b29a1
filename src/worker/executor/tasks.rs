//! What a pool of compute threads has to do, and what it did: who waits for whom, and when the I/O thread hears of it.

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    graph::{KeyMap, KeySet},
    protocol::TaskId,
    task::{TaskError, Value},
    worker::{Execution, Input, Stimulus},
};

/// How long the ends of brief tasks wait for others to be told with; twice as long where somebody else should tell.
const PATIENCE: Duration = Duration::from_micros(250);
/// And how many are told together at most, likewise.
const TOGETHER: usize = 64;
/// What the threads have to do, and what they did.
#[derive(Default)]
pub(super) struct Tasks {
    /// Not done yet, whether they can start or not.
    pub(super) unfinished: KeySet<TaskId>,
    /// Can start.
    pub(super) ready: VecDeque<Execution>,
    /// Wait for others, with how many these are.
    pub(super) blocked: KeyMap<TaskId, (Execution, usize)>,
    /// Who waits for whose result.
    needed_by: KeyMap<TaskId, SmallVec<[TaskId; 2]>>,
    /// What happened, for the I/O thread.
    done: Vec<Stimulus>,
    /// Since when the first of it waits to be told.
    since: Option<Instant>,
    /// The I/O thread was told that something happened.
    told: bool,
    /// Brief tasks that are not done, and those of them that run.
    brief: usize,
    brief_running: usize,
    /// Tasks that are brief no more.
    pub(super) hastened: KeySet<TaskId>,
    /// The I/O thread looks by itself before long.
    watched: bool,
}

impl Tasks {
    /// Takes in a task. What it needs and the I/O thread does not have is being made by others here, or was and is not
    /// reported yet.
    pub(super) fn add(&mut self, mut execution: Execution) {
        let (id, mut missing, mut failed) = (execution.id, 0, false);
        for input in &mut execution.dependencies {
            let Input::Coming(needed) = *input else { continue };
            if self.unfinished.contains(&needed) {
                missing += 1;
                self.needed_by.entry(needed).or_default().push(id);
                continue;
            }
            let made = self.done.iter().rev().find_map(|stimulus| match stimulus {
                Stimulus::Executed { id, result: Ok(value), .. } if *id == needed => Some(value.clone()),
                _ => None,
            });
            match made {
                Some(value) => *input = Input::Here(value),
                None => failed = true,
            }
        }
        if failed {
            self.done.push(Stimulus::Unstarted(vec![id]));
            return;
        }
        self.unfinished.insert(id);
        self.brief += usize::from(execution.brief);
        if missing == 0 {
            self.ready.push_back(execution);
        } else {
            self.blocked.insert(id, (execution, missing));
        }
    }

    /// The next task to run.
    pub(super) fn start(&mut self) -> Option<Execution> {
        let next = self.ready.pop_front()?;
        self.brief_running += usize::from(next.brief);
        Some(next)
    }

    /// A task was run.
    pub(super) fn finish(
        &mut self,
        id: TaskId,
        result: Result<Value, TaskError>,
        duration: u64,
        brief: bool,
    ) {
        self.unfinished.remove(&id);
        self.brief -= usize::from(brief);
        self.brief_running -= usize::from(brief);
        let nbytes = result.as_ref().map_or(0, Value::nbytes);
        let value = result.as_ref().ok().cloned();
        // The I/O thread hears of a task before it does of those that go on with its result.
        self.done.push(Stimulus::Executed { id, result, nbytes, duration });
        match value {
            Some(value) => self.hand_on(id, &value),
            None => self.strand(id),
        }
    }

    /// A running task will take its time: those that wait for it are not kept here.
    pub(super) fn secede(&mut self, id: TaskId, brief: bool) {
        self.brief -= usize::from(brief);
        self.brief_running -= usize::from(brief);
        self.done.push(Stimulus::Seceded(id));
        self.strand(id);
    }

    /// A task has a result: those that wait for it get it.
    fn hand_on(&mut self, made: TaskId, value: &Value) {
        for id in self.needed_by.remove(&made).unwrap_or_default() {
            let Some((execution, missing)) = self.blocked.get_mut(&id) else { continue };
            let inputs = execution.dependencies.iter_mut();
            for input in inputs.filter(|input| matches!(input, Input::Coming(needed) if *needed == made)) {
                *input = Input::Here(value.clone());
                *missing -= 1;
            }
            if *missing == 0
                && let Some((execution, _)) = self.blocked.remove(&id)
            {
                self.ready.push_back(execution);
            }
        }
    }

    /// A task failed, or takes its time: none that waits for it will run here by itself, nor those that wait for these.
    fn strand(&mut self, failed: TaskId) {
        let (mut without, mut unstarted) = (vec![failed], Vec::new());
        while let Some(id) = without.pop() {
            for waiting in self.needed_by.remove(&id).unwrap_or_default() {
                if let Some((execution, _)) = self.blocked.remove(&waiting) {
                    self.unfinished.remove(&waiting);
                    self.brief -= usize::from(execution.brief);
                    self.hastened.remove(&waiting);
                    unstarted.push(waiting);
                    without.push(waiting);
                }
            }
        }
        if !unstarted.is_empty() {
            self.done.push(Stimulus::Unstarted(unstarted));
        }
    }

    /// Whether the I/O thread is to be woken, after something happened that it need not hear of at once if `brief`; `here` is
    /// whether it displaces nobody, or this thread, which is between two tasks, and not another one, which may be in one.
    pub(super) fn is_to_be_told(&mut self, brief: bool, here: impl FnOnce() -> bool) -> bool {
        if self.told || self.done.is_empty() {
            return false;
        }
        let more = self.brief_running > 0 || self.ready.front().is_some_and(|next| next.brief);
        let since = *self.since.get_or_insert_with(Instant::now);
        let waits = brief && more && self.watched;
        let (waited, tasks) = (since.elapsed(), self.done.len());
        let at_least = |times: u32| waited >= times * PATIENCE || tasks >= times as usize * TOGETHER;
        self.told = !waits || at_least(2) || at_least(1) && here();
        self.told
    }

    /// Takes what happened. Where that is nothing, says whether to look again before long.
    pub(super) fn take(&mut self) -> (Vec<Stimulus>, bool) {
        (self.told, self.since) = (false, None);
        self.watched = self.brief > 0;
        (mem::take(&mut self.done), self.watched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{graph::Arguments, task::EntryRef};

    fn id(n: u32) -> TaskId {
        TaskId::new(n, 1)
    }

    fn execution(n: u32, needs: &[u32]) -> Execution {
        Execution {
            id: id(n),
            key: crate::graph::Key(n.into()),
            entry: EntryRef { module: 0, offset: 8, name: 1 },
            arguments: Arguments::default(),
            dependencies: needs.iter().map(|n| Input::Coming(id(*n))).collect(),
            brief: true,
        }
    }

    fn tasks(executions: &[(u32, &[u32])]) -> Tasks {
        let mut tasks = Tasks::default();
        executions.iter().for_each(|(n, needs)| tasks.add(execution(*n, needs)));
        tasks
    }

    fn ready(tasks: &Tasks) -> Vec<u64> {
        tasks.ready.iter().map(|execution| execution.id.index() as u64).collect()
    }

    fn finish(tasks: &mut Tasks, n: u32, result: Result<i64, TaskError>) {
        let place = tasks.ready.iter().position(|execution| execution.id == id(n)).expect("it can start");
        tasks.ready.swap(0, place);
        tasks.start();
        tasks.finish(id(n), result.map(Value::new), 1, true);
    }

    fn inputs(tasks: &Tasks) -> Vec<i64> {
        let execution = tasks.ready.back().expect("one can start");
        let values = execution.dependencies.iter().filter_map(|input| input.clone().value());
        values.map(|value| *value.get::<i64>().expect("they are numbers")).collect()
    }

    fn unstarted(tasks: &Tasks) -> Vec<TaskId> {
        let ids = tasks.done.iter().filter_map(|stimulus| match stimulus {
            Stimulus::Unstarted(ids) => Some(ids.clone()),
            _ => None,
        });
        ids.flatten().collect()
    }

    #[test]
    fn a_task_starts_with_the_results_of_those_it_waited_for() {
        let mut tasks = tasks(&[(1, &[]), (2, &[]), (3, &[2, 1, 2]), (4, &[3])]);
        assert_eq!(ready(&tasks), [1, 2]);
        finish(&mut tasks, 2, Ok(20));
        assert_eq!(ready(&tasks), [1]);
        finish(&mut tasks, 1, Ok(10));
        assert_eq!((ready(&tasks), inputs(&tasks)), (vec![3], vec![20, 10, 20]));
        finish(&mut tasks, 3, Ok(30));
        assert_eq!((ready(&tasks), inputs(&tasks)), (vec![4], vec![30]));
        finish(&mut tasks, 4, Ok(40));
        assert!(tasks.unfinished.is_empty() && tasks.needed_by.is_empty() && tasks.blocked.is_empty());
        assert_eq!(tasks.done.len(), 4);
    }

    #[test]
    fn what_is_done_and_not_reported_is_there_for_those_that_come_later() {
        let mut tasks = tasks(&[(1, &[])]);
        finish(&mut tasks, 1, Ok(10));
        tasks.add(execution(2, &[1]));
        assert_eq!((ready(&tasks), inputs(&tasks)), (vec![2], vec![10]));
    }

    #[test]
    fn brief_tasks_are_told_of_together() {
        let mut tasks = tasks(&[(1, &[]), (2, &[]), (3, &[]), (4, &[])]);
        finish(&mut tasks, 1, Ok(10));
        assert!(tasks.is_to_be_told(true, || true), "the I/O thread does not look by itself yet");
        let (told, watch) = tasks.take();
        assert!(told.len() == 1 && watch);
        finish(&mut tasks, 2, Ok(20));
        assert!(!tasks.is_to_be_told(true, || true), "two are to follow");
        let last = [tasks.start(), tasks.start()];
        for (execution, told) in last.into_iter().flatten().zip([false, true]) {
            tasks.finish(execution.id, Ok(Value::new(0)), 1, true);
            assert_eq!(tasks.is_to_be_told(true, || true), told, "{:?}", execution.id);
        }
        assert!(!tasks.is_to_be_told(true, || true), "once is enough");
        assert_eq!(tasks.take().0.len(), 3);
        tasks.add(execution(5, &[]));
        tasks.add(execution(6, &[]));
        assert!(tasks.take().1);
        finish(&mut tasks, 5, Ok(50));
        assert!(tasks.is_to_be_told(false, || true), "somebody waits for it");
    }

    #[test]
    fn who_would_displace_another_thread_waits_for_that_to_tell() {
        let brief: Vec<(u32, &[u32])> = (0..=2 * TOGETHER as u32).map(|n| (n, &[][..])).collect();
        let mut tasks = tasks(&brief);
        tasks.take();
        for n in 0..2 * TOGETHER as u32 {
            finish(&mut tasks, n, Ok(0));
            // However slow this is, no time counts.
            tasks.since = Some(Instant::now());
            assert_eq!(tasks.is_to_be_told(true, || false), tasks.done.len() == 2 * TOGETHER, "{n}");
        }
        assert_eq!(tasks.take().0.len(), 2 * TOGETHER);
        finish(&mut tasks, 2 * TOGETHER as u32, Ok(0));
        tasks.add(execution(1000, &[]));
        tasks.since = Instant::now().checked_sub(PATIENCE);
        assert!(tasks.is_to_be_told(true, || true));
    }

    #[test]
    fn who_waits_for_a_task_that_takes_its_time_is_given_back() {
        let mut tasks = tasks(&[(1, &[]), (2, &[1]), (3, &[2])]);
        tasks.start();
        tasks.secede(id(1), true);
        assert_eq!(unstarted(&tasks), [id(2), id(3)]);
        assert_eq!((tasks.brief, tasks.brief_running, tasks.blocked.len()), (0, 0, 0));
        assert!(tasks.is_to_be_told(false, || true));
        tasks.finish(id(1), Ok(Value::new(10)), 1, false);
        assert!(tasks.ready.is_empty() && tasks.unfinished.is_empty());
    }

    #[test]
    fn who_waits_for_what_failed_is_given_back_with_all_that_wait_for_it() {
        let mut tasks = tasks(&[(1, &[]), (2, &[]), (3, &[1, 2]), (4, &[3]), (5, &[2])]);
        finish(&mut tasks, 1, Err(TaskError::refused("it failed")));
        assert_eq!(unstarted(&tasks), [id(3), id(4)]);
        // Those that come later find it failed, or given back.
        tasks.add(execution(6, &[1]));
        tasks.add(execution(7, &[2, 4]));
        tasks.add(execution(8, &[7]));
        assert_eq!(unstarted(&tasks), [3, 4, 6, 7, 8].map(id));
        finish(&mut tasks, 2, Ok(20));
        assert_eq!((ready(&tasks), inputs(&tasks)), (vec![5], vec![20]));
        finish(&mut tasks, 5, Ok(50));
        assert!(tasks.unfinished.is_empty() && tasks.needed_by.is_empty() && tasks.blocked.is_empty());
    }
}
