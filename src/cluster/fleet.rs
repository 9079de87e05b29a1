//! The worker jobs of a cluster under Slurm: how many there should be, which go, what became of them. Decisions
//! alone, without a clock and without Slurm.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rankine_slurm::{
    JobId, JobState, Queued,
    adaptive::{Action, Adaptive, Decision, Held, Load},
};

use crate::protocol::{SchedulerInfo, WorkerStatus};

/// So many jobs in a row that end before a worker of theirs came are no accident.
const FAILURES: u32 = 3;
/// After a submission that failed, the next is tried this much later; after two, twice that.
const RETRY: Duration = Duration::from_secs(5);

/// Seconds before a worker leaves by itself in which another job is submitted: the queue takes its time, and what
/// the worker holds is to have a place to go to.
const LEAD: f64 = 60.0;

/// How many jobs a cluster wants.
pub(super) enum Wish {
    /// So many.
    Fixed(u32),
    /// As many as its load wants.
    Adaptive(Adaptive),
}

/// A job of the cluster.
struct Kept {
    /// Whether workers of it have come.
    came: bool,
    /// Since when it is to go.
    leaving: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Submit so many jobs.
    Submit(u32),
    /// Let the workers of a job hand their results over and go; with them the job ends.
    Retire(Vec<Arc<str>>),
    /// Cancel jobs.
    Cancel(Vec<JobId>),
    /// There is no sense in going on.
    GiveUp {
        /// Why.
        reason: String,
        /// The job that failed last, if jobs did.
        last: Option<JobId>,
    },
}

/// The jobs of a cluster.
pub(super) struct Fleet {
    wish: Wish,
    jobs: BTreeMap<JobId, Kept>,
    /// Jobs in a row of which no worker came.
    failures: u32,
    /// The last of them.
    failed: Option<JobId>,
    /// How often in a row a submission failed, until when none is tried, and what was said last.
    refused: Option<(u32, Duration, String)>,
    /// How long a job that is to go may take for that.
    patience: Duration,
    /// What was decided last, which is not said again.
    said: String,
}

impl Fleet {
    /// A cluster that wants no job yet.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            wish: Wish::Fixed(0),
            jobs: BTreeMap::new(),
            failures: 0,
            failed: None,
            refused: None,
            patience,
            said: String::new(),
        }
    }

    /// From now on the cluster wants this.
    pub(super) fn wish(&mut self, wish: Wish) {
        self.wish = wish;
        self.failures = 0;
        self.refused = None;
    }

    /// A job could not be submitted at `now`; it is tried again, ever later, and some times at most.
    pub(super) fn refused(&mut self, said: &str, now: Duration) {
        let times = self.refused.as_ref().map_or(0, |(times, ..)| *times) + 1;
        self.refused = Some((times, now + RETRY * times, said.to_owned()));
    }

    /// A job was submitted.
    pub(super) fn submitted(&mut self, id: JobId) {
        self.refused = None;
        self.jobs.insert(id, Kept { came: false, leaving: None });
    }

    /// All jobs that have not ended.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        self.jobs.keys().cloned().collect()
    }

    /// Takes in what Slurm says of the jobs.
    pub(super) fn look(&mut self, queue: &[Queued]) {
        let known: BTreeMap<&JobId, &Queued> = queue.iter().map(|queued| (&queued.id, queued)).collect();
        let Self { jobs, failures, failed, .. } = self;
        jobs.retain(|id, job| {
            let queued = known.get(id);
            if queued.is_some_and(|queued| !queued.state.is_over()) {
                // One that was ended in favour of another begins anew.
                job.came &= !queued.is_some_and(|queued| queued.state.is_waiting());
                return true;
            }
            let state = queued.map_or("unknown to Slurm by now".into(), |queued| queued.state.to_string());
            let cancelled = queued.is_some_and(|queued| queued.state == JobState::Cancelled);
            if job.came {
                *failures = 0;
                tracing::info!(job = %id, state, "a worker job ended");
            } else if job.leaving.is_none() && !cancelled {
                *failures += 1;
                *failed = Some(id.clone());
                tracing::warn!(job = %id, state, "a worker job ended before a worker of it came");
            }
            false
        });
    }

    /// What is to be done at `now`, by any clock, as the cluster is.
    pub(super) fn decide(&mut self, info: &SchedulerInfo, now: Duration) -> Vec<Order> {
        if let Some(last) = self.failed.clone().filter(|_| self.failures >= FAILURES) {
            let reason =
                format!("{} worker jobs in a row ended before a worker of theirs came", self.failures);
            return vec![Order::GiveUp { reason, last: Some(last) }];
        }
        if let Some((times, _, said)) = self.refused.as_ref().filter(|(times, ..)| *times >= FAILURES) {
            let reason = format!("{times} submissions of worker jobs in a row failed: {said}");
            return vec![Order::GiveUp { reason, last: None }];
        }
        let mut workers = BTreeMap::<JobId, Vec<&WorkerStatus>>::new();
        for worker in &info.workers {
            if let Some(id) = job_of(&worker.info.name) {
                workers.entry(id).or_default().push(worker);
            }
        }
        let mut cancelled = Vec::new();
        let (mut held, mut busy) = (Vec::new(), Vec::new());
        for (id, job) in &mut self.jobs {
            let here = workers.get(id).map(Vec::as_slice).unwrap_or_default();
            job.came |= !here.is_empty();
            let is_idle = here.iter().all(|worker| worker.processing == 0);
            if let Some(since) = job.leaving {
                // What it still runs is waited for.
                if here.is_empty() || is_idle && now.saturating_sub(since) > self.patience {
                    cancelled.push(id.clone());
                }
            } else if here.is_empty() && job.came || !here.is_empty() && here.iter().all(|w| goes_soon(w)) {
                // Its workers are gone, or go by themselves: another takes its place.
            } else {
                busy.extend((!is_idle).then(|| id.clone()));
                held.push(Held {
                    id: id.clone(),
                    is_running: job.came,
                    occupancy: here.iter().map(|w| Duration::from_secs_f64(w.occupancy.max(0.0))).sum(),
                    memory: here.iter().map(|w| w.nbytes).sum(),
                });
            }
        }
        let mut orders = Vec::new();
        let decision = self.compare(info, held, now);
        match decision.action {
            Action::Keep => {}
            Action::Up(_) if self.refused.as_ref().is_some_and(|(_, until, _)| now < *until) => {}
            Action::Up(count) => orders.push(Order::Submit(count)),
            Action::Down(ids) => {
                let asked_for = matches!(self.wish, Wish::Fixed(_));
                for id in ids {
                    // Nobody asked for just this one to go: it goes when it has nothing to do.
                    if !asked_for && busy.contains(&id) {
                        continue;
                    }
                    let names = workers.get(&id).map(Vec::as_slice).unwrap_or_default();
                    let names: Vec<_> = names.iter().map(|worker| worker.info.name.clone()).collect();
                    if names.is_empty() {
                        cancelled.push(id.clone());
                    } else {
                        orders.push(Order::Retire(names));
                    }
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.leaving = Some(now);
                    }
                }
            }
        }
        if !cancelled.is_empty() {
            orders.push(Order::Cancel(cancelled));
        }
        orders
    }

    /// Compares what there is with what is wanted; what is decided is logged once.
    fn compare(&mut self, info: &SchedulerInfo, held: Vec<Held>, now: Duration) -> Decision {
        let decision = match &mut self.wish {
            Wish::Fixed(count) => fixed(*count, held),
            Wish::Adaptive(adaptive) => {
                let load = Load {
                    occupancy: Duration::from_secs_f64(info.work.clamp(0.0, 1e9)),
                    tasks: info.runnable,
                    memory: info.workers.iter().map(|w| w.nbytes).sum(),
                    memory_limit: info.workers.iter().map(|w| w.info.memory_limit).sum(),
                    jobs: held,
                };
                adaptive.decide(&load, now)
            }
        };
        let said = decision.to_string();
        if decision.action != Action::Keep {
            tracing::info!("{said}");
        } else if said != self.said {
            tracing::debug!("{said}");
        }
        self.said = said;
        decision
    }
}

/// Whether a worker leaves, or its time is so nearly up that another should come.
fn goes_soon(worker: &WorkerStatus) -> bool {
    let life = worker.info.lifetime.map_or(0.0, |life| life as f64 / 1e9);
    worker.retiring || worker.remaining.is_some_and(|left| left < LEAD.min(life / 4.0))
}

/// Exactly so many: of more, those that have not begun go first, then those closest to idle.
fn fixed(count: u32, mut held: Vec<Held>) -> Decision {
    let have = held.len() as u32;
    let reason = format!("{have} jobs, {count} wanted");
    let action = if have < count {
        Action::Up(count - have)
    } else if have > count {
        held.sort_by(|a, b| {
            (a.is_running, a.occupancy, a.memory, &b.id).cmp(&(b.is_running, b.occupancy, b.memory, &a.id))
        });
        held.truncate((have - count) as usize);
        Action::Down(held.into_iter().map(|held| held.id).collect())
    } else {
        Action::Keep
    };
    Decision { action, reason }
}

/// What a worker of a job is called.
pub(super) fn worker_name(job: &str, task: usize) -> String {
    format!("slurm-{job}-{task}")
}

/// The job that a worker's name tells of.
fn job_of(name: &str) -> Option<JobId> {
    name.strip_prefix("slurm-")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use rankine_slurm::adaptive::Policy;

    use super::*;
    use crate::protocol::{Metrics, WorkerId, WorkerInfo};

    const SECOND: Duration = Duration::from_secs(1);

    fn ids(numbers: &[u32]) -> Vec<JobId> {
        numbers.iter().map(|number| (*number).into()).collect()
    }

    /// A fleet with these jobs in the queue.
    fn fleet(wish: Wish, jobs: &[u32]) -> Fleet {
        let mut fleet = Fleet::new(30 * SECOND);
        fleet.wish(wish);
        ids(jobs).into_iter().for_each(|id| fleet.submitted(id));
        fleet
    }

    /// A worker of each of these jobs, with so many seconds of work.
    fn info(workers: &[(u32, f64)]) -> SchedulerInfo {
        let status = |&(job, occupancy): &(u32, f64)| WorkerStatus {
            id: WorkerId(job),
            info: WorkerInfo {
                name: worker_name(&job.to_string(), 0).into(),
                address: "tcp://a".into(),
                contact: "tcp://a".into(),
                nthreads: 1,
                memory_limit: 0,
                resources: vec![],
                pid: 1,
                host: "a".into(),
                lifetime: None,
            },
            processing: 0,
            in_memory: 0,
            nbytes: 0,
            occupancy,
            metrics: Metrics::default(),
            remaining: None,
            retiring: false,
            paused: false,
        };
        SchedulerInfo { workers: workers.iter().map(status).collect(), ..SchedulerInfo::default() }
    }

    fn queued(jobs: &[(u32, JobState)]) -> Vec<Queued> {
        let queued = |(id, state): &(u32, JobState)| Queued {
            id: (*id).into(),
            name: String::new(),
            state: state.clone(),
            reason: rankine_slurm::Reason::new("None"),
            partition: String::new(),
            nodes: 1,
            node_list: String::new(),
            elapsed: None,
            left: None,
        };
        jobs.iter().map(queued).collect()
    }

    fn retire(job: u32) -> Order {
        Order::Retire(vec![worker_name(&job.to_string(), 0).into()])
    }

    #[test]
    fn as_many_jobs_as_are_wanted_are_submitted() {
        let mut fleet = fleet(Wish::Fixed(3), &[]);
        assert_eq!(fleet.decide(&info(&[]), SECOND), [Order::Submit(3)]);
        ids(&[1, 2, 3]).into_iter().for_each(|id| fleet.submitted(id));
        assert_eq!(fleet.decide(&info(&[]), SECOND), []);
    }

    #[test]
    fn of_more_those_that_did_not_begin_are_cancelled_and_then_the_idlest_retire() {
        let mut fleet = fleet(Wish::Fixed(1), &[1, 2, 3]);
        let cluster = info(&[(1, 5.0), (2, 0.0)]);
        assert_eq!(fleet.decide(&cluster, SECOND), [retire(2), Order::Cancel(ids(&[3]))]);
        // They are told once; when the workers are gone, nothing of the job is left.
        assert_eq!(fleet.decide(&cluster, 2 * SECOND), [Order::Cancel(ids(&[3]))]);
        assert_eq!(fleet.decide(&info(&[(1, 5.0)]), 3 * SECOND), [Order::Cancel(ids(&[2, 3]))]);
    }

    #[test]
    fn one_that_does_not_get_done_with_leaving_is_cancelled() {
        let mut fleet = fleet(Wish::Fixed(0), &[1]);
        let cluster = info(&[(1, 5.0)]);
        assert_eq!(fleet.decide(&cluster, SECOND), [retire(1)]);
        assert_eq!(fleet.decide(&cluster, 31 * SECOND), []);
        assert_eq!(fleet.decide(&cluster, 32 * SECOND), [Order::Cancel(ids(&[1]))]);
    }

    #[test]
    fn a_job_that_leaves_by_itself_or_ended_is_replaced() {
        let mut fleet = fleet(Wish::Fixed(1), &[1]);
        let mut cluster = info(&[(1, 0.0)]);
        assert_eq!(fleet.decide(&cluster, SECOND), []);
        cluster.workers[0].retiring = true;
        assert_eq!(fleet.decide(&cluster, SECOND), [Order::Submit(1)]);
        fleet.submitted(2.into());
        assert_eq!(fleet.decide(&cluster, SECOND), []);
        fleet.look(&queued(&[(1, JobState::TimedOut), (2, JobState::Running)]));
        assert_eq!(fleet.jobs(), ids(&[2]));
        assert_eq!(fleet.decide(&info(&[(2, 0.0)]), SECOND), []);
        fleet.look(&[]);
        assert_eq!(fleet.decide(&info(&[]), SECOND), [Order::Submit(1)]);
    }

    #[test]
    fn another_job_is_submitted_before_ones_time_is_up() {
        let mut fleet = fleet(Wish::Fixed(1), &[1]);
        let mut cluster = info(&[(1, 0.0)]);
        cluster.workers[0].info.lifetime = Some(3_600_000_000_000);
        cluster.workers[0].remaining = Some(61.0);
        assert_eq!(fleet.decide(&cluster, SECOND), []);
        cluster.workers[0].remaining = Some(59.0);
        assert_eq!(fleet.decide(&cluster, SECOND), [Order::Submit(1)]);
    }

    #[test]
    fn what_runs_is_waited_for() {
        let mut fleet = fleet(Wish::Fixed(0), &[1]);
        let mut cluster = info(&[(1, 5.0)]);
        cluster.workers[0].processing = 1;
        assert_eq!(fleet.decide(&cluster, SECOND), [retire(1)]);
        assert_eq!(fleet.decide(&cluster, 3600 * SECOND), []);
        // Where nobody asked for it, it is not even told to go.
        let mut policy = Policy::new(0, 4, NonZeroU32::MIN);
        policy.wait_count = 1;
        let mut fleet = self::fleet(Wish::Adaptive(Adaptive::new(policy).unwrap()), &[1]);
        assert_eq!(fleet.decide(&cluster, SECOND), []);
        cluster.workers[0].processing = 0;
        assert_eq!(fleet.decide(&cluster, 2 * SECOND), [retire(1)]);
    }

    #[test]
    fn submissions_that_are_refused_are_tried_again_later_and_then_given_up() {
        let mut fleet = fleet(Wish::Fixed(1), &[]);
        assert_eq!(fleet.decide(&info(&[]), SECOND), [Order::Submit(1)]);
        fleet.refused("no such account", SECOND);
        assert_eq!(fleet.decide(&info(&[]), 2 * SECOND), []);
        assert_eq!(fleet.decide(&info(&[]), 7 * SECOND), [Order::Submit(1)]);
        fleet.refused("no such account", 7 * SECOND);
        fleet.refused("no such account", 20 * SECOND);
        let orders = fleet.decide(&info(&[]), 21 * SECOND);
        assert!(
            matches!(&orders[..], [Order::GiveUp { reason, last: None }] if reason.contains("no such account"))
        );
    }

    #[test]
    fn a_job_that_was_preempted_and_waits_again_is_still_one() {
        let mut fleet = fleet(Wish::Fixed(1), &[1]);
        fleet.decide(&info(&[(1, 0.0)]), SECOND);
        fleet.look(&queued(&[(1, JobState::Pending)]));
        assert_eq!(fleet.decide(&info(&[]), SECOND), []);
    }

    #[test]
    fn jobs_that_never_bring_a_worker_are_given_up() {
        let mut fleet = fleet(Wish::Fixed(1), &[]);
        for id in 1..=3 {
            assert_eq!(fleet.decide(&info(&[]), SECOND), [Order::Submit(1)]);
            fleet.submitted(id.into());
            fleet.look(&queued(&[(id, JobState::Failed)]));
        }
        let orders = fleet.decide(&info(&[]), SECOND);
        assert!(
            matches!(&orders[..], [Order::GiveUp { reason, last: Some(last) }] if reason.starts_with("3 worker jobs in a row") && *last == 3.into()),
            "{orders:?}"
        );
        // What somebody cancelled did not fail.
        fleet.wish(Wish::Fixed(1));
        for id in 4..=8 {
            fleet.submitted(id.into());
            fleet.look(&queued(&[(id, JobState::Cancelled)]));
        }
        assert_eq!(fleet.decide(&info(&[]), SECOND), [Order::Submit(1)]);
    }

    #[test]
    fn a_load_wants_jobs_and_its_end_none() {
        let adaptive = Adaptive::new(Policy::new(0, 4, NonZeroU32::MIN)).unwrap();
        let mut fleet = fleet(Wish::Adaptive(adaptive), &[]);
        let mut cluster = info(&[]);
        (cluster.runnable, cluster.work) = (100, 100.0);
        assert_eq!(fleet.decide(&cluster, SECOND), [Order::Submit(2)]);
        ids(&[1, 2]).into_iter().for_each(|id| fleet.submitted(id));
        let idle = info(&[(1, 0.0), (2, 0.0)]);
        let orders: Vec<_> = (2..5).flat_map(|now| fleet.decide(&idle, SECOND * now)).collect();
        assert_eq!(orders, [retire(2), retire(1)]);
    }

    #[test]
    fn workers_tell_their_job_by_their_name() {
        assert_eq!(job_of(&worker_name("17", 3)), Some(17.into()));
        assert_eq!(job_of("rank-3"), None);
    }
}
