//! The task that lets MPI work while nobody else on the I/O thread does.
//!
//! It runs on the runtime of the thread that joined, as long as there is a listener or a connection, and
//! pauses as [`pace`](crate::pace) says: in a spin or a yield the other tasks of the loop have their turn at
//! once; it sleeps on a timer of the system's, since the runtime's own counts in milliseconds.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    thread,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task,
};

use crate::{engine::NOTICE, local, pace::Pause, timer::Timer};

/// Sees to it that a progress task is there.
///
/// # Errors
/// Why none can be: the words say what to do.
pub(crate) fn ensure(progressing: &mut bool) -> Result<(), &'static str> {
    if *progressing {
        return Ok(());
    }
    let runtime = Handle::try_current().map_err(|_| "it needs a tokio runtime on this thread")?;
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return Err("it needs a current-thread tokio runtime, whose thread is the one that calls MPI");
    }
    *progressing = true;
    runtime.spawn(Progress { timer: Timer::new().ok(), sleeping: false });
    Ok(())
}

struct Progress {
    /// Without one (no file descriptor was left) it yields where it should sleep.
    timer: Option<Timer>,
    sleeping: bool,
}

impl Future for Progress {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.sleeping {
                let awakened = local::with(|engine| engine.sleeper.take().is_none()).unwrap_or(true);
                let rung = self.timer.as_mut().is_none_or(|timer| timer.poll(cx).is_ready());
                self.sleeping = !(awakened || rung);
                if self.sleeping {
                    let sleeper = cx.waker().clone();
                    let _ = local::with(|engine| engine.sleeper = Some(sleeper));
                    return Poll::Pending;
                }
            }
            let pause = local::with(|engine| {
                let _ = (0..NOTICE).any(|_| engine.turn());
                engine.has_business().then(|| engine.pause())
            });
            // Nothing to do any more, or MPI was left.
            let Ok(Some(pause)) = pause else { return Poll::Ready(()) };
            match (pause, &mut self.timer) {
                (Pause::Sleep(time), Some(timer)) if timer.set(time).is_ok() => {
                    self.sleeping = true;
                    let sleeper = cx.waker().clone();
                    let _ = local::with(|engine| engine.sleeper = Some(sleeper));
                }
                (pause, _) => {
                    if pause != Pause::None {
                        thread::yield_now();
                    }
                    // Unlike a plain wake this lets the runtime look for what else happened, and run its
                    // main future, before this task comes again.
                    return pin!(task::yield_now()).poll(cx);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The runtime may end before MPI does, and another begin.
        let _ = local::with(|engine| {
            engine.progressing = false;
            engine.sleeper = None;
        });
    }
}
