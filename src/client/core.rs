//! The client's side on the I/O thread: commands out, reports in, fetches from workers.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rankine_transport::Connection;
use tokio::{sync::oneshot, time};

use super::{Command, KeyState, Shared, Standing, Submission};
use crate::{
    Error, Result,
    graph::{Function, Graph, Key, KeyMap, KeySet},
    link::{Endpoint, Inbox, Peers, Upstream, split},
    protocol::{Answer, ClientId, FromClient, Member, Query, Scattered, TaskId, ToClient, WorkerId},
    task::{EntryRef, TaskEntry, TaskError, Value},
    worker::server::HEARTBEAT,
};

/// Bytes asked of a worker in one request, one result at least.
const FETCH_BYTES: u64 = 64 << 20;

/// How long after results came it is looked whether they were let go of, which wakes nobody where they are small: who reads
/// results and goes on should not find the last ones being forgotten when the next ones are computed.
const READ: Duration = Duration::from_millis(5);

struct Core {
    shared: Arc<Shared>,
    scheduler: Upstream<FromClient>,
    /// Under which number the scheduler knows this client.
    id: Cell<Option<ClientId>>,
    peers: Rc<Peers>,
    workers: RefCell<KeyMap<WorkerId, Arc<str>>>,
    questions: RefCell<KeyMap<u64, oneshot::Sender<Result<Answer>>>>,
    next_question: Cell<u64>,
    heard: Cell<Instant>,
}

type Told = oneshot::Sender<Option<Result<Value, TaskError>>>;

/// One wanted result of a worker.
struct Fetch {
    id: TaskId,
    nbytes: u64,
    state: Arc<KeyState>,
    tell: Told,
}

/// Serves `shared` over a connection to the scheduler until the client closes or the cluster goes.
///
/// `contact` is where the scheduler is reached; where it `journals`, it may die and come back.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    contact: String,
    connection: Connection,
    journals: bool,
) {
    // However this ends, even dropped where it waits: nobody is left waiting for it.
    let _ending = Ending(shared.clone());
    let (scheduler, mut from) = split::<FromClient, ToClient>(connection, endpoint.compression);
    let core = Rc::new(Core {
        shared: shared.clone(),
        scheduler: Upstream::new(scheduler, journals),
        id: Cell::new(None),
        peers: Peers::new(endpoint.clone()),
        workers: RefCell::default(),
        questions: RefCell::default(),
        next_question: Cell::new(0),
        heard: Cell::new(Instant::now()),
    });
    let mut beat = time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    // When it is looked next, and when the latest results came.
    let (mut look, mut came) = (None::<time::Instant>, time::Instant::now());
    let (reason, closer) = loop {
        tokio::select! {
            biased;
            // What was put before goes out first: who submits faster waits.
            () = async { core.scheduler.drained().await; shared.commands.changed().await } => {
                if let Some(closer) = core.obey() {
                    break ("the client was closed".to_owned(), Some(closer));
                }
            }
            reports = from.recv() => match reports {
                Ok(Some(reports)) => {
                    core.heard.set(Instant::now());
                    if reports.iter().any(|report| matches!(report, ToClient::InMemory { .. })) {
                        came = time::Instant::now();
                        look.get_or_insert(came + READ);
                    }
                    if let Some(reason) = reports.into_iter().find_map(|report| core.report(report)) {
                        break (reason, None);
                    }
                }
                lost => {
                    let lost = lost.err().unwrap_or_else(|| Error::closed("the scheduler left"));
                    match core.rejoined(&endpoint, &contact, lost).await {
                        Ok(back) => from = back,
                        Err(lost) => break (lost.to_string(), None),
                    }
                }
            },
            () = async { time::sleep_until(look.unwrap_or(came)).await }, if look.is_some() => {
                shared.commands.look();
                look = Some(came + READ).filter(|next| *next > time::Instant::now());
            }
            _ = beat.tick() => {
                core.scheduler.put(FromClient::Alive);
                shared.commands.look();
                if core.heard.get().elapsed() > endpoint.silence {
                    break (format!("the scheduler was silent for {:?}", endpoint.silence), None);
                }
            }
        }
    };
    core.end(reason.into());
    let _ = time::timeout(Duration::from_secs(1), core.scheduler.closed()).await;
    if let Some(closer) = closer {
        let _ = closer.send(());
    }
}

struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        end(&self.0, "the cluster was shut down".into());
    }
}

/// Tells everybody who waits on `shared` that the cluster is gone, unless they were told already.
pub(crate) fn end(shared: &Shared, reason: Arc<str>) {
    let Some(waiting) = shared.commands.end(reason.clone()) else { return };
    // Closers and askers are told by the drop of what they wait for.
    drop(waiting);
    let states: Vec<_> = Shared::lock(&shared.table).values().cloned().collect();
    for state in states {
        // Small results that are here already stay readable.
        if !matches!(state.standing(), Standing::Memory { value: Some(_), .. } | Standing::Erred(_)) {
            state.set(Standing::Closed(reason.clone()));
        }
    }
}

impl Core {
    /// Waits for a scheduler that keeps a journal to come back, unless this client is to close meanwhile.
    async fn rejoined(&self, endpoint: &Endpoint, contact: &str, lost: Error) -> Result<Inbox<ToClient>> {
        let Some(id) = self.id.get().filter(|_| self.scheduler.outlives_the_scheduler()) else {
            return Err(lost);
        };
        // Nobody will answer them.
        for (_, asker) in self.questions.borrow_mut().drain() {
            let _ = asker.send(Err(Error::closed(format!("{lost}; it is waited for: ask again"))));
        }
        let closing = async {
            while !self.shared.commands.is_to_close() {
                time::sleep(HEARTBEAT).await;
            }
        };
        let heard = || self.heard.set(Instant::now());
        tokio::select! {
            back = self.scheduler.rejoin(endpoint, contact, Member::Client(id), lost, heard) => back,
            () = closing => Err(Error::closed("the client was closed while the scheduler was away")),
        }
    }

    /// Does what the handles want; gives whom to tell when the client is to close.
    fn obey(self: &Rc<Self>) -> Option<oneshot::Sender<()>> {
        let mut graph = GraphBuilder::default();
        let mut released = Released::default();
        let mut fetches = KeyMap::<WorkerId, Vec<Fetch>>::default();
        for command in self.shared.commands.take() {
            match &command {
                // What was released and is submitted again must reach the scheduler in this order.
                Command::Submit { tasks, .. } => {
                    if graph.is_empty() || released.any_of(tasks) {
                        self.flush(&mut graph, &mut released);
                    }
                }
                Command::Release { .. } => {}
                _ => self.flush(&mut graph, &mut released),
            }
            match command {
                Command::Submit { tasks, .. } => graph.add(tasks),
                Command::Release { key, .. } => released.add(key, !graph.is_empty()),
                Command::FireAndForget(keys) => self.scheduler.put(FromClient::FireAndForget(keys)),
                Command::Cancel { keys, force } => {
                    self.scheduler.put(FromClient::Cancel { keys, force });
                }
                Command::Fetch { state, tell } => match state.standing() {
                    Standing::Memory { id, worker, nbytes, value: None } => {
                        fetches.entry(worker).or_default().push(Fetch { id, nbytes, state, tell });
                    }
                    _ => drop(tell.send(None)),
                },
                Command::Scatter { data, everywhere, tell } => {
                    let core = self.clone();
                    tokio::task::spawn_local(async move {
                        let _ = tell.send(core.scatter(data, everywhere).await);
                    });
                }
                Command::Ask { query, tell } => self.ask(query, tell),
                Command::Close { tell } => return Some(tell),
            }
        }
        self.flush(&mut graph, &mut released);
        for (worker, fetches) in fetches {
            tokio::task::spawn_local(self.clone().fetch(worker, fetches));
        }
        None
    }

    /// Sends a graph, and then what was released. What was released before it is sent is never wanted.
    fn flush(&self, graph: &mut GraphBuilder, released: &mut Released) {
        if !graph.is_empty() {
            let graph = std::mem::take(graph).graph;
            let wants = released.leave_out(graph.tasks.iter().map(|task| task.key));
            self.scheduler.put(FromClient::Submit { graph, wants });
        }
        let Released { keys, .. } = std::mem::take(released);
        if !keys.is_empty() {
            self.scheduler.put(FromClient::Release(keys));
        }
    }

    fn ask(&self, query: Query, tell: oneshot::Sender<Result<Answer>>) {
        let id = self.next_question.replace(self.next_question.get() + 1);
        self.questions.borrow_mut().insert(id, tell);
        self.scheduler.put(FromClient::Ask { id, query });
    }

    async fn question(&self, query: Query) -> Result<Answer> {
        let (tell, told) = oneshot::channel();
        self.ask(query, tell);
        told.await.unwrap_or_else(|_| Err(Error::closed("the client was closed")))
    }

    /// Takes in what the scheduler says; gives why the cluster ends, if it does.
    fn report(&self, report: ToClient) -> Option<String> {
        self.scheduler.count(&report);
        match report {
            ToClient::Welcome { client } => self.id.set(Some(client)),
            ToClient::Noted(count) => self.scheduler.noted(count),
            ToClient::InMemory { key, id, nbytes, worker, value } => {
                self.set(key, Standing::Memory { id, worker, nbytes, value });
            }
            ToClient::Worker { worker, address } => {
                self.workers.borrow_mut().insert(worker, address.into());
            }
            ToClient::WorkerGone(worker) => {
                if let Some(address) = self.workers.borrow_mut().remove(&worker) {
                    self.peers.give_up(&address);
                }
            }
            ToClient::Erred { key, error } => self.set(key, Standing::Erred(error)),
            ToClient::Lost(key) => self.set(key, Standing::Pending),
            ToClient::Cancelled(key) => self.set(key, Standing::Cancelled),
            ToClient::Answer { id, answer } => {
                if let Some(asker) = self.questions.borrow_mut().remove(&id) {
                    let _ = asker.send(Ok(*answer));
                }
            }
            ToClient::Alive | ToClient::Resumed { .. } => {}
            ToClient::Closing { reason } => return Some(reason),
        }
        None
    }

    fn set(&self, key: Key, standing: Standing) {
        let state = Shared::lock(&self.shared.table).get(&key).cloned();
        if let Some(state) = state {
            state.set(standing);
        }
    }

    /// Fetches results from one worker, in requests of bounded size.
    async fn fetch(self: Rc<Self>, worker: WorkerId, fetches: Vec<Fetch>) {
        let mut fetches = fetches.into_iter().peekable();
        while fetches.peek().is_some() {
            let (mut batch, mut nbytes) = (Vec::new(), 0);
            while let Some(fetch) =
                fetches.next_if(|fetch| batch.is_empty() || nbytes + fetch.nbytes <= FETCH_BYTES)
            {
                nbytes += fetch.nbytes;
                batch.push(fetch);
            }
            let address = self.workers.borrow().get(&worker).cloned();
            let ids = batch.iter().map(|fetch| fetch.id).collect();
            let answer = match address {
                Some(address) => self.peers.get(&address, ids).await,
                None => Err(Error::closed("a worker that the scheduler never named")),
            };
            let data = match answer {
                Ok(data) => data,
                Err(error) => {
                    tracing::debug!(%error, "cannot fetch results from a worker");
                    batch.iter().map(|_| None).collect()
                }
            };
            for (fetch, value) in batch.into_iter().zip(data) {
                if value.is_none() {
                    self.missing(&fetch.state, fetch.id, worker);
                }
                let _ = fetch.tell.send(value);
            }
        }
    }

    /// `worker` did not give a result: the scheduler finds another holder or computes it again.
    fn missing(&self, state: &KeyState, id: TaskId, worker: WorkerId) {
        let standing = state.standing();
        if matches!(standing, Standing::Memory { id: at, worker: holder, .. } if (at, holder) == (id, worker))
        {
            state.set(Standing::Pending);
            self.scheduler.put(FromClient::Missing { id, worker });
        }
    }

    async fn scatter(&self, data: Vec<(Key, Value)>, everywhere: bool) -> Result<()> {
        let Answer::SchedulerInfo(mut info) = self.question(Query::SchedulerInfo).await? else {
            return Err(super::strange_answer());
        };
        info.workers.retain(|worker| !worker.retiring);
        if info.workers.is_empty() {
            return Err(Error::Usage("cannot scatter data: the cluster has no worker yet".into()));
        }
        let keys: Vec<Key> = data.iter().map(|(key, _)| *key).collect();
        let Answer::Reserved(ids) = self.question(Query::Reserve(keys.clone())).await? else {
            return Err(super::strange_answer());
        };
        let mut scattered: Vec<Scattered> = keys
            .into_iter()
            .zip(&ids)
            .map(|(key, id)| Scattered { key, id: *id, nbytes: 0, workers: Vec::new() })
            .collect();
        let workers = info.workers.len();
        for (index, worker) in info.workers.iter().enumerate() {
            let mine: Vec<usize> = (0..data.len()).filter(|i| everywhere || i % workers == index).collect();
            if mine.is_empty() {
                continue;
            }
            let put = mine.iter().map(|&i| (ids[i], data[i].1.clone())).collect();
            let nbytes = self.peers.put(&worker.info.contact, put).await?;
            for (i, nbytes) in mine.into_iter().zip(nbytes) {
                scattered[i].nbytes = nbytes;
                scattered[i].workers.push(worker.id);
            }
        }
        self.scheduler.put(FromClient::Scattered(scattered));
        Ok(())
    }

    fn end(&self, reason: Arc<str>) {
        end(&self.shared, reason.clone());
        for (_, asker) in self.questions.borrow_mut().drain() {
            let _ = asker.send(Err(Error::closed(&*reason)));
        }
        self.peers.close();
    }
}

/// What handles let go of, in order: others go through memory in it, too.
#[derive(Default)]
struct Released {
    keys: Vec<Key>,
    /// Those of them that were let go of when there was something to submit.
    late: KeySet<Key>,
}

impl Released {
    fn add(&mut self, key: Key, late: bool) {
        self.keys.push(key);
        if late {
            self.late.insert(key);
        }
    }

    fn any_of(&self, submissions: &[Submission]) -> bool {
        !self.late.is_empty() && submissions.iter().any(|one| self.late.contains(&one.task.key))
    }

    /// Those that were not let go of; the others are forgotten here.
    fn leave_out(&mut self, submitted: impl Iterator<Item = Key>) -> Vec<Key> {
        if self.late.is_empty() {
            return submitted.collect();
        }
        let wants = submitted.filter(|key| !self.late.remove(key)).collect();
        self.keys.retain(|key| self.late.contains(key));
        wants
    }
}

/// Puts submissions together into one graph.
#[derive(Default)]
struct GraphBuilder {
    graph: Graph,
    /// Functions by where their entries lie, and the last one: successive tasks mostly call the same.
    functions: KeyMap<u64, u32>,
    last_function: Option<(u64, u32)>,
    /// The last options seen: successive tasks mostly share theirs.
    last_options: Option<(*const crate::graph::TaskOptions, u32)>,
}

impl GraphBuilder {
    fn is_empty(&self) -> bool {
        self.graph.tasks.is_empty()
    }

    fn add(&mut self, submissions: Vec<Submission>) {
        self.graph.tasks.reserve(submissions.len());
        for Submission { entry, options, mut task, kept } in submissions {
            task.function = self.function(entry);
            task.options = match options {
                None => u32::MAX,
                Some(options) => match self.last_options {
                    Some((same, index)) if same == Arc::as_ptr(&options) => index,
                    _ => {
                        self.graph.options.push((*options).clone());
                        let index = self.graph.options.len() as u32 - 1;
                        self.last_options = Some((Arc::as_ptr(&options), index));
                        index
                    }
                },
            };
            self.graph.tasks.push(task);
            // Releases that follow from this reach the scheduler after the graph.
            drop(kept);
        }
        // Pointers are compared only within one batch of submissions, which keeps them alive.
        self.last_options = None;
    }

    fn function(&mut self, entry: &'static TaskEntry) -> u32 {
        let place = std::ptr::from_ref(entry) as u64;
        if let Some((_, number)) = self.last_function.filter(|(last, _)| *last == place) {
            return number;
        }
        let functions = &mut self.graph.functions;
        let number = *self.functions.entry(place).or_insert_with(|| {
            functions.push(Function { entry: EntryRef::of(entry), name: entry.name().into() });
            functions.len() as u32 - 1
        });
        self.last_function = Some((place, number));
        number
    }
}
