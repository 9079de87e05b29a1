//! How the I/O thread waits for MPI, which wakes nobody: it looks, less and less often.
//!
//! It spins for [`SPIN`] after the last thing that happened, then gives its core to others between looks
//! until [`YIELD`], then sleeps between them for an eighth of the time that nothing has happened for, and
//! at most [`LONGEST`]. So what comes after a while is noticed an eighth of that while late at most, and
//! never later than a [`LONGEST`]; an idle rank looks 250 times a second.
//!
//! Many an MPI copies on both sides, a little at each look, and does not tell of it before all is there. So
//! while it works on something this goes on yielding until a piece should be through ([`SENDING`],
//! [`RECEIVING`]): a receive has begun on both sides, but for a send the other side may have no room yet.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Longer than an answer takes from a rank that does nothing else.
const SPIN: Duration = Duration::from_micros(20);
/// From then on it sleeps between looks.
const YIELD: Duration = Duration::from_micros(200);
/// From then on it sleeps although MPI sends something.
const SENDING: Duration = Duration::from_millis(50);
/// From then on it sleeps although MPI receives something.
const RECEIVING: Duration = Duration::from_secs(1);
/// An idle rank's sleep.
const LONGEST: Duration = Duration::from_millis(4);

/// Since when nothing has happened. The clock is read only between looks that found nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    since: Option<Instant>,
}

/// What MPI works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Nothing,
    Sending,
    Receiving,
}

/// What to do until the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    None,
    Yield,
    Sleep(Duration),
}

impl Pace {
    /// Something happened just now.
    pub(crate) fn begin() -> Self {
        Self { since: None }
    }

    /// The next pause.
    pub(crate) fn pause(&mut self, work: Work) -> Pause {
        let now = Instant::now();
        pause(now - *self.since.get_or_insert(now), work)
    }

    /// Pauses this thread, where it has nothing else to do.
    pub(crate) fn wait(&mut self) {
        match self.pause(Work::Nothing) {
            Pause::None => std::hint::spin_loop(),
            Pause::Yield => thread::yield_now(),
            Pause::Sleep(time) => thread::sleep(time),
        }
    }
}

fn pause(idle: Duration, work: Work) -> Pause {
    let awake = match work {
        Work::Nothing => YIELD,
        Work::Sending => SENDING,
        Work::Receiving => RECEIVING,
    };
    if idle < SPIN {
        Pause::None
    } else if idle < awake {
        Pause::Yield
    } else {
        Pause::Sleep((idle / 8).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_time_that_nothing_happens_up_to_a_bound() {
        assert_eq!(pause(Duration::ZERO, Work::Nothing), Pause::None);
        assert_eq!(pause(SPIN, Work::Nothing), Pause::Yield);
        assert_eq!(pause(YIELD, Work::Nothing), Pause::Sleep(YIELD / 8));
        assert_eq!(pause(Duration::from_millis(4), Work::Nothing), Pause::Sleep(Duration::from_micros(500)));
        assert_eq!(pause(Duration::from_secs(9), Work::Nothing), Pause::Sleep(LONGEST));
    }

    #[test]
    fn while_something_is_under_way_it_sleeps_only_if_nothing_comes_of_it() {
        assert_eq!(pause(YIELD, Work::Sending), Pause::Yield);
        assert_eq!(pause(SENDING, Work::Sending), Pause::Sleep(LONGEST));
        assert_eq!(pause(SENDING, Work::Receiving), Pause::Yield);
        assert_eq!(pause(RECEIVING, Work::Receiving), Pause::Sleep(LONGEST));
    }
}
