//! What a simulation is told: the cluster, who wants what, and what goes wrong.

use rankine::scheduler;

use crate::{Network, Problem};

/// A cluster, and what happens to it. Times are nanoseconds.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Workers that are there from the start.
    pub workers: u32,
    /// Compute threads of each.
    pub threads: u32,
    /// What lies between them.
    pub network: Network,
    /// What the scheduler needs for each message it gets or sends. A whole graph is one message: what it takes to
    /// take graphs in is measured, and not part of the virtual time.
    pub message_cost: u64,
    /// Tasks without dependencies that a worker is given ahead of time, in multiples of its threads.
    pub saturation: f64,
    /// Whether idle workers take over from others; Dask's do in any case.
    pub stealing: bool,
    /// Bytes that each worker may hold, beyond which results go to disk; 0 for no limit.
    pub memory_limit: u64,
    /// Silence after which the scheduler takes a worker for dead.
    pub worker_ttl: u64,
    /// How long a worker that does not answer is waited for by who wants results of it.
    pub patience: u64,
    /// Of a thousand workers so many are stragglers.
    pub stragglers: u32,
    /// By how much stragglers are slower.
    pub slowness: f64,
    /// What clients want; each request is a client.
    pub requests: Vec<Request>,
    /// What goes wrong, and when.
    pub faults: Vec<(u64, Fault)>,
}

/// What a client wants.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it submits the problem.
    pub at: u64,
    /// The tasks it wants the results of.
    pub wants: Vec<u32>,
    /// When it cancels which of them.
    pub cancels: Option<(u64, Vec<u32>)>,
}

impl Request {
    /// The results of all tasks that no other needs, at once.
    pub fn ends(problem: &Problem) -> Self {
        Self { at: 0, wants: problem.ends(), cancels: None }
    }
}

/// What can go wrong. Workers are counted among those that live and stay; the last one is spared.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A worker comes late.
    Join,
    /// A worker's process dies: its connections end at once.
    Kill(usize),
    /// A worker is gone without a word: nobody hears anything.
    Vanish(usize),
    /// The same with all workers of its host, unless there are no others.
    VanishHost(usize),
    /// A worker is told to leave.
    Retire(usize),
}

impl Setting {
    /// A cluster on which all goes well and one client wants what a problem ends in.
    pub fn new(workers: u32, problem: &Problem) -> Self {
        Self {
            workers,
            threads: 1,
            network: Network::default(),
            message_cost: 250,
            saturation: 1.1,
            stealing: true,
            memory_limit: 0,
            worker_ttl: 30_000_000_000,
            patience: 30_000_000_000,
            stragglers: 0,
            slowness: 4.0,
            requests: vec![Request::ends(problem)],
            faults: vec![],
        }
    }

    /// Rankine's scheduler for such a cluster.
    pub fn rankine(&self) -> scheduler::State {
        scheduler::State::new(scheduler::Config {
            // Deaths are drawn here, not caused by tasks.
            allowed_failures: 100,
            worker_ttl: self.worker_ttl,
            bandwidth: self.network.bandwidth,
            saturation: self.saturation,
            stealing: self.stealing,
            ..Default::default()
        })
    }

    /// By how much a worker is slower than others: stragglers lie evenly among them.
    pub(crate) fn slowness_of(&self, worker: usize) -> f64 {
        let before = |worker: usize| worker as u64 * u64::from(self.stragglers) / 1000;
        if before(worker + 1) > before(worker) { self.slowness } else { 1.0 }
    }

    /// Nanoseconds that no schedule can go below: the longest chain of tasks, and all work shared by all threads.
    pub fn lower_bound(&self, problem: &Problem) -> u64 {
        let speeds =
            (0..self.workers as usize).map(|worker| f64::from(self.threads) / self.slowness_of(worker));
        problem.critical_path().max((problem.work() as f64 / speeds.sum::<f64>()) as u64)
    }
}
