//! Tasks that can run and wait for a thread.
//!
//! They run by priority, but for those that are critical: of the same rank these go before others, the highest first. So
//! they stand in two lines; what was taken from one is passed over when its turn comes in the other.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::protocol::{Priority, TaskId, Turn};

#[derive(Default)]
pub(super) struct Ready {
    by_priority: BinaryHeap<Reverse<(Priority, TaskId)>>,
    /// Those that others depend on, as if they were critical.
    high: BinaryHeap<Reverse<(Turn, TaskId)>>,
}

impl Ready {
    pub(super) fn push(&mut self, priority: Priority, height: u32, id: TaskId) {
        self.by_priority.push(Reverse((priority, id)));
        if height > 0 {
            self.high.push(Reverse((priority.turn(height), id)));
        }
    }

    /// Those that wait, and some that may wait no more.
    pub(super) fn len(&self) -> usize {
        self.by_priority.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_priority.is_empty()
    }

    /// The task that is to run next, where tasks are critical from a height on. `waiting` tells of a task whether it
    /// still waits, and with which priority and height.
    pub(super) fn next(
        &mut self,
        critical: u32,
        waiting: impl Fn(TaskId) -> Option<(Priority, u32)>,
    ) -> Option<TaskId> {
        while let Some(&Reverse((priority, id))) = self.by_priority.peek() {
            if waiting(id).is_none_or(|(own, _)| own != priority) {
                self.by_priority.pop();
                continue;
            }
            while let Some(&Reverse((turn, highest))) = self.high.peek() {
                // What is of a lower rank than all that wait waits no more.
                let waits = turn.rank >= priority.rank();
                if waits && (turn.rank > priority.rank() || turn.height.0 < critical) {
                    break;
                }
                if waits && waiting(highest).is_some_and(|(own, height)| own.turn(height) == turn) {
                    return Some(highest);
                }
                self.high.pop();
            }
            return Some(id);
        }
        self.high.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Comes {
            submission: u32,
            height: u32,
        },
        Runs {
            critical: u32,
        },
        /// One of those that wait is wanted no more.
        Goes(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3u32, 0..6u32).prop_map(|(submission, height)| Step::Comes { submission, height }),
            2 => (1..8u32).prop_map(|critical| Step::Runs { critical }),
            1 => any::<prop::sample::Index>().prop_map(Step::Goes),
        ]
    }

    proptest! {
        /// Whatever comes, runs and goes, the next is the one that a look at all that wait would find.
        #[test]
        fn the_highest_critical_one_of_the_first_graph_is_next_or_the_first(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut ready = Ready::default();
            let mut waiting: BTreeMap<TaskId, (Priority, u32)> = BTreeMap::new();
            for (step, number) in steps.into_iter().zip(0..) {
                match step {
                    Step::Comes { submission, height } => {
                        // Ids do not follow the order.
                        let priority = Priority { user: 0, submission, order: number };
                        let id = TaskId::new(1000 - number, 0);
                        ready.push(priority, height, id);
                        waiting.insert(id, (priority, height));
                    }
                    Step::Goes(which) if !waiting.is_empty() => {
                        let id = *waiting.keys().nth(which.index(waiting.len())).expect("it is one of them");
                        waiting.remove(&id);
                    }
                    Step::Goes(_) => {}
                    Step::Runs { critical } => {
                        let turn = |(_, (priority, height)): &(&TaskId, &(Priority, u32))| {
                            priority.turn(if *height >= critical { *height } else { 0 })
                        };
                        let expected = waiting.iter().min_by_key(turn).map(|(id, _)| *id);
                        let next = ready.next(critical, |id| waiting.get(&id).copied());
                        prop_assert_eq!(next, expected);
                        if let Some(id) = next {
                            waiting.remove(&id);
                        }
                    }
                }
            }
        }
    }
}
