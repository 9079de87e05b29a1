//! Slurm's commands: run, bounded in time, and read.

use std::{
    env,
    io::{self, Seek, Write},
    process::{Command, Stdio},
    time::Duration,
};

use process_control::{ChildExt, Control};

use crate::{Error, Job, JobId, Log, Partition, Queued, Record, Result, Script, partition, queue};

/// The Slurm of this machine, through its commands in PATH.
///
/// They write in formats that are the same in all versions of the last ten years; their JSON is not (a state is a
/// word in 22.05, a list from 23.11 on), and always tells of all jobs of the cluster.
#[derive(Debug, Clone)]
pub struct Slurm {
    limit: Duration,
}

impl Default for Slurm {
    /// With 30 s for each command: a busy controller takes some.
    fn default() -> Self {
        Self { limit: Duration::from_secs(30) }
    }
}

impl Slurm {
    /// The same with another limit for each command.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit }
    }

    /// Submits a script, and gives the job's number.
    ///
    /// # Errors
    /// If Slurm refuses it. What is beyond a partition's limits Slurm takes, and never runs: see
    /// [`check`](Self::check).
    pub fn submit(&self, script: &Script) -> Result<JobId> {
        let arguments = ["--parsable"];
        let said = self.run("sbatch", &arguments, Some(script))?;
        // Before it there may be words of the site's, after it the name of a cluster.
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let number = last.split(';').next().unwrap_or_default().trim();
        number
            .parse()
            .map_err(|_| unexpected("sbatch", &arguments, "its last line is no job's number", &said))
    }

    /// Asks Slurm whether it would take a script, without submitting it; gives its words.
    ///
    /// # Errors
    /// If Slurm would refuse it, or never run it.
    pub fn test(&self, script: &Script) -> Result<String> {
        // It tells on the standard error.
        self.both("sbatch", &["--test-only"], Some(script)).map(|(_, told)| told.trim().to_owned())
    }

    /// Looks whether the job could run: its program and the directory of its output are there, and a partition that
    /// it may go to has and allows what it asks for.
    ///
    /// # Errors
    /// Names the first option that cannot be.
    pub fn check(&self, job: &Job) -> Result<()> {
        job.check()?;
        job.check_files()?;
        partition::check(job, &self.partitions()?)
    }

    /// What partitions there are.
    ///
    /// # Errors
    /// If `sinfo` fails.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        // Without the rest it writes 1K for 1024, and leaves out partitions that are hidden.
        let arguments = ["--noheader", "--exact", "--noconvert", "--all", "--format", partition::FORMAT];
        let said = self.run("sinfo", &arguments, None)?;
        partition::parse(&said)
            .map_err(|line| unexpected("sinfo", &arguments, "it is not in that format", &line))
    }

    /// The caller's jobs that have not ended.
    ///
    /// # Errors
    /// If `squeue` fails.
    pub fn my_jobs(&self) -> Result<Vec<Queued>> {
        self.queue(&["--me"])
    }

    /// One job as it is in the queue, or was when it ended. An array has several.
    ///
    /// # Errors
    /// If Slurm does not know it, or no longer.
    pub fn job(&self, id: &JobId) -> Result<Vec<Queued>> {
        let jobs = known(id, self.queue(&["--states=all", "--jobs", &id.to_string()]))?;
        if jobs.is_empty() { Err(Error::UnknownJob(id.clone())) } else { Ok(jobs) }
    }

    /// Those of several jobs that Slurm knows.
    ///
    /// # Errors
    /// If `squeue` fails.
    pub fn jobs(&self, ids: &[JobId]) -> Result<Vec<Queued>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let list = ids.iter().map(JobId::to_string).collect::<Vec<_>>().join(",");
        match self.queue(&["--states=all", "--jobs", &list]) {
            // Said only where none is known.
            Err(Error::Failed { said, .. }) if said.contains(UNKNOWN) => Ok(Vec::new()),
            jobs => jobs,
        }
    }

    fn queue(&self, which: &[&str]) -> Result<Vec<Queued>> {
        let arguments = [which, &["--noheader", "--format", queue::FORMAT]].concat();
        let said = self.run("squeue", &arguments, None)?;
        queue::parse(&said)
            .map_err(|line| unexpected("squeue", &arguments, "it is not in that format", &line))
    }

    /// Cancels jobs. Those that have ended, or that Slurm does not know, are no error.
    ///
    /// # Errors
    /// If they are somebody else's, or Slurm cannot be reached.
    pub fn cancel(&self, ids: &[JobId]) -> Result<()> {
        let ids: Vec<String> = ids.iter().map(JobId::to_string).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        if ids.is_empty() { Ok(()) } else { self.run("scancel", &ids, None).map(drop) }
    }

    /// What Slurm keeps of a job: one record, of an array one for each element that has begun, and one for those
    /// that have not.
    ///
    /// # Errors
    /// If Slurm does not know it, or no longer.
    pub fn record(&self, id: &JobId) -> Result<Vec<Record>> {
        let id_text = id.to_string();
        let arguments = ["show", "job", &id_text];
        let said = known(id, self.run("scontrol", &arguments, None))?;
        queue::parse_records(&said)
            .ok_or_else(|| unexpected("scontrol", &arguments, "a job lacks number or state", &said))
    }

    /// The output of a job.
    ///
    /// # Errors
    /// If Slurm does not know the job, or no longer, or it is an array with several.
    pub fn log(&self, id: &JobId) -> Result<Log> {
        let mut records = self.record(id)?;
        if let [record] = &mut *records
            && let Some(path) = record.output.take()
        {
            return Ok(Log::new(path.into()));
        }
        match records.len() {
            0 => Err(Error::UnknownJob(id.clone())),
            1 => Err(Error::NoOutput(id.clone())),
            _ => {
                let begun = records.into_iter().map(|record| record.id);
                let mut elements: Vec<JobId> = begun.filter(|id| id.element().is_some()).collect();
                elements.sort_by_key(JobId::element);
                Err(Error::Array { id: id.clone(), elements })
            }
        }
    }

    /// Runs a command; gives what it wrote.
    fn run(&self, program: &str, arguments: &[&str], script: Option<&Script>) -> Result<String> {
        self.both(program, arguments, script).map(|(written, _)| written)
    }

    /// Runs a command; gives what it wrote on its standard output and error.
    fn both(&self, program: &str, arguments: &[&str], script: Option<&Script>) -> Result<(String, String)> {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(script.map_or_else(|| Ok(Stdio::null()), input)?);
        // All elements of an array, and nothing that a user's own habits would leave out.
        command.env("SLURM_BITSTR_LEN", "0");
        let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in names.filter(|name| is_foreign(name, script)) {
            command.env_remove(name);
        }
        let shown = shown(program, arguments);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                Error::Missing { program: program.to_owned(), source }
            }
            _ => Error::Io { attempt: format!("run `{shown}`"), source },
        };
        let child = command.spawn().map_err(failed)?;
        let ended = child.controlled_with_output().time_limit(self.limit).terminate_for_timeout().wait();
        let output = ended
            .map_err(Error::io(format!("wait for `{shown}`")))?
            .ok_or_else(|| Error::TimedOut { command: shown.clone(), limit: self.limit })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (written, told) = (text(output.stdout), text(output.stderr));
        if output.status.success() {
            return Ok((written, told));
        }
        let said = told.trim();
        let said = if said.is_empty() { written.trim() } else { said };
        Err(Error::Failed {
            command: shown,
            status: output.status.to_string(),
            said: said.replace('\n', "; "),
        })
    }
}

/// Whether a variable of this process's environment is none of a command's business: a user's habits about what
/// commands write; of what a script is submitted with, what stands in the script, and what speaks of the job that
/// this process itself is part of.
fn is_foreign(name: &str, script: Option<&Script>) -> bool {
    const CLUSTER: [&str; 2] = ["SLURM_CONF", "SLURM_CLUSTERS"];
    const LAUNCHERS: [&str; 6] = ["OMPI_COMM_", "OMPI_UNIVERSE_", "PMIX_", "PMI_", "PALS_", "MV2_COMM_"];
    let begins = |with: &[&str]| with.iter().any(|prefix| name.starts_with(prefix));
    if begins(&["SQUEUE_", "SINFO_"]) {
        return true;
    }
    let Some(script) = script else { return false };
    let said = || name.strip_prefix("SBATCH_").is_some_and(|name| script.says(name));
    begins(&["SLURM_"]) && !CLUSTER.contains(&name)
        || name == "RANKINE_STATUS"
        || begins(&LAUNCHERS)
        || said()
}

/// What squeue and scontrol say of jobs they do not know.
const UNKNOWN: &str = "Invalid job id";

/// Tells a job that Slurm does not know from other failures.
fn known<T>(id: &JobId, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Failed { said, .. } if said.contains(UNKNOWN) => Error::UnknownJob(id.clone()),
        other => other,
    })
}

/// A script as a standard input: a file that has no name, so that nobody waits for anybody.
fn input(script: &Script) -> Result<Stdio> {
    let failed = || Error::io("keep the script in a temporary file");
    let mut file = tempfile::tempfile().map_err(failed())?;
    file.write_all(script.as_str().as_bytes()).and_then(|()| file.rewind()).map_err(failed())?;
    Ok(file.into())
}

fn shown(program: &str, arguments: &[&str]) -> String {
    let words = [program].into_iter().chain(arguments.iter().copied());
    shlex::try_join(words).unwrap_or_else(|_| program.to_owned())
}

fn unexpected(program: &str, arguments: &[&str], reason: &'static str, said: &str) -> Error {
    Error::Unexpected { command: shown(program, arguments), reason, said: said.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_not_submitted_with_what_speaks_of_another() {
        let mut job = Job::new("./program");
        job.partition = Some("debug".parse().unwrap());
        job.time = Some("5".parse().unwrap());
        let script = Script::new(&job).unwrap();
        let foreign = |name| is_foreign(name, Some(&script));
        // Of the job that this process is part of.
        for name in [
            "SLURM_MEM_PER_NODE",
            "SLURM_JOB_END_TIME",
            "RANKINE_STATUS",
            "PMIX_RANK",
            "OMPI_COMM_WORLD_SIZE",
        ] {
            assert!(foreign(name), "{name}");
        }
        // Sbatch would prefer them to the script.
        assert!(foreign("SBATCH_PARTITION") && foreign("SBATCH_TIMELIMIT"));
        // What the script does not say, a user's habits may; and which cluster it is.
        for name in
            ["SBATCH_ACCOUNT", "SLURM_CONF", "SLURM_CLUSTERS", "PATH", "OMPI_MCA_btl", "RANKINE_TRANSPORT"]
        {
            assert!(!foreign(name), "{name}");
        }
        assert!(is_foreign("SQUEUE_FORMAT", None) && !is_foreign("SLURM_JOB_ID", None));
    }
}
