//! Results that peers wait for go to them as soon as they are there.
//!
//! What is forwarded is in passing, as most copies are: the scheduler does not know that the receiver has it, and it goes
//! with the last task there that needs it. Nothing depends on forwarding: the scheduler says where the result is, too, and
//! whoever does not have it by then fetches it.

use super::{Instruction, TaskState, state::State};
use crate::{
    protocol::{TaskId, WorkerId},
    task::Value,
};

/// Bytes up to which a result is forwarded. Of a bigger one, and who holds it, the peer hears soon enough, and it
/// should not travel twice.
pub(super) const SMALL: u64 = 64 << 10;

impl State {
    /// A peer waits for a result of this worker's.
    pub(super) fn on_forward(&mut self, id: TaskId, to: WorkerId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(value) = task.value.clone() {
            let nbytes = task.nbytes;
            self.forward(id, &value, nbytes, to);
        } else if task.spec.is_some() {
            let peers = self.forwards.entry(id).or_default();
            if !peers.contains(&to) {
                peers.push(to);
            }
            if self.task_state(id) == Some(TaskState::Executing) {
                self.out.push(Instruction::Hasten(id));
            }
        }
    }

    /// A task is done: those who wait for its result get it.
    pub(super) fn forward_to_all(&mut self, id: TaskId, value: &Value, nbytes: u64) {
        if self.forwards.is_empty() {
            return;
        }
        for peer in self.forwards.remove(&id).unwrap_or_default() {
            self.forward(id, value, nbytes, peer);
        }
    }

    fn forward(&mut self, id: TaskId, value: &Value, nbytes: u64, peer: WorkerId) {
        if nbytes <= SMALL {
            self.out.push(Instruction::Forward { peer, id, value: value.clone() });
        }
    }

    /// A peer forwards results. Those that no task here waits for any more are not kept.
    pub(super) fn on_forwarded(&mut self, data: Vec<(TaskId, Value)>) {
        for (id, value) in data {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            let awaited = matches!(task.state, TaskState::Fetch | TaskState::Flight) && !task.acquired;
            if awaited && !task.dependents.is_empty() {
                let nbytes = value.nbytes();
                self.hold(id, value, nbytes, true);
            }
        }
    }

    /// No task here needs a result any more that came in passing.
    pub(super) fn let_pass(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.passing = false;
        self.put_away(id);
        self.step(id, TaskState::Released);
    }
}
