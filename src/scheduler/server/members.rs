//! The links to workers and clients, from their coming, or coming back, to their end.

use std::{rc::Rc, sync::Arc};

use super::{Deaths, Server, Stimulus, WorkerLink};
use crate::{
    Error, Result,
    link::{Inbox, Outbox},
    protocol::{ClientId, FromClient, FromWorker, Numbered, ToClient, ToWorker, WorkerId, WorkerInfo},
    scheduler::journal::Noted,
    task::TaskError,
};

impl Server {
    pub(super) async fn worker(
        self: Rc<Self>,
        outbox: Outbox<ToWorker>,
        inbox: Inbox<FromWorker>,
        info: WorkerInfo,
    ) -> Result<()> {
        if self.ending.get() {
            outbox.put(ToWorker::Close { reason: self.end.reason() });
            outbox.closed().await;
            return Ok(());
        }
        let (name, address, now) = (info.name.clone(), info.address.clone(), self.now());
        tracing::info!(%name, %address, threads = info.nthreads, "a worker joins");
        self.note(|journal| journal.note(now, &Noted::Worker(&info)));
        let (id, instructions) = self.state.borrow_mut().add_worker(info, now);
        let link = WorkerLink { outbox, name, address, cut: Arc::default() };
        self.workers.borrow_mut().insert(id, link);
        self.obey(instructions);
        self.serve_worker(id, inbox, 0).await
    }

    /// Takes a worker back in that is known from before this scheduler was restored.
    pub(super) async fn returning_worker(
        self: Rc<Self>,
        outbox: Outbox<ToWorker>,
        inbox: Inbox<FromWorker>,
        id: WorkerId,
        received: u64,
    ) -> Result<()> {
        let absent = self.expected.borrow_mut().workers.remove(&id);
        let known = self.state.borrow().name_and_address(id);
        let (Some(mut absent), Some((name, address)), false) = (absent, known, self.ending.get()) else {
            let reason = format!("worker {} is not, or not any more, expected back", id.0);
            outbox.put(ToWorker::Close { reason: reason.clone() });
            outbox.closed().await;
            return Err(Error::Refused { peer: format!("worker {}", id.0), reason });
        };
        if !absent.kept.received(received) {
            self.handle(Stimulus::RemoveWorker { worker: id, expected: true });
            return Err(Error::closed(format!("{name} knows another past than the journal")));
        }
        tracing::info!(%name, %address, "a worker is back");
        outbox.put(ToWorker::Resumed { noted: absent.noted });
        absent.kept.iter().for_each(|message| outbox.put(message.clone()));
        let link = WorkerLink { outbox, name, address, cut: Arc::default() };
        self.workers.borrow_mut().insert(id, link);
        self.serve_worker(id, inbox, absent.noted).await
    }

    /// Serves a worker until its link ends. Of its numbered messages the journal has `noted` already.
    pub(super) async fn serve_worker(
        self: Rc<Self>,
        id: WorkerId,
        mut inbox: Inbox<FromWorker>,
        mut noted: u64,
    ) -> Result<()> {
        let (outbox, worker, address, cut) = {
            let workers = self.workers.borrow();
            let Some(link) = workers.get(&id) else { return Ok(()) };
            (link.outbox.clone(), link.name.clone(), link.address.clone(), link.cut.clone())
        };
        let mut leaving = false;
        let ended = loop {
            let received = tokio::select! {
                received = inbox.recv() => received,
                () = cut.notified() => Err(Error::closed("it was silent for too long")),
            };
            match received {
                Ok(Some(messages)) => {
                    let mut stimuli = Vec::with_capacity(messages.len());
                    for message in messages {
                        noted += u64::from(message.is_numbered());
                        match message {
                            FromWorker::Ran { id: run, result } => self.ran(run, id, result),
                            FromWorker::Leaving => leaving = true,
                            FromWorker::Heartbeat(metrics) => {
                                let now = self.now();
                                self.state.borrow_mut().hear(id, metrics, now);
                                outbox.put(ToWorker::Alive);
                            }
                            message => stimuli.push(Stimulus::Worker(id, message)),
                        }
                    }
                    if stimuli.is_empty() {
                        continue;
                    }
                    if !self.journals() {
                        self.hear(stimuli);
                        continue;
                    }
                    self.handle_many(stimuli);
                    if self.journals() {
                        outbox.put(ToWorker::Noted(Some(noted)));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        tracing::info!(%address, leaving, "a worker is gone");
        if let (Deaths::EndAll(advice), Err(error), false) = (self.deaths, &ended, leaving) {
            self.end.now(Some(format!("{worker} died ({error}); {advice}")));
        }
        // What follows from what it said last may be for itself.
        self.turn();
        self.workers.borrow_mut().remove(&id);
        outbox.close();
        self.handle(Stimulus::RemoveWorker { worker: id, expected: leaving });
        self.retired(id, &address);
        let runs: Vec<u64> = self.runs.borrow().keys().copied().collect();
        for run in runs {
            self.ran(run, id, Err(TaskError::refused(format!("worker {address} died while it ran"))));
        }
        ended
    }

    /// Serves a client. One that `observes` may be another executable: it asks, and changes nothing.
    pub(super) async fn client(
        self: Rc<Self>,
        outbox: Outbox<ToClient>,
        inbox: Inbox<FromClient>,
        observes: bool,
    ) -> Result<()> {
        if self.ending.get() {
            outbox.put(ToClient::Closing { reason: self.end.reason() });
            outbox.closed().await;
            return Ok(());
        }
        let now = self.now();
        self.note(|journal| journal.note(now, &Noted::Client));
        let id = self.state.borrow_mut().add_client();
        outbox.put(ToClient::Welcome { client: id });
        self.clients.borrow_mut().insert(id, outbox);
        self.serve_client(id, inbox, observes, 0).await
    }

    /// Takes a client back in that is known from before this scheduler was restored.
    pub(super) async fn returning_client(
        self: Rc<Self>,
        outbox: Outbox<ToClient>,
        inbox: Inbox<FromClient>,
        id: ClientId,
        received: u64,
    ) -> Result<()> {
        let absent = self.expected.borrow_mut().clients.remove(&id);
        let Some(mut absent) = absent.filter(|_| !self.ending.get()) else {
            let reason = format!("client {} is not, or not any more, expected back", id.0);
            outbox.put(ToClient::Closing { reason: reason.clone() });
            outbox.closed().await;
            return Err(Error::Refused { peer: format!("client {}", id.0), reason });
        };
        if !absent.kept.received(received) {
            self.handle(Stimulus::RemoveClient(id));
            return Err(Error::closed(format!("client {} knows another past than the journal", id.0)));
        }
        tracing::info!(client = id.0, "a client is back");
        outbox.put(ToClient::Resumed { noted: absent.noted });
        absent.kept.iter().for_each(|message| outbox.put(Self::sendable(message.clone(), &outbox)));
        self.clients.borrow_mut().insert(id, outbox);
        self.serve_client(id, inbox, false, absent.noted).await
    }

    pub(super) async fn serve_client(
        self: Rc<Self>,
        id: ClientId,
        mut inbox: Inbox<FromClient>,
        observes: bool,
        mut noted: u64,
    ) -> Result<()> {
        let Some(outbox) = self.clients.borrow().get(&id).cloned() else { return Ok(()) };
        let ended = loop {
            match inbox.recv().await {
                Ok(Some(messages)) => {
                    let before = noted;
                    for message in messages {
                        noted += u64::from(message.is_numbered());
                        match message {
                            FromClient::Alive => outbox.put(ToClient::Alive),
                            message if observes && !message.only_looks() => {
                                tracing::warn!(client = id.0, "an observer wants to change something");
                            }
                            FromClient::Ask { id: question, query } if !query.is_for_the_machine() => {
                                self.asked(id, question, query);
                            }
                            message => self.handle(Stimulus::Client(id, message)),
                        }
                    }
                    if noted > before && self.journals() {
                        outbox.put(ToClient::Noted(Some(noted)));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.clients.borrow_mut().remove(&id);
        outbox.close();
        self.handle(Stimulus::RemoveClient(id));
        ended
    }
}
