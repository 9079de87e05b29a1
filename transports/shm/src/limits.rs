//! What the system lets this process have.

use std::{fs, sync::OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More segments than this share would leave too few descriptors and mappings to the rest of the program.
const MOST_SEGMENTS: usize = 16 << 10;

/// Descriptors that segments may take. The first call raises the limit of open files as far as this process
/// may: each segment takes one.
pub(crate) fn segments() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        usize::try_from(open_files() / 2).map_or(MOST_SEGMENTS, |half| half.min(MOST_SEGMENTS))
    })
}

/// How many files this process may have open.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Bytes that a file of this process may have, segments included.
pub(crate) fn file_size() -> u64 {
    getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX)
}

/// Bytes of memory that programs of this host may still take, as far as the system tells.
pub(crate) fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bytes of memory that this process's control group may take, segments included.
pub(crate) fn memory_of_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |line: &str| {
        let file = match line.split_once("::") {
            Some((_, group)) => format!("/sys/fs/cgroup{group}/memory.max"),
            None => format!("/sys/fs/cgroup/memory{}/memory.limit_in_bytes", line.split_once(":memory:")?.1),
        };
        // "max" is no limit, and so is what the first version says in its place: the most that it can.
        fs::read_to_string(file).ok()?.trim().parse().ok().filter(|limit| *limit < 1 << 60)
    };
    groups.lines().filter_map(read).min()
}
