//! What moving results between workers costs, learned from the fetches that they report.
//!
//! Two workers of a process, of a host and of two hosts differ by orders of magnitude, and so do pairs of hosts on a
//! network that is not flat. Each worker keeps what its own fetches took from some of its peers: the first, until others are
//! there that it soon came back to. Any other pair is taken for one like others of its kind: of ten thousand workers each may
//! meet any other once.

use smallvec::SmallVec;

use super::{
    lately::Lately,
    pool::Location,
    prefetch::prefetch,
    state::{State, Worker},
    task::{Task, at},
};
use crate::protocol::{CREDIBLE, Fetch, WorkerId};

/// From so many bytes on a fetch tells of the link's bandwidth.
const BIG: u64 = 1 << 20;
/// How much the latest fetch counts at least: the last sixteen or so matter.
const RECENT: f32 = 1.0 / 16.0;
/// Nanoseconds after which the quickest of the small fetches until then counts no more, once another has come; and after which a
/// link that tells nothing is hoped to be twice as quick.
const FADES: u64 = 200_000_000;
/// How often that is hoped.
const HOPES: u64 = 3;
/// A worker keeps what fetches take of so many sets of so many peers, at most.
const SETS: usize = 2;
const WAYS: usize = 8;
/// Holders of a result that are looked at for the one that gives it soonest.
const HOLDERS: usize = 2;

/// What fetches over a link take: so little that what is known of several peers lies in a line of a processor's cache.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Costs {
    /// Nanoseconds that any fetch takes.
    latency: f32,
    /// Nanoseconds for each byte.
    byte: f32,
    /// When the latest told of the latency: see [`moment`].
    heard: u32,
}

/// Some time by the scheduler's clock in units of a millisecond or so, as far as a word holds that: only what passed since is
/// ever asked.
fn moment(now: u64) -> u32 {
    (now >> 20) as u32
}

/// Nanoseconds since some [`moment`].
fn passed(since: u32, now: u64) -> u64 {
    u64::from(moment(now).wrapping_sub(since)) << 20
}

impl Costs {
    fn new(latency: f32, bandwidth: f64) -> Self {
        Self { latency, byte: (1e9 / bandwidth) as f32, heard: 0 }
    }

    /// A fetch tells of the link; so many `told` of latency and bandwidth before.
    fn learn(&mut self, told: &mut [u8; 2], Fetch { nbytes, nanos, .. }: Fetch, now: u64) {
        let (Self { latency, byte, heard }, [small, big]) = (self, told);
        let nanos = nanos as f32;
        let mix = |mean: &mut f32, told: &mut u8, one: f32| {
            *told = told.saturating_add(1);
            // The first counts for as much as what was taken for granted before.
            *mean += (one - *mean) * (1.0 / (f32::from(*told) + 1.0)).max(RECENT);
        };
        if nbytes <= Fetch::SMALL {
            mix(latency, small, nanos);
            *heard = moment(now);
        } else if nbytes >= BIG {
            mix(byte, big, (nanos - *latency).max(0.0) / nbytes as f32);
        }
    }

    /// Nanoseconds that any fetch takes, as far as known.
    pub(super) fn latency(&self) -> f32 {
        self.latency
    }

    /// Nanoseconds that any fetch may take now. A link that looked slow is used no more, and what is not used does not show
    /// that it has become quicker: so it has to look quicker with time.
    pub(super) fn hoped_latency(&self, now: u64) -> f32 {
        let halvings = (passed(self.heard, now) / FADES).min(HOPES);
        self.latency / (1u64 << halvings) as f32
    }

    /// Nanoseconds of which as many pass for each result that is fetched.
    fn moving(&self, nbytes: f32) -> f32 {
        self.byte * nbytes
    }
}

/// How it is learned what a worker's own fetches from a peer cost.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// What the quickest small fetches took: of those since some [`moment`], and of those shortly before it.
    quickest: [f32; 2],
    since: u32,
    /// Fetches that told of latency and bandwidth, as far as they can be counted.
    told: [u8; 2],
}

impl Link {
    fn new(now: u64) -> Self {
        Self { told: [0; 2], quickest: [f32::INFINITY; 2], since: moment(now) }
    }

    fn learn(&mut self, costs: &mut Costs, fetch: Fetch, now: u64) {
        if fetch.nbytes > Fetch::SMALL {
            return costs.learn(&mut self.told, fetch, now);
        }
        if passed(self.since, now) >= FADES {
            self.quickest = [f32::INFINITY, self.quickest[0]];
            self.since = moment(now);
        }
        self.quickest[0] = self.quickest[0].min(fetch.nanos as f32);
        // What the others took longer they waited for somebody: what comes next may not.
        costs.latency = self.quickest[0].min(self.quickest[1]);
        costs.heard = moment(now);
    }
}

/// What a worker's fetches took from peers that it may come back to. By its number a peer belongs to one of the sets, whose two
/// lines of a processor's cache whoever asks what a link costs looks at, and at no others.
#[derive(Default)]
pub(super) struct Peers {
    sets: [Set; SETS],
    /// Whose place in each set the next one takes, once all are taken.
    next: [u8; SETS],
}

/// The peers of a set and what their links cost.
#[repr(C, align(64))]
struct Set {
    /// [`WorkerId::NOBODY`] where there are fewer.
    ids: [WorkerId; WAYS],
    costs: [Costs; WAYS],
    links: [Link; WAYS],
}

const _: () = assert!(std::mem::offset_of!(Set, links) == 128 && size_of::<Set>() == 256);

impl Default for Set {
    fn default() -> Self {
        Self { ids: [WorkerId::NOBODY; WAYS], costs: [Costs::default(); WAYS], links: [Link::new(0); WAYS] }
    }
}

impl Set {
    fn way(&self, peer: WorkerId) -> Option<usize> {
        // All are looked at, several at a time, rather than one after the other until it is found.
        let ways =
            self.ids.iter().zip(0..).fold(0u32, |ways, (id, way)| ways | u32::from(*id == peer) << way);
        (ways != 0).then(|| ways.trailing_zeros() as usize)
    }
}

impl Peers {
    /// However far apart a worker's peers are, as the first ones of all nodes may be, they spread over the sets (Knuth, The Art of
    /// Computer Programming, volume 3, section 6.4: multiplication by the golden ratio).
    fn set(peer: WorkerId) -> usize {
        (peer.0.wrapping_mul(0x9e37_79b9) >> 16) as usize % SETS
    }

    /// Whether any of these has the same place in a [`PeerMask`] as a peer.
    fn any_like(&self, peer: WorkerId) -> bool {
        let ids = self.sets.iter().flat_map(|set| set.ids);
        ids.fold(false, |any, id| {
            any | (id != WorkerId::NOBODY && PeerMask::place(id) == PeerMask::place(peer))
        })
    }

    fn costs(&self, peer: WorkerId) -> Option<&Costs> {
        let set = &self.sets[Self::set(peer)];
        Some(&set.costs[set.way(peer)?])
    }

    /// The link to a peer and what it costs, if it is one of them or is to be: if there are few in its set, or it has been `met`. Until
    /// more is known of it, it is taken for one that costs as much as others `like` it.
    fn link(
        &mut self,
        peer: WorkerId,
        mask: &mut PeerMask,
        met: &mut Lately,
        like: Costs,
        now: u64,
    ) -> Option<(&mut Link, &mut Costs)> {
        let number = Self::set(peer);
        let set = &mut self.sets[number];
        let way = match set.way(peer) {
            Some(way) => way,
            None => {
                let vacant = set.way(WorkerId::NOBODY);
                if vacant.is_none() && met.insert(peer) {
                    return None;
                }
                let way = vacant.unwrap_or_else(|| {
                    let oldest = usize::from(self.next[number]);
                    self.next[number] = (self.next[number] + 1) % WAYS as u8;
                    oldest
                });
                let before = std::mem::replace(&mut set.ids[way], peer);
                (set.costs[way], set.links[way]) = (like, Link::new(now));
                if before != WorkerId::NOBODY && !self.any_like(before) {
                    mask.remove(before);
                }
                mask.add(peer);
                way
            }
        };
        let set = &mut self.sets[number];
        Some((&mut set.links[way], &mut set.costs[way]))
    }

    pub(super) fn remove(&mut self, peer: WorkerId, mask: &mut PeerMask) {
        let set = &mut self.sets[Self::set(peer)];
        if let Some(way) = set.way(peer) {
            set.ids[way] = WorkerId::NOBODY;
            if !self.any_like(peer) {
                mask.remove(peer);
            }
        }
    }

    /// Asks for what is known of a peer.
    fn prefetch(&self, peer: WorkerId) {
        let Set { ids, costs, .. } = &self.sets[Self::set(peer)];
        prefetch(ids);
        prefetch(&costs[WAYS - 1]);
    }

    /// Asks for how it is learned what the link to a peer costs.
    fn prefetch_links(&self, peer: WorkerId) {
        let Set { links, .. } = &self.sets[Self::set(peer)];
        prefetch(links);
        prefetch(&links[WAYS / 2]);
    }
}

/// The lowest bits of the numbers of a worker's peers, a bit for each value: it lies with what placing a task looks at
/// anyway, and mostly says that some holder is none of the [`Peers`], which then need not be looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PeerMask([u64; 2]);

impl PeerMask {
    fn place(peer: WorkerId) -> u32 {
        peer.0 % 128
    }

    fn word_and_bit(peer: WorkerId) -> (usize, u64) {
        let place = Self::place(peer);
        (place as usize / 64, 1 << (place % 64))
    }

    fn add(&mut self, peer: WorkerId) {
        let (word, bit) = Self::word_and_bit(peer);
        self.0[word] |= bit;
    }

    fn remove(&mut self, peer: WorkerId) {
        let (word, bit) = Self::word_and_bit(peer);
        self.0[word] &= !bit;
    }

    fn may_have(self, peer: WorkerId) -> bool {
        let (word, bit) = Self::word_and_bit(peer);
        self.0[word] & bit != 0
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
pub(super) struct Links {
    costs: [Costs; 3],
    /// Fetches that told of the latency and the bandwidth of each.
    told: [[u8; 2]; 3],
}

impl Links {
    /// Begins with guesses, that between hosts being `bandwidth` in bytes a second.
    pub(super) fn new(bandwidth: f64) -> Self {
        // Within a process values change hands, whatever their size.
        let process = Costs::new(20e3, 1e12);
        let (host, network) = (Costs::new(100e3, 2.0 * bandwidth), Costs::new(100e3, bandwidth));
        Self { costs: [process, host, network], told: [[0; 2]; 3] }
    }

    fn of(&self, one: Location, other: Location) -> &Costs {
        &self.costs[Self::distance(one, other) as usize]
    }

    fn distance(one: Location, other: Location) -> Distance {
        if one.host != other.host {
            Distance::Network
        } else if one.process != other.process {
            Distance::Host
        } else {
            Distance::Process
        }
    }
}

/// A result that a task needs: its bytes, and the workers that hold it. One that is being computed counts as if it lay where
/// that is done already.
pub(super) struct Need<'a> {
    pub(super) nbytes: f32,
    pub(super) at: &'a [WorkerId],
}

/// All results that a task needs: looked up once, for whichever workers they may go to.
pub(super) struct Needs<'a>(pub(super) SmallVec<[Need<'a>; 8]>);

impl State {
    /// A worker says what its latest fetches took.
    pub(super) fn on_fetched(&mut self, worker: WorkerId, fetches: Vec<Fetch>) {
        for fetch in fetches {
            let (asker, holder) = (self.workers.location(worker), self.workers.location(fetch.from));
            let (Some(asker), Some(holder)) = (asker, holder) else { continue };
            let distance = Links::distance(asker, holder) as usize;
            let (like, told) = (&mut self.links.costs[distance], &mut self.links.told[distance]);
            let Some(asker) = self.workers.get_mut(worker) else { continue };
            let Worker { peers, peer_mask, met, .. } = asker;
            let mut once = (Link::new(self.now), *like);
            let known = peers.link(fetch.from, peer_mask, met, *like, self.now);
            let (link, costs) = known.unwrap_or((&mut once.0, &mut once.1));
            link.learn(costs, fetch, self.now);
            let proved = if fetch.nbytes <= Fetch::SMALL { costs.latency as u64 } else { fetch.nanos };
            like.learn(told, Fetch { nanos: proved, ..fetch }, self.now);
        }
    }

    /// What a task needs.
    pub(super) fn needs<'a>(&'a self, task: Task<'a>) -> Needs<'a> {
        Needs(
            self.tasks
                .dependencies(task)
                .map(|task| Need { nbytes: task.nbytes as f32, at: at(task.hot, task.cold) })
                .collect(),
        )
    }

    /// Asks for what is known of a worker's links to these peers.
    pub(super) fn prefetch_peers(&self, worker: WorkerId, peers: impl Iterator<Item = WorkerId>) {
        let Some(asker) = self.workers.get(worker) else { return };
        prefetch(&asker.met);
        for peer in peers {
            asker.peers.prefetch(peer);
            asker.peers.prefetch_links(peer);
        }
    }

    /// Asks for what [`Self::transfer`] looks at.
    pub(super) fn prefetch_links(&self, needs: &Needs<'_>, worker: WorkerId) {
        let Some(asker) = self.workers.get(worker) else { return };
        for holder in needs.0.iter().filter_map(|need| need.at.first()) {
            if asker.peer_mask.may_have(*holder) {
                asker.peers.prefetch(*holder);
            }
        }
    }

    /// Nanoseconds until a worker has what it lacks of some results.
    pub(super) fn transfer(&self, needs: &Needs<'_>, worker: WorkerId) -> u64 {
        self.fetching(worker, needs, Costs::latency)
    }

    /// As [`Self::transfer`], where the links' latencies are what `latency` says: each result comes from the holder that
    /// gives it soonest, all on their way at the same time, over the worker's one wire.
    pub(super) fn fetching(&self, id: WorkerId, needs: &Needs<'_>, latency: impl Fn(&Costs) -> f32) -> u64 {
        let (Some(asker), Some(place)) = (self.workers.get(id), self.workers.location(id)) else { return 0 };
        let (mut longest, mut moving) = (0f32, 0f32);
        for Need { nbytes, at } in needs.0.iter().filter(|need| !need.at.contains(&id)) {
            let mut soonest: Option<(f32, f32)> = None;
            for holder in at.get(..HOLDERS).unwrap_or(at) {
                let known = if asker.peer_mask.may_have(*holder) { asker.peers.costs(*holder) } else { None };
                let like = || Some(self.links.of(place, self.workers.location(*holder)?));
                let Some(costs) = known.or_else(like) else { continue };
                let this = (latency(costs), costs.moving(*nbytes));
                if soonest.is_none_or(|soonest| this.0 + this.1 < soonest.0 + soonest.1) {
                    soonest = Some(this);
                }
            }
            if let Some((latency, takes)) = soonest {
                longest = longest.max(latency);
                moving += takes;
            }
        }
        // Whatever was said of fetches, sums of it do not overflow.
        ((longest + moving) as u64).min(CREDIBLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_kept_of_the_first_peers_until_others_come_back_soon() {
        let like = Costs::new(1.0, 1.0);
        let (mut peers, mut mask, mut met) = (Peers::default(), PeerMask::default(), Lately::default());
        let mut keeps = |id: &WorkerId| peers.link(*id, &mut mask, &mut met, like, 0).is_some();
        let of_a_set: Vec<WorkerId> = (0..400).map(WorkerId).filter(|id| Peers::set(*id) == 0).collect();
        let (first, others) = of_a_set.split_at(WAYS);
        let (back, strangers) = (others[0], &others[1..101]);
        assert!(first.iter().all(&mut keeps), "the first");
        assert!(!keeps(&back) && keeps(&back) && keeps(&back), "one that comes back");
        assert!(
            !strangers.iter().any(&mut keeps) && !strangers.iter().any(&mut keeps),
            "others come in between"
        );
        let kept = |peers: &Peers, id: WorkerId| peers.costs(id).is_some();
        assert!(kept(&peers, back) && !kept(&peers, first[0]) && !kept(&peers, strangers[0]));
        // One that is gone leaves its place to the next, whoever that is.
        peers.remove(first[3], &mut mask);
        assert!(!kept(&peers, first[3]));
        assert!(peers.link(strangers[7], &mut mask, &mut met, like, 0).is_some());
        assert!((0..400).map(WorkerId).all(|id| mask.may_have(id) || peers.costs(id).is_none()));
        let like = |id: WorkerId| (id.0 % 128..400).step_by(128).map(WorkerId);
        for gone in [first[0], first[3]] {
            let alike = like(gone).any(|id| kept(&peers, id));
            assert_eq!(mask.may_have(gone), alike, "it made way for another");
        }
        let gone = [first[0], first[3]];
        assert!(first.iter().all(|id| kept(&peers, *id) != gone.contains(id)) && kept(&peers, back));
    }

    #[test]
    fn peers_spread_over_the_sets_however_far_apart_they_are() {
        let like = Costs::new(1.0, 1.0);
        let apart = |stride: u32| {
            let (mut peers, mut mask, mut met) = (Peers::default(), PeerMask::default(), Lately::default());
            let ids = (0..(SETS * WAYS) as u32).map(|n| WorkerId(n * stride));
            ids.filter(|id| peers.link(*id, &mut mask, &mut met, like, 0).is_some()).count()
        };
        for stride in [1, 2, 3, 5, 8, 15, 16, 17, 20, 34, 40, 48, 64, 100, 128, 4096] {
            assert!(apart(stride) >= SETS * WAYS - 3, "{} of peers that are {stride} apart", apart(stride));
        }
    }
}
