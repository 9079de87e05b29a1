//! What is given back, to others or before the worker leaves.

use super::*;

#[test]
fn it_gives_back_what_it_did_not_start_and_finishes_what_it_did() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).compute(task(2, vec![])).compute(task(9, vec![held(3, &[ALICE])]));
    bed.is(1, TaskState::Executing).is(2, TaskState::Ready).is(9, TaskState::Waiting);
    bed.handle(Stimulus::Retire).does(&["gave back 2 9"]).is_forgotten(2).is_forgotten(9);
    bed.gathered(ALICE, &[3]).is_forgotten(3);
    bed.executed(1).does(&["finished 1"]).is(1, TaskState::Memory);
    bed.handle(Stimulus::Retire).does(&[]);
}

#[test]
fn it_takes_no_more_tasks_but_serves_what_it_holds() {
    let mut bed = Bed::new();
    bed.with_result(1).handle(Stimulus::Retire).does(&[]);
    bed.compute(task(2, vec![])).does(&["gave back 2"]).is_forgotten(2);
    assert!(bed.state.value(id(1)).is_some());
    bed.free(1).is_forgotten(1);
}

#[test]
fn a_copy_that_cannot_be_had_is_reported() {
    let mut bed = Bed::new();
    bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE])]));
    let data = vec![(id(2), Some(Err(failure())))];
    bed.handle(Stimulus::Gathered { peer: ALICE, data });
    bed.does(&["not added 2: a task failed: it did not work"]).is_forgotten(2);
}

#[test]
fn what_was_not_started_is_given_back_and_what_was_is_kept() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).compute(task(2, vec![])).compute(task(9, vec![held(3, &[ALICE])]));
    let wanted = vec![id(1), id(2), id(9), id(77)];
    bed.handle(Stimulus::GiveBack(wanted)).does(&["gave back 2 9", "kept 1 77"]);
    bed.is_forgotten(2).is_forgotten(9).is(1, TaskState::Executing);
    // It may come back, as another computation.
    bed.compute(task(4, vec![])).is(4, TaskState::Ready);
}
