//! How a receiver waits for the next message: it looks for a moment before it sleeps.
//!
//! To be woken takes several microseconds, most of the time that a small message is under way. So after each
//! message the receiver looks by itself for a while, with all other tasks and a look of the runtime at its events
//! in between. Where the other side is not that quick, or has no core to itself, nothing comes of it: then more
//! and more waits sleep at once, so that a machine whose cores are all in use loses less than a microsecond a message.
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

/// Longer than the other side takes to be woken and to answer.
const LOOKS: Duration = Duration::from_micros(20);
/// Waits that sleep at once, at most, between two that look.
const MOST_SKIPPED: u32 = 63;

/// With one core the other side gets on only while this one sleeps.
static ALONE: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|cores| cores.get() == 1));

/// How one receiver waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    state: State,
    /// Waits to come that will sleep at once.
    skipping: u32,
    /// How many those were the last time.
    skipped: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Something came since the last wait.
    Fresh,
    /// It looks by itself until then.
    Looking(Instant),
    /// It will be woken.
    Asleep,
}

impl Waiting {
    /// Of a receiver to which nothing came yet.
    pub(crate) fn new() -> Self {
        Self { state: State::Asleep, skipping: 0, skipped: 0 }
    }

    /// Something came.
    pub(crate) fn came(&mut self) {
        if let State::Looking(_) = self.state {
            (self.skipping, self.skipped) = (0, 0);
        }
        self.state = State::Fresh;
    }

    /// Nothing is there: sees to it that the task looks again soon, where that is worth it. The socket wakes it in
    /// any case.
    pub(crate) fn wait(&mut self, cx: &mut Context<'_>) {
        let looks = match self.state {
            State::Asleep => false,
            State::Fresh if *ALONE => false,
            State::Fresh if self.skipping > 0 => {
                self.skipping -= 1;
                false
            }
            State::Fresh => {
                self.state = State::Looking(Instant::now() + LOOKS);
                true
            }
            State::Looking(until) if Instant::now() < until => true,
            State::Looking(_) => {
                self.skipped = (2 * self.skipped + 1).min(MOST_SKIPPED);
                self.skipping = self.skipped;
                false
            }
        };
        if looks {
            // Woken once all other tasks had their turn and the runtime looked for events.
            let _ = pin!(task::yield_now()).poll(cx);
        } else {
            self.state = State::Asleep;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::SeqCst},
        },
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// How often it looks in one wait after something came, of which nothing comes.
    fn looks(waiting: &mut Waiting) -> u32 {
        waiting.came();
        wait(waiting)
    }

    /// Outside of a runtime a task that yields is woken at once.
    fn wait(waiting: &mut Waiting) -> u32 {
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(wakes.clone());
        let (mut cx, start) = (Context::from_waker(&waker), Instant::now());
        while waiting.state != State::Asleep {
            waiting.wait(&mut cx);
            assert!(start.elapsed() < Duration::from_secs(10), "it looks for ever");
        }
        wakes.0.load(SeqCst)
    }

    #[test]
    fn one_that_looks_in_vain_soon_hardly_looks_any_more() {
        if *ALONE {
            return;
        }
        let mut waiting = Waiting::new();
        assert_eq!(wait(&mut waiting), 0, "before the first message nobody looks");
        let looked: Vec<bool> = (0..1000).map(|_| looks(&mut waiting) > 0).collect();
        assert!(looked[0] && looked.iter().filter(|looked| **looked).count() < 25);
        assert!(looked[900..].contains(&true), "now and then it tries again");
    }

    #[test]
    fn one_that_finds_something_goes_on_looking() {
        if *ALONE {
            return;
        }
        let mut waiting = Waiting::new();
        while waiting.skipped < MOST_SKIPPED {
            looks(&mut waiting);
        }
        let mut cx = Context::from_waker(Waker::noop());
        while !matches!(waiting.state, State::Looking(_)) {
            waiting.came();
            waiting.wait(&mut cx);
        }
        for _ in 0..100 {
            waiting.came();
            waiting.wait(&mut cx);
            assert!(matches!(waiting.state, State::Looking(_)));
        }
    }
}
