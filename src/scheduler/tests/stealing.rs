//! A worker that runs out of work takes over what waits at another.

use super::*;

impl Bed {
    /// Who was asked to give what back, in the last turn.
    fn asked_back(&self) -> Vec<(WorkerId, TaskId)> {
        let mut asked = Vec::new();
        for told in &self.told {
            if let Instruction::ToWorker(worker, ToWorker::GiveBack(ids)) = told {
                asked.extend(ids.iter().map(|id| (*worker, *id)));
            }
        }
        asked
    }

    /// A result of so many bytes on the first worker, and `count` tasks (from 10 on) of a second each that
    /// need it and were assigned to that worker.
    fn loaded(nbytes: u64, count: u128) -> Self {
        let mut bed = Bed::new(1);
        bed.submit(vec![call(1, &[])], &[1]);
        bed.finish_with(1, nbytes, 1_000_000_000);
        let keys: Vec<u128> = (10..10 + count).collect();
        bed.submit(keys.iter().map(|key| call(*key, &[1])).collect(), &keys);
        assert_eq!(bed.computes().len(), count as usize);
        bed
    }
}

const VICTIM: WorkerId = WorkerId(0);

#[test]
fn half_of_what_waits_is_asked_for_the_last_first() {
    let mut bed = Bed::loaded(100, 6);
    let ids: Vec<TaskId> = (10..16).map(|key| bed.id(key)).collect();
    bed.join(1);
    assert_eq!(bed.asked_back(), [(VICTIM, ids[5]), (VICTIM, ids[4]), (VICTIM, ids[3])]);
}

#[test]
fn what_is_given_back_goes_to_the_thief_as_another_computation() {
    let mut bed = Bed::loaded(100, 2);
    let thief = bed.join(1);
    let old = bed.id(11);
    bed.worker_says(VICTIM, FromWorker::GaveBack(vec![old]));
    let (worker, new) = bed.assignment(11);
    assert_eq!((worker, bed.computes()), (thief, vec![(thief, 11)]));
    assert_ne!(new, old);
    // A late word of the victim's is about what is over.
    bed.finish_on(VICTIM, old).is(11, TaskState::Processing);
}

#[test]
fn what_is_given_back_keeps_what_it_needs() {
    let mut bed = Bed::loaded(100, 2);
    bed.release(&[1]);
    bed.finish(10);
    let old = bed.id(11);
    // It alone needs the result.
    bed.worker_says(VICTIM, FromWorker::GaveBack(vec![old]));
    assert_eq!(bed.frees(), []);
    bed.is(1, TaskState::Memory).is(11, TaskState::Processing);
}

#[test]
fn what_the_victim_has_started_stays_there() {
    let mut bed = Bed::loaded(100, 2);
    bed.join(1);
    let id = bed.id(11);
    bed.worker_says(VICTIM, FromWorker::Kept(vec![id])).is(11, TaskState::Processing);
    assert_eq!(bed.assignment(11).0, VICTIM);
    bed.finish_on(VICTIM, id).is(11, TaskState::Memory);
}

#[test]
fn a_thief_that_dies_in_between_is_not_waited_for() {
    let mut bed = Bed::loaded(100, 2);
    let thief = bed.join(1);
    let id = bed.id(11);
    bed.lose(thief).worker_says(VICTIM, FromWorker::GaveBack(vec![id]));
    assert_eq!(bed.assignment(11).0, VICTIM);
}

#[test]
fn a_victim_that_dies_in_between_gives_all_up() {
    let mut bed = Bed::loaded(100, 2);
    let thief = bed.join(1);
    bed.lose(VICTIM).is(1, TaskState::Processing);
    assert_eq!(bed.assignment(1).0, thief);
}

#[test]
fn what_costs_more_to_move_than_to_wait_for_stays() {
    // A hundred gigabytes take a hundred seconds.
    let mut bed = Bed::loaded(100_000_000_000, 6);
    bed.join(1);
    assert_eq!(bed.asked_back(), []);
}

#[test]
fn restrictions_hold_for_thieves() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let there = |o: &mut TaskOptions| o.workers = vec!["w0".into()];
    bed.submit((10..14).map(|key| call(key, &[1]).with(there)).collect(), &[10, 11, 12, 13]);
    bed.join(1);
    assert_eq!(bed.asked_back(), []);
}

#[test]
fn who_lacks_what_tasks_hold_while_they_run_takes_none_of_them() {
    for amount in [1.0, 0.5] {
        let gpus = |supply| vec![("gpu".to_owned(), supply)];
        let mut bed = Bed::new(0);
        bed.join_with(1, gpus(1.0));
        bed.submit(vec![call(1, &[])], &[1]).finish(1);
        let needs = |o: &mut TaskOptions| o.resources = gpus(amount);
        bed.submit((10..14).map(|key| call(key, &[1]).with(needs)).collect(), &[10, 11, 12, 13]);
        bed.join(1);
        bed.join_with(1, gpus(amount / 2.0));
        bed.join_with(1, vec![("fpga".to_owned(), 1.0)]);
        bed.handle(Stimulus::Tick);
        assert_eq!(bed.asked_back(), [], "{amount}");
        let thief = bed.join_with(1, gpus(amount));
        let asked = bed.asked_back();
        assert_eq!(asked, [13, 12].map(|key| (VICTIM, bed.id(key))), "{amount}");
        bed.worker_says(VICTIM, FromWorker::GaveBack(asked.into_iter().map(|(_, id)| id).collect()));
        assert_eq!([12, 13].map(|key| bed.assignment(key).0), [thief, thief]);
    }
}

#[test]
fn what_costs_least_to_move_for_what_it_computes_goes_first() {
    // A result of a tenth of a second's way, and a small one.
    let mut bed = Bed::loaded(100_000_000, 0);
    bed.submit(vec![call(2, &[])], &[2]).finish(2);
    let three = |bed: &mut Bed, first: u128, needs: u128| {
        let keys = [first, first + 1, first + 2];
        bed.submit(keys.map(|key| call(key, &[needs])).to_vec(), &keys);
    };
    three(&mut bed, 10, 2);
    // The last assigned would go first.
    three(&mut bed, 20, 1);
    bed.join(1);
    let cheap = [12, 11, 10].map(|key| (VICTIM, bed.id(key)));
    assert_eq!(bed.asked_back(), cheap);

    // All need the same; some compute five times as long.
    let mut bed = Bed::loaded(100_000_000, 0);
    bed.submit(vec![call(2, &[]).of_g()], &[2]).finish_with(2, 100, 5_000_000_000);
    bed.submit([10, 11].map(|key| call(key, &[1]).of_g()).to_vec(), &[10, 11]);
    three(&mut bed, 20, 1);
    bed.join(1);
    assert_eq!(bed.asked_back()[0], (VICTIM, bed.id(11)));
}

/// Prefers a worker, so that others may still take it over.
fn rather(worker: WorkerId) -> impl FnOnce(&mut TaskOptions) {
    move |o| (o.workers, o.allow_other_workers) = (vec![format!("w{}", worker.0)], true)
}

#[test]
fn of_several_the_one_whose_tasks_wait_longest_is_asked() {
    for most in (0..3).map(WorkerId) {
        let mut bed = Bed::new(3);
        bed.submit(vec![call(1, &[])], &[1]).finish(1);
        let of = |worker| (0..if worker == most { 6 } else { 3 }).map(move |_| rather(worker));
        let preferences = (0..3).map(WorkerId).flat_map(of);
        let calls = (10..).zip(preferences).map(|(key, rather)| call(key, &[]).with(rather));
        bed.submit(calls.collect(), &[10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]);
        assert_eq!(bed.asked_back(), []);
        bed.join(1);
        let asked = bed.asked_back();
        assert!(!asked.is_empty() && asked.iter().all(|(worker, _)| *worker == most), "{most:?}: {asked:?}");
    }
}

#[test]
fn however_many_have_enough_the_one_with_too_much_is_found_at_once() {
    for workers in [10, 2000] {
        let mut bed = Bed::new(workers as usize);
        let keys: Vec<u128> = (1..=u128::from(workers)).collect();
        bed.submit(keys.iter().map(|key| call(*key, &[])).collect(), &keys);
        assert!(bed.state.workers.iter().all(|(_, worker)| worker.busy == 1));
        let victim = WorkerId(workers - 3);
        let more = (10_000..10_006).map(|key| call(key, &[]).with(rather(victim)));
        bed.submit(more.collect(), &[10_000, 10_001, 10_002, 10_003, 10_004, 10_005]);
        assert_eq!(bed.asked_back(), []);
        bed.finish(1);
        let asked = bed.asked_back();
        assert!(
            !asked.is_empty() && asked.iter().all(|(worker, _)| *worker == victim),
            "{workers}: {asked:?}"
        );
    }
}

#[test]
fn of_very_many_that_have_more_than_they_run_sixteen_are_looked_at_in_a_turn() {
    for workers in [10, 2000] {
        let mut bed = Bed::new(workers as usize);
        bed.submit(vec![call(1, &[]), call(2, &[]).of_g()], &[1, 2]);
        bed.finish(1).finish_with(2, 100, 100_000);
        // Each has two tasks of 100 us, which are done before they could be given back, and one has a few of a second.
        let keys: Vec<u128> = (10..10 + 2 * u128::from(workers)).collect();
        bed.submit(keys.iter().map(|key| call(*key, &[]).of_g()).collect(), &keys);
        let last = WorkerId(workers - 1);
        let long = [5001, 5002, 5003].map(|key| call(key, &[]).with(rather(last)));
        bed.submit(long.to_vec(), &[5001, 5002, 5003]);
        let thief = WorkerId(0);
        let own: Vec<u128> = keys.into_iter().filter(|key| bed.assignment(*key).0 == thief).collect();
        assert_eq!(own.len(), 2);
        for key in own {
            bed.finish_with(key, 100, 100_000);
        }
        let mut turns = 1;
        while bed.asked_back().is_empty() {
            turns += 1;
            assert!(turns <= 2000, "nobody is found");
            bed.worker_says(thief, FromWorker::Heartbeat(Metrics::default()));
        }
        assert_eq!((bed.asked_back()[0].0, turns), (last, last.0.div_ceil(16)));
    }
}

#[test]
fn a_worker_that_becomes_idle_looks_for_work_and_a_busy_one_does_not() {
    let mut bed = Bed::loaded(100, 4);
    let thief = bed.join(1);
    let given: Vec<TaskId> = bed.asked_back().into_iter().map(|(_, id)| id).collect();
    assert_eq!(given.len(), 2);
    bed.worker_says(VICTIM, FromWorker::GaveBack(given));
    bed.submit((20..24).map(|key| call(key, &[1])).collect(), &[20, 21, 22, 23]);
    assert_eq!(bed.asked_back(), []);
    // All that the thief has is done; four or so wait at the other.
    let mine: Vec<u128> = (10..24)
        .filter(|key| {
            bed.state.task_state(Key(*key)) == Some(TaskState::Processing) && bed.assignment(*key).0 == thief
        })
        .collect();
    for key in mine {
        bed.finish(key);
    }
    assert!(!bed.asked_back().is_empty());
}

#[test]
fn a_worker_whose_tasks_turn_out_to_be_long_is_relieved() {
    let mut bed = Bed::new(1);
    let there = |o: &mut TaskOptions| (o.workers, o.allow_other_workers) = (vec!["w0".into()], true);
    bed.submit(vec![call(1, &[]).with(there)], &[1]);
    let (worker, id) = bed.assignment(1);
    // A gigabyte takes a second to move; so long was never seen.
    let finished = Finished { id, nbytes: 1_000_000_000, duration: 100_000, value: None };
    bed.worker_says(worker, FromWorker::Finished(finished));
    bed.join(1);
    let keys: Vec<u128> = (10..20).collect();
    bed.submit(keys.iter().map(|key| call(*key, &[1])).collect(), &keys);
    assert_eq!(bed.asked_back(), []);
    assert!(keys.iter().all(|key| bed.assignment(*key).0 == VICTIM));
    // It takes a minute.
    let id = bed.id(10);
    let finished = Finished { id, nbytes: 8, duration: 60_000_000_000, value: None };
    bed.worker_says(VICTIM, FromWorker::Finished(finished));
    assert!(bed.asked_back().len() >= 3, "{:?}", bed.asked_back());
}

/// What each looks at again costs, so of a worker with many tasks they are not at each surprise.
#[test]
fn many_tasks_are_estimated_anew_where_what_is_known_changed_and_not_for_an_exception() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish_with(1, 8, 600_000);
    // All are assigned at once, as they follow what is in memory.
    bed.submit((2..=300).map(|key| call(key, &[1])).collect(), &Vec::from_iter(2..=300));
    let occupancy = |bed: &Bed| bed.state.workers.get(WorkerId(0)).map_or(0, |worker| worker.occupancy);
    let mut anew = Vec::new();
    // One far longer than all before has those that follow taken for long; two shorter ones change that a little.
    for (key, millis) in (2..).zip([40, 5, 5, 200]) {
        let (each, before) = (bed.task(key).cold.estimate, occupancy(&bed));
        assert!(super::super::stealing::is_surprising(each, millis * 1_000_000), "{each}");
        bed.finish_with(key, 8, millis * 1_000_000);
        anew.push(occupancy(&bed) != before - each);
    }
    assert_eq!(anew, [true, false, false, true]);
    bed.state.validate();
}
