//! The command `rankine`, for administrators and tuners: what a machine offers, and what Rankine makes of it.

mod bench;
mod config;
mod explain;
mod info;
mod slurm;
mod workers;

use std::{path::PathBuf, process::ExitCode};

use clap::{Arg, ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use crate::{
    Client, Result, SchedulerFile,
    amounts::Bytes,
    settings::{NAMES, Settings},
};

#[derive(Parser)]
#[command(
    name = "rankine",
    version,
    about,
    max_term_width = 110,
    after_help = "\
The environment and a file may say settings too: --interface ib0 is RANKINE_INTERFACE=ib0, or
interface = \"ib0\" in ~/.config/rankine/config.toml (or $RANKINE_CONFIG)."
)]
struct Command {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    given: Given,
}

#[derive(Subcommand)]
enum Action {
    /// Show each setting, its value, and who said so
    Config,
    /// Show which transports work here and why the others do not, and what bounds them
    Info(info::Options),
    /// Say why tasks of a running cluster do not run, or why they ran where they did
    Explain(explain::Options),
    /// Show the workers of a running cluster: what each does, and where its memory went
    Workers(workers::Options),
    /// Measure transports against the bare fabric below them, and whole workloads over each
    #[command(subcommand)]
    Bench(bench::Command),
    /// Run programs as jobs under Slurm: write their batch scripts, submit them, see what becomes of them
    #[command(subcommand)]
    Slurm(slurm::Command),
}

/// Which cluster is asked.
#[derive(clap::Args)]
struct Cluster {
    /// The cluster's scheduler file; without it the latest in ~/.rankine (or $RANKINE_HOME)
    #[arg(long, value_name = "FILE")]
    scheduler_file: Option<PathBuf>,
}

impl Cluster {
    /// A client that asks and changes nothing.
    fn observe(&self, settings: &Settings) -> Result<Client> {
        let path = match &self.scheduler_file {
            Some(path) => path.clone(),
            None => SchedulerFile::latest()?,
        };
        Client::observe(&SchedulerFile::read(&path)?, settings)
    }
}

/// The settings given as flags.
#[derive(Default)]
struct Given(Vec<(String, String)>);

impl Given {
    /// The settings, of which the log begins at once.
    fn logging(&self) -> Result<Settings> {
        Settings::load_with(&self.0).inspect(Settings::start_log)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |(name, ..): &(&str, &str, &str)| {
            Some(((*name).to_owned(), matches.get_one::<String>(name)?.clone()))
        };
        Ok(Self(NAMES.iter().filter_map(value).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: clap::Command) -> clap::Command {
        NAMES.iter().fold(command, |command, &(name, takes, about)| {
            let flag = Arg::new(name).long(name).value_name(takes).help(about).global(true);
            command.arg(flag.help_heading("Settings"))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Command { action, given } = Command::parse();
    let done = match action {
        Action::Config => config::show(&given.0),
        Action::Info(options) => given.logging().and_then(|settings| info::show(&options, &settings)),
        Action::Explain(options) => {
            given.logging().and_then(|settings| explain::explain(&options, &settings))
        }
        Action::Workers(options) => given.logging().and_then(|settings| workers::show(&options, &settings)),
        Action::Slurm(command) => slurm::run(command, &given),
        Action::Bench(command) => given.logging().and_then(|settings| bench::run(command, settings)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rankine: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An amount of memory, for people; a limit of 0 is none.
fn or_none(bytes: u64) -> String {
    if bytes == 0 { "none".into() } else { Bytes(bytes).to_string() }
}

/// Rows as columns of text, each as wide as its widest cell; numbers may be set right.
fn columns(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if right(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
