//! What moving results between workers costs, learned from the fetches that they report.
//!
//! Two workers of a process, of a host and of two hosts differ by orders of magnitude, and so do pairs of hosts on a
//! network that is not flat. Each worker keeps what its own fetches from each peer took; a pair that has not met yet
//! is taken for one like others of its kind.

use smallvec::SmallVec;

use super::state::{State, Worker};
use crate::protocol::{CREDIBLE, Fetch, WorkerId};

/// Up to so many bytes a fetch tells of the link's latency.
const SMALL: u64 = 64 << 10;
/// From so many on it tells of the link's bandwidth.
const BIG: u64 = 1 << 20;
/// How much the latest big fetch counts at least: the last sixteen or so matter.
const RECENT: f64 = 1.0 / 16.0;
/// Small fetches of which the quickest tells the latency.
const LATEST: usize = 8;
/// Holders of a result that are looked at for the one that gives it soonest.
const HOLDERS: usize = 4;

/// What fetches over a link take.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Nanoseconds that any fetch takes.
    latency: f64,
    /// What the latest small ones took.
    small: SmallVec<[f32; LATEST]>,
    /// Nanoseconds for each byte.
    byte: f64,
    /// Fetches that told of that.
    big: u32,
}

impl Link {
    pub(super) fn new(latency: f64, bandwidth: f64) -> Self {
        Self { latency, small: SmallVec::new(), byte: 1e9 / bandwidth, big: 0 }
    }

    /// One that is taken for such a link until more is known of it.
    fn like(&self) -> Self {
        Self { small: SmallVec::new(), big: 0, ..*self }
    }

    fn learn(&mut self, Fetch { nbytes, nanos, .. }: Fetch) {
        let nanos = nanos as f64;
        if nbytes <= SMALL {
            if self.small.len() == LATEST {
                self.small.remove(0);
            }
            self.small.push(nanos as f32);
            // What the others took longer they waited for somebody: what comes next may not.
            self.latency = f64::from(self.small.iter().copied().fold(f32::INFINITY, f32::min));
        } else if nbytes >= BIG {
            self.big = self.big.saturating_add(1);
            let one = (nanos - self.latency).max(0.0) / nbytes as f64;
            // The first counts for as much as what was taken for granted before.
            self.byte += (one - self.byte) * (1.0 / f64::from(self.big + 1)).max(RECENT);
        }
    }

    /// Nanoseconds of which as many pass for each result that is fetched.
    fn moving(&self, nbytes: u64) -> f64 {
        self.byte * nbytes as f64
    }
}

/// How two workers lie to each other.
#[derive(Clone, Copy)]
enum Distance {
    Process,
    Host,
    Network,
}

/// What links cost of which nothing more is known.
pub(super) struct Links([Link; 3]);

impl Links {
    /// Begins with guesses, that between hosts being `bandwidth` in bytes a second.
    pub(super) fn new(bandwidth: f64) -> Self {
        // Within a process values change hands, whatever their size.
        Self([Link::new(20e3, 1e12), Link::new(100e3, 2.0 * bandwidth), Link::new(100e3, bandwidth)])
    }

    fn of(&self, one: &Worker, other: &Worker) -> &Link {
        &self.0[Self::distance(one, other) as usize]
    }

    fn distance(one: &Worker, other: &Worker) -> Distance {
        if one.host != other.host {
            Distance::Network
        } else if one.info.pid != other.info.pid {
            Distance::Host
        } else {
            Distance::Process
        }
    }
}

impl State {
    /// A worker says what its latest fetches took.
    pub(super) fn on_fetched(&mut self, worker: WorkerId, fetches: Vec<Fetch>) {
        for fetch in fetches {
            let (Some(asker), Some(holder)) = (self.workers.get(worker), self.workers.get(fetch.from)) else {
                continue;
            };
            let like = &mut self.links.0[Links::distance(asker, holder) as usize];
            let mut link = asker.links.get(&fetch.from).cloned().unwrap_or_else(|| like.like());
            like.learn(fetch);
            link.learn(fetch);
            if let Some(asker) = self.workers.get_mut(worker) {
                asker.links.insert(fetch.from, link);
            }
        }
    }

    /// Nanoseconds until a worker has these results, of which it holds none: each comes from the holder that gives it
    /// soonest, all on their way at the same time, over the worker's one wire.
    pub(super) fn fetching<'a>(
        &self,
        asker: WorkerId,
        results: impl Iterator<Item = (u64, &'a [WorkerId])>,
    ) -> u64 {
        let Some(asker) = self.workers.get(asker) else { return 0 };
        let (mut latency, mut moving) = (0f64, 0f64);
        for (nbytes, holders) in results {
            let links = holders.iter().take(HOLDERS).filter_map(|holder| {
                let known = || Some(self.links.of(asker, self.workers.get(*holder)?));
                asker.links.get(holder).or_else(known)
            });
            let took = |link: &Link| link.latency + link.moving(nbytes);
            if let Some(link) = links.min_by(|a, b| took(a).total_cmp(&took(b))) {
                latency = latency.max(link.latency);
                moving += link.moving(nbytes);
            }
        }
        // Whatever was said of fetches, sums of it do not overflow.
        ((latency + moving) as u64).min(CREDIBLE)
    }
}
