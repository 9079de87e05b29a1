//! Results in memory: what they take, which of them tasks have in hand, and whether there is room for more.
//!
//! Of a result the machine knows whether tasks can read it at once (`value`), how much memory that takes
//! (`occupied`: nothing where it is a view of a file) and what there is of it on disk. The result used least
//! recently goes first (`spilling`).
//!
//! A worker whose memory stays short never waits for what cannot come: where nothing runs that could make room and
//! nothing can be spilled any more, tasks run one at a time.

mod spilling;

use std::{cmp::Reverse, collections::BTreeSet};

use super::{
    Config, FileId, Instruction, TaskState,
    state::{Disk, State, Task},
};
use crate::{
    graph::KeyMap,
    protocol::{ComputeTask, Dependency, FromWorker, TaskId},
    task::{FailureKind, TaskError, Value},
};

/// Results of fewer bytes stay in memory: a file of their own would take as much.
const SMALLEST: u64 = 4096;
/// Results used within the same 2^27 ns (0.13 s) count as used at once.
const AGE_BITS: u32 = 27;

/// What a worker knows of its memory.
pub(super) struct Memory {
    /// Bytes it may use; 0 for no limit.
    limit: u64,
    /// Bytes beyond which results are spilled: of results, and of all that the process occupies.
    target: u64,
    spill: u64,
    /// Bytes beyond which no more tasks are started.
    pause: u64,
    /// Bytes of results in memory, on disk alone, and of their files.
    pub(super) managed: u64,
    pub(super) spilled: u64,
    pub(super) on_disk: u64,
    /// Bytes of what running tasks have in hand.
    pinned: u64,
    /// What could go, the first to go first: by age, and of one age the biggest.
    idle: BTreeSet<Idle>,
    /// Batches under way, and what is being written with the bytes of memory that this will give.
    writes: usize,
    writing: KeyMap<FileId, (TaskId, u64)>,
    leaving: u64,
    files: u64,
    /// What the process occupied when it was last looked at, and how much of that is still to go.
    resident: u64,
    excess: u64,
    strain: Strain,
    /// The disk did not take a result.
    refused: Option<Refused>,
}

/// A result that could go: when it was used last, its bytes in memory, and which it is.
type Idle = (u64, Reverse<u64>, TaskId);

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strain {
    /// It is not.
    None,
    /// No task is started until there is room.
    Paused,
    /// It is, and nothing can make room: tasks run one at a time.
    Stuck,
}

struct Refused {
    /// When the disk is tried again.
    again: u64,
    reason: String,
}

/// What a task adds to the figures of its worker.
#[derive(Default, PartialEq)]
struct Account {
    managed: u64,
    spilled: u64,
    on_disk: u64,
    idle: Option<Idle>,
}

impl Memory {
    pub(super) fn new(config: &Config) -> Self {
        let limit = config.memory_limit;
        let share = |share: Option<f64>| match share {
            Some(share) if limit > 0 => (limit as f64 * share) as u64,
            _ => u64::MAX,
        };
        let thresholds = config.thresholds;
        Self {
            limit,
            target: share(thresholds.target),
            spill: share(thresholds.spill),
            pause: share(thresholds.pause),
            managed: 0,
            spilled: 0,
            on_disk: 0,
            pinned: 0,
            idle: BTreeSet::new(),
            writes: 0,
            writing: KeyMap::default(),
            leaving: 0,
            files: 0,
            resident: 0,
            excess: 0,
            strain: Strain::None,
            refused: None,
        }
    }

    /// Changes what there is of a result, and keeps the figures right.
    fn alter(&mut self, id: TaskId, task: &mut Task, change: impl FnOnce(&mut Task)) {
        let before = task.account(id);
        change(task);
        let after = task.account(id);
        self.managed = self.managed - before.managed + after.managed;
        self.spilled = self.spilled - before.spilled + after.spilled;
        self.on_disk = self.on_disk - before.on_disk + after.on_disk;
        if self.limit > 0 && before.idle != after.idle {
            before.idle.map(|idle| self.idle.remove(&idle));
            after.idle.map(|idle| self.idle.insert(idle));
        }
    }

    /// Takes a result in, at an age.
    pub(super) fn put(&mut self, id: TaskId, task: &mut Task, value: Value, nbytes: u64, age: u64) {
        self.alter(id, task, |task| {
            task.value = Some(value);
            (task.nbytes, task.occupied, task.used) = (nbytes, nbytes, age);
        });
    }
}

impl Task {
    fn account(&self, id: TaskId) -> Account {
        let managed = if self.value.is_some() { self.occupied } else { 0 };
        let (spilled, on_disk) = match self.disk {
            Disk::Written(_, on_disk) => (self.nbytes.saturating_sub(managed), on_disk),
            _ => (0, 0),
        };
        let free = self.pins == 0 && matches!(self.disk, Disk::Nothing | Disk::Written(..));
        let idle = (free && managed >= SMALLEST).then_some((self.used, Reverse(managed), id));
        Account { managed, spilled, on_disk, idle }
    }
}

impl State {
    /// Changes what there is of a result, and keeps the figures right.
    pub(super) fn alter(&mut self, id: TaskId, change: impl FnOnce(&mut Task)) {
        if let Some(task) = self.tasks.get_mut(&id) {
            self.memory.alter(id, task, change);
        }
    }

    /// Lets go of a result, wherever it is.
    pub(super) fn put_away(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let disk = task.disk;
        self.memory.alter(id, task, |task| {
            task.value = None;
            task.occupied = 0;
            task.disk = Disk::Nothing;
            task.reading = false;
        });
        match disk {
            Disk::Written(file, _) => self.discard(file),
            Disk::Writing(file) => {
                // Its memory goes whether or not it is written.
                if let Some((_, bytes)) = self.memory.writing.get_mut(&file) {
                    self.memory.leaving -= std::mem::take(bytes);
                }
            }
            Disk::Nothing | Disk::Refused => {}
        }
    }

    fn discard(&mut self, file: FileId) {
        self.out.push(Instruction::Discard(file));
        // A full disk has room again.
        self.memory.refused = None;
    }

    pub(super) fn age(&self) -> u64 {
        self.now >> AGE_BITS
    }

    /// Peers are given these.
    pub(super) fn on_given(&mut self, ids: Vec<TaskId>) {
        let age = self.age();
        for id in ids {
            self.alter(id, |task| task.used = age);
        }
    }

    /// Whether a task's inputs have room beside those of the tasks that run. A task alone has, whatever it needs.
    pub(super) fn fits(&self, spec: &ComputeTask) -> bool {
        if self.memory.limit == 0 || self.executing == 0 {
            return true;
        }
        let bytes = |id| self.tasks.get(&id).filter(|input| input.pins == 0).map_or(0, |input| input.nbytes);
        let has_room = |more: u64| more == 0 || self.memory.pinned.saturating_add(more) <= self.memory.limit;
        // What is named twice needs room once, which is worth looking at only where room is short.
        let sum =
            spec.dependencies.iter().map(|dependency| bytes(dependency.id)).fold(0, u64::saturating_add);
        has_room(sum) || has_room(distinct(spec).into_iter().map(bytes).fold(0, u64::saturating_add))
    }

    /// Whether memory leaves room for a task to start; where it is short, for one at a time.
    pub(super) fn has_memory(&self) -> bool {
        match self.memory.strain {
            Strain::Paused => false,
            Strain::None if self.memory.managed <= self.memory.pause => true,
            _ => self.executing == 0 && self.memory.writing.is_empty(),
        }
    }

    /// A task is about to run: its inputs stay in memory. Those on disk are read; says how many these are.
    pub(super) fn pin_inputs(&mut self, spec: &ComputeTask) -> u32 {
        if self.memory.limit == 0 {
            return 0;
        }
        let (mut all_read, age) = (true, self.age());
        for Dependency { id, .. } in &spec.dependencies {
            let (mut pinned, mut unread) = (0, None);
            self.alter(*id, |task| {
                if task.pins == 0 {
                    pinned = task.nbytes;
                    task.pinned = pinned;
                }
                task.pins += 1;
                task.used = age;
                if let (None, Disk::Written(file, _)) = (&task.value, task.disk) {
                    unread = Some((file, std::mem::replace(&mut task.reading, true)));
                }
            });
            self.memory.pinned += pinned;
            if let Some((file, reading)) = unread {
                all_read = false;
                if !reading {
                    self.out.push(Instruction::Unspill { id: *id, file });
                }
            }
        }
        if all_read {
            return 0;
        }
        let is_read = |id: &TaskId| self.tasks.get(id).is_none_or(|task| !task.reading);
        distinct(spec).iter().filter(|id| !is_read(id)).count() as u32
    }

    /// A task does not run any more.
    pub(super) fn unpin_inputs(&mut self, spec: &ComputeTask) {
        if self.memory.limit == 0 {
            return;
        }
        for dependency in &spec.dependencies {
            let mut pinned = 0;
            self.alter(dependency.id, |task| {
                task.pins -= 1;
                if task.pins == 0 {
                    pinned = std::mem::take(&mut task.pinned);
                    task.close_view();
                }
            });
            self.memory.pinned -= pinned;
        }
    }

    /// One look at what the process occupies.
    pub(super) fn on_memory(&mut self, resident: u64) {
        let memory = &mut self.memory;
        memory.resident = resident;
        memory.excess = 0;
        if resident > memory.spill {
            let wanted = memory.target.min(memory.spill);
            memory.excess = resident.saturating_sub(wanted).saturating_sub(memory.leaving);
        }
        let was = memory.strain;
        let hopeless = self.executing == 0 && memory.writing.is_empty() && !self.can_spill();
        let memory = &mut self.memory;
        memory.strain = match was {
            _ if resident <= memory.pause => Strain::None,
            Strain::None => Strain::Paused,
            Strain::Paused if hopeless => Strain::Stuck,
            strain => strain,
        };
        let now = memory.strain;
        if (was == Strain::Paused) != (now == Strain::Paused) {
            self.send(FromWorker::Paused(now == Strain::Paused));
        }
    }

    /// Why a result finds no place, if it does not: memory is full, and the disk takes nothing.
    pub(super) fn refusal(&self, nbytes: u64) -> Option<TaskError> {
        let memory = &self.memory;
        let Refused { reason, .. } = memory.refused.as_ref()?;
        let bound = memory.pause.min(memory.limit);
        let needed = memory.managed.saturating_add(nbytes).max(memory.resident);
        if nbytes < SMALLEST || needed <= bound {
            return None;
        }
        let text = format!(
            "its result of {nbytes} bytes finds no place: {} bytes of results and {} bytes of its process in all \
             fill the memory of this worker, whose limit is {}, and {reason}; give workers more memory, or name a \
             directory that has room by the setting local-directory",
            memory.managed, memory.resident, memory.limit
        );
        Some(TaskError::new(FailureKind::OutOfMemory, text))
    }

    /// Bytes that may be asked of peers at once, one result at least.
    pub(super) fn incoming_limit(&self) -> u64 {
        if self.memory.limit == 0 { u64::MAX } else { self.memory.limit / 10 }
    }

    /// Checks what must always hold of memory.
    ///
    /// # Panics
    /// If it does not.
    pub(super) fn validate_memory(&self) {
        let (mut sum, mut idle, mut pinned) = (Account::default(), BTreeSet::new(), 0);
        let mut pins = KeyMap::<TaskId, u32>::default();
        for (id, task) in &self.tasks {
            let account = task.account(*id);
            sum.managed += account.managed;
            sum.spilled += account.spilled;
            sum.on_disk += account.on_disk;
            idle.extend(account.idle);
            pinned += task.pinned;
            assert!(!task.reading || matches!(task.disk, Disk::Written(..)), "{id:?}: read from nowhere");
            if let Disk::Writing(file) = task.disk {
                assert_eq!(
                    self.memory.writing.get(&file),
                    Some(&(*id, task.occupied)),
                    "{id:?}: being written"
                );
                assert!(task.value.is_some(), "{id:?} is here while it is written");
            }
            if self.has_inputs_in_hand(task) {
                for dependency in task.spec.iter().flat_map(|spec| &spec.dependencies) {
                    *pins.entry(dependency.id).or_default() += 1;
                }
            }
        }
        let memory = &self.memory;
        let figures = (memory.managed, memory.spilled, memory.on_disk, memory.pinned);
        assert_eq!(figures, (sum.managed, sum.spilled, sum.on_disk, pinned), "bytes held");
        assert_eq!(memory.writes == 0, memory.writing.is_empty(), "batches have results");
        assert_eq!(memory.leaving, memory.writing.values().map(|(_, bytes)| bytes).sum::<u64>());
        if memory.limit > 0 {
            assert_eq!(memory.idle, idle, "what could go");
            for (id, task) in &self.tasks {
                assert_eq!(task.pins, pins.get(id).copied().unwrap_or(0), "{id:?}: pins");
                let unused_view = task.value.is_some() && task.occupied == 0 && task.nbytes > 0;
                assert!(!unused_view || task.pins > 0, "{id:?} is mapped and nobody reads it");
            }
        }
    }

    fn has_inputs_in_hand(&self, task: &Task) -> bool {
        use TaskState::{Executing, LongRunning, Reading};
        let running = |state| matches!(state, Executing | LongRunning | Reading);
        running(task.state) || task.state == TaskState::Cancelled && running(task.previous)
    }
}

/// What a task needs, each once.
fn distinct(spec: &ComputeTask) -> Vec<TaskId> {
    let mut inputs: Vec<TaskId> = spec.dependencies.iter().map(|dependency| dependency.id).collect();
    inputs.sort_unstable();
    inputs.dedup();
    inputs
}

impl Task {
    /// Lets go of what is in memory.
    fn empty(&mut self) {
        self.value = None;
        self.occupied = 0;
    }

    /// A view of a file is opened again when somebody needs it: processes may have only so many.
    fn close_view(&mut self) {
        if matches!(self.disk, Disk::Written(..)) && self.occupied == 0 {
            self.value = None;
        }
    }
}
