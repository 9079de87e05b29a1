//! A cluster whose workers are jobs of Slurm's.

use std::{
    env,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::exit,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rankine_slurm::{
    Job, JobId, Launcher, Script, Slurm, Variable,
    adaptive::{Adaptive, Policy},
};
use rankine_transport::Secret;

use super::{
    IoThread, SchedulerFile, connect, endpoint,
    fleet::{Fleet, Order, Wish},
    roles::{self, EVERY_INTERFACE, JOB},
    services::{Scheduler, Signals, afresh},
};
use crate::{
    Error, Result,
    client::{Client, block_on},
    link::Endpoint,
    scheduler::server::Deaths,
    settings::Settings,
    worker::server::Listen,
};

/// How often the cluster looks at its load.
const ROUND: Duration = Duration::from_secs(1);
/// How often Slurm is asked about the jobs: its controller serves the whole machine.
const LOOK: Duration = Duration::from_secs(10);
/// The clusters of this process that a signal ends, with their scheduler files.
static CLUSTERS: Mutex<Vec<(Weak<Shared>, PathBuf)>> = Mutex::new(Vec::new());
/// Whether a thread waits for that signal.
static LISTENING: AtomicBool = AtomicBool::new(false);
/// Lines of a failed job's output that an error shows.
const LAST_LINES: usize = 8;

/// A cluster whose scheduler is in this process, on a login node or within a job, and whose workers are jobs
/// of Slurm's: as many as are wanted ([`scale`](Self::scale)), or as its load wants
/// ([`adapt`](Self::adapt)).
///
/// Jobs that end, at their time limit or otherwise, are replaced; workers that go hand their results over first.
/// Dropping it ends its jobs. Jobs of a program that died end by themselves, since their workers miss
/// the scheduler.
///
/// ```no_run
/// use rankine::{SlurmCluster, blocking::Client};
///
/// fn main() -> rankine::Result<()> {
///     rankine::init();
///     let mut job = SlurmCluster::worker_job()?;
///     job.tasks_per_node = 4.try_into().expect("it is not zero");
///     job.memory = Some("16G".parse().expect("it is an amount"));
///     job.time = Some("1:00:00".parse().expect("it is a time"));
///     let cluster = SlurmCluster::builder().job(job).start()?;
///     cluster.adapt(0, 20)?;
///     let client = Client::from(cluster.client()?);
///     let squares = client.map(|x: i64| x * x, 0..1000);
///     println!("{}", client.gather(&squares)?.iter().sum::<i64>());
///     Ok(())
/// }
/// ```
pub struct SlurmCluster {
    // Dropped in this order: first nothing more is submitted, then the workers hear of the end.
    keeper: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    scheduler: Option<Scheduler>,
    io: Option<IoThread>,
    endpoint: Endpoint,
    file: SchedulerFile,
    path: PathBuf,
    threads: NonZeroU32,
}

/// What a [`SlurmCluster`] is to be like.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder starts nothing before start()"]
pub struct SlurmBuilder {
    job: Option<Job>,
    settings: Option<Settings>,
    directory: Option<PathBuf>,
    look: Option<Duration>,
}

struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
}

struct Kept {
    fleet: Fleet,
    ended: bool,
}

impl SlurmCluster {
    /// Says what the cluster is to be like.
    pub fn builder() -> SlurmBuilder {
        SlurmBuilder::default()
    }

    /// A job of one worker of this very program, for changes: how many nodes and tasks, CPUs and memory, how
    /// long, in which partition. Each task is a worker with a thread for each of its CPUs.
    ///
    /// # Errors
    /// If this program's file cannot be found.
    pub fn worker_job() -> Result<Job> {
        let program = env::current_exe().map_err(Error::io("find this program's file"))?;
        let program = program.into_os_string().into_string();
        let program =
            program.map_err(|path| Error::Usage(format!("{path:?} is no path that a script can name")))?;
        let mut job = Job::new(program);
        job.launcher = Launcher::Workers;
        Ok(job)
    }

    /// A client of this cluster, within this process.
    ///
    /// # Errors
    /// If the cluster has ended.
    pub fn client(&self) -> Result<Client> {
        let io = self.io.as_ref().ok_or_else(|| Error::closed("the cluster was shut down"))?;
        Ok(Client::new(connect(io, self.endpoint.clone(), self.file.contact().to_owned())?, None))
    }

    /// From now on there are so many jobs.
    pub fn scale(&self, jobs: u32) {
        self.shared.wish(Wish::Fixed(jobs));
    }

    /// From now on there are as many jobs as the load wants, within these bounds: enough to get through the work
    /// that is known of within seconds. More are submitted at once, but paced; fewer are wanted for a while
    /// before one goes. The log says why (`--log rankine=info`).
    ///
    /// # Errors
    /// If the bounds contradict each other.
    pub fn adapt(&self, minimum: u32, maximum: u32) -> Result<()> {
        self.adapt_by(Policy::new(minimum, maximum, self.threads))
    }

    /// The same by a policy of the program's own; see [`Policy`].
    ///
    /// # Errors
    /// If it contradicts itself.
    pub fn adapt_by(&self, policy: Policy) -> Result<()> {
        self.shared.wish(Wish::Adaptive(Adaptive::new(policy)?));
        Ok(())
    }

    /// How many tasks one job runs at a time, as far as its script tells.
    pub fn threads_per_job(&self) -> NonZeroU32 {
        self.threads
    }

    /// The jobs that have not ended, as far as this process knows.
    pub fn jobs(&self) -> Vec<JobId> {
        self.shared.lock().fleet.jobs()
    }

    /// Where nobody else sees to signals, as `#[rankine::main]` does: Ctrl-C, SIGTERM and SIGUSR1 end the jobs, and
    /// then this process.
    fn end_on_signals(&self) -> Result<()> {
        if roles::sees_to_signals() {
            return Ok(());
        }
        let mut clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|(shared, _)| shared.strong_count() > 0);
        clusters.push((Arc::downgrade(&self.shared), self.path.clone()));
        drop(clusters);
        if LISTENING.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let runtime = roles::runtime()?;
        let mut signals = runtime.block_on(async { Signals::listen() })?;
        let wait = move || {
            let signal = runtime.block_on(signals.next());
            let clusters = std::mem::take(&mut *CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner));
            for (shared, path) in clusters {
                if let Some(shared) = shared.upgrade() {
                    shared.end(&path);
                }
            }
            exit(128 + signal.as_raw_value());
        };
        let thread = thread::Builder::new().name("rankine signals".into()).spawn(wait);
        thread.map(drop).map_err(Error::io("start a thread that listens for signals"))
    }

    /// The scheduler file, for clients and workers that others start.
    pub fn scheduler_file(&self) -> &Path {
        &self.path
    }
}

impl SlurmBuilder {
    /// What a worker's job is like: [`SlurmCluster::worker_job`], changed. Its arguments are seen to.
    pub fn job(mut self, job: Job) -> Self {
        self.job = Some(job);
        self
    }

    /// Settings of the program's own, instead of what the file and the environment say.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// The directory of the scheduler file, which the nodes must share; by default `~/.rankine` (or
    /// `$RANKINE_HOME`).
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// How often Slurm is asked about the jobs; by default every ten seconds.
    pub fn look_every(mut self, time: Duration) -> Self {
        self.look = Some(time);
        self
    }

    /// Starts the scheduler; no job is submitted before [`SlurmCluster::scale`] or
    /// [`SlurmCluster::adapt`].
    ///
    /// # Errors
    /// If the job is not right, asks for what no partition has, or Slurm or the network are not there.
    pub fn start(self) -> Result<SlurmCluster> {
        let settings = self.settings.map_or_else(Settings::load, Ok)?.without_mpi();
        let mut job = self.job.map_or_else(SlurmCluster::worker_job, Ok)?;
        settings.start_log();
        if job.array.is_some() || job.launcher != Launcher::Workers {
            return Err(Error::Usage(
                "a worker job is no array, and its tasks are started as workers: begin with \
                 SlurmCluster::worker_job(), and leave `array` and `launcher` as they are; scale() and adapt() \
                 say how many jobs there are"
                    .into(),
            ));
        }
        let slurm = Slurm::default();
        slurm.check(&job)?;
        let secret = Secret::random();
        let endpoint = endpoint(&settings, secret.clone())?;
        let io = IoThread::start()?;
        let listen = Listen::Everywhere { tcp: EVERY_INTERFACE.into() };
        let scheduler =
            Scheduler::start(&io, endpoint.clone(), listen, Deaths::CostTasks, afresh(&settings))?;
        let file = SchedulerFile::new(&scheduler.address, &scheduler.contact, &secret);
        let usual = SchedulerFile::default_path(&scheduler.address)?;
        let path = match (&self.directory, usual.file_name()) {
            (Some(directory), Some(name)) => directory.join(name),
            _ => usual,
        };
        let path =
            std::path::absolute(&path).map_err(Error::io(format!("name {} in full", path.display())))?;
        let shown = path
            .to_str()
            .ok_or_else(|| Error::Usage(format!("{path:?} is no path that a script can name")))?;
        let cpus = job.cpus_per_task.unwrap_or(NonZeroU32::MIN);
        job.arguments = ["worker", "--scheduler-file", shown, "--threads"].map(str::to_owned).to_vec();
        job.arguments.push(cpus.to_string());
        // Slurm takes 0 for all that a node has, which is no bound.
        let memory =
            job.memory.map_or(0, |memory| memory.mebibytes() << 20) / u64::from(job.tasks_per_node.get());
        if memory > 0 {
            job.arguments.extend(["--memory-limit".to_owned(), memory.to_string()]);
        }
        job.environment.push(Variable::new(JOB, "1").map_err(unusable)?);
        if job.output.is_none() {
            let output = path.with_file_name(format!("{}-%j.out", job.name));
            job.output = Some(output.to_string_lossy().parse().map_err(unusable)?);
        }
        for (name, value) in settings.changed() {
            job.set(name, &value).map_err(unusable)?;
        }
        let script = Script::new(&job)?;
        let each = u32::try_from(job.cpus_per_node()).unwrap_or(u32::MAX);
        let threads = job.nodes.get().saturating_mul(each);
        let threads = NonZeroU32::new(threads).unwrap_or(NonZeroU32::MIN);
        file.write(&path)?;
        // From here on dropping it clears away.
        let shared = Arc::new(Shared {
            kept: Mutex::new(Kept {
                fleet: Fleet::new(settings.handover() + Duration::from_secs(30)),
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let mut cluster = SlurmCluster {
            keeper: None,
            shared: shared.clone(),
            scheduler: Some(scheduler),
            io: Some(io),
            endpoint,
            file,
            path,
            threads,
        };
        let client = cluster.client()?;
        let keeper = Keeper { shared, slurm, script, client, look: self.look.unwrap_or(LOOK) };
        let keeper = thread::Builder::new().name("rankine slurm".into()).spawn(move || keeper.keep());
        cluster.keeper = Some(keeper.map_err(Error::io("start a thread that keeps the jobs"))?);
        cluster.end_on_signals()?;
        Ok(cluster)
    }
}

fn unusable(error: rankine_slurm::Invalid) -> Error {
    Error::Usage(format!("cannot write the script of a worker job: {error}"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No job is submitted any more; those that there are end.
    fn end(&self, path: &Path) {
        self.lock().ended = true;
        self.changed.notify_all();
        let jobs = self.lock().fleet.jobs();
        if let Err(error) = Slurm::default().cancel(&jobs) {
            tracing::warn!(%error, ?jobs, "cannot cancel the worker jobs");
        }
        let _ = std::fs::remove_file(path);
    }

    fn wish(&self, wish: Wish) {
        self.lock().fleet.wish(wish);
        self.changed.notify_all();
    }
}

/// Keeps as many jobs as are wanted, on a thread of its own.
struct Keeper {
    shared: Arc<Shared>,
    slurm: Slurm,
    script: Script,
    client: Client,
    look: Duration,
}

impl Keeper {
    fn keep(self) {
        let start = Instant::now();
        let mut looked = start;
        let mut kept = self.shared.lock();
        while !kept.ended {
            drop(kept);
            let queue = (looked.elapsed() >= self.look).then(|| {
                looked = Instant::now();
                let jobs = self.shared.lock().fleet.jobs();
                self.slurm.jobs(&jobs)
            });
            // None where the cluster has ended.
            let Ok(info) = block_on(self.client.scheduler_info()) else { return };
            kept = self.shared.lock();
            match queue {
                Some(Ok(queue)) => kept.fleet.look(&queue),
                Some(Err(error)) => tracing::warn!(%error, "cannot look after the worker jobs now"),
                None => {}
            }
            let orders = kept.fleet.decide(&info, start.elapsed());
            for order in orders {
                if kept.ended {
                    break;
                }
                drop(kept);
                if !self.obey(order, start.elapsed()) {
                    return;
                }
                kept = self.shared.lock();
            }
            if !kept.ended {
                let waited = self.shared.changed.wait_timeout(kept, ROUND.min(self.look));
                kept = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Does what was decided. Says whether to go on.
    fn obey(&self, order: Order, now: Duration) -> bool {
        match order {
            Order::Submit(count) => {
                for _ in 0..count {
                    if self.shared.lock().ended {
                        break;
                    }
                    match self.slurm.submit(&self.script) {
                        Ok(id) => {
                            tracing::info!(job = %id, "submitted a worker job");
                            self.shared.lock().fleet.submitted(id);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot submit a worker job now");
                            self.shared.lock().fleet.refused(&error.to_string(), now);
                            break;
                        }
                    }
                }
            }
            Order::Retire(workers) => {
                let client = self.client.clone();
                tracing::info!(?workers, "workers are to go");
                // Waits until they are gone, which the next rounds see as well.
                thread::spawn(move || {
                    block_on(client.retire_workers(workers.iter().map(|w| w.to_string()))).map(drop)
                });
            }
            Order::Cancel(jobs) => {
                if let Err(error) = self.slurm.cancel(&jobs) {
                    tracing::warn!(%error, "cannot cancel worker jobs now");
                }
            }
            Order::GiveUp { reason, last } => {
                let reason = reason + &last.map_or_else(String::new, |last| self.last_words(&last));
                let _ = block_on(self.client.shutdown_because(Some(reason)));
                return false;
            }
        }
        true
    }
}

impl Keeper {
    /// The end of what a job wrote, for an error.
    fn last_words(&self, job: &JobId) -> String {
        let mut written = Vec::new();
        let log = self.slurm.log(job).and_then(|mut log| {
            log.copy(&mut written)?;
            Ok(log)
        });
        match log {
            Ok(log) => {
                let text = String::from_utf8_lossy(&written);
                let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
                let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
                format!("; job {job} wrote to {}:\n  {last}", log.path().display())
            }
            Err(error) => format!("; what job {job} wrote is not to be had: {error}"),
        }
    }
}

impl Drop for SlurmCluster {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        // The workers hear of the end, and with them most jobs come to theirs.
        drop(self.scheduler.take());
        drop(self.io.take());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        self.shared.end(&self.path);
    }
}
