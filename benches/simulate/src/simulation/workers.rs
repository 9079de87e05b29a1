//! What workers do, and what becomes of them.

use rankine::{
    protocol::{FromWorker, TaskId, ToWorker, WorkerId, WorkerInfo},
    scheduler::Stimulus,
    task::Value,
    worker::{self, FileId, Input},
};

use super::{Simulation, number};
use crate::{
    Network, Policy, Problem,
    events::Event,
    network::Link,
    node::{Life, Node},
    recording::Noted,
    setting::Fault,
};

/// Nanoseconds between a worker's signs of life, as in the real server.
const HEARTBEAT: u64 = 500_000_000;

impl<P: Policy> Simulation<'_, P> {
    pub(super) fn join(&mut self) {
        let number = self.nodes.len();
        let name: std::sync::Arc<str> = format!("w{number}").into();
        let share = |count: u32| count.max(1) as usize;
        let Network { per_node, per_process, .. } = self.setting.network;
        let (per_node, per_process) = (share(per_node), share(per_process));
        let info = WorkerInfo {
            name: name.clone(),
            address: name.clone(),
            contact: name.clone(),
            nthreads: self.setting.threads,
            memory_limit: self.setting.memory_limit,
            resources: vec![],
            pid: (number / per_process) as u32,
            host: format!("node{}", number / per_node).into(),
            lifetime: None,
        };
        if let Some(recording) = &mut self.recording {
            recording.note(self.now, &Noted::Join(&info));
        }
        let (id, instructions) = self.policy.add_worker(info, self.now);
        assert_eq!(id.0 as usize, number, "workers are numbered as they come");
        self.nodes.push(Node::new(self.setting, self.setting.slowness_of(number)));
        self.links.push(Link::default());
        self.outboxes.push(Vec::new());
        self.obey(1, instructions);
        // Not all at the same time.
        let first = HEARTBEAT * (number as u64 % 1000) / 1000;
        self.events.plan(self.now + first, Event::Heartbeat(number));
    }

    pub(super) fn heartbeat(&mut self, worker: usize) {
        if self.nodes[worker].is_up() {
            let machine = &mut self.nodes[worker].machine;
            let fetches = machine.take_fetches();
            let fetched = (!fetches.is_empty()).then_some(FromWorker::Fetched(fetches));
            let beat = FromWorker::Heartbeat(machine.metrics());
            self.worker_says(worker, fetched.into_iter().chain([beat]).collect());
            self.events.plan(self.now + HEARTBEAT, Event::Heartbeat(worker));
            if self.setting.memory_limit > 0 {
                let resident = self.nodes[worker].nbytes + self.setting.memory_limit / 10;
                self.work(worker, worker::Stimulus::Memory { resident });
            }
        }
    }

    /// Reports have waited for others long enough, if none of them was sent meanwhile.
    pub(super) fn report(&mut self, worker: usize) {
        let node = &mut self.nodes[worker];
        node.alarm = None;
        if node.machine.reports_due().is_some_and(|due| due <= self.now) {
            self.work(worker, worker::Stimulus::Report);
        } else {
            self.see_to_reports(worker);
        }
    }

    /// Sees to it that reports are sent, should nothing happen here.
    fn see_to_reports(&mut self, worker: usize) {
        let node = &mut self.nodes[worker];
        let Some(due) = node.machine.reports_due() else { return };
        if node.alarm.is_none_or(|alarm| due < alarm) {
            node.alarm = Some(due);
            self.events.plan(due.max(self.now), Event::Report(worker));
        }
    }

    fn worker_says(&mut self, worker: usize, words: Vec<FromWorker>) {
        let arrival = self.now + self.setting.network.latency;
        self.events.plan(arrival, Event::WorkerSays(worker, words));
    }

    pub(super) fn worker_hears(&mut self, worker: usize, words: Vec<ToWorker>) {
        let node = &mut self.nodes[worker];
        if !node.is_up() {
            return;
        }
        let before = node.nbytes;
        let (instructions, leaves) = node.hear(words, self.now);
        self.nbytes = self.nbytes - before + node.nbytes;
        self.follow(worker, instructions);
        if leaves {
            self.part(worker, true);
        }
    }

    /// Something happens to a worker.
    pub(super) fn work(&mut self, worker: usize, stimulus: worker::Stimulus) {
        let node = &mut self.nodes[worker];
        if !node.is_up() {
            return;
        }
        let before = node.nbytes;
        let instructions = node.react(vec![stimulus], self.now);
        self.nbytes = self.nbytes - before + node.nbytes;
        self.outcome.peak = self.outcome.peak.max(self.nbytes);
        self.follow(worker, instructions);
    }

    /// Does what a worker wants done.
    fn follow(&mut self, worker: usize, instructions: Vec<worker::Instruction>) {
        let mut words = Vec::new();
        for instruction in instructions {
            match instruction {
                worker::Instruction::Execute(execution) => self.execute(worker, execution),
                worker::Instruction::Gather { peer, ids } => {
                    let peer = peer.0 as usize;
                    let arrival = self.now + self.setting.network.reach(worker, peer);
                    self.events.plan(arrival, Event::Asked { asker: worker, peer, ids });
                }
                worker::Instruction::Send(word) => {
                    if let FromWorker::GaveBack(ids) = &word
                        && !self.nodes[worker].machine.is_retiring()
                    {
                        self.outcome.steals += ids.len() as u64;
                    }
                    if let FromWorker::Paused(paused) = word {
                        self.nodes[worker].paused = paused;
                    }
                    words.push(word);
                }
                worker::Instruction::Forward { peer, id, value } => {
                    let peer = peer.0 as usize;
                    self.outcome.forwarded += 1;
                    self.outcome.moved += value.nbytes();
                    let arrival =
                        self.setting.network.send(&mut self.links, worker, peer, value.nbytes(), self.now);
                    self.events.plan(arrival, Event::Forwarded(peer, id, value));
                }
                worker::Instruction::Spill(batch) => {
                    self.outcome.spilled += batch.len() as u64;
                    let at = self.nodes[worker].disk.write(&batch, self.now);
                    self.events.plan(at, Event::Written(worker, batch));
                }
                worker::Instruction::Unspill { id, file } => {
                    let (at, value) = self.nodes[worker].disk.read(file, self.now);
                    self.events.plan(at, Event::Read { worker, id, file, value });
                }
                worker::Instruction::Discard(file) => self.nodes[worker].disk.remove(file),
                // Here each task is told of as soon as it is done, brief or not.
                worker::Instruction::Hasten(_) => {}
            }
        }
        if !words.is_empty() {
            self.worker_says(worker, words);
        }
        self.see_to_reports(worker);
    }

    fn execute(&mut self, worker: usize, execution: worker::Execution) {
        if let Some((at, event)) = self.nodes[worker].run(worker, execution, self.problem, self.now) {
            self.events.plan(at, event);
        }
    }

    pub(super) fn executed(&mut self, worker: usize, execution: worker::Execution, duration: u64) {
        if !self.nodes[worker].is_up() {
            return;
        }
        self.outcome.executed += 1;
        let task = Problem::task_of(&execution.task.arguments);
        let inputs = execution.inputs.iter().cloned().filter_map(Input::value);
        let dependencies = inputs.map(|value| number(&value));
        let value = self.problem.result(task, Problem::evaluate(task, dependencies));
        let (id, nbytes) = (execution.task.id, value.nbytes());
        for next in self.nodes[worker].next(id, &value) {
            self.execute(worker, next);
        }
        self.work(worker, worker::Stimulus::Executed { id, result: Ok(value), nbytes, duration });
    }

    pub(super) fn asked(&mut self, asker: usize, peer: usize, ids: Vec<TaskId>) {
        let node = &self.nodes[peer];
        match node.life {
            Life::Up => {
                let data: Vec<_> = ids.iter().map(|id| (*id, node.given(*id).cloned())).collect();
                self.work(peer, worker::Stimulus::Given(ids));
                let nbytes = data.iter().flat_map(|(_, found)| found).map(Value::nbytes).sum();
                self.outcome.moved += nbytes;
                let arrival = self.setting.network.send(&mut self.links, peer, asker, nbytes, self.now);
                self.events.plan(arrival, Event::Gathered { asker, peer, data });
            }
            Life::Vanished => {
                self.events.plan(self.now + self.setting.patience, Event::GatherFailed { asker, peer, ids });
            }
            Life::Gone => {
                let arrival = self.now + self.setting.network.reach(peer, asker);
                self.events.plan(arrival, Event::GatherFailed { asker, peer, ids });
            }
        }
    }

    pub(super) fn gathered(&mut self, asker: usize, peer: usize, data: Vec<(TaskId, Option<Value>)>) {
        if !self.nodes[peer].is_up() {
            // It went while it sent.
            let ids = data.into_iter().map(|(id, _)| id).collect();
            let stimulus = worker::Stimulus::GatherFailed { peer: WorkerId(peer as u32), ids };
            return self.work(asker, stimulus);
        }
        let data = data.into_iter().map(|(id, found)| (id, found.map(Ok))).collect();
        self.work(asker, worker::Stimulus::Gathered { peer: WorkerId(peer as u32), data });
    }

    /// A worker ends; the scheduler hears of it after all that the worker said before.
    fn part(&mut self, worker: usize, expected: bool) {
        let node = &mut self.nodes[worker];
        node.life = Life::Gone;
        self.nbytes -= std::mem::take(&mut node.nbytes);
        self.events.plan(self.now + self.setting.network.latency, Event::Parted(worker, expected));
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        let stay = |node: &Node| node.is_up() && !node.machine.is_retiring();
        let staying: Vec<usize> = (0..self.nodes.len()).filter(|worker| stay(&self.nodes[*worker])).collect();
        let chosen = |number: usize| (staying.len() > 1).then(|| staying[number % staying.len()]);
        match fault {
            Fault::Join => self.join(),
            Fault::Kill(number) => {
                if let Some(worker) = chosen(number) {
                    self.part(worker, false);
                }
            }
            Fault::Vanish(number) => {
                if let Some(worker) = chosen(number) {
                    self.vanish(worker);
                }
            }
            Fault::VanishHost(number) => {
                let host = |worker: usize| worker / self.setting.network.per_node.max(1) as usize;
                let there =
                    |one: usize| staying.iter().copied().filter(move |other| host(*other) == host(one));
                // Somebody is left elsewhere.
                let chosen = chosen(number).filter(|worker| there(*worker).count() < staying.len());
                let gone: Vec<usize> = chosen.into_iter().flat_map(there).collect();
                gone.into_iter().for_each(|worker| self.vanish(worker));
            }
            Fault::Retire(number) => {
                if let Some(worker) = chosen(number) {
                    self.tell_scheduler(Stimulus::Retire(WorkerId(worker as u32)));
                }
            }
        }
    }

    /// A batch of results lies on disk.
    pub(super) fn written(&mut self, worker: usize, batch: Vec<(FileId, Value)>) {
        let node = &mut self.nodes[worker];
        let written =
            batch.into_iter().map(|(file, value)| (file, Ok(node.disk.keep(file, value)))).collect();
        self.work(worker, worker::Stimulus::Spilled(written));
    }

    /// A worker is gone, and nobody knows.
    fn vanish(&mut self, worker: usize) {
        let node = &mut self.nodes[worker];
        node.life = Life::Vanished;
        self.nbytes -= std::mem::take(&mut node.nbytes);
    }
}
