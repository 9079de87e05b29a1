//! How many jobs a load wants: decisions alone, without a clock and without Slurm, so that each can be told, tested
//! and played again.
//!
//! The target is Dask's: enough workers to get through the work that is known of in [`Policy::target`], no more than
//! there are tasks, twice as many as now where their memory fills up. More are submitted at once, but paced; fewer
//! only after that was wanted for a while, those closest to idle first.

use std::{fmt, num::NonZeroU32, time::Duration};

use crate::{Error, JobId, Result};

/// How a cluster is to follow its load.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The fewest jobs to keep.
    pub minimum: u32,
    /// The most jobs to have.
    pub maximum: u32,
    /// In what time the work that is known of should be done.
    pub target: Duration,
    /// How many tasks one job runs at a time: its workers' threads.
    pub threads: NonZeroU32,
    /// How many decisions in a row must want fewer jobs before one is ended.
    pub wait_count: u32,
    /// How many jobs may be submitted in the first [`period`](Self::period); while more are wanted, it doubles from
    /// one period to the next.
    pub pace: NonZeroU32,
    /// The time that the pace is counted in.
    pub period: Duration,
}

impl Policy {
    /// Dask's: work done within 5 s, three decisions before jobs go; and two jobs in the first ten seconds.
    #[must_use]
    pub fn new(minimum: u32, maximum: u32, threads: NonZeroU32) -> Self {
        Self {
            minimum,
            maximum,
            target: Duration::from_secs(5),
            threads,
            wait_count: 3,
            pace: NonZeroU32::MIN.saturating_add(1),
            period: Duration::from_secs(10),
        }
    }
}

/// What is to be done and what is there for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// How long the tasks that can run, or do, would take one thread.
    pub occupancy: Duration,
    /// How many they are.
    pub tasks: u64,
    /// Bytes of memory in use on all workers.
    pub memory: u64,
    /// Bytes of memory that all workers have; 0 if that is not known.
    pub memory_limit: u64,
    /// The jobs there are.
    pub jobs: Vec<Held>,
}

/// A job of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its number.
    pub id: JobId,
    /// Whether its workers are there; else it waits in the queue.
    pub is_running: bool,
    /// How long the tasks that it has would take one thread.
    pub occupancy: Duration,
    /// Bytes of results that it holds.
    pub memory: u64,
}

/// What to do about a load, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why, in words.
    pub reason: String,
}

/// What to do about a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Submit so many jobs.
    Up(u32),
    /// End these jobs.
    Down(Vec<JobId>),
}

/// As `keep: the reason`.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::Keep => write!(f, "keep")?,
            Action::Up(count) => write!(f, "submit {count}")?,
            Action::Down(jobs) => {
                let jobs: Vec<String> = jobs.iter().map(JobId::to_string).collect();
                write!(f, "end {}", jobs.join(", "))?;
            }
        }
        write!(f, ": {}", self.reason)
    }
}

/// The share of the workers' memory in use above which there should be more of them.
const FULL: f64 = 0.6;

/// Follows a load by a policy.
#[derive(Debug, Clone)]
pub struct Adaptive {
    policy: Policy,
    /// How many decisions in a row have wanted fewer jobs.
    fewer: u32,
    pace: Pace,
}

/// What may be submitted when.
#[derive(Debug, Clone)]
struct Pace {
    /// When the present period began.
    since: Option<Duration>,
    /// How many may be submitted in it.
    allowed: u32,
    /// How many were.
    submitted: u32,
}

impl Pace {
    /// How many more may be submitted now.
    fn left(&mut self, policy: &Policy, now: Duration) -> u32 {
        let periods =
            self.since.map(|since| now.saturating_sub(since).as_nanos() / policy.period.as_nanos().max(1));
        match periods {
            Some(0) => {}
            // One that used up what it might is followed by one that may do twice as much.
            Some(1) if self.submitted >= self.allowed => {
                let allowed = self.allowed.saturating_mul(2);
                *self = Self { since: Some(now), allowed, submitted: 0 };
            }
            _ => *self = Self { since: Some(now), allowed: policy.pace.get(), submitted: 0 },
        }
        self.allowed - self.submitted
    }
}

impl Adaptive {
    /// Begins to follow a load.
    ///
    /// # Errors
    /// If the policy contradicts itself.
    pub fn new(policy: Policy) -> Result<Self> {
        if policy.minimum > policy.maximum || policy.maximum == 0 {
            let reason =
                format!("the most jobs are {}, which must be more than none and no less", policy.maximum);
            return Err(Error::option("minimum", policy.minimum, reason));
        }
        if policy.target.is_zero() {
            return Err(Error::option("target", "no time at all", "work takes some: say such as 5 seconds"));
        }
        Ok(Self { policy, fewer: 0, pace: Pace { since: None, allowed: 0, submitted: 0 } })
    }

    /// What to do about a load. `now` is the time since any moment, always the same one.
    pub fn decide(&mut self, load: &Load, now: Duration) -> Decision {
        let (target, mut reason) = self.target(load);
        let have = count(load.jobs.len());
        if target >= have {
            self.fewer = 0;
        }
        let action = if target > have {
            let up = (target - have).min(self.pace.left(&self.policy, now));
            let pace = &mut self.pace;
            pace.submitted += up;
            if up < target - have {
                reason += &format!("; {} of {} this period", pace.submitted, pace.allowed);
            }
            if up > 0 { Action::Up(up) } else { Action::Keep }
        } else if target < have {
            let (down, why) = self.fewer(load, target);
            reason += &why;
            if down.is_empty() { Action::Keep } else { Action::Down(down) }
        } else {
            Action::Keep
        };
        Decision { action, reason: format!("{have} jobs, {target} wanted: {reason}") }
    }

    /// How many jobs there should be, and why.
    fn target(&self, load: &Load) -> (u32, String) {
        let Policy { minimum, maximum, target, threads, .. } = self.policy;
        let work = load.occupancy.as_secs_f64();
        // More threads than tasks are of no use, though the tasks be long.
        let wanted = (work / target.as_secs_f64()).ceil().min(load.tasks as f64);
        let for_work = (wanted / f64::from(threads.get())).ceil() as u32;
        // How long a task takes is not known before one of its kind has run.
        let for_work = if load.tasks > 0 { for_work.max(1) } else { 0 };
        let running = count(load.jobs.iter().filter(|job| job.is_running).count());
        let is_full = load.memory as f64 > FULL * load.memory_limit as f64 && load.memory_limit > 0;
        let for_memory = if is_full { running.saturating_mul(2) } else { 0 };
        let wanted = for_work.max(for_memory);
        let clipped = wanted.clamp(minimum, maximum);
        let mut reason = if for_memory > for_work {
            format!("memory is {:.0} % full", 100.0 * load.memory as f64 / load.memory_limit as f64)
        } else {
            format!("{} tasks with {work:.1} s of work to do in {:.1} s", load.tasks, target.as_secs_f64())
        };
        if clipped != wanted {
            let bound = if clipped > wanted { "no fewer" } else { "no more" };
            reason += &format!(", which want {wanted}, but {bound} than {clipped}");
        }
        (clipped, reason)
    }

    /// Which jobs go if so many are to stay, and why not more.
    fn fewer(&mut self, load: &Load, target: u32) -> (Vec<JobId>, String) {
        self.fewer += 1;
        if self.fewer < self.policy.wait_count {
            return (
                Vec::new(),
                format!("; for {} of {} decisions so far", self.fewer, self.policy.wait_count),
            );
        }
        let (running, pending): (Vec<&Held>, Vec<&Held>) = load.jobs.iter().partition(|job| job.is_running);
        let threads = running.len() as u64 * u64::from(self.policy.threads.get());
        let tasks_wait = load.tasks > threads;
        // The last in the queue have waited least.
        let pending = pending.iter().rev().filter(|_| !tasks_wait).map(|job| job.id.clone());
        let mut down: Vec<JobId> = pending.take(load.jobs.len() - target as usize).collect();
        let mut idle = running;
        idle.sort_by(|a, b| (a.occupancy, a.memory, &b.id).cmp(&(b.occupancy, b.memory, &a.id)));
        // Those that stay must have room for what those that go hold.
        let each = load.memory_limit as f64 / idle.len().max(1) as f64;
        let needed = if each > 0.0 { (load.memory as f64 / (FULL * each)).ceil() as usize } else { 0 };
        let spare = idle.len().saturating_sub(needed.max(target as usize));
        down.extend(idle.iter().take(spare).map(|job| job.id.clone()));
        if down.is_empty() {
            let why =
                if tasks_wait { "; tasks wait for what is in the queue" } else { "; their memory is needed" };
            return (down, why.to_owned());
        }
        self.fewer = 0;
        (down, "; those closest to idle go".into())
    }
}

fn count(jobs: usize) -> u32 {
    u32::try_from(jobs).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// From none to 100 jobs of four threads.
    fn adaptive(change: impl FnOnce(&mut Policy)) -> Adaptive {
        let mut policy = Policy::new(0, 100, NonZeroU32::new(4).unwrap());
        change(&mut policy);
        Adaptive::new(policy).unwrap()
    }

    fn held(id: u32, is_running: bool, occupancy: u32) -> Held {
        Held { id: id.into(), is_running, occupancy: SECOND * occupancy, memory: 0 }
    }

    /// So many tasks of a second on jobs 1 to `jobs`.
    fn load(tasks: u64, jobs: u32) -> Load {
        let jobs = (1..=jobs).map(|id| held(id, true, 0)).collect();
        Load { occupancy: SECOND * u32::try_from(tasks).unwrap(), tasks, jobs, ..Load::default() }
    }

    fn up(decision: &Decision) -> u32 {
        if let Action::Up(count) = decision.action { count } else { panic!("{decision}") }
    }

    fn down(decision: Decision) -> Vec<u32> {
        let Action::Down(jobs) = decision.action else { panic!("{decision}") };
        jobs.iter().map(JobId::number).collect()
    }

    #[test]
    fn work_wants_as_many_jobs_as_get_through_it_in_time() {
        let mut adaptive = adaptive(|policy| policy.pace = NonZeroU32::MAX);
        // 80 s of work within 5 s want 16 threads.
        let decision = adaptive.decide(&load(80, 0), SECOND);
        assert_eq!(up(&decision), 4);
        assert_eq!(
            decision.to_string(),
            "submit 4: 0 jobs, 4 wanted: 80 tasks with 80.0 s of work to do in 5.0 s"
        );
        // Three tasks of an hour use three threads.
        let long = Load { occupancy: 3600 * SECOND, tasks: 3, ..Load::default() };
        assert_eq!(up(&adaptive.decide(&long, SECOND)), 1);
        assert_eq!(adaptive.decide(&load(80, 4), SECOND).action, Action::Keep);
        assert_eq!(adaptive.decide(&load(0, 0), SECOND).action, Action::Keep);
    }

    #[test]
    fn a_first_task_of_unknown_length_gets_a_job() {
        let unknown = Load { tasks: 1, ..Load::default() };
        assert_eq!(up(&adaptive(|_| ()).decide(&unknown, SECOND)), 1);
    }

    #[test]
    fn bounds_are_kept_and_said() {
        let mut adaptive = adaptive(|policy| (policy.minimum, policy.maximum) = (2, 3));
        let decision = adaptive.decide(&load(0, 0), SECOND);
        assert_eq!(up(&decision), 2);
        assert!(decision.reason.ends_with("want 0, but no fewer than 2"), "{decision}");
        let decision = adaptive.decide(&load(1000, 3), SECOND);
        assert_eq!(decision.action, Action::Keep);
        assert!(decision.reason.ends_with("want 50, but no more than 3"), "{decision}");
        let wrong = |minimum, maximum| Adaptive::new(Policy::new(minimum, maximum, NonZeroU32::MIN)).is_err();
        assert!(wrong(3, 2) && wrong(0, 0) && !wrong(2, 2));
    }

    #[test]
    fn jobs_are_submitted_at_a_pace_that_doubles_while_the_wish_stands() {
        let mut adaptive = adaptive(|_| ());
        let mut jobs = 0;
        let mut submitted = Vec::new();
        for tenth in 0..400 {
            let now = SECOND * tenth / 10;
            if let Action::Up(count) = adaptive.decide(&load(2000, jobs), now).action {
                submitted.push((tenth / 10, count));
                jobs += count;
            }
        }
        assert_eq!(submitted, [(0, 2), (10, 4), (20, 8), (30, 16)]);
        // Once the wish was met, it begins anew.
        assert_eq!(adaptive.decide(&load(600, 30), 45 * SECOND).action, Action::Keep);
        assert_eq!(up(&adaptive.decide(&load(2000, 30), 61 * SECOND)), 2);
        let decision = adaptive.decide(&load(2000, 32), 62 * SECOND);
        assert_eq!(decision.action, Action::Keep);
        assert!(decision.reason.ends_with("2 of 2 this period"), "{decision}");
    }

    #[test]
    fn jobs_go_only_after_fewer_were_wanted_for_a_while() {
        let mut adaptive = adaptive(|_| ());
        for now in 0..2 {
            let decision = adaptive.decide(&load(0, 3), SECOND * now);
            assert_eq!(decision.action, Action::Keep, "{decision}");
        }
        // A burst in between begins the count anew.
        assert_eq!(adaptive.decide(&load(60, 3), 2 * SECOND).action, Action::Keep);
        for now in 3..5 {
            assert_eq!(adaptive.decide(&load(0, 3), SECOND * now).action, Action::Keep);
        }
        assert_eq!(down(adaptive.decide(&load(0, 3), 5 * SECOND)), [3, 2, 1]);
    }

    /// After the wish for fewer stood long enough.
    fn at_once() -> Adaptive {
        adaptive(|policy| policy.wait_count = 1)
    }

    #[test]
    fn those_closest_to_idle_go_first() {
        let mut load = load(20, 4);
        for (job, occupancy) in load.jobs.iter_mut().zip([7, 0, 9, 4]) {
            job.occupancy = SECOND * occupancy;
        }
        assert_eq!(down(at_once().decide(&load, SECOND)), [2, 4, 1]);
        // Among idle ones, the one whose results are the least to move.
        for (job, memory) in load.jobs.iter_mut().zip([5, 9, 1, 3]) {
            (job.occupancy, job.memory) = (Duration::ZERO, memory);
        }
        assert_eq!(down(at_once().decide(&load, SECOND)), [3, 4, 1]);
    }

    #[test]
    fn a_job_in_the_queue_is_not_cancelled_while_tasks_wait_for_it() {
        // One job runs four of eight short tasks, two are in the queue; one would do.
        let mut load = load(8, 1);
        load.occupancy = SECOND;
        load.jobs.extend([held(2, false, 0), held(3, false, 0)]);
        load.jobs[0].occupancy = SECOND;
        let mut adaptive = at_once();
        let decision = adaptive.decide(&load, SECOND);
        assert_eq!(decision.action, Action::Keep);
        assert!(decision.reason.ends_with("tasks wait for what is in the queue"), "{decision}");
        // With four tasks left nobody waits for it.
        load.tasks = 4;
        assert_eq!(down(adaptive.decide(&load, SECOND)), [3, 2]);
        // Of more that run than are wanted, some may go all the same.
        load.tasks = 80;
        load.jobs.extend([held(4, true, 0), held(5, true, 0)]);
        assert_eq!(down(adaptive.decide(&load, SECOND)), [5, 4]);
    }

    #[test]
    fn memory_that_fills_up_wants_twice_the_jobs_and_holds_those_that_are_needed_for_it() {
        let mut load = load(1, 2);
        (load.memory, load.memory_limit) = (61, 100);
        let decision = at_once().decide(&load, SECOND);
        assert_eq!(up(&decision), 2);
        assert!(decision.reason.ends_with("memory is 61 % full"), "{decision}");
        // 45 of 100 bytes need one and a half of two jobs.
        load.memory = 45;
        let decision = at_once().decide(&load, SECOND);
        assert_eq!(decision.action, Action::Keep);
        assert!(decision.reason.ends_with("their memory is needed"), "{decision}");
        load.memory = 30;
        assert_eq!(down(at_once().decide(&load, SECOND)), [2]);
    }
}
