//! The run itself: what happens next, and the scheduler's part in it.

mod clients;
mod workers;

use rankine::{
    protocol::{ClientId, FromClient, ToClient, ToWorker, WorkerId},
    scheduler::{Instruction, Stimulus},
    task::Value,
    worker,
};

use crate::{
    Error, Policy, Problem, Setting,
    client::Client,
    events::{Event, Events},
    network::Link,
    node::{Life, Node},
    problem::Payload,
    recording::{Noted, Recording},
};

/// What came of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Tasks of the problem.
    pub tasks: usize,
    /// Nanoseconds from the first submission until all clients had heard of all they wanted.
    pub makespan: u64,
    /// Executions: more than there are tasks where results were lost.
    pub executed: u64,
    /// Messages that the scheduler got and sent.
    pub messages: u64,
    /// Of these, the ones it sent.
    pub told: u64,
    /// Bytes that went from worker to worker.
    pub moved: u64,
    /// Tasks that one worker gave back for another.
    pub steals: u64,
    /// Most bytes that all workers held together.
    pub peak: u64,
    /// Most bytes that a single worker held.
    pub worst: u64,
    /// Results that went straight to a peer whose tasks waited for them.
    pub forwarded: u64,
    /// Results that were written to disk.
    pub spilled: u64,
}

/// A simulation that came to a good end.
#[derive(Debug)]
pub struct Run {
    /// What came of it.
    pub outcome: Outcome,
    /// Every event, where that was asked for by [`Simulation::logged`].
    pub log: Vec<String>,
    /// What the scheduler heard, where that was asked for by [`Simulation::recorded`].
    pub recording: Option<Recording>,
}

/// A cluster in virtual time.
pub struct Simulation<'a, P> {
    problem: &'a Problem,
    setting: &'a Setting,
    policy: P,
    /// What came while the scheduler was busy.
    inbox: Vec<Stimulus>,
    /// Until when it is, and whether it then looks again.
    busy_until: u64,
    turn_planned: bool,
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// Of each worker, words that leave at the end of a turn.
    outboxes: Vec<Vec<ToWorker>>,
    clients: Vec<Client>,
    events: Events,
    now: u64,
    nbytes: u64,
    outcome: Outcome,
    log: Option<Vec<String>>,
    recording: Option<Recording>,
}

impl<'a, P: Policy> Simulation<'a, P> {
    /// A cluster that has just started.
    pub fn new(problem: &'a Problem, setting: &'a Setting, mut policy: P) -> Self {
        let clients: Vec<Client> = setting
            .requests
            .iter()
            .map(|request| Client::new(policy.add_client(), request.clone()))
            .collect();
        let mut simulation = Self {
            problem,
            setting,
            policy,
            inbox: Vec::new(),
            busy_until: 0,
            turn_planned: false,
            nodes: Vec::new(),
            links: Vec::new(),
            outboxes: Vec::new(),
            clients,
            events: Events::default(),
            now: 0,
            nbytes: 0,
            outcome: Outcome { tasks: problem.tasks.len(), ..Outcome::default() },
            log: None,
            recording: None,
        };
        simulation.events.plan(simulation.policy.tick(), Event::Tick);
        for (number, request) in setting.requests.iter().enumerate() {
            simulation.events.plan(request.at, Event::Submits(number));
            if let Some((at, _)) = &request.cancels {
                simulation.events.plan(*at, Event::Cancels(number));
            }
        }
        for (at, fault) in &setting.faults {
            simulation.events.plan(*at, Event::Fault(*fault));
        }
        simulation
    }

    /// Has every event written down.
    pub fn logged(mut self) -> Self {
        self.log = Some(Vec::new());
        self
    }

    /// Has all that the scheduler hears written down.
    pub fn recorded(mut self, mut recording: Recording) -> Self {
        self.clients.iter().for_each(|_| recording.note(0, &Noted::Client));
        self.recording = Some(recording);
        self
    }

    /// Runs until all clients have what they want, and then until nothing is left.
    ///
    /// # Errors
    /// If that does not happen, results are wrong, or something is left; see [`Error`].
    pub fn run(mut self) -> Result<Run, Error> {
        (0..self.setting.workers).for_each(|_| self.join());
        self.run_until(|simulation| simulation.missing() == 0)?;
        self.outcome.makespan = self.now - self.setting.requests.iter().map(|r| r.at).min().unwrap_or(0);
        // Words on their way may yet tell of losses.
        self.run_until(|simulation| simulation.missing() == 0 && simulation.is_settled())?;
        self.policy.validate();
        let results = self.problem.results();
        for client in &self.clients {
            client.check(&results)?;
        }
        for number in 0..self.clients.len() {
            let keys = self.clients[number].keys();
            self.client_says(number, FromClient::Release(keys));
        }
        self.run_until(Self::is_settled)?;
        self.check_nothing_left()?;
        self.outcome.worst = self.nodes.iter().map(|node| node.peak).max().unwrap_or(0);
        Ok(Run { outcome: self.outcome, log: self.log.unwrap_or_default(), recording: self.recording })
    }

    fn check_nothing_left(&self) -> Result<(), Error> {
        self.policy.validate();
        match self.policy.task_count() {
            0 => {}
            count => return Err(Error::Left(format!("the scheduler knows {count} tasks"))),
        }
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up()) {
            node.machine.validate();
            let metrics = node.machine.metrics();
            let files = node.disk.count();
            let held = node.nbytes + metrics.managed + metrics.spilled;
            if held > 0 || metrics.executing + metrics.ready > 0 || files > 0 {
                let nbytes = node.nbytes;
                return Err(Error::Left(format!(
                    "worker {number} has {nbytes} bytes, {files} files, and {metrics:?}"
                )));
            }
        }
        Ok(())
    }

    /// Results that clients wait for.
    fn missing(&self) -> usize {
        self.clients.iter().map(Client::open).sum()
    }

    /// Whether nothing is under way, and nobody is taken to be there who is not.
    fn is_settled(&self) -> bool {
        self.events.are_quiet() && self.nodes.iter().all(|node| node.life != Life::Vanished && !node.hopes())
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        let setting = self.setting;
        let span = setting.worker_ttl + setting.patience;
        let latest = setting.faults.iter().map(|(at, _)| *at).max().unwrap_or(0);
        let work = self.problem.work() as f64 * setting.slowness;
        let limit = self.now + latest + 10 * (work as u64 + span * (setting.faults.len() as u64 + 2));
        while !done(self) {
            if self.is_settled() && self.missing() > 0 {
                let task = self.clients.iter().find_map(Client::awaited).unwrap_or(0);
                return Err(Error::Stuck { seconds: self.now as f64 / 1e9, missing: self.missing(), task });
            }
            let Some((at, event)) = self.events.next() else { return Ok(()) };
            self.now = at;
            if at > limit {
                return Err(Error::Endless { seconds: at as f64 / 1e9 });
            }
            if let Some(log) = &mut self.log {
                log.push(format!("{at} {event:?}"));
            }
            self.react(event);
        }
        Ok(())
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Turn => self.turn(),
            Event::Tick => {
                self.tell_scheduler(Stimulus::Tick);
                self.events.plan(self.now + self.policy.tick(), Event::Tick);
            }
            Event::Heartbeat(worker) => self.heartbeat(worker),
            Event::WorkerSays(worker, words) => {
                for word in words {
                    self.tell_scheduler(Stimulus::Worker(WorkerId(worker as u32), word));
                }
            }
            Event::WorkerHears(worker, words) => self.worker_hears(worker, words),
            Event::ClientSays(client, word) => self.tell_scheduler(Stimulus::Client(client, word)),
            Event::ClientHears(client, words) => self.client_hears(client, words),
            Event::Report(worker) => self.report(worker),
            Event::Executed(worker, execution, duration) => self.executed(worker, *execution, duration),
            Event::Asked { asker, peer, ids } => self.asked(asker, peer, ids),
            Event::Gathered { asker, peer, data } => self.gathered(asker, peer, data),
            Event::Forwarded(worker, id, value) => {
                self.work(worker, worker::Stimulus::Forwarded(vec![(id, value)]));
            }
            Event::Written(worker, batch) => self.written(worker, batch),
            Event::Read { worker, id, file, value } => {
                // It is a view of the file.
                self.work(worker, worker::Stimulus::Unspilled { id, file, value, occupied: 0 });
            }
            Event::GatherFailed { asker, peer, ids } => {
                let stimulus = worker::Stimulus::GatherFailed { peer: WorkerId(peer as u32), ids };
                self.work(asker, stimulus);
            }
            Event::Parted(worker, expected) => {
                let worker = WorkerId(worker as u32);
                self.tell_scheduler(Stimulus::RemoveWorker { worker, expected });
            }
            Event::Submits(client) => {
                let (graph, wants) = (self.problem.graph(), self.clients[client].keys());
                self.client_says(client, FromClient::Submit { graph, wants });
            }
            Event::Cancels(client) => {
                let keys = self.clients[client].cancel();
                self.client_says(client, FromClient::Cancel { keys, force: false });
            }
            Event::Fault(fault) => self.fault(fault),
        }
    }

    // The scheduler.

    /// Something arrives at the scheduler, which looks at it when it has time.
    fn tell_scheduler(&mut self, stimulus: Stimulus) {
        self.inbox.push(stimulus);
        if !std::mem::replace(&mut self.turn_planned, true) {
            self.events.plan(self.now.max(self.busy_until), Event::Turn);
        }
    }

    fn turn(&mut self) {
        self.turn_planned = false;
        let stimuli = std::mem::take(&mut self.inbox);
        let heard = stimuli.len();
        if let Some(recording) = &mut self.recording {
            recording.note(self.now, &Noted::Stimuli(&stimuli));
        }
        let instructions = self.policy.handle_many(stimuli, self.now);
        self.obey(heard, instructions);
    }

    /// What the scheduler wants done leaves it when it is done with all it heard.
    fn obey(&mut self, heard: usize, instructions: Vec<Instruction>) {
        let messages = (heard + instructions.len()) as u64;
        self.outcome.messages += messages;
        self.outcome.told += instructions.len() as u64;
        self.busy_until = self.now.max(self.busy_until) + messages * self.setting.message_cost;
        let arrival = self.busy_until + self.setting.network.latency;
        let mut told = Vec::new();
        let mut to_clients: Vec<(ClientId, Vec<ToClient>)> = Vec::new();
        for instruction in instructions {
            match instruction {
                Instruction::ToWorker(worker, word) => {
                    let outbox = &mut self.outboxes[worker.0 as usize];
                    if outbox.is_empty() {
                        told.push(worker.0 as usize);
                    }
                    outbox.push(word);
                }
                Instruction::ToClient(client, word) => {
                    match to_clients.iter_mut().find(|(known, _)| *known == client) {
                        Some((_, words)) => words.push(word),
                        None => to_clients.push((client, vec![word])),
                    }
                }
                // Addresses mean nothing here.
                Instruction::Introduce(..) => {}
                Instruction::Drop(worker) => self.nodes[worker.0 as usize].life = Life::Gone,
            }
        }
        for worker in told {
            let words = std::mem::take(&mut self.outboxes[worker]);
            self.events.plan(arrival, Event::WorkerHears(worker, words));
        }
        for (client, words) in to_clients {
            self.events.plan(arrival, Event::ClientHears(client, words));
        }
    }
}

/// The number that a result is.
fn number(value: &Value) -> u64 {
    value.get::<Payload>().expect("all results are payloads").number
}
