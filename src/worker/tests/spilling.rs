//! Memory that gets short: what goes to disk, what comes back, and what may happen in between.

use super::*;
use crate::worker::{FileId, SpillError};

/// Bytes of every result here.
const SIZE: u64 = 10_000;

/// A worker with memory for some results: four of them are more than the target, five pause it.
fn short() -> Bed {
    limited(2, 6 * SIZE)
}

fn limited(nthreads: u32, memory_limit: u64) -> Bed {
    let mut bed = Bed::with(nthreads, vec![]);
    bed.state = State::new(Config {
        nthreads,
        memory_limit,
        thresholds: Thresholds { target: Some(0.6), spill: Some(0.7), pause: Some(0.8), terminate: None },
        resources: vec![],
        chains: true,
    });
    bed
}

impl Bed {
    /// Time passes, so that what is used later counts as used later.
    fn later(&mut self) -> &mut Self {
        self.now += 1 << 27;
        self
    }

    fn made(&mut self, n: u32, nbytes: u64) -> &mut Self {
        let result = Ok(Value::new(i64::from(n)));
        self.handle(Stimulus::Executed { id: id(n), result, nbytes, duration: 1_000_000 })
    }

    /// Results of this worker's own, one after the other.
    fn results(&mut self, ns: impl IntoIterator<Item = u32>) -> &mut Self {
        for n in ns {
            self.later().compute(task(n, vec![])).made(n, SIZE);
        }
        self
    }

    fn spilled(&mut self, file: u64) -> &mut Self {
        self.all_spilled([file])
    }

    fn all_spilled(&mut self, files: impl IntoIterator<Item = u64>) -> &mut Self {
        self.handle(Stimulus::Spilled(files.into_iter().map(|file| (FileId(file), Ok(SIZE / 2))).collect()))
    }

    fn disk_is_full(&mut self, files: impl IntoIterator<Item = u64>) -> &mut Self {
        let error = SpillError::Disk("there is no space left".into());
        let failed = |file| (FileId(file), Err(error.clone()));
        self.handle(Stimulus::Spilled(files.into_iter().map(failed).collect()))
    }

    /// A result is read back, as a view of its file.
    fn read(&mut self, n: u32, file: u64) -> &mut Self {
        self.read_into(n, file, 0)
    }

    fn read_into(&mut self, n: u32, file: u64, occupied: u64) -> &mut Self {
        let value = Value::new(i64::from(n));
        self.handle(Stimulus::Unspilled { id: id(n), file: FileId(file), value, occupied })
    }

    fn unreadable(&mut self, n: u32, file: u64) -> &mut Self {
        self.handle(Stimulus::UnspillFailed { id: id(n), file: FileId(file) })
    }

    fn memory(&mut self, resident: u64) -> &mut Self {
        self.handle(Stimulus::Memory { resident })
    }

    #[track_caller]
    fn holds(&mut self, managed: u64, spilled: u64) -> &mut Self {
        let metrics = self.state.metrics();
        assert_eq!((metrics.managed, metrics.spilled), (managed * SIZE, spilled * SIZE));
        self
    }
}

/// One result of four is on disk, in file 0.
fn one_on_disk() -> Bed {
    let mut bed = short();
    bed.results(1..=4).does(&["finished 4", "spill to 0"]);
    bed.spilled(0).does(&[]).is(1, TaskState::Memory).holds(3, 1);
    assert_eq!(bed.state.metrics().on_disk, SIZE / 2);
    assert!(bed.state.value(id(1)).is_none() && bed.state.file(id(1)) == Some(FileId(0)));
    bed
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut bed = short();
    bed.results(1..=3).does(&["finished 3"]).later();
    // A dependency of a task, and what a peer is given, are in use.
    bed.compute(task(9, vec![held(1, &[])])).made(9, 8).free(9);
    bed.handle(Stimulus::Given(vec![id(2)])).holds(3, 0);
    bed.results([4]).does(&["finished 4", "spill to 0"]).spilled(0);
    assert_eq!(bed.state.file(id(3)), Some(FileId(0)));
}

#[test]
fn of_those_used_at_once_the_biggest_goes_first() {
    let mut bed = short();
    for n in [1, 2, 3] {
        bed.compute(task(n, vec![])).made(n, if n == 2 { 2 * SIZE } else { SIZE });
    }
    bed.does(&["finished 3", "spill to 0"]).spilled(0);
    assert_eq!(bed.state.file(id(2)), Some(FileId(0)));
}

#[test]
fn many_small_results_are_written_together_and_few_big_ones() {
    for (size, together) in [(SIZE, 64), (1 << 20, 16), (10 << 20, 2), (20 << 20, 1)] {
        let mut bed = limited(2, 1 << 40);
        for n in 1..=300 {
            bed.compute(task(n, vec![])).made(n, size);
        }
        // The process takes up all there is: everything is to go.
        bed.memory(1 << 50);
        let batches = |bed: &Bed| -> Vec<usize> {
            let batch = |told: &Instruction| match told {
                Instruction::Spill(batch) => Some(batch.len()),
                _ => None,
            };
            bed.told.iter().filter_map(batch).collect()
        };
        assert_eq!(batches(&bed), [together; 3], "of {size} bytes each");
        // The next batch goes when one is done.
        let first = 0..together as u64;
        bed.memory(1 << 50).does(&[]).all_spilled(first);
        assert_eq!(batches(&bed), [together], "of {size} bytes each");
    }
}

#[test]
fn small_results_stay() {
    let mut bed = limited(1, 1000);
    for n in 1..100 {
        bed.later().compute(task(n, vec![])).made(n, 100);
    }
    bed.does(&["finished 99"]);
}

#[test]
fn without_a_limit_or_with_thresholds_off_nothing_goes() {
    let mut bed = limited(1, 0);
    bed.results(1..20).memory(1 << 40).does(&[]).holds(19, 0);
    bed.state = State::new(Config {
        nthreads: 1,
        memory_limit: SIZE,
        thresholds: Thresholds { target: None, spill: None, pause: None, terminate: None },
        resources: vec![],
        chains: true,
    });
    bed.results(1..20).memory(1 << 40).does(&[]).holds(19, 0);
}

#[test]
fn what_the_process_occupies_counts_too() {
    let mut bed = short();
    bed.results(1..=3).memory(4 * SIZE).does(&[]);
    // Above seven tenths of the limit it is to come down to six.
    bed.memory(5 * SIZE - 5000).does(&["spill to 0"]);
    bed.spilled(0).does(&[]).holds(2, 1);
    bed.memory(3 * SIZE).does(&[]);
}

#[test]
fn needed_again_it_is_read_before_its_task_runs_and_closed_after() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[]), held(2, &[])])).is(9, TaskState::Reading).does(&["read 1 from 0"]);
    // Another task that needs it does not read it again.
    bed.compute(task(10, vec![held(1, &[])])).is(10, TaskState::Reading).does(&[]);
    bed.read(1, 0)
        .is(9, TaskState::Executing)
        .is(10, TaskState::Executing)
        .does(&["execute 9", "execute 10"]);
    assert_eq!(bed.inputs(), [1, 2]);
    bed.holds(3, 1);
    bed.executed(9);
    assert!(bed.state.value(id(1)).is_some(), "one still has it in hand");
    bed.executed(10);
    assert!(bed.state.value(id(1)).is_none(), "views of files are not kept");
}

#[test]
fn what_was_read_into_memory_goes_again_without_being_written() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])])).later().read_into(1, 0, SIZE).holds(4, 0);
    bed.does(&["execute 9", "spill to 1"]).executed(9).free(9);
    bed.spilled(1).holds(3, 1).later();
    assert_eq!(bed.state.file(id(2)), Some(FileId(1)));
    bed.handle(Stimulus::Given(vec![id(3), id(4)])).results([5]);
    bed.does(&["finished 5"]).holds(3, 2);
    assert!(bed.state.value(id(1)).is_none());
}

#[test]
fn freed_while_being_spilled_its_file_goes_as_soon_as_it_is_written() {
    let mut bed = short();
    bed.results(1..=4).does(&["finished 4", "spill to 0"]);
    bed.free(1).is_forgotten(1).does(&[]).holds(3, 0);
    bed.spilled(0).does(&["discard 0"]).holds(3, 0);
}

#[test]
fn freed_and_fetched_again_while_being_spilled_the_old_file_is_not_its_own() {
    let mut bed = short();
    bed.results(1..=4).free(1);
    bed.handle(Stimulus::Put(vec![(id(1), Value::new(7i64))])).is(1, TaskState::Memory);
    bed.spilled(0).does(&["discard 0"]).is(1, TaskState::Memory);
    assert_eq!(bed.state.file(id(1)), None);
}

#[test]
fn needed_while_being_spilled_it_stays_in_memory() {
    let mut bed = short();
    bed.results(1..=4).compute(task(9, vec![held(1, &[])])).is(9, TaskState::Executing);
    // The next goes in its place.
    bed.spilled(0).does(&["spill to 1"]).holds(4, 0);
    assert!(bed.state.value(id(1)).is_some());
    bed.spilled(1).holds(3, 1);
    assert!(bed.state.file(id(2)).is_some());
}

#[test]
fn freed_while_on_disk_its_place_is_given_back() {
    one_on_disk().free(1).is_forgotten(1).does(&["discard 0"]).holds(3, 0);
}

#[test]
fn freed_while_being_read_its_task_waits_for_it_anew() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])])).is(9, TaskState::Reading);
    bed.free(1).is(9, TaskState::Waiting).is(1, TaskState::Fetch);
    bed.does(&["discard 0", "missing 1 not with None"]);
    bed.read(1, 0).is(1, TaskState::Fetch).does(&[]);
    bed.handle(Stimulus::WhoHas(vec![held(1, &[ALICE])])).gathered(ALICE, &[1]).is(9, TaskState::Executing);
}

#[test]
fn a_task_freed_while_its_input_is_read_leaves_its_place() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])])).free(9).is_forgotten(9);
    assert_eq!(bed.state.metrics().executing, 0);
    bed.read(1, 0).does(&[]);
    assert!(bed.state.value(id(1)).is_none(), "nobody needs it any more");
}

#[test]
fn a_task_whose_input_is_read_may_be_given_back() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])]));
    bed.handle(Stimulus::GiveBack(vec![id(9)])).does(&["gave back 9"]).is_forgotten(9);
    bed.read(1, 0).does(&[]).compute(task(10, vec![held(1, &[])])).does(&["read 1 from 0"]);
}

#[test]
fn what_cannot_be_read_back_is_lost_and_looked_for_elsewhere() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])]));
    bed.unreadable(1, 0).does(&["discard 0", "lost 1", "missing 1 not with None"]);
    bed.is(9, TaskState::Waiting).is(1, TaskState::Fetch).holds(3, 0);
    bed.handle(Stimulus::WhoHas(vec![held(1, &[BOB])])).gathered(BOB, &[1]).is(9, TaskState::Executing);
}

#[test]
fn what_a_peer_cannot_be_given_is_lost() {
    one_on_disk().unreadable(1, 0).does(&["discard 0", "lost 1"]).is_forgotten(1);
    one_on_disk().free(1).unreadable(1, 0).does(&[]);
}

#[test]
fn what_cannot_be_serialized_stays_and_another_goes() {
    let mut bed = short();
    bed.results(1..=4);
    let error = SpillError::Value(failure());
    bed.handle(Stimulus::Spilled(vec![(FileId(0), Err(error))])).does(&["spill to 1"]);
    bed.spilled(1).holds(3, 1);
    assert_eq!(bed.state.file(id(2)), Some(FileId(1)));
}

#[test]
fn a_disk_that_refuses_is_left_alone_for_a_while() {
    let mut bed = short();
    bed.results(1..=4).disk_is_full([0]).does(&[]).holds(4, 0);
    bed.memory(0).does(&[]);
    bed.now += 3_000_000_000;
    bed.memory(0).does(&["spill to 1"]).spilled(1).holds(3, 1);
}

#[test]
fn a_disk_that_refuses_one_of_a_batch_is_one_that_refuses() {
    let mut bed = short();
    bed.results(1..=3).compute(task(8, vec![])).memory(5 * SIZE).does(&["paused", "spill to 0 1"]);
    let refused = Err(SpillError::Disk("there is no space left".into()));
    bed.handle(Stimulus::Spilled(vec![(FileId(0), refused), (FileId(1), Ok(SIZE / 2))])).holds(2, 1);
    bed.memory(5 * SIZE).does(&[]);
    bed.now += 3_000_000_000;
    bed.memory(5 * SIZE).does(&["spill to 2 3"]);
}

#[test]
fn a_result_without_a_place_errs_its_task_and_no_other() {
    let mut bed = short();
    bed.results(1..=4).disk_is_full([0]);
    bed.compute(task(5, vec![])).is(5, TaskState::Executing).made(5, SIZE).is_forgotten(5);
    let told = bed.told();
    assert!(told[0].contains("erred 5") && told[0].contains("there is no space left"), "{told:?}");
    assert!(told[0].contains("10000 bytes") && told[0].contains("local-directory"), "{told:?}");
    // What is small has room, and so has the next once something was freed.
    bed.compute(task(6, vec![])).made(6, 8).is(6, TaskState::Memory);
    bed.free(1).compute(task(7, vec![])).made(7, SIZE).is(7, TaskState::Memory);
}

#[test]
fn a_worker_that_is_short_of_memory_pauses_and_goes_on() {
    let mut bed = short();
    bed.results(1..=3).compute(task(8, vec![])).is(8, TaskState::Executing);
    bed.memory(5 * SIZE).does(&["paused", "spill to 0 1"]);
    bed.compute(task(9, vec![])).is(9, TaskState::Ready);
    bed.all_spilled([0, 1]).made(8, 8).is(9, TaskState::Ready);
    bed.memory(3 * SIZE).does(&["goes on", "execute 9"]);
}

#[test]
fn where_nothing_can_make_room_tasks_run_one_at_a_time() {
    let mut bed = limited(4, 6 * SIZE);
    bed.compute(task(8, vec![])).memory(6 * SIZE).does(&["paused"]);
    bed.compute(task(9, vec![])).compute(task(10, vec![])).memory(6 * SIZE).is(9, TaskState::Ready);
    // Once nothing runs whose end could make room, it is no use to wait.
    bed.executed(8).is(9, TaskState::Ready).memory(6 * SIZE).does(&["goes on", "execute 9"]);
    bed.memory(6 * SIZE).is(10, TaskState::Ready).executed(9).is(10, TaskState::Executing);
    bed.compute(task(11, vec![])).is(11, TaskState::Ready).memory(0).is(11, TaskState::Executing);
}

#[test]
fn a_paused_worker_whose_disk_is_full_does_not_wait_for_ever() {
    let mut bed = short();
    bed.results(1..=4).compute(task(9, vec![])).executed(9);
    bed.memory(6 * SIZE).disk_is_full([0]).disk_is_full([1, 2]);
    bed.compute(task(10, vec![])).is(10, TaskState::Ready);
    bed.memory(6 * SIZE).is(10, TaskState::Executing);
}

#[test]
fn inputs_beyond_the_limit_are_read_for_one_task_at_a_time() {
    let mut bed = limited(4, 6 * SIZE);
    let many = |range: std::ops::RangeInclusive<u32>| range.map(|n| held(n, &[])).collect::<Vec<_>>();
    bed.results(1..=3);
    for (n, file) in (4..=14).zip(0..) {
        bed.results([n]).spilled(file);
    }
    bed.holds(3, 11);
    bed.compute(task(20, many(1..=7))).is(20, TaskState::Reading);
    bed.compute(task(21, many(8..=9))).is(21, TaskState::Ready);
    // One that needs no more than what is in hand runs beside it.
    for (n, file) in (1..=7).zip(0..) {
        bed.read(n, file);
    }
    bed.is(20, TaskState::Executing).is(21, TaskState::Ready).executed(20).is(21, TaskState::Reading);
}

#[test]
fn what_comes_from_peers_at_once_is_bounded() {
    let mut bed = limited(1, 20 * SIZE);
    let big = |n, peer| Dependency { nbytes: SIZE, ..held(n, &[peer]) };
    bed.compute(task(9, vec![big(1, ALICE), big(2, ALICE), big(3, ALICE), big(4, BOB)]));
    bed.does(&["ask 7 for 1 2"]).gathered(ALICE, &[1, 2]).does(&["ask 7 for 3", "ask 8 for 4"]);
}

#[test]
fn it_retires_with_what_is_on_disk() {
    let mut bed = one_on_disk();
    bed.compute(task(9, vec![held(1, &[])]));
    bed.handle(Stimulus::Retire).does(&["gave back 9"]).is(1, TaskState::Memory);
    assert_eq!(bed.state.file(id(1)), Some(FileId(0)), "others are given it from there");
    bed.free(1).is_forgotten(1).does(&["discard 0"]);
}
