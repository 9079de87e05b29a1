//! `rankine bench`: what the fabric gives, what Rankine gets of it, and where the difference goes.
//!
//! The models are the OSU micro-benchmarks and perftest. [`party`] brings processes together and keeps them
//! in step; [`measure`] is what they do over a transport's connections; [`run`](transport::run) leads;
//! [`figures`] makes numbers of times, [`report`] and [`plot`] show them. [`workload`] runs whole graphs.

mod figures;
mod measure;
mod party;
mod plot;
mod report;
mod transport;
mod workload;

use clap::Subcommand;

use crate::{Error, Result, parse_bytes, settings::Settings};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Measure transports between processes, each beside the bare fabric below it
    Transport(transport::Options),
    /// Run the same task graphs over each transport
    Workload(workload::Options),
}

/// Does what the command line says.
pub(super) fn run(command: Command, settings: Settings) -> Result<()> {
    match command {
        Command::Transport(options) => transport::run(options, settings),
        Command::Workload(options) => workload::run(options, settings),
    }
}

/// Sizes as `8,64KiB` or `1..1MiB`, a range in powers of two of which its end is the last.
fn parse_sizes(text: &str) -> Result<Vec<u64>> {
    let mut sizes = Vec::new();
    for part in text.split(',') {
        let Some((first, last)) = part.split_once("..") else {
            sizes.push(parse_bytes(part)?);
            continue;
        };
        let (mut size, last) = (parse_bytes(first)?.max(1), parse_bytes(last)?);
        if size > last {
            return Err(Error::Usage(format!("the range of sizes {part} ends before it begins")));
        }
        while size < last {
            sizes.push(size);
            size = size.saturating_mul(2);
        }
        sizes.push(last);
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

/// An amount of bytes as `64 KiB`, where it is a whole number of those.
fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_lists_and_ranges() {
        assert_eq!(parse_sizes("8").unwrap(), [8]);
        assert_eq!(parse_sizes("1..8,1KiB").unwrap(), [1, 2, 4, 8, 1024]);
        assert_eq!(parse_sizes("3..20").unwrap(), [3, 6, 12, 20]);
        assert_eq!(parse_sizes("0,8,8").unwrap(), [0, 8]);
        assert!(parse_sizes("8..1").unwrap_err().to_string().contains("8..1"));
        assert!(parse_sizes("many").is_err());
        assert_eq!(parse_sizes("1..1GiB").unwrap().len(), 31);
    }

    #[test]
    fn sizes_are_shown_in_the_greatest_whole_unit() {
        let shown: Vec<String> = [8, 1024, 1536, 3 << 20, 4 << 30].into_iter().map(show_size).collect();
        assert_eq!(shown, ["8 B", "1 KiB", "1536 B", "3 MiB", "4 GiB"]);
    }
}
