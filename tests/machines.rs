//! The scheduler's and the workers' state machines against each other, in one thread: random graphs
//! under random orders of messages, deaths of workers, cancellations; the results must be those of a
//! sequential run, and nothing may be left behind.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine::{
    FailureKind,
    graph::{Arguments, Function, Graph, GraphTask, Key, TaskOptions},
    protocol::{ClientId, FromClient, FromWorker, Query, TaskId, ToClient, ToWorker, WorkerId, WorkerInfo},
    scheduler::{self, Instruction, Stimulus},
    serialize::Frame,
    task::{EntryRef, TaskError, Value},
    worker::{self, Execution, FileId, Input},
};

/// A worker and what is under way to and from it.
struct Worker {
    state: worker::State,
    inbox: VecDeque<ToWorker>,
    outbox: VecDeque<FromWorker>,
    running: Vec<Execution>,
    forwards: Vec<(WorkerId, TaskId, Value)>,
    gathers: Vec<(WorkerId, Vec<TaskId>)>,
    disk: Disk,
}

/// What a worker has on disk, and what is on its way there and back.
#[derive(Default)]
struct Disk {
    files: BTreeMap<FileId, Value>,
    writes: Vec<(FileId, Value)>,
    reads: Vec<(TaskId, FileId)>,
}

/// How memory and disks behave.
#[derive(Debug, Clone, Copy, Default)]
struct Shortage {
    /// Bytes that a worker may use; 0 for no limit.
    limit: u64,
    /// Of a hundred writes this many fail, and so many reads.
    refused: u32,
    broken: u32,
    /// Whether each process occupies more than it should for ever, whatever is spilled.
    lasting: bool,
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
    /// Of a thousand tasks that run this many fail.
    erring: u32,
    shortage: Shortage,
    /// Tasks that ran so far.
    runs: usize,
    /// Questions of the client that were not answered.
    asked: usize,
    /// When the scheduler was told what, and what it wanted done.
    history: Vec<(u64, Told, String)>,
}

/// What a scheduler is told.
#[derive(Debug)]
enum Told {
    Worker(WorkerInfo),
    Stimulus(Stimulus),
}

/// What a result counts for, so that it is worth a file.
const RESULT: u64 = 10_000;

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
            erring: 0,
            shortage: Shortage::default(),
            runs: 0,
            asked: 0,
            history: Vec::new(),
        }
    }

    /// A scheduler that is told all this once more says the same and stands at the same place, whatever died: so it
    /// can be restored from a journal.
    fn replays(&mut self) {
        let config = scheduler::Config { allowed_failures: 100, ..Default::default() };
        let mut again = scheduler::State::new(config);
        again.add_client();
        for (now, told, said) in &self.history {
            let instructions = match told {
                Told::Worker(info) => again.add_worker(info.clone(), *now).1,
                Told::Stimulus(stimulus) => again.handle(stimulus.clone(), *now),
            };
            assert_eq!(*said, format!("{instructions:?}"), "at {now}, told {told:?}");
        }
        assert_eq!(format!("{:?}", self.scheduler.info()), format!("{:?}", again.info()));
        again.validate();
        // It goes on in the place of the one that died.
        self.scheduler = again;
    }

    fn fetch_fails(&mut self) -> bool {
        self.happens(self.failing)
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// What a worker gives who asks it for a result.
    fn given(&mut self, worker: WorkerId, id: TaskId) -> Option<Value> {
        let broken = self.happens(self.shortage.broken);
        let state = &self.workers.get(&worker)?.state;
        let (value, file) = (state.value(id).cloned(), state.file(id));
        self.work(worker, worker::Stimulus::Given(vec![id]));
        let (None, Some(file)) = (&value, file) else { return value };
        let read = self.workers[&worker].disk.files.get(&file).cloned().filter(|_| !broken);
        if read.is_none() {
            self.work(worker, worker::Stimulus::UnspillFailed { id, file });
        }
        read
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
        let (id, instructions) = self.scheduler.add_worker(info.clone(), self.now);
        self.history.push((self.now, Told::Worker(info), format!("{instructions:?}")));
        let config = worker::Config {
            nthreads: self.threads,
            memory_limit: self.shortage.limit,
            thresholds: worker::Thresholds::default(),
            resources: vec![],
            chains: true,
        };
        let worker = Worker {
            state: worker::State::new(config),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            running: vec![],
            forwards: vec![],
            gathers: vec![],
            disk: Disk::default(),
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
        let instructions = self.scheduler.handle(stimulus.clone(), self.now);
        self.history.push((self.now, Told::Stimulus(stimulus), format!("{instructions:?}")));
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

    /// A client asks for copies, has results moved, limits how many tasks run; or time passes.
    fn meddle(&mut self, choice: usize, keys: &[Key]) {
        let query = match choice % 6 {
            0 => return self.schedule(Stimulus::Tick),
            1 => Query::Rebalance,
            2 => Query::Replicate { keys: keys.to_vec(), count: None, workers: vec![] },
            3 => Query::Replicate { keys: keys.to_vec(), count: Some(2), workers: vec![] },
            4 => Query::Limit { name: "add".into(), most: Some(1 + choice as u32 % 3) },
            _ => Query::Limit { name: "add".into(), most: None },
        };
        self.asked += 1;
        self.from_client.push_back(FromClient::Ask { id: 0, query });
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
                worker::Instruction::Hasten(_) => {}
                worker::Instruction::Forward { peer, id, value } => worker.forwards.push((peer, id, value)),
                worker::Instruction::Gather { peer, ids } => worker.gathers.push((peer, ids)),
                worker::Instruction::Send(message) => worker.outbox.push_back(message),
                worker::Instruction::Spill { file, value } => worker.disk.writes.push((file, value)),
                worker::Instruction::Unspill { id, file } => worker.disk.reads.push((id, file)),
                worker::Instruction::Discard(file) => drop(worker.disk.files.remove(&file)),
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
            Forwards(WorkerId),
            Reports(WorkerId),
            Writes(WorkerId),
            Reads(WorkerId),
        }
        if self.shortage.limit > 0 && self.happens(10) {
            self.look();
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
            moves.extend(worker.running.iter().any(can_start).then_some(Move::Runs(*id)));
            moves.extend((!worker.forwards.is_empty()).then_some(Move::Forwards(*id)));
            moves.extend(worker.state.has_reports().then_some(Move::Reports(*id)));
            moves.extend((!worker.gathers.is_empty()).then_some(Move::Gathers(*id)));
            moves.extend((!worker.disk.writes.is_empty()).then_some(Move::Writes(*id)));
            moves.extend((!worker.disk.reads.is_empty()).then_some(Move::Reads(*id)));
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
            Move::Forwards(id) => self.forwards(id),
            Move::Reports(id) => self.work(id, worker::Stimulus::Report),
            Move::Writes(id) => self.writes(id),
            Move::Reads(id) => self.reads(id),
        }
        true
    }

    /// Some worker looks at its memory.
    fn look(&mut self) {
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let worker = workers.get(self.random.random_range(0..workers.len().max(1)));
        let least = if self.shortage.lasting { self.shortage.limit * 9 / 10 } else { 0 };
        let resident = self.random.random_range(least..self.shortage.limit * 5 / 4);
        worker.into_iter().for_each(|id| self.work(*id, worker::Stimulus::Memory { resident }));
    }

    /// Whether anything happens once all have looked at their memory some times and found it short, where that lasts,
    /// or enough.
    fn looking_helps(&mut self) -> bool {
        let resident = if self.shortage.lasting { self.shortage.limit } else { 0 };
        for _ in 0..3 {
            let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
            for id in workers {
                self.work(id, worker::Stimulus::Memory { resident });
            }
            if self.step() {
                return true;
            }
        }
        false
    }

    fn writes(&mut self, id: WorkerId) {
        let (refused, value_refused) = (self.happens(self.shortage.refused), self.happens(20));
        let disk = &mut self.workers.get_mut(&id).expect("it lives").disk;
        let (file, value) = disk.writes.swap_remove(self.random.random_range(0..disk.writes.len()));
        let stimulus = if !refused {
            disk.files.insert(file, value);
            worker::Stimulus::Spilled { file, on_disk: 5000 }
        } else if value_refused {
            let error = worker::SpillError::Value(TaskError::refused("it stays"));
            worker::Stimulus::SpillFailed { file, error }
        } else {
            worker::Stimulus::SpillFailed { file, error: worker::SpillError::Disk("it is full".into()) }
        };
        self.work(id, stimulus);
    }

    fn reads(&mut self, worker: WorkerId) {
        let (broken, mapped) = (self.happens(self.shortage.broken), self.happens(50));
        let disk = &mut self.workers.get_mut(&worker).expect("it lives").disk;
        let (id, file) = disk.reads.swap_remove(self.random.random_range(0..disk.reads.len()));
        let read = disk.files.get(&file).cloned().filter(|_| !broken);
        self.work(
            worker,
            match read {
                Some(value) => {
                    let occupied = if mapped { 0 } else { RESULT };
                    worker::Stimulus::Unspilled { id, file, value, occupied }
                }
                None => worker::Stimulus::UnspillFailed { id, file },
            },
        );
    }

    fn client_hears(&mut self) {
        match self.to_client.pop_front().expect("it was there") {
            ToClient::InMemory { key, id, worker, value, .. } => {
                let reached = !self.fetch_fails();
                let held = if reached { self.given(worker, id) } else { None };
                match value.or(held) {
                    Some(value) => {
                        let value = *value.get::<i64>().expect("all values are i64");
                        self.results.insert(key, value);
                    }
                    None => self.from_client.push_back(FromClient::Missing { id, worker }),
                }
            }
            ToClient::Answer { .. } => self.asked -= 1,
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
            ToWorker::Forward { id, to } => worker::Stimulus::Forward { id, to },
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
        let ready: Vec<usize> = (0..running.len()).filter(|place| can_start(&running[*place])).collect();
        let execution = running.swap_remove(ready[self.random.random_range(0..ready.len())]);
        self.runs += 1;
        let mut number = [0; 8];
        number.copy_from_slice(&execution.arguments.head.0);
        let inputs = execution.dependencies.into_iter().filter_map(Input::value);
        let inputs = inputs.map(|value| *value.get::<i64>().expect("all values are i64"));
        let duration = self.random.random_range(1_000..1_000_000);
        let id_of_task = execution.id;
        // Rarely one fails, and those that the compute threads have after it do not run.
        if self.random.random_range(0..1000) < self.erring {
            let error = TaskError::refused("bad luck");
            let executed =
                worker::Stimulus::Executed { id: id_of_task, result: Err(error), nbytes: 0, duration };
            let unstarted = strand(running, id_of_task);
            self.work(id, executed);
            if !unstarted.is_empty() {
                self.work(id, worker::Stimulus::Unstarted(unstarted));
            }
            return;
        }
        let value = Value::new(i64::from_le_bytes(number) + inputs.sum::<i64>());
        hand_on(running, id_of_task, &value);
        self.work(
            id,
            worker::Stimulus::Executed { id: id_of_task, result: Ok(value), nbytes: RESULT, duration },
        );
    }

    fn forwards(&mut self, id: WorkerId) {
        let forwards = &mut self.workers.get_mut(&id).expect("it lives").forwards;
        let (peer, id, value) = forwards.swap_remove(self.random.random_range(0..forwards.len()));
        if !self.fetch_fails() {
            self.work(peer, worker::Stimulus::Forwarded(vec![(id, value)]));
        }
    }

    fn gathers(&mut self, id: WorkerId) {
        let gathers = &mut self.workers.get_mut(&id).expect("it lives").gathers;
        let (peer, ids) = gathers.swap_remove(self.random.random_range(0..gathers.len()));
        let reached = !self.fetch_fails() && self.workers.contains_key(&peer);
        let stimulus = if reached {
            let data = ids.into_iter().map(|id| (id, self.given(peer, id).map(Ok))).collect();
            worker::Stimulus::Gathered { peer, data }
        } else {
            worker::Stimulus::GatherFailed { peer, ids }
        };
        self.work(id, stimulus);
    }

    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.step() && !self.looking_helps() {
                return;
            }
        }
        panic!("it goes on for ever");
    }
}

/// Whether the compute threads have all that a task needs.
fn can_start(execution: &Execution) -> bool {
    execution.dependencies.iter().all(|input| matches!(input, Input::Here(_)))
}

/// A task is done: those that the compute threads were given after it get its result.
fn hand_on(running: &mut [Execution], made: TaskId, value: &Value) {
    for input in running.iter_mut().flat_map(|execution| &mut execution.dependencies) {
        if matches!(input, Input::Coming(id) if *id == made) {
            *input = Input::Here(value.clone());
        }
    }
}

/// A task failed: those that the compute threads were given after it do not run.
fn strand(running: &mut Vec<Execution>, failed: TaskId) -> Vec<TaskId> {
    let (mut without, mut unstarted) = (vec![failed], vec![]);
    while let Some(gone) = without.pop() {
        running.retain(|execution| {
            let needs = |input: &Input| matches!(input, Input::Coming(id) if *id == gone);
            let stranded = execution.dependencies.iter().any(needs);
            if stranded {
                unstarted.push(execution.id);
                without.push(execution.id);
            }
            !stranded
        });
    }
    unstarted
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
    message_with(graph, wanted, TaskOptions::default())
}

fn message_with(graph: &[(i64, Vec<usize>)], wanted: &[usize], options: TaskOptions) -> FromClient {
    let entry = EntryRef { module: 0, offset: 8, name: 1 };
    let task = |(i, (number, dependencies)): (usize, &(i64, Vec<usize>))| GraphTask {
        key: key(i),
        function: 0,
        options: 0,
        dependencies: dependencies.iter().map(|d| key(*d)).collect(),
        arguments: Arguments { head: Frame(number.to_le_bytes().to_vec().into()), frames: vec![] },
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
