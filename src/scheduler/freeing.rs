//! Workers are told what nobody needs any more: of all that goes at once each hears in one message.

use smallvec::smallvec;

use super::{Instruction, state::State};
use crate::protocol::{TaskId, ToWorker, WorkerId};

/// Where, in a turn's instructions, each worker is told what to free.
#[derive(Default)]
pub(super) struct Frees {
    /// From here on nobody is told anything else, so that it makes no difference which of them comes first.
    start: usize,
    /// Of each worker by its number, where it was told so last: perhaps before, or in another turn.
    latest: Vec<u32>,
}

impl State {
    /// Tells a worker that nobody needs a task or result of its any more.
    pub(super) fn free(&mut self, worker: WorkerId, id: TaskId) {
        let (number, next) = (worker.0 as usize, self.out.len());
        let Frees { start, latest } = &mut self.frees;
        if !matches!(self.out.last(), Some(Instruction::ToWorker(_, ToWorker::Free(_)))) {
            *start = next;
        }
        if latest.len() <= number {
            latest.resize(number + 1, u32::MAX);
        }
        let place = latest[number] as usize;
        match self.out.get_mut(place) {
            Some(Instruction::ToWorker(told, ToWorker::Free(ids))) if place >= *start && *told == worker => {
                ids.push(id);
            }
            _ => {
                latest[number] = next as u32;
                self.out.push(Instruction::ToWorker(worker, ToWorker::Free(smallvec![id])));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Config;

    #[test]
    fn each_worker_hears_once_of_what_goes_at_once_and_never_before_what_it_was_told_meanwhile() {
        let mut state = State::new(Config::default());
        let task = |number| TaskId::new(number, 0);
        let told = |state: &mut State| {
            let told = std::mem::take(&mut state.out).into_iter().map(|instruction| match instruction {
                Instruction::ToWorker(worker, ToWorker::Free(ids)) => (worker.0, ids.to_vec()),
                Instruction::ToWorker(worker, ToWorker::Alive) => (worker.0, vec![]),
                other => panic!("{other:?}"),
            });
            told.collect::<Vec<_>>()
        };
        (0..90).for_each(|number| state.free(WorkerId(number % 30), task(number)));
        let each = |worker| (worker, [0, 30, 60].map(|more| task(worker + more)).to_vec());
        assert_eq!(told(&mut state), (0..30).map(each).collect::<Vec<_>>());
        // What was told in the turn before is over.
        (0..3).for_each(|worker| state.free(WorkerId(2 - worker), task(worker)));
        state.out.push(Instruction::ToWorker(WorkerId(1), ToWorker::Alive));
        (0..3).for_each(|worker| state.free(WorkerId(worker), task(3 + worker)));
        let expected = [(2, 0), (1, 1), (0, 2)].into_iter().map(|(worker, id)| (worker, vec![task(id)]));
        let later = (0..3).map(|worker| (worker, vec![task(3 + worker)]));
        assert_eq!(told(&mut state), expected.chain([(1, vec![])]).chain(later).collect::<Vec<_>>());
    }
}
