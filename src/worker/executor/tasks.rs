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
    unfinished: KeyMap<TaskId, Unfinished>,
    /// Can start.
    pub(super) ready: VecDeque<Execution>,
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

/// A task that is not done.
#[derive(Default)]
struct Unfinished {
    /// While it waits for others: what is to be run then, and how many inputs are still to come.
    blocked: Option<(Execution, usize)>,
    /// Who waits for its result.
    needed_by: NeededBy,
}

type NeededBy = SmallVec<[TaskId; 2]>;

impl Tasks {
    /// Takes in a task. What it needs and the I/O thread does not have is being made by others here, or was and is not
    /// reported yet.
    pub(super) fn add(&mut self, mut execution: Execution) {
        let (id, mut missing, mut failed) = (execution.task.id, 0, false);
        for input in &mut execution.inputs {
            let Input::Coming(needed) = *input else { continue };
            if let Some(unfinished) = self.unfinished.get_mut(&needed) {
                missing += 1;
                unfinished.needed_by.push(id);
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
        self.brief += usize::from(execution.brief);
        let blocked = if missing == 0 {
            self.ready.push_back(execution);
            None
        } else {
            Some((execution, missing))
        };
        self.unfinished.insert(id, Unfinished { blocked, needed_by: NeededBy::new() });
    }

    /// Whether a task is still to be done, or under way.
    pub(super) fn is_unfinished(&self, id: TaskId) -> bool {
        self.unfinished.contains_key(&id)
    }

    /// Drops what was not started.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.unfinished.values_mut().for_each(|task| task.blocked = None);
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
        let needed_by = self.unfinished.remove(&id).unwrap_or_default().needed_by;
        self.brief -= usize::from(brief);
        self.brief_running -= usize::from(brief);
        let nbytes = result.as_ref().map_or(0, Value::nbytes);
        let value = result.as_ref().ok().cloned();
        // The I/O thread hears of a task before it does of those that go on with its result.
        self.done.push(Stimulus::Executed { id, result, nbytes, duration });
        match value {
            Some(value) => self.hand_on(id, &value, &needed_by),
            None => self.strand(needed_by),
        }
    }

    /// A running task will take its time: those that wait for it are not kept here.
    pub(super) fn secede(&mut self, id: TaskId, brief: bool) {
        self.brief -= usize::from(brief);
        self.brief_running -= usize::from(brief);
        self.done.push(Stimulus::Seceded(id));
        let needed_by = self.unfinished.get_mut(&id).map(|task| mem::take(&mut task.needed_by));
        self.strand(needed_by.unwrap_or_default());
    }

    /// A task has a result: those that wait for it get it.
    fn hand_on(&mut self, made: TaskId, value: &Value, needed_by: &[TaskId]) {
        for id in needed_by {
            let Some(Unfinished { blocked, .. }) = self.unfinished.get_mut(id) else { continue };
            let Some((execution, missing)) = blocked else { continue };
            let inputs = execution.inputs.iter_mut();
            for input in inputs.filter(|input| matches!(input, Input::Coming(needed) if *needed == made)) {
                *input = Input::Here(value.clone());
                *missing -= 1;
            }
            if *missing == 0 {
                self.ready.extend(blocked.take().map(|(execution, _)| execution));
            }
        }
    }

    /// A task failed, or takes its time: none that waits for it will run here by itself, nor those that wait for these.
    fn strand(&mut self, mut waiting: NeededBy) {
        let (mut unstarted, mut next) = (Vec::new(), 0);
        while let Some(&id) = waiting.get(next) {
            next += 1;
            // One that needs several of them is listed as often, and one that was stranded before may have come back.
            let blocked = self.unfinished.get_mut(&id).and_then(|task| task.blocked.take());
            if let Some((execution, _)) = blocked {
                let needed_by = self.unfinished.remove(&id).unwrap_or_default().needed_by;
                self.brief -= usize::from(execution.brief);
                self.hastened.remove(&id);
                unstarted.push(id);
                waiting.extend(needed_by);
            }
        }
        if !unstarted.is_empty() {
            self.done.push(Stimulus::Unstarted(unstarted));
        }
    }

    /// Whether the I/O thread is to be woken, after something happened that it need not hear of at once if `brief`; `here` is
    /// whether it displaces nobody, or this thread, which is between two tasks, and not another one, which may be in one.
    pub(super) fn is_to_be_told(&mut self, brief: bool, now: Instant, here: impl FnOnce() -> bool) -> bool {
        if self.told || self.done.is_empty() {
            return false;
        }
        let more = self.brief_running > 0 || self.ready.front().is_some_and(|next| next.brief);
        let since = *self.since.get_or_insert(now);
        let waits = brief && more && self.watched;
        let (waited, tasks) = (now.saturating_duration_since(since), self.done.len());
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
pub(super) mod tests {
    use std::sync::{Arc, LazyLock};

    use super::*;
    use crate::{graph::Arguments, protocol::ComputeTask, task::EntryRef};

    fn id(n: u32) -> TaskId {
        TaskId::new(n, 1)
    }

    fn execution(n: u32, needs: &[u32]) -> Execution {
        execution_of(n, EntryRef { module: 0, offset: 8, name: 1 }, needs)
    }

    /// A call without arguments that has to wait for others.
    pub(in crate::worker::executor) fn execution_of(n: u32, entry: EntryRef, needs: &[u32]) -> Execution {
        let task = ComputeTask {
            id: id(n),
            key: crate::graph::Key(n.into()),
            entry,
            arguments: Arguments::default(),
            dependencies: vec![],
            priority: Default::default(),
            resources: vec![],
            wanted: false,
            dependents: 0,
            height: 0,
            critical: u32::MAX,
        };
        let inputs = needs.iter().map(|n| Input::Coming(id(*n))).collect();
        Execution { task: Arc::new(task), inputs, brief: true }
    }

    fn tasks(executions: &[(u32, &[u32])]) -> Tasks {
        let mut tasks = Tasks::default();
        executions.iter().for_each(|(n, needs)| tasks.add(execution(*n, needs)));
        tasks
    }

    fn ready(tasks: &Tasks) -> Vec<u64> {
        tasks.ready.iter().map(|execution| execution.task.id.index() as u64).collect()
    }

    fn finish(tasks: &mut Tasks, n: u32, result: Result<i64, TaskError>) {
        let place =
            tasks.ready.iter().position(|execution| execution.task.id == id(n)).expect("it can start");
        tasks.ready.swap(0, place);
        tasks.start();
        tasks.finish(id(n), result.map(Value::new), 1, true);
    }

    fn inputs(tasks: &Tasks) -> Vec<i64> {
        let execution = tasks.ready.back().expect("one can start");
        let values = execution.inputs.iter().filter_map(|input| input.clone().value());
        values.map(|value| *value.get::<i64>().expect("they are numbers")).collect()
    }

    /// However slow a test is, no time passes.
    static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn told_now(tasks: &mut Tasks, brief: bool, here: impl FnOnce() -> bool) -> bool {
        tasks.is_to_be_told(brief, *NOW, here)
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
        assert!(tasks.unfinished.is_empty());
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
        assert!(told_now(&mut tasks, true, || true), "the I/O thread does not look by itself yet");
        let (told, watch) = tasks.take();
        assert!(told.len() == 1 && watch);
        finish(&mut tasks, 2, Ok(20));
        assert!(!told_now(&mut tasks, true, || true), "two are to follow");
        let last = [tasks.start(), tasks.start()];
        for (execution, told) in last.into_iter().flatten().zip([false, true]) {
            tasks.finish(execution.task.id, Ok(Value::new(0)), 1, true);
            assert_eq!(told_now(&mut tasks, true, || true), told, "{:?}", execution.task.id);
        }
        assert!(!told_now(&mut tasks, true, || true), "once is enough");
        assert_eq!(tasks.take().0.len(), 3);
        tasks.add(execution(5, &[]));
        tasks.add(execution(6, &[]));
        assert!(tasks.take().1);
        finish(&mut tasks, 5, Ok(50));
        assert!(told_now(&mut tasks, false, || true), "somebody waits for it");
    }

    #[test]
    fn who_would_displace_another_thread_waits_for_that_to_tell() {
        let brief: Vec<(u32, &[u32])> = (0..=2 * TOGETHER as u32).map(|n| (n, &[][..])).collect();
        let mut tasks = tasks(&brief);
        tasks.take();
        for n in 0..2 * TOGETHER as u32 {
            finish(&mut tasks, n, Ok(0));
            assert_eq!(told_now(&mut tasks, true, || false), tasks.done.len() == 2 * TOGETHER, "{n}");
        }
        assert_eq!(tasks.take().0.len(), 2 * TOGETHER);
        finish(&mut tasks, 2 * TOGETHER as u32, Ok(0));
        tasks.add(execution(1000, &[]));
        tasks.since = NOW.checked_sub(PATIENCE);
        assert!(told_now(&mut tasks, true, || true));
    }

    #[test]
    fn who_waits_for_a_task_that_takes_its_time_is_given_back() {
        let mut tasks = tasks(&[(1, &[]), (2, &[1]), (3, &[2])]);
        tasks.start();
        tasks.secede(id(1), true);
        assert_eq!(unstarted(&tasks), [id(2), id(3)]);
        assert_eq!((tasks.brief, tasks.brief_running, tasks.unfinished.len()), (0, 0, 1));
        assert!(told_now(&mut tasks, false, || true));
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
        assert!(tasks.unfinished.is_empty());
    }
}
