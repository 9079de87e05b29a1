//! A cluster on this machine.

use std::{
    env,
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rankine_transport::Secret;
use tokio::sync::Notify;

use super::{IoThread, SchedulerFile, connect, endpoint, roles::SPAWNED};
use crate::{
    Error, Result,
    client::{Client, block_on},
    link::Endpoint,
    scheduler, worker,
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
    // Dropped in this order by hand: the scheduler's end, then the thread, then the processes.
    end: Arc<Notify>,
    io: Option<IoThread>,
    children: Vec<Child>,
    endpoint: Endpoint,
    inproc: String,
    file: SchedulerFile,
}

/// What a [`LocalCluster`] is to be like.
#[derive(Debug, Clone)]
#[must_use = "a builder starts nothing before start()"]
pub struct Builder {
    pub(super) workers: Option<usize>,
    pub(super) threads: Option<u32>,
    pub(super) processes: bool,
    pub(super) memory_limit: u64,
    pub(super) resources: Vec<(String, f64)>,
}

impl LocalCluster {
    /// Says what the cluster is to be like. By default: one worker in this process with a thread a core.
    pub fn builder() -> Builder {
        Builder { workers: None, threads: None, processes: false, memory_limit: 0, resources: Vec::new() }
    }

    /// A client of this cluster, within this process.
    ///
    /// # Errors
    /// If the cluster has ended.
    pub fn client(&self) -> Result<Client> {
        let io = self.io.as_ref().ok_or_else(|| Error::closed("the cluster was shut down"))?;
        Ok(Client::new(connect(io, self.endpoint.clone(), self.inproc.clone())?, None))
    }

    /// What another process of this program needs to join as a client or worker; only a cluster of
    /// processes listens for them.
    pub fn scheduler_file(&self) -> &SchedulerFile {
        &self.file
    }

    /// The processes of its workers.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// One worker more, with as many threads, in the same manner as the others.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add_worker(&mut self, builder: &Builder) -> Result<()> {
        if builder.processes {
            self.children.push(spawn(&self.file, builder.threads_each(1), builder)?);
            return Ok(());
        }
        let io = self.io.as_ref().ok_or_else(|| Error::closed("the cluster was shut down"))?;
        start_worker(io, self.endpoint.clone(), self.inproc.clone(), None, builder.threads_each(1), builder)
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

    /// Whether workers are processes of their own, reached over TCP. The program's `main` must
    /// then be a `#[rankine::main]`, or call [`init`](crate::init) first.
    pub fn processes(mut self, processes: bool) -> Self {
        self.processes = processes;
        self
    }

    /// Bytes of results a worker may hold before it runs one task at a time; 0 for no limit.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// An abstract resource that each worker has.
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.resources.push((name.into(), amount));
        self
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
        let secret = Secret::random();
        let endpoint = endpoint(secret.clone());
        let io = IoThread::start()?;
        let end = Arc::new(Notify::new());
        let (served, ended, tcp) = (endpoint.clone(), end.clone(), self.processes);
        let addresses: Vec<String> = io.serve(move |ready| async move {
            let listen = async {
                let mut listeners = vec![served.listen("inproc://*").await?];
                if tcp {
                    listeners.push(served.listen("tcp://127.0.0.1:0").await?);
                }
                Ok(listeners)
            };
            match listen.await {
                Ok(listeners) => {
                    let _ = ready.send(Ok(listeners.iter().map(|l| l.address().to_string()).collect()));
                    let _ = scheduler::server::serve(served, listeners, ended).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let address = addresses.last().cloned().unwrap_or_default();
        let mut cluster = LocalCluster {
            end,
            io: Some(io),
            children: Vec::new(),
            endpoint,
            inproc: addresses.into_iter().next().unwrap_or_default(),
            file: SchedulerFile::new(address, &secret),
        };
        let threads = self.threads_each(self.worker_count());
        for index in 0..self.worker_count() {
            if self.processes {
                cluster.children.push(spawn(&cluster.file, threads, self)?);
            } else if let Some(io) = &cluster.io {
                let name = format!("worker-{index}");
                start_worker(
                    io,
                    cluster.endpoint.clone(),
                    cluster.inproc.clone(),
                    Some(name),
                    threads,
                    self,
                )?;
            }
        }
        cluster.wait_for_workers(self.worker_count())?;
        Ok(cluster)
    }
}

impl LocalCluster {
    fn wait_for_workers(&mut self, count: usize) -> Result<()> {
        let client = self.client()?;
        let start = Instant::now();
        loop {
            if block_on(client.scheduler_info())?.workers.len() >= count {
                block_on(client.close());
                return Ok(());
            }
            for child in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(Error::Usage(format!(
                        "a worker process ended at once ({status}); the program's main must be a \
                         #[rankine::main] or begin with rankine::init()"
                    )));
                }
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(Error::Usage(format!("{count} workers did not come within 30 s")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn start_worker(
    io: &IoThread,
    endpoint: Endpoint,
    scheduler: String,
    name: Option<String>,
    nthreads: u32,
    builder: &Builder,
) -> Result<()> {
    let options = worker::server::Options {
        name,
        listen: "inproc://*".into(),
        nthreads,
        memory_limit: builder.memory_limit,
        resources: builder.resources.clone(),
    };
    io.serve(move |ready| async move {
        let _ = ready.send(Ok(()));
        if let Err(error) =
            worker::server::serve(endpoint, &scheduler, options, Arc::new(Notify::new())).await
        {
            tracing::warn!(%error, "a worker ended");
        }
    })
}

/// Starts this program again as a worker. The secret goes through its standard input, which stays
/// open: its end tells the worker that this process is gone, however it went.
fn spawn(file: &SchedulerFile, threads: u32, builder: &Builder) -> Result<Child> {
    let program = env::current_exe().map_err(Error::io("find this program's file"))?;
    let mut command = Command::new(&program);
    command.arg("worker").arg(&file.address).args(["--threads", &threads.to_string()]);
    if builder.memory_limit > 0 {
        command.args(["--memory-limit", &builder.memory_limit.to_string()]);
    }
    for (name, amount) in &builder.resources {
        command.args(["--resource", &format!("{name}={amount}")]);
    }
    // A group of its own: Ctrl-C is for the program, which ends its workers in order.
    command.env(SPAWNED, "1").stdin(Stdio::piped()).process_group(0);
    let attempt = || Error::io(format!("start a worker process of {}", program.display()));
    let mut child = command.spawn().map_err(attempt())?;
    let text = serde_json::to_string(file).map_err(|e| Error::Usage(e.to_string()))?;
    if let Some(stdin) = &mut child.stdin {
        writeln!(stdin, "{text}").map_err(attempt())?;
    }
    Ok(child)
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.end.notify_one();
        drop(self.io.take());
        let start = Instant::now();
        for child in &mut self.children {
            // Whoever did not hear the scheduler's farewell hears this.
            drop(child.stdin.take());
            while matches!(child.try_wait(), Ok(None)) {
                if start.elapsed() > Duration::from_secs(3) {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
