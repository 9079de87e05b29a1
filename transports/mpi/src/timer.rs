//! A timer of the system's that wakes a task within microseconds of its time.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

/// A timer.
pub(crate) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// A timer that is not set. The runtime must have I/O enabled.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: touches no memory.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an `OwnedFd` stays open, and the same, as long as it lives.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Rings once, in `time` (not zero) from now; what it was set to before is forgotten.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn set(&self, time: Duration) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: a valid descriptor and setting; the old one is not asked for.
        let code = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &setting, ptr::null_mut()) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Ready once it rang; now and then also although it did not, where it was set again just before it
    /// would have rung.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The runtime is told of each ring by itself, so none has to be read away.
        if let Ok(mut guard) = std::task::ready!(self.0.poll_read_ready(cx)) {
            guard.clear_ready();
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Instant};

    use super::*;

    #[tokio::test]
    async fn it_rings_each_time_it_is_set_and_not_by_itself() {
        let mut timer = Timer::new().unwrap();
        for time in [100, 3000, 50, 200].map(Duration::from_micros) {
            let start = Instant::now();
            timer.set(time).unwrap();
            poll_fn(|cx| timer.poll(cx)).await;
            assert!(start.elapsed() >= time);
        }
        assert!(poll_fn(|cx| Poll::Ready(timer.poll(cx))).await.is_pending());
    }
}
