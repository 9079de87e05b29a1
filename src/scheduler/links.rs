//! What moving results between workers costs, learned from the fetches that they report.
//!
//! Two workers of a process, of a host and of two hosts differ by orders of magnitude, and so do pairs of hosts on a
//! network that is not flat. Each worker keeps what its own fetches took from some of its peers: the first, until others are
//! there that it soon came back to twice. Any other pair is taken for one like others of its kind: of ten thousand workers each may
//! meet any other once.

use smallvec::SmallVec;

use super::{
    eight::Eight,
    lately::{Lately, halves},
    pool::Location,
    prefetch::prefetch,
    short::Short,
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
const WAYS: usize = 7;
/// Holders of a result that are looked at for the one that gives it soonest.
const HOLDERS: usize = 2;

/// Bytes that the costs of moving some are kept for: of one they would be too little for a [`Short`]. So bandwidths are told from
/// 4 KB to 16 TB a second, and latencies from a nanosecond to four seconds.
const UNIT: f32 = 16384.0;

/// What fetches over a link take: so little that what is known of several peers lies in a line of a processor's cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Nanoseconds that any fetch takes.
    latency: Short,
    /// Nanoseconds for as many bytes as a [`UNIT`] has.
    unit: Short,
    /// When the latest told of the latency.
    heard: Moment,
}

/// Some time by the scheduler's clock in units of some 17 milliseconds, as far as half a word holds that: only what passed since
/// is ever asked, and after 18 minutes it matters little that they are taken for none.
#[derive(Debug, Clone, Copy, Default)]
struct Moment(u16);

impl Moment {
    fn new(now: u64) -> Self {
        Self((now >> 24) as u16)
    }

    /// Nanoseconds since then.
    fn passed(self, now: u64) -> u64 {
        u64::from(Self::new(now).0.wrapping_sub(self.0)) << 24
    }
}

impl Costs {
    const NONE: Self = Self { latency: Short::LEAST, unit: Short::LEAST, heard: Moment(0) };

    fn new(latency: f32, bandwidth: f64) -> Self {
        let unit = (1e9 / bandwidth) as f32 * UNIT;
        Self { latency: Short::new(latency), unit: Short::new(unit), heard: Moment(0) }
    }

    /// A fetch tells of the link; so many told of latency and bandwidth before.
    fn learn(&mut self, counts: &mut [u8; 2], Fetch { nbytes, nanos, .. }: Fetch, now: u64) {
        let (Self { latency, unit, heard }, [small, big]) = (self, counts);
        let nanos = nanos as f32;
        let mix = |kept: &mut Short, count: &mut u8, one: f32| {
            *count = count.saturating_add(1);
            let mean = kept.get();
            // The first counts for as much as what was taken for granted before.
            *kept = Short::new(mean + (one - mean) * (1.0 / (f32::from(*count) + 1.0)).max(RECENT));
        };
        if nbytes <= Fetch::SMALL {
            mix(latency, small, nanos);
            *heard = Moment::new(now);
        } else if nbytes >= BIG {
            mix(unit, big, (nanos - latency.get()).max(0.0) / nbytes as f32 * UNIT);
        }
    }

    /// Nanoseconds that any fetch takes, as far as known.
    pub(super) fn latency(&self) -> f32 {
        self.latency.get()
    }

    /// Nanoseconds that any fetch may take now. A link that looked slow is used no more, and what is not used does not show
    /// that it has become quicker: so it has to look quicker with time.
    pub(super) fn hoped_latency(&self, now: u64) -> f32 {
        let halvings = (self.heard.passed(now) / FADES).min(HOPES);
        self.latency() / (1u64 << halvings) as f32
    }

    /// Nanoseconds of which as many pass for each result that is fetched.
    fn moving(&self, nbytes: f32) -> f32 {
        self.unit.get() * (nbytes / UNIT)
    }
}

/// How it is learned what a worker's own fetches from a peer cost.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// What the quickest small fetches took: of those since some moment, and of those shortly before it.
    quickest: [Short; 2],
    since: Moment,
    /// Fetches that told of latency and bandwidth, as far as they can be counted.
    counts: [u8; 2],
}

impl Link {
    fn new(now: u64) -> Self {
        Self { counts: [0; 2], quickest: [Short::MOST; 2], since: Moment::new(now) }
    }

    fn learn(&mut self, costs: &mut Costs, fetch: Fetch, now: u64) {
        if fetch.nbytes > Fetch::SMALL {
            return costs.learn(&mut self.counts, fetch, now);
        }
        if self.since.passed(now) >= FADES {
            self.quickest = [Short::MOST, self.quickest[0]];
            self.since = Moment::new(now);
        }
        self.quickest[0] = self.quickest[0].min(Short::new(fetch.nanos as f32));
        // What the others took longer they waited for somebody: what comes next may not.
        costs.latency = self.quickest[0].min(self.quickest[1]);
        costs.heard = Moment::new(now);
    }
}

/// What a worker's fetches took from peers that it may come back to. By its number a peer belongs to one of the sets: whoever asks
/// what a link costs looks at one line of a processor's cache, and at no other.
#[derive(Default)]
pub(super) struct Peers {
    sets: [Set; SETS],
}

/// The peers of a set, what their links cost, and how that is learned.
#[repr(C, align(64))]
struct Set {
    /// The lower halves of their numbers; where there are fewer, the first one again and again.
    peers: Eight,
    /// The upper half of all their numbers; [`Set::NOBODY`] where there are none. Once 65,536 workers came and went, peers of two
    /// halves may drive each other out: then less is known of them.
    upper: u16,
    count: u8,
    /// Whose place the next one takes, once there are as many as there are ways.
    next: u8,
    costs: [Costs; WAYS],
    links: Lined<[Link; WAYS]>,
}

/// In a line of a processor's cache of its own.
#[repr(align(64))]
struct Lined<T>(T);

const _: () = assert!(std::mem::offset_of!(Set, links) == 64 && size_of::<Set>() == 128);

impl Default for Set {
    fn default() -> Self {
        let (costs, links) = ([Costs::NONE; WAYS], Lined([Link::new(0); WAYS]));
        Self { peers: Eight::all(0), upper: Self::NOBODY, count: 0, next: 0, costs, links }
    }
}

impl Set {
    /// No worker's number begins so.
    const NOBODY: u16 = u16::MAX;

    /// Where a peer is: [`WAYS`], or beyond, if it is not there.
    fn way(&self, peer: WorkerId) -> usize {
        let (upper, lower) = halves(peer);
        if upper == self.upper { self.peers.first(lower) } else { usize::MAX }
    }

    /// Whether one more has room beside those that are there.
    fn has_room(&self, peer: WorkerId) -> bool {
        self.count == 0 || (usize::from(self.count) < WAYS && halves(peer).0 == self.upper)
    }

    /// Gives a peer a place: the next one, or those of the others in turn. Those whose numbers begin otherwise make way.
    fn take_in(&mut self, peer: WorkerId, (costs, link): (Costs, Link)) -> usize {
        let (upper, lower) = halves(peer);
        if self.upper != upper {
            (self.peers, self.upper, self.count, self.next) = (Eight::all(lower), upper, 0, 0);
        }
        let way = if usize::from(self.count) < WAYS {
            self.count += 1;
            usize::from(self.count) - 1
        } else {
            let first = self.next;
            self.next = (self.next + 1) % WAYS as u8;
            usize::from(first)
        };
        (self.costs[way], self.links.0[way]) = (costs, link);
        self.peers.set(way, lower);
        self.fill();
        way
    }

    fn remove(&mut self, peer: WorkerId) {
        let way = self.way(peer);
        if way >= WAYS {
            return;
        }
        (self.count, self.next) = (self.count - 1, 0);
        let last = usize::from(self.count);
        self.peers.set(way, self.peers.get(last));
        self.costs[way] = self.costs[last];
        self.links.0[way] = self.links.0[last];
        self.fill();
        if self.count == 0 {
            self.upper = Self::NOBODY;
        }
    }

    /// Has the first peer in all places that are vacant.
    fn fill(&mut self) {
        (usize::from(self.count)..=WAYS).for_each(|place| self.peers.set(place, self.peers.get(0)));
    }
}

impl Peers {
    /// However far apart a worker's peers are, as the first ones of all nodes may be, they spread over the sets (Knuth, The Art of
    /// Computer Programming, volume 3, section 6.4: multiplication by the golden ratio).
    fn set(peer: WorkerId) -> usize {
        (peer.0.wrapping_mul(0x9e37_79b9) >> 16) as usize % SETS
    }

    /// What the link to a peer costs: as much as others `like` it, if it is none of them.
    fn costs<'a>(&'a self, peer: WorkerId, like: &'a Costs) -> &'a Costs {
        let set = &self.sets[Self::set(peer)];
        set.costs.get(set.way(peer)).unwrap_or(like)
    }

    /// The link to a peer and what it costs, if it is one of them or is to be: if there are few in its set, or the worker met it
    /// twice before. Until more is known of it, it is taken for one that costs as much as others `like` it.
    fn link(
        &mut self,
        peer: WorkerId,
        told: &mut Lately,
        like: Costs,
        now: u64,
    ) -> Option<(&mut Link, &mut Costs)> {
        let set = &mut self.sets[Self::set(peer)];
        let way = match set.way(peer) {
            way if way < WAYS => way,
            _ if !set.has_room(peer) && !told.meet(peer) => return None,
            _ => set.take_in(peer, (like, Link::new(now))),
        };
        Some((&mut set.links.0[way], &mut set.costs[way]))
    }

    pub(super) fn remove(&mut self, peer: WorkerId) {
        self.sets[Self::set(peer)].remove(peer);
    }

    /// Checks that each peer is there once, and nobody else.
    ///
    /// # Panics
    /// If not.
    pub(super) fn validate(&self) {
        for (number, set) in self.sets.iter().enumerate() {
            let peers: Vec<u16> = (0..=WAYS).map(|way| set.peers.get(way)).collect();
            let (taken, vacant) = peers.split_at(usize::from(set.count));
            assert!(vacant.iter().all(|peer| *peer == peers[0]), "{peers:?}: the first again and again");
            assert_eq!(set.count == 0, set.upper == Set::NOBODY, "nobody, if none is there");
            for (way, lower) in taken.iter().enumerate() {
                let peer = WorkerId(u32::from(set.upper) << 16 | u32::from(*lower));
                assert_eq!((Self::set(peer), set.way(peer)), (number, way), "{peer:?}");
            }
        }
    }

    /// Asks for what is known of all peers.
    fn prefetch(&self) {
        self.sets.iter().for_each(prefetch);
    }

    /// Asks for how it is learned what the link to a peer costs.
    fn prefetch_links(&self, peer: WorkerId) {
        prefetch(&self.sets[Self::set(peer)].links);
    }
}

/// What links cost of which nothing more is known: within a process, within a host, and between hosts.
pub(super) struct Links {
    costs: [Costs; 3],
    /// Fetches that told of the latency and the bandwidth of each.
    counts: [[u8; 2]; 3],
}

impl Links {
    /// Begins with guesses, that between hosts being `bandwidth` in bytes a second.
    pub(super) fn new(bandwidth: f64) -> Self {
        // Within a process values change hands, whatever their size.
        let process = Costs::new(20e3, 1e12);
        let (host, network) = (Costs::new(100e3, 2.0 * bandwidth), Costs::new(100e3, bandwidth));
        Self { costs: [process, host, network], counts: [[0; 2]; 3] }
    }

    fn of(&self, one: Location, other: Location) -> &Costs {
        &self.costs[Self::distance(one, other)]
    }

    /// How far two workers are from each other: so that it takes no branch, where they meet is as good as random.
    fn distance(one: Location, other: Location) -> usize {
        let apart = one.host != other.host;
        usize::from(apart) + usize::from(apart | (one.process != other.process))
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
            if !self.workers.contains(fetch.from) {
                continue;
            }
            let distance = Links::distance(self.workers.location(worker), self.workers.location(fetch.from));
            let (like, counts) = (&mut self.links.costs[distance], &mut self.links.counts[distance]);
            let Some(asker) = self.workers.get_mut(worker) else { continue };
            let Worker { peers, told, .. } = asker;
            let mut once = (Link::new(self.now), *like);
            let kept = peers.link(fetch.from, told, *like, self.now);
            let (link, costs) = kept.unwrap_or((&mut once.0, &mut once.1));
            link.learn(costs, fetch, self.now);
            let proved = if fetch.nbytes <= Fetch::SMALL { costs.latency() as u64 } else { fetch.nanos };
            like.learn(counts, Fetch { nanos: proved, ..fetch }, self.now);
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
        prefetch(&asker.told);
        asker.peers.prefetch();
        peers.for_each(|peer| asker.peers.prefetch_links(peer));
    }

    /// Asks for what [`Self::transfer`] looks at.
    pub(super) fn prefetch_links(&self, worker: WorkerId) {
        if let Some(asker) = self.workers.get(worker) {
            asker.peers.prefetch();
        }
    }

    /// Nanoseconds until a worker has what it lacks of some results.
    pub(super) fn transfer(&self, needs: &Needs<'_>, worker: WorkerId) -> u64 {
        self.fetching(worker, needs, Costs::latency)
    }

    /// As [`Self::transfer`], where the links' latencies are what `latency` says: each result comes from the holder that
    /// gives it soonest, all on their way at the same time, over the worker's one wire.
    ///
    /// This is asked of each candidate for a task and each result that it needs, and which of them know each other, and how far
    /// apart they are, is as good as random: a branch would be foretold wrongly every other time, so there is none for that.
    pub(super) fn fetching(&self, id: WorkerId, needs: &Needs<'_>, latency: impl Fn(&Costs) -> f32) -> u64 {
        let Some(asker) = self.workers.get(id) else { return 0 };
        let place = self.workers.location(id);
        let (mut longest, mut moving) = (0f32, 0f32);
        for Need { nbytes, at } in &needs.0 {
            let mut soonest = (0f32, 0f32);
            for (number, holder) in at.iter().take(HOLDERS).enumerate() {
                let costs = asker.peers.costs(*holder, self.links.of(place, self.workers.location(*holder)));
                let this = (latency(costs), costs.moving(*nbytes));
                if number == 0 || this.0 + this.1 < soonest.0 + soonest.1 {
                    soonest = this;
                }
            }
            let elsewhere = if at.contains(&id) { 0.0 } else { 1.0 };
            let (latency, takes) = (elsewhere * soonest.0, elsewhere * soonest.1);
            longest = if latency > longest { latency } else { longest };
            moving += takes;
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
        let (mut peers, mut known) = (Peers::default(), Lately::default());
        let mut keeps = |id: &WorkerId| {
            known.insert(*id);
            peers.link(*id, &mut known, like, 0).is_some()
        };
        let of_a_set: Vec<WorkerId> = (0..400).map(WorkerId).filter(|id| Peers::set(*id) == 0).collect();
        let (first, others) = of_a_set.split_at(WAYS);
        let (back, strangers) = (others[0], &others[1..101]);
        assert!(first.iter().all(&mut keeps), "the first");
        assert!(!keeps(&back) && !keeps(&back) && keeps(&back) && keeps(&back), "one that comes back twice");
        assert!(
            !strangers.iter().any(&mut keeps) && !strangers.iter().any(&mut keeps),
            "others come in between"
        );
        let kept = |peers: &Peers, id: WorkerId| peers.sets[Peers::set(id)].way(id) < WAYS;
        assert!(kept(&peers, back) && !kept(&peers, first[0]) && !kept(&peers, strangers[0]));
        // One that is gone leaves its place to the next, whoever that is.
        peers.remove(first[3]);
        assert!(!kept(&peers, first[3]));
        assert!(peers.link(strangers[7], &mut known, like, 0).is_some());
        let gone = [first[0], first[3]];
        assert!(first.iter().all(|id| kept(&peers, *id) != gone.contains(id)) && kept(&peers, back));
    }

    #[test]
    fn each_peer_has_what_its_own_fetches_took_whoever_comes_and_goes() {
        let like = Costs::new(1_000_300.0, 1.0);
        let took = |peer: WorkerId| 1000 * u64::from(1 + peer.0 % 30);
        let (mut peers, mut known) = (Peers::default(), Lately::default());
        let learned = |peers: &Peers, peer| peers.costs(peer, &like).latency() as u64 / 1000 * 1000;
        // The lower halves of some numbers are alike; the gone do not come back.
        let ids = (0u32..2000).map(|n| WorkerId(n % 23 + n / 500 * (1 << 16) + n / 100 * 40));
        for (n, peer) in ids.clone().enumerate() {
            known.insert(peer);
            if let Some((link, costs)) = peers.link(peer, &mut known, like, 0) {
                link.learn(costs, Fetch { from: peer, nbytes: 10, nanos: took(peer) + 100 }, 0);
                assert_eq!(learned(&peers, peer), took(peer));
            }
            if n % 100 > 80 {
                peers.remove(peer);
                assert_eq!(learned(&peers, peer), 1_000_000, "it is gone");
            }
            peers.validate();
            for other in ids.clone() {
                assert!([took(other), 1_000_000].contains(&learned(&peers, other)), "{other:?} at {n}");
            }
        }
        ids.for_each(|peer| peers.remove(peer));
        assert!(peers.sets.iter().all(|set| set.count == 0), "all are gone");
    }

    #[test]
    fn peers_spread_over_the_sets_however_far_apart_they_are() {
        let like = Costs::new(1.0, 1.0);
        let apart = |stride: u32| {
            let (mut peers, mut known) = (Peers::default(), Lately::default());
            let ids = (0..(SETS * WAYS) as u32).map(|n| WorkerId(n * stride));
            ids.filter(|id| peers.link(*id, &mut known, like, 0).is_some()).count()
        };
        for stride in [1, 2, 3, 5, 8, 15, 16, 17, 20, 34, 40, 48, 64, 100, 128, 4096] {
            assert!(apart(stride) >= SETS * WAYS - 3, "{} of peers that are {stride} apart", apart(stride));
        }
    }
}
