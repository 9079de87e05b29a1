//! Which task runs when, and what is said of it.

use super::*;

#[test]
fn it_waits_for_peers_where_nothing_else_can_run() {
    let mut bed = Bed::with(2, vec![]);
    assert!(!bed.state.waits_for_peers(), "nothing is to be done");
    // What a peer still computes.
    bed.compute(task(2, vec![held(1, &[])])).is(2, TaskState::Waiting);
    assert!(bed.state.waits_for_peers());
    bed.compute(task(3, vec![]));
    assert!(bed.state.waits_for_peers(), "a thread is idle");
    bed.compute(task(4, vec![]));
    assert!(!bed.state.waits_for_peers());
    bed.executed(3);
    assert!(bed.state.waits_for_peers());
    bed.free(2);
    assert!(!bed.state.waits_for_peers());
}

#[test]
fn a_task_without_dependencies_runs_at_once() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).is(1, TaskState::Executing).does(&["execute 1"]);
    bed.executed(1).is(1, TaskState::Memory).does(&["finished 1"]);
    assert_eq!(bed.state.metrics().managed, 8);
    bed.free(1).is_forgotten(1).does(&[]);
    assert_eq!(bed.state.metrics().managed, 0);
}

#[test]
fn dependencies_are_fetched_reported_and_handed_to_the_task() {
    let mut bed = Bed::new();
    bed.with_result(1);
    bed.compute(task(3, vec![held(1, &[]), held(2, &[ALICE])]));
    bed.is(3, TaskState::Waiting).is(2, TaskState::Flight).does(&["ask 7 for 2"]);
    bed.gathered(ALICE, &[2]).is(2, TaskState::Memory).is(3, TaskState::Executing);
    bed.does(&["execute 3", "added 2"]);
    assert_eq!(bed.inputs(), [1, 2]);
}

#[test]
fn the_more_urgent_task_runs_first() {
    let mut bed = Bed::new();
    bed.compute(task(5, vec![]));
    for n in [9, 7, 8] {
        bed.compute(task(n, vec![])).is(n, TaskState::Ready);
    }
    bed.executed(5).is(7, TaskState::Executing).executed(7).is(8, TaskState::Executing);
}

#[test]
fn what_is_critical_runs_first_the_highest_before_others() {
    let mut bed = Bed::new();
    let high = |n, height, critical| ComputeTask { height, critical, ..task(n, vec![]) };
    bed.compute(task(1, vec![])).compute(high(2, 0, 9)).compute(high(3, 4, 9)).compute(high(4, 6, 9));
    // Nothing is critical yet.
    bed.executed(1).is(2, TaskState::Executing);
    // Now all is that is as high as this one: what came before, too.
    bed.compute(high(5, 3, 3)).compute(high(6, 2, 3));
    for next in [4, 3, 5, 6] {
        let running =
            [2, 4, 3, 5].into_iter().find(|n| bed.state.task_state(id(*n)) == Some(TaskState::Executing));
        bed.executed(running.expect("one runs")).is(next, TaskState::Executing);
    }
}

#[test]
fn short_tasks_are_handed_over_ahead_of_time_and_long_ones_are_not() {
    for (duration, ahead) in [(1_000, true), (1_000_000_000, false)] {
        let mut bed = Bed::new();
        let same = |n| ComputeTask { entry: task(1, vec![]).entry, ..task(n, vec![]) };
        bed.compute(same(1));
        let result = Ok(Value::new(1i64));
        bed.handle(Stimulus::Executed { id: id(1), result, nbytes: 8, duration });
        bed.compute(same(2)).is(2, TaskState::Executing).compute(same(3));
        bed.is(3, if ahead { TaskState::Executing } else { TaskState::Ready });
    }
}

#[test]
fn an_error_is_reported_and_the_task_let_go() {
    let mut bed = Bed::new();
    bed.compute(task(2, vec![held(1, &[ALICE])])).gathered(ALICE, &[1]);
    bed.handle(Stimulus::Executed { id: id(2), result: Err(failure()), nbytes: 0, duration: 1 });
    bed.is_forgotten(2).is(1, TaskState::Memory);
    assert_eq!(bed.told().len(), 1);
    assert!(bed.told()[0].starts_with("erred 2: a task failed: it did not work"), "{:?}", bed.told());
}

#[test]
fn resources_are_held_while_a_task_runs() {
    let mut bed = Bed::with(2, vec![("gpu".into(), 1.0)]);
    let gpu = |n| ComputeTask { resources: vec![("gpu".into(), 0.6)], ..task(n, vec![]) };
    bed.compute(gpu(1)).is(1, TaskState::Executing);
    bed.compute(gpu(2)).is(2, TaskState::Constrained);
    bed.compute(task(3, vec![])).is(3, TaskState::Executing);
    bed.executed(3).is(2, TaskState::Constrained);
    bed.executed(1).is(2, TaskState::Executing);
}

#[test]
fn a_long_running_task_leaves_its_place_to_another() {
    let mut bed = Bed::new();
    bed.compute(task(1, vec![])).compute(task(2, vec![])).is(2, TaskState::Ready);
    bed.handle(Stimulus::Seceded(id(1))).is(1, TaskState::LongRunning).is(2, TaskState::Executing);
    bed.does(&["long-running 1", "execute 2"]);
    bed.executed(1).is(1, TaskState::Memory).does(&["finished 1"]);
}

#[test]
fn a_wanted_small_result_goes_along_and_a_big_one_does_not() {
    for (nbytes, along) in [(4096, true), (4097, false)] {
        let mut bed = Bed::new();
        bed.compute(ComputeTask { wanted: true, ..task(1, vec![]) });
        let result = Ok(Value::new(vec![0u8; 1]));
        bed.handle(Stimulus::Executed { id: id(1), result, nbytes, duration: 1 });
        let [Instruction::Send(FromWorker::Finished(finished))] = &bed.told[..] else { panic!() };
        assert_eq!(finished.value.is_some(), along);
    }
}

#[test]
fn above_its_memory_limit_a_worker_runs_one_task_at_a_time() {
    let mut bed = Bed::with(4, vec![]);
    bed.state = State::new(Config {
        nthreads: 4,
        memory_limit: 1000,
        thresholds: Thresholds { target: None, ..Thresholds::default() },
        resources: vec![],
        chains: true,
    });
    bed.compute(task(1, vec![]));
    let result = Ok(Value::new(0i64));
    bed.handle(Stimulus::Executed { id: id(1), result, nbytes: 900, duration: 1 });
    bed.compute(task(2, vec![])).is(2, TaskState::Executing);
    bed.compute(task(3, vec![])).is(3, TaskState::Ready);
    bed.free(1).is(3, TaskState::Executing);
}
