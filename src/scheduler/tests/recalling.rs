//! A result's last known holder is gone: workers that run with it are asked for it.

use super::*;

/// Two tasks that need the first one's result, each on a worker of its own, and not where that lies.
fn run_with_copies() -> (Bed, TaskId, [WorkerId; 2]) {
    let mut bed = Bed::new(3);
    let named = |worker: u128| format!("w{worker}");
    let needing = (2..=3).map(|key| call(key, &[1]).on(named(key - 1)));
    bed.submit(needing.chain([call(1, &[]).on(named(0))]).collect(), &[2, 3]).finish(1);
    let passing = bed.computed().iter().map(|(_, task)| task.dependencies[0].passing).collect::<Vec<_>>();
    assert_eq!(passing, [true, true], "few need it");
    let id = bed.id(1);
    (bed, id, [WorkerId(1), WorkerId(2)])
}

#[test]
fn what_a_dead_worker_held_lives_on_where_it_is_in_passing() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.lose(WorkerId(0)).is(1, TaskState::Memory);
    assert_eq!((bed.acquires(), bed.frees()), (vec![(first, id), (second, id)], vec![]));
    bed.state.validate();
    // One of them has it, the other one gets it from there.
    bed.worker_says(first, FromWorker::Missing { id, holder: Some(WorkerId(0)) })
        .is(2, TaskState::Processing);
    let told = bed.told.iter().any(|told| {
        matches!(told, Instruction::ToWorker(WorkerId(1), ToWorker::WhoHas(held)) if held[0].who_has[..] == [second])
    });
    assert!(told, "{:?}", bed.told);
    bed.worker_says(second, FromWorker::Added(vec![id]));
    assert_eq!(bed.task(1).who_has()[..], [second]);
    // And so it is when that one dies, for whoever runs with it by then.
    bed.lose(second).is(1, TaskState::Memory).is(2, TaskState::Processing);
    assert_eq!(bed.acquires(), [(first, id)]);
    bed.finish(2).state.validate();
}

#[test]
fn what_nobody_has_after_all_is_computed_again() {
    let (mut bed, id, workers) = run_with_copies();
    bed.lose(WorkerId(0)).join(1);
    for asker in workers {
        bed.is(1, TaskState::Memory);
        bed.worker_says(asker, FromWorker::Missing { id, holder: Some(WorkerId(0)) });
    }
    bed.is(1, TaskState::NoWorker).is(2, TaskState::Waiting).is(3, TaskState::Waiting);
    bed.state.validate();
}

#[test]
fn who_may_have_copies_is_not_asked_again_and_again() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.lose(WorkerId(0));
    // Each looks for it at the other.
    bed.worker_says(first, FromWorker::Missing { id, holder: Some(second) });
    bed.is(1, TaskState::NoWorker).is(2, TaskState::Waiting).is(3, TaskState::Waiting);
    bed.worker_says(second, FromWorker::Missing { id, holder: Some(first) });
    assert_eq!((bed.acquires(), bed.frees()), (vec![], vec![(second, id)]));
    bed.state.validate();
}

#[test]
fn a_result_that_is_not_where_it_was_is_asked_of_those_who_run_with_it_before_anybody_knows_of_a_death() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.worker_says(first, FromWorker::Missing { id, holder: Some(WorkerId(0)) });
    assert_eq!(bed.acquires(), [(second, id)]);
    bed.is(1, TaskState::Memory).is(2, TaskState::Processing);
    assert_eq!(bed.task(1).who_has()[..], [second]);
}

#[test]
fn who_needs_a_copy_of_a_lost_result_no_more_is_told_so() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.lose(WorkerId(0));
    // It was asked to keep what it has after it had said that it has none, and then looked for it at the other.
    bed.worker_says(first, FromWorker::Missing { id, holder: Some(WorkerId(0)) });
    bed.worker_says(first, FromWorker::Missing { id, holder: Some(second) }).is(1, TaskState::NoWorker);
    assert!(bed.frees().contains(&(first, id)), "{:?}", bed.told);
    bed.state.validate();
}

#[test]
fn nobody_lets_go_of_a_copy_for_the_sake_of_one_that_may_not_be_there() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.lose(WorkerId(0)).worker_says(second, FromWorker::Added(vec![id])).finish(3);
    bed.handle(Stimulus::Tick);
    assert_eq!(
        (bed.frees(), bed.task(1).who_has().len()),
        (vec![], 2),
        "one task needs it, and one may have it"
    );
    bed.worker_says(first, FromWorker::Added(vec![id])).handle(Stimulus::Tick);
    assert_eq!(bed.frees(), [(second, id)]);
    bed.state.validate();
}

#[test]
fn who_leaves_hands_over_what_others_only_may_have() {
    let (mut bed, id, [_, second]) = run_with_copies();
    let idle = bed.join(1);
    bed.retire(second).lose(WorkerId(0));
    assert_eq!(bed.frees(), []);
    bed.worker_says(second, FromWorker::Added(vec![id]));
    assert_eq!((bed.acquires(), bed.frees()), (vec![(idle, id)], vec![]));
    bed.worker_says(idle, FromWorker::Added(vec![id]));
    assert_eq!(bed.frees(), [(second, id)]);
    bed.state.validate();
}

#[test]
fn who_may_have_a_copy_is_told_of_others() {
    let (mut bed, id, [first, second]) = run_with_copies();
    let told = |bed: &mut Bed, key: u128| {
        bed.submit(vec![call(key, &[1]).on("w1")], &[key]);
        bed.computed()[0].1.dependencies[0].who_has.to_vec()
    };
    bed.lose(WorkerId(0));
    assert_eq!(told(&mut bed, 4), [second]);
    bed.worker_says(first, FromWorker::Added(vec![id]));
    assert_eq!(told(&mut bed, 5), [first]);
}

#[test]
fn a_copy_that_cannot_leave_its_process_was_none() {
    let (mut bed, id, [first, second]) = run_with_copies();
    bed.lose(WorkerId(0)).worker_says(first, FromWorker::NotAdded { id, error: failure() });
    assert_eq!(bed.task(1).who_has()[..], [second]);
    bed.state.validate();
}
