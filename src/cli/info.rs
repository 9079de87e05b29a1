//! `rankine info`: what this machine offers to this binary.

use std::{fs, thread};

use clap::ValueEnum;
use serde::Serialize;

use super::columns;
use crate::{Error, Result, cluster::transports, settings::Settings};

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
    transports: Vec<Found>,
    /// What `auto` takes between two processes of this host.
    within_host: Option<&'static str>,
    /// What `auto` takes to another host like this one.
    between_hosts: Option<&'static str>,
    limits: Vec<(&'static str, String)>,
}

/// Shows it. Of the ranks of an MPI job the first does.
pub(super) fn show(options: &Options, settings: &Settings) -> Result<()> {
    #[cfg(feature = "mpi")]
    let _membership = match rankine_transport_mpi::Mpi::join() {
        Ok(membership) if membership.rank() > 0 => return Ok(()),
        Ok(membership) => Some(membership),
        // Why, the survey says.
        Err(_) => None,
    };
    let info = find(settings)?;
    match options.format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&info).map_err(|e| Error::Usage(e.to_string()))?;
            println!("{text}");
        }
        Format::Table => print!("{}", table(&info)),
    }
    Ok(())
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
        memory: memory(),
        within_host: first(&["inproc"]),
        between_hosts: first(&["inproc", "shm"]),
        transports: found,
        limits: limits(),
    })
}

fn table(info: &Info) -> String {
    let gib = info.memory as f64 / (1u64 << 30) as f64;
    let mut text =
        format!("rankine {} on {}: {} cores, {gib:.1} GiB\n\n", info.version, info.host, info.cores);
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
    let rows: Vec<_> = info.limits.iter().map(|(what, value)| vec![(*what).into(), value.clone()]).collect();
    text + &columns(&rows, |_| false)
}

/// Bytes of memory of this machine; 0 where it does not tell.
fn memory() -> u64 {
    let told = || {
        let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
        let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    told().unwrap_or(0) << 10
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
