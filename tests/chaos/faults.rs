//! A cluster of processes, and what is done to them.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use rand::rngs::SmallRng;

use crate::{
    network,
    plan::{Fault, Kind, Plan},
    proxy::{self, Trouble},
};

/// How workers reach the scheduler and each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Each is on a host of its own, as far as it can tell.
    Own,
    /// They reach the scheduler through a proxy each.
    Proxies,
}

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
    SlowProcess(Hampered),
}

struct Worker {
    number: u64,
    network: Network,
    process: Child,
    trouble: Arc<Trouble>,
    /// What is done to it, and until when.
    passing: Vec<(Instant, Passing)>,
    /// Whether it was silent for longer than it may be.
    silenced: bool,
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([name, &pid.to_string()]).status();
}

impl Worker {
    fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    fn cut(&self, off: bool) {
        match self.network {
            Network::Own => network::cut(self.number, off),
            Network::Proxies => self.trouble.cut.store(off, Ordering::SeqCst),
        }
    }

    fn slow_link(&mut self, slow: bool) -> Result<(), Failed> {
        match self.network {
            Network::Own => network::slow(self.number, self.process.id(), slow).or_else(|error| {
                // Its link goes with it if it is gone.
                if self.process.try_wait()?.is_some() { Ok(()) } else { Err(error) }
            }),
            Network::Proxies => {
                self.trouble.slow.store(slow, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn lasting(&mut self, passing: Passing, lasts: Duration) {
        self.passing.push((Instant::now() + lasts, passing));
    }

    fn end(&mut self, passing: Passing) -> Result<(), Failed> {
        match passing {
            Passing::Stopped => self.signal("-CONT"),
            Passing::Cut => self.cut(false),
            Passing::SlowLink => self.slow_link(false)?,
            Passing::SlowProcess(hampered) => drop(hampered),
        }
        Ok(())
    }
}

/// A process that gets to run for a tenth of the time, until this is dropped.
struct Hampered {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hampered {
    fn new(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let enough = over.clone();
        let thread = thread::spawn(move || {
            while !enough.load(Ordering::SeqCst) {
                signal(pid, "-STOP");
                thread::sleep(Duration::from_millis(45));
                signal(pid, "-CONT");
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Hampered {
    /// Once nobody signals it any more its number may be another's.
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.passing.clear();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The cluster, what happened to it, and what will.
pub struct World {
    plan: Plan,
    network: Network,
    directory: tempfile::TempDir,
    scheduler: Child,
    /// Silence after which it takes somebody for dead.
    dead_after: Duration,
    workers: Vec<Worker>,
    started: u64,
    kinds: BTreeMap<Kind, u64>,
    /// Workers that were silent for too long and left when they were told that they had been taken for dead.
    left: u64,
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
    pub fn new(random: SmallRng, network: Network) -> Result<Self, Failed> {
        if network == Network::Own {
            network::begin()?;
        }
        let directory = tempfile::tempdir()?;
        let dead_after = DEAD_AFTER + Self::start_of_a_process()? * PATIENCE;
        let scheduler = Self::start_scheduler(directory.path(), network, dead_after, "--journal")?;
        let mut world = Self {
            plan: Plan::new(random),
            network,
            directory,
            scheduler,
            dead_after,
            workers: Vec::new(),
            started: 0,
            kinds: BTreeMap::new(),
            left: 0,
            chronicle: Vec::new(),
            begun: Instant::now(),
        };
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

    /// How many workers were taken for dead, and found out.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// How many of each kind.
    pub fn kinds(&self) -> String {
        let each: Vec<String> =
            self.kinds.iter().map(|(kind, count)| format!("{count} x {}", kind.name())).collect();
        each.join(", ")
    }

    /// What was done, when, and how long that took.
    pub fn chronicle(&self) -> String {
        let silence = format!("who is silent for {:.1?} is taken for dead", self.dead_after);
        [&[silence], &self.chronicle[..]].concat().join("\n")
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

    fn start_scheduler(
        directory: &Path,
        network: Network,
        dead_after: Duration,
        how: &str,
    ) -> Result<Child, Failed> {
        let home = if network == Network::Own { network::HOME } else { "127.0.0.1" };
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
        let process = if self.network == Network::Own {
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
        let network = self.network;
        let (passing, silenced) = (Vec::new(), false);
        self.workers.push(Worker { number, network, process, trouble, passing, silenced });
        Ok(())
    }

    /// Ends what has lasted long enough, and starts workers in the place of those that are gone.
    pub fn tend(&mut self) -> Result<(), Failed> {
        let now = Instant::now();
        for worker in &mut self.workers {
            let over: Vec<_> = worker.passing.extract_if(.., |(until, _)| *until <= now).collect();
            over.into_iter().try_for_each(|(_, passing)| worker.end(passing))?;
        }
        // Who was taken for dead leaves when it is told.
        let gone = self.workers.extract_if(.., |worker| !matches!(worker.process.try_wait(), Ok(None)));
        self.left += gone.filter(|worker| worker.silenced).count() as u64;
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
        let fault = self.plan.next().ok_or("the plan has no end")?;
        thread::sleep(fault.pause);
        self.tend()?;
        let begun = Instant::now();
        let number = self.befalls(&fault, fault.aimed_at(self.workers.len()))?;
        *self.kinds.entry(fault.kind).or_default() += 1;
        let (at, took, what) = (begun - self.begun, begun.elapsed(), fault.kind.name());
        self.chronicle.push(format!("{:8.3} worker {number}: {what} ({took:.0?})", at.as_secs_f64()));
        Ok(())
    }

    /// Once nothing else happens, stops a worker until nobody knows it any more: it leaves when it goes on.
    pub fn silence_one(&mut self, known: impl Fn(u32) -> Result<bool, Failed>) -> Result<(), Failed> {
        let patience = self.dead_after + Duration::from_secs(60);
        while self.workers.iter().any(|worker| !worker.passing.is_empty()) {
            self.tend()?;
            thread::sleep(Duration::from_millis(20));
        }
        // Who was stopped before may be leaving.
        self.start_worker()?;
        let mut worker = self.workers.pop().ok_or("it was just started")?;
        let until = |what: &str, wanted: &mut dyn FnMut() -> Result<bool, Failed>| {
            let begun = Instant::now();
            while !wanted()? {
                if begun.elapsed() > patience {
                    return Err(Failed::from(format!("waited for {what} in vain:\n{}", self.chronicle())));
                }
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        };
        let pid = worker.process.id();
        until("a worker to join", &mut || known(pid))?;
        worker.signal("-STOP");
        until("a silent worker to be taken for dead", &mut || Ok(!known(pid)?))?;
        worker.signal("-CONT");
        until("it to leave", &mut || Ok(worker.process.try_wait()?.is_some()))
    }

    /// Does it; gives the number of whom it befell.
    fn befalls(&mut self, Fault { kind, lasts, .. }: &Fault, chosen: usize) -> Result<u64, Failed> {
        let (kind, short, long) = (*kind, *lasts, self.dead_after + *lasts);
        let worker = &mut self.workers[chosen];
        let number = worker.number;
        match kind {
            Kind::Killed => drop(self.workers.remove(chosen)),
            Kind::StoppedShortly | Kind::StoppedForLong => {
                worker.signal("-STOP");
                worker.silenced |= kind == Kind::StoppedForLong;
                worker.lasting(Passing::Stopped, if kind == Kind::StoppedForLong { long } else { short });
            }
            Kind::CutShortly | Kind::CutForLong => {
                worker.cut(true);
                worker.silenced |= kind == Kind::CutForLong;
                worker.lasting(Passing::Cut, if kind == Kind::CutForLong { long } else { short });
            }
            Kind::SlowLink => {
                worker.slow_link(true)?;
                worker.lasting(Passing::SlowLink, short);
            }
            Kind::SlowProcess => {
                let hampered = Hampered::new(worker.process.id());
                worker.lasting(Passing::SlowProcess(hampered), short);
            }
            Kind::Joined => {
                // There are not to be too many.
                if self.workers.len() >= MOST {
                    drop(self.workers.remove(chosen));
                }
                self.start_worker()?;
            }
            Kind::SchedulerRestored => {
                self.scheduler.kill()?;
                self.scheduler.wait()?;
                self.scheduler =
                    Self::start_scheduler(self.directory.path(), self.network, self.dead_after, "--restore")?;
            }
        }
        Ok(number)
    }
}
