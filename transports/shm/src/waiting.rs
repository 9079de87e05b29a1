//! How a receiver waits for the next message: it sleeps, unless answers come so fast that looking for them is worth it.
//!
//! To be woken takes several microseconds, most of the time that a small message is under way. So where one message
//! after the other has come within microseconds of being waited for, the receiver looks by itself for a moment before it
//! sleeps, with all other tasks and a look of the runtime at its events in between. Where that comes to nothing it
//! wants to see more such answers before it looks again. So nobody looks on an idle machine; nor where the other side
//! computes before it answers, or has no core to itself, and whoever looks would only be in its way.
//!
//! It does not give way to other threads between its looks: who does that lets them have their whole time slice,
//! while one who sleeps is let in at once when something comes.

use std::{
    future::Future,
    pin::pin,
    sync::LazyLock,
    task::Context,
    thread,
    time::{Duration, Instant},
};

use tokio::task;

/// An answer that came within this time was quick: longer than both sides take to be woken, shorter than a task.
const QUICK: Duration = Duration::from_micros(40);
/// It looks for so long: longer than another that looks takes to answer.
const LOOKS: Duration = Duration::from_micros(20);
/// Quick answers, one after the other, before it looks: at first,
const FEW: u32 = 8;
/// and at most.
const MANY: u32 = 128;

/// With one core the other side gets on only while this one sleeps.
static ALONE: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|cores| cores.get() == 1));

/// How one receiver waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    state: State,
    /// Quick answers since the last that was not.
    quick: u32,
    /// How many of them it wants before it looks.
    wanted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Something came since the last wait.
    Fresh,
    /// It waits since then, and looks by itself or is woken.
    Waiting { since: Instant, looks: bool },
}

impl Waiting {
    /// Of a receiver to which nothing came yet.
    pub(crate) fn new() -> Self {
        Self { state: State::Fresh, quick: 0, wanted: FEW }
    }

    /// Something came.
    pub(crate) fn came(&mut self) {
        let State::Waiting { since, looks } = std::mem::replace(&mut self.state, State::Fresh) else {
            return;
        };
        if since.elapsed() > QUICK {
            self.quick = 0;
            return;
        }
        self.quick = self.quick.saturating_add(1);
        // It has paid for as many as it took.
        if looks && self.quick >= 2 * self.wanted {
            self.wanted = FEW;
        }
    }

    /// Nothing is there: sees to it that the task looks again soon, where that is worth it. The socket wakes it in
    /// any case.
    pub(crate) fn wait(&mut self, cx: &mut Context<'_>) {
        let looks = match self.state {
            State::Fresh => {
                let looks = self.quick >= self.wanted && !*ALONE;
                self.state = State::Waiting { since: Instant::now(), looks };
                looks
            }
            State::Waiting { since, looks: true } if since.elapsed() < LOOKS => true,
            State::Waiting { since, looks: true } => {
                self.state = State::Waiting { since, looks: false };
                self.quick = 0;
                self.wanted = (2 * self.wanted).min(MANY);
                false
            }
            State::Waiting { looks: false, .. } => false,
        };
        if looks {
            // Woken once all other tasks had their turn and the runtime looked for events.
            let _ = pin!(task::yield_now()).poll(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Waits, and something comes after so long; gives whether it looked.
    fn message(waiting: &mut Waiting, after: Duration) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        waiting.wait(&mut cx);
        let looked = looks(waiting);
        let State::Waiting { since, .. } = &mut waiting.state else { panic!("it waits") };
        // The clock is the system's: what was begun earlier takes longer.
        *since = since.checked_sub(after).expect("the clock began before");
        if after > LOOKS {
            waiting.wait(&mut cx);
            assert!(!looks(waiting), "it looks for too long");
        }
        waiting.came();
        looked
    }

    fn looks(waiting: &Waiting) -> bool {
        matches!(waiting.state, State::Waiting { looks: true, .. })
    }

    const AT_ONCE: Duration = Duration::ZERO;
    const LATE: Duration = Duration::from_millis(1);

    #[test]
    fn only_after_quick_answers_it_looks_for_more() {
        if *ALONE {
            return;
        }
        let mut waiting = Waiting::new();
        let looked: Vec<bool> = (0..100).map(|_| message(&mut waiting, AT_ONCE)).collect();
        // A test may itself be interrupted, and begin anew.
        assert!(!looked[..FEW as usize].contains(&true) && looked.contains(&true));
        let mut waiting = Waiting::new();
        for i in 0..1000 {
            let after = if i % 4 == 0 { LATE } else { AT_ONCE };
            assert!(!message(&mut waiting, after), "every fourth takes its time");
        }
    }

    #[test]
    fn the_more_often_it_looked_in_vain_the_more_it_wants_to_see() {
        let mut waiting = Waiting::new();
        let mut vain = 0;
        for _ in 0..20_000 {
            let worth = waiting.quick >= waiting.wanted && !*ALONE;
            vain += u32::from(message(&mut waiting, if worth { LATE } else { AT_ONCE }));
        }
        assert!(vain < 20_000 / MANY + 20, "{vain} of 20,000");
    }
}
