//! The scheduler's and the workers' state machines against each other, in one thread: random graphs
//! under random orders of messages, deaths of workers, cancellations; the results must be those of a
//! sequential run, and nothing may be left behind.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine::{
    graph::{Arguments, Function, Graph, GraphTask, Key},
    protocol::{ClientId, FromClient, FromWorker, ToClient, ToWorker, WorkerId, WorkerInfo},
    scheduler::{self, Instruction, Stimulus},
    serialize::Frame,
    task::{EntryRef, TaskError, Value},
    worker::{self, Execution},
};

/// A worker and what is under way to and from it.
struct Worker {
    state: worker::State,
    inbox: VecDeque<ToWorker>,
    outbox: VecDeque<FromWorker>,
    running: Vec<Execution>,
    gathers: Vec<(WorkerId, Vec<rankine::protocol::TaskId>)>,
}

/// A cluster of machines; every message waits until its turn comes, in order on each link.
struct Cluster {
    scheduler: scheduler::State,
    workers: BTreeMap<WorkerId, Worker>,
    client: ClientId,
    to_client: VecDeque<ToClient>,
    from_client: VecDeque<FromClient>,
    results: BTreeMap<Key, i64>,
    failed: BTreeMap<Key, TaskError>,
    random: SmallRng,
    now: u64,
    threads: u32,
    /// Of a hundred fetches this many fail although the peer lives.
    failing: u32,
    /// Tasks that ran so far.
    runs: usize,
}

fn key(i: usize) -> Key {
    Key(i as u128 + 1)
}

impl Cluster {
    fn new(seed: u64, threads: u32) -> Self {
        let config = scheduler::Config { allowed_failures: 100, ..Default::default() };
        let mut scheduler = scheduler::State::new(config);
        let client = scheduler.add_client();
        Self {
            scheduler,
            workers: BTreeMap::new(),
            client,
            to_client: VecDeque::new(),
            from_client: VecDeque::new(),
            results: BTreeMap::new(),
            failed: BTreeMap::new(),
            random: SmallRng::seed_from_u64(seed),
            now: 0,
            threads,
            failing: 0,
            runs: 0,
        }
    }

    fn fetch_fails(&mut self) -> bool {
        self.random.random_range(0..100) < self.failing
    }

    fn join(&mut self) {
        let info = WorkerInfo {
            name: format!("w{}", self.now).into(),
            address: format!("inproc://w{}", self.now).into(),
            contact: format!("inproc://w{}", self.now).into(),
            nthreads: self.threads,
            memory_limit: 0,
            resources: vec![],
            pid: 0,
            host: "here".into(),
            lifetime: None,
        };
        let (id, instructions) = self.scheduler.add_worker(info, self.now);
        let config = worker::Config {
            nthreads: self.threads,
            memory_limit: 0,
            thresholds: worker::Thresholds::default(),
            resources: vec![],
        };
        let worker = Worker {
            state: worker::State::new(config),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            running: vec![],
            gathers: vec![],
        };
        self.workers.insert(id, worker);
        self.obey(instructions);
    }

    fn kill(&mut self, id: WorkerId) {
        self.workers.remove(&id);
        self.schedule(Stimulus::RemoveWorker { worker: id, expected: false });
    }

    /// A worker is let go: what it said before arrives.
    fn left(&mut self, id: WorkerId) {
        let said = std::mem::take(&mut self.workers.get_mut(&id).expect("it was there").outbox);
        for message in said {
            self.schedule(Stimulus::Worker(id, message));
        }
        self.workers.remove(&id);
        self.schedule(Stimulus::RemoveWorker { worker: id, expected: true });
    }

    fn schedule(&mut self, stimulus: Stimulus) {
        self.now += 1;
        let instructions = self.scheduler.handle(stimulus, self.now);
        self.obey(instructions);
    }

    /// Lets a worker go in order, if another stays.
    fn retire(&mut self, index: usize) {
        let info = self.scheduler.info();
        let staying: Vec<WorkerId> = info.workers.iter().filter(|w| !w.retiring).map(|w| w.id).collect();
        if staying.len() > 1 {
            self.schedule(Stimulus::Retire(staying[index % staying.len()]));
        }
    }

    fn obey(&mut self, instructions: Vec<Instruction>) {
        for instruction in instructions {
            match instruction {
                Instruction::ToWorker(id, message) => {
                    self.workers.get_mut(&id).expect("orders go to the living").inbox.push_back(message);
                }
                Instruction::ToClient(_, message) => self.to_client.push_back(message),
                Instruction::Drop(_) => {}
            }
        }
    }

    fn work(&mut self, id: WorkerId, stimulus: worker::Stimulus) {
        self.now += 1;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        for instruction in worker.state.handle(stimulus, self.now) {
            match instruction {
                worker::Instruction::Execute(execution) => worker.running.push(execution),
                worker::Instruction::Gather { peer, ids } => worker.gathers.push((peer, ids)),
                worker::Instruction::Send(message) => worker.outbox.push_back(message),
            }
        }
    }

    /// Lets one thing happen, chosen at random; says whether anything was left to happen.
    fn step(&mut self) -> bool {
        #[derive(Clone, Copy)]
        enum Move {
            ClientSends,
            ClientHears,
            WorkerHears(WorkerId),
            WorkerSends(WorkerId),
            Runs(WorkerId),
            Gathers(WorkerId),
        }
        let mut moves = vec![];
        if !self.from_client.is_empty() {
            moves.push(Move::ClientSends);
        }
        if !self.to_client.is_empty() {
            moves.push(Move::ClientHears);
        }
        for (id, worker) in &self.workers {
            moves.extend((!worker.inbox.is_empty()).then_some(Move::WorkerHears(*id)));
            moves.extend((!worker.outbox.is_empty()).then_some(Move::WorkerSends(*id)));
            moves.extend((!worker.running.is_empty()).then_some(Move::Runs(*id)));
            moves.extend((!worker.gathers.is_empty()).then_some(Move::Gathers(*id)));
        }
        if moves.is_empty() {
            return false;
        }
        match moves[self.random.random_range(0..moves.len())] {
            Move::ClientSends => {
                let message = self.from_client.pop_front().expect("it was there");
                self.schedule(Stimulus::Client(self.client, message));
            }
            Move::ClientHears => self.client_hears(),
            Move::WorkerHears(id) => self.worker_hears(id),
            Move::WorkerSends(id) => {
                let message = self.workers.get_mut(&id).and_then(|w| w.outbox.pop_front());
                self.schedule(Stimulus::Worker(id, message.expect("it was there")));
            }
            Move::Runs(id) => self.runs(id),
            Move::Gathers(id) => self.gathers(id),
        }
        true
    }

    fn client_hears(&mut self) {
        match self.to_client.pop_front().expect("it was there") {
            ToClient::InMemory { key, id, worker, value, .. } => {
                let reached = !self.fetch_fails();
                let held = self.workers.get(&worker).filter(|_| reached).and_then(|w| w.state.value(id));
                match value.as_ref().or(held) {
                    Some(value) => {
                        let value = *value.get::<i64>().expect("all values are i64");
                        self.results.insert(key, value);
                    }
                    None => self.from_client.push_back(FromClient::Missing { id, worker }),
                }
            }
            ToClient::Erred { key, error } => drop(self.failed.insert(key, error)),
            _ => {}
        }
    }

    fn worker_hears(&mut self, id: WorkerId) {
        let message = self.workers.get_mut(&id).and_then(|w| w.inbox.pop_front());
        let stimulus = match message.expect("it was there") {
            ToWorker::Compute(task) => worker::Stimulus::Compute(task),
            ToWorker::Free(ids) => worker::Stimulus::Free(ids),
            ToWorker::Acquire(wanted) => worker::Stimulus::Acquire(wanted),
            ToWorker::WhoHas(held) => worker::Stimulus::WhoHas(held),
            ToWorker::PeerGone(peer) => worker::Stimulus::PeerGone(peer),
            ToWorker::Retire => worker::Stimulus::Retire,
            ToWorker::GiveBack(ids) => worker::Stimulus::GiveBack(ids),
            ToWorker::Close { .. } => return self.left(id),
            _ => return,
        };
        self.work(id, stimulus);
    }

    /// A task's result is its own number plus its dependencies' results.
    fn runs(&mut self, id: WorkerId) {
        let running = &mut self.workers.get_mut(&id).expect("it lives").running;
        let execution = running.swap_remove(self.random.random_range(0..running.len()));
        self.runs += 1;
        let mut number = [0; 8];
        number.copy_from_slice(&execution.arguments.head.0);
        let inputs = execution.dependencies.iter().map(|v| *v.get::<i64>().expect("all values are i64"));
        let result = Ok(Value::new(i64::from_le_bytes(number) + inputs.sum::<i64>()));
        let duration = self.random.random_range(1_000..1_000_000);
        self.work(id, worker::Stimulus::Executed { id: execution.id, result, nbytes: 8, duration });
    }

    fn gathers(&mut self, id: WorkerId) {
        let gathers = &mut self.workers.get_mut(&id).expect("it lives").gathers;
        let (peer, ids) = gathers.swap_remove(self.random.random_range(0..gathers.len()));
        let reached = !self.fetch_fails();
        let stimulus = match self.workers.get(&peer).filter(|_| reached) {
            Some(other) => worker::Stimulus::Gathered {
                peer,
                data: ids.into_iter().map(|id| (id, other.state.value(id).cloned().map(Ok))).collect(),
            },
            None => worker::Stimulus::GatherFailed { peer, ids },
        };
        self.work(id, stimulus);
    }

    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("it goes on for ever");
    }
}

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
    let entry = EntryRef { module: 0, offset: 8, name: 1 };
    let task = |(i, (number, dependencies)): (usize, &(i64, Vec<usize>))| GraphTask {
        key: key(i),
        function: 0,
        options: u32::MAX,
        dependencies: dependencies.iter().map(|d| key(*d)).collect(),
        arguments: Arguments { head: Frame(number.to_le_bytes().to_vec().into()), frames: vec![] },
    };
    FromClient::Submit {
        graph: Graph {
            functions: vec![Function { entry, name: "add".into() }],
            options: vec![],
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
        share in 1usize..5,
        failing in prop_oneof![Just(0u32), 1..60u32],
    ) {
        let mut cluster = Cluster::new(seed, threads);
        cluster.failing = failing;
        (0..3).for_each(|_| cluster.join());
        let wanted: Vec<usize> = (0..graph.len()).filter(|i| i % share == 0).collect();
        cluster.from_client.push_back(message(&graph, &wanted));
        for steps in deaths {
            for _ in 0..steps {
                cluster.step();
            }
            let living: Vec<WorkerId> = cluster.workers.keys().copied().collect();
            if let Some(victim) = living.get(seed as usize % living.len().max(1)) {
                cluster.kill(*victim);
            }
            if steps % 3 == 0 {
                cluster.retire(steps);
            }
            cluster.join();
        }
        cluster.settle();
        cluster.scheduler.validate();
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

#[test]
fn a_cycle_is_refused_and_named() {
    let mut cluster = Cluster::new(1, 1);
    cluster.join();
    let FromClient::Submit { mut graph, wants } =
        message(&[(1, vec![]), (2, vec![0]), (3, vec![1])], &[0, 1, 2])
    else {
        unreachable!()
    };
    graph.tasks[1].dependencies = [key(2)].into_iter().collect();
    cluster.from_client.push_back(FromClient::Submit { graph, wants });
    cluster.settle();
    assert_eq!(cluster.results[&key(0)], 1);
    for i in [1, 2] {
        let error = cluster.failed[&key(i)].to_string();
        assert!(error.contains("cycle") && error.contains(&key(1).to_string()), "{error}");
    }
}

#[test]
fn a_chain_of_100_000_tasks_needs_no_stack() {
    let mut cluster = Cluster::new(1, 1);
    cluster.join();
    let graph: Vec<(i64, Vec<usize>)> =
        (0..100_000).map(|i| (1, if i == 0 { vec![] } else { vec![i - 1] })).collect();
    cluster.from_client.push_back(message(&graph, &[99_999]));
    for _ in 0..2_000_000 {
        if !cluster.step() {
            break;
        }
    }
    assert_eq!(cluster.results[&key(99_999)], 100_000);
    cluster.from_client.push_back(FromClient::Release(vec![key(99_999)]));
    cluster.settle();
    assert_eq!(cluster.scheduler.task_count(), 0);
}
