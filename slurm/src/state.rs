//! What became of a job, and why it is not further, in words.

use std::fmt;

/// The state of a job, as Slurm calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// It waits in the queue.
    Pending,
    /// It has nodes, which are being booted or set up.
    Configuring,
    /// It runs.
    Running,
    /// It has nodes but is halted, in favour of another job.
    Suspended,
    /// It has ended, and its nodes are cleaned up.
    Completing,
    /// Its script ended with status 0.
    Completed,
    /// It was cancelled by its owner or an administrator.
    Cancelled,
    /// Its script ended with another status.
    Failed,
    /// It ran into its time limit.
    TimedOut,
    /// It was ended in favour of another job.
    Preempted,
    /// A node of it failed.
    NodeFailed,
    /// Its nodes did not boot.
    BootFailed,
    /// It could not run before its deadline.
    Deadline,
    /// It used more memory than it had asked for.
    OutOfMemory,
    /// It was ended, and waits in the queue again.
    Requeued,
    /// It is in another state, which Slurm calls so.
    Other(String),
}

/// Slurm's words for states.
const WORDS: &[(&str, JobState)] = &[
    ("PENDING", JobState::Pending),
    ("CONFIGURING", JobState::Configuring),
    ("RUNNING", JobState::Running),
    ("SUSPENDED", JobState::Suspended),
    ("COMPLETING", JobState::Completing),
    ("COMPLETED", JobState::Completed),
    ("CANCELLED", JobState::Cancelled),
    ("FAILED", JobState::Failed),
    ("TIMEOUT", JobState::TimedOut),
    ("PREEMPTED", JobState::Preempted),
    ("NODE_FAIL", JobState::NodeFailed),
    ("BOOT_FAIL", JobState::BootFailed),
    ("DEADLINE", JobState::Deadline),
    ("OUT_OF_MEMORY", JobState::OutOfMemory),
    ("REQUEUED", JobState::Requeued),
];

impl JobState {
    /// The state that Slurm's word means.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        let known = WORDS.iter().find(|(known, _)| *known == word).map(|(_, state)| state.clone());
        known.unwrap_or_else(|| Self::Other(word.to_owned()))
    }

    /// Whether it has ended and does not come back by itself.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        match self {
            Self::Completed
            | Self::Cancelled
            | Self::Failed
            | Self::TimedOut
            | Self::Preempted
            | Self::NodeFailed
            | Self::BootFailed
            | Self::Deadline
            | Self::OutOfMemory => true,
            Self::Pending
            | Self::Configuring
            | Self::Running
            | Self::Suspended
            | Self::Completing
            | Self::Requeued
            | Self::Other(_) => false,
        }
    }

    /// Whether it waits for nodes.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        matches!(self, Self::Pending | Self::Configuring | Self::Requeued)
    }
}

/// In Slurm's word, as its documentation has it.
impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Other(word) => word,
            known => WORDS.iter().find(|(_, state)| state == known).map_or("", |(word, _)| word),
        })
    }
}

/// Why a job is in its state, as Slurm calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

/// What Slurm's commonest reasons mean, and what can be done.
const REASONS: &[(&str, &str)] = &[
    ("Resources", "waits for nodes to become free"),
    ("Priority", "waits behind jobs of higher priority"),
    ("Dependency", "waits for the jobs it depends on"),
    ("DependencyNeverSatisfied", "a job it depends on ended otherwise than it asks: cancel it"),
    ("BeginTime", "its time to begin has not come, as after being queued again"),
    ("JobArrayTaskLimit", "as many elements of its array run as may at a time"),
    ("JobHeldUser", "held by its owner: scontrol release lets it go"),
    ("JobHeldAdmin", "held by an administrator: ask why"),
    ("PartitionNodeLimit", "asks for more nodes than its partition allows: it will never run"),
    ("PartitionTimeLimit", "asks for more time than its partition allows: it will never run"),
    ("PartitionDown", "its partition takes no jobs at present"),
    ("PartitionInactive", "its partition starts no jobs at present"),
    ("BadConstraints", "no nodes are what it asks for: it will never run"),
    ("ReqNodeNotAvail", "nodes that it needs are down or reserved, as for maintenance"),
    (
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        "nodes that it needs are down, or kept for jobs that go first",
    ),
    ("NodeDown", "a node that it needs is down"),
    ("Reservation", "waits for its reservation"),
    ("Licenses", "waits for a licence"),
    ("InvalidAccount", "its account is not known: name another with --account"),
    ("InvalidQOS", "its quality of service is not known: name another with --qos"),
    ("Prolog", "its nodes are being set up"),
    ("Cleaning", "its former run is being cleaned up"),
    ("JobLaunchFailure", "it could not be started, or a signal ended its script: see its output"),
    ("launch failed requeued held", "it could not be started, and is held: ask the administrator"),
    ("NonZeroExitCode", "its script ended with another status than 0: see its output"),
    ("RaisedSignal", "a signal ended it"),
    ("TimeLimit", "it ran into its time limit: ask for more with --time"),
    ("OutOfMemory", "it used more memory than it had: ask for more with --mem"),
];

impl Reason {
    /// The reason that this word of Slurm's is.
    pub fn new(word: &str) -> Self {
        Self(word.trim_matches(['(', ')']).to_owned())
    }

    /// Slurm's word for it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it means; nothing where there is no reason.
    #[must_use]
    pub fn explained(&self) -> String {
        let word = &*self.0;
        // After a comma come names of nodes.
        let bare = word.split(',').next().unwrap_or_default();
        let known = REASONS.iter().find(|(known, _)| *known == word || *known == bare);
        match known {
            _ if matches!(word, "" | "None" | "null") => String::new(),
            Some((_, meaning)) => format!("{meaning} ({bare})"),
            None if word.starts_with("QOS") => {
                format!("waits for a limit of its quality of service ({word})")
            }
            None if word.starts_with("Assoc") => format!("waits for a limit of its account ({word})"),
            None => word.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_called_as_slurm_calls_them() {
        for (word, state) in WORDS {
            assert_eq!((&JobState::from_word(word), &*state.to_string()), (state, *word));
        }
        assert_eq!(JobState::from_word("STAGE_OUT").to_string(), "STAGE_OUT");
        assert!(
            JobState::TimedOut.is_over() && !JobState::Completing.is_over() && !JobState::Requeued.is_over()
        );
        assert!(JobState::Requeued.is_waiting() && !JobState::Running.is_waiting());
    }

    #[test]
    fn reasons_are_explained() {
        let explained = |word| Reason::new(word).explained();
        assert_eq!(explained("(Resources)"), "waits for nodes to become free (Resources)");
        assert_eq!(explained("None"), "");
        assert!(
            explained("ReqNodeNotAvail, UnavailableNodes:node[1-3]")
                .ends_with("maintenance (ReqNodeNotAvail)")
        );
        assert!(explained("QOSMaxJobsPerUserLimit").contains("quality of service (QOSMaxJobsPerUserLimit)"));
        assert!(explained("AssocGrpCpuLimit").contains("account"));
        assert_eq!(explained("SomethingNew"), "SomethingNew");
    }
}
