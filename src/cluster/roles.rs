//! Which role a process plays, told by its command line and by what started it.

use std::{
    env,
    future::Future,
    io::Read,
    path::PathBuf,
    process::{ExitCode, Termination, exit},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rankine_transport::Secret;
use tokio::runtime;

use super::{
    IoThread, LOOPBACK, SchedulerFile,
    cores::{self, Cores},
    endpoint,
    flags::Flags,
    fleet,
    launch::{Launch, Step},
    lifetime,
    meeting::Meeting,
    memory::Part,
    ranks,
    services::{Scheduler, Signals, Worker, afresh, rules},
};
use crate::{
    Error, Result,
    client::Client,
    output::print,
    scheduler::{journal::Journal, restoring::Beginning, server::Deaths},
    settings::{self, Settings},
    worker::server::{Listen, Options},
};

/// Where processes listen on TCP that are to be reached from other machines.
pub(super) const EVERY_INTERFACE: &str = "tcp://*:0";

/// Names the file in which a batch script wants the program's status.
const STATUS: &str = "RANKINE_STATUS";

/// Set in jobs of workers that a [`SlurmCluster`](super::SlurmCluster) submits.
pub(super) const JOB: &str = "RANKINE_WORKER_JOB";

/// Set in worker processes that a [`LocalCluster`](super::LocalCluster) starts.
pub(super) const SPAWNED: &str = "RANKINE_SPAWNED";

const HELP: &str = "\
A program of Rankine's plays one of these roles:

  PROGRAM [--processes N [--bind-cores]] [--workers N] [--threads N] [SETTINGS] [ARGUMENTS]
      runs the program on a cluster of its own: workers in this process, or N processes, each of them bound to
      cores of its own if you say so
  mpirun -n RANKS PROGRAM [--client-rank RANK] [--worker-on-scheduler-rank] [--threads N]
                          [SETTINGS] [ARGUMENTS]
      (srun the same) runs it on a cluster of these ranks: the first is the scheduler and runs the program,
      unless another is to; the others are workers, with a thread for each core they are bound to
  PROGRAM scheduler [--listen ADDRESS] [--scheduler-file FILE] [--journal FILE | --restore FILE] [SETTINGS]
      runs a scheduler until it is interrupted or a client shuts it down; one that died is restored from its journal,
      with the workers and clients, which wait for it
  PROGRAM worker [tcp://HOST:PORT] [--scheduler-file FILE] [--threads N] [--name NAME]
                 [--resource NAME=AMOUNT] [--listen ADDRESS]
                 [--cores 0-3,8] [--lifetime SECONDS] [SETTINGS]
      runs a worker of that scheduler; SIGTERM, SIGUSR1 or the end of its time (in a Slurm job, of the job's)
      make it hand its results over to others before it goes
  PROGRAM client [tcp://HOST:PORT] [--scheduler-file FILE] [SETTINGS] [ARGUMENTS]
      runs the program on that cluster

Without --listen they listen on all transports that work there, over TCP on all interfaces or that of
--interface. Without --scheduler-file the file lies in ~/.rankine (or $RANKINE_HOME), named after the
address.

SETTINGS, which the environment (RANKINE_TRANSPORT=...) and ~/.config/rankine/config.toml may say too:
";

/// What each role takes, and the settings.
pub(super) fn help() -> String {
    let row = |(name, takes, about): &(&str, &str, &str)| {
        format!("  --{:<24} {about}\n", format!("{name} {takes}"))
    };
    format!("{HELP}{}", settings::NAMES.iter().map(row).collect::<String>())
}

static ARGUMENTS: OnceLock<Vec<String>> = OnceLock::new();

/// Whether a signal ends the program's body in order.
static SIGNALS: AtomicBool = AtomicBool::new(false);

/// Whether a signal that asks this process to end drops the program's body, and with it its clusters.
pub(super) fn sees_to_signals() -> bool {
    SIGNALS.load(Ordering::Relaxed)
}

/// The program's own arguments: those of the command line that are not Rankine's, the program's name
/// not among them.
pub fn args() -> Vec<String> {
    ARGUMENTS.get().cloned().unwrap_or_else(|| env::args().skip(1).collect())
}

/// Keeps the arguments that are the program's own.
pub(super) fn keep_arguments(words: Vec<String>) {
    let _ = ARGUMENTS.set(words);
}

/// Plays the role of a worker, and never returns, if a [`LocalCluster`](super::LocalCluster) or a
/// [`SlurmCluster`](super::SlurmCluster) started this process as one.
///
/// A program whose `main` is not a `#[rankine::main]` calls this first if it starts clusters of processes or jobs.
pub fn init() {
    if env::var_os(JOB).is_some() {
        // SAFETY: called first in `main`, before any other thread could read the environment.
        unsafe { env::remove_var(JOB) };
        let mut flags = Flags::new(env::args().skip(2).collect());
        let worked = flags.scheduler_file().and_then(|file| work(&file, &mut flags, By::Itself, |_| {}));
        exit(match worked {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("Error: {error}");
                1
            }
        });
    }
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
            work(&file, &mut flags, By::Nanny, |worker| {
                let orphaned = worker.departure();
                thread::spawn(move || {
                    // The other end closes when the program goes, however it goes.
                    let _ = std::io::stdin().read(&mut [0; 1]);
                    orphaned.at_once();
                    thread::sleep(Duration::from_secs(2));
                    exit(1);
                });
            })
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
    let code = play(body).unwrap_or_else(|error| {
        eprintln!("Error: {error}");
        ExitCode::FAILURE
    });
    tell_status(code);
    code
}

/// Leaves the status of a Slurm step's first task where its batch script looks for it: that of the step
/// is no word on the program where workers may die.
fn tell_status(code: ExitCode) {
    let Some(path) = env::var_os(STATUS) else { return };
    if Launch::rank(|name| env::var(name).ok()).unwrap_or(0) > 0 {
        return;
    }
    // There is no way to look into one but to compare.
    let status = (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).unwrap_or(1);
    if let Err(error) = std::fs::write(&path, format!("{status}\n")) {
        tracing::warn!(%error, ?path, "cannot tell the batch script the program's status");
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
        print(format_args!("{}\n", help()))?;
        return Ok(ExitCode::SUCCESS);
    }
    match &*role {
        "scheduler" => schedule(&mut flags).map(|()| ExitCode::SUCCESS),
        "worker" => {
            let file = flags.scheduler_file()?;
            work(&file, &mut flags, By::Itself, |_| {}).map(|()| ExitCode::SUCCESS)
        }
        "client" => {
            let file = flags.scheduler_file()?;
            let settings = flags.settings(Settings::default())?;
            settings.start_log();
            keep_arguments(flags.words);
            let client = Client::connect_with(&file, &settings)?;
            serve_body(body, client)
        }
        _ => launched(body, flags),
    }
}

/// Plays the role that whoever started this process gives it.
fn launched<F, Running, T>(body: F, mut flags: Flags) -> Result<ExitCode>
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    let variable = |name: &str| env::var(name).ok();
    let wanted = flags.peek("--transport").or_else(|| variable("RANKINE_TRANSPORT"));
    let sockets = wanted.is_some_and(|wanted| wanted != "auto" && !wanted.contains("mpi"));
    let rank = Launch::rank(variable).unwrap_or(0);
    let launch = match Launch::detect(variable, cfg!(feature = "mpi"), !sockets) {
        Err(_) if rank > 0 => {
            thread::sleep(ranks::TELLING);
            return Ok(ExitCode::FAILURE);
        }
        launch => launch?,
    };
    let meeting = match launch {
        Launch::Alone => {
            let builder = flags.builder(Settings::default())?;
            builder.settings.iter().for_each(Settings::start_log);
            keep_arguments(flags.words);
            let cluster = builder.start()?;
            return serve_body(body, cluster.client()?);
        }
        #[cfg(feature = "mpi")]
        Launch::Mpi => Meeting::Mpi,
        #[cfg(not(feature = "mpi"))]
        Launch::Mpi => return Err(Error::Usage("this program was built without MPI".into())),
        Launch::Slurm(step) => Meeting::of_step(step)?,
    };
    ranks::play(body, meeting, rank, flags)
}

/// Runs the program's body until it ends or a signal comes.
pub(super) fn serve_body<F, Running, T>(body: F, client: Client) -> Result<ExitCode>
where
    F: FnOnce(Client) -> Running,
    Running: Future<Output = T>,
    T: Termination,
{
    let runtime = runtime()?;
    SIGNALS.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        tokio::select! {
            ended = body(client) => Ok(ended.report()),
            code = interrupted() => code,
        }
    })
}

pub(super) fn runtime() -> Result<runtime::Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))
}

/// Waits for Ctrl-C, SIGTERM or SIGUSR1; gives the exit status they stand for.
pub(super) async fn interrupted() -> Result<ExitCode> {
    let signal = Signals::listen()?.next().await;
    Ok(ExitCode::from(128 + signal.as_raw_value() as u8))
}

fn schedule(flags: &mut Flags) -> Result<()> {
    let settings = flags.settings(Settings::default())?.without_mpi();
    settings.start_log();
    let listen = flags.listen(EVERY_INTERFACE)?;
    let path = flags.value("--scheduler-file")?.map(Into::into);
    let journal = flags.value("--journal")?.map(PathBuf::from);
    let restore = flags.value("--restore")?.map(PathBuf::from);
    flags.nothing_left("scheduler")?;
    let (secret, listen, beginning) = match (journal, restore) {
        (None, None) => (Secret::random(), listen, afresh(&settings)),
        (Some(path), None) => {
            let secret = Secret::random();
            let digits = secret.to_hex();
            (secret, listen, Beginning::Journaled { config: rules(&settings), path, secret: digits })
        }
        (None, Some(path)) => {
            let written = Journal::restore(&path)?;
            let shown = path.display();
            print(format_args!("restoring the scheduler from {} turns in {shown}\n", written.entries.len()))?;
            let secret = Secret::from_hex(&written.header.secret)
                .ok_or_else(|| Error::Usage(format!("the journal {shown} holds no secret")))?;
            // Those that wait for it look where it was.
            (secret, Listen::again(&written.header.contact), Beginning::Restored(written))
        }
        (Some(_), Some(_)) => {
            let advice = "--restore goes on with the journal that it restores: leave --journal out";
            return Err(Error::Usage(advice.into()));
        }
    };
    let endpoint = endpoint(&settings, secret.clone())?;
    let io = IoThread::start()?;
    let scheduler = Scheduler::start(&io, endpoint, listen, Deaths::CostTasks, beginning)?;
    let address = scheduler.address.clone();
    let path = path.map_or_else(|| SchedulerFile::default_path(&address), Ok)?;
    SchedulerFile::new(&address, &scheduler.contact, &secret).write(&path)?;
    print(format_args!("scheduler at {address}\nscheduler file {}\n", path.display()))?;
    let stopped = runtime()?.block_on(async {
        tokio::select! {
            () = scheduler.over() => Ok(()),
            code = interrupted() => code.map(drop),
        }
    });
    drop(scheduler);
    drop(io);
    let _ = std::fs::remove_file(&path);
    stopped
}

/// Who started a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// A user, or a batch system.
    Itself,
    /// A program, as one of the processes of its cluster.
    Nanny,
}

/// Serves a worker of the scheduler that `file` tells of, until its end; `begun` is told of it.
fn work(file: &SchedulerFile, flags: &mut Flags, by: By, begun: impl FnOnce(&Worker)) -> Result<()> {
    let mut builder = flags.builder(Settings::default())?;
    let settings = builder.settings.take().map_or_else(Settings::load, Ok)?.without_mpi();
    settings.start_log();
    // What Slurm says of a job is about the program that started its workers, where one did.
    let step = Step::detect(|name| env::var(name).ok()).filter(|_| by == By::Itself);
    let name =
        flags.value("--name")?.or_else(|| Some(fleet::worker_name(&step.as_ref()?.job, step.as_ref()?.rank)));
    // On the machine of a scheduler on loopback, loopback; else wherever others can reach.
    let place = file.address.split_once("://").map_or("", |(_, place)| place);
    let local = ["127.", "[::1]", "localhost:"].iter().any(|loopback| place.starts_with(loopback));
    let listen = flags.listen(if local { LOOPBACK } else { EVERY_INTERFACE })?;
    let lifetime = lifetime::told(flags.value("--lifetime")?.as_deref(), step.is_some())?;
    let cores = flags.value("--cores")?.map(|cores| Cores::parse(&cores)).transpose()?;
    flags.nothing_left("worker")?;
    if builder.bind_cores {
        return Err(Error::Usage(
            "a worker is bound to the cores that --cores 0-3,8 names, not by --bind-cores".into(),
        ));
    }
    let handover = settings.handover();
    // Of memory it has the part that its threads are of all cores it was given, not only of those it binds itself to.
    let all = Cores::bound();
    // The threads that are started from here on are bound as well.
    cores.iter().try_for_each(Cores::bind)?;
    let bound = Cores::bound();
    let nthreads = builder.threads.unwrap_or_else(|| {
        step.as_ref().map_or_else(|| cores::threads(&bound, 1), |step| step.threads(&bound))
    });
    // Whoever starts several workers on a node by hand gives each some of its cores.
    let part = match &step {
        Some(step) => Part::one_of(step.neighbours),
        None => Part::of_cores(nthreads as usize, all.count()),
    };
    let options = Options {
        name,
        listen,
        nthreads,
        memory: builder.allowance_of(&settings, part, true),
        resources: builder.resources.clone(),
        lifetime: lifetime.map(|lifetime| lifetime::before(lifetime, handover)),
        handover,
    };
    let (endpoint, contact) = (endpoint(&settings, file.secret()?)?, file.contact().to_owned());
    let io = IoThread::start()?;
    let worker = Worker::start(&io, endpoint, &contact, options)?;
    begun(&worker);
    runtime()?.block_on(worker.until_over()).map(drop)
}
