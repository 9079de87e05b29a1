//! What the rest hangs on goes first, once there is no time to lose.

use super::*;

/// `loads` tasks of one function, then `steps` of another.
fn loads_and_steps(loads: Vec<Call>, steps: Vec<Call>) -> Graph {
    graph(loads.into_iter().chain(steps.into_iter().map(Call::of_g)).collect())
}

/// Twenty loads, and a chain of ten that begins with another one, in the order of their keys: 1 to 20, and 21 to 30.
fn loads_and_a_chain() -> Graph {
    loads_and_steps(
        (1..=21).map(|key| call(key, &[])).collect(),
        (22..=30).map(|key| call(key, &[key - 1])).collect(),
    )
}

fn submitted() -> Bed {
    let mut bed = Bed::new(1);
    let wants = (1..=30).map(Key).collect();
    bed.says(FromClient::Submit { graph: loads_and_a_chain(), wants });
    bed
}

/// Finishes loads in their order until `task` is assigned; gives the last one.
#[track_caller]
fn finish_until_assigned(bed: &mut Bed, task: u128) -> u128 {
    (1..=20)
        .find(|load| bed.finish(*load).computes().iter().any(|(_, key)| *key == task))
        .expect("it is assigned before all loads are done")
}

#[test]
fn a_long_path_begins_while_there_is_other_work_to_do_beside_it() {
    let mut bed = submitted();
    // Nine follow it: each is taken for three rounds, and less than 27 are left when four are done.
    assert_eq!(finish_until_assigned(&mut bed, 21), 4);
    // Then loads go on in their order.
    bed.is(6, TaskState::Queued);
    bed.finish(5).is(6, TaskState::Processing).is(7, TaskState::Queued);
    // Each step goes before the loads that wait at the worker.
    bed.finish(21);
    let told = bed.computed();
    let step = told.iter().find(|(_, task)| task.key == Key(22)).expect("it can run");
    assert_eq!(step.1.height, 8);
    assert!((1..=9).contains(&step.1.critical), "{told:?}");
    bed.state.validate();
}

#[test]
fn no_path_is_long_while_there_is_much_to_do() {
    let mut bed = submitted();
    for load in 1..=3 {
        let told = bed.finish(load).computed();
        assert_eq!(told.iter().map(|(_, task)| task.key).collect::<Vec<_>>(), [Key(load + 2)]);
        assert!(told.iter().all(|(_, task)| task.critical > 9), "{told:?}");
    }
}

#[test]
fn earlier_submissions_and_higher_priorities_still_go_first() {
    let mut bed = Bed::new(1);
    bed.submit((101..=103).map(|key| call(key, &[])).collect(), &[101, 102, 103]);
    let wants = (21..=30).map(Key).collect();
    bed.says(FromClient::Submit { graph: loads_and_a_chain(), wants });
    bed.finish(101);
    assert_eq!(bed.computes(), [(WorkerId(0), 103)]);
    bed.submit(vec![call(200, &[]).with(|o| o.priority = 1)], &[200]);
    bed.finish(102);
    assert_eq!(bed.computes(), [(WorkerId(0), 200)]);
    bed.finish(103);
    assert_eq!(bed.computes(), [(WorkerId(0), 21)]);
}

#[test]
fn what_is_critical_says_so() {
    let mut bed = submitted();
    finish_until_assigned(&mut bed, 21);
    let told = bed.state.explain(&[Key(21)])[0].to_string();
    assert!(told.contains("9 tasks depend on it, one after the other: it goes before others."), "{told}");
    let told = bed.state.explain(&[Key(5)])[0].to_string();
    assert!(!told.contains("goes before others"), "{told}");
}

#[test]
fn it_goes_where_it_would_start_first_and_not_where_least_waits() {
    for (steps, stays) in [(0, false), (6, true)] {
        let mut bed = Bed::new(2);
        bed.submit(vec![call(1, &[]).on("w0")], &[1]).finish(1);
        // Tasks of a second each: five on the one that holds what is needed, two on the other.
        let busy = [10, 11, 12, 13, 14].map(|key| call(key, &[]).on("w0"));
        let less = [20, 21].map(|key| call(key, &[]).on("w1"));
        bed.submit(busy.into_iter().chain(less).collect(), &[10, 11, 12, 13, 14, 20, 21]);
        // The former is nearly through with its first, the latter has just begun another.
        bed.now += 900_000_000;
        bed.finish(20).submit(vec![call(22, &[]).on("w1")], &[22]);
        let chain = (3..3 + steps).map(|key| call(key, &[key - 1]));
        bed.submit(std::iter::once(call(2, &[1])).chain(chain).collect(), &[2 + steps]);
        assert_eq!(bed.assignment(2).0, WorkerId(if stays { 0 } else { 1 }), "{steps} steps after it");
    }
}

#[test]
fn those_of_the_same_height_keep_the_order_of_their_graph() {
    let mut bed = Bed::new(0);
    bed.join(4);
    // Those that are gone leave places, the last of which are taken first.
    bed.submit((1..=3).map(|key| call(key, &[])).collect(), &[1, 2, 3]);
    bed.finish(1).finish(2).finish(3).release(&[1, 2, 3]);
    let loads = [101, 102, 103].map(|key| call(key, &[])).to_vec();
    let graph = loads_and_steps(loads, (104..=118).map(|key| call(key, &[key - 3])).collect());
    bed.says(FromClient::Submit { graph, wants: [116, 117, 118].map(Key).to_vec() });
    let told = bed.computed();
    assert!(told.iter().all(|(_, task)| task.height >= task.critical), "{told:?}");
    assert_eq!(told.iter().map(|(_, task)| task.key.0).collect::<Vec<_>>(), [101, 102, 103]);
}

#[test]
fn what_is_queued_and_critical_is_told_to_be_next() {
    let mut bed = submitted();
    bed.finish(1).finish(2).finish(3);
    // One more done, and it would go next; now loads go before it.
    let before = bed.state.explain(&[Key(21)])[0].to_string();
    assert!(before.contains("15 tasks are to be handed out before it."), "{before}");
    let mut bed = Bed::new(1);
    let wants = (1..=30).map(Key).collect();
    bed.submit((201..=203).map(|key| call(key, &[])).collect(), &[201, 202, 203]);
    let mut graph = loads_and_a_chain();
    graph.tasks.drain(..18);
    bed.says(FromClient::Submit { graph, wants });
    let told = bed.state.explain(&[Key(21)])[0].to_string();
    assert!(told.contains("9 tasks depend on it"), "{told}");
    let other = bed.state.explain(&[Key(19)])[0].to_string();
    assert!(other.contains("2 tasks are to be handed out before it."), "{other}");
}

/// Two workers that know how long tasks take, 100 ms, of which the second takes several times as long; the first has a
/// result.
fn one_is_slow(threads: u32) -> Bed {
    let mut bed = two_workers(threads);
    for round in 0..12 {
        for (worker, millis) in [(1, 500), (0, 100), (0, 100), (0, 100), (0, 100), (0, 100), (0, 100)] {
            bed.submit(vec![call(1000 + round, &[]).with(at(worker))], &[1000 + round]);
            bed.finish_with(1000 + round, 8, millis * 1_000_000).release(&[1000 + round]);
        }
    }
    bed
}

fn two_workers(threads: u32) -> Bed {
    let mut bed = Bed::new(0);
    bed.join(threads);
    bed.join(threads);
    bed
}

fn at(worker: u32) -> impl Fn(&mut TaskOptions) {
    move |o| o.workers = vec![format!("w{worker}")]
}

#[test]
fn a_slow_worker_is_not_given_what_the_rest_waits_for() {
    for threads in [1, 4] {
        let mut bed = one_is_slow(threads);
        bed.submit(vec![call(1, &[]).with(at(1))], &[1]).finish(1);
        bed.submit((2..9).map(|key| call(key, &[key - 1])).collect(), &[8]);
        assert_eq!(bed.assignment(2).0, WorkerId(0), "what it needs lies on the slow one, which is idle too");
    }
}

#[test]
fn a_slow_worker_does_not_steal_it_either() {
    for (slow_thief, threads) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
        let mut bed = if slow_thief { one_is_slow(threads) } else { two_workers(threads) };
        let each = 4 * u128::from(threads);
        let (here, there) = (100..100 + each, 200..200 + each);
        bed.submit(vec![call(1, &[]).with(at(0))], &[1]).finish_with(1, 8, 100_000_000);
        let keys: Vec<u128> = here.clone().chain(there.clone()).collect();
        bed.submit(here.map(|key| call(key, &[]).with(at(0))).collect(), &keys[..each as usize]);
        bed.submit(there.clone().map(|key| call(key, &[]).with(at(1))).collect(), &keys[each as usize..]);
        bed.submit((2..9).map(|key| call(key, &[key - 1])).collect(), &[8]);
        assert_eq!(bed.assignment(2).0, WorkerId(0), "others wait there, but it goes before them");
        let id = bed.id(2);
        let asked = format!("{:?}", Instruction::ToWorker(WorkerId(0), ToWorker::GiveBack(vec![id])));
        let mut is_asked = false;
        for key in there {
            bed.finish_with(key, 8, if slow_thief { 500_000_000 } else { 100_000_000 });
            is_asked |= bed.told.iter().any(|told| format!("{told:?}") == asked);
        }
        assert_eq!(is_asked, !slow_thief, "{threads} threads: {:?}", bed.told);
    }
}
