//! A cluster of both state machines, without a network, disks or threads: everything happens in an order that is drawn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine::{
    graph::Key,
    protocol::{ClientId, FromClient, FromWorker, Query, TaskId, ToClient, ToWorker, WorkerId, WorkerInfo},
    scheduler::{self, Instruction, Stimulus},
    task::{TaskError, Value},
    worker::{self, Execution, FileId, Input},
};

/// Tasks up to which everything is looked at after each step.
const FEW: usize = 1000;

/// A worker and what is under way to and from it.
pub struct Worker {
    pub state: worker::State,
    pub inbox: VecDeque<ToWorker>,
    pub outbox: VecDeque<FromWorker>,
    pub running: Vec<Execution>,
    pub forwards: Vec<(WorkerId, TaskId, Value)>,
    pub gathers: Vec<(WorkerId, Vec<TaskId>)>,
    /// Peers that it was told the addresses of, also those that are gone.
    pub addresses: BTreeSet<WorkerId>,
    pub disk: Disk,
}

/// What a worker has on disk, and what is on its way there and back.
#[derive(Default)]
pub struct Disk {
    pub files: BTreeMap<FileId, Value>,
    pub writes: Vec<Vec<(FileId, Value)>>,
    pub reads: Vec<(TaskId, FileId)>,
}

/// How memory and disks behave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shortage {
    /// Bytes that a worker may use; 0 for no limit.
    pub limit: u64,
    /// Of a hundred writes this many fail, and so many reads.
    pub refused: u32,
    pub broken: u32,
    /// Whether each process occupies more than it should for ever, whatever is spilled.
    pub lasting: bool,
}

/// A cluster of machines; every message waits until its turn comes, in order on each link.
pub struct Cluster {
    pub scheduler: scheduler::State,
    pub workers: BTreeMap<WorkerId, Worker>,
    pub client: ClientId,
    pub to_client: VecDeque<ToClient>,
    pub from_client: VecDeque<FromClient>,
    pub results: BTreeMap<Key, i64>,
    pub failed: BTreeMap<Key, TaskError>,
    pub random: SmallRng,
    pub now: u64,
    pub threads: u32,
    /// Of a hundred fetches this many fail although the peer lives.
    pub failing: u32,
    /// Of a thousand tasks that run this many fail.
    pub erring: u32,
    pub shortage: Shortage,
    /// Tasks that ran so far.
    pub runs: usize,
    /// Questions of the client that were not answered.
    pub asked: usize,
    /// When the scheduler was told what, and what it wanted done.
    pub history: Vec<(u64, Told, String)>,
}

/// What a scheduler is told.
#[derive(Debug)]
pub enum Told {
    Worker(WorkerInfo),
    Stimulus(Stimulus),
}

/// What a result counts for, so that it is worth a file.
pub const RESULT: u64 = 10_000;

pub fn key(i: usize) -> Key {
    Key(i as u128 + 1)
}

impl Cluster {
    pub fn new(seed: u64, threads: u32) -> Self {
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
    pub fn replays(&mut self) {
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

    pub fn fetch_fails(&mut self) -> bool {
        self.happens(self.failing)
    }

    pub fn happens(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// What a worker gives who asks it for a result.
    pub fn given(&mut self, worker: WorkerId, id: TaskId) -> Option<Value> {
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

    pub fn join(&mut self) {
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
        self.check();
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
            addresses: BTreeSet::new(),
            disk: Disk::default(),
        };
        self.workers.insert(id, worker);
        self.obey(instructions);
    }

    pub fn kill(&mut self, id: WorkerId) {
        self.workers.remove(&id);
        self.schedule(Stimulus::RemoveWorker { worker: id, expected: false });
    }

    /// A worker is let go: what it said before arrives.
    pub fn left(&mut self, id: WorkerId) {
        let said = std::mem::take(&mut self.workers.get_mut(&id).expect("it was there").outbox);
        for message in said {
            self.schedule(Stimulus::Worker(id, message));
        }
        self.workers.remove(&id);
        self.schedule(Stimulus::RemoveWorker { worker: id, expected: true });
    }

    pub fn schedule(&mut self, stimulus: Stimulus) {
        self.now += 1;
        let instructions = self.scheduler.handle(stimulus.clone(), self.now);
        self.check();
        self.history.push((self.now, Told::Stimulus(stimulus), format!("{instructions:?}")));
        self.obey(instructions);
    }

    /// Checks after each step what must always hold; of very many tasks that is left to the machine itself.
    fn check(&self) {
        if self.scheduler.task_count() < FEW {
            self.scheduler.validate();
        }
    }

    /// Lets a worker go in order, if another stays.
    pub fn retire(&mut self, index: usize) {
        let info = self.scheduler.info();
        let staying: Vec<WorkerId> = info.workers.iter().filter(|w| !w.retiring).map(|w| w.id).collect();
        if staying.len() > 1 {
            self.schedule(Stimulus::Retire(staying[index % staying.len()]));
        }
    }

    /// A client asks for copies, has results moved, limits how many tasks run; or time passes.
    pub fn meddle(&mut self, choice: usize, keys: &[Key]) {
        let query = match choice % 6 {
            0 => {
                // So long that what is short is overdue.
                self.now += 200_000_000;
                return self.schedule(Stimulus::Tick);
            }
            1 => Query::Rebalance,
            2 => Query::Replicate { keys: keys.to_vec(), count: None, workers: vec![] },
            3 => Query::Replicate { keys: keys.to_vec(), count: Some(2), workers: vec![] },
            4 => Query::Limit { name: "add".into(), most: Some(1 + choice as u32 % 3) },
            _ => Query::Limit { name: "add".into(), most: None },
        };
        self.asked += 1;
        self.from_client.push_back(FromClient::Ask { id: 0, query });
    }

    pub fn obey(&mut self, instructions: Vec<Instruction>) {
        for instruction in instructions {
            match instruction {
                Instruction::ToWorker(id, message) => {
                    self.workers.get_mut(&id).expect("orders go to the living").inbox.push_back(message);
                }
                Instruction::Introduce(id, peer) => {
                    let introduction = self.scheduler.introduction(peer).expect("of those who are there");
                    self.workers.get_mut(&id).expect("orders go to the living").inbox.push_back(introduction);
                }
                Instruction::ToClient(_, message) => self.to_client.push_back(message),
                Instruction::Drop(_) => {}
            }
        }
    }

    pub fn work(&mut self, id: WorkerId, stimulus: worker::Stimulus) {
        self.work_many(id, vec![stimulus]);
    }

    fn work_many(&mut self, id: WorkerId, stimuli: Vec<worker::Stimulus>) {
        self.now += 1;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let instructions = worker.state.handle_many(stimuli, self.now);
        if self.scheduler.task_count() < FEW {
            worker.state.validate();
        }
        for instruction in instructions {
            match instruction {
                worker::Instruction::Execute(execution) => worker.running.push(execution),
                worker::Instruction::Hasten(_) => {}
                worker::Instruction::Forward { peer, id, value } => {
                    assert!(worker.addresses.contains(&peer), "it was told where {peer:?} is");
                    worker.forwards.push((peer, id, value));
                }
                worker::Instruction::Gather { peer, ids } => {
                    // Who is thought to hold itself what it lacks asks itself, and then says so.
                    let known = peer == id || worker.addresses.contains(&peer);
                    assert!(known, "{id:?} was told where {peer:?} is");
                    worker.gathers.push((peer, ids));
                }
                worker::Instruction::Send(message) => worker.outbox.push_back(message),
                worker::Instruction::Spill(batch) => worker.disk.writes.push(batch),
                worker::Instruction::Unspill { id, file } => worker.disk.reads.push((id, file)),
                worker::Instruction::Discard(file) => drop(worker.disk.files.remove(&file)),
            }
        }
    }

    /// Lets one thing happen, chosen at random; says whether anything was left to happen.
    pub fn step(&mut self) -> bool {
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
            moves.extend(worker.state.reports_due().is_some().then_some(Move::Reports(*id)));
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
    pub fn look(&mut self) {
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let worker = workers.get(self.random.random_range(0..workers.len().max(1)));
        let least = if self.shortage.lasting { self.shortage.limit * 9 / 10 } else { 0 };
        let resident = self.random.random_range(least..self.shortage.limit * 5 / 4);
        worker.into_iter().for_each(|id| self.work(*id, worker::Stimulus::Memory { resident }));
    }

    /// Whether anything happens once all have looked at their memory some times and found it short, where that lasts,
    /// or enough.
    pub fn looking_helps(&mut self) -> bool {
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

    pub fn writes(&mut self, id: WorkerId) {
        let disk = &mut self.workers.get_mut(&id).expect("it lives").disk;
        let batch = disk.writes.swap_remove(self.random.random_range(0..disk.writes.len()));
        let mut written = Vec::new();
        for (file, value) in batch {
            let (refused, value_refused) = (self.happens(self.shortage.refused), self.happens(20));
            let disk = &mut self.workers.get_mut(&id).expect("it lives").disk;
            let outcome = if !refused {
                disk.files.insert(file, value);
                Ok(5000)
            } else if value_refused {
                Err(worker::SpillError::Value(TaskError::refused("it stays")))
            } else {
                Err(worker::SpillError::Disk("it is full".into()))
            };
            written.push((file, outcome));
        }
        self.work(id, worker::Stimulus::Spilled(written));
    }

    pub fn reads(&mut self, worker: WorkerId) {
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

    pub fn client_hears(&mut self) {
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

    pub fn worker_hears(&mut self, id: WorkerId) {
        let message = self.workers.get_mut(&id).and_then(|w| w.inbox.pop_front());
        let stimulus = match message.expect("it was there") {
            ToWorker::Compute(task) => worker::Stimulus::Compute(task),
            ToWorker::Free(ids) => worker::Stimulus::Free(ids),
            ToWorker::Acquire(wanted) => worker::Stimulus::Acquire(wanted),
            ToWorker::WhoHas(held) => worker::Stimulus::WhoHas(held),
            ToWorker::Forward { id, to } => worker::Stimulus::Forward { id, to },
            ToWorker::PeerGone(peer) => worker::Stimulus::PeerGone(peer),
            ToWorker::Peer { worker, .. } => {
                self.workers.get_mut(&id).expect("it hears").addresses.insert(worker);
                return;
            }
            ToWorker::Retire => worker::Stimulus::Retire,
            ToWorker::GiveBack(ids) => worker::Stimulus::GiveBack(ids),
            ToWorker::Close { .. } => return self.left(id),
            _ => return,
        };
        self.work(id, stimulus);
    }

    /// A task's result is its own number plus its dependencies' results.
    pub fn runs(&mut self, id: WorkerId) {
        let running = &mut self.workers.get_mut(&id).expect("it lives").running;
        let ready: Vec<usize> = (0..running.len()).filter(|place| can_start(&running[*place])).collect();
        let execution = running.swap_remove(ready[self.random.random_range(0..ready.len())]);
        self.runs += 1;
        let mut number = [0; 8];
        number.copy_from_slice(execution.task.arguments.head());
        let inputs = execution.inputs.into_iter().filter_map(Input::value);
        let inputs = inputs.map(|value| *value.get::<i64>().expect("all values are i64"));
        let duration = self.random.random_range(1_000..1_000_000);
        let id_of_task = execution.task.id;
        // Rarely one fails, and those that the compute threads have after it do not run.
        if self.random.random_range(0..1000) < self.erring {
            let error = TaskError::refused("bad luck");
            let executed =
                worker::Stimulus::Executed { id: id_of_task, result: Err(error), nbytes: 0, duration };
            let unstarted = strand(running, id_of_task);
            // As the compute threads say it: at once.
            let unstarted = Some(unstarted).filter(|unstarted| !unstarted.is_empty());
            let unstarted = unstarted.map(worker::Stimulus::Unstarted);
            return self.work_many(id, [executed].into_iter().chain(unstarted).collect());
        }
        let value = Value::new(i64::from_le_bytes(number) + inputs.sum::<i64>());
        hand_on(running, id_of_task, &value);
        self.work(
            id,
            worker::Stimulus::Executed { id: id_of_task, result: Ok(value), nbytes: RESULT, duration },
        );
    }

    pub fn forwards(&mut self, id: WorkerId) {
        let forwards = &mut self.workers.get_mut(&id).expect("it lives").forwards;
        let (peer, id, value) = forwards.swap_remove(self.random.random_range(0..forwards.len()));
        if !self.fetch_fails() {
            self.work(peer, worker::Stimulus::Forwarded(vec![(id, value)]));
        }
    }

    pub fn gathers(&mut self, id: WorkerId) {
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

    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.step() && !self.looking_helps() {
                return;
            }
        }
        panic!("it goes on for ever");
    }
}

/// Whether the compute threads have all that a task needs.
pub fn can_start(execution: &Execution) -> bool {
    execution.inputs.iter().all(|input| matches!(input, Input::Here(_)))
}

/// A task is done: those that the compute threads were given after it get its result.
pub fn hand_on(running: &mut [Execution], made: TaskId, value: &Value) {
    for input in running.iter_mut().flat_map(|execution| &mut execution.inputs) {
        if matches!(input, Input::Coming(id) if *id == made) {
            *input = Input::Here(value.clone());
        }
    }
}

/// A task failed: those that the compute threads were given after it do not run.
pub fn strand(running: &mut Vec<Execution>, failed: TaskId) -> Vec<TaskId> {
    let (mut without, mut unstarted) = (vec![failed], vec![]);
    while let Some(gone) = without.pop() {
        running.retain(|execution| {
            let needs = |input: &Input| matches!(input, Input::Coming(id) if *id == gone);
            let stranded = execution.inputs.iter().any(needs);
            if stranded {
                unstarted.push(execution.task.id);
                without.push(execution.task.id);
            }
            !stranded
        });
    }
    unstarted
}
