//! What the scheduler says of why a task is where it is.

use super::*;

fn explained(bed: &Bed, key: u128) -> String {
    let told = bed.state.explain(&[Key(key)]);
    assert_eq!(told.len(), 1);
    told[0].to_string()
}

#[track_caller]
fn says(bed: &Bed, key: u128, words: &str) {
    let told = explained(bed, key);
    assert!(told.contains(words), "{told}");
}

#[test]
fn what_nobody_knows() {
    says(&Bed::new(1), 1, "is unknown. The scheduler does not know it");
}

#[test]
fn what_waits_names_what_it_waits_for() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[]), call(3, &[1, 2])], &[3]).finish(1);
    says(&bed, 3, "is waiting. It waits for 1 of its 2 dependencies.");
    says(&bed, 3, &format!("f ({}) is processing on w0.", Key(2)));
}

#[test]
fn who_may_not_run_it_and_why() {
    let mut bed = Bed::new(0);
    bed.submit(vec![call(1, &[])], &[1]);
    says(&bed, 1, "is no-worker. There is no worker: start some.");
    bed.join_with(1, vec![("gpu".into(), 0.5)]);
    let far = |o: &mut TaskOptions| o.workers = vec!["nowhere".into()];
    bed.submit(vec![call(2, &[]).with(far)], &[2]);
    says(&bed, 2, "It may run on nowhere alone, and none of the 1 worker goes by that name.");
    let gpu = |o: &mut TaskOptions| o.resources = vec![("gpu".into(), 2.0)];
    bed.submit(vec![call(3, &[]).with(gpu)], &[3]);
    says(&bed, 3, "It needs 2 of gpu, and none of the 1 worker supplies so much.");
}

#[test]
fn workers_about_to_leave_are_named_as_the_reason() {
    let mut bed = Bed::new(0);
    bed.join_for(Some(3_600_000_000_000));
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    let finished = Finished { id, nbytes: 8, duration: 3_000_000_000_000, value: None };
    bed.worker_says(worker, FromWorker::Finished(finished));
    bed.now += 2_000_000_000_000;
    bed.submit(vec![call(2, &[])], &[2]).is(2, TaskState::NoWorker);
    says(&bed, 2, "1 of the 1 worker will leave before it would be done: it takes 3000.0 s.");
}

#[test]
fn what_is_queued_says_how_much_goes_before() {
    let mut bed = Bed::new(1);
    bed.submit((1..=9).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    says(&bed, 3, "each of the 1 worker has enough to do. It is the next to be handed out.");
    says(&bed, 9, "6 tasks are to be handed out before it.");
    says(&bed, 1, "w0 was given it: it would start there first, and nothing waited there.");
    says(&bed, 1, "it runs, or will once it has what it needs");
    says(&bed, 2, "1 task is before it there, on 1 thread.");
}

#[test]
fn a_silent_worker_is_told_of() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    bed.now += 10_000_000_000;
    bed.handle(Stimulus::Tick);
    says(&bed, 1, "The worker has been silent for 10.0 s: after 30.0 s it is taken for dead");
}

#[test]
fn where_it_ran_and_what_for() {
    let mut bed = Bed::new(2);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    let finished = Finished { id, nbytes: 1 << 30, duration: 1_000_000, value: None };
    bed.worker_says(worker, FromWorker::Finished(finished));
    bed.submit(vec![call(2, &[1])], &[2]).finish(2);
    let name = &bed.state.workers.get(worker).unwrap().info.name;
    says(&bed, 2, &format!("{name} was given it: it held all 1.0 GiB that the task needs"));
    says(&bed, 2, &format!("Its result, 100 B, is in the memory of {name}."));
    let only = |o: &mut TaskOptions| o.workers = vec!["w1".into()];
    bed.submit(vec![call(3, &[]).with(only)], &[3]);
    says(&bed, 3, "w1, one of those it is restricted to (w1) was given it");
}

#[test]
fn what_failed_says_how() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    says(&bed, 1, "is erred. It failed: ");
    says(&bed, 1, "it did not work");
}

#[test]
fn without_a_key_those_that_do_not_run_are_told_of_the_hopeless_first() {
    let mut bed = Bed::new(1);
    let far = |o: &mut TaskOptions| o.workers = vec!["nowhere".into()];
    bed.submit(vec![call(1, &[]), call(2, &[]).with(far), call(3, &[1])], &[2, 3]);
    let keys: Vec<u128> = bed.state.explain(&[]).iter().map(|told| told.key.0).collect();
    assert_eq!(keys, [2, 1, 3]);
}
