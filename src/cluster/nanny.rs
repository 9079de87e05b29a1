//! The worker processes of a cluster on this machine: started, watched, and started again when they die.

use std::{
    env,
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{Builder, SchedulerFile, cores::Cores, launch::of_a_launcher, roles::SPAWNED};
use crate::{Error, Result, settings::Settings};

/// How often it is looked whether all live.
const ROUND: Duration = Duration::from_millis(100);
/// A process that lived shorter died quickly.
const QUICKLY: Duration = Duration::from_secs(5);
/// So many that died quickly are replaced at once: a task that takes its workers down does so until
/// the scheduler has had enough of it.
const AT_ONCE: u32 = 8;
/// Of more, one is replaced in this time.
const PACE: Duration = Duration::from_secs(2);
/// Processes that were told to end are given this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Keeps a cluster's worker processes. Dropping it ends them; when the drop returns, none is left.
pub(super) struct Nanny {
    shared: Arc<Shared>,
    watch: Option<thread::JoinHandle<()>>,
}

struct Shared {
    file: SchedulerFile,
    settings: Settings,
    builder: Builder,
    kept: Mutex<Kept>,
    ending: Condvar,
}

#[derive(Default)]
struct Kept {
    workers: Vec<Worker>,
    ended: bool,
}

struct Worker {
    process: Child,
    threads: u32,
    /// What it is bound to.
    cores: Option<Cores>,
    born: Instant,
}

impl Nanny {
    /// Keeps no process yet.
    pub(super) fn new(file: SchedulerFile, settings: Settings, builder: Builder) -> Self {
        let shared = Shared { file, settings, builder, kept: Mutex::default(), ending: Condvar::new() };
        Self { shared: Arc::new(shared), watch: None }
    }

    /// Starts one more worker process, bound to `cores` if there are any.
    ///
    /// # Errors
    /// If the system starts none.
    pub(super) fn add(&self, threads: u32, cores: Option<Cores>) -> Result<()> {
        let worker = self.shared.spawn(threads, cores)?;
        self.shared.lock().workers.push(worker);
        Ok(())
    }

    /// From now on those that die are replaced.
    ///
    /// # Errors
    /// If the system starts no thread for that.
    pub(super) fn watch(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        let watch = thread::Builder::new().name("rankine nanny".into()).spawn(move || shared.watch());
        self.watch = Some(watch.map_err(Error::io("start a thread that watches the workers"))?);
        Ok(())
    }

    /// From now on those that end are let go.
    pub(super) fn look_away(&mut self) {
        self.shared.lock().ended = true;
        self.shared.ending.notify_all();
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }

    /// How one of them ended, if one did.
    pub(super) fn death(&self) -> Option<ExitStatus> {
        self.shared.lock().workers.iter_mut().find_map(|worker| worker.process.try_wait().ok()?)
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.shared.lock().workers.iter().map(|worker| worker.process.id()).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let (mut quick, mut replaced) = (0, Instant::now());
        let mut kept = self.lock();
        while !kept.ended {
            for worker in &mut kept.workers {
                let Ok(Some(status)) = worker.process.try_wait() else { continue };
                // A worker that leaves in order was told to.
                if status.success() || (quick >= AT_ONCE && replaced.elapsed() < PACE) {
                    continue;
                }
                quick = if worker.born.elapsed() < QUICKLY { quick + 1 } else { 0 };
                replaced = Instant::now();
                match self.spawn(worker.threads, worker.cores.clone()) {
                    Ok(again) => {
                        tracing::warn!(pid = worker.process.id(), %status, "a worker died; another takes its place");
                        *worker = again;
                    }
                    Err(error) => tracing::warn!(%error, %status, "a worker died and cannot be replaced yet"),
                }
            }
            let waited = self.ending.wait_timeout(kept, ROUND);
            kept = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts this program again as a worker. The secret goes through its standard input, which stays
    /// open: its end tells the worker that this process is gone, however it went.
    fn spawn(&self, threads: u32, cores: Option<Cores>) -> Result<Worker> {
        let program = env::current_exe().map_err(Error::io("find this program's file"))?;
        let mut command = Command::new(&program);
        command.arg("worker").arg(&self.file.address).args(["--threads", &threads.to_string()]);
        if let Some(limit) = self.builder.memory_limit {
            command.args(["--memory-limit", &limit.to_string()]);
        }
        if let Some(Cores(list)) = &cores {
            command.args(["--cores", list]);
        }
        for (name, amount) in &self.builder.resources {
            command.args(["--resource", &format!("{name}={amount}")]);
        }
        command.envs(self.settings.variables());
        let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in of_a_launcher(names) {
            command.env_remove(name);
        }
        // A group of its own: Ctrl-C is for the program, which ends its workers in order.
        command.env(SPAWNED, "1").stdin(Stdio::piped()).process_group(0);
        let attempt = || Error::io(format!("start a worker process of {}", program.display()));
        let mut process = command.spawn().map_err(attempt())?;
        let text = serde_json::to_string(&self.file).map_err(|e| Error::Usage(e.to_string()))?;
        if let Some(stdin) = &mut process.stdin {
            writeln!(stdin, "{text}").map_err(attempt())?;
        }
        Ok(Worker { process, threads, cores, born: Instant::now() })
    }
}

impl Drop for Nanny {
    fn drop(&mut self) {
        self.look_away();
        let start = Instant::now();
        for Worker { process, .. } in &mut self.shared.lock().workers {
            // Whoever did not hear the scheduler's farewell hears this.
            drop(process.stdin.take());
            while matches!(process.try_wait(), Ok(None)) {
                if start.elapsed() > LAST_WORDS {
                    let _ = process.kill();
                    let _ = process.wait();
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
