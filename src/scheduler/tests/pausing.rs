//! A worker whose memory is short gets nothing new, and what others can do is taken back; what its disk lost is
//! looked for elsewhere or computed again.

use super::*;

const FIRST: WorkerId = WorkerId(0);
const SECOND: WorkerId = WorkerId(1);

impl Bed {
    fn paused(&mut self, worker: WorkerId, paused: bool) -> &mut Self {
        self.worker_says(worker, FromWorker::Paused(paused))
    }

    /// Who was asked to give how many tasks back, in the last turn.
    fn called_back(&self) -> Vec<(WorkerId, usize)> {
        let asked = |told: &Instruction| match told {
            Instruction::ToWorker(worker, ToWorker::GiveBack(ids)) => Some((*worker, ids.len())),
            _ => None,
        };
        self.told.iter().filter_map(asked).collect()
    }
}

#[test]
fn what_it_was_assigned_and_others_can_do_is_taken_back() {
    let mut bed = Bed::new(2);
    let named = |key, worker: &str| call(key, &[]).on(worker);
    bed.submit(vec![named(1, "w0"), call(2, &[]), call(3, &[])], &[1, 2, 3]);
    let on_first: Vec<u128> = [2, 3].into_iter().filter(|key| bed.assignment(*key).0 == FIRST).collect();
    bed.paused(FIRST, true);
    let expected: Vec<_> = (!on_first.is_empty()).then_some((FIRST, on_first.len())).into_iter().collect();
    assert_eq!(bed.called_back(), expected, "a task that only it may run stays");
    let ids = on_first.iter().map(|key| bed.id(*key)).collect();
    bed.worker_says(FIRST, FromWorker::GaveBack(ids));
    for key in on_first {
        assert_ne!(bed.task(key).worker(), Some(FIRST));
    }
    assert_eq!(bed.assignment(1).0, FIRST);
    assert!(bed.state.info().workers[0].paused);
}

#[test]
fn it_gets_nothing_until_it_goes_on() {
    let mut bed = Bed::new(2);
    bed.paused(FIRST, true);
    let keys: Vec<u128> = (1..6).collect();
    bed.submit(keys.iter().map(|key| call(*key, &[])).collect(), &keys);
    assert!(bed.computes().iter().all(|(worker, _)| *worker == SECOND), "{:?}", bed.computes());
    bed.paused(FIRST, false);
    assert!(bed.computes().iter().any(|(worker, _)| *worker == FIRST), "{:?}", bed.computes());
}

#[test]
fn with_nobody_else_there_nothing_is_taken_back_and_the_rest_waits() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).paused(FIRST, true);
    assert_eq!(bed.called_back(), []);
    bed.submit(vec![call(2, &[])], &[2]).is(2, TaskState::NoWorker);
    bed.finish(1).is(1, TaskState::Memory).is(2, TaskState::NoWorker);
    bed.paused(FIRST, false).is(2, TaskState::Processing);
    bed.paused(FIRST, false);
    assert_eq!(bed.computes(), []);
}

#[test]
fn one_that_leaves_meanwhile_does_not_come_back() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (busy, _) = bed.assignment(1);
    bed.paused(busy, true).handle(Stimulus::Retire(busy)).paused(busy, false);
    bed.finish(1).submit(vec![call(2, &[])], &[2]);
    assert_ne!(bed.assignment(2).0, busy);
    bed.lose(busy);
}

#[test]
fn a_result_that_its_disk_lost_is_computed_again() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let id = bed.id(1);
    bed.worker_says(FIRST, FromWorker::Lost(vec![id])).is(1, TaskState::Processing);
    assert_eq!(bed.client_hears(), ["1 lost"]);
    bed.finish(1).worker_says(FIRST, FromWorker::Lost(vec![id])).is(1, TaskState::Memory);
}

#[test]
fn a_result_that_another_holds_too_is_not() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (holder, _) = bed.assignment(1);
    let id = bed.id(1);
    let other = WorkerId(1 - holder.0);
    bed.finish(1).worker_says(other, FromWorker::Added(vec![id]));
    bed.worker_says(holder, FromWorker::Lost(vec![id])).is(1, TaskState::Memory);
    assert_eq!(bed.task(1).who_has(), [other]);
}

/// The task that follows it was sent to that worker while the result was still to be computed there.
#[test]
fn who_lost_a_result_that_another_holds_and_is_to_run_what_needs_it_is_told_who_has_it() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[1, 2]);
    let (holder, id) = bed.assignment(1);
    let other = WorkerId(1 - holder.0);
    bed.finish_with(1, 100, 1000);
    bed.worker_says(other, FromWorker::Added(vec![id]));
    assert_eq!(bed.assignment(2).0, holder);
    bed.worker_says(holder, FromWorker::Lost(vec![id]));
    let told = bed.told.iter().find_map(|told| match told {
        Instruction::ToWorker(worker, ToWorker::WhoHas(held)) => Some((*worker, held)),
        _ => None,
    });
    let (worker, held) = told.expect("it is told");
    assert_eq!((worker, held[0].id, held[0].who_has.as_slice()), (holder, id, &[other][..]));
    // Who needs it no more is not.
    bed.finish(2).worker_says(other, FromWorker::Lost(vec![id]));
    let told = |told: &Instruction| matches!(told, Instruction::ToWorker(_, ToWorker::WhoHas(_)));
    assert!(!bed.told.iter().any(told));
}

#[test]
fn a_task_is_not_sent_round_for_ever_among_workers_that_pause_for_it() {
    let mut bed = Bed::new(3);
    bed.submit(vec![call(1, &[])], &[1]);
    for _ in 0..2 {
        let worker = bed.assignment(1).0;
        bed.paused(worker, true);
        assert_eq!(bed.called_back(), [(worker, 1)]);
        let id = bed.id(1);
        bed.worker_says(worker, FromWorker::GaveBack(vec![id])).paused(worker, false);
        assert_ne!(bed.assignment(1).0, worker);
    }
    let worker = bed.assignment(1).0;
    bed.paused(worker, true);
    assert_eq!(bed.called_back(), [], "it runs there, alone if need be");
    // Another time it is like any other.
    bed.paused(worker, false).finish(1).lose(worker);
    let worker = bed.assignment(1).0;
    bed.paused(worker, true);
    assert_eq!(bed.called_back(), [(worker, 1)]);
}
