//! What happened to tasks, as far as remembered: the latest steps of all.

use super::{TaskState, explain::Choice, task::TaskRef};
use crate::{
    graph::{Key, KeySet},
    protocol::{StoryEvent, WorkerId},
};

/// Steps remembered.
const STEPS: usize = 100_000;

/// One of a task's transitions. There are several for each task, so it takes half of a cache line.
struct Step {
    at: u64,
    stimulus: u64,
    task: TaskRef,
    /// [`WorkerId::NOBODY`] for none.
    worker: WorkerId,
    start: TaskState,
    finish: TaskState,
}

const _: () = assert!(size_of::<Step>() == 32);

/// An assignment of a task, and what it went by.
struct Assignment {
    task: TaskRef,
    worker: WorkerId,
    choice: Choice,
}

/// The latest steps of all tasks.
#[derive(Default)]
pub(super) struct Story {
    steps: Ring<Step>,
    assignments: Ring<Assignment>,
    /// Tasks that are forgotten, by the keys that they had.
    forgotten: Ring<(Key, TaskRef)>,
}

impl Story {
    /// Notes a step of a task that is, or was, assigned to `worker`.
    pub(super) fn note(
        &mut self,
        (at, stimulus): (u64, u64),
        task: TaskRef,
        (start, finish): (TaskState, TaskState),
        worker: Option<WorkerId>,
    ) {
        let worker = worker.unwrap_or(WorkerId::NOBODY);
        self.steps.push(Step { at, stimulus, task, worker, start, finish });
    }

    /// Notes what an assignment goes by.
    pub(super) fn assigned(&mut self, task: TaskRef, worker: WorkerId, choice: Choice) {
        self.assignments.push(Assignment { task, worker, choice });
    }

    /// Notes that the task of a key is forgotten: another one may have it from now on.
    pub(super) fn forgotten(&mut self, key: Key, task: TaskRef) {
        self.forgotten.push((key, task));
    }

    /// What happened to the tasks of a key, of which one may be there now; oldest first.
    pub(super) fn of(&self, key: Key, current: Option<TaskRef>) -> Vec<StoryEvent> {
        // None of its steps is remembered longer than the last one, by which it is forgotten.
        let gone = self.forgotten.iter().filter(|(forgotten, _)| *forgotten == key);
        let tasks: KeySet<TaskRef> = gone.map(|(_, task)| *task).chain(current).collect();
        let event = |step: &Step| StoryEvent {
            at: step.at,
            stimulus: step.stimulus,
            start: step.start.name().into(),
            finish: step.finish.name().into(),
            worker: Some(step.worker).filter(|worker| *worker != WorkerId::NOBODY),
        };
        self.steps.iter().filter(|step| tasks.contains(&step.task)).map(event).collect()
    }

    /// Where a task was assigned to last, and what that went by.
    pub(super) fn last_assignment(&self, task: TaskRef) -> Option<(Choice, WorkerId)> {
        let last = self.assignments.iter().filter(|assignment| assignment.task == task).last()?;
        Some((last.choice, last.worker))
    }
}

/// The latest of what is pushed; once there are enough, the oldest are overwritten.
struct Ring<T> {
    all: Vec<T>,
    oldest: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { all: Vec::new(), oldest: 0 }
    }
}

impl<T> Ring<T> {
    fn push(&mut self, one: T) {
        if self.all.len() < STEPS {
            self.all.push(one);
        } else {
            self.all[self.oldest] = one;
            self.oldest = if self.oldest + 1 == STEPS { 0 } else { self.oldest + 1 };
        }
    }

    /// The oldest first.
    fn iter(&self) -> impl Iterator<Item = &T> {
        let (later, earlier) = self.all.split_at(self.oldest);
        earlier.iter().chain(later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(index: u32, tenant: u32) -> TaskRef {
        TaskRef { index, tenant }
    }

    /// A key is forgotten and comes back, in the same place or another.
    #[test]
    fn a_keys_story_goes_on_with_the_next_task_that_has_it() {
        use TaskState::{Forgotten, Released, Waiting};
        let mut story = Story::default();
        story.note((1, 1), task(0, 0), (Released, Waiting), None);
        story.note((2, 2), task(1, 0), (Released, Waiting), Some(WorkerId(7)));
        story.note((3, 3), task(0, 0), (Released, Forgotten), None);
        story.forgotten(Key(10), task(0, 0));
        story.note((4, 4), task(0, 1), (Released, Waiting), None);
        let times = |story: Vec<StoryEvent>| story.iter().map(|event| event.at).collect::<Vec<_>>();
        assert_eq!(times(story.of(Key(10), None)), [1, 3]);
        assert_eq!(times(story.of(Key(10), Some(task(0, 1)))), [1, 3, 4]);
        let other = story.of(Key(11), Some(task(1, 0)));
        assert_eq!((times(other.clone()), other[0].worker), (vec![2], Some(WorkerId(7))));
    }

    #[test]
    fn the_oldest_steps_are_overwritten() {
        let mut story = Story::default();
        let one = task(5, 0);
        let mut note = |at| story.note((at, at), one, (TaskState::Released, TaskState::Waiting), None);
        (0..STEPS as u64 + 10).for_each(&mut note);
        let events = story.of(Key(1), Some(one));
        assert_eq!((events.len(), events[0].at, events[STEPS - 1].at), (STEPS, 10, STEPS as u64 + 9));
        let choice = |wait| Choice { stolen: false, wait, held: 0, missing: 0 };
        (0..2).for_each(|wait| story.assigned(one, WorkerId(wait as u32), choice(wait)));
        assert_eq!(story.last_assignment(one).map(|(choice, id)| (choice.wait, id)), Some((1, WorkerId(1))));
    }
}
