//! What a job is.

use std::{fs::Metadata, num::NonZeroU32, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    Array, Dependency, Directive, Error, Invalid, Memory, Name, Output, Result, TimeLimit, Variable, Word,
};

/// A job: a program, what it needs, and how it is launched. All values are right by themselves; what they are
/// together, [`Script::new`](crate::Script::new) and [`Slurm::check`](crate::Slurm::check) look at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Job {
    /// The program, by its path or as a name in PATH on the nodes.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it is called in the queue and in file names; after the program, if nobody says.
    pub name: Name,
    /// How many nodes.
    pub nodes: NonZeroU32,
    /// How many tasks on each node: the ranks of an MPI job, else processes of the program.
    pub tasks_per_node: NonZeroU32,
    /// How many CPUs each task has; Slurm's default is one.
    pub cpus_per_task: Option<NonZeroU32>,
    /// The memory of each node; the partition has a default.
    pub memory: Option<Memory>,
    /// How long it may run; the partition has a default.
    pub time: Option<TimeLimit>,
    /// The partition, or several with commas between; the cluster has a default.
    pub partition: Option<Word>,
    /// The account that is charged.
    pub account: Option<Word>,
    /// The quality of service.
    pub qos: Option<Word>,
    /// Features that the nodes must have.
    pub constraint: Option<Word>,
    /// Generic resources of each node, such as `gpu:2`.
    pub gres: Option<Word>,
    /// Runs the job once for each of these numbers, which it finds in `SLURM_ARRAY_TASK_ID`.
    pub array: Option<Array>,
    /// What it waits for.
    pub dependency: Option<Dependency>,
    /// Environment modules to load first.
    pub modules: Vec<Word>,
    /// Variables of its environment, besides those of where it is submitted.
    pub environment: Vec<Variable>,
    /// Directives for sbatch besides.
    pub directives: Vec<Directive>,
    /// The file for its output; else the job's name and number with `.out`, where it is submitted.
    pub output: Option<Output>,
    /// How its tasks are started.
    pub launcher: Launcher,
    /// How many seconds before the time limit the program gets the signal USR1. Slurm is up to a minute early.
    pub signal: Option<NonZeroU32>,
}

/// How the tasks of a job are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Launcher {
    /// As MPI ranks, by the `mpirun` of the MPI library. If a rank dies, the job ends.
    #[default]
    Mpirun,
    /// As MPI ranks, by srun with a plugin that the MPI library knows. If a rank dies, the job ends.
    Srun(Pmi),
    /// As processes of their own, by srun, without MPI: the first task runs scheduler and program, the others are
    /// workers. If workers or their nodes die, the job goes on.
    FaultTolerant,
    /// As processes of their own, by srun, without MPI: all of them workers of a scheduler elsewhere, which know when
    /// the job ends.
    Workers,
}

/// By which plugin of srun's the ranks find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pmi {
    /// Open MPI, and what is built on it.
    #[default]
    Pmix,
    /// MPICH, and what is built on it.
    Pmi2,
}

impl Pmi {
    /// As srun calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pmix => "pmix",
            Self::Pmi2 => "pmi2",
        }
    }
}

/// The longest time before the limit for which Slurm sends a signal.
const EARLIEST_SIGNAL: u32 = 65_535;

impl Job {
    /// One task of a program on one node, started by `mpirun`, with the defaults of cluster and partition.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        let program = program.into();
        let name = Name::like(program.rsplit('/').next().unwrap_or_default());
        Self {
            program,
            name,
            arguments: Vec::new(),
            nodes: NonZeroU32::MIN,
            tasks_per_node: NonZeroU32::MIN,
            cpus_per_task: None,
            memory: None,
            time: None,
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            gres: None,
            array: None,
            dependency: None,
            modules: Vec::new(),
            environment: Vec::new(),
            directives: Vec::new(),
            output: None,
            launcher: Launcher::default(),
            signal: None,
        }
    }

    /// Gives the program one of Rankine's settings, such as `transport`, `tcp`, as a variable of its environment.
    ///
    /// # Errors
    /// If it is no name of a setting, or no value of any.
    pub fn set(&mut self, setting: &str, value: &str) -> Result<(), Invalid> {
        let name = format!("RANKINE_{}", setting.replace('-', "_").to_uppercase());
        self.environment.push(Variable::new(&name, value)?);
        Ok(())
    }

    /// CPUs of each node.
    #[must_use]
    pub fn cpus_per_node(&self) -> u64 {
        u64::from(self.tasks_per_node.get()) * u64::from(self.cpus_per_task.map_or(1, NonZeroU32::get))
    }

    /// Whether program and directory of its output are there, where both are looked for from here, as jobs do.
    pub(crate) fn check_files(&self) -> Result<()> {
        let program = Path::new(&self.program);
        // Without a slash it is a name in PATH on the nodes.
        if self.program.contains('/') {
            let executable =
                |metadata: Metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
            if !program.metadata().is_ok_and(executable) {
                let reason = "no such program is here: build it first, or name where it is";
                return Err(Error::option("program", &self.program, reason));
            }
        }
        let Some(directory) = self.output.as_ref().and_then(|output| Path::new(output.as_str()).parent())
        else {
            return Ok(());
        };
        // Slurm makes none, and fails the job without a word.
        let is_known = !directory.as_os_str().is_empty() && !directory.to_string_lossy().contains('%');
        if is_known && !directory.is_dir() {
            let reason = format!("there is no directory {}: make it first", directory.display());
            return Err(Error::option("output", self.output.as_ref().map_or("", Output::as_str), reason));
        }
        Ok(())
    }

    /// Whether the values go together.
    pub(crate) fn check(&self) -> Result<()> {
        if self.program.is_empty() || self.program.starts_with('-') {
            let reason = "name the program to run; one whose name begins with - needs ./ before it";
            return Err(Error::option("program", format!("{:?}", self.program), reason));
        }
        if let Some(word) =
            [&self.program].into_iter().chain(&self.arguments).find(|word| word.contains('\0'))
        {
            return Err(Error::option(
                "program",
                format!("{word:?}"),
                "no argument can have a zero byte in it",
            ));
        }
        let Some(signal) = self.signal.map(NonZeroU32::get) else { return Ok(()) };
        let limit = self.time.map(|time| time.duration().as_secs());
        if signal > EARLIEST_SIGNAL {
            return Err(Error::option(
                "signal",
                signal,
                format!("Slurm takes at most {EARLIEST_SIGNAL} seconds"),
            ));
        }
        if limit.is_some_and(|limit| u64::from(signal) >= limit) {
            let reason = "the time limit is no longer than that: ask for more --time, or a later signal";
            return Err(Error::option("signal", signal, reason));
        }
        Ok(())
    }
}
