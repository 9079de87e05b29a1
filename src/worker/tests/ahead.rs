//! Tasks that come before what they need is there.

use super::*;
use crate::worker::Input;

/// A task of a function that is known to be short.
fn quick(n: u32, dependencies: Vec<Dependency>) -> ComputeTask {
    ComputeTask { entry: task(1, vec![]).entry, ..task(n, dependencies) }
}

fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.compute(quick(1, vec![]));
    ran(&mut bed, 1, Ok(1));
    bed
}

fn ran(bed: &mut Bed, n: u32, result: Result<i64, TaskError>) {
    bed.handle(Stimulus::Executed { id: id(n), result: result.map(Value::new), nbytes: 8, duration: 1000 });
}

/// A dependency that is still to be computed.
fn coming(n: u32) -> Dependency {
    held(n, &[])
}

#[test]
fn a_short_task_joins_those_that_the_compute_threads_have() {
    let mut bed = bed();
    bed.compute(quick(2, vec![])).compute(quick(3, vec![coming(2), held(1, &[])]));
    bed.is(3, TaskState::Executing).does(&["execute 3"]);
    let inputs = &bed.started().inputs[..];
    assert!(matches!(inputs, [Input::Coming(made), Input::Here(_)] if *made == id(2)), "{inputs:?}");
    // A chain of any length does.
    bed.compute(quick(4, vec![coming(3)])).is(4, TaskState::Executing).does(&["execute 4"]);
    for n in [2, 3, 4] {
        ran(&mut bed, n, Ok(0));
        bed.is(n, TaskState::Memory);
    }
    assert_eq!(bed.state.metrics().executing, 0);
}

/// The compute threads have room for 512 tasks of a chain, from 2 to 600.
fn bed_with_a_chain() -> Bed {
    let mut bed = bed();
    bed.compute(quick(2, vec![]));
    for n in 3..=600 {
        bed.compute(quick(n, vec![coming(n - 1)]));
    }
    bed
}

#[test]
fn who_has_no_room_joins_as_soon_as_there_is_some() {
    let mut bed = bed_with_a_chain();
    bed.is(513, TaskState::Executing).is(514, TaskState::Waiting).free(600);
    for n in 2..=600 {
        ran(&mut bed, n, Ok(0));
        let joined = format!("execute {}", n + 512);
        let joins = bed.told.iter().any(|told| matches!(told, Instruction::Execute(_)));
        assert_eq!(joins, n + 512 < 600, "{n}");
        if joins {
            bed.does(&[&joined]);
        }
    }
    bed.is_forgotten(600);
    assert_eq!(bed.state.metrics().executing, 0);
}

#[test]
fn what_goes_before_is_not_kept_waiting_by_those_that_join() {
    let mut bed = bed_with_a_chain();
    // Nobody knows how long it takes.
    bed.compute(ComputeTask { priority: Priority::default(), ..task(900, vec![]) }).is(900, TaskState::Ready);
    (2..=512).for_each(|n| ran(&mut bed, n, Ok(0)));
    bed.is(900, TaskState::Ready).is(514, TaskState::Waiting);
    ran(&mut bed, 513, Ok(0));
    bed.is(900, TaskState::Executing);
}

#[test]
fn critical_ones_join_before_what_would_go_before_others() {
    let mut bed = bed();
    let high = |n, needs| ComputeTask { height: 600 - n, critical: 50, ..quick(n, needs) };
    bed.compute(high(2, vec![]));
    for n in 3..=600 {
        bed.compute(high(n, vec![coming(n - 1)]));
    }
    let first = ComputeTask { priority: Priority::default(), critical: 50, ..task(900, vec![]) };
    bed.compute(first).is(900, TaskState::Ready).is(514, TaskState::Waiting);
    // The last that is critical is 550.
    for n in 2..=38 {
        ran(&mut bed, n, Ok(0));
        bed.is(n + 512, TaskState::Executing);
    }
    ran(&mut bed, 39, Ok(0));
    bed.is(551, TaskState::Waiting).is(900, TaskState::Ready);
}

#[test]
fn it_comes_back_where_what_it_needs_fails() {
    let mut bed = bed();
    bed.compute(quick(2, vec![])).compute(quick(3, vec![coming(2)])).compute(quick(4, vec![coming(3)]));
    ran(&mut bed, 2, Err(failure()));
    bed.handle(Stimulus::Unstarted(vec![id(3), id(4)]));
    bed.is(3, TaskState::Waiting).is(4, TaskState::Waiting).does(&[]);
    // The scheduler takes them back, each when it hears of it.
    bed.free(3).free(4).is_forgotten(2).is_forgotten(3).is_forgotten(4);
    assert_eq!(bed.state.metrics().executing, 0);
}

#[test]
fn it_is_not_missed_where_nobody_wants_it_any_more() {
    let mut bed = bed();
    bed.compute(quick(2, vec![])).compute(quick(3, vec![coming(2)])).free(3).is(3, TaskState::Cancelled);
    ran(&mut bed, 2, Err(failure()));
    bed.handle(Stimulus::Unstarted(vec![id(3)])).is_forgotten(2).is_forgotten(3);
}

#[test]
fn what_a_peer_computes_is_waited_for_and_fetched_when_it_is_said_where_it_is() {
    let mut bed = bed();
    bed.compute(quick(3, vec![coming(2)])).is(3, TaskState::Waiting).is(2, TaskState::Fetch).does(&[]);
    bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&["ask 7 for 2"]);
    bed.gathered(ALICE, &[2]).is(3, TaskState::Executing);
}

#[test]
fn what_a_peer_forwards_is_here_for_as_long_as_it_is_needed() {
    let mut bed = bed();
    bed.compute(quick(3, vec![coming(2)]));
    bed.handle(Stimulus::Forwarded(vec![(id(2), Value::new(2i64)), (id(9), Value::new(9i64))]));
    bed.is(2, TaskState::Memory).is(3, TaskState::Executing).is_forgotten(9).does(&["execute 3"]);
    // By now it is no news.
    bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&[]);
    ran(&mut bed, 3, Ok(3));
    bed.is_forgotten(2).does(&["finished 3"]);
    assert_eq!(bed.state.metrics().managed, 16);
}

#[test]
fn what_was_forwarded_stays_where_the_scheduler_wants_a_copy() {
    let mut bed = bed();
    bed.compute(quick(3, vec![coming(2)]));
    bed.handle(Stimulus::Forwarded(vec![(id(2), Value::new(2i64))]));
    bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE])])).does(&["added 2"]);
    ran(&mut bed, 3, Ok(3));
    bed.is(2, TaskState::Memory);
}

#[test]
fn results_go_to_peers_that_wait_for_them() {
    let forward = |bed: &Bed| match bed.told.as_slice() {
        [Instruction::Forward { peer, id, .. }, ..] => Some((*peer, *id)),
        _ => None,
    };
    let mut bed = bed();
    bed.compute(quick(2, vec![])).handle(Stimulus::Forward { id: id(2), to: ALICE });
    bed.does(&["hasten 2"]);
    ran(&mut bed, 2, Ok(2));
    assert_eq!(forward(&bed), Some((ALICE, id(2))));
    // One that is there already goes at once; of one that nobody assigned nothing is known.
    bed.handle(Stimulus::Forward { id: id(2), to: BOB });
    assert_eq!(forward(&bed), Some((BOB, id(2))));
    bed.handle(Stimulus::Forward { id: id(5), to: BOB }).does(&[]);
}

#[test]
fn short_tasks_are_reported_some_at_a_time() {
    let mut bed = bed();
    for n in [2, 3, 4] {
        bed.compute(quick(n, vec![]));
    }
    ran(&mut bed, 2, Ok(2));
    bed.does(&[]);
    ran(&mut bed, 3, Ok(3));
    bed.does(&["finished 2", "finished 3"]);
    // What a client waits for does not wait, nor what came before it.
    bed.compute(ComputeTask { wanted: true, ..quick(5, vec![]) });
    for n in [6, 7, 8] {
        bed.compute(quick(n, vec![]));
    }
    ran(&mut bed, 4, Ok(4));
    bed.does(&[]);
    ran(&mut bed, 5, Ok(5));
    bed.does(&["finished 4", "finished 5"]);
    // Nor for ever.
    ran(&mut bed, 6, Ok(6));
    assert!(bed.told.is_empty() && bed.state.reports_due().is_some());
    bed.now += 1_000_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&["finished 6"]);
    bed.compute(quick(9, vec![]));
    ran(&mut bed, 7, Ok(7));
    bed.does(&[]).handle(Stimulus::Report).does(&["finished 7"]);
    // A question is answered after what was done before it.
    bed.compute(quick(10, vec![]));
    ran(&mut bed, 8, Ok(8));
    bed.does(&[]).handle(Stimulus::GiveBack(vec![id(8), id(9)])).does(&["finished 8", "kept 8 9"]);
}

#[test]
fn what_others_follow_is_reported_last() {
    let mut bed = bed();
    bed.compute(quick(2, vec![])).compute(quick(3, vec![coming(2)])).compute(quick(4, vec![coming(3)]));
    ran(&mut bed, 2, Ok(2));
    bed.now += 1_000_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&[]);
    assert_eq!(bed.state.reports_due().map(|due| due > bed.now), Some(true));
    bed.now += 1_000_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&["finished 2"]);
    // So it is where peers follow; but what came before goes with what does not wait as long.
    bed.compute(quick(5, vec![])).compute(quick(6, vec![])).compute(quick(7, vec![coming(6)]));
    bed.handle(Stimulus::Forward { id: id(5), to: ALICE });
    ran(&mut bed, 5, Ok(5));
    assert!(bed.told.iter().all(|told| matches!(told, Instruction::Forward { .. })), "{:?}", bed.told);
    bed.now += 1_000_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&[]);
    bed.compute(quick(8, vec![]));
    ran(&mut bed, 8, Ok(8));
    bed.does(&[]);
    bed.now += 500_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&["finished 5", "finished 8"]);
    // Where not all that need it are known to follow, the scheduler may have something to do about it.
    bed.compute(ComputeTask { dependents: 2, ..quick(9, vec![]) }).compute(quick(10, vec![coming(9)]));
    ran(&mut bed, 9, Ok(9));
    bed.does(&[]);
    bed.now += 500_000;
    bed.handle(Stimulus::Memory { resident: 0 }).does(&["finished 9"]);
    // What takes long is worth a word of its own.
    let long =
        |n| Stimulus::Executed { id: id(n), result: Ok(Value::new(0)), nbytes: 8, duration: 5_000_000 };
    bed.handle(long(3)).does(&["finished 3"]);
}

#[test]
fn very_many_reports_wait_for_no_more() {
    let mut bed = bed();
    (2..1026).for_each(|n| {
        bed.compute(quick(n, if n == 2 { vec![] } else { vec![coming(n - 1)] }));
    });
    let sent = (2..600).map(|n| {
        ran(&mut bed, n, Ok(0));
        bed.told.iter().filter(|told| matches!(told, Instruction::Send(FromWorker::Finished(_)))).count()
    });
    assert_eq!(sent.filter(|sent| *sent > 0).collect::<Vec<_>>(), [512]);
}

#[test]
fn reports_take_along_what_fetches_took() {
    let told = |bed: &Bed| {
        let fetched = |told: &Instruction| matches!(told, Instruction::Send(FromWorker::Fetched(_)));
        bed.told.iter().filter(|told| fetched(told)).count()
    };
    let mut bed = bed();
    bed.now += 20_000_000;
    let mut fetch = |n: u32| {
        bed.now += 2_000_000;
        let asked = told(bed.compute(quick(n, vec![held(n + 1, &[ALICE])])));
        let came = told(bed.gathered(ALICE, &[n + 1]));
        ran(&mut bed, n, Ok(0));
        asked + came + told(&bed)
    };
    // The first time a peer may have to be connected to.
    assert_eq!([10, 20].map(&mut fetch), [0, 1]);
    // Every twenty milliseconds is enough.
    assert_eq!((3..15).map(|n| fetch(10 * n)).sum::<usize>(), 1);
}

#[test]
fn sizes_beyond_belief_do_no_harm() {
    let mut bed = Bed::new();
    let thresholds = Thresholds { target: Some(0.6), spill: Some(0.7), pause: Some(0.8), terminate: None };
    let resources = vec![];
    bed.state =
        State::new(Config { nthreads: 2, memory_limit: 1 << 20, thresholds, resources, chains: true });
    bed.compute(quick(1, vec![]));
    ran(&mut bed, 1, Ok(1));
    let huge = |n| Dependency { nbytes: u64::MAX, ..coming(n) };
    bed.compute(quick(2, vec![])).compute(quick(3, vec![]));
    // It has no room beside them, as far as anybody knows.
    bed.compute(quick(4, vec![huge(2), huge(3)])).is(4, TaskState::Waiting);
    ran(&mut bed, 2, Ok(2));
    ran(&mut bed, 3, Ok(3));
    bed.is(4, TaskState::Executing);
}
