//! The cores that a process may use: as whoever launched it bound it, or as it binds itself.

use std::{fs, ops::Range, thread};

use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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

    /// What a user wrote.
    ///
    /// # Errors
    /// If that names no cores.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let names = |range: Range<usize>| !range.is_empty() && range.end <= CpuSet::MAX_CPU;
        if text.split(',').all(|part| range(part).is_some_and(names)) {
            return Ok(Self(text.into()));
        }
        Err(Error::Usage(format!("cores are written as 0-3,8, and not as `{text}`")))
    }

    /// Each of them that a thread can be bound to by itself.
    fn all(&self) -> impl Iterator<Item = usize> {
        let known = |cores: Range<usize>| cores.start..cores.end.min(CpuSet::MAX_CPU);
        self.0.split(',').filter_map(range).flat_map(known)
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.0.split(',').filter_map(range).map(|range| range.len()).sum()
    }

    /// One of so many parts of them; `None` where there are not so many. Neighbours stay together, since they share caches and
    /// memory; where there are fewer cores than parts, several parts are the same core.
    pub(crate) fn part(&self, index: usize, parts: usize) -> Option<Self> {
        let all: Vec<usize> = self.all().collect();
        let count = all.len();
        let first = index * count / parts.max(1);
        let beyond = ((index + 1) * count / parts.max(1)).max(first + 1);
        let own: Vec<String> =
            all.into_iter().take(beyond).skip(first).map(|core| core.to_string()).collect();
        (index < parts && !own.is_empty()).then(|| Self(own.join(",")))
    }

    /// Binds this thread to them, and all that it starts from now on.
    ///
    /// # Errors
    /// If this process may use none of them.
    pub(crate) fn bind(&self) -> Result<()> {
        let mut set = CpuSet::new();
        self.all().for_each(|core| set.set(core));
        sched_setaffinity(None, &set).map_err(|error| {
            let attempt = format!("run on the cores {} (this process may use {})", self.0, Self::bound().0);
            Error::io(attempt)(error.into())
        })
    }
}

/// Cores as the kernel writes neighbours among them.
fn range(part: &str) -> Option<Range<usize>> {
    let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
    Some(first.parse().ok()?..last.parse::<usize>().ok()?.checked_add(1)?)
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
    fn cores_are_divided_among_neighbours() {
        let parts = |text, parts| -> Vec<Option<String>> {
            (0..=parts).map(|index| Some(cores(text).part(index, parts)?.0)).collect()
        };
        let some = |parts: &[&str]| -> Vec<Option<String>> {
            parts.iter().map(|part| Some((*part).to_owned())).chain([None]).collect()
        };
        assert_eq!(parts("0-3,8", 2), some(&["0,1", "2,3,8"]));
        assert_eq!(parts("4,5", 2), some(&["4", "5"]));
        assert_eq!(parts("0-1", 3), some(&["0", "0", "1"]));
        assert_eq!(parts("", 1), [None, None]);
    }

    #[test]
    fn what_names_no_cores_is_refused() {
        for text in ["", "x", "3-1", "0,,1", "1-", "-1", "0-18446744073709551615", "0-1024"] {
            let refused = Cores::parse(text).expect_err(text).to_string();
            assert!(refused.contains(&format!("not as `{text}`")), "{refused}");
        }
        assert_eq!(Cores::parse("0-3,8").expect("they are cores").count(), 5);
    }

    #[test]
    fn a_thread_is_bound_where_it_may_be() {
        let bound = thread::spawn(|| {
            let part = Cores::bound().part(0, usize::MAX)?;
            part.bind().ok()?;
            Some((part.count(), thread::available_parallelism().ok()?.get()))
        });
        assert_eq!(bound.join().expect("it does not panic"), Some((1, 1)));
        let refused = thread::spawn(|| cores("1000-1023").bind().expect_err("no machine has so many"));
        let refused = refused.join().expect("it does not panic").to_string();
        assert!(refused.contains("run on the cores 1000-1023"), "{refused}");
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
