//! `rankine slurm`: programs as jobs under Slurm.

use std::{
    collections::BTreeSet,
    fmt::Display,
    io,
    num::NonZeroU32,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::{Subcommand, ValueEnum};
use rankine_slurm::{
    Array, Dependency, Directive, Invalid, Job, JobId, Launcher, Memory, Name, Output, Pmi, Queued, Script,
    Slurm, TimeLimit, Variable, Word,
};

use super::{Given, columns};
use crate::{Error, Result, output::print, settings::Settings};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Write the batch script of a program
    #[command(after_help = SCRIPT_EXAMPLES)]
    Script(Box<Program>),
    /// Submit a program as a job, and print the job's number
    #[command(after_help = SUBMIT_EXAMPLES)]
    Submit {
        /// Print the batch script instead, if the job could run
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        program: Box<Program>,
    },
    /// Show your jobs that have not ended, or the jobs named, ended or not
    Status {
        /// Numbers of jobs, such as 123, or 123_4 for one element of an array
        jobs: Vec<JobId>,
    },
    /// Cancel jobs
    Cancel {
        /// Numbers of jobs, such as 123, or 123_4 for one element of an array
        #[arg(required = true)]
        jobs: Vec<JobId>,
    },
    /// Show what a job wrote
    Logs {
        /// The number of the job, such as 123, or 123_4 for one element of an array
        job: JobId,
        /// Go on with what it writes until it ends
        #[arg(long, short)]
        follow: bool,
    },
}

const SCRIPT_EXAMPLES: &str = "\
Examples:
  rankine slurm script --nodes 4 --time 30 ./anomaly input.npy >job.sh
      writes the script of an MPI job with one rank on each of four nodes, to be read, changed and submitted
  rankine slurm script --fault-tolerant -N 4 --tasks-per-node 2 -c 8 ./anomaly input.npy
      ... of a job that goes on if workers or their nodes die

Settings such as --transport, given here, become variables of the job's environment.";

const SUBMIT_EXAMPLES: &str = "\
Examples:
  rankine slurm submit --nodes 4 --tasks-per-node 2 --cpus-per-task 8 --time 30 ./anomaly input.npy
      an MPI job of eight ranks, each with 8 CPUs, for at most half an hour
  rankine slurm submit --fault-tolerant -N 4 -c 16 -t 2-00:00:00 --signal 300 ./anomaly input.npy
      goes on if workers or their nodes die; gets USR1 five minutes before the two days are over
  rankine slurm submit --array 0-15%4 -t 10 --module openmpi ./study
      sixteen jobs, four at a time; each finds its number in SLURM_ARRAY_TASK_ID
  job=$(rankine slurm submit -t 10 ./first) && rankine slurm submit -t 10 --dependency afterok:$job ./second
      the second runs if the first succeeds

Settings such as --transport, given here, become variables of the job's environment. What comes after PROGRAM
is the program's.";

/// A program, what it needs and how it is launched.
#[derive(clap::Args)]
pub(super) struct Program {
    /// How many nodes
    #[arg(long, short = 'N', value_name = "COUNT", default_value = "1", value_parser = count, help_heading = NEEDS)]
    nodes: NonZeroU32,
    /// How many tasks on each node: ranks of an MPI job, else processes of the program
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = count, help_heading = NEEDS)]
    tasks_per_node: NonZeroU32,
    /// How many CPUs each task has (default: Slurm's, one)
    #[arg(long, short, value_name = "COUNT", value_parser = count, help_heading = NEEDS)]
    cpus_per_task: Option<NonZeroU32>,
    /// Memory of each node, with K, M, G or T; 0 for all (default: the partition's)
    #[arg(long, value_name = "SIZE", help_heading = NEEDS)]
    mem: Option<Memory>,
    /// How long it may run: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS (default: the partition's)
    #[arg(long, short, help_heading = NEEDS)]
    time: Option<TimeLimit>,
    /// Features that its nodes must have
    #[arg(long, value_name = "FEATURES", help_heading = NEEDS)]
    constraint: Option<Word>,
    /// Generic resources of each node, such as gpu:2
    #[arg(long, value_name = "LIST", help_heading = NEEDS)]
    gres: Option<Word>,

    /// Name of the job (default: the program's)
    #[arg(long, short = 'J', value_name = "NAME", help_heading = QUEUE)]
    job_name: Option<Name>,
    /// Partition, or several with commas between (default: the cluster's)
    #[arg(long, short, value_name = "NAME", help_heading = QUEUE)]
    partition: Option<Word>,
    /// Account that is charged
    #[arg(long, short = 'A', value_name = "NAME", help_heading = QUEUE)]
    account: Option<Word>,
    /// Quality of service
    #[arg(long, short, value_name = "NAME", help_heading = QUEUE)]
    qos: Option<Word>,
    /// Run it once for each of these numbers, such as 0-15, 1,3,8, or 0-15%4 for at most four at a time
    #[arg(long, short, value_name = "RANGE", help_heading = QUEUE)]
    array: Option<Array>,
    /// Wait for other jobs, such as afterok:123
    #[arg(long, short, value_name = "JOBS", help_heading = QUEUE)]
    dependency: Option<Dependency>,
    /// Any other directive for sbatch, such as --directive=--reservation=NAME; may be repeated
    #[arg(long = "directive", value_name = "DIRECTIVE", allow_hyphen_values = true, help_heading = QUEUE)]
    directives: Vec<Directive>,

    /// What starts the tasks as MPI ranks (default: mpirun)
    #[arg(long, value_enum, help_heading = LAUNCH)]
    launcher: Option<LauncherName>,
    /// How srun lets ranks find each other: pmix for Open MPI (the default), pmi2 for MPICH
    #[arg(long, value_enum, help_heading = LAUNCH)]
    mpi: Option<PmiName>,
    /// Start the tasks without MPI, so that the job goes on if workers or their nodes die
    #[arg(long, conflicts_with_all = ["launcher", "mpi"], help_heading = LAUNCH)]
    fault_tolerant: bool,
    /// Environment module to load first; may be repeated
    #[arg(long = "module", value_name = "NAME", help_heading = LAUNCH)]
    modules: Vec<Word>,
    /// Variable of the job's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", help_heading = LAUNCH)]
    environment: Vec<Variable>,
    /// Directory through which processes find each other, which all nodes see (default: ~/.rankine)
    #[arg(long, value_name = "DIR", help_heading = LAUNCH)]
    home: Option<String>,
    /// File for its output; %j is the job's number, %x its name (default: %x-%j.out)
    #[arg(long, short, value_name = "FILE", help_heading = LAUNCH)]
    output: Option<Output>,
    /// Send it USR1 so many seconds before its time is up, by which a program of Rankine's ends in order
    #[arg(long, value_name = "SECONDS", value_parser = count, help_heading = LAUNCH)]
    signal: Option<NonZeroU32>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

const NEEDS: &str = "What it needs";
const QUEUE: &str = "Where it queues";
const LAUNCH: &str = "How it is started";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LauncherName {
    Mpirun,
    Srun,
}

#[derive(Clone, Copy, ValueEnum)]
enum PmiName {
    Pmix,
    Pmi2,
}

fn count(text: &str) -> Result<NonZeroU32, &'static str> {
    text.parse().map_err(|_| "write a whole number from 1 up")
}

/// What of Rankine's Slurm side went wrong, as an error of the command.
fn refused(error: impl Display) -> Error {
    Error::Usage(error.to_string())
}

impl Program {
    /// The job, with the settings given as flags.
    fn job(self, given: &Given) -> Result<Job> {
        Settings::load_with(&given.0)?;
        let mut command = self.command.into_iter();
        let mut job = Job::new(command.next().unwrap_or_default());
        job.arguments = command.collect();
        job.launcher = match (self.fault_tolerant, self.launcher, self.mpi) {
            (true, ..) => Launcher::FaultTolerant,
            (_, Some(LauncherName::Mpirun), Some(_)) => {
                return Err(refused(
                    "--mpi says how srun starts ranks: leave it out, or say --launcher srun",
                ));
            }
            (_, _, Some(PmiName::Pmi2)) => Launcher::Srun(Pmi::Pmi2),
            (_, Some(LauncherName::Srun), _) | (_, _, Some(PmiName::Pmix)) => Launcher::Srun(Pmi::Pmix),
            (_, Some(LauncherName::Mpirun) | None, None) => Launcher::Mpirun,
        };
        job.name = self.job_name.unwrap_or(job.name);
        (job.nodes, job.tasks_per_node, job.cpus_per_task) =
            (self.nodes, self.tasks_per_node, self.cpus_per_task);
        (job.memory, job.time) = (self.mem, self.time);
        (job.partition, job.account, job.qos) = (self.partition, self.account, self.qos);
        (job.constraint, job.gres) = (self.constraint, self.gres);
        (job.array, job.dependency) = (self.array, self.dependency);
        (job.modules, job.environment, job.directives) = (self.modules, self.environment, self.directives);
        (job.output, job.signal) = (self.output, self.signal);
        let home = self.home.map(|home| ("home".to_owned(), home));
        let set =
            |job: &mut Job, (name, value): &(String, String)| -> Result<(), Invalid> { job.set(name, value) };
        given.0.iter().chain(&home).try_for_each(|setting| set(&mut job, setting)).map_err(refused)?;
        Ok(job)
    }
}

pub(super) fn run(command: Command, given: &Given) -> Result<()> {
    let slurm = Slurm::default();
    match command {
        Command::Script(program) => print(Script::new(&program.job(given)?).map_err(refused)?),
        Command::Submit { dry_run, program } => submit(&slurm, &program.job(given)?, dry_run),
        Command::Status { jobs } => status(&slurm, &jobs),
        Command::Cancel { jobs } => cancel(&slurm, &jobs),
        Command::Logs { job, follow: false } => logs(&slurm, &job),
        Command::Logs { job, follow: true } => follow(&slurm, &job),
    }
}

fn submit(slurm: &Slurm, job: &Job, dry_run: bool) -> Result<()> {
    let script = Script::new(job).map_err(refused)?;
    slurm.check(job).map_err(refused)?;
    if dry_run {
        return print(script);
    }
    let id = slurm.submit(&script).map_err(refused)?;
    // A number alone is what other scripts want.
    print(format_args!("{id}\n"))?;
    eprintln!(
        "submitted; `rankine slurm status {id}` shows how it is, `rankine slurm logs {id}` what it writes"
    );
    Ok(())
}

fn status(slurm: &Slurm, ids: &[JobId]) -> Result<()> {
    let jobs = if ids.is_empty() { slurm.my_jobs() } else { slurm.jobs(ids) };
    let mut jobs = jobs.map_err(refused)?;
    jobs.sort_by_key(|job| (job.id.number(), job.id.element()));
    if jobs.is_empty() && ids.is_empty() {
        print("you have no jobs in the queue\n")?;
    } else if !jobs.is_empty() {
        print(table(&jobs))?;
    }
    all_known(ids, &jobs)
}

fn table(jobs: &[Queued]) -> String {
    let mut rows = vec![
        ["job", "name", "state", "nodes", "elapsed", "left", "on or why not"].map(String::from).to_vec(),
    ];
    let shown =
        |time: Option<Duration>| time.map_or("-".to_owned(), |time| TimeLimit::shown(time).to_string());
    for job in jobs {
        let why = [job.node_list.clone(), job.reason.explained()];
        rows.push(vec![
            job.id.to_string(),
            job.name.clone(),
            job.state.to_string(),
            job.nodes.to_string(),
            shown(job.elapsed),
            shown(job.left),
            why.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": "),
        ]);
    }
    columns(&rows, |column| matches!(column, 3..=5))
}

/// What Slurm tells of a job that was named: all elements of an array, or one.
fn of<'a>(id: &JobId, jobs: &'a [Queued]) -> Vec<&'a Queued> {
    // Elements that wait are told of together.
    let same = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    let is_of = |job: &&Queued| job.id.number() == id.number() && same(job.id.element(), id.element());
    jobs.iter().filter(is_of).collect()
}

/// Whether each of the jobs named is among those that Slurm knows.
fn all_known(ids: &[JobId], jobs: &[Queued]) -> Result<()> {
    match ids.iter().find(|id| of(id, jobs).is_empty()) {
        Some(id) => Err(refused(rankine_slurm::Error::UnknownJob(id.clone()))),
        None => Ok(()),
    }
}

fn cancel(slurm: &Slurm, ids: &[JobId]) -> Result<()> {
    let jobs = slurm.jobs(ids).map_err(refused)?;
    let known = ids.iter().filter(|id| !of(id, &jobs).is_empty());
    let (over, going): (Vec<&JobId>, Vec<&JobId>) =
        known.partition(|id| of(id, &jobs).iter().all(|job| job.state.is_over()));
    for id in over {
        let states: BTreeSet<String> = of(id, &jobs).iter().map(|job| job.state.to_string()).collect();
        let states: Vec<String> = states.into_iter().collect();
        print(format_args!("{id} has ended already: {}\n", states.join(", ")))?;
    }
    let going: Vec<JobId> = going.into_iter().cloned().collect();
    slurm.cancel(&going).map_err(refused)?;
    for id in going {
        print(format_args!("{id} is cancelled\n"))?;
    }
    all_known(ids, &jobs)
}

fn logs(slurm: &Slurm, id: &JobId) -> Result<()> {
    let mut log = slurm.log(id).map_err(refused)?;
    if log.copy(&mut io::stdout().lock()).map_err(refused)? == 0 {
        let job = slurm.job(id).map_err(refused)?;
        eprint!("nothing is in {}\n{}", log.path().display(), table(&job));
    }
    Ok(())
}

/// How often to look for what a job wrote, and whether it has ended: the latter is asked of a controller that others
/// ask as well.
const LOOK: Duration = Duration::from_millis(250);
const ASK: Duration = Duration::from_secs(2);

fn follow(slurm: &Slurm, id: &JobId) -> Result<()> {
    let mut log = slurm.log(id).map_err(refused)?;
    let mut asked: Option<Instant> = None;
    loop {
        let mut over = None;
        if asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            asked = Some(Instant::now());
            over = match slurm.job(id) {
                Ok(jobs) => jobs.into_iter().next().filter(|job| job.state.is_over()),
                Err(error) => return Err(refused(error)),
            };
        }
        // What it wrote before it was over is all there now.
        log.copy(&mut io::stdout().lock()).map_err(refused)?;
        if let Some(job) = over {
            eprint!("{}", table(&[job]));
            return Ok(());
        }
        sleep(LOOK);
    }
}
