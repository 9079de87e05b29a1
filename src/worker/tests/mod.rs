//! Stories of single tasks on a worker: a few stimuli, and the instructions and states that must follow.

mod ahead;
mod fetching;
mod freeing;
mod leaving;
mod running;
mod spilling;

use std::sync::Arc;

use super::{Config, Execution, Instruction, State, Stimulus, TaskState, Thresholds};
use crate::{
    graph::{Arguments, Key},
    protocol::{ComputeTask, Dependency, Fetch, FromWorker, Priority, TaskId, WorkerId},
    task::{EntryRef, FailureKind, TaskError, Value},
};

/// A worker, and what it last wanted done.
struct Bed {
    state: State,
    now: u64,
    told: Vec<Instruction>,
}

const ALICE: WorkerId = WorkerId(7);
const BOB: WorkerId = WorkerId(8);

fn id(n: u32) -> TaskId {
    TaskId::new(n, 0)
}

/// A dependency: who has it.
fn held(n: u32, who_has: &[WorkerId]) -> Dependency {
    Dependency { id: id(n), nbytes: 8, who_has: who_has.iter().copied().collect(), passing: false }
}

fn task(n: u32, dependencies: Vec<Dependency>) -> ComputeTask {
    ComputeTask {
        id: id(n),
        key: Key(u128::from(n)),
        entry: EntryRef { module: 0, offset: u64::from(n) * 8, name: 1 },
        arguments: Arguments::default(),
        dependencies,
        priority: Priority { order: n, ..Priority::default() },
        resources: vec![],
        wanted: false,
        dependents: 0,
        height: 0,
        critical: u32::MAX,
    }
}

fn failure() -> TaskError {
    TaskError::new(FailureKind::Failed, "it did not work")
}

impl Bed {
    fn new() -> Self {
        Self::with(1, vec![])
    }

    fn with(nthreads: u32, resources: Vec<(String, f64)>) -> Self {
        let state = State::new(Config {
            nthreads,
            memory_limit: 0,
            thresholds: Thresholds::default(),
            resources,
            chains: true,
        });
        Self { state, now: 0, told: vec![] }
    }

    fn handle(&mut self, stimulus: Stimulus) -> &mut Self {
        self.now += 1;
        self.told = self.state.handle(stimulus, self.now);
        self
    }

    fn compute(&mut self, task: ComputeTask) -> &mut Self {
        self.handle(Stimulus::Compute(Arc::new(task)))
    }

    fn free(&mut self, n: u32) -> &mut Self {
        self.handle(Stimulus::Free(smallvec::smallvec![id(n)]))
    }

    fn executed(&mut self, n: u32) -> &mut Self {
        let result = Ok(Value::new(i64::from(n)));
        self.handle(Stimulus::Executed { id: id(n), result, nbytes: 8, duration: 1_000_000 })
    }

    fn gathered(&mut self, peer: WorkerId, ns: &[u32]) -> &mut Self {
        let data = ns.iter().map(|n| (id(*n), Some(Ok(Value::new(i64::from(*n)))))).collect();
        self.handle(Stimulus::Gathered { peer, data })
    }

    fn not_gathered(&mut self, peer: WorkerId, ns: &[u32]) -> &mut Self {
        self.handle(Stimulus::GatherFailed { peer, ids: ns.iter().map(|n| id(*n)).collect() })
    }

    /// A result of this worker's own.
    fn with_result(&mut self, n: u32) -> &mut Self {
        self.compute(task(n, vec![])).executed(n).is(n, TaskState::Memory)
    }

    #[track_caller]
    fn is(&mut self, n: u32, state: TaskState) -> &mut Self {
        assert_eq!(self.state.task_state(id(n)), Some(state), "task {n}");
        self
    }

    #[track_caller]
    fn is_forgotten(&mut self, n: u32) -> &mut Self {
        assert_eq!(self.state.task_state(id(n)), None, "task {n}");
        self
    }

    /// The first task that the last turn starts.
    #[track_caller]
    fn started(&self) -> &Execution {
        let started = self.told.iter().find_map(|told| match told {
            Instruction::Execute(execution) => Some(execution),
            _ => None,
        });
        started.expect("a task starts")
    }

    /// What that task is given.
    #[track_caller]
    fn inputs(&self) -> Vec<i64> {
        let values = self.started().inputs.iter().filter_map(|input| input.clone().value());
        values.map(|value| *value.get::<i64>().unwrap()).collect()
    }

    /// The instructions of the last turn, in short.
    fn told(&self) -> Vec<String> {
        let numbers =
            |ids: &[TaskId]| ids.iter().map(|id| id.index().to_string()).collect::<Vec<_>>().join(" ");
        let short = |told: &Instruction| match told {
            Instruction::Execute(execution) => format!("execute {}", execution.task.id.index()),
            Instruction::Gather { peer, ids } => format!("ask {} for {}", peer.0, numbers(ids)),
            Instruction::Send(FromWorker::Finished(finished)) => format!("finished {}", finished.id.index()),
            Instruction::Send(FromWorker::Erred { id, error }) => format!("erred {}: {error}", id.index()),
            Instruction::Send(FromWorker::Added(ids)) => format!("added {}", numbers(ids)),
            Instruction::Send(FromWorker::Missing { id, holder }) => {
                format!("missing {} not with {:?}", id.index(), holder.map(|holder| holder.0))
            }
            Instruction::Send(FromWorker::LongRunning(id)) => format!("long-running {}", id.index()),
            Instruction::Send(FromWorker::GaveBack(ids)) => format!("gave back {}", numbers(ids)),
            Instruction::Send(FromWorker::Kept(ids)) => format!("kept {}", numbers(ids)),
            Instruction::Send(FromWorker::NotAdded { id, error }) => {
                format!("not added {}: {error}", id.index())
            }
            Instruction::Spill(batch) => {
                let files = batch.iter().map(|(file, _)| file.0.to_string());
                format!("spill to {}", files.collect::<Vec<_>>().join(" "))
            }
            Instruction::Unspill { id, file } => format!("read {} from {}", id.index(), file.0),
            Instruction::Hasten(id) => format!("hasten {}", id.index()),
            Instruction::Discard(file) => format!("discard {}", file.0),
            Instruction::Send(FromWorker::Lost(ids)) => format!("lost {}", numbers(ids)),
            Instruction::Send(FromWorker::Paused(true)) => "paused".into(),
            Instruction::Send(FromWorker::Paused(false)) => "goes on".into(),
            other => format!("{other:?}"),
        };
        self.told.iter().map(short).collect()
    }

    #[track_caller]
    fn does(&mut self, told: &[&str]) -> &mut Self {
        assert_eq!(self.told(), told);
        self
    }
}
