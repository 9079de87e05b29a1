//! A cluster of processes, and what is done to them.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use rand::{Rng, rngs::SmallRng};

use crate::{
    network,
    proxy::{self, Trouble},
};

/// Silence after which the cluster takes somebody for dead, where processes get to run at once.
const DEAD_AFTER: Duration = Duration::from_millis(2500);
/// How many times as long as a process takes to start is waited for besides: on a machine that has more to do than it
/// can, silence means less.
const PATIENCE: u32 = 20;
/// Workers there are at least and at most.
const FEWEST: usize = 3;
const MOST: usize = 6;

/// What ends by itself after a while.
enum Passing {
    Stopped,
    Cut,
    SlowLink,
}

struct Worker {
    number: u64,
    process: Child,
    trouble: Arc<Trouble>,
    /// What is done to it, and until when.
    passing: Vec<(Instant, Passing)>,
}

impl Worker {
    fn signal(&self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
    }

    fn cut(&self, off: bool) {
        self.trouble.cut.store(off, Ordering::SeqCst);
        if network::is_alone() {
            network::cut(self.number, off);
        }
    }

    fn slow_link(&self, slow: bool) {
        self.trouble.slow.store(slow, Ordering::SeqCst);
        if network::is_alone() {
            network::slow(self.number, slow);
        }
    }

    fn end(&self, passing: &Passing) {
        match passing {
            Passing::Stopped => self.signal("-CONT"),
            Passing::Cut => self.cut(false),
            Passing::SlowLink => self.slow_link(false),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The cluster, what happened to it, and what will.
pub struct World {
    random: SmallRng,
    directory: tempfile::TempDir,
    scheduler: Child,
    /// Silence after which it takes somebody for dead.
    dead_after: Duration,
    workers: Vec<Worker>,
    started: u64,
    kinds: BTreeMap<&'static str, u64>,
    chronicle: Vec<String>,
    begun: Instant,
}

impl Drop for World {
    fn drop(&mut self) {
        self.workers.clear();
        let _ = self.scheduler.kill();
        let _ = self.scheduler.wait();
    }
}

impl World {
    /// A scheduler with a journal, and some workers.
    pub fn new(random: SmallRng) -> Result<Self, Failed> {
        if network::is_alone() {
            network::begin()?;
        }
        let directory = tempfile::tempdir()?;
        let dead_after = DEAD_AFTER + Self::start_of_a_process()? * PATIENCE;
        let scheduler = Self::start_scheduler(directory.path(), dead_after, "--journal")?;
        let (workers, kinds, chronicle) = (Vec::new(), BTreeMap::new(), Vec::new());
        let begun = Instant::now();
        let mut world =
            Self { random, directory, scheduler, dead_after, workers, started: 0, kinds, chronicle, begun };
        (0..FEWEST + 1).try_for_each(|_| world.start_worker())?;
        Ok(world)
    }

    pub fn scheduler_file(&self) -> PathBuf {
        self.directory.path().join("scheduler.json")
    }

    /// How many faults there were.
    pub fn count(&self) -> u64 {
        self.kinds.values().sum()
    }

    /// How many of each kind.
    pub fn kinds(&self) -> String {
        let each: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
        each.join(", ")
    }

    /// What was done, when, and how long that took.
    pub fn chronicle(&self) -> String {
        let silence = format!("who is silent for {:.1?} is taken for dead", self.dead_after);
        [&[silence], &self.chronicle[..]].concat().join("\n")
    }

    pub fn network(&self) -> &'static str {
        if network::is_alone() { "networks of their own" } else { "proxies" }
    }

    /// How long a program takes that has nothing to do.
    fn start_of_a_process() -> Result<Duration, Failed> {
        let begun = Instant::now();
        Self::program(&["--help"], DEAD_AFTER)?.stdout(Stdio::null()).status()?;
        Ok(begun.elapsed())
    }

    fn program(words: &[&str], dead_after: Duration) -> Result<Command, Failed> {
        // However the test ends, nothing of it is left.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(env::current_exe()?);
        let silence = dead_after.as_secs_f64().to_string();
        command.args(words).args(["--transport", "tcp", "--log", "error", "--dead-after", &silence]);
        command.args(["--allowed-failures", "100000"]).env("CHAOS_PROGRAM", "1");
        Ok(command)
    }

    fn start_scheduler(directory: &Path, dead_after: Duration, how: &str) -> Result<Child, Failed> {
        let home = if network::is_alone() { network::HOME } else { "127.0.0.1" };
        let [file, journal] = ["scheduler.json", "journal"].map(|name| directory.join(name));
        let _ = fs::remove_file(&file);
        let (shown, journal) = (file.to_string_lossy().into_owned(), journal.to_string_lossy().into_owned());
        let listen = format!("tcp://{home}:0");
        let words = ["scheduler", "--listen", &listen, "--scheduler-file", &shown, how, &journal];
        let child = Self::program(&words, dead_after)?.stdout(Stdio::null()).spawn()?;
        let begun = Instant::now();
        while !file.exists() {
            if begun.elapsed() > Duration::from_secs(30) {
                return Err("the scheduler does not start".into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(child)
    }

    fn start_worker(&mut self) -> Result<(), Failed> {
        self.started += 1;
        let (number, trouble) = (self.started, Arc::new(Trouble::default()));
        let shown = self.scheduler_file().to_string_lossy().into_owned();
        let local = self.directory.path().to_string_lossy().into_owned();
        let more = ["--scheduler-file", &shown, "--threads", "2", "--local-directory", &local];
        let process = if network::is_alone() {
            let listen = format!("tcp://{}:0", network::address(number));
            let words = [&["worker"], &more[..], &["--listen", &listen]].concat();
            network::start(number, &Self::program(&words, self.dead_after)?)?
        } else {
            let file: serde_json::Value = serde_json::from_str(&fs::read_to_string(&shown)?)?;
            let scheduler =
                file["address"].as_str().unwrap_or_default().trim_start_matches("tcp://").to_owned();
            let address = format!("tcp://{}", proxy::begin(scheduler, trouble.clone())?);
            let words = [&["worker", &address], &more[..]].concat();
            Self::program(&words, self.dead_after)?.stdout(Stdio::null()).spawn()?
        };
        self.workers.push(Worker { number, process, trouble, passing: Vec::new() });
        Ok(())
    }

    /// Ends what has lasted long enough, and starts workers in the place of those that are gone.
    pub fn tend(&mut self) -> Result<(), Failed> {
        let now = Instant::now();
        for worker in &mut self.workers {
            let over: Vec<_> = worker.passing.extract_if(.., |(until, _)| *until <= now).collect();
            over.iter().for_each(|(_, passing)| worker.end(passing));
        }
        // Who was taken for dead leaves when it is told.
        self.workers.retain_mut(|worker| matches!(worker.process.try_wait(), Ok(None)));
        while self.workers.len() < FEWEST {
            self.start_worker()?;
        }
        if let Ok(Some(status)) = self.scheduler.try_wait() {
            return Err(format!("the scheduler ended by itself: {status}").into());
        }
        Ok(())
    }

    /// Waits for a moment, and then something goes wrong.
    pub fn next_fault(&mut self) -> Result<(), Failed> {
        let pause = self.random.random_range(10..250);
        thread::sleep(Duration::from_millis(pause));
        self.tend()?;
        let chosen = self.random.random_range(0..self.workers.len());
        // Some silences are noticed, others are not.
        let short = Duration::from_millis(self.random.random_range(20..600));
        let long = self.dead_after + Duration::from_millis(self.random.random_range(500..2000));
        let now = Instant::now();
        let kind = self.random.random_range(0..100);
        let worker = &mut self.workers[chosen];
        let number = worker.number;
        let kind = match kind {
            0..25 => {
                drop(self.workers.remove(chosen));
                "killed"
            }
            25..40 => {
                worker.signal("-STOP");
                worker.passing.push((now + short, Passing::Stopped));
                "stopped for a moment"
            }
            40..48 => {
                worker.signal("-STOP");
                worker.passing.push((now + long, Passing::Stopped));
                "stopped for longer than it may be silent"
            }
            48..60 => {
                worker.cut(true);
                worker.passing.push((now + short, Passing::Cut));
                "cut off for a moment"
            }
            60..66 => {
                worker.cut(true);
                worker.passing.push((now + long, Passing::Cut));
                "cut off for longer than it may be silent"
            }
            66..78 => {
                worker.slow_link(true);
                worker.passing.push((now + short + short, Passing::SlowLink));
                "slowed down"
            }
            78..95 if self.workers.len() < MOST => {
                self.start_worker()?;
                "joined late"
            }
            78..95 => {
                drop(self.workers.remove(chosen));
                "killed"
            }
            _ => {
                self.scheduler.kill()?;
                self.scheduler.wait()?;
                self.scheduler = Self::start_scheduler(self.directory.path(), self.dead_after, "--restore")?;
                "scheduler died and was restored"
            }
        };
        *self.kinds.entry(kind).or_default() += 1;
        let (at, took) = (now - self.begun, now.elapsed());
        self.chronicle.push(format!("{:8.3} worker {number}: {kind} ({took:.0?})", at.as_secs_f64()));
        Ok(())
    }
}
