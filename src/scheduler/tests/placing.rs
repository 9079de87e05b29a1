//! Which worker a task goes to, and when.

use super::{
    super::links::{Need, Needs},
    *,
};

#[test]
fn a_task_goes_where_the_bytes_are() {
    let mut bed = Bed::new(4);
    bed.submit(vec![call(1, &[]).on("w2")], &[1]);
    let (worker, id) = bed.assignment(1);
    let finished = Finished { id, nbytes: 1 << 30, duration: 1_000_000, value: None };
    bed.worker_says(worker, FromWorker::Finished(finished));
    bed.submit(vec![call(2, &[1])], &[2]);
    assert_eq!(bed.computes(), [(WorkerId(2), 2)]);
}

#[test]
fn work_is_spread_over_idle_workers() {
    let mut bed = Bed::new(4);
    bed.submit((1..=4).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4]);
    let mut workers: Vec<u32> = bed.computes().iter().map(|(worker, _)| worker.0).collect();
    workers.sort_unstable();
    assert_eq!(workers, [0, 1, 2, 3]);
}

#[test]
fn a_busy_holder_loses_to_an_idle_worker_where_moving_is_cheap() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let holder = bed.task(1).who_has()[0];
    // Tasks of a second each: the holder has several waiting, the other has none.
    let on = bed.state.workers.get(holder).unwrap().info.name.to_string();
    bed.submit((10..14).map(|key| call(key, &[]).on(on.as_str())).collect(), &[10, 11, 12, 13]);
    bed.submit(vec![call(2, &[1])], &[2]);
    assert_ne!(bed.assignment(2).0, holder);
}

#[test]
fn tasks_without_dependencies_queue_and_are_handed_out_in_order() {
    let mut bed = Bed::new(1);
    bed.submit((1..=9).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(bed.computes().iter().map(|(_, key)| *key).collect::<Vec<_>>(), [1, 2]);
    bed.finish(1);
    assert_eq!(bed.computes(), [(WorkerId(0), 3)]);
}

#[test]
fn a_higher_priority_goes_first() {
    let mut bed = Bed::new(1);
    bed.submit((1..=4).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4]);
    bed.submit(vec![call(9, &[]).with(|o| o.priority = 5)], &[9]).is(9, TaskState::Queued);
    bed.finish(1);
    assert_eq!(bed.computes(), [(WorkerId(0), 9)]);
}

#[test]
fn restrictions_are_kept_unless_others_are_allowed() {
    let mut bed = Bed::new(2);
    let only = |o: &mut TaskOptions| o.workers = vec!["w7".into()];
    bed.submit(vec![call(1, &[]).with(only)], &[1]).is(1, TaskState::NoWorker);
    let rather = |o: &mut TaskOptions| {
        only(o);
        o.allow_other_workers = true;
    };
    bed.submit(vec![call(2, &[]).with(rather)], &[2]).is(2, TaskState::Processing);
}

#[test]
fn a_task_may_be_restricted_to_a_host() {
    let mut bed = Bed::new(0);
    for pid in 0..3 {
        bed.join_at("x", pid);
    }
    let there = bed.join_at("y", 0);
    let on_y = |o: &mut TaskOptions| o.workers = vec!["y".into()];
    let rather_on_y = |o: &mut TaskOptions| (o.workers, o.allow_other_workers) = (vec!["y".into()], true);
    // The others have nothing to do.
    bed.submit((1..=8).map(|key| call(key, &[]).with(on_y)).collect(), &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bed.computes(), (1..=8).map(|key| (there, key)).collect::<Vec<_>>());
    bed.submit(vec![call(9, &[]).with(rather_on_y)], &[9]);
    assert_eq!(bed.computes(), [(there, 9)]);
    bed.lose(there).is(1, TaskState::NoWorker).is(9, TaskState::Processing);
    assert_ne!(bed.assignment(9).0, there);
    let again = bed.join_at("y", 1);
    assert_eq!(bed.computes().iter().filter(|(worker, _)| *worker == again).count(), 8);
}

#[test]
fn resources_restrict_and_a_worker_that_supplies_them_is_taken_when_it_comes() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]).with(|o| o.resources = vec![("gpu".into(), 0.5)])], &[1]);
    bed.is(1, TaskState::NoWorker);
    let gpu = bed.join_with(1, vec![("gpu".into(), 1.0)]);
    assert_eq!(bed.computes(), [(gpu, 1)]);
    assert_eq!(bed.computed()[0].1.resources, [("gpu".to_owned(), 0.5)]);
}

#[test]
fn a_worker_is_given_a_tenth_more_than_it_has_threads() {
    for (threads, given) in [(20, 22), (1, 2)] {
        let mut bed = Bed::new(0);
        bed.join(threads);
        let keys: Vec<u128> = (1..=40).collect();
        bed.submit(keys.iter().map(|key| call(*key, &[])).collect(), &keys);
        assert_eq!(bed.computes().len(), given, "{threads} threads");
    }
}

#[test]
fn who_is_told_nothing_goes_by_these() {
    let Config { allowed_failures, worker_ttl, bandwidth, saturation, stealing, reduce_replicas } =
        Config::default();
    assert_eq!((allowed_failures, worker_ttl, bandwidth), (3, 30_000_000_000, 1e9));
    assert_eq!((saturation, stealing, reduce_replicas), (1.1, true, true));
}

#[test]
fn how_long_tasks_take_is_known_of_each_function() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[]).on("w0"), call(2, &[]).of_g().on("w1")], &[1, 2]);
    bed.finish_with(1, 100, 1_000_000).finish_with(2, 100, 10_000_000_000).add(WorkerId(1), 1);
    // Three short ones here, a long one there.
    bed.submit((3..=5).map(|key| call(key, &[]).on("w0")).collect(), &[3, 4, 5]);
    bed.submit(vec![call(6, &[]).of_g().on("w1")], &[6]);
    assert_eq!([3, 6].map(|key| bed.task(key).cold.estimate), [1_000_000, 10_000_000_000]);
    // Both have what it needs.
    bed.submit(vec![call(7, &[1])], &[7]);
    assert_eq!(bed.assignment(7).0, WorkerId(0));
}

#[test]
fn a_long_running_task_makes_room() {
    let mut bed = Bed::new(1);
    bed.submit((1..=3).map(|key| call(key, &[])).collect(), &[1, 2, 3]).is(3, TaskState::Queued);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::LongRunning(id)).is(3, TaskState::Processing);
}

/// Two results of a gigabyte on two workers; a third has nothing and is idle.
fn two_gigabytes() -> Bed {
    let mut bed = Bed::new(3);
    for (key, worker) in [(1, "w0"), (2, "w1")] {
        bed.submit(vec![call(key, &[]).on(worker)], &[key]);
        let (worker, id) = bed.assignment(key);
        let finished = Finished { id, nbytes: 1 << 30, duration: 1_000_000, value: None };
        bed.worker_says(worker, FromWorker::Finished(finished));
    }
    bed
}

fn fetched(bed: &mut Bed, asker: u32, from: u32, nanos: u64) {
    let fetches = vec![Fetch { from: WorkerId(from), nbytes: 1 << 30, nanos }; 8];
    bed.worker_says(WorkerId(asker), FromWorker::Fetched(fetches));
}

#[test]
fn what_links_proved_to_carry_decides_where_a_task_goes() {
    // Who fetches what from whom: from the first to the second it takes a tenth of the way back.
    for (fast, slow) in [(0, 1), (1, 0)] {
        let mut bed = two_gigabytes();
        fetched(&mut bed, fast, slow, 100_000_000);
        fetched(&mut bed, slow, fast, 1_000_000_000);
        bed.submit(vec![call(3, &[1, 2])], &[3]);
        assert_eq!(bed.assignment(3).0, WorkerId(fast));
    }
}

/// A result, and the workers that hold it.
fn one(nbytes: u64, at: &[WorkerId]) -> Needs<'_> {
    Needs([Need { nbytes: nbytes as f32, at }].into_iter().collect())
}

#[test]
fn pairs_that_have_not_met_are_taken_for_ones_like_others() {
    let mut bed = two_gigabytes();
    let estimate = |bed: &Bed| bed.state.transfer(&one(1 << 30, &[WorkerId(0)]), WorkerId(2));
    let guess = estimate(&bed);
    assert!((1_000_000_000..1_200_000_000).contains(&guess), "{guess}");
    fetched(&mut bed, 1, 0, 10_000_000_000);
    assert!(estimate(&bed) > 5 * guess, "{} {guess}", estimate(&bed));
    // Of those that hold a result, the one that gives it soonest counts.
    let slow = estimate(&bed);
    fetched(&mut bed, 2, 1, 1_000_000);
    let holders = &[WorkerId(0), WorkerId(1)][..];
    assert!(bed.state.transfer(&one(1 << 30, holders), WorkerId(2)) < slow / 5);
}

/// Microseconds, rounded: what is known of links is off by little.
fn micros(nanos: u64) -> u64 {
    (nanos + 500) / 1000
}

#[test]
fn the_quickest_of_the_latest_fetches_tells_the_latency() {
    let mut bed = two_gigabytes();
    let fetch = |bed: &mut Bed, times: &[u64]| {
        let fetches = times.iter().map(|nanos| Fetch { from: WorkerId(0), nbytes: 100, nanos: *nanos });
        bed.worker_says(WorkerId(1), FromWorker::Fetched(fetches.collect()));
        micros(bed.state.transfer(&one(100, &[WorkerId(0)]), WorkerId(1)))
    };
    assert_eq!(fetch(&mut bed, &[70_000]), 70, "what was guessed counts no more");
    assert_eq!(fetch(&mut bed, &[9_600_000, 40_000, 300_000]), 40);
    assert_eq!(fetch(&mut bed, &[2_000_000; 6]), 40);
    bed.now += 220_000_000;
    assert_eq!(fetch(&mut bed, &[2_000_000]), 40);
    bed.now += 220_000_000;
    assert_eq!(fetch(&mut bed, &[2_000_000]), 2000, "the way has become longer");
}

#[test]
fn a_link_that_tells_nothing_may_have_become_quicker() {
    let mut bed = two_gigabytes();
    let fetch = Fetch { from: WorkerId(0), nbytes: 100, nanos: 1_600_000 };
    bed.worker_says(WorkerId(1), FromWorker::Fetched(vec![fetch]));
    let hoped = |bed: &Bed| {
        let needs = one(100, &[WorkerId(0)]);
        micros(bed.state.fetching(WorkerId(1), &needs, |costs| costs.hoped_latency(bed.now)))
    };
    assert_eq!(hoped(&bed), 1600);
    // That is told to some 17 milliseconds.
    bed.now += 220_000_000;
    assert_eq!(hoped(&bed), 800);
    bed.now += 600_000_000;
    assert_eq!(hoped(&bed), 200);
    bed.now += 1 << 39;
    assert_eq!(hoped(&bed), 200, "one should not hope for too much");
    // One that tells is what it says.
    bed.worker_says(WorkerId(1), FromWorker::Fetched(vec![fetch]));
    assert_eq!(hoped(&bed), 1600);
}

#[test]
fn within_a_host_and_a_process_results_move_for_less() {
    let mut bed = Bed::new(0);
    let [a, b, c, d] = [("x", 1), ("x", 1), ("x", 2), ("y", 1)].map(|(host, pid)| bed.join_at(host, pid));
    let took = |from: WorkerId| bed.state.transfer(&one(1 << 30, &[from]), a);
    assert!(took(b) < 10_000_000 && took(b) < took(c) / 10, "{} {}", took(b), took(c));
    assert!(took(c) < took(d), "{} {}", took(c), took(d));
}

/// Two workers, and eight sums (from 101 on) of four results each (1 to 32), which another function makes.
fn sums() -> Bed {
    let mut bed = Bed::new(2);
    let leaves = (1..=32).map(|key| call(key, &[]).of_g());
    let sums = (0..8).map(|sum| call(101 + sum, &[1, 2, 3, 4].map(|leaf| 4 * sum + leaf)));
    bed.submit(leaves.chain(sums).collect(), &[101, 102, 103, 104, 105, 106, 107, 108]);
    bed
}

#[test]
fn neighbours_whose_results_meet_go_to_the_same_worker() {
    let bed = sums();
    let mut of_sum: Vec<(u32, u128)> =
        bed.computes().iter().map(|(worker, leaf)| (worker.0, (leaf - 1) / 4)).collect();
    of_sum.sort_unstable();
    assert_eq!(of_sum, [(0, 0), (0, 0), (1, 1), (1, 1)]);
}

#[test]
fn what_is_reserved_for_one_goes_to_another_who_has_nothing() {
    let mut bed = sums();
    // The first worker is stuck with its two tasks; the other does all the rest.
    let mut todo: Vec<u128> = bed.computes().iter().filter(|(w, _)| w.0 == 1).map(|(_, key)| *key).collect();
    let mut done = 0;
    while let Some(key) = todo.pop() {
        bed.finish(key);
        done += usize::from(key <= 32);
        todo.extend(bed.computes().iter().filter(|(w, _)| w.0 == 1).map(|(_, key)| *key));
    }
    assert_eq!(done, 30);
}
