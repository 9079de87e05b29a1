//! A worker leaves in order: nothing new goes to it, and what it holds moves first.

use super::*;

impl Bed {
    pub(super) fn retire(&mut self, worker: WorkerId) -> &mut Self {
        self.handle(Stimulus::Retire(worker))
    }

    /// Who was told to leave in the last turn.
    fn closed(&self) -> Vec<WorkerId> {
        let closed = |told: &Instruction| match told {
            Instruction::ToWorker(worker, ToWorker::Close { .. }) => Some(*worker),
            _ => None,
        };
        self.told.iter().filter_map(closed).collect()
    }
}

const FIRST: WorkerId = WorkerId(0);
const SECOND: WorkerId = WorkerId(1);

/// Two workers, of which the first holds result 1.
fn bed() -> (Bed, TaskId) {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    bed.join(1);
    let id = bed.id(1);
    (bed, id)
}

#[test]
fn its_results_move_before_it_goes() {
    let (mut bed, id) = bed();
    bed.retire(FIRST);
    assert_eq!(bed.acquires(), [(SECOND, id)]);
    assert_eq!(bed.closed(), []);
    bed.worker_says(SECOND, FromWorker::Added(vec![id]));
    assert_eq!((bed.frees(), bed.closed()), (vec![(FIRST, id)], vec![FIRST]));
    bed.lose(FIRST).is(1, TaskState::Memory);
    assert_eq!(bed.client_hears(), [""; 0]);
}

#[test]
fn one_that_holds_nothing_goes_at_once() {
    let (mut bed, _) = bed();
    assert_eq!(bed.retire(SECOND).closed(), [SECOND]);
    assert_eq!(bed.retire(SECOND).closed(), [], "it is told once");
}

#[test]
fn what_others_hold_too_need_not_move() {
    let (mut bed, id) = bed();
    bed.worker_says(SECOND, FromWorker::Added(vec![id])).retire(FIRST);
    assert_eq!((bed.acquires(), bed.closed()), (vec![], vec![FIRST]));
}

#[test]
fn it_gets_no_more_tasks_and_what_it_gives_back_runs_elsewhere() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]), call(2, &[])], &[1, 2]);
    let (leaving, id) = bed.assignment(1);
    bed.worker_says(leaving, FromWorker::Retiring).worker_says(leaving, FromWorker::GaveBack(vec![id]));
    let stays = WorkerId(1 - leaving.0);
    assert_eq!(bed.assignment(2).0, stays);
    bed.finish(2).is(1, TaskState::Processing);
    assert_eq!(bed.assignment(1).0, stays);
    assert!(!bed.task(1).is_suspicious());
}

#[test]
fn what_it_still_runs_is_done_and_then_moves() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    bed.join(1);
    assert_eq!(bed.retire(FIRST).closed(), []);
    bed.finish(1);
    assert_eq!(bed.acquires(), [(SECOND, bed.id(1))]);
}

#[test]
fn with_nobody_else_there_results_wait_for_somebody_to_come() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1).retire(FIRST);
    assert_eq!((bed.acquires(), bed.closed()), (vec![], vec![]));
    bed.submit(vec![call(2, &[])], &[2]).is(2, TaskState::NoWorker);
    let other = bed.join(1);
    assert_eq!(bed.acquires(), [(other, bed.id(1))]);
    bed.is(2, TaskState::Processing);
}

#[test]
fn where_the_one_that_was_to_take_it_dies_another_takes_it() {
    let (mut bed, id) = bed();
    let third = bed.join(1);
    bed.retire(FIRST);
    let (taker, _) = bed.acquires()[0];
    bed.lose(taker);
    let other = if taker == SECOND { third } else { SECOND };
    assert_eq!(bed.acquires(), [(other, id)]);
}

#[test]
fn where_the_one_that_was_to_take_it_leaves_too_a_third_takes_it() {
    let (mut bed, id) = bed();
    bed.retire(FIRST);
    let third = bed.join(1);
    bed.retire(SECOND);
    assert_eq!(bed.acquires(), [(third, id)]);
    // It had asked for it already.
    bed.worker_says(SECOND, FromWorker::Added(vec![id]));
    assert_eq!((bed.acquires(), bed.closed()), (vec![], vec![]));
    bed.worker_says(third, FromWorker::Added(vec![id]));
    assert_eq!((bed.frees(), bed.closed()), (vec![(FIRST, id), (SECOND, id)], vec![FIRST]));
}

#[test]
fn what_cannot_leave_its_process_is_computed_again() {
    let (mut bed, id) = bed();
    bed.retire(FIRST);
    bed.worker_says(SECOND, FromWorker::NotAdded { id, error: failure() });
    bed.is(1, TaskState::Processing);
    assert_eq!((bed.assignment(1).0, bed.closed()), (SECOND, vec![FIRST]));
}

#[test]
fn a_forgotten_result_holds_nobody_back() {
    let (mut bed, _) = bed();
    bed.retire(FIRST).release(&[1]).is_forgotten(1);
    assert_eq!(bed.closed(), [FIRST]);
}

#[test]
fn its_death_before_it_was_let_go_is_not_its_tasks_fault() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (leaving, _) = bed.assignment(1);
    bed.retire(leaving).lose(leaving).is(1, TaskState::Processing);
    assert!(!bed.task(1).is_suspicious());
}

#[test]
fn tasks_that_would_outlast_a_worker_go_to_one_that_stays() {
    const SECOND_NS: u64 = 1_000_000_000;
    let mut bed = Bed::new(0);
    let brief = bed.join_for(Some(1000 * SECOND_NS));
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    // A task takes a second, as that one did; less than that is left.
    bed.now = 999 * SECOND_NS + SECOND_NS / 2;
    bed.submit(vec![call(2, &[]), call(3, &[1])], &[2, 3])
        .is(2, TaskState::NoWorker)
        .is(3, TaskState::NoWorker);
    let stays = bed.join(1);
    assert_eq!((bed.assignment(2).0, bed.assignment(3).0), (stays, stays));
    // Its end is no surprise.
    bed.now = 1001 * SECOND_NS;
    let id = bed.id(1);
    bed.submit(vec![call(4, &[])], &[4]).lose(brief);
    bed.worker_says(stays, FromWorker::Missing { id, holder: Some(brief) }).is(1, TaskState::Processing);
    assert!(!bed.task(1).is_suspicious());
}

#[test]
fn a_task_longer_than_any_life_is_tried() {
    let mut bed = Bed::new(0);
    bed.join_for(Some(100));
    bed.submit(vec![call(1, &[])], &[1]).is(1, TaskState::Processing);
}

#[test]
fn a_result_that_was_lost_on_its_way_and_computed_again_moves_again() {
    let (mut bed, id) = bed();
    let third = bed.join(1);
    // What it runs keeps it for a while.
    bed.submit(vec![call(2, &[]).on("w0")], &[2]).retire(FIRST);
    let (home, _) = bed.acquires()[0];
    let there = format!("w{}", home.0);
    bed.submit(vec![call(3, &[]).on(there)], &[3]);
    // The one that was to take it did not find it; it is computed again elsewhere, where it is to move from too.
    bed.worker_says(home, FromWorker::Missing { id, holder: Some(FIRST) }).is(1, TaskState::Processing);
    let (runner, again) = bed.assignment(1);
    bed.finish_on(runner, again).retire(runner);
    assert_eq!([home, runner].iter().max(), Some(&third), "each of the others has its part");
    assert_eq!(bed.acquires(), [(home, again)]);
}
