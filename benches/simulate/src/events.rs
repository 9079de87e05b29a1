//! What will happen, the next first.

use std::{cmp::Reverse, collections::BinaryHeap};

use rankine::{
    protocol::{ClientId, FromClient, FromWorker, TaskId, ToClient, ToWorker},
    task::Value,
    worker::{Execution, FileId},
};

use crate::setting::Fault;

/// Something that happens. Workers go by the scheduler's numbers.
#[derive(Debug)]
pub(crate) enum Event {
    /// The scheduler looks at what came.
    Turn,
    /// The scheduler's clock.
    Tick,
    /// A worker says that it is there.
    Heartbeat(usize),
    /// A worker's words arrive at the scheduler.
    WorkerSays(usize, Vec<FromWorker>),
    /// The scheduler's words arrive at a worker.
    WorkerHears(usize, Vec<ToWorker>),
    /// A client's words arrive at the scheduler.
    ClientSays(ClientId, FromClient),
    /// The scheduler's words arrive at a client.
    ClientHears(ClientId, Vec<ToClient>),
    /// A worker's reports have waited long enough.
    Report(usize),
    /// A result arrives that its maker sent unasked.
    Forwarded(usize, TaskId, Value),
    /// Results are on a worker's disk.
    Written(usize, Vec<(FileId, Value)>),
    /// A result was read from a worker's disk.
    Read { worker: usize, id: TaskId, file: FileId, value: Value },
    /// A thread of a worker is done with a task.
    Executed(usize, Box<Execution>, u64),
    /// A worker's request for results arrives at a peer.
    Asked { asker: usize, peer: usize, ids: Vec<TaskId> },
    /// Results arrive.
    Gathered { asker: usize, peer: usize, data: Vec<(TaskId, Option<Value>)> },
    /// A peer did not answer.
    GatherFailed { asker: usize, peer: usize, ids: Vec<TaskId> },
    /// The scheduler notices that a worker is gone.
    Parted(usize, bool),
    /// A client submits.
    Submits(usize),
    /// A client cancels.
    Cancels(usize),
    /// What was planned.
    Fault(Fault),
}

impl Event {
    /// Whether it happens again and again, whatever else does.
    fn is_periodic(&self) -> bool {
        matches!(self, Self::Tick | Self::Heartbeat(_))
    }
}

/// Events in the order of their times; of the same time, in the order in which they were planned.
#[derive(Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    /// Those that are not periodic.
    pending: usize,
}

struct Planned {
    at: u64,
    number: u64,
    event: Event,
}

impl Events {
    pub(crate) fn plan(&mut self, at: u64, event: Event) {
        self.pending += usize::from(!event.is_periodic());
        self.planned += 1;
        self.heap.push(Reverse(Planned { at, number: self.planned, event }));
    }

    pub(crate) fn next(&mut self) -> Option<(u64, Event)> {
        let Reverse(Planned { at, event, .. }) = self.heap.pop()?;
        self.pending -= usize::from(!event.is_periodic());
        Some((at, event))
    }

    /// Whether nothing will happen but what happens anyway.
    pub(crate) fn are_quiet(&self) -> bool {
        self.pending == 0
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Planned {}
