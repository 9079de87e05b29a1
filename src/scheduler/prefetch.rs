//! What is looked at soon is asked for.
//!
//! Of what a scheduler of ten thousand workers looks at hardly anything is in a processor's caches when its turn comes. Whoever
//! loads it there and then waits, and with it all that comes after. To ask for it takes an instruction and waits for nothing:
//! where it is known what comes next, and something else is done until then, that is on its way meanwhile. It changes nothing of
//! what is decided.

use prefetch_index::prefetch_index;

use super::{Stimulus, state::State, transitions::SOON};
use crate::protocol::{FromWorker, WorkerId};

/// Asks for the line of a processor's cache that something begins in.
pub(super) fn prefetch<T>(it: &T) {
    prefetch_index(std::slice::from_ref(it), 0);
}

impl State {
    /// A stimulus has come, and will be handled after so many others: asks for what it will look at. Where that lies is told by
    /// what it looks at before, so it is asked for step by step, with another stimulus handled between two of them: first for
    /// what it is about, then for the neighbours of that, in the end for those of them that can run then.
    pub fn expect(&self, stimulus: &Stimulus, others: usize) {
        let Stimulus::Worker(worker, message) = stimulus else { return };
        match others {
            0 => self.prefetch_followers(message),
            1 => self.prefetch_around(*worker, message),
            _ => self.prefetch_subject(*worker, message),
        }
    }

    /// Asks for what a worker's message is about.
    pub(super) fn prefetch_subject(&self, worker: WorkerId, message: &FromWorker) {
        self.workers.prefetch(worker);
        self.workers.prefetch_rest(worker);
        self.queued.prefetch(worker);
        if let Some(place) = subject(message) {
            self.tasks.prefetch_hot(place);
            self.tasks.prefetch_cold(place);
        }
    }

    fn prefetch_around(&self, worker: WorkerId, message: &FromWorker) {
        if let FromWorker::Fetched(fetches) = message {
            self.prefetch_peers(worker, fetches.iter().take(SOON).map(|fetch| fetch.from));
        }
        if let Some(task) = subject(message).and_then(|place| self.tasks.at(place)) {
            self.prefetch_neighbours(task);
        }
    }

    fn prefetch_followers(&self, message: &FromWorker) {
        let FromWorker::Finished(finished) = message else { return };
        let Some(task) = self.tasks.at(finished.id.index() as u32) else { return };
        for follower in self.tasks.last_waiting(task) {
            self.tasks.prefetch_cold(follower.this.index);
            self.tasks.prefetch_rest(follower.this.index);
        }
    }
}

/// Where the task is that a worker's message is about.
fn subject(message: &FromWorker) -> Option<u32> {
    let id = match message {
        FromWorker::Finished(finished) => finished.id,
        FromWorker::Added(ids) => *ids.first()?,
        _ => return None,
    };
    Some(id.index() as u32)
}
