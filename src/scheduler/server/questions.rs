//! What clients ask that changes nothing the state machine knows, and functions that run outside of the task graph.

use std::{rc::Rc, sync::Arc};

use super::{Server, Stimulus, WorkerLink};
use crate::{
    protocol::{Answer, ClientId, Query, ToClient, ToWorker, WorkerId},
    task::{self, TaskError, Value},
    worker::server::blocking,
};

/// Workers that a client wants gone.
pub(super) struct Retirement {
    client: ClientId,
    question: u64,
    waiting: Vec<WorkerId>,
    left: Vec<Arc<str>>,
}

/// A function running on workers outside of the task graph.
pub(super) struct Run {
    client: ClientId,
    question: u64,
    waiting: Vec<WorkerId>,
    results: Vec<(Arc<str>, std::result::Result<Value, TaskError>)>,
}

impl Server {
    pub(super) fn asked(self: &Rc<Self>, client: ClientId, question: u64, query: Query) {
        // Answers are about all that is known.
        self.turn();
        let state = self.state.borrow();
        let answer = match query {
            Query::WhoHas(keys) => Answer::WhoHas(state.who_has(&keys)),
            Query::HasWhat => Answer::HasWhat(state.has_what()),
            Query::SchedulerInfo => {
                let mut info = state.info();
                info.address.clone_from(&self.address);
                Answer::SchedulerInfo(info)
            }
            Query::Story(key) => Answer::Story(state.story(key)),
            Query::Explain(keys) => Answer::Explained(state.explain(&keys)),
            Query::Run { entry, arguments, workers } => {
                let run = self.next_run.replace(self.next_run.get() + 1);
                let mut waiting = Vec::new();
                for (id, link) in self.workers.borrow().iter() {
                    if workers.is_empty() || workers.iter().any(|w| **w == *link.address) {
                        link.outbox.put(ToWorker::Run { id: run, entry, arguments: arguments.clone() });
                        waiting.push(*id);
                    }
                }
                if !waiting.is_empty() {
                    self.runs
                        .borrow_mut()
                        .insert(run, Run { client, question, waiting, results: Vec::new() });
                    return;
                }
                Answer::Ran(Vec::new())
            }
            Query::RunOnScheduler { entry, arguments } => {
                let server = self.clone();
                tokio::task::spawn_local(async move {
                    let Some(outbox) = server.clients.borrow().get(&client).cloned() else { return };
                    let run = move || task::run(entry, &arguments, Vec::new());
                    let result = blocking(run, outbox.carries_objects).await;
                    let answer = Answer::RanOnScheduler(result).into();
                    outbox.put(ToClient::Answer { id: question, answer });
                });
                return;
            }
            Query::Retire { workers } => {
                drop(state);
                let named =
                    |link: &WorkerLink| workers.iter().any(|w| **w == *link.name || **w == *link.address);
                let waiting: Vec<WorkerId> = {
                    let links = self.workers.borrow();
                    links.iter().filter(|(_, link)| named(link)).map(|(id, _)| *id).collect()
                };
                if !waiting.is_empty() {
                    let stimuli = waiting.iter().map(|id| Stimulus::Retire(*id)).collect();
                    let retirement = Retirement { client, question, waiting, left: Vec::new() };
                    self.retirements.borrow_mut().push(retirement);
                    self.handle_many(stimuli);
                    return;
                }
                Answer::Retired(Vec::new())
            }
            Query::Shutdown { reason } => {
                self.end.now(reason);
                Answer::Done
            }
            // The machine answers these.
            Query::Reserve(_) | Query::Limit { .. } | Query::Replicate { .. } | Query::Rebalance => return,
        };
        if let Some(outbox) = self.clients.borrow().get(&client) {
            outbox.put(ToClient::Answer { id: question, answer: answer.into() });
        }
    }

    /// A worker is gone: whoever wanted it gone is told, once all that it wanted gone are.
    pub(super) fn retired(&self, worker: WorkerId, address: &Arc<str>) {
        let done: Vec<Retirement> = {
            let mut retirements = self.retirements.borrow_mut();
            for retirement in &mut *retirements {
                if let Some(place) = retirement.waiting.iter().position(|w| *w == worker) {
                    retirement.waiting.swap_remove(place);
                    retirement.left.push(address.clone());
                }
            }
            retirements.extract_if(.., |retirement| retirement.waiting.is_empty()).collect()
        };
        for Retirement { client, question, left, .. } in done {
            if let Some(outbox) = self.clients.borrow().get(&client) {
                outbox.put(ToClient::Answer { id: question, answer: Answer::Retired(left).into() });
            }
        }
    }

    /// A worker is done with a function that ran outside of the task graph, or died.
    pub(super) fn ran(&self, run: u64, worker: WorkerId, result: std::result::Result<Value, TaskError>) {
        let mut runs = self.runs.borrow_mut();
        let Some(current) = runs.get_mut(&run) else { return };
        let Some(place) = current.waiting.iter().position(|w| *w == worker) else { return };
        current.waiting.swap_remove(place);
        let address = match self.workers.borrow().get(&worker) {
            Some(link) => link.address.clone(),
            None => format!("worker {}", worker.0).into(),
        };
        current.results.push((address, result));
        if !current.waiting.is_empty() {
            return;
        }
        let Some(done) = runs.remove(&run) else { return };
        if let Some(outbox) = self.clients.borrow().get(&done.client) {
            let wire = |result: std::result::Result<Value, TaskError>| {
                if outbox.carries_objects { result } else { result.and_then(|value| value.to_wire()) }
            };
            let results = done.results.into_iter().map(|(address, r)| (address, wire(r))).collect();
            outbox.put(ToClient::Answer { id: done.question, answer: Answer::Ran(results).into() });
        }
    }
}
