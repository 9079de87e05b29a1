//! What can go wrong: what was attempted, on what, and what to do.

use std::{io, time::Duration};

use crate::JobId;

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {what}: {instead}")]
pub struct Invalid {
    /// What was given.
    pub given: String,
    /// What it should be, with its article.
    pub what: &'static str,
    /// What would be right.
    pub instead: String,
}

impl Invalid {
    pub(crate) fn new(given: &str, what: &'static str, instead: impl Into<String>) -> Self {
        Self { given: given.to_owned(), what, instead: instead.into() }
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of a job contradicts another one, or what its partition allows.
    #[error("--{option} cannot be {given}: {reason}")]
    Option {
        /// The option, as `rankine slurm` and mostly sbatch call it.
        option: &'static str,
        /// Its value.
        given: String,
        /// Why it cannot be, and what can.
        reason: String,
    },
    /// One of Slurm's commands is not on this machine.
    #[error(
        "cannot run {program}: {source}; is this a login node of a cluster with Slurm, and {program} in PATH?"
    )]
    Missing {
        /// The command.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// One of Slurm's commands did not do what it should.
    #[error("`{command}` failed with {status}{}{}", said_by(said), advice(said))]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// Slurm's own words.
        said: String,
    },
    /// One of Slurm's commands did not end.
    #[error(
        "`{command}` did not end within {} s: Slurm's controller is busy or cannot be reached; try again, or ask \
         `scontrol ping`",
        .limit.as_secs_f64()
    )]
    TimedOut {
        /// What was run.
        command: String,
        /// How long it had.
        limit: Duration,
    },
    /// What one of Slurm's commands wrote is not what it writes as far as is known.
    #[error("cannot read what `{command}` wrote: {reason}: {said}")]
    Unexpected {
        /// What was run.
        command: String,
        /// What is wrong with it.
        reason: &'static str,
        /// What it wrote.
        said: String,
    },
    /// Slurm does not know the job, or no longer.
    #[error(
        "Slurm knows no job {0}: it forgets jobs some minutes after their end; `sacct --jobs {0}` tells of older \
         ones where accounting is on, and `squeue --me` lists yours"
    )]
    UnknownJob(JobId),
    /// The job is an array, of which one element is meant.
    #[error(
        "{id} is an array, whose elements each have an output of their own: name one of {}",
        listed(elements)
    )]
    Array {
        /// The job.
        id: JobId,
        /// Its elements.
        elements: Vec<JobId>,
    },
    /// The job has no file that its output goes to.
    #[error("job {0} has no output file: it was not submitted as a batch script")]
    NoOutput(JobId),
    /// The system did not do what it should.
    #[error("cannot {attempt}: {source}")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn option(
        option: &'static str,
        given: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Option { option, given: given.to_string(), reason: reason.into() }
    }

    pub(crate) fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { attempt: attempt.into(), source }
    }
}

fn said_by(said: &str) -> String {
    if said.is_empty() { " and said nothing".into() } else { format!(": {said}") }
}

fn listed(jobs: &[JobId]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = jobs.iter().take(SHOWN).map(JobId::to_string).collect();
    shown.join(", ") + if jobs.len() > SHOWN { ", ..." } else { "" }
}

/// What to do about some of Slurm's refusals, found by a part of its words.
const ADVICE: &[(&str, &str)] = &[
    (
        "Unable to contact slurm controller",
        "it is down or restarts: try again in a minute, or ask `scontrol ping`",
    ),
    ("Connection refused", "it is down or restarts: try again in a minute, or ask `scontrol ping`"),
    ("configuration source", "this machine does not know its cluster: go to a login node, or set SLURM_CONF"),
    ("Invalid partition", "`sinfo` lists the partitions; choose one with --partition"),
    ("Invalid account", "`sacctmgr show associations user=$USER` lists yours; choose one with --account"),
    ("Invalid qos", "`sacctmgr show qos` lists them; choose one with --qos"),
    (
        "Requested node configuration",
        "no node has that much: `sinfo -o '%P %D %c %m %G'` shows what they have",
    ),
    ("Invalid feature specification", "`sinfo -o '%P %f'` lists what --constraint may ask for"),
    ("Invalid generic resource", "`sinfo -o '%P %G'` lists what --gres may ask for"),
    ("Access/permission denied", "the job is somebody else's, or the partition is not yours to use"),
    (
        "violates accounting/QOS policy",
        "it is beyond a limit of your account: ask for less, or the administrator",
    ),
    ("Protocol authentication error", "munge does not run here, or the clocks differ: ask the administrator"),
    ("Munge", "munge does not run here, or the clocks differ: ask the administrator"),
];

fn advice(said: &str) -> String {
    let known = ADVICE.iter().find(|(part, _)| said.contains(part));
    known.map_or(String::new(), |(_, advice)| format!("; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_slurm_is_told_with_its_words_and_what_to_do() {
        let failed = |said: &str| {
            let (command, status) = ("sbatch --parsable".into(), "exit status: 1".into());
            Error::Failed { command, status, said: said.into() }.to_string()
        };
        let told = failed("sbatch: error: Batch job submission failed: Invalid partition name specified");
        assert!(told.starts_with("`sbatch --parsable` failed with exit status: 1: sbatch: error:"), "{told}");
        assert!(told.ends_with("choose one with --partition"), "{told}");
        assert!(failed("").ends_with("and said nothing"));
        assert!(failed("what nobody foresaw").ends_with("nobody foresaw"));
    }
}
