//! The run itself: all that can happen, one function each.

use rankine::{
    protocol::{ClientId, FromClient, FromWorker, TaskId, ToClient, ToWorker, WorkerId, WorkerInfo},
    scheduler::{Instruction, Stimulus},
    task::Value,
    worker::{self, Input},
};

use crate::{
    Error, Network, Policy, Problem, Setting,
    client::Client,
    events::{Event, Events},
    network::Link,
    node::{Life, Node},
    problem::Payload,
    recording::{Noted, Recording},
    setting::Fault,
};

/// Nanoseconds between a worker's signs of life, as in the real server.
const HEARTBEAT: u64 = 500_000_000;

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
            if node.nbytes + metrics.managed > 0 || metrics.executing + metrics.ready > 0 {
                return Err(Error::Left(format!(
                    "worker {number} has {} bytes, and {metrics:?}",
                    node.nbytes
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
        self.events.are_quiet() && self.nodes.iter().all(|node| node.life != Life::Vanished)
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
            Event::Executed(worker, execution, duration) => self.executed(worker, *execution, duration),
            Event::Asked { asker, peer, ids } => self.asked(asker, peer, ids),
            Event::Gathered { asker, peer, data } => self.gathered(asker, peer, data),
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

    // Workers.

    fn join(&mut self) {
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
            memory_limit: 0,
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
        self.nodes.push(Node::new(self.setting.threads, self.setting.slowness_of(number)));
        self.links.push(Link::default());
        self.outboxes.push(Vec::new());
        self.obey(1, instructions);
        // Not all at the same time.
        let first = HEARTBEAT * (number as u64 % 1000) / 1000;
        self.events.plan(self.now + first, Event::Heartbeat(number));
    }

    fn heartbeat(&mut self, worker: usize) {
        if self.nodes[worker].is_up() {
            let machine = &mut self.nodes[worker].machine;
            let fetches = machine.take_fetches();
            let fetched = (!fetches.is_empty()).then_some(FromWorker::Fetched(fetches));
            let beat = FromWorker::Heartbeat(machine.metrics());
            self.worker_says(worker, fetched.into_iter().chain([beat]).collect());
            self.events.plan(self.now + HEARTBEAT, Event::Heartbeat(worker));
        }
    }

    fn worker_says(&mut self, worker: usize, words: Vec<FromWorker>) {
        let arrival = self.now + self.setting.network.latency;
        self.events.plan(arrival, Event::WorkerSays(worker, words));
    }

    fn worker_hears(&mut self, worker: usize, words: Vec<ToWorker>) {
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
    fn work(&mut self, worker: usize, stimulus: worker::Stimulus) {
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
                worker::Instruction::Execute(execution) => self.execute(worker, Box::new(execution)),
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
                    words.push(word);
                }
                // Memory has no limit here.
                worker::Instruction::Spill(_)
                | worker::Instruction::Unspill { .. }
                | worker::Instruction::Forward { .. }
                | worker::Instruction::Hasten(_)
                | worker::Instruction::Discard(_) => {}
            }
        }
        if !words.is_empty() {
            self.worker_says(worker, words);
        }
    }

    fn execute(&mut self, worker: usize, execution: Box<worker::Execution>) {
        if let Some((at, event)) = self.nodes[worker].run(worker, execution, self.problem, self.now) {
            self.events.plan(at, event);
        }
    }

    fn executed(&mut self, worker: usize, execution: worker::Execution, duration: u64) {
        if !self.nodes[worker].is_up() {
            return;
        }
        self.outcome.executed += 1;
        if let Some(next) = self.nodes[worker].next() {
            self.execute(worker, next);
        }
        let task = Problem::task_of(&execution.arguments);
        let inputs = execution.dependencies.iter().cloned().filter_map(Input::value);
        let dependencies = inputs.map(|value| number(&value));
        let value = self.problem.result(task, Problem::evaluate(task, dependencies));
        let (id, nbytes) = (execution.id, value.nbytes());
        self.work(worker, worker::Stimulus::Executed { id, result: Ok(value), nbytes, duration });
    }

    fn asked(&mut self, asker: usize, peer: usize, ids: Vec<TaskId>) {
        let node = &self.nodes[peer];
        match node.life {
            Life::Up => {
                let data: Vec<_> = ids.into_iter().map(|id| (id, node.machine.value(id).cloned())).collect();
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

    fn gathered(&mut self, asker: usize, peer: usize, data: Vec<(TaskId, Option<Value>)>) {
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

    fn fault(&mut self, fault: Fault) {
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
                    let node = &mut self.nodes[worker];
                    node.life = Life::Vanished;
                    self.nbytes -= std::mem::take(&mut node.nbytes);
                }
            }
            Fault::Retire(number) => {
                if let Some(worker) = chosen(number) {
                    self.tell_scheduler(Stimulus::Retire(WorkerId(worker as u32)));
                }
            }
        }
    }

    // Clients.

    fn client_says(&mut self, client: usize, word: FromClient) {
        let arrival = self.now + self.setting.network.latency;
        self.events.plan(arrival, Event::ClientSays(self.clients[client].id, word));
    }

    fn client_hears(&mut self, id: ClientId, words: Vec<ToClient>) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        for word in words {
            match word {
                ToClient::InMemory { key, id: computation, worker, value, .. } => {
                    let node = &self.nodes[worker.0 as usize];
                    let held = node.machine.value(computation).filter(|_| node.is_up());
                    match value.as_ref().or(held) {
                        Some(value) => client.got(key, number(value)),
                        None if client.awaits(key) => {
                            let missing = FromClient::Missing { id: computation, worker };
                            let waits = if node.life == Life::Vanished { self.setting.patience } else { 0 };
                            let arrival = self.now + waits + 2 * self.setting.network.latency;
                            self.events.plan(arrival, Event::ClientSays(id, missing));
                        }
                        None => {}
                    }
                }
                ToClient::Lost(key) => client.lost(key),
                ToClient::Cancelled(key) => client.cancelled(key),
                ToClient::Erred { key, error } => client.failed(key, error.to_string()),
                ToClient::Welcome { .. }
                | ToClient::Noted(_)
                | ToClient::WorkerGone(_)
                | ToClient::Resumed { .. }
                | ToClient::Worker { .. }
                | ToClient::Answer { .. }
                | ToClient::Alive
                | ToClient::Closing { .. } => {}
            }
        }
    }
}

/// The number that a result is.
fn number(value: &Value) -> u64 {
    value.get::<Payload>().expect("all results are payloads").number
}
