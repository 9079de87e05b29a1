//! `rankine info`: what this machine offers to this binary.

use std::{env, fs, path::PathBuf, thread};

use clap::ValueEnum;
use serde::Serialize;

use super::{columns, or_none};
#[cfg(feature = "mpi")]
use crate::cluster::cores::threads;
use crate::{
    Error, Result,
    cluster::{
        cores::Binding,
        launch::Launch,
        memory::{Bound, Memory, Part},
        transports,
    },
    output::print,
    settings::{MemoryLimit, Settings},
};

/// All schemes there are, and the cargo feature that brings each into a binary.
const SCHEMES: &[(&str, &str)] =
    &[("inproc", ""), ("shm", ""), ("verbs", "verbs"), ("mpi", "mpi"), ("tcp", "")];

#[derive(clap::Args)]
pub(super) struct Options {
    /// How to write it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

/// What there is of a transport.
#[derive(Serialize)]
struct Found {
    transport: &'static str,
    /// Whether it works here.
    works: bool,
    /// What there is of it, or why it does not work.
    says: Vec<String>,
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    host: String,
    cores: usize,
    memory: u64,
    /// What a worker may use that has this process's cores to itself, and who says so.
    memory_limit: Bound,
    /// Where results go for which there is no room.
    local_directory: PathBuf,
    #[serde(skip)]
    wanted: MemoryLimit,
    transports: Vec<Found>,
    /// What `auto` takes between two processes of this host.
    within_host: Option<&'static str>,
    /// What `auto` takes to another host like this one.
    between_hosts: Option<&'static str>,
    limits: Vec<(&'static str, String)>,
    /// Those that were started together with this process, where some were.
    ranks: Vec<Rank>,
}

/// A rank, and where whoever launched it put it.
#[derive(Clone, Serialize)]
struct Rank {
    rank: usize,
    #[serde(flatten)]
    binding: Binding,
    /// Compute threads that a worker there has.
    threads: u32,
    /// Bytes of memory that it may use; 0 for no limit.
    memory_limit: u64,
    /// What the first rank and this one talk over.
    transport: String,
}

/// Shows it. Of the ranks of an MPI job the first does; each task of a Slurm step without MPI tells of itself.
pub(super) fn show(options: &Options, settings: &Settings) -> Result<()> {
    // Why there are none, the survey says.
    #[cfg(feature = "mpi")]
    let membership = rankine_transport_mpi::Mpi::join().ok();
    let mut info = find(settings)?;
    #[cfg(feature = "mpi")]
    if let Some(membership) = &membership {
        info.ranks = by_mpi(membership, &info)?;
        if membership.rank() > 0 {
            return Ok(());
        }
    }
    if info.ranks.is_empty() {
        info.ranks.extend(by_slurm(&info));
        if let [rank] = &*info.ranks
            && rank.rank > 0
        {
            if matches!(options.format, Format::Table) {
                print(columns(&[row(rank)], |_| false))?;
            }
            return Ok(());
        }
    }
    match options.format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&info).map_err(|e| Error::Usage(e.to_string()))?;
            print(text + "\n")
        }
        Format::Table => print(table(&info)),
    }
}

/// All ranks of an MPI job.
#[cfg(feature = "mpi")]
fn by_mpi(membership: &rankine_transport_mpi::Membership, info: &Info) -> Result<Vec<Rank>> {
    let failed = |what: &dyn std::fmt::Display| Error::Usage(format!("cannot tell of the ranks: {what}"));
    let mine = serde_json::to_vec(&Binding::of_this_process()).map_err(|e| failed(&e))?;
    let all = membership.gather(&mine).map_err(|e| failed(&e))?;
    let all: Vec<Binding> = all
        .iter()
        .map(|one| serde_json::from_slice(one))
        .collect::<Result<_, _>>()
        .map_err(|e| failed(&e))?;
    let transport = match info.between_hosts {
        // What programs use if nobody says anything.
        _ if info.transports.iter().any(|found| found.transport == "mpi" && found.works) => "mpi",
        Some(scheme) => scheme,
        None => "none",
    };
    // What bounds the first rank bounds the others: they were started by the same launcher.
    let memory = Memory::of_this_process();
    let rank = |(rank, binding): (usize, &Binding)| Rank {
        rank,
        threads: threads(&binding.cores, binding.sharers(&all)),
        memory_limit: memory.limit(info.wanted, Part::one_of(binding.neighbours(&all))).bytes,
        transport: transport.to_owned(),
        binding: binding.clone(),
    };
    Ok(all.iter().enumerate().map(rank).collect())
}

/// This task of a Slurm step.
fn by_slurm(info: &Info) -> Option<Rank> {
    let launch = Launch::detect(|name| env::var(name).ok(), false, false);
    let Ok(Launch::Slurm(step)) = launch else { return None };
    let binding = Binding::of_this_process();
    let threads = step.threads(&binding.cores);
    let part = Part::one_of(step.neighbours);
    Some(Rank {
        memory_limit: Memory::of_this_process().limit(info.wanted, part).bytes,
        rank: step.rank,
        binding,
        threads,
        transport: info.between_hosts.unwrap_or("none").to_owned(),
    })
}

fn row(rank: &Rank) -> Vec<String> {
    let Rank { rank, binding: Binding { host, cores, memory }, threads, memory_limit, transport } = rank;
    vec![
        format!("rank {rank}"),
        format!("on {host}"),
        format!("cores {}", cores.0),
        format!("{threads} thread{}", if *threads == 1 { "" } else { "s" }),
        format!("limit {} of {}", or_none(*memory_limit), or_none(*memory)),
        format!("{transport}://"),
    ]
}

fn find(settings: &Settings) -> Result<Info> {
    let registry = transports(settings)?;
    let mut found: Vec<Found> = registry
        .transports()
        .map(|transport| match transport.survey() {
            Ok(says) => Found { transport: transport.scheme(), works: true, says },
            Err(reason) => Found { transport: transport.scheme(), works: false, says: vec![reason] },
        })
        .collect();
    for &(scheme, feature) in SCHEMES {
        if found.iter().any(|f| f.transport == scheme) {
            continue;
        }
        let allowed = settings.schemes().is_none_or(|allowed| allowed.contains(&scheme));
        let reason = if !allowed {
            format!("ruled out by the setting transport = {}", settings.transport)
        } else {
            format!("not in this binary: build it with the cargo feature `{feature}`")
        };
        found.push(Found { transport: scheme, works: false, says: vec![reason] });
    }
    let first = |beyond: &[&str]| {
        found.iter().find(|f| f.works && !beyond.contains(&f.transport)).map(|found| found.transport)
    };
    Ok(Info {
        version: env!("CARGO_PKG_VERSION"),
        host: crate::worker::server::hostname(),
        cores: thread::available_parallelism().map_or(1, usize::from),
        memory: Binding::of_this_process().memory,
        memory_limit: Memory::of_this_process().limit(settings.memory_limit, Part::within(1)),
        local_directory: settings.local_directory(),
        wanted: settings.memory_limit,
        within_host: first(&["inproc"]),
        between_hosts: first(&["inproc", "shm"]),
        transports: found,
        limits: limits(),
        ranks: Vec::new(),
    })
}

fn table(info: &Info) -> String {
    let mut text = format!(
        "rankine {} on {}: {} cores, {}\n",
        info.version,
        info.host,
        info.cores,
        or_none(info.memory)
    );
    let Bound { bytes, from } = &info.memory_limit;
    text += &format!(
        "memory limit of a worker: {} ({from}); beyond it results go to {}\n\n",
        or_none(*bytes),
        info.local_directory.display()
    );
    let mut rows = vec![];
    for found in &info.transports {
        let state = if found.works { "works" } else { "-" };
        for (i, line) in found.says.iter().enumerate() {
            let [name, state] = if i == 0 { [found.transport, state] } else { [""; 2] };
            rows.push(vec![name.into(), state.into(), line.clone()]);
        }
    }
    text += &columns(&rows, |_| false);
    let taken = |scheme: Option<&str>| scheme.map_or("none".to_owned(), |scheme| format!("{scheme}://"));
    text += &format!(
        "\nPeers talk over {} within this host, and over {} to a host like it.\n\n",
        taken(info.within_host),
        taken(info.between_hosts)
    );
    if !info.ranks.is_empty() {
        text += &columns(&info.ranks.iter().map(row).collect::<Vec<_>>(), |_| false);
        text.push('\n');
    }
    let rows: Vec<_> = info.limits.iter().map(|(what, value)| vec![(*what).into(), value.clone()]).collect();
    text + &columns(&rows, |_| false)
}

/// What bounds the transports here.
fn limits() -> Vec<(&'static str, String)> {
    let limit = |name: &str| {
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits.lines().find(|line| line.starts_with(name))?;
        let mut words = line[name.len()..].split_whitespace();
        let (soft, hard, unit) = (words.next()?, words.next()?, words.next().unwrap_or(""));
        Some(format!("{soft} {unit} (up to {hard})"))
    };
    let said = |file: &str| fs::read_to_string(file).ok().map(|text| text.trim().replace('\t', " "));
    let unknown = || "unknown".to_owned();
    vec![
        ("open files (connections, segments)", limit("Max open files").unwrap_or_else(unknown)),
        ("locked memory (verbs)", limit("Max locked memory").unwrap_or_else(unknown)),
        (
            "TCP receive buffer, bytes: least, usual, most",
            said("/proc/sys/net/ipv4/tcp_rmem").unwrap_or_else(unknown),
        ),
        (
            "TCP send buffer, bytes: least, usual, most",
            said("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_else(unknown),
        ),
    ]
}
