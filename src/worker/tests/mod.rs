//! Stories of single tasks on a worker: a few stimuli, and the instructions and states that must follow.

mod ahead;
mod spilling;

use super::{Config, Instruction, State, Stimulus, TaskState, Thresholds};
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
    Dependency { id: id(n), nbytes: 8, who_has: who_has.iter().copied().collect() }
}

fn task(n: u32, dependencies: Vec<Dependency>) -> ComputeTask {
    ComputeTask {
        id: id(n),
        key: Key(u128::from(n)),
        entry: EntryRef { module: 0, offset: u64::from(n) * 8, name: 1 },
        arguments: Arguments::default(),
        dependencies,
        priority: Priority { order: n as i32, ..Priority::default() },
        resources: vec![],
        wanted: false,
        dependents: 0,
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
        self.handle(Stimulus::Compute(task))
    }

    fn free(&mut self, n: u32) -> &mut Self {
        self.handle(Stimulus::Free(vec![id(n)]))
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

    /// The instructions of the last turn, in short.
    fn told(&self) -> Vec<String> {
        let numbers =
            |ids: &[TaskId]| ids.iter().map(|id| id.index().to_string()).collect::<Vec<_>>().join(" ");
        let short = |told: &Instruction| match told {
            Instruction::Execute(execution) => format!("execute {}", execution.id.index()),
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

mod running {
    use super::*;

    #[test]
    fn it_waits_for_peers_where_nothing_else_can_run() {
        let mut bed = Bed::with(2, vec![]);
        assert!(!bed.state.waits_for_peers(), "nothing is to be done");
        // What a peer still computes.
        bed.compute(task(2, vec![held(1, &[])])).is(2, TaskState::Waiting);
        assert!(bed.state.waits_for_peers());
        bed.compute(task(3, vec![]));
        assert!(bed.state.waits_for_peers(), "a thread is idle");
        bed.compute(task(4, vec![]));
        assert!(!bed.state.waits_for_peers());
        bed.executed(3);
        assert!(bed.state.waits_for_peers());
        bed.free(2);
        assert!(!bed.state.waits_for_peers());
    }

    #[test]
    fn a_task_without_dependencies_runs_at_once() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).is(1, TaskState::Executing).does(&["execute 1"]);
        bed.executed(1).is(1, TaskState::Memory).does(&["finished 1"]);
        assert_eq!(bed.state.metrics().managed, 8);
        bed.free(1).is_forgotten(1).does(&[]);
        assert_eq!(bed.state.metrics().managed, 0);
    }

    #[test]
    fn dependencies_are_fetched_reported_and_handed_to_the_task() {
        let mut bed = Bed::new();
        bed.with_result(1);
        bed.compute(task(3, vec![held(1, &[]), held(2, &[ALICE])]));
        bed.is(3, TaskState::Waiting).is(2, TaskState::Flight).does(&["ask 7 for 2"]);
        bed.gathered(ALICE, &[2]).is(2, TaskState::Memory).is(3, TaskState::Executing);
        bed.does(&["added 2", "execute 3"]);
        let Some(Instruction::Execute(execution)) = bed.told.last() else { panic!("{:?}", bed.told) };
        let values: Vec<i64> = execution
            .dependencies
            .iter()
            .filter_map(|i| i.clone().value())
            .map(|v| *v.get::<i64>().unwrap())
            .collect();
        assert_eq!(values, [1, 2]);
    }

    #[test]
    fn the_more_urgent_task_runs_first() {
        let mut bed = Bed::new();
        bed.compute(task(5, vec![]));
        for n in [9, 7, 8] {
            bed.compute(task(n, vec![])).is(n, TaskState::Ready);
        }
        bed.executed(5).is(7, TaskState::Executing).executed(7).is(8, TaskState::Executing);
    }

    #[test]
    fn short_tasks_are_handed_over_ahead_of_time_and_long_ones_are_not() {
        for (duration, ahead) in [(1_000, true), (1_000_000_000, false)] {
            let mut bed = Bed::new();
            let same = |n| ComputeTask { entry: task(1, vec![]).entry, ..task(n, vec![]) };
            bed.compute(same(1));
            let result = Ok(Value::new(1i64));
            bed.handle(Stimulus::Executed { id: id(1), result, nbytes: 8, duration });
            bed.compute(same(2)).is(2, TaskState::Executing).compute(same(3));
            bed.is(3, if ahead { TaskState::Executing } else { TaskState::Ready });
        }
    }

    #[test]
    fn an_error_is_reported_and_the_task_let_go() {
        let mut bed = Bed::new();
        bed.compute(task(2, vec![held(1, &[ALICE])])).gathered(ALICE, &[1]);
        bed.handle(Stimulus::Executed { id: id(2), result: Err(failure()), nbytes: 0, duration: 1 });
        bed.is_forgotten(2).is(1, TaskState::Memory);
        assert_eq!(bed.told().len(), 1);
        assert!(bed.told()[0].starts_with("erred 2: a task failed: it did not work"), "{:?}", bed.told());
    }

    #[test]
    fn resources_are_held_while_a_task_runs() {
        let mut bed = Bed::with(2, vec![("gpu".into(), 1.0)]);
        let gpu = |n| ComputeTask { resources: vec![("gpu".into(), 0.6)], ..task(n, vec![]) };
        bed.compute(gpu(1)).is(1, TaskState::Executing);
        bed.compute(gpu(2)).is(2, TaskState::Constrained);
        bed.compute(task(3, vec![])).is(3, TaskState::Executing);
        bed.executed(3).is(2, TaskState::Constrained);
        bed.executed(1).is(2, TaskState::Executing);
    }

    #[test]
    fn a_long_running_task_leaves_its_place_to_another() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).compute(task(2, vec![])).is(2, TaskState::Ready);
        bed.handle(Stimulus::Seceded(id(1))).is(1, TaskState::LongRunning).is(2, TaskState::Executing);
        bed.does(&["long-running 1", "execute 2"]);
        bed.executed(1).is(1, TaskState::Memory).does(&["finished 1"]);
    }

    #[test]
    fn a_wanted_small_result_goes_along_and_a_big_one_does_not() {
        for (nbytes, along) in [(4096, true), (4097, false)] {
            let mut bed = Bed::new();
            bed.compute(ComputeTask { wanted: true, ..task(1, vec![]) });
            let result = Ok(Value::new(vec![0u8; 1]));
            bed.handle(Stimulus::Executed { id: id(1), result, nbytes, duration: 1 });
            let [Instruction::Send(FromWorker::Finished(finished))] = &bed.told[..] else { panic!() };
            assert_eq!(finished.value.is_some(), along);
        }
    }

    #[test]
    fn above_its_memory_limit_a_worker_runs_one_task_at_a_time() {
        let mut bed = Bed::with(4, vec![]);
        bed.state = State::new(Config {
            nthreads: 4,
            memory_limit: 1000,
            thresholds: Thresholds { target: None, ..Thresholds::default() },
            resources: vec![],
            chains: true,
        });
        bed.compute(task(1, vec![]));
        let result = Ok(Value::new(0i64));
        bed.handle(Stimulus::Executed { id: id(1), result, nbytes: 900, duration: 1 });
        bed.compute(task(2, vec![])).is(2, TaskState::Executing);
        bed.compute(task(3, vec![])).is(3, TaskState::Ready);
        bed.free(1).is(3, TaskState::Executing);
    }
}

mod fetching {
    use super::*;

    #[test]
    fn one_request_a_peer_at_a_time_asks_for_all_that_it_has() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(1, &[ALICE]), held(2, &[ALICE]), held(3, &[BOB])]));
        bed.does(&["ask 7 for 1 2", "ask 8 for 3"]);
        bed.compute(task(10, vec![held(4, &[ALICE])])).does(&[]).is(4, TaskState::Fetch);
        bed.gathered(ALICE, &[1, 2]).is(4, TaskState::Flight).does(&["added 1 2", "ask 7 for 4"]);
    }

    #[test]
    fn a_peer_that_does_not_have_it_is_followed_by_one_that_may() {
        let mut bed = Bed::new();
        // Which holder is asked first goes by the number: 2 is even.
        bed.compute(task(9, vec![held(2, &[ALICE, BOB])])).does(&["ask 7 for 2"]);
        bed.not_gathered(ALICE, &[2]).does(&["ask 8 for 2"]);
        bed.not_gathered(BOB, &[2]).is(2, TaskState::Fetch).does(&["missing 2 not with Some(8)"]);
        bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&["ask 7 for 2"]);
        bed.gathered(ALICE, &[2]).is(9, TaskState::Executing);
    }

    #[test]
    fn what_fetches_took_is_told_once() {
        let mut bed = Bed::new();
        // The first time a peer may have to be connected to.
        bed.compute(task(8, vec![held(1, &[ALICE])])).gathered(ALICE, &[1]);
        assert_eq!(bed.state.take_fetches(), []);
        let before = bed.state.metrics().fetched;
        bed.compute(task(9, vec![held(2, &[ALICE])]));
        let asked = bed.now;
        bed.now += 1000;
        bed.gathered(ALICE, &[2]);
        let (nbytes, nanos) = (bed.state.metrics().fetched - before, bed.now - asked);
        assert!(nbytes > 0 && nanos > 1000);
        assert_eq!(bed.state.take_fetches(), [Fetch { from: ALICE, nbytes, nanos }]);
        // Of what failed nothing is learned.
        bed.compute(task(10, vec![held(4, &[BOB])])).not_gathered(BOB, &[4]);
        assert_eq!(bed.state.take_fetches(), []);
    }

    #[test]
    fn a_fetch_queued_at_a_peer_that_dies_goes_elsewhere() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])])).compute(task(10, vec![held(4, &[ALICE, BOB])]));
        bed.is(4, TaskState::Fetch);
        bed.handle(Stimulus::PeerGone(ALICE)).is(4, TaskState::Flight).does(&["ask 8 for 4"]);
        // What was in flight fails on its own.
        bed.is(2, TaskState::Flight).not_gathered(ALICE, &[2]).does(&["missing 2 not with Some(7)"]);
    }

    #[test]
    fn a_fetch_that_knows_no_holder_goes_on_when_another_task_names_one() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])])).not_gathered(ALICE, &[2]).is(2, TaskState::Fetch);
        bed.compute(task(10, vec![held(2, &[BOB])])).is(2, TaskState::Flight).does(&["ask 8 for 2"]);
        // The scheduler's late answer changes nothing.
        bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).does(&[]).is(2, TaskState::Flight);
    }

    #[test]
    fn a_dependency_that_cannot_be_sent_fails_those_that_need_it() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])]));
        bed.handle(Stimulus::Gathered { peer: ALICE, data: vec![(id(2), Some(Err(failure())))] });
        bed.is_forgotten(9).is_forgotten(2);
        assert!(bed.told()[0].starts_with("erred 9"), "{:?}", bed.told());
    }

    #[test]
    fn a_running_task_is_not_failed_by_what_it_has_in_hand() {
        let mut bed = Bed::new();
        bed.with_result(2).compute(task(9, vec![held(2, &[])])).is(9, TaskState::Executing);
        bed.compute(task(10, vec![held(2, &[])])).free(2).is(10, TaskState::Waiting);
        bed.handle(Stimulus::WhoHas(vec![held(2, &[ALICE])])).is(2, TaskState::Flight);
        bed.handle(Stimulus::Gathered { peer: ALICE, data: vec![(id(2), Some(Err(failure())))] });
        bed.is_forgotten(10).is(9, TaskState::Executing).executed(9).is(9, TaskState::Memory);
    }

    #[test]
    fn a_copy_is_fetched_on_demand_though_no_task_here_needs_it() {
        let mut bed = Bed::new();
        bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE])])).does(&["ask 7 for 2"]);
        bed.gathered(ALICE, &[2]).is(2, TaskState::Memory).does(&["added 2"]);
        bed.free(2).is_forgotten(2);
    }

    #[test]
    fn data_put_here_wakes_who_waits_for_it() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])]));
        bed.handle(Stimulus::Put(vec![(id(2), Value::new(5i64))])).is(9, TaskState::Executing);
        bed.gathered(ALICE, &[2]).is(2, TaskState::Memory);
        assert_eq!(bed.state.metrics().managed, 8, "it is held once");
    }
}

mod freeing {
    use super::*;

    #[test]
    fn freed_while_waiting_its_fetch_is_given_up() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])])).is(9, TaskState::Waiting);
        bed.free(9).is_forgotten(9).is(2, TaskState::Cancelled);
        bed.gathered(ALICE, &[2]).is_forgotten(2).does(&[]);
        assert_eq!(bed.state.metrics().managed, 0);
    }

    #[test]
    fn a_given_up_fetch_that_is_wanted_again_goes_on() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])])).free(9).is(2, TaskState::Cancelled);
        bed.compute(task(10, vec![held(2, &[ALICE])])).is(2, TaskState::Flight).does(&[]);
        bed.gathered(ALICE, &[2]).is(10, TaskState::Executing);
    }

    #[test]
    fn freed_while_its_dependency_is_to_be_fetched() {
        let mut bed = Bed::new();
        bed.compute(task(9, vec![held(2, &[ALICE])])).compute(task(10, vec![held(4, &[ALICE])]));
        bed.is(4, TaskState::Fetch).free(10).is_forgotten(4).is_forgotten(10);
        bed.gathered(ALICE, &[2]).does(&["added 2", "execute 9"]);
    }

    #[test]
    fn freed_while_ready() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).compute(task(2, vec![])).is(2, TaskState::Ready);
        bed.free(2).is_forgotten(2).executed(1).does(&["finished 1"]);
    }

    #[test]
    fn freed_while_constrained() {
        let mut bed = Bed::with(2, vec![("gpu".into(), 1.0)]);
        let gpu = |n| ComputeTask { resources: vec![("gpu".into(), 1.0)], ..task(n, vec![]) };
        bed.compute(gpu(1)).compute(gpu(2)).is(2, TaskState::Constrained);
        bed.free(2).is_forgotten(2).executed(1).does(&["finished 1"]);
        bed.compute(gpu(3)).is(3, TaskState::Executing);
    }

    #[test]
    fn freed_while_executing_its_result_is_thrown_away() {
        let mut bed = Bed::new();
        bed.with_result(1).compute(task(2, vec![held(1, &[])])).compute(task(3, vec![]));
        bed.free(2).is(2, TaskState::Cancelled).is(3, TaskState::Ready);
        bed.executed(2).is_forgotten(2).is(3, TaskState::Executing).does(&["execute 3"]);
    }

    #[test]
    fn freed_while_long_running() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).handle(Stimulus::Seceded(id(1)));
        bed.free(1).is(1, TaskState::Cancelled).executed(1).is_forgotten(1).does(&[]);
    }

    #[test]
    fn a_task_that_was_freed_and_then_secedes_leaves_its_place() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).compute(task(2, vec![])).free(1).is(1, TaskState::Cancelled);
        bed.handle(Stimulus::Seceded(id(1))).is(2, TaskState::Executing).executed(1).is_forgotten(1);
    }

    #[test]
    fn freed_while_in_memory_and_needed_here_it_is_looked_for_anew() {
        let mut bed = Bed::new();
        bed.with_result(1).compute(task(5, vec![])).compute(task(9, vec![held(1, &[])]));
        bed.is(9, TaskState::Ready).free(1).is(9, TaskState::Waiting).is(1, TaskState::Fetch);
        bed.does(&["missing 1 not with None"]);
        bed.handle(Stimulus::WhoHas(vec![held(1, &[ALICE])])).gathered(ALICE, &[1]).is(9, TaskState::Ready);
    }

    #[test]
    fn freed_while_a_running_task_has_it_in_hand_nothing_stops() {
        let mut bed = Bed::new();
        bed.with_result(1).compute(task(9, vec![held(1, &[])])).is(9, TaskState::Executing);
        bed.free(1).does(&[]).executed(9).is(9, TaskState::Memory).is_forgotten(1);
    }

    #[test]
    fn a_task_computed_again_comes_under_another_id_and_meets_nothing_of_the_former() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).free(1).is(1, TaskState::Cancelled);
        let again = ComputeTask { id: TaskId::new(1, 1), ..task(1, vec![]) };
        bed.compute(again);
        assert_eq!(bed.state.task_state(TaskId::new(1, 1)), Some(TaskState::Ready));
        bed.executed(1).is_forgotten(1).does(&["execute 1"]);
    }

    #[test]
    fn what_is_not_known_here_is_freed_without_a_word() {
        let mut bed = Bed::new();
        bed.free(1).does(&[]).executed(1).does(&[]).gathered(ALICE, &[1]).does(&[]).is_forgotten(1);
    }
}

mod retiring {
    use super::*;

    #[test]
    fn it_gives_back_what_it_did_not_start_and_finishes_what_it_did() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).compute(task(2, vec![])).compute(task(9, vec![held(3, &[ALICE])]));
        bed.is(1, TaskState::Executing).is(2, TaskState::Ready).is(9, TaskState::Waiting);
        bed.handle(Stimulus::Retire).does(&["gave back 2 9"]).is_forgotten(2).is_forgotten(9);
        bed.gathered(ALICE, &[3]).is_forgotten(3);
        bed.executed(1).does(&["finished 1"]).is(1, TaskState::Memory);
        bed.handle(Stimulus::Retire).does(&[]);
    }

    #[test]
    fn it_takes_no_more_tasks_but_serves_what_it_holds() {
        let mut bed = Bed::new();
        bed.with_result(1).handle(Stimulus::Retire).does(&[]);
        bed.compute(task(2, vec![])).does(&["gave back 2"]).is_forgotten(2);
        assert!(bed.state.value(id(1)).is_some());
        bed.free(1).is_forgotten(1);
    }

    #[test]
    fn a_copy_that_cannot_be_had_is_reported() {
        let mut bed = Bed::new();
        bed.handle(Stimulus::Acquire(vec![held(2, &[ALICE])]));
        let data = vec![(id(2), Some(Err(failure())))];
        bed.handle(Stimulus::Gathered { peer: ALICE, data });
        bed.does(&["not added 2: a task failed: it did not work"]).is_forgotten(2);
    }
}

mod giving_back {
    use super::*;

    #[test]
    fn what_was_not_started_is_given_back_and_what_was_is_kept() {
        let mut bed = Bed::new();
        bed.compute(task(1, vec![])).compute(task(2, vec![])).compute(task(9, vec![held(3, &[ALICE])]));
        let wanted = vec![id(1), id(2), id(9), id(77)];
        bed.handle(Stimulus::GiveBack(wanted)).does(&["gave back 2 9", "kept 1 77"]);
        bed.is_forgotten(2).is_forgotten(9).is(1, TaskState::Executing);
        // It may come back, as another computation.
        bed.compute(task(4, vec![])).is(4, TaskState::Ready);
    }
}
