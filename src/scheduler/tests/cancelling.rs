//! A task is cancelled in each of its states.

use super::*;

#[test]
fn cancelled_while_waiting() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[1, 2]);
    bed.cancel(&[2]).is_forgotten(2).is(1, TaskState::Processing);
    assert_eq!((bed.client_hears(), bed.frees()), (vec!["2 cancelled".to_owned()], vec![]));
}

#[test]
fn cancelled_while_no_worker_may_run_it() {
    let mut bed = Bed::new(0);
    bed.submit(vec![call(1, &[])], &[1]).is(1, TaskState::NoWorker);
    bed.cancel(&[1]).is_forgotten(1);
    bed.join(1);
    assert_eq!(bed.computes(), []);
}

#[test]
fn cancelled_while_queued() {
    let mut bed = Bed::new(1);
    bed.submit((1..=4).map(|key| call(key, &[])).collect(), &[1, 2, 3, 4]).is(4, TaskState::Queued);
    bed.cancel(&[4]).is_forgotten(4);
    bed.finish(1).finish(2).finish(3);
    assert_eq!(bed.computes(), []);
}

#[test]
fn cancelled_while_processing() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.cancel(&[1]).is_forgotten(1);
    assert_eq!(bed.frees(), [(worker, id)]);
    // Its word that it was done all the same comes too late.
    bed.finish_on(worker, id).is_forgotten(1);
    assert_eq!(bed.client_hears(), [""; 0]);
}

#[test]
fn cancelled_while_in_memory() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]).finish(1);
    let id = bed.id(1);
    bed.cancel(&[1]).is_forgotten(1);
    assert_eq!(bed.frees(), [(WorkerId(0), id)]);
}

#[test]
fn cancelled_while_erred() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, id) = bed.assignment(1);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() });
    bed.cancel(&[1]).is_forgotten(1);
}

#[test]
fn cancelled_while_released() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[2]).finish(1).finish(2).is(1, TaskState::Released);
    // 2 could be computed again from 1, so that 1 stays known; 2 is what nobody cancelled.
    bed.cancel(&[1]).is(2, TaskState::Memory);
    bed.cancel(&[2]).is_forgotten(1).is_forgotten(2);
}

#[test]
fn what_depends_on_a_cancelled_task_is_cancelled_too() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[1]), call(3, &[2])], &[1, 2, 3]);
    bed.cancel(&[1]);
    assert_eq!(bed.state.task_count(), 0);
    let mut heard = bed.client_hears();
    heard.sort();
    assert_eq!(heard, ["1 cancelled", "2 cancelled", "3 cancelled"]);
}

#[test]
fn what_another_client_wants_goes_on_unless_forced() {
    let mut bed = Bed::new(1);
    let other = bed.state.add_client();
    bed.submit(vec![call(1, &[])], &[1]);
    let again = FromClient::Submit { graph: graph(vec![call(1, &[])]), wants: vec![Key(1)] };
    bed.handle(Stimulus::Client(other, again));
    bed.cancel(&[1]).is(1, TaskState::Processing);
    assert_eq!(bed.client_hears(), ["1 cancelled"]);
    bed.handle(Stimulus::Client(other, FromClient::Cancel { keys: vec![Key(1)], force: true }));
    bed.is_forgotten(1);
}

#[test]
fn cancelled_and_submitted_again_it_is_computed_anew() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[])], &[1]);
    let (worker, old) = bed.assignment(1);
    bed.cancel(&[1]).submit(vec![call(1, &[])], &[1]).is(1, TaskState::Processing);
    assert_ne!(bed.id(1), old);
    // The former computation ends after all.
    bed.finish_on(worker, old).is(1, TaskState::Processing);
    assert_eq!(bed.frees(), [(worker, old)]);
    bed.finish(1).is(1, TaskState::Memory);
}
