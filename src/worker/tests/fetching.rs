//! What comes from peers.

use super::*;

#[test]
fn one_request_a_peer_at_a_time_asks_for_all_that_it_has() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(1, &[ALICE]), held(2, &[ALICE]), held(3, &[BOB])]));
    bed.does(&["ask 7 for 1 2", "ask 8 for 3"]);
    bed.compute(task(10, vec![held(4, &[ALICE])])).does(&[]).is(4, TaskState::Fetch);
    bed.gathered(ALICE, &[1, 2]).is(4, TaskState::Flight).does(&["ask 7 for 4"]);
}

#[test]
fn a_peer_that_does_not_have_it_is_followed_by_one_that_may() {
    let mut bed = Bed::new();
    // Which holder is asked first goes by the number: 2 is even.
    bed.compute(task(9, vec![held(2, &[ALICE, BOB])])).does(&["ask 7 for 2"]);
    bed.not_gathered(ALICE, &[2]).does(&["ask 8 for 2"]);
    bed.not_gathered(BOB, &[2]).is(2, TaskState::Fetch).does(&["missing 2 not with Some(8)"]);
    bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&["ask 7 for 2"]);
    bed.gathered(ALICE, &[2]).is(9, TaskState::Executing);
}

#[test]
fn what_fetches_took_is_told_once() {
    let mut bed = Bed::new();
    // The first time a peer may have to be connected to.
    bed.compute(task(8, vec![held(1, &[ALICE])])).gathered(ALICE, &[1]);
    assert_eq!(bed.state.take_fetches(), []);
    let before = bed.state.metrics().fetched;
    bed.compute(task(9, vec![held(2, &[ALICE])]));
    let asked = bed.now;
    bed.now += 1000;
    bed.gathered(ALICE, &[2]);
    let (nbytes, nanos) = (bed.state.metrics().fetched - before, bed.now - asked);
    assert!(nbytes > 0 && nanos > 1000);
    assert_eq!(bed.state.take_fetches(), [Fetch { from: ALICE, nbytes, nanos }]);
    // Of what failed nothing is learned.
    bed.compute(task(10, vec![held(4, &[BOB])])).not_gathered(BOB, &[4]);
    assert_eq!(bed.state.take_fetches(), []);
}

#[test]
fn a_fetch_queued_at_a_peer_that_dies_goes_elsewhere() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])])).compute(task(10, vec![held(4, &[ALICE, BOB])]));
    bed.is(4, TaskState::Fetch);
    bed.handle(Stimulus::PeerGone(ALICE)).is(4, TaskState::Flight).does(&["ask 8 for 4"]);
    // What was in flight fails on its own.
    bed.is(2, TaskState::Flight).not_gathered(ALICE, &[2]).does(&["missing 2 not with Some(7)"]);
}

#[test]
fn a_fetch_that_knows_no_holder_goes_on_when_another_task_names_one() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])])).not_gathered(ALICE, &[2]).is(2, TaskState::Fetch);
    bed.compute(task(10, vec![held(2, &[BOB])])).is(2, TaskState::Flight).does(&["ask 8 for 2"]);
    // The scheduler's late answer changes nothing.
    bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&[]).is(2, TaskState::Flight);
}

#[test]
fn a_dependency_that_cannot_be_sent_fails_those_that_need_it() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE])]));
    bed.handle(Stimulus::Gathered { peer: ALICE, data: vec![(id(2), Some(Err(failure())))] });
    bed.is_forgotten(9).is_forgotten(2);
    assert!(bed.told()[0].starts_with("erred 9"), "{:?}", bed.told());
}

#[test]
fn a_running_task_is_not_failed_by_what_it_has_in_hand() {
    let mut bed = Bed::new();
    bed.with_result(2).compute(task(9, vec![held(2, &[])])).is(9, TaskState::Executing);
    bed.compute(task(10, vec![held(2, &[])])).free(2).is(10, TaskState::Waiting);
    bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).is(2, TaskState::Flight);
    bed.handle(Stimulus::Gathered { peer: ALICE, data: vec![(id(2), Some(Err(failure())))] });
    bed.is_forgotten(10).is(9, TaskState::Executing).executed(9).is(9, TaskState::Memory);
}

#[test]
fn a_copy_is_fetched_on_demand_though_no_task_here_needs_it() {
    let mut bed = Bed::new();
    bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE])])).does(&["ask 7 for 2"]);
    bed.gathered(ALICE, &[2]).is(2, TaskState::Memory).does(&["added 2"]);
    bed.free(2).is_forgotten(2);
}

#[test]
fn copies_are_reported_together_unless_others_take_long() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![held(2, &[ALICE]), held(3, &[BOB]), held(4, &[BOB])]));
    bed.gathered(ALICE, &[2]).does(&[]);
    bed.gathered(BOB, &[3, 4]).does(&["execute 9", "added 2 3 4"]);
    // Whatever else is said takes them along.
    bed.compute(task(10, vec![held(5, &[ALICE]), held(6, &[BOB])])).gathered(ALICE, &[5]).does(&[]);
    bed.not_gathered(BOB, &[6]).does(&["added 5", "missing 6 not with Some(8)"]);
    // What is let go of is not reported.
    bed.compute(task(11, vec![held(7, &[ALICE]), held(8, &[BOB])])).gathered(ALICE, &[7]);
    bed.free(7).does(&["missing 7 not with None"]).gathered(BOB, &[8]).does(&["added 8"]);
    // One that takes long is not waited for.
    bed.compute(task(12, vec![held(13, &[ALICE]), held(14, &[BOB])])).gathered(ALICE, &[13]).does(&[]);
    bed.now = bed.state.reports_due().unwrap();
    bed.handle(Stimulus::Report).does(&["added 13"]);
    assert_eq!(bed.state.reports_due(), None);
}

#[test]
fn a_copy_that_was_asked_for_is_reported_at_once() {
    let mut bed = Bed::new();
    bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE]), held(3, &[BOB])]));
    bed.gathered(ALICE, &[2]).does(&["added 2"]);
    bed.gathered(BOB, &[3]).does(&["added 3"]);
}

/// As [`held`], of what few tasks need.
fn passing(n: u32, who_has: &[WorkerId]) -> Dependency {
    Dependency { passing: true, ..held(n, who_has) }
}

#[test]
fn what_few_need_is_not_told_of_and_goes_with_the_last_of_them() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![passing(2, &[ALICE])])).compute(task(10, vec![passing(2, &[ALICE])]));
    bed.gathered(ALICE, &[2]).does(&["execute 9"]).executed(9).is(2, TaskState::Memory);
    assert_eq!(bed.state.reports_due(), None);
    bed.executed(10).is_forgotten(2);
    // So it is where its task is taken back.
    bed.compute(task(11, vec![passing(4, &[ALICE]), held(6, &[BOB])])).gathered(ALICE, &[4]);
    bed.free(11).does(&[]).is_forgotten(4);
    assert_eq!(bed.state.metrics().managed, 16, "the two results");
}

#[test]
fn what_came_in_passing_stays_when_it_is_asked_for() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![passing(2, &[ALICE])])).gathered(ALICE, &[2]);
    bed.handle(Stimulus::Acquire(vec![passing(2, &[])])).does(&["added 2"]);
    bed.executed(9).is(2, TaskState::Memory);
    // On its way it is told of when it comes.
    bed.compute(task(10, vec![passing(4, &[ALICE])])).handle(Stimulus::Acquire(vec![passing(4, &[])]));
    bed.gathered(ALICE, &[4]).does(&["added 4", "execute 10"]).executed(10).is(4, TaskState::Memory);
    // Who does not have it says so, and forgets it when it hears that it is to be computed again.
    bed.handle(Stimulus::Acquire(vec![passing(6, &[])])).does(&["missing 6 not with None"]);
    bed.free(6).is_forgotten(6);
}

#[test]
fn who_is_to_keep_what_its_dead_holder_cannot_give_says_so() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![passing(2, &[ALICE])]));
    bed.handle(Stimulus::Acquire(vec![passing(2, &[])])).handle(Stimulus::PeerGone(ALICE)).does(&[]);
    bed.not_gathered(ALICE, &[2]).does(&["missing 2 not with Some(7)"]);
    // What waits for its turn at that peer is not asked there any more.
    let mut bed = Bed::new();
    bed.compute(task(8, vec![held(1, &[ALICE])])).compute(task(9, vec![passing(2, &[ALICE])]));
    bed.is(2, TaskState::Fetch).handle(Stimulus::Acquire(vec![passing(2, &[])])).does(&[]);
    bed.handle(Stimulus::PeerGone(ALICE)).does(&["missing 2 not with Some(7)"]);
}

#[test]
fn data_put_here_wakes_who_waits_for_it() {
    let mut bed = Bed::new();
    bed.compute(task(9, vec![passing(2, &[ALICE])]));
    bed.handle(Stimulus::Put(vec![(id(2), Value::new(5i64))])).is(9, TaskState::Executing);
    bed.gathered(ALICE, &[2]).is(2, TaskState::Memory);
    assert_eq!(bed.state.metrics().managed, 8, "it is held once");
    bed.executed(9).is(2, TaskState::Memory);
}
