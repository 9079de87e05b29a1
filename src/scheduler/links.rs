//! What moving results between workers costs, learned from the fetches that they report.
//!
//! Two workers of a process, of a host and of two hosts differ by orders of magnitude, and so do pairs of hosts on a
//! network that is not flat. Each worker keeps what its own fetches took from the first of its peers, and from those that it
//! soon comes back to; any other pair is taken for one like others of its kind: of ten thousand workers each may meet any other once.

use super::state::{State, Worker};
use crate::{
    graph::KeyMap,
    protocol::{CREDIBLE, Fetch, WorkerId},
};

/// From so many bytes on a fetch tells of the link's bandwidth.
const BIG: u64 = 1 << 20;
/// How much the latest fetch counts at least: the last sixteen or so matter.
const RECENT: f64 = 1.0 / 16.0;
/// Nanoseconds after which the quickest of the small fetches until then counts no more, once another has come; and after which a
/// link that tells nothing is hoped to be twice as quick.
const FADES: u64 = 200_000_000;
/// How often that is hoped.
const HOPES: u64 = 3;
/// Peers of which a worker keeps what fetches take, though it may never come back to them.
const PEERS: usize = 16;
/// Holders of a result that are looked at for the one that gives it soonest.
const HOLDERS: usize = 4;

/// What fetches over a link take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Nanoseconds that any fetch takes.
    latency: f64,
    /// Nanoseconds for each byte.
    byte: f64,
    /// Fetches that told of each.
    told: [u32; 2],
    /// When the latest told of the latency, by the scheduler's clock in nanoseconds.
    heard: u64,
}

impl Costs {
    fn new(latency: f64, bandwidth: f64) -> Self {
        Self { latency, byte: 1e9 / bandwidth, told: [0; 2], heard: 0 }
    }

    fn learn(&mut self, Fetch { nbytes, nanos, .. }: Fetch, now: u64) {
        let Self { latency, byte, told: [small, big], heard } = self;
        let nanos = nanos as f64;
        let mix = |mean: &mut f64, told: &mut u32, one: f64| {
            *told = told.saturating_add(1);
            // The first counts for as much as what was taken for granted before.
            *mean += (one - *mean) * (1.0 / f64::from(*told + 1)).max(RECENT);
        };
        if nbytes <= Fetch::SMALL {
            mix(latency, small, nanos);
            *heard = now;
        } else if nbytes >= BIG {
            mix(byte, big, (nanos - *latency).max(0.0) / nbytes as f64);
        }
    }

    /// What it may cost now. A link that looked slow is used no more, and what is not used does not show that it has become
    /// quicker: so it has to look quicker with time.
    pub(super) fn hoped(&self, now: u64) -> Self {
        let halvings = (now.saturating_sub(self.heard) / FADES).min(HOPES);
        Self { latency: self.latency / (1u64 << halvings) as f64, ..*self }
    }

    /// Nanoseconds of which as many pass for each result that is fetched.
    fn moving(&self, nbytes: u64) -> f64 {
        self.byte * nbytes as f64
    }
}

/// What a worker's own fetches from a peer tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    costs: Costs,
    /// What the quickest small ones took: of those since some moment, and of those shortly before it.
    quickest: [f64; 2],
    since: u64,
}

impl Link {
    /// One that is taken for such a link until more is known of it.
    fn like(costs: &Costs, now: u64) -> Self {
        Self { costs: Costs { told: [0; 2], ..*costs }, quickest: [f64::INFINITY; 2], since: now }
    }

    fn learn(&mut self, fetch: Fetch, now: u64) {
        if fetch.nbytes > Fetch::SMALL {
            return self.costs.learn(fetch, now);
        }
        if now.saturating_sub(self.since) >= FADES {
            self.quickest = [f64::INFINITY, self.quickest[0]];
            self.since = now;
        }
        self.quickest[0] = self.quickest[0].min(fetch.nanos as f64);
        // What the others took longer they waited for somebody: what comes next may not.
        self.costs.latency = self.quickest[0].min(self.quickest[1]);
        self.costs.heard = now;
    }
}

/// What a worker's fetches took from peers that it may come back to.
#[derive(Default)]
pub(super) struct Peers {
    /// A bit for each of 64 parts of them: most that are not among them are known by it, without a look at the map.
    parts: u64,
    links: KeyMap<WorkerId, Link>,
}

impl Peers {
    fn part(peer: WorkerId) -> u64 {
        1 << (peer.0.wrapping_mul(0x9e37_79b9) >> 26)
    }

    fn get(&self, peer: WorkerId) -> Option<&Link> {
        if self.parts & Self::part(peer) == 0 { None } else { self.links.get(&peer) }
    }

    /// The link to a peer, if it is one of them or is to be: if there are few, or it has been `met`.
    fn link(&mut self, peer: WorkerId, met: &mut Met, like: Link) -> Option<&mut Link> {
        if self.get(peer).is_none() {
            if self.links.len() >= PEERS && !met.again(peer) {
                return None;
            }
            self.parts |= Self::part(peer);
            self.links.insert(peer, like);
        }
        self.links.get_mut(&peer)
    }

    pub(super) fn remove(&mut self, peer: WorkerId) {
        self.links.remove(&peer);
    }
}

/// Peers that a worker fetched from lately, once each.
pub(super) struct Met {
    /// [`NOBODY`] where there are fewer.
    peers: [WorkerId; 32],
    next: u8,
}

/// Stands for no peer.
const NOBODY: WorkerId = WorkerId(u32::MAX);

impl Default for Met {
    fn default() -> Self {
        Self { peers: [NOBODY; 32], next: 0 }
    }
}

impl Met {
    /// Whether a peer is one of them. If not, it is from now on, instead of the one that was met first.
    fn again(&mut self, peer: WorkerId) -> bool {
        let again = self.peers.contains(&peer);
        if !again {
            self.peers[usize::from(self.next)] = peer;
            self.next = (self.next + 1) % self.peers.len() as u8;
        }
        again
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
pub(super) struct Links([Costs; 3]);

impl Links {
    /// Begins with guesses, that between hosts being `bandwidth` in bytes a second.
    pub(super) fn new(bandwidth: f64) -> Self {
        // Within a process values change hands, whatever their size.
        Self([Costs::new(20e3, 1e12), Costs::new(100e3, 2.0 * bandwidth), Costs::new(100e3, bandwidth)])
    }

    fn of(&self, one: &Worker, other: &Worker) -> &Costs {
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
            let distance = Links::distance(asker, holder);
            let like = &mut self.links.0[distance as usize];
            let Some(asker) = self.workers.get_mut(worker) else { continue };
            let Worker { peers, met, .. } = asker;
            let mut once = Link::like(like, self.now);
            let link = peers.link(fetch.from, met, once).unwrap_or(&mut once);
            link.learn(fetch, self.now);
            let proved = if fetch.nbytes <= Fetch::SMALL { link.costs.latency as u64 } else { fetch.nanos };
            like.learn(Fetch { nanos: proved, ..fetch }, self.now);
        }
    }

    /// Nanoseconds until a worker has these results, of which it holds none: each comes from the holder that gives it
    /// soonest, all on their way at the same time, over the worker's one wire, over links that cost what `costs` says.
    pub(super) fn fetching<'a>(
        &self,
        asker: WorkerId,
        results: impl Iterator<Item = (u64, &'a [WorkerId])>,
        costs: impl Fn(&Costs) -> Costs,
    ) -> u64 {
        let Some(asker) = self.workers.get(asker) else { return 0 };
        let (mut latency, mut moving) = (0f64, 0f64);
        for (nbytes, holders) in results {
            let links = holders.iter().take(HOLDERS).filter_map(|holder| {
                let like = || Some(self.links.of(asker, self.workers.get(*holder)?));
                asker.peers.get(*holder).map(|link| &link.costs).or_else(like).map(&costs)
            });
            let took = |link: &Costs| link.latency + link.moving(nbytes);
            if let Some(link) = links.min_by(|a, b| took(a).total_cmp(&took(b))) {
                latency = latency.max(link.latency);
                moving += link.moving(nbytes);
            }
        }
        // Whatever was said of fetches, sums of it do not overflow.
        ((latency + moving) as u64).min(CREDIBLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_of_the_first_peers_and_of_those_that_come_back_soon() {
        let like = Link::like(&Costs::new(1.0, 1.0), 0);
        let (mut peers, mut met) = (Peers::default(), Met::default());
        let mut keeps = |id: u32| peers.link(WorkerId(id), &mut met, like).is_some();
        assert!((0..PEERS as u32).all(&mut keeps), "the first");
        assert!(!keeps(100) && keeps(100) && keeps(100), "one that comes back");
        assert!(!(200..250).any(&mut keeps) && !(200..250).any(&mut keeps), "others come in between");
        assert!(peers.get(WorkerId(3)).is_some() && peers.get(WorkerId(200)).is_none());
        peers.remove(WorkerId(3));
        assert!(peers.get(WorkerId(3)).is_none());
    }
}
