//! All that can happen to the scheduler: one function each.

use super::{
    Instruction, Stimulus, TaskState,
    state::{Client, NEVER, State, Worker},
    stealing::is_surprising,
    submit::TOGETHER,
    task::{SCATTERED, TaskRef},
};
use crate::{
    graph::{Key, KeySet},
    protocol::{
        Answer, CREDIBLE, ClientId, Finished, FromClient, FromWorker, Metrics, Query, Scattered, TaskId,
        ToClient, ToWorker, WorkerId, WorkerInfo,
    },
    task::{FailureKind, TaskError},
};

/// Tasks without a worker that are looked at again at a tick, at most.
const RECONSIDERED: usize = 10_000;

/// Instructions that room is made for before there are any, at most.
const MANY: usize = 64;

/// Stimuli of the same turn that are expected while the one before them is handled.
const EXPECTED: usize = 2;

/// How much the latest task counts for a worker's pace, and how slow it can make it look.
const RECENT: f32 = 1.0 / 8.0;
const PACE: f32 = 16.0;

impl State {
    /// Takes in what happened at `now` (nanoseconds of any clock) and says what to do.
    pub fn handle(&mut self, stimulus: Stimulus, now: u64) -> Vec<Instruction> {
        self.handle_many(vec![stimulus], now)
    }

    /// As [`State::handle`], for all that happened in one turn.
    #[inline(never)] // So that instructions can be counted in it.
    pub fn handle_many(&mut self, stimuli: Vec<Stimulus>, now: u64) -> Vec<Instruction> {
        let mut stimuli = stimuli.into_iter();
        while let Some(stimulus) = stimuli.next() {
            for (others, later) in stimuli.as_slice().iter().take(EXPECTED).enumerate() {
                self.expect(later, others);
            }
            self.begin(now);
            match stimulus {
                Stimulus::RemoveWorker { worker, expected } => self.on_remove_worker(worker, expected),
                Stimulus::RemoveClient(client) => self.on_remove_client(client),
                Stimulus::Client(client, message) => self.on_client(client, message),
                Stimulus::Worker(worker, message) => self.on_worker(worker, message),
                Stimulus::Retire(worker) => self.on_retire(worker),
                Stimulus::Tick => self.on_tick(),
            }
            self.settle();
        }
        self.end()
    }

    /// Takes a worker in.
    pub fn add_worker(&mut self, info: WorkerInfo, now: u64) -> (WorkerId, Vec<Instruction>) {
        self.begin(now);
        let ends = info.lifetime.map_or(NEVER, |lifetime| now.saturating_add(lifetime));
        let hosts = self.hosts.len() as u32;
        let host = *self.hosts.entry(info.host.clone()).or_insert(hosts);
        let threads = info.nthreads.max(1);
        let worker = Worker {
            threads,
            info,
            pace: 1.0,
            heard: now,
            since: now,
            ends,
            transient: ends < NEVER,
            ..Worker::default()
        };
        let id = self.workers.add(worker, host);
        self.out.push(Instruction::ToWorker(id, ToWorker::Welcome { worker: id }));
        let hopeful: Vec<TaskRef> = self.no_worker.iter().copied().collect();
        for task in hopeful {
            self.recommend(task, TaskState::Processing);
        }
        (id, self.end())
    }

    /// Takes a client in.
    pub fn add_client(&mut self) -> ClientId {
        let id = self.new_client_id();
        self.clients.insert(id, Client::default());
        id
    }

    fn begin(&mut self, now: u64) {
        self.now = now;
        self.stimulus += 1;
    }

    /// What a turn gives. Room for as much as the turns before gave is made at once for the next; one that gives nothing
    /// leaves it.
    fn give(&mut self) -> Vec<Instruction> {
        if self.out.is_empty() {
            return Vec::new();
        }
        self.usual = self.out.len().clamp(self.usual - self.usual / 8, MANY);
        std::mem::replace(&mut self.out, Vec::with_capacity(self.usual))
    }

    fn end(&mut self) -> Vec<Instruction> {
        self.settle();
        self.refill();
        self.settle();
        self.retire();
        self.balance();
        if std::mem::take(&mut self.any_gone) {
            // Orders to the dead are not to be sent.
            self.out.retain(|told| match told {
                Instruction::ToWorker(worker, _) | Instruction::Introduce(worker, _) => {
                    self.workers.contains(*worker)
                }
                Instruction::ToClient(..) | Instruction::Drop(_) => true,
            });
        }
        #[cfg(debug_assertions)]
        if self.checks.are_due(self.task_count() + self.workers.standing()) {
            self.validate();
        }
        self.give()
    }

    fn on_remove_worker(&mut self, id: WorkerId, expected: bool) {
        let Some(worker) = self.workers.get(id) else { return };
        let name = worker.info.name.clone();
        // Whoever leaves, or was to, does not take its tasks' part.
        let expected = expected || worker.retiring || worker.ends <= self.now;
        let (processing, held) = (self.processed_by(id), self.held_by(id));
        for task in &processing {
            let Some(mut task) = self.task_mut(*task) else { continue };
            // What follows others did not run, as far as is known.
            let id = task.this;
            if !expected && task.waiting_on == 0 {
                let suspicious = &mut task.trouble_mut().suspicious;
                *suspicious = suspicious.saturating_add(1);
            }
            let suspicious = task.trouble().map_or(0, |trouble| trouble.suspicious);
            if u32::from(suspicious) > self.config.allowed_failures {
                let function = self.function_name(id);
                let error = TaskError::new(
                    FailureKind::KilledWorkers,
                    format!("{suspicious} workers died while they ran it, the last one {name}"),
                );
                let key = self.task(id).map(|task| task.cold.key.to_string()).unwrap_or_default();
                self.start_over(id);
                self.fail(
                    id,
                    error.with(|r| (r.function, r.key, r.worker) = (function, key, name.to_string())),
                );
            } else {
                self.start_over(id);
            }
        }
        for task in held {
            self.drop_holder(task, id, None);
        }
        self.workers.remove(id);
        self.queued.give_up(id);
        self.retirement.on_gone(id);
        self.any_gone = true;
        for (other, worker) in self.workers.iter_mut() {
            worker.peers.remove(id);
            if worker.told.may_have_had(id) {
                self.out.push(Instruction::ToWorker(other, ToWorker::PeerGone(id)));
            }
        }
        for (client, known) in &mut self.clients {
            if known.told.remove(id) {
                self.out.push(Instruction::ToClient(*client, ToClient::WorkerGone(id)));
            }
        }
    }

    pub(super) fn function_name(&self, id: TaskRef) -> String {
        let function = self.task(id).and_then(|task| self.functions.get(task.cold.function as usize));
        function.map(|f| f.name.to_string()).unwrap_or_default()
    }

    fn on_remove_client(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.forget_orders(client);
        let wanted: Vec<TaskRef> =
            self.tasks.iter().filter(|task| task.is_wanted_by(client)).map(|task| task.this).collect();
        for id in wanted {
            self.want_no_more(client, id);
        }
    }

    fn want_no_more(&mut self, client: ClientId, id: TaskRef) {
        if let Some(mut task) = self.task_mut(id) {
            task.keep_clients(|wanting| *wanting != client);
            self.reconsider(id);
        }
    }

    fn on_client(&mut self, client: ClientId, message: FromClient) {
        match message {
            FromClient::Submit { graph, wants } => self.on_submit(client, graph, wants),
            FromClient::Release(keys) => {
                for keys in keys.chunks(TOGETHER) {
                    self.tasks.prefetch(keys.iter().copied());
                    let found: Vec<TaskRef> = keys.iter().filter_map(|key| self.tasks.find(*key)).collect();
                    for id in found {
                        self.want_no_more(client, id);
                    }
                    // The first would be out of the caches by the time that the last was looked at.
                    self.settle();
                }
            }
            FromClient::Cancel { keys, force } => self.on_cancel(client, keys, force),
            FromClient::Scattered(data) => self.on_scattered(data),
            FromClient::Missing { id, worker } => self.on_client_missing(client, id, worker),
            FromClient::Ask { id, query: Query::Reserve(keys) } => {
                let ids = keys.into_iter().filter_map(|key| self.reserve(client, key)).collect();
                let answer = ToClient::Answer { id, answer: Answer::Reserved(ids).into() };
                self.out.push(Instruction::ToClient(client, answer));
            }
            FromClient::FireAndForget(keys) => self.on_fire_and_forget(&keys),
            FromClient::Ask { id, query: Query::Limit { name, most } } => {
                self.on_limit(&name, most);
                let answer = ToClient::Answer { id, answer: Answer::Done.into() };
                self.out.push(Instruction::ToClient(client, answer));
            }
            FromClient::Ask { id, query: Query::Replicate { keys, count, workers } } => {
                self.on_replicate((client, id), &keys, count, &workers);
            }
            FromClient::Ask { id, query: Query::Rebalance } => self.on_rebalance(client, id),
            FromClient::Alive => self.out.push(Instruction::ToClient(client, ToClient::Alive)),
            // Questions that change nothing are the server's to answer.
            FromClient::Ask { .. } => {}
        }
    }

    /// Tasks are to be done even if nobody wants their results.
    fn on_fire_and_forget(&mut self, keys: &[Key]) {
        for key in keys {
            let Some(id) = self.tasks.find(*key) else { continue };
            let Some(mut task) = self.task_mut(id) else { continue };
            if !matches!(task.state, TaskState::Memory | TaskState::Erred)
                && !task.is_wanted_by(ClientId::NOBODY)
            {
                task.want(ClientId::NOBODY);
                self.recommend(id, TaskState::Waiting);
            }
        }
    }

    /// Gives tasks up, and with them those that only they could have made possible.
    fn on_cancel(&mut self, client: ClientId, keys: Vec<Key>, force: bool) {
        let mut given_up: Vec<TaskRef> = keys.iter().filter_map(|key| self.tasks.find(*key)).collect();
        let mut seen: KeySet<TaskRef> = given_up.iter().copied().collect();
        while let Some(id) = given_up.pop() {
            let Some(mut task) = self.task_mut(id) else { continue };
            let key = task.cold.key;
            let mut told = smallvec::SmallVec::<[ClientId; 2]>::new();
            task.keep_clients(|wanting| {
                let gone = force || *wanting == client;
                if gone {
                    told.push(*wanting);
                }
                !gone
            });
            let given_up_too = !task.is_wanted();
            for client in told {
                self.out.push(Instruction::ToClient(client, ToClient::Cancelled(key)));
            }
            if let Some(task) = self.task(id).filter(|_| given_up_too) {
                let active = self.tasks.dependents(task).filter(|dependent| dependent.active());
                given_up.extend(
                    active.map(|dependent| dependent.this).filter(|dependent| seen.insert(*dependent)),
                );
            }
            self.reconsider(id);
        }
    }

    fn reserve(&mut self, client: ClientId, key: Key) -> Option<TaskId> {
        if let Some(known) = self.tasks.find(key) {
            return Some(self.task(known)?.id());
        }
        let id = self.tasks.create(key, SCATTERED);
        if let Some(mut task) = self.task_mut(id) {
            task.want(client);
        }
        self.set_state(id, TaskState::Waiting);
        Some(self.task(id)?.id())
    }

    fn on_scattered(&mut self, data: Vec<Scattered>) {
        for Scattered { key, id, nbytes, workers } in data {
            let expected = self.tasks.computation(id).filter(|task| {
                task.cold.key == key && task.cold.function == SCATTERED && task.state == TaskState::Waiting
            });
            let expected = expected.map(|task| task.this);
            let mut alive = workers.into_iter().filter(|w| self.workers.contains(*w)).collect::<Vec<_>>();
            let Some(task) = expected else {
                for worker in alive {
                    self.refuse(worker, id);
                }
                continue;
            };
            match alive.pop() {
                Some(first) => {
                    self.finish(task, first, nbytes.min(CREDIBLE));
                    for worker in alive {
                        self.add_holder(task, worker);
                    }
                    self.keep_copies(task);
                }
                // The holders died before the word of them came.
                None => self.start_over(task),
            }
        }
    }

    fn on_client_missing(&mut self, client: ClientId, id: TaskId, worker: WorkerId) {
        // Of a computation that is over the client has heard, or will.
        let Some(task) = self.tasks.computation(id).map(|task| task.this) else { return };
        self.not_there(task, worker, None);
        if self.task(task).is_some_and(|task| task.state == TaskState::Memory) {
            self.report_memory(client, task, None);
        }
    }

    /// Somebody, some `asker` of the workers, looked for a result where it was said to be and did not find it, or nobody there.
    fn not_there(&mut self, id: TaskRef, worker: WorkerId, asker: Option<WorkerId>) {
        let Some(task) = self.task(id).filter(|task| task.who_has().contains(&worker)) else { return };
        let computation = task.id();
        // Who was asked for a copy is still to get one, and to say so.
        if !self.copies.are_awaited(computation, worker) {
            self.free(worker, computation);
        }
        self.drop_holder(id, worker, asker);
    }

    fn on_worker(&mut self, worker: WorkerId, message: FromWorker) {
        let now = self.now;
        self.prefetch_subject(worker, &message);
        let Some(sender) = self.workers.get_mut(worker) else { return };
        sender.heard = now;
        match message {
            FromWorker::Finished(finished) => self.on_finished(worker, finished),
            FromWorker::Erred { id, error } => self.on_erred(worker, id, error),
            FromWorker::Added(ids) => {
                for id in ids {
                    self.on_added(worker, id);
                }
            }
            FromWorker::Missing { id, holder } => self.on_worker_missing(worker, id, holder),
            FromWorker::LongRunning(id) => self.on_long_running(worker, id),
            FromWorker::Retiring => self.on_retire(worker),
            FromWorker::GaveBack(ids) => self.on_gave_back(worker, ids),
            FromWorker::Kept(ids) => self.on_kept(worker, ids),
            FromWorker::Paused(paused) => self.on_paused(worker, paused),
            FromWorker::Lost(ids) => self.on_lost(worker, ids),
            FromWorker::Fetched(fetches) => self.on_fetched(worker, fetches),
            FromWorker::NotAdded { id, error } => self.on_not_added(worker, id, &error),
            FromWorker::Heartbeat(metrics) => {
                self.hear(worker, metrics, now);
                self.out.push(Instruction::ToWorker(worker, ToWorker::Alive));
            }
            // The server knows what was run, and takes leave when the link ends.
            FromWorker::Ran { .. } | FromWorker::Leaving => {}
        }
    }

    fn on_finished(&mut self, worker: WorkerId, finished: Finished) {
        let Finished { id, nbytes, duration, value } = finished;
        let (nbytes, duration) = (nbytes.min(CREDIBLE), duration.min(CREDIBLE));
        let Some(task) = self.tasks.computation(id).filter(|task| task.is_at(worker)) else {
            return self.refuse(worker, id);
        };
        if task.is_wanted() {
            self.tasks.prefetch_rest(task.this.index);
        }
        self.prefetch_queued(worker);
        let (task, function, estimate) = (task.this, task.cold.function as usize, task.cold.estimate);
        let function = &mut self.functions[function];
        if let Some(usual) = function.duration.filter(|usual| *usual > 0)
            && let Some(worker) = self.workers.get_mut(worker)
        {
            let times = (duration as f32 / usual as f32).min(PACE);
            worker.pace += (times - worker.pace) * RECENT;
        }
        for mean in [&mut function.duration, &mut self.usual_duration] {
            let mean = mean.get_or_insert(duration);
            *mean = (*mean * 7 + duration) / 8;
            self.briefest = self.briefest.min(*mean);
        }
        // Of what is known to be short workers are given more.
        self.queued.stir();
        self.passing = value;
        self.finish(task, worker, nbytes);
        if is_surprising(estimate, duration) {
            let known = self.task(task).map_or(estimate, |task| self.expected_on(worker, task));
            self.on_surprise(worker, estimate, known);
        }
        self.admit(worker);
    }

    /// A worker has a copy of a result.
    fn on_added(&mut self, worker: WorkerId, id: TaskId) {
        match self.tasks.computation(id) {
            Some(task) if task.state == TaskState::Memory => self.is_there(task.this, worker),
            _ => self.refuse(worker, id),
        }
    }

    /// A worker has what nobody needs.
    fn refuse(&mut self, worker: WorkerId, id: TaskId) {
        self.free(worker, id);
    }

    fn on_erred(&mut self, worker: WorkerId, id: TaskId, error: TaskError) {
        let Some(task) = self.tasks.computation(id).filter(|task| task.is_at(worker)) else {
            return;
        };
        let allowed = self.options_of(task).retries;
        let retried = task.trouble().map_or(0, |trouble| trouble.retried);
        let (task, now) = (task.this, self.now);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.since = now;
        }
        // The worker let go of it already.
        self.start_over(task);
        if retried >= allowed {
            return self.fail(task, error);
        }
        if let Some(mut task) = self.task_mut(task) {
            task.trouble_mut().retried += 1;
        }
    }

    fn on_worker_missing(&mut self, asker: WorkerId, id: TaskId, holder: Option<WorkerId>) {
        if let Some(task) = self.tasks.computation(id).map(|task| task.this) {
            if let Some(holder) = holder {
                self.not_there(task, holder, Some(asker));
            }
            // It may have been thought to have it.
            self.drop_holder(task, asker, None);
        }
        let Some(task) = self.tasks.computation(id).map(|task| task.this) else {
            // That computation is over, and what the asker needed it for is taken back. It may have been asked for a copy, too.
            return self.refuse(asker, id);
        };
        let Some(dependency) = self.dependency(task, asker) else { return };
        if !dependency.who_has.is_empty() {
            self.tell_holders(asker, dependency);
        }
    }

    fn on_long_running(&mut self, worker: WorkerId, id: TaskId) {
        let running = self.tasks.computation(id).filter(|task| task.is_at(worker));
        let Some(running) = running.map(|task| task.this) else { return };
        self.set_aside(running);
        // There they would wait for it, and take the place of others that it may be waiting for.
        self.strand_followers(running);
    }

    /// A task counts no more for what its worker has to do.
    pub(super) fn set_aside(&mut self, id: TaskRef) {
        let Some(mut task) = self.task_mut(id).filter(|task| !task.is_long_running()) else { return };
        let (following, booked) = (task.following(), task.booked());
        task.set_long_running(true);
        let Some(worker) = task.worker() else { return };
        self.workers.change(worker, |worker| {
            worker.busy -= 1;
            worker.occupancy -= booked;
            worker.done = worker.done.wrapping_add(booked);
            worker.following -= following;
        });
    }

    fn on_tick(&mut self) {
        self.briefest =
            self.functions.iter().filter_map(|function| function.duration).min().unwrap_or(u64::MAX);
        self.tidy_copies();
        self.set_aside_who_follows_the_overdue();
        self.workers.starve();
        // What would have outlasted all workers may by now be known to be shorter.
        if self.workers.iter().any(|(_, worker)| worker.transient) {
            let hopeful: Vec<TaskRef> = self.no_worker.iter().copied().take(RECONSIDERED).collect();
            for task in hopeful {
                self.recommend(task, TaskState::Processing);
            }
        }
        let silent = self.silent(self.now);
        for worker in silent {
            self.on_remove_worker(worker, false);
            self.out.push(Instruction::Drop(worker));
        }
    }

    /// A worker lives. Nothing that is decided goes by its figures.
    pub(super) fn hear(&mut self, worker: WorkerId, metrics: Metrics, now: u64) {
        if let Some(sender) = self.workers.get_mut(worker) {
            (sender.heard, sender.metrics) = (now, metrics);
        }
    }

    /// Workers that were silent for too long.
    pub(super) fn silent(&self, now: u64) -> Vec<WorkerId> {
        let ttl = self.config.worker_ttl;
        let silent = self.workers.iter().filter(|(_, worker)| now.saturating_sub(worker.heard) > ttl);
        silent.map(|(id, _)| id).collect()
    }

    /// All workers live, but for these.
    pub(super) fn hear_all_but(&mut self, silent: &[WorkerId], now: u64) {
        for (id, worker) in self.workers.iter_mut() {
            worker.heard = if silent.contains(&id) { 0 } else { now };
        }
    }
}
