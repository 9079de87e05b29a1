//! How many tasks of a name run at once.

use super::*;

fn limit(bed: &mut Bed, name: &str, most: Option<u32>) {
    bed.asks(Query::Limit { name: name.into(), most });
    assert!(matches!(bed.answers()[..], [Answer::Done]));
}

fn processing(bed: &Bed) -> usize {
    bed.state.tasks.iter().filter(|task| task.state == TaskState::Processing).count()
}

#[test]
fn as_many_as_the_limit_lets_run_do_and_each_that_ends_lets_another_in() {
    let mut bed = Bed::new(4);
    limit(&mut bed, "f", Some(2));
    bed.submit((1..=5).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5]);
    assert_eq!(processing(&bed), 2);
    bed.is(3, TaskState::Queued);
    bed.finish(1).is(3, TaskState::Processing).is(4, TaskState::Queued);
    // One that fails, or whose worker dies, makes room as well.
    let (worker, id) = bed.assignment(2);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() }).is(4, TaskState::Processing);
    let worker = bed.assignment(3).0;
    bed.lose(worker);
    assert_eq!(processing(&bed), 2);
    bed.state.validate();
}

#[test]
fn it_holds_for_tasks_with_dependencies_and_for_those_that_are_named() {
    let mut bed = Bed::new(4);
    limit(&mut bed, "slow", Some(1));
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let slow = |o: &mut TaskOptions| o.name = Some("slow".into());
    bed.submit((2..=4).map(|key| call(key, &[1]).with(slow)).collect(), &[2, 3, 4]);
    bed.submit(vec![call(9, &[1])], &[9]).is(9, TaskState::Processing);
    assert_eq!(processing(&bed), 2);
    let told = bed.state.explain(&[Key(3)])[0].to_string();
    assert!(told.contains("1 task of the name slow may run at once, and as many do."), "{told}");
    bed.finish(2).is(3, TaskState::Processing).is(4, TaskState::Queued);
}

#[test]
fn a_limit_counts_what_runs_already_and_may_be_raised_and_lifted() {
    let mut bed = Bed::new(6);
    bed.submit((1..=3).map(|key| call(key, &[])).collect(), &[1, 2, 3]);
    limit(&mut bed, "f", Some(1));
    bed.submit((4..=6).map(|key| call(key, &[])).collect(), &[4, 5, 6]);
    assert_eq!(processing(&bed), 3);
    bed.finish(1).finish(2).is(4, TaskState::Queued);
    limit(&mut bed, "f", Some(2));
    bed.is(4, TaskState::Processing).is(5, TaskState::Queued);
    limit(&mut bed, "f", None);
    bed.is(5, TaskState::Processing).is(6, TaskState::Processing);
    bed.state.validate();
}

#[test]
fn what_waits_for_a_limit_can_be_released() {
    let mut bed = Bed::new(2);
    limit(&mut bed, "f", Some(1));
    bed.submit((1..=3).map(|key| call(key, &[])).collect(), &[1, 2, 3]);
    bed.release(&[2]).is_forgotten(2);
    bed.finish(1).is(3, TaskState::Processing);
}

#[test]
fn of_those_that_are_released_together_none_is_let_in() {
    let mut bed = Bed::new(2);
    limit(&mut bed, "f", Some(1));
    bed.submit((1..=5).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5]);
    bed.release(&[1, 2, 3]).is_forgotten(2).is(4, TaskState::Processing).is(5, TaskState::Queued);
    assert_eq!(bed.computes().iter().map(|(_, key)| *key).collect::<Vec<_>>(), [4]);
}

#[test]
fn the_highest_priority_is_let_in_first() {
    let mut bed = Bed::new(2);
    limit(&mut bed, "f", Some(1));
    bed.submit(vec![call(1, &[]), call(2, &[])], &[1, 2]);
    bed.submit(vec![call(3, &[]).with(|o| o.priority = 1)], &[3]);
    bed.finish(1).is(3, TaskState::Processing).is(2, TaskState::Queued);
}
