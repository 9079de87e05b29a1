//! What is needed no more.

use super::*;

#[test]
fn freed_while_waiting_its_fetch_is_given_up() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])])).is(9, TaskState::Waiting);
    bed.free(9).is_forgotten(9).is(2, TaskState::Cancelled);
    bed.gathered(ALICE, &[2]).is_forgotten(2).does(&[]);
    assert_eq!(bed.state.metrics().managed, 0);
}

#[test]
fn a_given_up_fetch_that_is_wanted_again_goes_on() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])])).free(9).is(2, TaskState::Cancelled);
    bed.compute(task(10, vec![held(2, &[ALICE])])).is(2, TaskState::Flight).does(&[]);
    bed.gathered(ALICE, &[2]).is(10, TaskState::Executing);
}

#[test]
fn freed_while_its_dependency_is_to_be_fetched() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])])).compute(task(10, vec![held(4, &[ALICE])]));
    bed.is(4, TaskState::Fetch).free(10).is_forgotten(4).is_forgotten(10);
    bed.gathered(ALICE, &[2]).does(&["execute 9", "added 2"]);
}

#[test]
fn freed_while_ready() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).compute(task(2, vec![])).is(2, TaskState::Ready);
    bed.free(2).is_forgotten(2).executed(1).does(&["finished 1"]);
}

#[test]
fn freed_while_constrained() {
    let mut bed = Bed::with(2, vec![("gpu".into(), 1.0)]);
    let gpu = |n| ComputeTask { resources: vec![("gpu".into(), 1.0)], ..task(n, vec![]) };
    bed.compute(gpu(1)).compute(gpu(2)).is(2, TaskState::Constrained);
    bed.free(2).is_forgotten(2).executed(1).does(&["finished 1"]);
    bed.compute(gpu(3)).is(3, TaskState::Executing);
}

#[test]
fn freed_while_executing_its_result_is_thrown_away() {
    let mut bed = Bed::new();
    bed.with_result(1).compute(task(2, vec![held(1, &[])])).compute(task(3, vec![]));
    bed.free(2).is(2, TaskState::Cancelled).is(3, TaskState::Ready);
    bed.executed(2).is_forgotten(2).is(3, TaskState::Executing).does(&["execute 3"]);
}

#[test]
fn freed_while_long_running() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).handle(Stimulus::Seceded(id(1)));
    bed.free(1).is(1, TaskState::Cancelled).executed(1).is_forgotten(1).does(&[]);
}

#[test]
fn a_task_that_was_freed_and_then_secedes_leaves_its_place() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).compute(task(2, vec![])).free(1).is(1, TaskState::Cancelled);
    bed.handle(Stimulus::Seceded(id(1))).is(2, TaskState::Executing).executed(1).is_forgotten(1);
}

#[test]
fn freed_while_in_memory_and_needed_here_it_is_looked_for_anew() {
    let mut bed = Bed::new();
    bed.with_result(1).compute(task(5, vec![])).compute(task(9, vec![held(1, &[])]));
    bed.is(9, TaskState::Ready).free(1).is(9, TaskState::Waiting).is(1, TaskState::Fetch);
    bed.does(&["missing 1 not with None"]);
    bed.handle(Stimulus::WhoHas(vec![held(1, &[ALICE])])).gathered(ALICE, &[1]).is(9, TaskState::Ready);
}

#[test]
fn freed_while_a_running_task_has_it_in_hand_nothing_stops() {
    let mut bed = Bed::new();
    bed.with_result(1).compute(task(9, vec![held(1, &[])])).is(9, TaskState::Executing);
    bed.free(1).does(&[]).executed(9).is(9, TaskState::Memory).is_forgotten(1);
}

#[test]
fn a_task_computed_again_comes_under_another_id_and_meets_nothing_of_the_former() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).free(1).is(1, TaskState::Cancelled);
    let again = ComputeTask { id: TaskId::new(1, 1), ..task(1, vec![]) };
    bed.compute(again);
    assert_eq!(bed.state.task_state(TaskId::new(1, 1)), Some(TaskState::Ready));
    bed.executed(1).is_forgotten(1).does(&["execute 1"]);
}

#[test]
fn what_is_not_known_here_is_freed_without_a_word() {
    let mut bed = Bed::new();
    bed.free(1).does(&[]).executed(1).does(&[]).gathered(ALICE, &[1]).does(&[]).is_forgotten(1);
}
