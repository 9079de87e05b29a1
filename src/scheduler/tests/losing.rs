//! A worker is lost, with a task in each of its states.

use super::*;
use crate::scheduler::restoring::{Absent, Expected};

#[test]
fn a_waiting_task_goes_on_waiting_for_what_is_computed_again() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2])], &[3]).finish(1);
    let other = bed.join(1);
    bed.lose(WorkerId(0)).is(3, TaskState::Waiting).is(1, TaskState::Processing);
    assert_eq!(bed.assignment(1).0, other, "its dependency was lost with the worker");
    assert_eq!(bed.task(3).waiting_on, 2);
}

#[test]
fn a_task_that_no_worker_may_run_waits_for_one() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]).on("gpu-node")], &[1]);
    bed.lose(WorkerId(0)).is(1, TaskState::NoWorker);
    bed.join(1);
    bed.is(1, TaskState::NoWorker);
}

#[test]
fn a_queued_task_is_queued_still_and_runs_on_the_next() {
    let mut bed = Bed::new(1);
    bed.submit((1..=5).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5]).is(5, TaskState::Queued);
    bed.lose(WorkerId(0)).is(5, TaskState::Queued).is(1, TaskState::NoWorker);
    let next = bed.join(8);
    assert_eq!(bed.computes().iter().filter(|(worker, _)| *worker == next).count(), 5);
}

#[test]
fn a_processing_task_runs_elsewhere_as_another_computation() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (lost, old) = bed.assignment(1);
    bed.lose(lost).is(1, TaskState::Processing);
    let (other, new) = bed.assignment(1);
    assert!(other != lost && new != old);
    assert_eq!(bed.frees(), [], "nothing is said to the dead");
}

#[test]
fn a_processing_task_waits_again_when_its_dependency_is_lost_elsewhere() {
    let mut bed = Bed::new(2);
    let there = |worker: &str| {
        let worker = worker.to_owned();
        move |o: &mut TaskOptions| o.workers = vec![worker]
    };
    bed.submit(
        vec![
            call(1, &[]).with(|o| {
                there("w0")(o);
                o.allow_other_workers = true;
            }),
            call(2, &[1]).with(there("w1")),
        ],
        &[2],
    );
    bed.finish(1);
    let (runner, id) = bed.assignment(2);
    assert_eq!(runner, WorkerId(1));
    let lost = bed.id(1);
    bed.lose(WorkerId(0)).is(2, TaskState::Processing).is(1, TaskState::Memory);
    assert_eq!(bed.acquires(), [(runner, lost)], "who runs with it may have it");
    bed.worker_says(runner, FromWorker::Missing { id: lost, holder: Some(WorkerId(0)) });
    bed.is(2, TaskState::Waiting).is(1, TaskState::Processing);
    assert!(bed.frees().contains(&(runner, id)), "it is taken back from the worker that would run it");
    assert!(bed.frees().contains(&(runner, lost)), "and asked for no copy any more");
    bed.state.validate();
}

#[test]
fn a_result_is_lost_only_with_its_last_holder() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (first, id) = bed.assignment(1);
    let other = WorkerId(1 - first.0);
    bed.finish(1).worker_says(other, FromWorker::Added(vec![id]));
    bed.lose(first).is(1, TaskState::Memory);
    assert_eq!(bed.client_hears(), [""; 0]);
    bed.lose(other).is(1, TaskState::NoWorker);
    assert_eq!(bed.client_hears(), ["1 lost"]);
    bed.join(1);
    bed.is(1, TaskState::Processing);
}

#[test]
fn an_erred_task_stays_erred() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.lose(worker).is(1, TaskState::Erred);
    assert_eq!(bed.client_hears(), [""; 0]);
}

#[test]
fn a_released_task_is_computed_again_only_if_somebody_needs_it() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[2]).finish(1).finish(2).is(1, TaskState::Released);
    let holder = bed.task(2).who_has()[0];
    bed.lose(holder).is(1, TaskState::Processing).is(2, TaskState::Waiting);
}

#[test]
fn what_takes_down_too_many_workers_errs_and_names_the_last() {
    let mut bed = Bed::new(0);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[1, 2]);
    for _ in 0..=Config::default().allowed_failures {
        bed.is(1, TaskState::NoWorker);
        let worker = bed.join(1);
        bed.is(1, TaskState::Processing).assignment(1);
        bed.lose(worker);
    }
    bed.is(1, TaskState::Erred).is(2, TaskState::Erred);
    let heard = bed.client_hears();
    assert!(heard[0].contains("4 workers died"), "{heard:?}");
}

#[test]
fn a_worker_that_takes_leave_counts_against_no_task() {
    let mut bed = Bed::new(0);
    bed.submit(vec![call(1, &[])], &[1]);
    for _ in 0..10 {
        let worker = bed.join(1);
        bed.handle(Stimulus::RemoveWorker { worker, expected: true });
    }
    bed.is(1, TaskState::NoWorker);
}

#[test]
fn a_silent_worker_is_taken_for_dead() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (silent, _) = bed.assignment(1);
    bed.now += Config::default().worker_ttl - 10;
    bed.worker_says(WorkerId(1 - silent.0), FromWorker::Heartbeat(Default::default()));
    bed.now += 20;
    bed.handle(Stimulus::Tick).is(1, TaskState::Processing);
    assert_ne!(bed.assignment(1).0, silent);
    assert!(bed.told.iter().any(|told| matches!(told, Instruction::Drop(worker) if *worker == silent)));
}

#[test]
fn peers_hear_of_the_death_of_those_they_were_told_of() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]).on("w0"), call(2, &[1]).on("w1")], &[1, 2]);
    bed.finish(1);
    let introduced =
        bed.told.iter().any(|told| matches!(told, Instruction::Introduce(WorkerId(1), WorkerId(0))));
    assert!(introduced, "{:?}", bed.told);
    bed.lose(WorkerId(0));
    let told = |told: &Instruction| {
        matches!(told, Instruction::ToWorker(WorkerId(1), ToWorker::PeerGone(WorkerId(0))))
    };
    assert!(bed.told.iter().any(told), "{:?}", bed.told);
}

/// Whoever is expected back gets the address before the first word that names the peer.
#[test]
fn peers_are_introduced_to_those_who_are_away() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]).on("w0"), call(2, &[1]).on("w1")], &[1, 2]);
    bed.finish(1);
    let mut expected = Expected::default();
    expected.workers.insert(WorkerId(1), Absent::default());
    for instruction in std::mem::take(&mut bed.told) {
        expected.keep(&bed.state, instruction);
    }
    let mut kept = expected.workers[&WorkerId(1)].kept.iter();
    let first = kept.next();
    assert!(
        matches!(first, Some(ToWorker::Peer { worker: WorkerId(0), address }) if ***address == *"inproc://w0"),
        "{first:?}"
    );
    let second = kept.next();
    assert!(
        matches!(second, Some(ToWorker::Compute(task)) if task.dependencies[0].who_has[..] == [WorkerId(0)]),
        "{second:?}"
    );
}

/// However many others they were told of since, and nobody else.
#[test]
fn peers_hear_of_deaths_long_after_they_were_told_of_those_who_died() {
    const WORKERS: u32 = 100;
    let mut bed = Bed::new(WORKERS as usize);
    let named = |worker: u32| format!("w{worker}");
    for peer in 2..WORKERS {
        let (there, key) = (u128::from(peer), u128::from(WORKERS + peer));
        bed.submit(vec![call(there, &[]).on(named(peer)), call(key, &[there]).on(named(1))], &[key]);
        bed.finish(there);
    }
    for peer in [2, WORKERS - 1] {
        bed.lose(WorkerId(peer));
        let heard = bed.told.iter().filter_map(|told| match told {
            Instruction::ToWorker(worker, ToWorker::PeerGone(gone)) => Some((worker.0, gone.0)),
            _ => None,
        });
        assert_eq!(heard.collect::<Vec<_>>(), [(1, peer)]);
    }
}

#[test]
fn scattered_data_that_is_lost_errs_and_says_what_to_do() {
    let mut bed = Bed::new(1);
    bed.says(FromClient::Ask { id: 1, query: crate::protocol::Query::Reserve(vec![Key(1)]) });
    let id = bed.id(1);
    let scattered = crate::protocol::Scattered { key: Key(1), id, nbytes: 8, workers: vec![WorkerId(0)] };
    bed.says(FromClient::Scattered(vec![scattered])).is(1, TaskState::Memory);
    bed.lose(WorkerId(0)).is(1, TaskState::Erred);
    let heard = bed.client_hears();
    assert!(heard.iter().any(|word| word.contains("scatter it again")), "{heard:?}");
}

#[test]
fn a_client_that_vanishes_takes_what_it_wanted_along() {
    let mut bed = Bed::new(1);
    bed.submit((1..=5).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5]).finish(1);
    bed.handle(Stimulus::RemoveClient(bed.client));
    assert_eq!(bed.state.task_count(), 0);
    assert_eq!(bed.frees().len(), 3, "the result, and the two that were assigned: {:?}", bed.told);
}

#[test]
fn who_was_told_of_a_worker_hears_that_it_is_gone() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let gone = |bed: &Bed| {
        let word =
            |told: &Instruction| matches!(told, Instruction::ToClient(_, ToClient::WorkerGone(WorkerId(0))));
        bed.told.iter().filter(|told| word(told)).count()
    };
    assert_eq!((bed.task(1).who_has()[0], gone(bed.lose(WorkerId(0)))), (WorkerId(0), 1));
    // Of one that it was never told of it need not hear.
    bed.lose(WorkerId(1));
    assert!(bed.told.iter().all(|told| !matches!(told, Instruction::ToClient(_, ToClient::WorkerGone(_)))));
}

#[test]
fn who_has_a_forgotten_dependents_place_does_not_take_its_part() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(5, &[1])], &[1, 2, 5]);
    bed.finish(1).finish(2).finish(5);
    let (holder, place) = (bed.task(1).who_has()[0], bed.task(2).this.index);
    bed.release(&[2]).is_forgotten(2);
    bed.submit(vec![call(3, &[4]), call(4, &[])], &[3]);
    assert_eq!(bed.task(3).this.index, place, "it came to the other's place");
    bed.is(3, TaskState::Waiting);
    // The first one is computed again, and done: what waits for another one still does.
    bed.lose(holder).is(1, TaskState::Processing).is(3, TaskState::Waiting);
    bed.finish(1).is(1, TaskState::Memory).is(3, TaskState::Waiting);
    bed.finish(4).is(3, TaskState::Processing);
}
