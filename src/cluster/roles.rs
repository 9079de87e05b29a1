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

use super::{Builder, IoThread, LOOPBACK, LocalCluster, SchedulerFile, endpoint, parse_bytes};
use crate::{
    Error, Result,
    client::Client,
    scheduler,
    settings::{self, Settings},
    worker::{
        self,
        server::{Listen, addresses},
    },
};

/// Where processes listen on TCP that are to be reached from other machines.
const EVERY_INTERFACE: &str = "tcp://*:0";

/// Set in worker processes that a [`LocalCluster`] starts.
pub(super) const SPAWNED: &str = "RANKINE_SPAWNED";

const HELP: &str = "\
A program of Rankine's plays one of these roles:

  PROGRAM [--processes N] [--workers N] [--threads N] [--memory-limit BYTES] [SETTINGS] [ARGUMENTS]
      runs the program on a cluster of its own: workers in this process, or N processes
  PROGRAM scheduler [--listen ADDRESS] [--scheduler-file FILE] [SETTINGS]
      runs a scheduler until it is interrupted or a client shuts it down
  PROGRAM worker [tcp://HOST:PORT] [--scheduler-file FILE] [--threads N] [--name NAME]
                 [--memory-limit BYTES] [--resource NAME=AMOUNT] [--listen ADDRESS] [SETTINGS]
      runs a worker of that scheduler
  PROGRAM client [tcp://HOST:PORT] [--scheduler-file FILE] [SETTINGS] [ARGUMENTS]
      runs the program on that cluster

Without --listen they listen on all transports that work there, over TCP on all interfaces or that of
--interface. Without --scheduler-file the file lies in ~/.rankine (or $RANKINE_HOME), named after the
address.

SETTINGS, which the environment (RANKINE_TRANSPORT=...) and ~/.config/rankine/config.toml may say too:
";

/// What each role takes, and the settings.
fn help() -> String {
    let row = |(name, takes, about): &(&str, &str, &str)| {
        format!("  --{:<24} {about}\n", format!("{name} {takes}"))
    };
    format!("{HELP}{}", settings::NAMES.iter().map(row).collect::<String>())
}

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
        println!("{}", help());
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
            let settings = flags.settings()?;
            settings.start_log();
            let _ = ARGUMENTS.set(flags.words);
            let client = Client::connect_with(&file, &settings)?;
            serve_body(body, client)
        }
        _ => {
            let builder = flags.builder()?;
            builder.settings.iter().for_each(Settings::start_log);
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
    let settings = flags.settings()?;
    settings.start_log();
    let listen = flags.listen(EVERY_INTERFACE)?;
    let path = flags.value("--scheduler-file")?.map(PathBuf::from);
    flags.nothing_left("scheduler")?;
    let secret = Secret::random();
    let endpoint = endpoint(&settings, secret.clone())?;
    let io = IoThread::start()?;
    let end = Arc::new(Notify::new());
    let over = Arc::new(Notify::new());
    let (ended, done) = (end.clone(), over.clone());
    let (address, contact) = io.serve(move |ready| async move {
        match listen.begin(&endpoint).await {
            Ok(listeners) => {
                let _ = ready.send(Ok(addresses(&listeners)));
                let _ = scheduler::server::serve(endpoint, listeners, ended).await;
            }
            Err(error) => drop(ready.send(Err(error))),
        }
        done.notify_one();
    })?;
    let path = path.map_or_else(|| SchedulerFile::default_path(&address), Ok)?;
    SchedulerFile::new(&address, &contact, &secret).write(&path)?;
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
    let mut builder = flags.builder()?;
    let settings = builder.settings.take().map_or_else(Settings::load, Ok)?;
    settings.start_log();
    let cores = thread::available_parallelism().map_or(1, usize::from) as u32;
    let name = flags.value("--name")?;
    // On the machine of a scheduler on loopback, loopback; else wherever others can reach.
    let place = file.address.split_once("://").map_or("", |(_, place)| place);
    let local = ["127.", "[::1]", "localhost:"].iter().any(|loopback| place.starts_with(loopback));
    let listen = flags.listen(if local { LOOPBACK } else { EVERY_INTERFACE })?;
    flags.nothing_left("worker")?;
    let options = worker::server::Options {
        name,
        listen,
        nthreads: builder.threads.unwrap_or(cores),
        memory_limit: builder.memory_limit,
        resources: builder.resources.clone(),
    };
    let (endpoint, address) = (endpoint(&settings, file.secret()?)?, file.contact.clone());
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

    /// The settings, with what the command line says of them.
    fn settings(&mut self) -> Result<Settings> {
        let mut given = Vec::new();
        for (name, ..) in settings::NAMES {
            if let Some(value) = self.value(&format!("--{name}"))? {
                given.push(((*name).to_owned(), value));
            }
        }
        Settings::load_with(&given)
    }

    /// Where to listen: at what the command line says, or on everything, over TCP at `tcp`.
    fn listen(&mut self, tcp: &str) -> Result<Listen> {
        let mut addresses = Vec::new();
        while let Some(address) = self.value("--listen")? {
            addresses.push(address);
        }
        Ok(if addresses.is_empty() { Listen::Everywhere { tcp: tcp.into() } } else { Listen::At(addresses) })
    }

    fn builder(&mut self) -> Result<Builder> {
        let mut builder = LocalCluster::builder().settings(self.settings()?);
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
                    "name the scheduler: its address, or its file with --scheduler-file\n\n{}",
                    help()
                )));
            }
        };
        let mut file = SchedulerFile::read(&path)?;
        if let Some(address) = address {
            // The address that is said is the one that is meant, unless the file has it among others.
            if address != file.address {
                file.contact.clone_from(&address);
            }
            file.address = address;
        }
        Ok(file)
    }

    fn nothing_left(&self, role: &str) -> Result<()> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(Error::Usage(format!("{role} does not know `{word}`\n\n{}", help()))),
        }
    }
}
