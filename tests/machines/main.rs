//! The scheduler's and the workers' state machines against each other, in one thread: random graphs
//! under random orders of messages, deaths of workers, cancellations; the results must be those of a
//! sequential run, and nothing may be left behind.

mod cluster;

use proptest::prelude::*;
use rankine::{
    FailureKind,
    graph::{Arguments, Function, Graph, GraphTask, Key, TaskOptions},
    protocol::{FromClient, WorkerId},
    scheduler::Stimulus,
    task::EntryRef,
};

use cluster::{Cluster, Shortage, key};

/// A graph: each task's number and its dependencies, all earlier.
fn graphs() -> impl Strategy<Value = Vec<(i64, Vec<usize>)>> {
    prop::collection::vec((0..1000i64, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..40)
        .prop_map(|tasks| {
            let place = |(i, (number, wanted)): (usize, (i64, Vec<prop::sample::Index>))| {
                let mut dependencies: Vec<usize> =
                    if i == 0 { vec![] } else { wanted.iter().map(|w| w.index(i)).collect() };
                dependencies.sort_unstable();
                dependencies.dedup();
                (number, dependencies)
            };
            tasks.into_iter().enumerate().map(place).collect()
        })
}

fn sequential(graph: &[(i64, Vec<usize>)]) -> Vec<i64> {
    let mut results: Vec<i64> = vec![];
    for (number, dependencies) in graph {
        results.push(number + dependencies.iter().map(|d| results[*d]).sum::<i64>());
    }
    results
}

fn message(graph: &[(i64, Vec<usize>)], wanted: &[usize]) -> FromClient {
    message_with(graph, wanted, TaskOptions::default())
}

fn message_with(graph: &[(i64, Vec<usize>)], wanted: &[usize], options: TaskOptions) -> FromClient {
    let entry = EntryRef { module: 0, offset: 8, name: 1 };
    let task = |(i, (number, dependencies)): (usize, &(i64, Vec<usize>))| GraphTask {
        key: key(i),
        function: 0,
        options: 0,
        dependencies: dependencies.iter().map(|d| key(*d)).collect(),
        arguments: Arguments::copied(&number.to_le_bytes(), vec![]),
    };
    FromClient::Submit {
        graph: Graph {
            functions: vec![Function { entry, name: "add".into() }],
            options: vec![options],
            tasks: graph.iter().enumerate().map(task).collect(),
        },
        wants: wanted.iter().map(|i| key(*i)).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_graphs_end_right_whatever_dies(
        graph in graphs(),
        seed: u64,
        threads in 1u32..4,
        deaths in prop::collection::vec(0usize..200, 0..6),
        meddling in prop::collection::vec((0usize..100, 0usize..18), 0..6),
        share in 1usize..5,
        (failing, erring) in (prop_oneof![Just(0u32), 1..60u32], prop_oneof![Just(0u32), 1..200u32]),
    ) {
        let mut cluster = Cluster::new(seed, threads);
        (cluster.failing, cluster.erring) = (failing, erring);
        (0..3).for_each(|_| cluster.join());
        let wanted: Vec<usize> = (0..graph.len()).filter(|i| i % share == 0).collect();
        // What fails by chance succeeds some time.
        let options = TaskOptions { retries: 1000, ..TaskOptions::default() };
        cluster.from_client.push_back(message_with(&graph, &wanted, options));
        let keys: Vec<Key> = wanted.iter().map(|i| key(*i)).collect();
        let mut meddling = meddling.into_iter();
        for steps in deaths {
            for _ in 0..steps {
                cluster.step();
            }
            if let Some((steps, choice)) = meddling.next() {
                cluster.meddle(choice, &keys);
                for _ in 0..steps {
 cluster.step();
 }
            }
            let living: Vec<WorkerId> = cluster.workers.keys().copied().collect();
            if let Some(victim) = living.get(seed as usize % living.len().max(1)) {
                cluster.kill(*victim);
            }
            if steps % 3 == 0 {
                cluster.retire(steps);
            }
            cluster.join();
            if steps % 4 == 0 {
                cluster.replays();
            }
        }
        for (steps, choice) in meddling {
            cluster.meddle(choice, &keys);
            for _ in 0..steps {
 cluster.step();
 }
        }
        cluster.settle();
        // What will never be answered else is at a tick.
        cluster.schedule(Stimulus::Tick);
        cluster.settle();
        cluster.scheduler.validate();
        cluster.replays();
        prop_assert_eq!(cluster.asked, 0);
        prop_assert!(cluster.failed.is_empty(), "{:?}", cluster.failed);
        let expected = sequential(&graph);
        for i in &wanted {
            prop_assert_eq!(cluster.results.get(&key(*i)), Some(&expected[*i]), "task {}", i);
        }
        // Nothing is left once nobody wants anything.
        cluster.from_client.push_back(FromClient::Release(wanted.iter().map(|i| key(*i)).collect()));
        cluster.settle();
        prop_assert_eq!(cluster.scheduler.task_count(), 0);
        for worker in cluster.workers.values() {
            worker.state.validate();
            // But for what it did so far.
            let metrics = worker.state.metrics();
            let (fetched, busy) = (metrics.fetched, metrics.busy);
            prop_assert_eq!(metrics, rankine::protocol::Metrics { fetched, busy, ..Default::default() });
        }
    }

    #[test]
    fn results_that_go_to_disk_and_come_back_are_right(
        graph in graphs(),
        seed: u64,
        threads in 1u32..4,
        (deaths, retirements) in (prop::collection::vec(0usize..200, 0..3), any::<bool>()),
        share in 1usize..5,
        limit in 20_000u64..200_000,
        (refused, broken) in (prop_oneof![Just(0u32), 1..100u32], prop_oneof![Just(0u32), 1..40u32]),
        lasting: bool,
    ) {
        let mut cluster = Cluster::new(seed, threads);
        cluster.shortage = Shortage { limit, refused, broken, lasting };
        (0..2).for_each(|_| cluster.join());
        let wanted: Vec<usize> = (0..graph.len()).filter(|i| i % share == 0).collect();
        cluster.from_client.push_back(message(&graph, &wanted));
        for steps in deaths {
            for _ in 0..steps {
                cluster.step();
            }
            let living: Vec<WorkerId> = cluster.workers.keys().copied().collect();
            if retirements {
                cluster.retire(steps);
            } else if let Some(victim) = living.get(steps % living.len().max(1)) {
                cluster.kill(*victim);
            }
            cluster.join();
        }
        cluster.settle();
        cluster.scheduler.validate();
        let expected = sequential(&graph);
        for i in &wanted {
            match (cluster.results.get(&key(*i)), cluster.failed.get(&key(*i))) {
                (Some(result), _) => prop_assert_eq!(result, &expected[*i], "task {}", i),
                // Memory was short, and the disk did not take what should have made room.
                (None, Some(error)) => {
                    prop_assert_eq!(error.kind, FailureKind::OutOfMemory, "{}", error);
                    prop_assert!(refused > 0, "{}", error);
                }
                (None, None) => prop_assert!(false, "task {} has no end", i),
            }
        }
        cluster.from_client.push_back(FromClient::Release(wanted.iter().map(|i| key(*i)).collect()));
        cluster.settle();
        prop_assert_eq!(cluster.scheduler.task_count(), 0);
        for worker in cluster.workers.values() {
            worker.state.validate();
            let metrics = worker.state.metrics();
            prop_assert_eq!((metrics.managed, metrics.spilled, metrics.on_disk), (0, 0, 0));
            prop_assert!(worker.disk.files.is_empty(), "files are left");
        }
    }

    #[test]
    fn workers_that_retire_at_any_moment_lose_nothing(
        graph in graphs(),
        seed: u64,
        threads in 1u32..4,
        retirements in prop::collection::vec((0usize..100, 0usize..8, any::<bool>()), 1..8),
    ) {
        let mut cluster = Cluster::new(seed, threads);
        (0..4).for_each(|_| cluster.join());
        let all: Vec<usize> = (0..graph.len()).collect();
        cluster.from_client.push_back(message(&graph, &all));
        for (steps, index, joined) in retirements {
            for _ in 0..steps {
                cluster.step();
            }
            cluster.retire(index);
            if joined {
                cluster.join();
            }
        }
        cluster.settle();
        cluster.scheduler.validate();
        let expected = sequential(&graph);
        for i in &all {
            prop_assert_eq!(cluster.results.get(&key(*i)), Some(&expected[*i]), "task {}", i);
        }
        // No result had to be computed twice, and those that were to go are gone.
        prop_assert_eq!(cluster.runs, graph.len());
        prop_assert!(cluster.scheduler.info().workers.iter().all(|worker| !worker.retiring));
        cluster.from_client.push_back(FromClient::Release(all.iter().map(|i| key(*i)).collect()));
        cluster.settle();
        prop_assert_eq!(cluster.scheduler.task_count(), 0);
    }

    #[test]
    fn cancelling_at_any_moment_leaves_nothing(
        graph in graphs(),
        seed: u64,
        before in 0usize..150,
        between in 0usize..50,
    ) {
        let mut cluster = Cluster::new(seed, 2);
        (0..2).for_each(|_| cluster.join());
        let all: Vec<usize> = (0..graph.len()).collect();
        cluster.from_client.push_back(message(&graph, &all));
        for _ in 0..before {
            cluster.step();
        }
        let keys: Vec<Key> = all.iter().map(|i| key(*i)).collect();
        cluster.from_client.push_back(FromClient::Cancel { keys: keys.clone(), force: false });
        for _ in 0..between {
            cluster.step();
        }
        // Asked for again while the cancellation is under way, they are computed.
        cluster.results.clear();
        cluster.from_client.push_back(message(&graph, &all));
        cluster.settle();
        let expected = sequential(&graph);
        for i in &all {
            prop_assert_eq!(cluster.results.get(&key(*i)), Some(&expected[*i]), "task {}", i);
        }
        cluster.from_client.push_back(FromClient::Cancel { keys, force: true });
        cluster.settle();
        prop_assert_eq!(cluster.scheduler.task_count(), 0);
        for worker in cluster.workers.values() {
            prop_assert_eq!(worker.state.metrics().managed, 0);
            prop_assert_eq!(worker.state.metrics().executing, 0);
        }
    }
}

/// What comes of a graph of which a cycle may be part: tasks by what they depend on.
fn submitted(dependencies: &[&[usize]]) -> Cluster {
    let mut cluster = Cluster::new(1, 1);
    cluster.join();
    let alone: Vec<(i64, Vec<usize>)> = dependencies.iter().map(|_| (1, vec![])).collect();
    let all: Vec<usize> = (0..alone.len()).collect();
    let FromClient::Submit { mut graph, wants } = message(&alone, &all) else { unreachable!() };
    for (task, on) in graph.tasks.iter_mut().zip(dependencies) {
        task.dependencies = on.iter().map(|i| key(*i)).collect();
    }
    cluster.from_client.push_back(FromClient::Submit { graph, wants });
    cluster.settle();
    cluster
}

#[test]
fn a_cycle_is_refused_and_named() {
    // Twenty that depend on it come before the cycle of 21, 22 and 23; 20 and 24 are none of it; 25 needs itself.
    let on_it = [21];
    let mut dependencies: Vec<&[usize]> = vec![&on_it; 20];
    dependencies.extend([&[][..], &[20, 22], &[23], &[21], &[20], &[25]]);
    let cluster = submitted(&dependencies);
    let name = |i: usize| key(i).to_string();
    for i in [20, 24] {
        assert!(cluster.results.contains_key(&key(i)), "{i} runs");
    }
    for i in 0..24 {
        if i == 20 {
            continue;
        }
        let error = cluster.failed[&key(i)].to_string();
        if i < 20 {
            let named = (21..24)
                .any(|member| error.contains(&format!("it depends on {}, which is part", name(member))));
            assert!(named, "{error}");
            continue;
        }
        assert!(error.contains("it is part of a cycle"), "{error}");
        for member in 21..24 {
            assert!(error.contains(&name(member)), "{error}");
        }
        assert_eq!(error.matches(" needs ").count(), 3, "{error}");
    }
    let itself = cluster.failed[&key(25)].to_string();
    assert!(itself.contains(&format!("{} (add) needs {} (add)", name(25), name(25))), "{itself}");
}

#[test]
fn two_cycles_are_told_apart_and_a_long_one_is_named_in_short() {
    let ring: Vec<[usize; 1]> = (0..100).map(|i| [(i + 1) % 100]).collect();
    let mut dependencies: Vec<&[usize]> = ring.iter().map(|on| &on[..]).collect();
    dependencies.extend([&[101][..], &[100, 0]]);
    let cluster = submitted(&dependencies);
    let error = cluster.failed[&key(50)].to_string();
    assert!(error.contains("it is part of a cycle") && error.contains("needs 92 more"), "{error}");
    assert!(error.len() < 1000, "{error}");
    let other = cluster.failed[&key(100)].to_string();
    assert!(other.contains("it is part of a cycle"), "{other}");
    assert!(other.contains(&key(101).to_string()) && !other.contains("more"), "{other}");
}

/// Tasks of a long chain.
const LONG: usize = 100_000;

/// A chain of very many tasks, submitted to a cluster of one worker; the client wants some of them.
fn long_chain(wanted: &[usize]) -> Cluster {
    let mut cluster = Cluster::new(1, 1);
    cluster.join();
    let graph: Vec<(i64, Vec<usize>)> =
        (0..LONG).map(|i| (1, if i == 0 { vec![] } else { vec![i - 1] })).collect();
    cluster.from_client.push_back(message(&graph, wanted));
    cluster
}

/// Lets things happen until so many tasks ran.
fn run(cluster: &mut Cluster, tasks: usize) {
    while cluster.runs < tasks {
        assert!(cluster.step(), "{} tasks ran, and nothing is left to happen", cluster.runs);
    }
}

/// Nobody wants any of the chain any more.
fn nothing_is_left(mut cluster: Cluster) {
    cluster.from_client.push_back(FromClient::Release((0..LONG).map(key).collect()));
    cluster.settle();
    assert_eq!(cluster.scheduler.task_count(), 0);
    for worker in cluster.workers.values() {
        worker.state.validate();
        let metrics = worker.state.metrics();
        assert_eq!((metrics.executing, metrics.managed, worker.running.len()), (0, 0, 0));
    }
}

#[test]
fn a_chain_of_100_000_tasks_needs_no_stack() {
    let mut cluster = long_chain(&[LONG - 1]);
    cluster.settle();
    assert_eq!(cluster.results[&key(LONG - 1)], LONG as i64);
    nothing_is_left(cluster);
}

#[test]
fn a_chain_of_100_000_tasks_errs_with_its_first() {
    let all: Vec<usize> = (0..LONG).collect();
    let mut cluster = long_chain(&all);
    cluster.erring = 1000;
    run(&mut cluster, 1);
    cluster.erring = 0;
    cluster.settle();
    assert_eq!((cluster.runs, cluster.failed.len()), (1, LONG), "only the first ran");
    let cause = &cluster.failed[&key(0)];
    assert!(cause.to_string().contains("bad luck"), "{cause}");
    for (key, error) in &cluster.failed {
        assert_eq!(error.to_string(), cause.to_string(), "{key}");
    }
    nothing_is_left(cluster);
}

#[test]
fn a_chain_of_100_000_tasks_is_cancelled_half_way() {
    let mut cluster = long_chain(&[LONG - 1]);
    run(&mut cluster, LONG / 2);
    cluster.from_client.push_back(FromClient::Cancel { keys: vec![key(LONG - 1)], force: false });
    cluster.settle();
    // But for those that the worker was given already.
    assert!(cluster.runs < LONG * 2 / 3, "{} ran", cluster.runs);
    assert_eq!((cluster.scheduler.task_count(), cluster.results.len()), (0, 0));
    nothing_is_left(cluster);
}

#[test]
fn a_chain_of_100_000_tasks_starts_over_when_its_worker_dies_half_way() {
    let mut cluster = long_chain(&[LONG - 1]);
    run(&mut cluster, LONG / 2);
    let victim = *cluster.workers.keys().next().expect("one lives");
    cluster.kill(victim);
    cluster.join();
    cluster.settle();
    // The latest result was all there was of the first half.
    assert_eq!(cluster.runs, LONG * 3 / 2);
    assert_eq!(cluster.results[&key(LONG - 1)], LONG as i64);
    nothing_is_left(cluster);
}
