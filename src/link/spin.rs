//! How the I/O thread waits: it looks for what comes a little longer before it sleeps.
//!
//! To wake a thread takes microseconds; in a round trip within a process the I/O thread would sleep and be
//! woken twice. So where a core is free it spins a moment after each message. Where none is, spinning
//! would only keep others from theirs.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task};

/// Longer than a thread takes to be woken, run a trivial task, and answer.
const SPIN: Duration = Duration::from_micros(20);

thread_local! {
    /// When the last message was put on this thread, while it spins.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    static SPINNER: RefCell<Option<std::rc::Rc<Notify>>> = const { RefCell::new(None) };
}

/// Called for each message that this thread sends: more may follow soon.
pub(super) fn active() {
    SPINNER.with_borrow(|spinner| {
        if let Some(spinner) = spinner
            && LAST.replace(Some(Instant::now())).is_none()
        {
            spinner.notify_one();
        }
    });
}

/// Keeps this thread from sleeping for a moment after each message, while a core is `free`.
pub(crate) async fn spin(free: impl Fn() -> bool) {
    let woken = std::rc::Rc::new(Notify::new());
    SPINNER.replace(Some(woken.clone()));
    loop {
        match LAST.get() {
            // The runtime looks for events each time all have yielded.
            Some(last) if last.elapsed() < SPIN && free() => task::yield_now().await,
            _ => {
                LAST.set(None);
                woken.notified().await;
            }
        }
    }
}
