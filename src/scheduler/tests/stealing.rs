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
        let (worker, id) = bed.assignment(1);
        let finished = Finished { id, nbytes, duration: 1_000_000_000, value: None };
        bed.worker_says(worker, FromWorker::Finished(finished));
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
