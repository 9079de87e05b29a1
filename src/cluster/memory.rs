//! The memory that a process may use, and a worker's part of it.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::settings::MemoryLimit;

/// An amount of memory, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Bound {
    pub(crate) bytes: u64,
    pub(crate) from: String,
}

/// What bounds the memory here.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// All processes of this node (or of this job on it) together.
    node: Bound,
    /// This process.
    process: Option<Bound>,
}

/// Who has a part of the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    /// The process's part of the node: one of so many, of which it has so many.
    pub(crate) of: usize,
    pub(crate) has: usize,
    /// Workers of the process.
    pub(crate) workers: usize,
}

impl Part {
    /// One of several processes of a node.
    pub(crate) fn one_of(processes: usize) -> Self {
        Self { of: processes.max(1), has: 1, workers: 1 }
    }

    /// A process with so many of a node's cores.
    pub(crate) fn of_cores(threads: usize, cores: usize) -> Self {
        Self { of: cores.max(1), has: threads.clamp(1, cores.max(1)), workers: 1 }
    }

    /// All workers of a process that has its node to itself.
    pub(crate) fn within(workers: usize) -> Self {
        Self { of: 1, has: 1, workers: workers.max(1) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.has, self.of * self.workers) {
            (has, of) if has == of => f.write_str("all"),
            (has, of) => write!(f, "{has}/{of}"),
        }
    }
}

impl Memory {
    /// What the system, the control groups and the batch system say.
    pub(crate) fn of_this_process() -> Self {
        let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let mut node = vec![Bound {
            bytes: total(&text("/proc/meminfo")).unwrap_or(u64::MAX),
            from: "the machine's memory".into(),
        }];
        for file in control_files(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo")) {
            let bytes = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            node.extend(
                bytes.map(|bytes| Bound { bytes, from: format!("the control group's {}", file.display()) }),
            );
        }
        node.extend(of_slurm(|name| env::var(name).ok()));
        let limits = [(Resource::As, "RLIMIT_AS (ulimit -v)"), (Resource::Data, "RLIMIT_DATA (ulimit -d)")];
        let process = limits.into_iter().filter_map(|(resource, name)| {
            // These count what is set aside, such as stacks and what the heap holds free, and not what is occupied.
            let bytes = getrlimit(resource).current? / 4 * 3;
            Some(Bound { bytes, from: format!("three quarters of {name}") })
        });
        let nothing = || Bound { bytes: u64::MAX, from: "nobody says how much there is".into() };
        Self { node: least(node).unwrap_or_else(nothing), process: least(process) }
    }

    /// What a worker that has such a part may use, 0 bytes where there is no limit.
    pub(crate) fn limit(&self, wanted: MemoryLimit, part: Part) -> Bound {
        let said = |bytes, from: &str| Bound { bytes, from: from.to_owned() };
        match wanted {
            MemoryLimit::None => said(0, "the setting memory-limit"),
            MemoryLimit::Bytes(bytes) => said(bytes, "the setting memory-limit"),
            MemoryLimit::Share(share) => {
                let bytes = (self.node.bytes as f64 * share) as u64;
                said(bytes, &format!("the setting memory-limit, {share} of {}", self.node.from))
            }
            MemoryLimit::Auto => self.auto(part),
        }
    }

    fn auto(&self, part: Part) -> Bound {
        let own = (u128::from(self.node.bytes) * part.has as u128 / part.of as u128) as u64;
        let (bytes, from, part) = match &self.process {
            Some(process) if process.bytes < own => {
                (process.bytes, &process.from, Part::within(part.workers))
            }
            _ => (own, &self.node.from, part),
        };
        if bytes == u64::MAX {
            return Bound { bytes: 0, from: from.clone() };
        }
        Bound { bytes: bytes / part.workers as u64, from: format!("{part} of {from}") }
    }
}

fn least(bounds: impl IntoIterator<Item = Bound>) -> Option<Bound> {
    bounds.into_iter().min_by_key(|bound| bound.bytes)
}

/// The machine's memory, from /proc/meminfo.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// What Slurm gives the job on each node; 0 stands for all that the node has.
fn of_slurm(variable: impl Fn(&str) -> Option<String>) -> Option<Bound> {
    let number = |name: &str| variable(name)?.trim().parse::<u64>().ok().filter(|number| *number > 0);
    if let Some(mebibytes) = number("SLURM_MEM_PER_NODE") {
        return Some(Bound { bytes: mebibytes.saturating_mul(1 << 20), from: "SLURM_MEM_PER_NODE".into() });
    }
    let (mebibytes, cpus) = (number("SLURM_MEM_PER_CPU")?, number("SLURM_CPUS_ON_NODE")?);
    let bytes = mebibytes.saturating_mul(cpus).saturating_mul(1 << 20);
    Some(Bound { bytes, from: "SLURM_MEM_PER_CPU and SLURM_CPUS_ON_NODE".into() })
}

/// The files that bound the memory of the control groups of a process and of all above them, by its
/// `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn control_files(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    // Where each hierarchy is mounted, and which group is seen there: in a container that is not the root.
    let mut mounts = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((mount, system)) = line.split_once(" - ") else { continue };
        let (mount, system): (Vec<&str>, Vec<&str>) =
            (mount.split(' ').collect(), system.split(' ').collect());
        let (&[_, _, _, root, point, ..], &[kind, _, options, ..]) = (&mount[..], &system[..]) else {
            continue;
        };
        match kind {
            "cgroup2" => drop(mounts.entry(2).or_insert((root, point))),
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                mounts.entry(1).or_insert((root, point));
            }
            _ => {}
        }
    }
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (version, names): (_, &[&str]) = match controllers {
            "" => (2, &["memory.max", "memory.high"]),
            v1 if v1.split(',').any(|controller| controller == "memory") => (1, &["memory.limit_in_bytes"]),
            _ => continue,
        };
        let Some((root, point)) = mounts.get(&version) else { continue };
        // A group outside of what is mounted here is seen as the mounted one.
        let within = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
        let group = Path::new(point).join(within);
        for above in group.ancestors().take_while(|above| above.starts_with(point)) {
            files.extend(names.iter().map(|name| above.join(name)));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(cgroup: &str, mountinfo: &str) -> Vec<String> {
        control_files(cgroup, mountinfo).iter().map(|file| file.display().to_string()).collect()
    }

    const V2: &str = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "32 29 0:30 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      33 29 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct";

    #[test]
    fn all_groups_above_a_process_bound_it() {
        assert_eq!(
            files("0::/slurm/job_7/step_0", V2),
            [
                "/sys/fs/cgroup/slurm/job_7/step_0/memory.max",
                "/sys/fs/cgroup/slurm/job_7/step_0/memory.high",
                "/sys/fs/cgroup/slurm/job_7/memory.max",
                "/sys/fs/cgroup/slurm/job_7/memory.high",
                "/sys/fs/cgroup/slurm/memory.max",
                "/sys/fs/cgroup/slurm/memory.high",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory.high",
            ]
        );
        assert_eq!(
            files("5:cpu,cpuacct:/x\n4:memory:/slurm/uid_1\n0::/", V1),
            [
                "/sys/fs/cgroup/memory/slurm/uid_1/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
        // Both at once, as some distributions have it.
        assert_eq!(files("4:memory:/a\n0::/b", &format!("{V1}\n{V2}")).len(), 2 + 4);
    }

    #[test]
    fn in_a_container_the_mounted_group_is_the_root() {
        let mounted = "40 39 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(files("0::/docker/abc/inner", mounted)[0], "/sys/fs/cgroup/inner/memory.max");
        assert_eq!(
            files("0::/elsewhere", mounted),
            ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.high"]
        );
        for nothing in [("", V2), ("0::/x", ""), ("nonsense", "nonsense - x"), ("1:name=systemd:/x", V1)] {
            assert!(files(nothing.0, nothing.1).is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn slurm_gives_memory_by_node_or_by_core() {
        let slurm = |set: &[(&str, &str)]| {
            of_slurm(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(slurm(&[("SLURM_MEM_PER_NODE", "4000")]).unwrap().bytes, 4000 << 20);
        let by_core = [("SLURM_MEM_PER_CPU", "1024"), ("SLURM_CPUS_ON_NODE", "8")];
        assert_eq!(slurm(&by_core).unwrap().bytes, 8 << 30);
        for nothing in [&[][..], &[("SLURM_MEM_PER_NODE", "0")], &[("SLURM_MEM_PER_CPU", "1024")]] {
            assert_eq!(slurm(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_worker_has_its_part_of_the_least() {
        let bound = |bytes, from: &str| Bound { bytes, from: from.into() };
        let all = Memory { node: bound(1000, "node"), process: None };
        let limit = |memory: &Memory, part| memory.limit(MemoryLimit::Auto, part);
        assert_eq!(limit(&all, Part::within(1)), bound(1000, "all of node"));
        assert_eq!(limit(&all, Part::within(4)), bound(250, "1/4 of node"));
        assert_eq!(limit(&all, Part::one_of(5)), bound(200, "1/5 of node"));
        assert_eq!(limit(&all, Part::of_cores(3, 4)), bound(750, "3/4 of node"));
        assert_eq!(limit(&all, Part::of_cores(9, 4)), bound(1000, "all of node"));
        // What bounds a process is not shared with others, but for workers of the same one.
        let bounded = Memory { process: Some(bound(400, "ulimit")), ..all.clone() };
        assert_eq!(limit(&bounded, Part::one_of(2)), bound(400, "all of ulimit"));
        assert_eq!(limit(&bounded, Part::one_of(5)), bound(200, "1/5 of node"));
        assert_eq!(limit(&bounded, Part::within(2)), bound(200, "1/2 of ulimit"));
        assert_eq!(all.limit(MemoryLimit::Share(0.5), Part::within(4)).bytes, 500);
        assert_eq!(all.limit(MemoryLimit::Bytes(7), Part::within(4)).bytes, 7);
        assert_eq!(all.limit(MemoryLimit::None, Part::within(4)).bytes, 0);
    }

    #[test]
    fn this_machine_tells() {
        let bytes = Memory::of_this_process().limit(MemoryLimit::Auto, Part::within(1)).bytes;
        assert!(bytes > 0 && bytes <= total(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap());
        assert_eq!(total("MemFree: 3 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
    }
}
