//! Short tasks that are assigned before all that they need is there.

use super::*;

/// A cluster that knows that tasks are short.
fn bed(workers: usize) -> Bed {
    let mut bed = Bed::new(workers);
    bed.submit(vec![call(101, &[])], &[101]);
    finish_soon(&mut bed, 101);
    bed.release(&[101]).is_forgotten(101);
    bed
}

/// A task is finished after a microsecond.
fn finish_soon(bed: &mut Bed, key: u128) {
    finish_after(bed, key, 1000);
}

fn finish_after(bed: &mut Bed, key: u128, duration: u64) {
    bed.finish_with(key, 100, duration);
}

fn forwards(bed: &Bed) -> Vec<(WorkerId, TaskId, WorkerId)> {
    let forward = |told: &Instruction| match told {
        Instruction::ToWorker(worker, ToWorker::Forward { id, to }) => Some((*worker, *id, *to)),
        _ => None,
    };
    bed.told.iter().filter_map(forward).collect()
}

#[test]
fn a_chain_goes_to_its_worker_at_once() {
    let mut bed = bed(1);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[2])], &[3]);
    assert_eq!(bed.computes(), [(WorkerId(0), 1), (WorkerId(0), 2), (WorkerId(0), 3)]);
    let (_, second) = bed.computed()[1];
    assert_eq!(second.dependencies[0].id, bed.id(1));
    assert!(second.dependencies[0].who_has.is_empty(), "nobody has it yet");
    let why = bed.state.explain(&[Key(2)])[0].why.join(" ");
    assert!(why.contains("1 of its dependencies is still being computed"), "{why}");
    // The worker knows best when each can start.
    for key in [1, 2] {
        finish_soon(&mut bed, key);
        assert_eq!((bed.computes(), bed.client_hears()), (vec![], vec![]));
    }
    finish_soon(&mut bed, 3);
    assert_eq!(bed.client_hears(), ["3 in memory of 0"]);
}

/// A worker with a chain of sixty tasks of half a millisecond, and how many of them it was given ahead.
fn bed_with_a_chain() -> (Bed, u128) {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(101, &[])], &[101]);
    finish_after(&mut bed, 101, 500_000);
    let chain = [call(1, &[])].into_iter().chain((2..=60).map(|key| call(key, &[key - 1])));
    bed.submit(chain.collect(), &[60]);
    let ahead = bed.computes().len() as u128;
    (bed, ahead)
}

#[test]
fn who_was_kept_out_is_let_in_before_its_worker_is_through() {
    let (mut bed, ahead) = bed_with_a_chain();
    assert!((15..20).contains(&ahead), "as much as it has room for: {ahead}");
    for key in 1..=60 {
        finish_after(&mut bed, key, 500_000);
        let next: Vec<_> = (key + ahead..=60).take(1).map(|key| (WorkerId(0), key)).collect();
        assert_eq!(bed.computes(), next);
    }
    bed.release(&[60]);
    assert_eq!(bed.state.task_count(), 1);
}

#[test]
fn what_goes_before_is_not_kept_waiting_by_those_that_are_let_in() {
    let (mut bed, ahead) = bed_with_a_chain();
    bed.submit(vec![call(200, &[]).with(|o| o.priority = 1)], &[200]).is(200, TaskState::Queued);
    bed.submit(vec![call(201, &[])], &[201]);
    let mut key = 1;
    while bed.task(200).state == TaskState::Queued {
        finish_after(&mut bed, key, 500_000);
        key += 1;
    }
    assert!(key <= ahead + 1, "when those are done that were there: {key} of {ahead}");
    // What comes after the chain waits for it.
    (key..=50).for_each(|key| finish_after(&mut bed, key, 500_000));
    bed.is(201, TaskState::Queued);
}

#[test]
fn critical_ones_are_let_in_before_what_is_queued_before_them() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(101, &[]), call(102, &[]).of_g()], &[101, 102]);
    finish_after(&mut bed, 101, 500_000);
    finish_after(&mut bed, 102, 500_000);
    // Loads, which come first in the graph, and a chain that takes longer than they do.
    let loads = (201..=220).map(|key| call(key, &[]));
    let wants: Vec<u128> = (201..=220).chain([60]).collect();
    bed.submit(loads.chain(chain(60).into_iter().map(Call::of_g)).collect(), &wants);
    let ahead = bed.computes().iter().filter(|(_, key)| *key <= 60).count() as u128;
    assert!((8..20).contains(&ahead), "{ahead}");
    let queued = |bed: &Bed| (201..=220).filter(|key| bed.task(*key).state == TaskState::Queued).count();
    let waiting = queued(&bed);
    assert!(waiting > 10, "{waiting}");
    for key in 1..=10 {
        finish_after(&mut bed, key, 500_000);
        assert_eq!(bed.computes(), [(WorkerId(0), key + ahead)]);
    }
    assert_eq!(queued(&bed), waiting);
}

#[test]
fn what_others_compute_for_it_is_forwarded_and_where_it_is_is_said() {
    let mut bed = bed(2);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2])], &[3]).is(3, TaskState::Processing);
    let here = bed.assignment(3).0;
    let other = if bed.assignment(1).0 == here { 2 } else { 1 };
    let (there, result) = bed.assignment(other);
    assert_ne!(there, here);
    assert_eq!(forwards(&bed), [(there, result, here)]);
    finish_soon(&mut bed, other);
    let said = bed.told.iter().find_map(|told| match told {
        Instruction::ToWorker(worker, ToWorker::WhoHas(held)) => Some((*worker, held[0].clone())),
        _ => None,
    });
    let (worker, held) = said.expect("who waits for it hears who has it");
    assert_eq!((worker, held.id, &held.who_has[..]), (here, result, &[there][..]));
    finish_soon(&mut bed, 3 - other);
    finish_soon(&mut bed, 3);
    bed.release(&[3]);
    assert_eq!(bed.state.task_count(), 0);
}

#[test]
fn who_follows_a_task_that_dies_is_placed_anew() {
    let mut bed = bed(2);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2]), call(4, &[3])], &[4]);
    let (here, follower) = bed.assignment(3);
    let there = if bed.assignment(1).0 == here { bed.assignment(2).0 } else { bed.assignment(1).0 };
    bed.lose(there);
    assert!(bed.frees().contains(&(here, follower)), "{:?}", bed.told);
    assert_ne!(bed.id(3), follower);
    for key in [1, 2, 3, 4] {
        finish_soon(&mut bed, key);
    }
    bed.is(4, TaskState::Memory);
}

/// Two columns, each of whose tasks needs both of the row before: the tasks of a row are 2 * row and 2 * row + 1.
fn columns(rows: u128) -> Vec<Call> {
    let before = |row: u128| [2 * row - 2, 2 * row - 1];
    let first = [call(2, &[]), call(3, &[])];
    first
        .into_iter()
        .chain((2..=rows).flat_map(|row| [0, 1].map(|c| call(2 * row + c, &before(row)))))
        .collect()
}

#[test]
fn columns_that_exchange_their_results_stay_apart() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(101, &[])], &[101]);
    finish_after(&mut bed, 101, 500_000);
    bed.submit(columns(40), &[80, 81]);
    let alone = bed.computes().len();
    assert!((15..20).contains(&alone), "some are assigned ahead: {alone}");
    // Somebody comes who could do half of it: what is assigned from then on is shared.
    bed.join(1);
    let mut places = Vec::new();
    for key in 2..=81 {
        places.push(bed.assignment(key).0);
        bed.now += 250_000;
        finish_after(&mut bed, key, 500_000);
    }
    let shared = &places[alone.next_multiple_of(2)..];
    let apart = shared.chunks(2).filter(|row| row[0] != row[1]).count();
    assert!(apart >= shared.len() / 2 - 3, "{places:?}");
}

#[test]
fn what_was_wrong_about_one_step_is_not_wrong_about_all_that_follow() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1001, &[])], &[1001]);
    finish_after(&mut bed, 1001, 200_000);
    // Each row is done sooner than one would think who waits for the way from one worker to the other.
    bed.submit(columns(400), &[800, 801]);
    let mut places = Vec::new();
    for key in 2..=801 {
        places.push(bed.assignment(key).0);
        bed.now += 101_000;
        finish_after(&mut bed, key, 200_000);
    }
    let apart = places.chunks(2).filter(|row| row[0] != row[1]).count();
    assert!(apart > 390, "{apart} of 400 rows are shared: {places:?}");
}

#[test]
fn when_a_task_will_be_done_is_told_anew_where_others_go_or_take_less() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    finish_after(&mut bed, 1, 4_000_000);
    bed.submit((2..=11).map(|key| call(key, &[1])).collect(), &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let done = |bed: &Bed, key: u128| {
        let task = bed.state.task(bed.state.tasks.find(Key(key)).unwrap()).unwrap();
        (bed.state.done(task) - bed.now) as f64 / 1e6
    };
    assert_eq!([2, 7, 11].map(|key| done(&bed, key)), [4.0, 24.0, 40.0]);
    // A surprise: it takes an eighth, so that the others are expected to take less, too.
    finish_after(&mut bed, 2, 500_000);
    assert_eq!([3, 7, 11].map(|key| done(&bed, key)), [1.0, 5.0, 9.0].map(|tasks| tasks * 3.5625));
    // Who goes undone does not count as done.
    bed.release(&[7, 8, 9, 10, 11]);
    assert_eq!([3, 6].map(|key| done(&bed, key)), [1.0, 4.0].map(|tasks| tasks * 3.5625));
}

#[test]
fn columns_of_tasks_shorter_than_the_way_stay_together() {
    let mut bed = bed(2);
    bed.submit(columns(100), &[200, 201]);
    let mut places = Vec::new();
    for key in 2..=201 {
        places.push(bed.assignment(key).0);
        finish_soon(&mut bed, key);
    }
    let places = &places[20..];
    assert!(places.windows(2).filter(|pair| pair[0] != pair[1]).count() < 5, "{places:?}");
}

#[test]
fn what_lies_elsewhere_already_does_not_count_twice() {
    let mut bed = bed(3);
    // A big result, on a worker that takes nothing more.
    bed.submit(vec![call(1, &[])], &[1]);
    let (holder, id) = bed.assignment(1);
    bed.worker_says(
        holder,
        FromWorker::Finished(Finished { id, nbytes: 1 << 20, duration: 1000, value: None }),
    );
    bed.worker_says(holder, FromWorker::Paused(true));
    // Whoever takes the task has to fetch it: that is no reason to have what else it needs on its way, too.
    bed.submit(vec![call(2, &[]), call(3, &[2, 1]), call(4, &[2])], &[3, 4]);
    assert_eq!(bed.assignment(3).0, bed.assignment(2).0);
}

#[test]
fn columns_part_when_the_way_may_have_become_shorter() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1001, &[])], &[1001]);
    finish_after(&mut bed, 1001, 30_000);
    let mut apart = || {
        bed.submit(columns(100), &[200, 201]);
        let mut places = Vec::new();
        for key in 2..=201 {
            places.push(bed.assignment(key).0);
            finish_after(&mut bed, key, 30_000);
        }
        bed.release(&[200, 201]).is_forgotten(2);
        bed.now += 250_000_000;
        places[20..].chunks(2).filter(|row| row[0] != row[1]).count()
    };
    // A fetch is taken to last 100 us, what is forwarded half as long, and a task takes 30.
    assert!(apart() < 5);
    assert!(apart() > 85);
}

#[test]
fn columns_of_the_shortest_tasks_stay_together_however_little_is_known_of_the_way() {
    let mut bed = bed(2);
    bed.now += 3_600_000_000_000;
    bed.submit(columns(100), &[200, 201]);
    let mut places = Vec::new();
    for key in 2..=201 {
        places.push(bed.assignment(key).0);
        finish_soon(&mut bed, key);
    }
    let apart = places[20..].chunks(2).filter(|row| row[0] != row[1]).count();
    assert!(apart < 5, "{places:?}");
}

#[test]
fn one_follows_a_task_that_takes_milliseconds_and_others_wait_where_that_would_be_elsewhere() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(101, &[])], &[101]);
    finish_after(&mut bed, 101, 5_000_000);
    bed.join(1);
    bed.join(1);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[1])], &[2, 3]);
    let leader = bed.assignment(1).0;
    assert_eq!(bed.assignment(2).0, leader);
    bed.is(3, TaskState::Waiting);
    finish_after(&mut bed, 1, 5_000_000);
    assert_ne!(bed.assignment(3).0, leader, "an idle one gets to it sooner");
}

#[test]
fn who_holds_much_of_what_a_follower_needs_gets_it() {
    let mut bed = bed(2);
    bed.submit(vec![call(1, &[]), call(2, &[])], &[1, 2]);
    let (holder, id) = bed.assignment(1);
    bed.worker_says(
        holder,
        FromWorker::Finished(Finished { id, nbytes: 1 << 30, duration: 1000, value: None }),
    );
    let short = bed.assignment(2).0;
    assert_ne!(holder, short);
    bed.submit(vec![call(2, &[]), call(1, &[]), call(3, &[1, 2])], &[3]).is(2, TaskState::Processing);
    assert_eq!(bed.assignment(3).0, holder);
}

#[test]
fn a_task_that_others_follow_is_not_stolen_for_their_sake() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(101, &[])], &[101]);
    let (worker, id) = bed.assignment(101);
    let finished = Finished { id, nbytes: 100, duration: 900_000, value: None };
    bed.worker_says(worker, FromWorker::Finished(finished));
    // They would follow it to the thief, and the victim would steal it back.
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[2])], &[3]).is(3, TaskState::Processing);
    bed.join(1);
    let asked = |told: &Instruction| matches!(told, Instruction::ToWorker(_, ToWorker::GiveBack(_)));
    assert!(!bed.told.iter().any(asked), "{:?}", bed.told);
}

#[test]
fn who_follows_a_task_that_takes_its_time_waits_for_it_elsewhere() {
    let mut bed = bed(1);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[2]).is(2, TaskState::Processing);
    let ((worker, leader), (_, follower)) = (bed.assignment(1), bed.assignment(2));
    bed.worker_says(worker, FromWorker::LongRunning(leader)).is(2, TaskState::Waiting);
    assert_eq!(bed.frees(), [(worker, follower)]);
    finish_soon(&mut bed, 1);
    bed.is(2, TaskState::Processing);
}

#[test]
fn who_follows_what_is_overdue_keeps_no_thread_from_others() {
    let mut bed = bed(2);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2])], &[3]);
    let (here, _) = bed.assignment(3);
    let (late, soon) = if bed.assignment(1).0 == here { (2, 1) } else { (1, 2) };
    finish_soon(&mut bed, soon);
    let busy = |bed: &Bed| bed.state.workers.get(here).map(|worker| (worker.busy, worker.following > 0));
    bed.handle(Stimulus::Tick);
    assert_eq!(busy(&bed), Some((1, true)));
    // What should take a microsecond takes a second.
    bed.now += 1_000_000_000;
    bed.handle(Stimulus::Tick).handle(Stimulus::Tick).is(3, TaskState::Processing);
    assert_eq!((busy(&bed), bed.frees()), (Some((0, false)), vec![]));
    let why = bed.state.explain(&[Key(3)])[0].why.join(" ");
    assert!(why.contains("takes far longer than it should"), "{why}");
    // What comes now does not follow it.
    bed.submit(vec![call(4, &[late])], &[4]).is(4, TaskState::Waiting);
    finish_soon(&mut bed, late);
    finish_soon(&mut bed, 3);
    bed.is(3, TaskState::Memory).is(4, TaskState::Processing);
}

#[test]
fn only_what_may_have_run_is_blamed_for_a_death() {
    let mut bed = bed(1);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[2]).is(2, TaskState::Processing);
    let worker = bed.assignment(1).0;
    bed.lose(worker);
    assert!(bed.task(1).is_suspicious() && !bed.task(2).is_suspicious());
    // From now on one runs after the other has ended, so that it shows which of them it is.
    bed.join(1);
    bed.is(1, TaskState::Processing).is(2, TaskState::Waiting);
    finish_soon(&mut bed, 1);
    bed.is(2, TaskState::Processing);
}

#[test]
fn an_error_ends_those_that_follow() {
    let mut bed = bed(1);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[2])], &[3]).is(3, TaskState::Processing);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.is(3, TaskState::Erred);
    assert_eq!(bed.frees().len(), 2, "the worker gives both up");
}

#[test]
fn long_tasks_wait_until_it_is_known_where_all_lies() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    bed.submit(vec![call(2, &[]), call(3, &[2])], &[3])
        .is(2, TaskState::Processing)
        .is(3, TaskState::Waiting);
    bed.finish(2).is(3, TaskState::Processing);
}

/// Each needs the one before.
fn chain(length: u128) -> Vec<Call> {
    let first = call(1, &[]);
    std::iter::once(first).chain((2..=length).map(|key| call(key, &[key - 1]))).collect()
}

#[test]
fn what_a_chain_that_is_given_back_needs_is_kept() {
    let mut bed = bed(1);
    bed.submit(chain(6), &[6]);
    finish_soon(&mut bed, 1);
    let (here, running) = bed.assignment(2);
    bed.join(1);
    let others = (3..=6).map(|key| bed.id(key)).collect();
    bed.worker_says(here, FromWorker::GaveBack(others));
    assert_eq!(bed.frees(), []);
    assert_eq!(bed.assignment(2), (here, running), "it goes on where it was");
    (2..=6).for_each(|key| finish_soon(&mut bed, key));
    bed.is(6, TaskState::Memory);
}

#[test]
fn what_a_chain_needs_outlives_the_worker_that_runs_it() {
    let mut bed = bed(1);
    bed.submit(chain(6), &[6]);
    finish_soon(&mut bed, 1);
    let (runs, copy) = (bed.assignment(2).0, bed.id(1));
    let other = bed.join(1);
    bed.worker_says(other, FromWorker::Added(vec![copy]));
    bed.lose(runs).is(1, TaskState::Memory);
    (2..=6).for_each(|key| finish_soon(&mut bed, key));
    bed.is(6, TaskState::Memory);
}

#[test]
fn what_followers_need_is_kept_when_those_they_follow_are_given_back() {
    let mut bed = bed(2);
    bed.submit(vec![call(2, &[])], &[2]);
    // One follows the third, and another one that and the second. Of those that are given back the second, of an earlier
    // submission, starts over last: until its follower has started over too, nobody waits for the other one.
    let tasks = [call(1, &[]), call(3, &[]), call(4, &[1, 3]), call(5, &[4, 2])];
    bed.submit(tasks.into(), &[5]);
    finish_soon(&mut bed, 1);
    bed.is(4, TaskState::Processing).is(5, TaskState::Processing);
    let (here, second) = bed.assignment(2);
    let (there, third) = bed.assignment(3);
    assert_eq!(here, there);
    bed.worker_says(here, FromWorker::GaveBack(vec![second, third])).is(1, TaskState::Memory);
    (2..=5).for_each(|key| finish_soon(&mut bed, key));
    bed.is(5, TaskState::Memory);
}
