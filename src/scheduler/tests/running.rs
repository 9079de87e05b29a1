//! Tasks that run as they should, or fail.

use super::*;

#[test]
fn a_task_is_assigned_finished_reported_and_forgotten() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).is(1, TaskState::Processing);
    assert_eq!(bed.computes(), [(WorkerId(0), 1)]);
    bed.finish(1).is(1, TaskState::Memory);
    assert_eq!(bed.client_hears(), ["1 in memory of 0"]);
    let id = bed.id(1);
    bed.release(&[1]).is_forgotten(1);
    assert_eq!(bed.frees(), [(WorkerId(0), id)]);
}

#[test]
fn each_worker_hears_once_of_all_results_that_are_released_together() {
    let mut bed = Bed::new(20);
    let keys: Vec<u128> = (1..=60).collect();
    bed.submit(keys.iter().map(|key| call(*key, &[])).collect(), &keys);
    let (mut open, mut held) = (keys.clone(), [0; 20]);
    while !open.is_empty() {
        let running = |key: &u128| bed.task(*key).worker().map(|worker| (*key, worker));
        let running: Vec<(u128, WorkerId)> = open.iter().filter_map(running).collect();
        for (key, worker) in running {
            bed.finish(key);
            held[worker.0 as usize] += 1;
            open.retain(|other| *other != key);
        }
    }
    bed.release(&keys);
    assert_eq!(bed.frees().len(), keys.len());
    let told = |worker: u32| {
        let told =
            bed.told.iter().filter(|told| matches!(told, Instruction::ToWorker(id, _) if id.0 == worker));
        told.count()
    };
    assert_eq!((0..20).map(told).collect::<Vec<_>>(), held.map(|held| held.min(1)));
    assert!(held.iter().filter(|held| **held > 1).count() > 8, "many hold several: {held:?}");
}

#[test]
fn a_task_waits_for_what_it_needs_and_is_told_who_has_it() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2])], &[3]).is(3, TaskState::Waiting);
    bed.finish(1).is(3, TaskState::Waiting);
    bed.finish(2).is(3, TaskState::Processing);
    let (_, task) = bed.computed()[0];
    let held: Vec<(TaskId, u64)> = task.dependencies.iter().map(|d| (d.id, d.nbytes)).collect();
    assert_eq!(held, [(bed.id(1), 100), (bed.id(2), 100)]);
    // Nobody wants 1 and 2 but 3: with it done the results go. The tasks stay, since 3 may be lost.
    bed.finish(3).is(1, TaskState::Released).is(2, TaskState::Released);
    assert_eq!(bed.frees().len(), 2);
}

#[test]
fn a_result_that_comes_with_the_report_goes_on_to_the_client() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    let finished = Finished { id, nbytes: 8, duration: 1, value: Some(Value::new(7i64)) };
    bed.worker_says(worker, FromWorker::Finished(finished));
    let passed = bed.told.iter().any(|told| {
        matches!(told, Instruction::ToClient(_, ToClient::InMemory { value: Some(value), .. })
            if value.get::<i64>().is_ok_and(|value| *value == 7))
    });
    assert!(passed, "{:?}", bed.told);
}

#[test]
fn equal_keys_are_computed_once() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    bed.submit(vec![call(1, &[])], &[1]);
    assert_eq!(bed.computes(), []);
    bed.finish(1);
    bed.submit(vec![call(1, &[])], &[1]);
    assert_eq!((bed.computes(), bed.client_hears()), (vec![], vec!["1 in memory of 0".to_owned()]));
}

#[test]
fn a_key_twice_in_a_graph_is_one_task() {
    let mut bed = Bed::new(1);
    let twice = [call(1, &[]), call(2, &[1]), call(3, &[2]), call(2, &[1]), call(1, &[]), call(4, &[2, 1])];
    bed.submit(twice.to_vec(), &[2, 2, 3, 4]);
    assert_eq!((bed.computes(), bed.state.task_count()), (vec![(WorkerId(0), 1)], 4));
    bed.finish(1);
    assert_eq!(bed.computes(), [(WorkerId(0), 2)]);
    bed.finish(2);
    assert_eq!(bed.client_hears(), ["2 in memory of 0"]);
    assert_eq!(bed.computes(), [(WorkerId(0), 3), (WorkerId(0), 4)]);
    bed.finish(3).finish(4).release(&[2, 3, 4]);
    assert_eq!((bed.state.task_count(), bed.state.unfinished), (0, 0));
    assert_eq!(bed.state.workers.get(WorkerId(0)).map(|worker| (worker.busy, worker.nbytes)), Some((0, 0)));
}

#[test]
fn an_error_reaches_all_that_depend_on_it_with_its_cause() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[2])], &[1, 2, 3]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    for key in [1, 2, 3] {
        bed.is(key, TaskState::Erred);
    }
    let heard = bed.client_hears();
    assert_eq!(heard.len(), 3);
    assert!(heard.iter().all(|word| word.contains("it did not work")), "{heard:?}");
    bed.release(&[1, 2, 3]);
    assert_eq!(bed.state.task_count(), 0);
}

#[test]
fn what_is_submitted_on_a_failed_dependency_errs_at_once() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.submit(vec![call(2, &[1])], &[2]).is(2, TaskState::Erred);
    assert_eq!(bed.computes(), []);
}

#[test]
fn an_erred_task_submitted_again_is_tried_again() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.submit(vec![call(1, &[])], &[1]).is(1, TaskState::Processing);
    assert_ne!(bed.id(1), id, "it is another computation");
}

#[test]
fn retries_are_used_up_one_by_one() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]).with(|o| o.retries = 2)], &[1]);
    for _ in 0..2 {
        let (worker, id) = bed.assignment(1);
        bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
        bed.is(1, TaskState::Processing);
        assert_eq!(bed.client_hears(), [""; 0]);
    }
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.is(1, TaskState::Erred);
}

#[test]
fn an_unknown_dependency_errs_its_task_and_says_so() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[99])], &[1]).is(1, TaskState::Erred);
    let heard = bed.client_hears();
    assert!(heard[0].contains("does not know") && heard[0].contains("dropped or cancelled"), "{heard:?}");
}

#[test]
fn a_late_word_about_a_former_computation_has_no_effect() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (first, old) = bed.assignment(1);
    bed.finish(1);
    // Lost at its holder, it is computed again.
    bed.says(FromClient::Missing { id: old, worker: first });
    let (_, new) = bed.assignment(1);
    assert_ne!(old, new);
    for worker in [WorkerId(0), WorkerId(1)] {
        bed.finish_on(worker, old).is(1, TaskState::Processing);
        assert_eq!(bed.frees(), [(worker, old)], "who has the former result is rid of it");
        bed.worker_says(worker, FromWorker::Erred { id: old, error: failure() }).is(1, TaskState::Processing);
        bed.worker_says(worker, FromWorker::Added(vec![old])).is(1, TaskState::Processing);
        bed.worker_says(worker, FromWorker::LongRunning(old)).is(1, TaskState::Processing);
        bed.worker_says(worker, FromWorker::Missing { id: old, holder: Some(first) });
        bed.is(1, TaskState::Processing);
    }
    bed.finish(1).is(1, TaskState::Memory);
    bed.says(FromClient::Missing { id: old, worker: first }).is(1, TaskState::Memory);
}

#[test]
fn a_story_tells_each_step() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let story: Vec<(String, String)> =
        bed.state.story(Key(1)).into_iter().map(|event| (event.start, event.finish)).collect();
    let step = |start: &str, finish: &str| (start.to_owned(), finish.to_owned());
    assert_eq!(
        story,
        [step("released", "waiting"), step("waiting", "processing"), step("processing", "memory")]
    );
}

#[test]
fn what_goes_at_once_goes_in_one_message_to_each_worker() {
    let mut bed = Bed::new(2);
    let keys: Vec<u128> = (1..=20).collect();
    bed.submit(keys.iter().map(|key| call(*key, &[])).collect(), &keys);
    while let Some(key) =
        keys.iter().find(|key| bed.state.task_state(Key(**key)) == Some(TaskState::Processing))
    {
        bed.finish(*key);
    }
    bed.release(&keys);
    assert_eq!((bed.told.len(), bed.frees().len(), bed.state.task_count()), (2, 20, 0));
}
