//! Runs graphs on clusters in virtual time, and prints how good the schedules are and what they cost.

mod report;

use std::{
    env, io,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use clap::Parser;
use rankine_simulate::{
    Dask, Error, Family, Network, Outcome, Policy, Problem, Recording, Run, Setting, Simulation, Sizes,
    replay,
};
use report::{Report, Row, print};

/// As programs should have it that run a scheduler: what it takes and gives back is mostly small and short-lived.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How good are the schedules, and what do they cost?
///
/// The real state machines of scheduler and workers run graphs in virtual time. Durations of tasks are log-normal, and
/// all is drawn from the seed: the same command gives the same figures, but for the scheduler's own time.
#[derive(Debug, Parser)]
#[command(name = "rankine-simulate", version)]
struct Arguments {
    /// Families of graphs: map, tree, stencil, butterfly, random, shuffle, all.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    family: Vec<String>,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    workers: Vec<u32>,
    /// Compute threads of each worker.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Tasks of each graph, about.
    #[arg(long, conflicts_with = "tasks_per_thread")]
    tasks: Option<usize>,
    /// Tasks of each graph for each thread, about.
    #[arg(long, default_value_t = 100)]
    tasks_per_thread: usize,
    /// What all is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Whose policies: rankine, dask, both.
    #[arg(long, default_value = "rankine", overrides_with = "policy")]
    policy: String,
    /// Tasks without dependencies that a worker is given ahead of time, in multiples of its threads; `inf` for all at once.
    #[arg(long, default_value_t = 1.1)]
    saturation: f64,
    /// Rankine's workers do not steal.
    #[arg(long)]
    no_stealing: bool,
    /// Mean seconds that a task takes.
    #[arg(long, default_value_t = 0.1)]
    duration: f64,
    /// Standard deviation of the logarithm of durations.
    #[arg(long, default_value_t = 0.25)]
    spread: f64,
    /// Bytes of a chunk.
    #[arg(long, default_value = "1MB", value_parser = bytes)]
    output: u64,
    /// Bytes a second of a worker's link.
    #[arg(long, default_value = "10GB", value_parser = bytes)]
    bandwidth: u64,
    /// Microseconds that a message is on its way.
    #[arg(long, default_value_t = 5.0)]
    latency: f64,
    /// Workers that share a node.
    #[arg(long, default_value_t = 1)]
    per_node: u32,
    /// Nanoseconds that the scheduler takes for a message, in virtual time.
    #[arg(long, default_value_t = 250)]
    message_cost: u64,
    /// Of a thousand workers so many are stragglers.
    #[arg(long, default_value_t = 0)]
    stragglers: u32,
    /// By how much stragglers are slower.
    #[arg(long, default_value_t = 4.0)]
    slowness: f64,
    /// Runs of each; what the scheduler costs is the least of all.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Counts the scheduler's instructions, by valgrind's callgrind, instead of its time: figures that no noise disturbs.
    #[arg(long)]
    instructions: bool,
    /// What the scheduler costs is what it costs one that pauses between two turns, instead of one that is so busy that what it
    /// hears next has come already.
    #[arg(long)]
    pauses: bool,
    /// Writes the table there too, as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Writes every event of the last run there.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Has a scheduler hear what is recorded on standard input, and prints the processor's seconds.
    #[arg(long, hide = true)]
    replay: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    rankine::parse_bytes(text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let policies: &[&'static str] = match arguments.policy.as_str() {
        "both" => &["rankine", "dask"],
        "rankine" => &["rankine"],
        "dask" => &["dask"],
        other => {
            return Err(Error::Usage(format!(
                "there are no policies of `{other}`; there are rankine, dask, both"
            )));
        }
    };
    let families = families(&arguments.family)?;
    check(arguments)?;
    if arguments.replay {
        return hear(arguments);
    }
    let mut report = Report::new(arguments.csv.as_deref(), arguments.instructions)?;
    for &workers in &arguments.workers {
        for &family in &families {
            let threads = workers as usize * arguments.threads as usize;
            let size = arguments.tasks.unwrap_or(arguments.tasks_per_thread * threads);
            let sizes = Sizes {
                duration: arguments.duration * 1e9,
                spread: arguments.spread,
                nbytes: arguments.output,
            };
            let problem = Problem::new(family, size, sizes, arguments.seed);
            let setting = setting(arguments, workers, &problem);
            for policy in policies {
                let (outcome, scheduler) = outcome(policy, &problem, &setting, arguments)?;
                let lower_bound = setting.lower_bound(&problem);
                report.add(Row { family, policy, workers, lower_bound, scheduler, outcome })?;
            }
        }
        report.end_of_block()?;
    }
    Ok(())
}

fn families(names: &[String]) -> Result<Vec<Family>, Error> {
    if names.iter().any(|name| name == "all") {
        return Ok(Family::ALL.to_vec());
    }
    names.iter().map(|name| name.parse()).collect()
}

fn check(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { duration, spread, saturation, slowness, latency, .. } = *arguments;
    let wrong = |what: &str| Err(Error::Usage(what.to_owned()));
    if arguments.workers.contains(&0) || arguments.threads == 0 {
        return wrong("without workers and threads nothing runs: --workers and --threads start at 1");
    }
    if !(duration.is_finite() && duration > 0.0 && (0.0..=5.0).contains(&spread)) {
        return wrong("--duration is a number of seconds above 0, --spread one from 0 to 5");
    }
    if saturation.is_nan() || saturation <= 0.0 || !(slowness.is_finite() && slowness >= 1.0) {
        return wrong("--saturation is a number above 0 or inf, --slowness one from 1 on");
    }
    if !(latency.is_finite() && latency >= 0.0) || arguments.bandwidth == 0 {
        return wrong("--latency is a number of microseconds, --bandwidth one of bytes above 0");
    }
    Ok(())
}

fn setting(arguments: &Arguments, workers: u32, problem: &Problem) -> Setting {
    Setting {
        threads: arguments.threads,
        network: Network {
            latency: (arguments.latency * 1e3) as u64,
            bandwidth: arguments.bandwidth as f64,
            per_node: arguments.per_node,
            per_process: 1,
        },
        message_cost: arguments.message_cost,
        saturation: arguments.saturation,
        stealing: !arguments.no_stealing,
        stragglers: arguments.stragglers,
        slowness: arguments.slowness,
        ..Setting::new(workers, problem)
    }
}

/// In a process of its own: what a scheduler costs, whatever the workers and its network are.
fn hear(arguments: &Arguments) -> Result<(), Error> {
    let setting = setting(arguments, 1, &Problem::new(Family::Map, 1, Sizes::default(), 0));
    let (took, _) = match arguments.policy.as_str() {
        "dask" => replay(io::stdin(), Dask::new(&setting), arguments.pauses)?,
        _ => replay(io::stdin(), setting.rankine(), arguments.pauses)?,
    };
    print(&took.as_secs_f64().to_string())
}

/// What a scheduler costs that hears in a process of its own what was recorded: the processor's microseconds, or
/// instructions.
fn scheduler_alone(policy: &str, recording: Recording, instructions: bool) -> Result<f64, Error> {
    let this = env::current_exe()?;
    let mut command = if instructions {
        let mut valgrind = Command::new("valgrind");
        let within = "--toggle-collect=*recording::hear*";
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", within]).arg(&this);
        valgrind.stderr(Stdio::piped());
        valgrind
    } else {
        let mut alone = Command::new(&this);
        alone.stderr(Stdio::inherit());
        alone
    };
    let output = command
        .args(env::args_os().skip(1))
        .args(["--replay", "--policy", policy])
        .stdin(recording.finish()?)
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| {
            let advice = if instructions { "; is valgrind installed (apt install valgrind)?" } else { "" };
            io::Error::new(error.kind(), format!("cannot start {:?}: {error}{advice}", command.get_program()))
        })?;
    let (said, besides) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let cost: Option<f64> = match instructions {
        false => said.trim().parse().ok().map(|seconds: f64| seconds * 1e6),
        true => besides
            .split("Collected : ")
            .nth(1)
            .and_then(|count| count.split_whitespace().next()?.parse().ok()),
    };
    let failed =
        || io::Error::other(format!("the process that does so ended with {}: {besides}", output.status));
    Ok(cost.filter(|cost| *cost > 0.0).ok_or_else(failed)?)
}

/// What comes of a run, and what the scheduler costs, the least of some.
fn outcome(
    policy: &str,
    problem: &Problem,
    setting: &Setting,
    arguments: &Arguments,
) -> Result<(Outcome, f64), Error> {
    match policy {
        "dask" => measure(policy, problem, setting, || Dask::new(setting), arguments),
        _ => measure(policy, problem, setting, || setting.rankine(), arguments),
    }
}

fn measure<P: Policy>(
    name: &str,
    problem: &Problem,
    setting: &Setting,
    policy: impl Fn() -> P,
    arguments: &Arguments,
) -> Result<(Outcome, f64), Error> {
    let mut least = f64::INFINITY;
    let mut run = None;
    for _ in 0..arguments.repeat.max(1) {
        let recording = Recording::new(tempfile::tempfile()?);
        let simulation = Simulation::new(problem, setting, policy()).recorded(recording);
        let simulation = if arguments.log.is_some() { simulation.logged() } else { simulation };
        let Run { outcome, log, recording } = simulation.run()?;
        if let Some(recording) = recording {
            least = least.min(scheduler_alone(name, recording, arguments.instructions)?);
        }
        run = Some((outcome, log));
    }
    let (outcome, log) = run.unwrap_or_default();
    if let Some(path) = &arguments.log {
        std::fs::write(path, log.join("\n")).map_err(|error| {
            Error::Usage(format!("cannot write the events to {}: {error}", path.display()))
        })?;
    }
    Ok((outcome, least))
}
