//! A cluster on this machine.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use rankine_transport::Secret;

use super::{
    IoThread, LOOPBACK, SchedulerFile, connect,
    cores::Cores,
    endpoint,
    memory::{Bound, Memory, Part},
    nanny::Nanny,
    roles::SPAWNED,
    services::{Scheduler, Worker, afresh},
};
use crate::{
    Error, Result,
    client::{Client, block_on},
    link::Endpoint,
    scheduler::server::Deaths,
    settings::{MemoryLimit, Settings},
    worker::server::{Allowance, Listen, Options},
};

/// A scheduler and workers on this machine: in this process, or as processes of their own.
///
/// Dropping it ends it; when the drop returns, no thread or process of it is left.
///
/// ```
/// use rankine::{LocalCluster, blocking::Client};
///
/// # fn main() -> rankine::Result<()> {
/// let cluster = LocalCluster::builder().threads(2).start()?;
/// let client = Client::from(cluster.client()?);
/// let squares = client.map(|x: i64| x * x, 0..10);
/// assert_eq!(client.gather(&squares)?.iter().sum::<i64>(), 285);
/// # Ok(())
/// # }
/// ```
pub struct LocalCluster {
    // Dropped in this order: the scheduler's end, then the thread, then the processes.
    scheduler: Option<Scheduler>,
    io: Option<IoThread>,
    nanny: Nanny,
    endpoint: Endpoint,
    file: SchedulerFile,
    /// What workers of this process are told.
    options: Options,
}

/// What a [`LocalCluster`] is to be like.
#[derive(Debug, Clone)]
#[must_use = "a builder starts nothing before start()"]
pub struct Builder {
    pub(super) workers: Option<usize>,
    pub(super) threads: Option<u32>,
    pub(super) processes: bool,
    pub(super) bind_cores: bool,
    pub(super) memory_limit: Option<MemoryLimit>,
    pub(super) resources: Vec<(String, f64)>,
    pub(super) settings: Option<Settings>,
}

impl LocalCluster {
    /// Says what the cluster is to be like. By default: one worker in this process with a thread a core.
    pub fn builder() -> Builder {
        Builder {
            workers: None,
            threads: None,
            processes: false,
            bind_cores: false,
            memory_limit: None,
            resources: Vec::new(),
            settings: None,
        }
    }

    /// A client of this cluster, within this process.
    ///
    /// # Errors
    /// If the cluster has ended.
    pub fn client(&self) -> Result<Client> {
        let io = self.io.as_ref().ok_or_else(|| Error::closed("the cluster was shut down"))?;
        Ok(Client::new(connect(io, self.endpoint.clone(), self.file.contact().to_owned())?, None))
    }

    /// What another process of this program needs to join as a client or worker; only a cluster of
    /// processes listens for them.
    pub fn scheduler_file(&self) -> &SchedulerFile {
        &self.file
    }

    /// The processes of its workers. One that dies is replaced by another.
    pub fn pids(&self) -> Vec<u32> {
        self.nanny.pids()
    }

    /// One worker more, with as many threads, in the same manner as the others.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add_worker(&mut self, builder: &Builder) -> Result<()> {
        if builder.processes {
            return self.nanny.add(builder.threads_each(1), None);
        }
        let io = self.io.as_ref().ok_or_else(|| Error::closed("the cluster was shut down"))?;
        let resources = builder.resources.clone();
        let options = Options { nthreads: builder.threads_each(1), resources, ..self.options.clone() };
        Worker::start(io, self.endpoint.clone(), self.file.contact(), options).map(drop)
    }
}

impl Builder {
    /// Number of workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Compute threads of each worker; by default the cores, divided among the workers.
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Settings of the program's own, instead of what the file and the environment say.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// Whether workers are processes of their own, reached over what the setting `transport` says. The program's `main` must
    /// then be a `#[rankine::main]`, or call [`init`](crate::init) first.
    pub fn processes(mut self, processes: bool) -> Self {
        self.processes = processes;
        self
    }

    /// Whether the cores are divided among the worker processes and each is bound to its own (to one of them, where there are
    /// fewer cores than processes), as `mpirun` and `srun` bind ranks: what its threads hand to each other stays in the
    /// caches. By default they run wherever the system puts them; whoever shares the machine with others, a second cluster
    /// among them, leaves it at that. Who replaces a worker that died has its cores; workers that are added are not bound.
    pub fn bind_cores(mut self, bind: bool) -> Self {
        self.bind_cores = bind;
        self
    }

    /// Bytes of memory that each worker may use, instead of what the setting `memory-limit` says; 0 for no limit.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(if bytes == 0 { MemoryLimit::None } else { MemoryLimit::Bytes(bytes) });
        self
    }

    /// An abstract resource that each worker has.
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.resources.push((name.into(), amount));
        self
    }

    /// What one of the workers may use of this process's memory, of which all have their part.
    fn allowance(&self, settings: &Settings) -> Allowance {
        let workers = self.worker_count();
        let part = if self.processes { Part::one_of(workers) } else { Part::within(workers) };
        self.allowance_of(settings, part, false)
    }

    /// What a worker may use that has such a part of the memory.
    pub(super) fn allowance_of(&self, settings: &Settings, part: Part, expendable: bool) -> Allowance {
        let wanted = self.memory_limit.unwrap_or(settings.memory_limit);
        let Bound { bytes, from } = Memory::of_this_process().limit(wanted, part);
        tracing::debug!(bytes, from, "the memory limit of a worker");
        Allowance {
            limit: bytes,
            thresholds: settings.thresholds(),
            directory: settings.local_directory(),
            expendable,
        }
    }

    fn worker_count(&self) -> usize {
        self.workers.unwrap_or(1)
    }

    fn threads_each(&self, workers: usize) -> u32 {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or((cores / workers.max(1)).max(1) as u32).max(1)
    }

    /// Starts the cluster and waits until all workers are there.
    ///
    /// # Errors
    /// If a thread or process cannot be started, or a worker does not come.
    pub fn start(&self) -> Result<LocalCluster> {
        if self.processes && env::var_os(SPAWNED).is_some() {
            return Err(Error::Usage(
                "this process is to be a worker of a cluster and starts one instead; the program's main \
                 must be a #[rankine::main] or begin with rankine::init()"
                    .into(),
            ));
        }
        if self.bind_cores && !self.processes {
            let advice = "worker processes can be bound to cores, threads of this process cannot: say how many \
                          processes there are to be (--processes), or leave out that they are bound";
            return Err(Error::Usage(advice.into()));
        }
        let secret = Secret::random();
        let settings = self.settings.clone().map_or_else(Settings::load, Ok)?;
        let endpoint = endpoint(&settings, secret.clone())?;
        let memory = self.allowance(&settings);
        let mut builder = self.clone();
        builder.memory_limit =
            Some(if memory.limit == 0 { MemoryLimit::None } else { MemoryLimit::Bytes(memory.limit) });
        let options = Options {
            name: None,
            listen: Listen::Within,
            nthreads: self.threads_each(self.worker_count()),
            memory,
            resources: self.resources.clone(),
            lifetime: None,
            handover: Duration::ZERO,
        };
        // Processes of workers share the cores with this one.
        let io = if self.processes { IoThread::start()? } else { IoThread::start_spinning()? };
        let tcp = Listen::Everywhere { tcp: LOOPBACK.into() };
        let listen = if self.processes { tcp } else { Listen::Within };
        let scheduler =
            Scheduler::start(&io, endpoint.clone(), listen, Deaths::CostTasks, afresh(&settings))?;
        let file = SchedulerFile::new(&scheduler.address, &scheduler.contact, &secret);
        let mut cluster = LocalCluster {
            scheduler: Some(scheduler),
            io: Some(io),
            nanny: Nanny::new(file.clone(), settings, builder),
            endpoint,
            file,
            options,
        };
        for index in 0..self.worker_count() {
            if self.processes {
                let own = |cores: Cores| cores.part(index, self.worker_count());
                let cores = self.bind_cores.then(Cores::bound).and_then(own);
                cluster.nanny.add(cluster.options.nthreads, cores)?;
            } else if let Some(io) = &cluster.io {
                let options = Options { name: Some(format!("worker-{index}")), ..cluster.options.clone() };
                Worker::start(io, cluster.endpoint.clone(), cluster.file.contact(), options)?;
            }
        }
        cluster.wait_for_workers(self.worker_count())?;
        if self.processes {
            cluster.nanny.watch()?;
        }
        Ok(cluster)
    }
}

impl LocalCluster {
    fn wait_for_workers(&self, count: usize) -> Result<()> {
        let client = self.client()?;
        let start = Instant::now();
        loop {
            if block_on(client.scheduler_info())?.workers.len() >= count {
                block_on(client.close());
                return Ok(());
            }
            if let Some(status) = self.nanny.death() {
                return Err(Error::Usage(format!(
                    "a worker process ended at once ({status}); the program's main must be a \
                     #[rankine::main] or begin with rankine::init()"
                )));
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(Error::Usage(format!("{count} workers did not come within 30 s")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.nanny.look_away();
        drop(self.scheduler.take());
        drop(self.io.take());
        // The processes end with their nanny.
    }
}
