//! How the I/O thread waits: it looks for what comes a little longer before it sleeps.
//!
//! To wake a thread takes microseconds, and tens of them where its core sleeps. In a round trip within a process the I/O
//! thread would sleep and be woken twice, so there it spins a moment after each message; and in any process while
//! compute threads can do nothing until something comes from peers. Only while one of them leaves a core free, and that it
//! gives to whoever else is ready.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task};

/// After a message: longer than a thread takes to be woken, run a trivial task, and answer.
const AFTER_MESSAGES: Duration = Duration::from_micros(20);
/// Where a compute thread waits for what a peer computes: as long as a short task may take there.
const FOR_PEERS: Duration = Duration::from_micros(200);

thread_local! {
    /// Until when this thread spins.
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    static SPINNER: RefCell<Option<Spinner>> = const { RefCell::new(None) };
}

struct Spinner {
    woken: Rc<Notify>,
    after_messages: bool,
}

/// Called where this thread sends messages: more may follow soon.
pub(super) fn active() {
    spin_for(AFTER_MESSAGES, |spinner| spinner.after_messages);
}

/// Called where a worker's compute threads are idle and its tasks wait for others, mostly at peers.
pub(crate) fn expecting() {
    spin_for(FOR_PEERS, |_| true);
}

fn spin_for(time: Duration, wanted: impl Fn(&Spinner) -> bool) {
    SPINNER.with_borrow(|spinner| {
        if let Some(spinner) = spinner.as_ref().filter(|spinner| wanted(spinner)) {
            let until = Instant::now() + time;
            let before = UNTIL.get();
            UNTIL.set(before.max(Some(until)));
            if before.is_none() {
                spinner.woken.notify_one();
            }
        }
    });
}

/// Keeps this thread from sleeping while something is expected, `after_messages` or from peers, and a core is `free`.
pub(crate) async fn spin(after_messages: bool, free: impl Fn() -> bool) {
    let woken = Rc::new(Notify::new());
    SPINNER.replace(Some(Spinner { woken: woken.clone(), after_messages }));
    loop {
        match UNTIL.get() {
            Some(until) if Instant::now() < until && free() => {
                thread::yield_now();
                // The runtime looks for events each time all have yielded.
                task::yield_now().await;
            }
            _ => {
                UNTIL.set(None);
                woken.notified().await;
            }
        }
    }
}
