//! What will go wrong, told from the seed alone: the same seed plans the same faults, whatever becomes of them.

use std::time::Duration;

use rand::{Rng, rngs::SmallRng, seq::SliceRandom};

/// What is done to a worker, or to the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Killed,
    StoppedShortly,
    StoppedForLong,
    CutShortly,
    CutForLong,
    SlowLink,
    SlowProcess,
    Joined,
    SchedulerRestored,
}

impl Kind {
    /// Each kind, and how many of a hundred faults are of it.
    const OF_A_HUNDRED: &[(Self, usize)] = &[
        (Self::Killed, 26),
        (Self::StoppedShortly, 14),
        (Self::StoppedForLong, 8),
        (Self::CutShortly, 12),
        (Self::CutForLong, 6),
        (Self::SlowLink, 8),
        (Self::SlowProcess, 6),
        (Self::Joined, 15),
        (Self::SchedulerRestored, 5),
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::StoppedShortly => "stopped for a moment",
            Self::StoppedForLong => "stopped for longer than it may be silent",
            Self::CutShortly => "cut off for a moment",
            Self::CutForLong => "cut off for longer than it may be silent",
            Self::SlowLink => "slow link",
            Self::SlowProcess => "slow process",
            Self::Joined => "joined late",
            Self::SchedulerRestored => "scheduler died and was restored",
        }
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub kind: Kind,
    /// After the last one.
    pub pause: Duration,
    /// Whom it befalls of those that are there then, from 0 for the first to 1.
    aim: f64,
    /// How long it lasts, or, where it is for long, by how much longer than one may be silent.
    pub lasts: Duration,
}

impl Fault {
    /// Whom of so many it befalls.
    pub fn aimed_at(&self, count: usize) -> usize {
        ((self.aim * count as f64) as usize).min(count.saturating_sub(1))
    }
}

/// All faults of a seed, without end: of each hundred so many are of each kind, in any order.
pub struct Plan {
    random: SmallRng,
    next: Vec<Kind>,
}

impl Plan {
    pub fn new(random: SmallRng) -> Self {
        Self { random, next: Vec::new() }
    }
}

impl Iterator for Plan {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.next.is_empty() {
            self.next = Kind::OF_A_HUNDRED.iter().flat_map(|(kind, count)| vec![*kind; *count]).collect();
            self.next.shuffle(&mut self.random);
        }
        let kind = self.next.pop()?;
        let millis = |random: &mut SmallRng, range| Duration::from_millis(random.random_range(range));
        let pause = millis(&mut self.random, 10..250);
        let lasts = match kind {
            Kind::StoppedForLong | Kind::CutForLong => millis(&mut self.random, 500..2000),
            Kind::SlowLink | Kind::SlowProcess => millis(&mut self.random, 40..1200),
            _ => millis(&mut self.random, 20..600),
        };
        Some(Fault { kind, pause, aim: self.random.random(), lasts })
    }
}

/// The same seed plans the same, another one does not, and each hundred has all kinds in it.
pub fn a_seed_plans_the_same_again() -> Result<(), libtest_mimic::Failed> {
    use rand::SeedableRng;

    let plan = |seed| Plan::new(SmallRng::seed_from_u64(seed)).take(300).collect::<Vec<_>>();
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
    for hundred in plan(9).chunks(100) {
        for (kind, count) in Kind::OF_A_HUNDRED {
            assert_eq!(hundred.iter().filter(|fault| fault.kind == *kind).count(), *count, "{kind:?}");
        }
    }
    Ok(())
}
