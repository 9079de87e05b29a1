//! A worker's disk: one write or read after the other, at the rate of a middling SSD.

use std::collections::BTreeMap;

use rankine::{task::Value, worker::FileId};

/// Bytes a second.
const RATE: u64 = 500_000_000;

#[derive(Default)]
pub(crate) struct Disk {
    files: BTreeMap<FileId, Value>,
    busy_until: u64,
}

impl Disk {
    /// When these will be written.
    pub(crate) fn write(&mut self, batch: &[(FileId, Value)], now: u64) -> u64 {
        self.takes(batch.iter().map(|(_, value)| value.nbytes()).sum(), now)
    }

    /// Something was written; gives the bytes it takes.
    pub(crate) fn keep(&mut self, file: FileId, value: Value) -> u64 {
        let nbytes = value.nbytes();
        self.files.insert(file, value);
        nbytes
    }

    /// When a file will have been read, and what is in it.
    pub(crate) fn read(&mut self, file: FileId, now: u64) -> (u64, Value) {
        let value = self.files[&file].clone();
        (self.takes(value.nbytes(), now), value)
    }

    pub(crate) fn get(&self, file: FileId) -> Option<&Value> {
        self.files.get(&file)
    }

    pub(crate) fn remove(&mut self, file: FileId) {
        self.files.remove(&file);
    }

    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }

    fn takes(&mut self, nbytes: u64, now: u64) -> u64 {
        let nanos = u128::from(nbytes) * 1_000_000_000 / u128::from(RATE);
        self.busy_until = self.busy_until.max(now) + nanos as u64;
        self.busy_until
    }
}
