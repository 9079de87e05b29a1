//! What a worker occupies: results go to disk and come back, and its memory is watched.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::time;

use super::{Allowance, Server};
use crate::{
    Error,
    protocol::TaskId,
    task::Value,
    worker::{FileId, SpillError, Stimulus, directory::remove_left_behind, resident::resident},
};

/// How often a worker looks at its memory.
const LOOK: Duration = Duration::from_millis(100);
/// How often it gives memory back that nobody uses, at most: that costs some milliseconds.
const GIVING_BACK: Duration = Duration::from_millis(500);

impl Server {
    /// Reads a result from disk; one that cannot be read is none any more.
    pub(super) async fn read(self: &Rc<Self>, id: TaskId, file: FileId, touch: bool) -> Option<(Value, u64)> {
        let _turn = self.reads.acquire().await.ok()?;
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.read(file, touch)).await;
        match read.unwrap_or_else(|ending| Err(std::io::Error::other(ending))) {
            Ok(read) => Some((read.value, read.occupied)),
            Err(error) => {
                // What was freed meanwhile nobody misses.
                if self.state.borrow().file(id) == Some(file) {
                    tracing::warn!(?id, %error, "a result cannot be read back from disk");
                    self.handle(vec![Stimulus::UnspillFailed { id, file }]);
                }
                None
            }
        }
    }

    pub(super) async fn unspill(self: Rc<Self>, id: TaskId, file: FileId) {
        if let Some((value, occupied)) = self.read(id, file, false).await {
            self.handle(vec![Stimulus::Unspilled { id, file, value, occupied }]);
        }
    }

    pub(super) async fn spill(self: Rc<Self>, batch: Vec<(FileId, Value)>) {
        let (store, files) = (self.store.clone(), batch.iter().map(|(file, _)| *file).collect::<Vec<_>>());
        let written = tokio::task::spawn_blocking(move || store.write(batch)).await;
        let written = written.unwrap_or_else(|ending| {
            let error = SpillError::Disk(ending.to_string());
            files.into_iter().map(|file| (file, Err(error.clone()))).collect()
        });
        self.handle(vec![Stimulus::Spilled(written)]);
    }

    /// Bytes of memory that are this worker's.
    pub(super) fn occupied(&self) -> u64 {
        let process = resident().saturating_sub(self.peers.borrowed());
        self.part.borrow_mut().of(process, self.state.borrow().metrics().managed)
    }

    /// Looks at the memory again and again. Ends only where it runs out and the worker is to end for that.
    pub(super) async fn watch_memory(self: Rc<Self>, allowance: Allowance) -> Error {
        let Allowance { limit, thresholds, directory, expendable } = allowance;
        if limit == 0 {
            return std::future::pending().await;
        }
        let place = directory.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = remove_left_behind(&place) {
                tracing::debug!(?place, %error, "cannot look for what dead processes left");
            }
        });
        let above = |share: Option<f64>, bytes: u64| share.is_some_and(|s| bytes as f64 > s * limit as f64);
        let lowest = thresholds.spill.or(thresholds.pause).or(thresholds.terminate);
        let (mut look, mut given_back) = (time::interval(LOOK), None::<Instant>);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let mut resident = self.occupied();
            let ends = expendable && above(thresholds.terminate, resident);
            if ends || above(lowest, resident) && given_back.is_none_or(|at| at.elapsed() > GIVING_BACK) {
                // What nobody uses is no reason for anything.
                let _ = tokio::task::spawn_blocking(rankine_transport::give_back).await;
                given_back = Some(Instant::now());
                resident = self.occupied();
            }
            if ends && above(thresholds.terminate, resident) {
                let managed = self.state.borrow().metrics().managed;
                return Error::Memory { resident, managed, limit };
            }
            self.handle(vec![Stimulus::Memory { resident }]);
        }
    }
}
