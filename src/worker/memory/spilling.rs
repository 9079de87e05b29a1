//! Results that go to disk, and come back.
//!
//! What goes from one turn is written in batches, a few at a time. One that was read back leaves its file where it is, so
//! that it goes again without being written again.

use super::{FileId, Memory, Refused, State};
use crate::{
    protocol::{FromWorker, TaskId},
    task::Value,
    worker::{Instruction, SpillError, TaskState, state::Disk},
};

/// Batches of results written at once, so that while one is compressed the disk has another one to write.
const WRITES: usize = 3;
/// Bytes from which on a batch is full, and results that it has at most. A file system does for many files at once what
/// it takes for one to last.
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_LENGTH: usize = 64;
/// Nanoseconds until a disk that refused a result is tried again.
const RETRY: u64 = 2_000_000_000;

impl Memory {
    /// Bytes that are to leave memory.
    fn over(&self) -> u64 {
        self.managed.saturating_sub(self.leaving).saturating_sub(self.target).max(self.excess)
    }

    /// Whether the disk may be tried at `now`.
    fn writable(&self, now: u64) -> bool {
        self.refused.as_ref().is_none_or(|refused| refused.again <= now)
    }

    /// A result that is being written is not waited for any more.
    fn end_writing(&mut self, file: FileId) -> Option<TaskId> {
        let (id, bytes) = self.writing.remove(&file)?;
        self.leaving -= bytes;
        Some(id)
    }
}

impl State {
    pub(super) fn can_spill(&self) -> bool {
        self.memory.over() > 0 && self.next_to_go().is_some()
    }

    /// The next result to go. To one with a file a disk that refuses is no matter.
    fn next_to_go(&self) -> Option<TaskId> {
        let writable = self.memory.writable(self.now);
        let filed = |id: &TaskId| self.file(*id).is_some();
        self.memory.idle.iter().map(|(.., id)| *id).find(|id| writable || filed(id))
    }

    /// Spills what is to leave memory.
    pub(in crate::worker) fn spill(&mut self) {
        while self.memory.writes < WRITES {
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            self.memory.writes += 1;
            self.out.push(Instruction::Spill(batch));
        }
    }

    /// Lets go of what has a file until something is to be written, and gives that.
    fn next_batch(&mut self) -> Vec<(FileId, Value)> {
        let (mut batch, mut together) = (Vec::new(), 0);
        while self.memory.over() > 0 && together < BATCH_BYTES && batch.len() < BATCH_LENGTH {
            let Some(id) = self.next_to_go() else { break };
            let file = FileId(self.memory.files);
            let (mut bytes, mut value) = (0, None);
            self.alter(id, |task| {
                bytes = task.occupied;
                if let Disk::Written(..) = task.disk {
                    task.empty();
                } else {
                    task.disk = Disk::Writing(file);
                    value = task.value.clone();
                }
            });
            self.memory.excess = self.memory.excess.saturating_sub(bytes);
            if let Some(value) = value {
                self.memory.files += 1;
                self.memory.leaving += bytes;
                self.memory.writing.insert(file, (id, bytes));
                together += bytes;
                batch.push((file, value));
            }
        }
        batch
    }

    pub(in crate::worker) fn on_spilled(&mut self, files: Vec<(FileId, Result<u64, SpillError>)>) {
        self.memory.writes -= 1;
        // A disk that took some of a batch and refused others is one that refuses.
        let (written, refused): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|(_, written)| written.is_ok());
        for (file, written) in written.into_iter().chain(refused) {
            match written {
                Ok(on_disk) => self.written(file, on_disk),
                Err(error) => self.not_written(file, error),
            }
        }
    }

    fn written(&mut self, file: FileId, on_disk: u64) {
        let Some(id) = self.memory.end_writing(file) else { return };
        self.memory.refused = None;
        if self.tasks.get(&id).is_none_or(|task| task.disk != Disk::Writing(file)) {
            // It was freed meanwhile.
            return self.discard(file);
        }
        self.alter(id, |task| {
            task.disk = Disk::Written(file, on_disk);
            if task.pins == 0 {
                task.empty();
            }
        });
    }

    fn not_written(&mut self, file: FileId, error: SpillError) {
        let Some(id) = self.memory.end_writing(file) else { return };
        let disk = match error {
            SpillError::Value(error) => {
                tracing::debug!(?id, %error, "a result stays in memory");
                Disk::Refused
            }
            SpillError::Disk(reason) => {
                if self.memory.refused.is_none() {
                    tracing::warn!(reason, "cannot spill results to disk; they stay in memory");
                }
                self.memory.refused = Some(Refused { again: self.now.saturating_add(RETRY), reason });
                Disk::Nothing
            }
        };
        if self.tasks.get(&id).is_some_and(|task| task.disk == Disk::Writing(file)) {
            self.alter(id, |task| task.disk = disk);
        }
    }

    pub(in crate::worker) fn on_unspilled(&mut self, id: TaskId, file: FileId, value: Value, occupied: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if !task.reading || self.file(id) != Some(file) {
            return;
        }
        self.alter(id, |task| {
            task.reading = false;
            (task.value, task.occupied) = (Some(value), occupied);
            if task.pins == 0 {
                task.close_view();
            }
        });
        for dependent in self.dependents(id) {
            let Some(task) = self.tasks.get_mut(&dependent) else { continue };
            if task.state == TaskState::Reading {
                task.missing -= 1;
                if task.missing == 0
                    && let Some(spec) = task.spec.clone()
                {
                    self.launch(&spec);
                }
            }
        }
    }

    /// A file cannot be read: without a copy in memory the result is gone from here.
    pub(in crate::worker) fn on_unspill_failed(&mut self, id: TaskId, file: FileId) {
        if self.file(id) != Some(file) {
            return;
        }
        self.discard(file);
        let in_memory = self.tasks.get(&id).is_some_and(|task| task.value.is_some() && task.occupied > 0);
        if in_memory {
            return self.alter(id, |task| task.disk = Disk::Nothing);
        }
        self.alter(id, |task| {
            task.disk = Disk::Nothing;
            // Should it come again, it is asked for, and the scheduler hears of it.
            task.passing = false;
            task.empty();
            task.reading = false;
        });
        self.step(id, TaskState::Released);
        self.send(FromWorker::Lost(vec![id]));
        self.miss(id);
        self.forget_if_idle(id);
    }
}
