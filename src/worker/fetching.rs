//! Dependencies from peers: who is asked for what, and when.

use smallvec::SmallVec;

use super::{
    Instruction, TaskState,
    state::{Asked, State},
};
use crate::protocol::{CREDIBLE, Dependency, Fetch, FromWorker, TaskId, WorkerId};

/// Peers asked at once.
const GATHERS_AT_ONCE: usize = 50;
/// Bytes asked of a peer in one request, one result at least.
const GATHER_BYTES: u64 = 64 << 20;
/// Fetches that the scheduler is told of at a time.
const FETCHES: usize = 16;

impl State {
    /// Sees to it that a dependency that is not here is fetched.
    pub(super) fn want(&mut self, dependency: &Dependency) {
        let id = dependency.id;
        let task = self.tasks.entry(id).or_default();
        task.nbytes = dependency.nbytes.min(CREDIBLE);
        task.passing = dependency.passing && !task.acquired;
        task.who_has.clear();
        task.who_has.extend_from_slice(&dependency.who_has);
        match task.state {
            // It is being computed: who does so forwards it, or the scheduler says who has it.
            TaskState::Released if task.who_has.is_empty() => self.step(id, TaskState::Fetch),
            TaskState::Released => self.fetch(id, None),
            TaskState::Fetch if task.who_has.is_empty() => {}
            // It was known to be nowhere.
            TaskState::Fetch if task.queued_at.is_none() => self.fetch(id, None),
            TaskState::Cancelled if task.previous == TaskState::Flight => {
                task.previous = TaskState::Released;
                self.step(id, TaskState::Flight);
            }
            _ => {}
        }
    }

    /// Queues a fetch from one of the holders. Where nobody is known to be one, the scheduler is
    /// asked, and told of the holder that `failed`.
    pub(super) fn fetch(&mut self, id: TaskId, failed: Option<WorkerId>) {
        self.step(id, TaskState::Fetch);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // Different results are asked of different holders.
        match task.who_has.get(id.index() % task.who_has.len().max(1)).copied() {
            Some(peer) => {
                task.queued_at = Some(peer);
                self.to_fetch.entry(peer).or_default().push_back(id);
            }
            None => self.send(FromWorker::Missing { id, holder: failed }),
        }
    }

    /// Takes a fetch off the queue of a peer that it waited in.
    pub(super) fn unqueue(&mut self, id: TaskId, peer: Option<WorkerId>) {
        if let Some(queue) = peer.and_then(|peer| self.to_fetch.get_mut(&peer)) {
            queue.retain(|queued| *queued != id);
        }
    }

    /// Nobody here wants it any more.
    pub(super) fn give_up_fetch(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match task.state {
            TaskState::Fetch => {
                let queued_at = task.queued_at.take();
                self.unqueue(id, queued_at);
                self.step(id, TaskState::Released);
            }
            TaskState::Flight => {
                task.previous = TaskState::Flight;
                self.step(id, TaskState::Cancelled);
            }
            _ => {}
        }
    }

    /// Asks peers that are not being asked already.
    pub(super) fn gather(&mut self) {
        self.to_fetch.retain(|_, queue| !queue.is_empty());
        let is_asked = |peer: &&WorkerId| self.asked.iter().any(|asked| asked.peer == **peer);
        let peers: SmallVec<[WorkerId; 8]> =
            self.to_fetch.keys().filter(|peer| !is_asked(peer)).copied().collect();
        let free = GATHERS_AT_ONCE.saturating_sub(self.asked.len());
        for peer in peers.into_iter().take(free) {
            let coming: u64 = self.asked.iter().map(|asked| asked.nbytes).sum();
            let room = self.incoming_limit().saturating_sub(coming);
            let (ids, nbytes) = self.next_request(peer, room, self.asked.is_empty());
            if ids.is_empty() {
                continue;
            }
            for id in &ids {
                if let Some(task) = self.tasks.get_mut(id) {
                    task.queued_at = None;
                }
                self.step(*id, TaskState::Flight);
            }
            self.asked.push(Asked { peer, since: self.now, nbytes });
            self.out.push(Instruction::Gather { peer, ids });
        }
    }

    /// A peer answered with so many bytes.
    pub(super) fn answered(&mut self, peer: WorkerId, nbytes: u64) {
        let asked = self.asked.iter().position(|asked| asked.peer == peer);
        let Some(Asked { since, .. }) = asked.map(|place| self.asked.swap_remove(place)) else { return };
        self.fetched += nbytes;
        // The first time there may have been no connection yet: a small result tells of nothing else then.
        let first = nbytes > 0 && self.met.insert(peer);
        let tells = nbytes > 0 && (!first || nbytes > Fetch::SMALL);
        if tells && self.fetches.len() < FETCHES {
            self.fetches.push(Fetch { from: peer, nbytes, nanos: self.now.saturating_sub(since) });
        }
    }

    /// Takes off a peer's queue as much as one request may ask for and memory has room for, with its bytes; one
    /// result at least where there `must` be one.
    fn next_request(&mut self, peer: WorkerId, room: u64, must: bool) -> (Vec<TaskId>, u64) {
        let (mut ids, mut nbytes) = (Vec::new(), 0u64);
        let Some(queue) = self.to_fetch.get_mut(&peer) else { return (ids, 0) };
        let size = |id: &TaskId| self.tasks.get(id).map_or(0, |task| task.nbytes);
        while let Some(next) = queue.front().map(size) {
            let sum = nbytes.saturating_add(next);
            let fits = if ids.is_empty() { must || sum <= room } else { sum <= room.min(GATHER_BYTES) };
            if !fits {
                break;
            }
            nbytes = sum;
            ids.extend(queue.pop_front());
        }
        (ids, nbytes)
    }
}
