//! Stories of single tasks: a few stimuli, and the instructions and states that must follow.

mod cancelling;
mod copying;
mod critical;
mod explaining;
mod following;
mod limiting;
mod losing;
mod pausing;
mod placing;
mod recalling;
mod retiring;
mod running;
mod stealing;

use super::{Config, Instruction, State, Stimulus, TaskState};
use crate::{
    graph::{Arguments, Function, Graph, GraphTask, Key, TaskOptions},
    protocol::{
        Answer, ClientId, ComputeTask, Fetch, Finished, FromClient, FromWorker, Metrics, Query, TaskId,
        ToClient, ToWorker, WorkerId, WorkerInfo,
    },
    task::{EntryRef, FailureKind, TaskError, Value},
};

/// A scheduler with one client, and what it last wanted done.
struct Bed {
    state: State,
    client: ClientId,
    now: u64,
    told: Vec<Instruction>,
}

/// A task to submit.
#[derive(Clone)]
struct Call {
    key: u128,
    function: u32,
    dependencies: Vec<u128>,
    options: TaskOptions,
}

fn call(key: u128, dependencies: &[u128]) -> Call {
    Call { key, function: 0, dependencies: dependencies.to_vec(), options: TaskOptions::default() }
}

impl Call {
    /// As a task of another function.
    fn of_g(mut self) -> Self {
        self.function = 1;
        self
    }

    /// Restricted to the worker of this name.
    fn on(self, worker: impl Into<String>) -> Self {
        self.with(|options| options.workers = vec![worker.into()])
    }

    fn with(mut self, change: impl FnOnce(&mut TaskOptions)) -> Self {
        change(&mut self.options);
        self
    }
}

fn failure() -> TaskError {
    TaskError::new(FailureKind::Failed, "it did not work")
}

impl Bed {
    fn new(workers: usize) -> Self {
        let mut state = State::new(Config::default());
        let client = state.add_client();
        let mut bed = Self { state, client, now: 0, told: vec![] };
        for _ in 0..workers {
            bed.join(1);
        }
        bed
    }

    fn join(&mut self, nthreads: u32) -> WorkerId {
        self.join_with(nthreads, vec![])
    }

    fn join_with(&mut self, nthreads: u32, resources: Vec<(String, f64)>) -> WorkerId {
        self.join_as(nthreads, resources, None)
    }

    /// A worker that has so many nanoseconds.
    fn join_for(&mut self, lifetime: Option<u64>) -> WorkerId {
        self.join_as(1, vec![], lifetime)
    }

    /// A worker in a process of a host.
    fn join_at(&mut self, host: &str, pid: u32) -> WorkerId {
        let info = WorkerInfo { pid, host: host.into(), ..self.next(1, vec![], None) };
        self.take_in(info)
    }

    fn join_as(&mut self, nthreads: u32, resources: Vec<(String, f64)>, lifetime: Option<u64>) -> WorkerId {
        let info = self.next(nthreads, resources, lifetime);
        self.take_in(info)
    }

    fn take_in(&mut self, info: WorkerInfo) -> WorkerId {
        self.now += 1;
        let (id, told) = self.state.add_worker(info, self.now);
        self.told = told;
        id
    }

    /// The next worker, in a process and on a host of its own.
    fn next(&self, nthreads: u32, resources: Vec<(String, f64)>, lifetime: Option<u64>) -> WorkerInfo {
        let n = self.state.workers.iter().count();
        WorkerInfo {
            name: format!("w{n}").into(),
            address: format!("inproc://w{n}").into(),
            contact: format!("inproc://w{n}").into(),
            nthreads,
            memory_limit: 0,
            resources,
            pid: n as u32,
            host: format!("host{n}").into(),
            lifetime,
        }
    }

    fn handle(&mut self, stimulus: Stimulus) -> &mut Self {
        self.now += 1;
        // Whatever comes, it changes nothing that it was expected.
        (0..3).for_each(|others| self.state.expect(&stimulus, others));
        self.told = self.state.handle(stimulus, self.now);
        self
    }

    fn says(&mut self, message: FromClient) -> &mut Self {
        self.handle(Stimulus::Client(self.client, message))
    }

    /// Submits tasks and wants all of `wants`.
    fn submit(&mut self, calls: Vec<Call>, wants: &[u128]) -> &mut Self {
        let graph = graph(calls);
        self.says(FromClient::Submit { graph, wants: wants.iter().copied().map(Key).collect() })
    }

    fn release(&mut self, keys: &[u128]) -> &mut Self {
        self.says(FromClient::Release(keys.iter().copied().map(Key).collect()))
    }

    fn cancel(&mut self, keys: &[u128]) -> &mut Self {
        self.says(FromClient::Cancel { keys: keys.iter().copied().map(Key).collect(), force: false })
    }

    fn worker_says(&mut self, worker: WorkerId, message: FromWorker) -> &mut Self {
        self.handle(Stimulus::Worker(worker, message))
    }

    /// The worker that a task is assigned to finishes it.
    fn finish(&mut self, key: u128) -> &mut Self {
        let (worker, id) = self.assignment(key);
        self.finish_on(worker, id)
    }

    fn finish_on(&mut self, worker: WorkerId, id: TaskId) -> &mut Self {
        let finished = Finished { id, nbytes: 100, duration: 1_000_000_000, value: None };
        self.worker_says(worker, FromWorker::Finished(finished))
    }

    /// The worker that a task is assigned to finishes it, with a result of so many bytes after so many nanoseconds.
    fn finish_with(&mut self, key: u128, nbytes: u64, duration: u64) -> &mut Self {
        let (worker, id) = self.assignment(key);
        self.worker_says(worker, FromWorker::Finished(Finished { id, nbytes, duration, value: None }))
    }

    /// A worker got a copy of a result.
    fn add(&mut self, worker: WorkerId, key: u128) -> &mut Self {
        let id = self.id(key);
        self.worker_says(worker, FromWorker::Added(vec![id]))
    }

    /// Asks something that the machine answers itself.
    fn asks(&mut self, query: Query) -> &mut Self {
        self.says(FromClient::Ask { id: 7, query })
    }

    /// What the client was answered in the last turn.
    fn answers(&self) -> Vec<&Answer> {
        let answers = self.told.iter().filter_map(|told| match told {
            Instruction::ToClient(_, ToClient::Answer { id: 7, answer }) => Some(&**answer),
            _ => None,
        });
        answers.collect()
    }

    /// What workers were asked to fetch in the last turn.
    fn acquires(&self) -> Vec<(WorkerId, TaskId)> {
        let mut acquires = Vec::new();
        for told in &self.told {
            if let Instruction::ToWorker(worker, ToWorker::Acquire(wanted)) = told {
                acquires.extend(wanted.iter().map(|wanted| (*worker, wanted.id)));
            }
        }
        acquires
    }

    fn lose(&mut self, worker: WorkerId) -> &mut Self {
        self.handle(Stimulus::RemoveWorker { worker, expected: false })
    }

    /// Where a task is being processed, and under which id.
    #[track_caller]
    fn assignment(&self, key: u128) -> (WorkerId, TaskId) {
        let task = self.task(key);
        (task.worker().expect("it is being processed"), task.id())
    }

    #[track_caller]
    fn id(&self, key: u128) -> TaskId {
        self.task(key).id()
    }

    #[track_caller]
    fn task(&self, key: u128) -> super::task::Task<'_> {
        self.state.tasks.find(Key(key)).and_then(|task| self.state.task(task)).expect("it is known")
    }

    #[track_caller]
    fn is(&self, key: u128, state: TaskState) -> &Self {
        assert_eq!(self.state.task_state(Key(key)), Some(state), "task {key}");
        self
    }

    #[track_caller]
    fn is_forgotten(&self, key: u128) -> &Self {
        assert_eq!(self.state.task_state(Key(key)), None, "task {key}");
        self
    }

    /// The assignments of the last turn: worker and key.
    fn computes(&self) -> Vec<(WorkerId, u128)> {
        self.computed().into_iter().map(|(worker, task)| (worker, task.key.0)).collect()
    }

    fn computed(&self) -> Vec<(WorkerId, &ComputeTask)> {
        let mut computed = Vec::new();
        for told in &self.told {
            if let Instruction::ToWorker(worker, ToWorker::Compute(task)) = told {
                computed.push((*worker, &**task));
            }
        }
        computed
    }

    /// What workers were told to free in the last turn.
    fn frees(&self) -> Vec<(WorkerId, TaskId)> {
        let mut frees = Vec::new();
        for told in &self.told {
            if let Instruction::ToWorker(worker, ToWorker::Free(ids)) = told {
                frees.extend(ids.iter().map(|id| (*worker, *id)));
            }
        }
        frees
    }

    /// What the client was told in the last turn, in short.
    fn client_hears(&self) -> Vec<String> {
        let short = |told: &Instruction| match told {
            Instruction::ToClient(_, ToClient::InMemory { key, worker, .. }) => {
                Some(format!("{} in memory of {}", key.0, worker.0))
            }
            Instruction::ToClient(_, ToClient::Erred { key, error }) => {
                Some(format!("{} erred: {error}", key.0))
            }
            Instruction::ToClient(_, ToClient::Lost(key)) => Some(format!("{} lost", key.0)),
            Instruction::ToClient(_, ToClient::Cancelled(key)) => Some(format!("{} cancelled", key.0)),
            _ => None,
        };
        self.told.iter().filter_map(short).collect()
    }
}

fn graph(calls: Vec<Call>) -> Graph {
    let function = |(name, number): (&str, u32)| Function {
        entry: EntryRef { module: 0, offset: 8 * u64::from(number), name: number.into() },
        name: name.into(),
    };
    let options = calls.iter().map(|call| call.options.clone()).collect();
    let task = |(index, call): (usize, Call)| GraphTask {
        key: Key(call.key),
        function: call.function,
        options: index as u32,
        dependencies: call.dependencies.into_iter().map(Key).collect(),
        arguments: Arguments::default(),
    };
    Graph {
        functions: ["f", "g"].into_iter().zip(1..).map(function).collect(),
        options,
        tasks: calls.into_iter().enumerate().map(task).collect(),
    }
}
