//! The cores that a process may use, as whoever launched it bound it.

use std::{fs, thread};

use serde::{Deserialize, Serialize};

/// A set of cores, written as the kernel writes it: `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cores(pub(crate) String);

impl Cores {
    /// Those that this process is bound to.
    pub(crate) fn bound() -> Self {
        Self(line("/proc/self/status", "Cpus_allowed_list:").unwrap_or_else(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            format!("0-{}", cores - 1)
        }))
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        let range = |part: &str| match part.split_once('-') {
            Some((first, last)) => Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1),
            None => part.parse::<usize>().ok().map(|_| 1),
        };
        self.0.split(',').filter_map(|part| range(part.trim())).sum()
    }
}

/// What follows `name` in a file of lines.
fn line(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
}

/// Compute threads for one of several processes that are bound to the same `cores`: its part of them, at
/// least one, and no more than the system lets this process use at once (a control group's quota, say).
pub(crate) fn threads(cores: &Cores, sharers: usize) -> u32 {
    let usable = thread::available_parallelism().map_or(usize::MAX, usize::from);
    (cores.count() / sharers.max(1)).clamp(1, usable) as u32
}

/// A rank, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    pub(crate) host: String,
    pub(crate) cores: Cores,
    /// Bytes of memory of the host.
    pub(crate) memory: u64,
}

impl Binding {
    /// This process's.
    pub(crate) fn of_this_process() -> Self {
        let kib = line("/proc/meminfo", "MemTotal:");
        let kib = kib.and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        Self {
            host: crate::worker::server::hostname(),
            cores: Cores::bound(),
            memory: kib.unwrap_or(0) << 10,
        }
    }

    /// How many of these share its cores: those of the same host that are bound to the same.
    #[cfg(any(test, feature = "mpi"))]
    pub(crate) fn sharers<'a>(&self, all: impl IntoIterator<Item = &'a Self>) -> usize {
        let same = |other: &&Self| (&other.host, &other.cores) == (&self.host, &self.cores);
        all.into_iter().filter(same).count()
    }

    /// How many of these are of its host.
    #[cfg(any(test, feature = "mpi"))]
    pub(crate) fn neighbours<'a>(&self, all: impl IntoIterator<Item = &'a Self>) -> usize {
        all.into_iter().filter(|other| other.host == self.host).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Cores {
        Cores(text.into())
    }

    #[test]
    fn cores_are_counted() {
        for (text, count) in [("0-3,8", 5), ("7", 1), ("0-1", 2), ("", 0), ("3-1", 0), ("a-b", 0)] {
            assert_eq!(cores(text).count(), count, "{text}");
        }
        assert!(Cores::bound().count() >= 1);
    }

    #[test]
    fn those_bound_to_the_same_share() {
        let rank = |host: &str, text| Binding { host: host.into(), cores: cores(text), memory: 0 };
        let ranks = [rank("a", "0-7"), rank("a", "0-7"), rank("a", "8-15"), rank("b", "0-7")];
        assert_eq!(ranks.each_ref().map(|rank| rank.sharers(&ranks)), [2, 2, 1, 1]);
        assert_eq!(ranks.each_ref().map(|rank| rank.neighbours(&ranks)), [3, 3, 3, 1]);
        assert_eq!(threads(&cores("0"), 4), 1);
    }
}
