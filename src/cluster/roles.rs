//! Which role a process plays, told by its command line.

use std::{
    env,
    future::Future,
    io::Read,
    path::PathBuf,
    process::{ExitCode, Termination, exit},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use rankine_transport::Secret;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{Builder, IoThread, LocalCluster, SchedulerFile, endpoint, parse_bytes};
use crate::{Error, Result, client::Client, scheduler, worker};

/// Set in worker processes that a [`LocalCluster`] starts.
pub(super) const SPAWNED: &str = "RANKINE_SPAWNED";

const HELP: &str = "\
A program of Rankine's plays one of these roles:

  PROGRAM [--processes N] [--workers N] [--threads N] [--memory-limit BYTES] [ARGUMENTS]
      runs the program on a cluster of its own: workers in this process, or N processes
  PROGRAM scheduler [--listen tcp://HOST:PORT] [--scheduler-file FILE]
      runs a scheduler until it is interrupted or a client shuts it down
  PROGRAM worker [tcp://HOST:PORT] [--scheduler-file FILE] [--threads N] [--name NAME]
                 [--memory-limit BYTES] [--resource NAME=AMOUNT] [--listen tcp://HOST:PORT]
      runs a worker of that scheduler
  PROGRAM client [tcp://HOST:PORT] [--scheduler-file FILE] [ARGUMENTS]
      runs the program on that cluster

Without --scheduler-file the file lies in ~/.rankine (or $RANKINE_HOME), named after the address.";

static ARGUMENTS: OnceLock<Vec<String>> = OnceLock::new();

/// The program's own arguments: those of the command line that are not Rankine's, the program's name
/// not among them.
pub fn args() -> Vec<String> {
    ARGUMENTS.get().cloned().unwrap_or_else(|| env::args().skip(1).collect())
}

/// Plays the role of a worker, and never returns, if a [`LocalCluster`] started this process as one.
///
/// A program whose `main` is not a `#[rankine::main]` calls this first if it starts clusters of processes.
pub fn init() {
    if env::var_os(SPAWNED).is_none() {
        return;
    }
    // SAFETY: called first in `main`, before any other thread could read the environment.
    unsafe { env::remove_var(SPAWNED) };
    let mut line = String::new();
    let worked = std::io::stdin()
        .read_line(&mut line)
        .map_err(Error::io("read what the cluster says of itself"))
        .and_then(|_| serde_json::from_str(&line).map_err(|e| Error::Usage(e.to_string())))
        .and_then(|file: SchedulerFile| {
            // The role and the address come first.
            let mut flags = Flags::new(env::args().skip(3).collect());
            let stop = Arc::new(Notify::new());
            let orphaned = stop.clone();
            thread::spawn(move || {
                // The other end closes when the program goes, however it goes.
                let _ = std::io::stdin().read(&mut [0; 1]);
                orphaned.notify_one();
                thread::sleep(Duration::from_secs(2));
                exit(1);
            });
            work(&file, &mut flags, stop)
        });
    match worked {
        Ok(()) => exit(0),
        Err(Error::Closed { .. }) => exit(1),
        Err(error) => {
            eprintln!("rankine worker: {error}");
            exit(1);
        }
    }
}

/// Finds out which role this process plays, and plays it; the program itself or a client of a running
/// cluster runs `body`. This is what `#[rankine::main]` calls.
///
/// Ctrl-C and SIGTERM drop `body` where it waits, end its cluster in order, and make the exit status
/// 128 plus the signal's number.
pub fn run<F, Running, T>(body: F) -> ExitCode
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    init();
    match play(body) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play<F, Running, T>(body: F) -> Result<ExitCode>
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    let mut given: Vec<String> = env::args().skip(1).collect();
    let role = given.first().cloned().unwrap_or_default();
    if matches!(&*role, "scheduler" | "worker" | "client") {
        given.remove(0);
    }
    let mut flags = Flags::new(given);
    if matches!(&*role, "scheduler" | "worker") && flags.switch("--help") {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    match &*role {
        "scheduler" => {
            schedule(&mut flags)?;
            Ok(ExitCode::SUCCESS)
        }
        "worker" => {
            let file = flags.scheduler_file()?;
            let stop = Arc::new(Notify::new());
            work(&file, &mut flags, stop)?;
            Ok(ExitCode::SUCCESS)
        }
        "client" => {
            let file = flags.scheduler_file()?;
            let _ = ARGUMENTS.set(flags.words);
            let client = Client::connect(&file)?;
            serve_body(body, client)
        }
        _ => {
            let builder = flags.builder()?;
            let _ = ARGUMENTS.set(flags.words);
            let cluster = builder.start()?;
            serve_body(body, cluster.client()?)
        }
    }
}

/// Runs the program's body until it ends or a signal comes.
fn serve_body<F, Running, T>(body: F, client: Client) -> Result<ExitCode>
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    let runtime = runtime()?;
    runtime.block_on(async {
        tokio::select! {
            ended = body(client) => Ok(ended.report()),
            code = interrupted() => code,
        }
    })
}

fn runtime() -> Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))
}

/// Waits for Ctrl-C or SIGTERM; gives the exit status they stand for.
async fn interrupted() -> Result<ExitCode> {
    let listen = |kind| signal(kind).map_err(Error::io("listen for signals"));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

fn schedule(flags: &mut Flags) -> Result<()> {
    let listen = flags.value("--listen")?.unwrap_or_else(|| "tcp://0.0.0.0:0".into());
    let path = flags.value("--scheduler-file")?.map(PathBuf::from);
    flags.nothing_left("scheduler")?;
    let secret = Secret::random();
    let endpoint = endpoint(secret.clone());
    let io = IoThread::start()?;
    let end = Arc::new(Notify::new());
    let over = Arc::new(Notify::new());
    let (ended, done) = (end.clone(), over.clone());
    let address: String = io.serve(move |ready| async move {
        match endpoint.listen(&listen).await {
            Ok(listener) => {
                let _ = ready.send(Ok(listener.address().to_string()));
                let _ = scheduler::server::serve(endpoint, vec![listener], ended).await;
            }
            Err(error) => drop(ready.send(Err(error))),
        }
        done.notify_one();
    })?;
    let path = path.map_or_else(|| SchedulerFile::default_path(&address), Ok)?;
    SchedulerFile::new(address.clone(), &secret).write(&path)?;
    println!("scheduler at {address}");
    println!("scheduler file {}", path.display());
    let stopped = runtime()?.block_on(async {
        tokio::select! {
            () = over.notified() => Ok(()),
            code = interrupted() => code.map(drop),
        }
    });
    end.notify_one();
    drop(io);
    let _ = std::fs::remove_file(&path);
    stopped
}

fn work(file: &SchedulerFile, flags: &mut Flags, stop: Arc<Notify>) -> Result<()> {
    let builder = flags.builder()?;
    let cores = thread::available_parallelism().map_or(1, usize::from) as u32;
    let (name, listen) = (flags.value("--name")?, flags.value("--listen")?);
    // On the machine of a scheduler on loopback, loopback; else wherever others can reach.
    let local = file.address.starts_with("tcp://127.") || file.address.starts_with("tcp://[::1]");
    let listen = listen.unwrap_or_else(|| if local { "tcp://127.0.0.1:0" } else { "tcp://0.0.0.0:0" }.into());
    flags.nothing_left("worker")?;
    let options = worker::server::Options {
        name,
        listen,
        nthreads: builder.threads.unwrap_or(cores),
        memory_limit: builder.memory_limit,
        resources: builder.resources.clone(),
    };
    let (endpoint, address) = (endpoint(file.secret()?), file.address.clone());
    let io = IoThread::start()?;
    let over = Arc::new(Notify::new());
    let (done, asked) = (over.clone(), stop.clone());
    let (tell, told) = std::sync::mpsc::channel();
    io.serve(move |ready| async move {
        let _ = ready.send(Ok(()));
        let _ = tell.send(worker::server::serve(endpoint, &address, options, asked).await);
        done.notify_one();
    })?;
    runtime()?.block_on(async {
        tokio::select! {
            () = over.notified() => {}
            _ = interrupted() => {
                stop.notify_one();
                over.notified().await;
            }
        }
    });
    drop(io);
    told.recv().unwrap_or(Ok(()))
}

/// The flags of a command line, taken out one after the other.
struct Flags {
    words: Vec<String>,
}

impl Flags {
    fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    fn switch(&mut self, name: &str) -> bool {
        let place = self.words.iter().position(|word| word == name);
        place.map(|place| self.words.remove(place)).is_some()
    }

    fn value(&mut self, name: &str) -> Result<Option<String>> {
        let with = format!("{name}=");
        // What follows `--` is the program's.
        let end = self.words.iter().position(|word| word == "--").unwrap_or(self.words.len());
        let Some(place) = self.words[..end].iter().position(|w| w == name || w.starts_with(&with)) else {
            return Ok(None);
        };
        let word = self.words.remove(place);
        if let Some(value) = word.strip_prefix(&with) {
            return Ok(Some(value.to_owned()));
        }
        if place < self.words.len() {
            return Ok(Some(self.words.remove(place)));
        }
        Err(Error::Usage(format!("{name} needs a value")))
    }

    fn number(&mut self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.value(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(Error::Usage(format!("{name} takes a whole number from 1 up, not `{text}`"))),
        }
    }

    fn builder(&mut self) -> Result<Builder> {
        let mut builder = LocalCluster::builder();
        builder.workers = self.number("--workers")?.map(|n| n as usize);
        if let Some(processes) = self.number("--processes")? {
            builder.processes = true;
            builder.workers = Some(processes as usize);
        }
        builder.threads = self.number("--threads")?;
        if let Some(limit) = self.value("--memory-limit")? {
            builder.memory_limit = parse_bytes(&limit)?;
        }
        while let Some(resource) = self.value("--resource")? {
            let parsed =
                resource.split_once('=').and_then(|(name, amount)| Some((name, amount.parse().ok()?)));
            let (name, amount) = parsed
                .ok_or_else(|| Error::Usage(format!("--resource takes NAME=AMOUNT, not `{resource}`")))?;
            builder = builder.resource(name, amount);
        }
        Ok(builder)
    }

    /// The scheduler file named by `--scheduler-file`, or that of the address that comes first.
    fn scheduler_file(&mut self) -> Result<SchedulerFile> {
        let address = self.words.first().filter(|word| word.contains("://")).cloned();
        if address.is_some() {
            self.words.remove(0);
        }
        let path = match (self.value("--scheduler-file")?, &address) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(address)) => SchedulerFile::default_path(address)?,
            (None, None) => {
                return Err(Error::Usage(format!(
                    "name the scheduler: its address, or its file with --scheduler-file\n\n{HELP}"
                )));
            }
        };
        let mut file = SchedulerFile::read(&path)?;
        if let Some(address) = address {
            file.address = address;
        }
        Ok(file)
    }

    fn nothing_left(&self, role: &str) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Error::Usage(format!("{role} does not know `{word}`\n\n{HELP}"))),
        }
    }
}
