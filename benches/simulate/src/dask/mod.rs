//! Dask.distributed's policies, as its documentation describes them (pages "Scheduling Policies" and "Work
//! Stealing"), behind Rankine's messages: so that both are judged by the same workers on the same network.
//!
//! - Tasks of a *root-ish* group (more than twice as many as there are threads, with fewer than five dependencies in
//!   all) wait in a queue and go, by priority, to the worker that processes least, which gets `worker-saturation`
//!   times as many as it has threads. Without queuing (infinite saturation), neighbours are co-assigned: each worker
//!   in turn gets its share of the group, in order.
//! - Other tasks go where they will start soonest: among the workers that hold dependencies and up to ten idle ones,
//!   where occupancy and the time to move missing bytes are least; ties by bytes held.
//! - A function that never ran is taken to need 0.5 s; then the mean is exponential.
//! - Every 100 ms, idle workers steal from saturated ones: see `stealing`.
//!
//! Priorities are the places in Rankine's static order, so that the policies alone differ. One client submits one
//! graph, and nothing goes wrong: what is not needed for that is left out.

mod stealing;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    sync::Arc,
};

use rankine::{
    graph::{Arguments, Function, Graph, Key, KeyMap},
    protocol::{
        ClientId, ComputeTask, Dependency, Finished, FromClient, FromWorker, Priority, TaskId, ToClient,
        ToWorker, WorkerId, WorkerInfo,
    },
    scheduler::{Instruction, Stimulus},
};
use stealing::Stealing;

use crate::{Policy, Setting};

/// Nanoseconds that a task of a function that never ran is taken to need.
const UNKNOWN_DURATION: u64 = 500_000_000;
/// Nanoseconds that any transfer is taken to need besides its bytes.
const LATENCY: u64 = 1_000_000;
/// Idle workers that are looked at besides those that hold dependencies.
const IDLE: usize = 10;

/// A scheduler that follows Dask's published policies.
pub struct Dask {
    saturation: f64,
    bandwidth: f64,
    tasks: Vec<Task>,
    places: KeyMap<Key, u32>,
    functions: Vec<Group>,
    workers: Vec<Worker>,
    /// Workers by tasks in process for each thread, and by occupancy for each thread.
    by_count: BTreeSet<(u64, WorkerId)>,
    by_occupancy: BTreeSet<(u64, WorkerId)>,
    threads: u64,
    queued: BinaryHeap<Reverse<(u32, u32)>>,
    /// Tasks that anybody needs.
    live: usize,
    stealing: Stealing,
    out: Vec<Instruction>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Queued,
    Processing,
    Memory,
    Forgotten,
}

struct Task {
    key: Key,
    id: TaskId,
    function: u32,
    order: u32,
    state: State,
    arguments: Arguments,
    dependencies: Vec<u32>,
    dependents: Vec<u32>,
    /// Dependencies that are not in memory, and dependents that never were.
    waiting_on: u32,
    waiters: u32,
    wanted: Option<ClientId>,
    worker: Option<WorkerId>,
    who_has: Vec<WorkerId>,
    nbytes: u64,
    /// What it adds to its worker's occupancy.
    estimate: u64,
}

/// The tasks of a function, as Dask's task groups.
struct Group {
    function: Function,
    duration: Option<u64>,
    tasks: usize,
    rootish: bool,
    /// Without queuing: who gets the next ones, and how many of them.
    share: Option<(WorkerId, u64)>,
}

struct Worker {
    info: WorkerInfo,
    processing: Vec<u32>,
    occupancy: u64,
    nbytes: u64,
}

impl Worker {
    fn threads(&self) -> u64 {
        u64::from(self.info.nthreads.max(1))
    }

    fn count(&self) -> u64 {
        ((self.processing.len() as u64) << 16) / self.threads()
    }

    fn wait(&self) -> u64 {
        self.occupancy / self.threads()
    }
}

impl Dask {
    /// A scheduler for such a cluster. It knows the bandwidth that Dask would measure.
    pub fn new(setting: &Setting) -> Self {
        Self {
            saturation: setting.saturation,
            bandwidth: setting.network.bandwidth,
            tasks: Vec::new(),
            places: KeyMap::default(),
            functions: Vec::new(),
            workers: Vec::new(),
            by_count: BTreeSet::new(),
            by_occupancy: BTreeSet::new(),
            threads: 0,
            queued: BinaryHeap::new(),
            live: 0,
            stealing: Stealing::default(),
            out: Vec::new(),
        }
    }

    // Graphs and clients.

    fn submit(&mut self, client: ClientId, graph: Graph, wants: Vec<Key>) {
        assert!(self.tasks.is_empty(), "one graph is submitted");
        let orders = graph.order();
        let group = |function| Group { function, duration: None, tasks: 0, rootish: false, share: None };
        self.functions = graph.functions.into_iter().map(group).collect();
        self.places = graph.tasks.iter().zip(0..).map(|(task, place)| (task.key, place)).collect();
        for ((place, task), order) in (0u32..).zip(graph.tasks).zip(orders) {
            let dependencies: Vec<u32> = task.dependencies.iter().map(|key| self.places[key]).collect();
            self.functions[task.function as usize].tasks += 1;
            self.tasks.push(Task {
                key: task.key,
                id: TaskId::new(place, 0),
                function: task.function,
                order,
                state: State::Waiting,
                arguments: task.arguments,
                waiting_on: dependencies.len() as u32,
                dependencies,
                dependents: Vec::new(),
                waiters: 0,
                wanted: None,
                worker: None,
                who_has: Vec::new(),
                nbytes: 0,
                estimate: 0,
            });
        }
        self.live = self.tasks.len();
        for place in 0..self.tasks.len() {
            for dependency in self.tasks[place].dependencies.clone() {
                let other = &mut self.tasks[dependency as usize];
                other.dependents.push(place as u32);
                other.waiters += 1;
            }
        }
        wants.iter().for_each(|key| self.tasks[self.places[key] as usize].wanted = Some(client));
        self.find_roots();
        let mut ready: Vec<u32> =
            (0..self.tasks.len() as u32).filter(|task| self.tasks[*task as usize].waiting_on == 0).collect();
        ready.sort_unstable_by_key(|task| self.tasks[*task as usize].order);
        ready.into_iter().for_each(|task| self.make_ready(task));
    }

    fn find_roots(&mut self) {
        let mut needed: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); self.functions.len()];
        for task in &self.tasks {
            let functions = task.dependencies.iter().map(|d| self.tasks[*d as usize].function);
            needed[task.function as usize].extend(functions);
        }
        for (number, needed) in needed.iter().enumerate() {
            let before: usize = needed.iter().map(|function| self.functions[*function as usize].tasks).sum();
            let many = self.functions[number].tasks as u64 > 2 * self.threads;
            self.functions[number].rootish = many && needed.len() < 5 && before < 5;
        }
    }

    fn release(&mut self, keys: Vec<Key>) {
        for key in keys {
            let task = self.places[&key];
            self.tasks[task as usize].wanted = None;
            self.reconsider(task);
        }
    }

    /// Frees a result that nobody needs any more.
    fn reconsider(&mut self, place: u32) {
        let task = &mut self.tasks[place as usize];
        if task.state != State::Memory || task.waiters > 0 || task.wanted.is_some() {
            return;
        }
        task.state = State::Forgotten;
        self.live -= 1;
        for holder in std::mem::take(&mut task.who_has) {
            self.workers[holder.0 as usize].nbytes -= task.nbytes;
            self.out.push(Instruction::ToWorker(holder, ToWorker::Free([task.id].into_iter().collect())));
        }
    }

    // Tasks.

    fn make_ready(&mut self, place: u32) {
        let task = &self.tasks[place as usize];
        let group = &self.functions[task.function as usize];
        if group.rootish && self.saturation.is_finite() {
            self.queued.push(Reverse((task.order, place)));
            self.tasks[place as usize].state = State::Queued;
        } else if group.rootish {
            let worker = self.co_assigned(place);
            self.assign(place, worker);
        } else {
            let worker = self.soonest(place);
            self.assign(place, worker);
        }
    }

    /// Each worker gets its share of a group, neighbours to the same.
    fn co_assigned(&mut self, place: u32) -> WorkerId {
        let function = self.tasks[place as usize].function as usize;
        if let Some((worker, left)) = self.functions[function].share.filter(|(_, left)| *left > 0) {
            self.functions[function].share = Some((worker, left - 1));
            return worker;
        }
        let worker = self.least_occupied();
        let share = (self.functions[function].tasks as u64 * self.workers[worker.0 as usize].threads())
            .div_ceil(self.threads);
        self.functions[function].share = Some((worker, share - 1));
        worker
    }

    fn least_occupied(&self) -> WorkerId {
        self.by_occupancy.first().map(|(_, worker)| *worker).expect("there are workers")
    }

    fn soonest(&self, place: u32) -> WorkerId {
        let task = &self.tasks[place as usize];
        let mut candidates: Vec<WorkerId> =
            task.dependencies.iter().flat_map(|d| &self.tasks[*d as usize].who_has).copied().collect();
        if candidates.is_empty() {
            return self.least_occupied();
        }
        let idle = self.by_count.iter().take_while(|(count, _)| *count < 1 << 16).take(IDLE);
        candidates.extend(idle.map(|(_, worker)| *worker));
        candidates.sort_unstable();
        candidates.dedup();
        let cost = |worker: &WorkerId| {
            let known = &self.workers[worker.0 as usize];
            (known.wait() + self.transfer(task, *worker), known.nbytes, *worker)
        };
        candidates.into_iter().min_by_key(cost).expect("there are candidates")
    }

    /// Nanoseconds to bring a worker what it lacks for a task.
    fn transfer(&self, task: &Task, worker: WorkerId) -> u64 {
        let dependencies = task.dependencies.iter().map(|d| &self.tasks[*d as usize]);
        let missing = dependencies.filter(|d| !d.who_has.contains(&worker)).map(|d| d.nbytes).sum::<u64>();
        (missing as f64 / self.bandwidth * 1e9) as u64
    }

    fn duration(&self, task: &Task) -> u64 {
        self.functions[task.function as usize].duration.unwrap_or(UNKNOWN_DURATION)
    }

    fn assign(&mut self, place: u32, worker: WorkerId) {
        let task = &self.tasks[place as usize];
        let estimate = self.duration(task) + self.transfer(task, worker);
        let dependency = |place: &u32| {
            let task = &self.tasks[*place as usize];
            Dependency {
                id: task.id,
                nbytes: task.nbytes,
                who_has: task.who_has.as_slice().into(),
                passing: false,
            }
        };
        let compute = Arc::new(ComputeTask {
            id: task.id,
            key: task.key,
            entry: self.functions[task.function as usize].function.entry,
            arguments: task.arguments.clone(),
            dependencies: task.dependencies.iter().map(dependency).collect(),
            priority: Priority { order: task.order, ..Priority::default() },
            resources: Vec::new(),
            wanted: task.wanted.is_some(),
            dependents: 0,
            height: 0,
            critical: u32::MAX,
        });
        self.out.push(Instruction::ToWorker(worker, ToWorker::Compute(compute)));
        let task = &mut self.tasks[place as usize];
        (task.state, task.worker, task.estimate) = (State::Processing, Some(worker), estimate);
        self.change(worker, |worker| {
            worker.processing.push(place);
            worker.occupancy += estimate;
        });
    }

    /// A task is with its worker no more; gives that.
    fn leave(&mut self, place: u32) -> Option<WorkerId> {
        let task = &mut self.tasks[place as usize];
        let (worker, estimate) = (task.worker.take()?, task.estimate);
        self.change(worker, |worker| {
            worker.processing.retain(|other| *other != place);
            worker.occupancy -= estimate;
        });
        Some(worker)
    }

    fn change(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker)) {
        let worker = &mut self.workers[id.0 as usize];
        let before = (worker.count(), worker.wait());
        change(worker);
        let after = (worker.count(), worker.wait());
        if before.0 != after.0 {
            self.by_count.remove(&(before.0, id));
            self.by_count.insert((after.0, id));
        }
        if before.1 != after.1 {
            self.by_occupancy.remove(&(before.1, id));
            self.by_occupancy.insert((after.1, id));
        }
    }

    /// Hands queued tasks to workers with an open slot.
    fn refill(&mut self) {
        while let Some(&Reverse((_, place))) = self.queued.peek() {
            let Some(&(_, least)) = self.by_count.first() else { return };
            let worker = &self.workers[least.0 as usize];
            let slots = (worker.threads() as f64 * self.saturation).ceil() as usize;
            if worker.processing.len() >= slots.max(1) {
                return;
            }
            self.queued.pop();
            self.assign(place, least);
        }
    }

    // Workers.

    fn worker_says(&mut self, worker: WorkerId, word: FromWorker) {
        match word {
            FromWorker::Finished(finished) => self.finished(worker, finished),
            FromWorker::Added(ids) => ids.into_iter().for_each(|id| self.added(worker, id)),
            FromWorker::GaveBack(ids) => ids.into_iter().for_each(|id| self.given_back(id)),
            FromWorker::Kept(ids) => ids.into_iter().for_each(|id| self.kept(id)),
            FromWorker::Missing { id, .. } => {
                let task = &self.tasks[id.index()];
                let who_has = task.who_has.iter().copied().filter(|holder| *holder != worker).collect();
                let held = vec![Dependency { id, nbytes: task.nbytes, who_has, passing: false }];
                self.out.push(Instruction::ToWorker(worker, ToWorker::WhoHas(held)));
            }
            FromWorker::Heartbeat(_) => self.out.push(Instruction::ToWorker(worker, ToWorker::Alive)),
            // Nothing of the kind happens here.
            FromWorker::Erred { .. }
            | FromWorker::LongRunning(_)
            | FromWorker::Ran { .. }
            | FromWorker::Fetched(_)
            | FromWorker::NotAdded { .. }
            | FromWorker::Lost(_)
            | FromWorker::Paused(_)
            | FromWorker::Retiring
            | FromWorker::Leaving => {}
        }
    }

    fn finished(&mut self, worker: WorkerId, finished: Finished) {
        let place = finished.id.index() as u32;
        if self.tasks[place as usize].id != finished.id || self.leave(place).is_none() {
            return;
        }
        let group = &mut self.functions[self.tasks[place as usize].function as usize];
        group.duration =
            Some(group.duration.map_or(finished.duration, |mean| (mean + finished.duration) / 2));
        let task = &mut self.tasks[place as usize];
        (task.state, task.nbytes) = (State::Memory, finished.nbytes);
        task.who_has.push(worker);
        self.workers[worker.0 as usize].nbytes += finished.nbytes;
        if let Some(client) = task.wanted {
            let report = ToClient::InMemory {
                key: task.key,
                id: task.id,
                nbytes: task.nbytes,
                worker,
                value: finished.value,
            };
            self.out.push(Instruction::ToClient(client, report));
        }
        let (dependents, dependencies) = (task.dependents.clone(), task.dependencies.clone());
        for dependent in dependents {
            let other = &mut self.tasks[dependent as usize];
            other.waiting_on -= 1;
            if other.waiting_on == 0 {
                self.make_ready(dependent);
            }
        }
        for dependency in dependencies {
            self.tasks[dependency as usize].waiters -= 1;
            self.reconsider(dependency);
        }
        self.reconsider(place);
    }

    fn added(&mut self, worker: WorkerId, id: TaskId) {
        let task = &mut self.tasks[id.index()];
        if task.state != State::Memory || task.id != id {
            self.out.push(Instruction::ToWorker(worker, ToWorker::Free([id].into_iter().collect())));
        } else if !task.who_has.contains(&worker) {
            task.who_has.push(worker);
            self.workers[worker.0 as usize].nbytes += task.nbytes;
        }
    }
}

impl Policy for Dask {
    fn add_client(&mut self) -> ClientId {
        ClientId(0)
    }

    fn add_worker(&mut self, info: WorkerInfo, _: u64) -> (WorkerId, Vec<Instruction>) {
        let id = WorkerId(self.workers.len() as u32);
        self.threads += u64::from(info.nthreads);
        self.workers.push(Worker { info, processing: Vec::new(), occupancy: 0, nbytes: 0 });
        self.by_count.insert((0, id));
        self.by_occupancy.insert((0, id));
        self.refill();
        (id, std::mem::take(&mut self.out))
    }

    fn handle_many(&mut self, stimuli: Vec<Stimulus>, _: u64) -> Vec<Instruction> {
        for stimulus in stimuli {
            match stimulus {
                Stimulus::Client(client, FromClient::Submit { graph, wants }) => {
                    self.submit(client, graph, wants);
                }
                Stimulus::Client(_, FromClient::Release(keys)) => self.release(keys),
                Stimulus::Worker(worker, word) => self.worker_says(worker, word),
                Stimulus::Tick => self.balance(),
                // Nothing of the kind happens here.
                Stimulus::Client(..)
                | Stimulus::Retire(_)
                | Stimulus::RemoveWorker { .. }
                | Stimulus::RemoveClient(_) => {}
            }
        }
        self.refill();
        std::mem::take(&mut self.out)
    }

    fn tick(&self) -> u64 {
        stealing::INTERVAL
    }

    fn task_count(&self) -> usize {
        self.live
    }

    fn validate(&self) {
        let mut held = vec![0; self.workers.len()];
        for task in &self.tasks {
            task.who_has.iter().for_each(|holder| held[holder.0 as usize] += task.nbytes);
        }
        for (number, worker) in self.workers.iter().enumerate() {
            let id = WorkerId(number as u32);
            let tasks = worker.processing.iter().map(|task| &self.tasks[*task as usize]);
            assert!(tasks.clone().all(|task| task.worker == Some(id)), "{id:?} processes its own");
            assert_eq!(worker.occupancy, tasks.map(|task| task.estimate).sum::<u64>(), "{id:?}: occupancy");
            assert_eq!(worker.nbytes, held[number], "{id:?}: bytes");
        }
    }
}
