//! Copies of results: made, moved and dropped.

use super::*;

/// Results of 100 bytes, all on the first worker.
fn on_one(workers: usize, keys: std::ops::RangeInclusive<u128>) -> Bed {
    let mut bed = Bed::new(workers);
    let first = |o: &mut TaskOptions| o.workers = vec!["w0".into()];
    let all: Vec<u128> = keys.clone().collect();
    bed.submit(keys.clone().map(|key| call(key, &[]).with(first)).collect(), &all);
    for key in keys {
        bed.finish(key);
    }
    bed
}

fn replicate(keys: &[u128], count: Option<u32>, workers: &[&str]) -> Query {
    let workers = workers.iter().map(|name| (*name).to_owned()).collect();
    Query::Replicate { keys: keys.iter().copied().map(Key).collect(), count, workers }
}

fn tick(bed: &mut Bed) -> &mut Bed {
    bed.handle(Stimulus::Tick)
}

#[test]
fn copies_are_made_where_least_is_held_and_then_the_client_is_told() {
    let mut bed = on_one(4, 1..=1);
    bed.submit(vec![call(2, &[]).on("w1")], &[2]).finish(2);
    bed.asks(replicate(&[1], Some(3), &[]));
    let id = bed.id(1);
    assert_eq!(bed.acquires(), [(WorkerId(2), id), (WorkerId(3), id)]);
    assert!(bed.answers().is_empty());
    bed.add(WorkerId(2), 1);
    assert!(bed.answers().is_empty());
    bed.add(WorkerId(3), 1);
    assert!(matches!(bed.answers()[..], [Answer::Copied(failed)] if failed.is_empty()));
    // Nobody needs that many, but somebody asked for them.
    tick(&mut bed);
    assert_eq!(bed.task(1).who_has().len(), 3);
    bed.state.validate();
}

#[test]
fn what_is_there_already_is_answered_at_once() {
    let mut bed = on_one(2, 1..=1);
    bed.asks(replicate(&[1, 99], Some(1), &[]));
    assert!(bed.acquires().is_empty() && bed.answers().len() == 1);
    bed.asks(replicate(&[1], None, &["w1"]));
    assert_eq!(bed.acquires(), [(WorkerId(1), bed.id(1))]);
}

#[test]
fn a_copy_that_cannot_be_made_is_told_of() {
    let mut bed = on_one(2, 1..=1);
    let id = bed.asks(replicate(&[1], None, &[])).id(1);
    bed.worker_says(WorkerId(1), FromWorker::NotAdded { id, error: failure() });
    assert!(matches!(bed.answers()[..], [Answer::Copied(failed)] if failed[0].0 == Key(1)));
}

#[test]
fn nobody_waits_for_ever_for_workers_that_die_or_results_that_are_lost() {
    let mut bed = on_one(3, 1..=1);
    bed.asks(replicate(&[1], None, &[])).lose(WorkerId(1));
    bed.add(WorkerId(2), 1);
    assert!(bed.answers().is_empty());
    assert_eq!(tick(&mut bed).answers().len(), 1);
    let mut bed = on_one(3, 1..=1);
    bed.asks(replicate(&[1], None, &[])).lose(WorkerId(0));
    assert_eq!(tick(&mut bed).answers().len(), 1);
}

#[test]
fn copies_that_nobody_needs_go_where_most_is_held() {
    let mut bed = on_one(3, 1..=1);
    bed.submit((2..=3).map(|key| call(key, &[1]).on(format!("w{}", key - 1))).collect(), &[2, 3]);
    bed.add(WorkerId(1), 1).add(WorkerId(2), 1);
    // As long as somebody needs them they stay.
    assert_eq!(tick(&mut bed).task(1).who_has().len(), 3);
    bed.finish(2);
    assert_eq!(tick(&mut bed).frees(), [(WorkerId(1), bed.id(1))]);
    bed.finish(3);
    assert_eq!(tick(&mut bed).frees(), [(WorkerId(2), bed.id(1))]);
    // The client was told of the first.
    assert_eq!(bed.task(1).who_has()[..], [WorkerId(0)]);
    assert!(tick(&mut bed).frees().is_empty());
    bed.state.validate();
}

#[test]
fn a_rebalance_moves_results_and_the_old_ones_go_when_the_new_are_there() {
    let mut bed = on_one(2, 1..=4);
    bed.asks(Query::Rebalance);
    let moves = bed.acquires();
    assert_eq!(moves.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [WorkerId(1), WorkerId(1)]);
    assert!(bed.frees().is_empty());
    for (to, id) in moves {
        bed.worker_says(to, FromWorker::Added(vec![id]));
        assert_eq!(bed.frees(), [(WorkerId(0), id)]);
    }
    assert_eq!(bed.answers().len(), 1);
    let held: Vec<u64> = bed.state.workers.iter().map(|(_, worker)| worker.nbytes).collect();
    assert_eq!(held, [200, 200]);
    bed.asks(Query::Rebalance);
    assert!(bed.acquires().is_empty() && bed.answers().len() == 1);
    bed.state.validate();
}

#[test]
fn one_big_result_is_not_moved_to_and_fro() {
    let mut bed = on_one(2, 1..=1);
    bed.asks(Query::Rebalance);
    assert!(bed.acquires().is_empty() && bed.answers().len() == 1);
}

#[test]
fn what_was_fired_runs_though_nobody_holds_it_and_goes_when_it_is_done() {
    let mut bed = Bed::new(1);
    bed.submit(vec![call(1, &[]), call(2, &[1])], &[2]);
    bed.says(FromClient::FireAndForget(vec![Key(2)])).release(&[2]).is(2, TaskState::Waiting);
    let client = bed.client;
    bed.handle(Stimulus::RemoveClient(client)).finish(1).is(2, TaskState::Processing);
    bed.finish(2).is_forgotten(2).is_forgotten(1);
    // What fails goes too; what is done already is not kept.
    bed.client = bed.state.add_client();
    bed.submit(vec![call(3, &[])], &[3]).says(FromClient::FireAndForget(vec![Key(3)])).release(&[3]);
    let (worker, id) = bed.assignment(3);
    bed.worker_says(worker, FromWorker::Erred { id, error: failure() }).is_forgotten(3);
    bed.submit(vec![call(4, &[])], &[4]).finish(4).says(FromClient::FireAndForget(vec![Key(4)]));
    bed.release(&[4]).is_forgotten(4);
}

/// Those that ask for the same result at the same time do not all ask the same holder.
#[test]
fn the_next_who_asks_is_told_of_other_holders_and_who_has_it_of_none() {
    let mut bed = on_one(8, 1..=1);
    for holder in 1..6 {
        bed.add(WorkerId(holder), 1);
    }
    let mut told = |asker: u32| {
        let key = 10 + u128::from(asker);
        bed.submit(vec![call(key, &[1]).on(format!("w{asker}"))], &[key]);
        let holders = bed.computed()[0].1.dependencies[0].who_has.to_vec();
        let peers = bed.told.iter().filter_map(|told| match told {
            Instruction::Introduce(_, peer) => Some(*peer),
            _ => None,
        });
        (holders, peers.collect::<Vec<_>>())
    };
    let [here, first, second] = [2, 6, 7].map(&mut told);
    assert_eq!(here, (vec![WorkerId(2)], vec![]));
    assert_eq!((first.0.len(), second.0.len()), (2, 2));
    assert_ne!(first.0[0], second.0[0]);
    assert_eq!((&first.0, &second.0), (&first.1, &second.1), "their addresses, and no others");
}

/// Where it was thought to be already, since its holder died, whoever asked for it still waits until it is there.
#[test]
fn copies_that_were_asked_for_are_there_when_their_holders_say_so() {
    let mut bed = on_one(3, 1..=1);
    bed.submit(vec![call(2, &[1]).on("w1")], &[2]);
    bed.asks(replicate(&[1], None, &["w1"])).lose(WorkerId(0));
    assert_eq!(bed.acquires(), [(WorkerId(1), bed.id(1))]);
    assert!(tick(&mut bed).answers().is_empty());
    // So does who asks for it meanwhile.
    assert!(bed.asks(replicate(&[1], None, &["w1"])).answers().is_empty());
    assert_eq!(bed.add(WorkerId(1), 1).answers().len(), 2);
}

/// Nor is it told to free one that others did not find there, since it lacked it until then.
#[test]
fn copies_that_were_asked_for_come_also_where_others_looked_for_them_too_early() {
    let mut bed = on_one(4, 1..=1);
    bed.submit(vec![call(2, &[1]).on("w1"), call(3, &[1]).on("w2")], &[2, 3]);
    bed.lose(WorkerId(0));
    assert_eq!(bed.acquires().len(), 2, "both may have it");
    let id = bed.id(1);
    bed.asks(replicate(&[1], None, &["w1"])).add(WorkerId(3), 1);
    bed.worker_says(WorkerId(2), FromWorker::Missing { id, holder: Some(WorkerId(1)) });
    assert!(bed.frees().is_empty() && bed.answers().is_empty());
    assert_eq!(bed.add(WorkerId(1), 1).answers().len(), 1);
}

#[test]
fn copies_pass_where_few_need_them_and_no_client_can_have_more_need_them() {
    let passing = |dependents: u128, wanted: &[u128]| {
        let mut bed = Bed::new(1);
        let needing = (2..2 + dependents).map(|key| call(key, &[1]));
        let ends: Vec<u128> = (2..2 + dependents).chain(wanted.iter().copied()).collect();
        bed.submit(needing.chain([call(1, &[])]).collect(), &ends).finish(1);
        let told = bed.computed().iter().map(|(_, task)| task.dependencies[0].passing).collect::<Vec<_>>();
        assert!(!told.is_empty() && told.iter().all(|passing| *passing == told[0]), "{told:?}");
        told[0]
    };
    assert!(passing(1, &[]) && passing(5, &[]));
    assert!(!passing(6, &[]) && !passing(1, &[1]));
}

#[test]
fn who_lacks_what_it_was_thought_to_have_is_told_of_the_others() {
    let mut bed = on_one(3, 1..=1);
    bed.add(WorkerId(1), 1).submit(vec![call(2, &[1]).on("w1")], &[2]);
    let id = bed.id(1);
    let missing = |bed: &mut Bed| {
        bed.worker_says(WorkerId(1), FromWorker::Missing { id, holder: None });
        bed.told.iter().find_map(|told| match told {
            Instruction::ToWorker(WorkerId(1), ToWorker::WhoHas(held)) => Some(held[0].who_has.to_vec()),
            _ => None,
        })
    };
    assert_eq!(missing(&mut bed), Some(vec![WorkerId(0)]));
    assert_eq!(bed.task(1).who_has(), [WorkerId(0)]);
    bed.state.validate();
}

#[test]
fn copies_that_nobody_drops_are_found_when_other_holders_die() {
    let mut bed = on_one(3, 1..=1);
    bed.state.config.reduce_replicas = false;
    bed.add(WorkerId(1), 1).add(WorkerId(2), 1);
    for _ in 0..10 {
        tick(&mut bed);
    }
    assert_eq!(bed.task(1).who_has().len(), 3);
    bed.lose(WorkerId(0)).lose(WorkerId(2)).is(1, TaskState::Memory);
    assert_eq!(bed.task(1).who_has(), [WorkerId(1)]);
    bed.state.validate();
    bed.lose(WorkerId(1)).is(1, TaskState::NoWorker);
    bed.state.validate();
}

#[test]
fn who_asks_for_fewer_copies_than_before_has_the_others_go() {
    let mut bed = on_one(3, 1..=1);
    bed.asks(replicate(&[1], None, &[])).add(WorkerId(1), 1).add(WorkerId(2), 1);
    tick(&mut bed);
    assert_eq!(bed.task(1).who_has().len(), 3);
    bed.asks(replicate(&[1], Some(2), &[]));
    tick(&mut bed);
    assert_eq!(bed.task(1).who_has().len(), 2);
}
