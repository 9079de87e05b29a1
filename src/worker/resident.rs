//! What this process occupies of the memory, and how much of that is each of its workers'.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

/// The workers of this process, and the bytes of results that they hold in memory.
static WORKERS: AtomicU64 = AtomicU64::new(0);
static MANAGED: AtomicU64 = AtomicU64::new(0);

/// A worker's part of its process.
pub(crate) struct Part {
    managed: u64,
}

impl Part {
    pub(crate) fn new() -> Self {
        WORKERS.fetch_add(1, Ordering::Relaxed);
        Self { managed: 0 }
    }

    /// Of the `resident` bytes of the process, those of this worker, which holds results of `managed` bytes: these, and
    /// of what is nobody's result as much as each other worker of the process.
    pub(crate) fn of(&mut self, resident: u64, managed: u64) -> u64 {
        // Wraps around where it shrinks, as the sum does.
        MANAGED.fetch_add(managed.wrapping_sub(self.managed), Ordering::Relaxed);
        self.managed = managed;
        let (all, workers) = (MANAGED.load(Ordering::Relaxed), WORKERS.load(Ordering::Relaxed));
        share(resident, managed, all, workers)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        MANAGED.fetch_sub(self.managed, Ordering::Relaxed);
        WORKERS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn share(resident: u64, managed: u64, all: u64, workers: u64) -> u64 {
    if workers <= 1 {
        return resident;
    }
    managed + resident.saturating_sub(all) / workers
}

/// Bytes that this process occupies, 0 where the system does not tell: memory of its own and shared segments. Views
/// of files are not among them, since the system may drop those at any time.
pub(crate) fn resident() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| of_status(&status)).unwrap_or(0)
}

fn of_status(status: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kib("RssAnon:")? + kib("RssShmem:")?) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_files_are_not_counted() {
        let status = "Name:\tx\nVmRSS:\t   5000 kB\nRssAnon:\t    3000 kB\nRssFile:\t    1800 kB\nRssShmem:\t     200 kB\n";
        assert_eq!(of_status(status), Some(3200 << 10));
        assert_eq!(of_status("VmRSS: 5 kB"), None);
        let before = resident();
        // What nobody looks at, an optimised build would leave out.
        let memory = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(resident() >= before + (60 << 20), "{before}, then {}", resident());
        drop(memory);
    }

    #[test]
    fn workers_of_a_process_share_what_is_nobodys_result() {
        assert_eq!(share(1000, 300, 300, 1), 1000);
        assert_eq!(share(1000, 300, 800, 2), 400);
        assert_eq!(share(1000, 500, 800, 2), 600, "together they count all of it");
        assert_eq!(share(700, 500, 800, 2), 500, "what two of them hold together is counted twice");
    }
}
