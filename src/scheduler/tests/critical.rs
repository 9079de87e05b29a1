//! What the rest hangs on goes first, once there is no time to lose.

use super::*;

/// Twenty loads, and a chain of ten that begins with another one, in the order of their keys: 1 to 20, and 21 to 30.
fn loads_and_a_chain() -> Graph {
    let chain = (22..=30).map(|key| call(key, &[key - 1]));
    let mut graph = graph((1..=21).map(|key| call(key, &[])).chain(chain).collect());
    let entry = EntryRef { module: 0, offset: 16, name: 2 };
    graph.functions.push(Function { entry, name: "step".into() });
    graph.tasks[21..].iter_mut().for_each(|task| task.function = 1);
    graph
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
    // Nine follow it: each round is taken for half as long again, and 13 rounds are left when 17 are done.
    assert_eq!(finish_until_assigned(&mut bed, 21), 17);
    bed.is(19, TaskState::Queued).is(20, TaskState::Queued);
    // Who was next by the order still is.
    bed.finish(18).is(19, TaskState::Processing);
    // Each step goes before the loads that wait at the worker.
    bed.finish(21);
    let told = bed.computed();
    let step = told.iter().find(|(_, task)| task.key == Key(22)).expect("it can run");
    assert!(step.1.priority < bed.task(19).told_priority(), "{told:?}");
    bed.state.validate();
}

#[test]
fn no_path_is_long_while_there_is_much_to_do() {
    let mut bed = submitted();
    let (_, first) = bed.computed()[0];
    assert_eq!((first.key, first.priority.order), (Key(1), 0));
    for load in 1..=16 {
        assert!(bed.finish(load).computed().iter().all(|(_, task)| task.priority.order > 0), "{load}");
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
    let told = bed.state.explain(&[Key(18)])[0].to_string();
    assert!(!told.contains("goes before others"), "{told}");
}
