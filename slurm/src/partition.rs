//! What partitions have and allow, so that what can never run is refused before it waits for ever.

use std::time::Duration;

use crate::{Error, Job, Result, values::seconds};

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Whether jobs that name none go there.
    pub is_default: bool,
    /// Whether it takes jobs.
    pub is_up: bool,
    /// How long its jobs may run, if there is a limit.
    pub time_limit: Option<Duration>,
    /// How many nodes one job may have, if there is a limit.
    pub node_limit: Option<u32>,
    /// Its nodes, in groups of equal ones.
    pub nodes: Vec<Nodes>,
}

/// Nodes of a partition that are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nodes {
    /// How many.
    pub count: u32,
    /// CPUs of each.
    pub cpus: u64,
    /// Memory of each, in mebibytes.
    pub memory: u64,
}

/// What `sinfo` is to write of each group of equal nodes.
pub(crate) const FORMAT: &str = "%P|%a|%l|%s|%D|%c|%m";

/// Reads what `sinfo` writes in [`FORMAT`]; the line that cannot be read is the error.
pub(crate) fn parse(text: &str) -> Result<Vec<Partition>, String> {
    let mut partitions: Vec<Partition> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (partition, nodes) = parse_line(line).ok_or_else(|| line.to_owned())?;
        match partitions.iter_mut().find(|known| known.name == partition.name) {
            Some(known) => known.nodes.push(nodes),
            None => partitions.push(Partition { nodes: vec![nodes], ..partition }),
        }
    }
    Ok(partitions)
}

fn parse_line(line: &str) -> Option<(Partition, Nodes)> {
    let fields: Vec<&str> = line.trim().split('|').collect();
    let &[name, available, time, size, count, cpus, memory] = &*fields else { return None };
    let time_limit = if time == "infinite" { None } else { Some(Duration::from_secs(seconds(time)?)) };
    // `1-8`, `1-infinite`, or the only number there may be.
    let node_limit = match size.rsplit('-').next()? {
        "infinite" => None,
        most => Some(most.parse().ok()?),
    };
    // A `+` would say: and some with more.
    let number = |text: &str| text.trim_end_matches('+').parse::<u64>().ok();
    let nodes = Nodes { count: count.parse().ok()?, cpus: number(cpus)?, memory: number(memory)? };
    let partition = Partition {
        name: name.trim_end_matches('*').to_owned(),
        is_default: name.ends_with('*'),
        is_up: available == "up",
        time_limit,
        node_limit,
        nodes: Vec::new(),
    };
    Some((partition, nodes))
}

/// Whether a partition that the job may go to could ever run it.
pub(crate) fn check(job: &Job, partitions: &[Partition]) -> Result<()> {
    let names = || partitions.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(asked) = &job.partition else {
        return match partitions.iter().find(|partition| partition.is_default) {
            Some(partition) => fits(job, partition),
            None => {
                let reason = format!("this cluster has no default: choose one of {}", names());
                Err(Error::option("partition", "left out", reason))
            }
        };
    };
    let mut refusal = Ok(());
    for name in asked.as_str().split(',') {
        let Some(partition) = partitions.iter().find(|partition| partition.name == name) else {
            let reason = format!("this cluster has no such partition; it has {}", names());
            return Err(Error::option("partition", name, reason));
        };
        refusal = fits(job, partition);
        if refusal.is_ok() {
            break;
        }
    }
    refusal
}

fn fits(job: &Job, partition: &Partition) -> Result<()> {
    let name = &partition.name;
    let there = |nodes: &[Nodes], enough: &dyn Fn(&Nodes) -> bool| -> u32 {
        nodes.iter().filter(|nodes| enough(nodes)).map(|nodes| nodes.count).sum()
    };
    let nodes = job.nodes.get();
    if !partition.is_up {
        return Err(Error::option(
            "partition",
            name,
            "it takes no jobs at present: `sinfo` shows those that do",
        ));
    }
    if let Some(limit) = partition.node_limit.filter(|&limit| nodes > limit) {
        let reason =
            format!("the partition {name} allows a job {limit} nodes: ask for less, or another --partition");
        return Err(Error::option("nodes", nodes, reason));
    }
    let total = there(&partition.nodes, &|_| true);
    if nodes > total {
        let reason = format!("the partition {name} has {total}: ask for less, or another --partition");
        return Err(Error::option("nodes", nodes, reason));
    }
    if let (Some(time), Some(limit)) = (job.time, partition.time_limit)
        && time.duration() > limit
    {
        let limit = crate::TimeLimit::shown(limit);
        let reason = format!("the partition {name} allows {limit}: ask for less, or another --partition");
        return Err(Error::option("time", time, reason));
    }
    let cpus = job.cpus_per_node();
    let roomy = there(&partition.nodes, &|nodes| nodes.cpus >= cpus);
    if nodes > roomy {
        let most = partition.nodes.iter().map(|nodes| nodes.cpus).max().unwrap_or(0);
        let (tasks, each) = (job.tasks_per_node, cpus / u64::from(job.tasks_per_node.get()));
        let reason = format!(
            "with {each} CPUs for each task that is {cpus} a node, but the partition {name} has {roomy} nodes with so \
             many (the biggest has {most}): spread the tasks over more --nodes, or choose another --partition"
        );
        return Err(Error::option("tasks-per-node", tasks, reason));
    }
    if let Some(memory) = job.memory {
        let big = |group: &Nodes| group.cpus >= cpus && group.memory >= memory.mebibytes();
        if nodes > there(&partition.nodes, &big) {
            let most = partition.nodes.iter().map(|nodes| nodes.memory).max().unwrap_or(0);
            let reason = format!(
                "the partition {name} has no {nodes} nodes with so much and {cpus} CPUs (its biggest memory is \
                 {most}M): ask for less, or choose another --partition"
            );
            return Err(Error::option("mem", memory, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    /// What Slurm 22.05 wrote of the cluster of tests/slurm.
    const CAPTURED: &str = include_str!("../tests/captured/sinfo.txt");
    /// The same form with nodes of two kinds and no default.
    const MIXED: &str = "fat|up|2-00:00:00|1-infinite|4|128|1000000\nfat|up|2-00:00:00|1-infinite|2|64|500000\n\
                         old|down|infinite|2|2|8|16000+\n";

    #[test]
    fn what_sinfo_writes_is_read() {
        let partitions = parse(CAPTURED).unwrap();
        let names: Vec<_> =
            partitions.iter().map(|p| (p.name.as_str(), p.is_default, p.node_limit)).collect();
        assert_eq!(names, [("debug", true, None), ("short", false, Some(2)), ("urgent", false, None)]);
        assert_eq!(partitions[1].time_limit, Some(Duration::from_secs(600)));
        assert_eq!(partitions[0].nodes, [Nodes { count: 4, cpus: 4, memory: 4000 }]);
        let mixed = parse(MIXED).unwrap();
        assert_eq!((mixed[0].nodes.len(), mixed[1].is_up, mixed[1].node_limit), (2, false, Some(2)));
        assert_eq!(parse("debug*|up|soon|1-2|4|4|4000").unwrap_err(), "debug*|up|soon|1-2|4|4|4000");
        assert!(parse("slurm_load_partitions: Unable to contact").is_err());
    }

    fn refused(partitions: &str, change: impl FnOnce(&mut Job)) -> String {
        let mut job = Job::new("./program");
        change(&mut job);
        check(&job, &parse(partitions).unwrap()).map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn count(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn what_no_partition_could_ever_run_is_refused_by_the_option_it_is_about() {
        let captured = |change: fn(&mut Job)| refused(CAPTURED, change);
        assert_eq!(captured(|job| (job.nodes, job.tasks_per_node) = (count(4), count(4))), "");
        let told = captured(|job| job.nodes = count(5));
        assert!(told.starts_with("--nodes cannot be 5: the partition debug has 4"), "{told}");
        let told = captured(|job| job.tasks_per_node = count(5));
        assert!(told.starts_with("--tasks-per-node cannot be 5: with 1 CPUs"), "{told}");
        let told = captured(|job| (job.tasks_per_node, job.cpus_per_task) = (count(2), Some(count(3))));
        assert!(told.contains("6 a node"), "{told}");
        let told = captured(|job| job.memory = Some("4G".parse().unwrap()));
        assert!(told.starts_with("--mem cannot be 4G") && told.contains("4000M"), "{told}");
        assert_eq!(captured(|job| job.memory = Some("4000M".parse().unwrap())), "");

        let short = |job: &mut Job| job.partition = Some("short".parse().unwrap());
        let told = refused(CAPTURED, |job| (short(job), job.nodes = count(3)).1);
        assert!(told.contains("allows a job 2 nodes"), "{told}");
        let told = refused(CAPTURED, |job| (short(job), job.time = Some("11".parse().unwrap())).1);
        assert!(told.starts_with("--time cannot be 00:11:00") && told.contains("allows 00:10:00"), "{told}");
        // Slurm takes the one of several that can.
        let either =
            |job: &mut Job| (job.partition, job.nodes) = (Some("short,debug".parse().unwrap()), count(3));
        assert_eq!(refused(CAPTURED, either), "");
        let nowhere = |job: &mut Job| job.partition = Some("nowhere".parse().unwrap());
        assert!(refused(CAPTURED, nowhere).contains("it has debug, short, urgent"));
    }

    #[test]
    fn nodes_of_several_kinds_are_counted_by_what_they_have() {
        let fat = |job: &mut Job| job.partition = Some("fat".parse().unwrap());
        assert_eq!(refused(MIXED, |job| (fat(job), job.nodes = count(6)).1), "");
        let big = |job: &mut Job| (job.tasks_per_node, job.nodes) = (count(100), count(5));
        assert!(
            refused(MIXED, |job| (fat(job), big(job)).1)
                .contains("has 4 nodes with so many (the biggest has 128)")
        );
        let heavy = |job: &mut Job| (job.memory, job.nodes) = (Some("600000M".parse().unwrap()), count(5));
        assert!(refused(MIXED, |job| (fat(job), heavy(job)).1).starts_with("--mem cannot be 600000M"));
        let old = |job: &mut Job| job.partition = Some("old".parse().unwrap());
        assert!(refused(MIXED, old).contains("takes no jobs"));
        assert!(refused(MIXED, |_| ()).contains("choose one of fat, old"));
    }
}
