//! What started this process, told by its environment: nobody in particular, an MPI launcher, or Slurm.

use super::cores::Cores;
use crate::{Error, Result};

/// Under what a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Launch {
    /// By itself, or as the only one.
    Alone,
    /// One of the ranks of an MPI job.
    Mpi,
    /// One of the tasks of a Slurm step that has nothing to do with MPI.
    Slurm(Step),
}

/// A process's place in a Slurm step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its number, from 0.
    pub(crate) rank: usize,
    /// How many there are.
    pub(super) size: usize,
    /// The job's number.
    pub(super) job: String,
    /// The step, unlike any other: cluster, job, step, and how often the job was begun anew.
    pub(super) name: String,
    /// Cores for each task, where the user said.
    cores: Option<usize>,
    /// Cores that the job has on this node, where Slurm says.
    allocated: Option<usize>,
    /// Tasks of the step on this node.
    pub(crate) neighbours: usize,
}

/// Variables that hold the number of ranks, as launchers set them for their own library.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
/// Variables that show a launcher of MPI which does not tell the number.
const RANKS: [&str; 3] = ["PMIX_RANK", "PMI_RANK", "PALS_RANKID"];
/// How the variables begin by which launchers of MPI speak to the ranks.
const PREFIXES: [&str; 6] = ["OMPI_", "PMIX_", "PMI_", "MV2_", "PALS_", "HYDI_"];

impl Launch {
    /// This process's number among those that were started together, before they meet.
    pub(super) fn rank(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
        const NUMBERS: [&str; 5] =
            ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"];
        NUMBERS.iter().find_map(|name| variable(name)?.trim().parse().ok())
    }

    /// Reads the environment. `mpi` tells whether this program was built with MPI, `wanted` whether the
    /// transports that are asked for include it.
    ///
    /// # Errors
    /// If the ranks of an MPI job cannot find each other since this program knows no MPI.
    pub(crate) fn detect(variable: impl Fn(&str) -> Option<String>, mpi: bool, wanted: bool) -> Result<Self> {
        let number = |name: &&str| variable(name)?.trim().parse::<usize>().ok();
        let step = Step::detect(&variable).filter(|step| step.size > 1);
        let tasks = step.as_ref().map(|step| step.size);
        let started_by_mpi = RANKS.iter().any(|name| variable(name).is_some());
        let ranks = SIZES.iter().find_map(number).or(tasks.filter(|_| started_by_mpi));
        // srun itself, with a plugin for MPI or without.
        let by_srun = variable("OMPI_COMM_WORLD_SIZE").is_none() && (ranks.is_none() || ranks == tasks);
        match (ranks, step) {
            (_, Some(step)) if by_srun && (ranks.is_none() || !mpi || !wanted) => Ok(Self::Slurm(step)),
            (Some(1) | None, _) => Ok(Self::Alone),
            (Some(_), _) if mpi => Ok(Self::Mpi),
            (Some(ranks), _) => Err(Error::Usage(format!(
                "an MPI launcher started {ranks} ranks of this program, which was built without MPI: build it \
                 with the cargo feature `mpi`, or start it with srun --mpi=none; by itself it runs with \
                 --processes N"
            ))),
        }
    }
}

impl Step {
    /// The place in a step. A batch script, which is none, has no number of tasks.
    pub(super) fn detect(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        let (rank, size) = (number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?);
        let (job, step) = (number("SLURM_JOB_ID")?, number("SLURM_STEP_ID")?);
        let restart = number("SLURM_RESTART_COUNT").unwrap_or(0);
        let per_node = variable("SLURM_STEP_TASKS_PER_NODE").unwrap_or_default();
        let node = number("SLURM_NODEID").unwrap_or(0);
        let cluster = variable("SLURM_CLUSTER_NAME").map_or(String::new(), |name| name + "-");
        Some(Self {
            rank,
            size,
            name: format!("{cluster}{job}.{step}.{restart}"),
            job: job.to_string(),
            cores: number("SLURM_CPUS_PER_TASK"),
            allocated: number("SLURM_CPUS_ON_NODE"),
            neighbours: tasks_of_node(&per_node, node).unwrap_or(1),
        })
    }
}

impl Step {
    /// Compute threads for this task, which may use the cores `bound`. Not every Slurm binds each task to cores of
    /// its own: then those of a node share what the job has there.
    pub(crate) fn threads(&self, bound: &Cores) -> u32 {
        let bound = bound.count();
        let allocated = self.allocated.unwrap_or(bound);
        let own = bound.saturating_mul(self.neighbours) <= allocated;
        let share = if own { bound } else { bound.min(allocated) / self.neighbours.max(1) };
        self.cores.map_or(share, |cores| cores.min(bound)).max(1) as u32
    }
}

/// Of Slurm's `2(x3),1`, two tasks on each of three nodes and one on the fourth, those of a node.
fn tasks_of_node(text: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for part in text.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.trim_end_matches(')').parse().ok()?),
            None => (part, 1),
        };
        before += nodes;
        if node < before {
            return tasks.trim().parse().ok();
        }
    }
    None
}

/// The variables among these by which a launcher of MPI speaks to its ranks: none of the business of a process
/// that a rank starts.
pub(super) fn of_a_launcher(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    names.filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(variables: &[(&str, &str)], mpi: bool, wanted: bool) -> Result<Launch> {
        let variable =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Launch::detect(variable, mpi, wanted)
    }

    const STEP: [(&str, &str); 6] = [
        ("SLURM_JOB_ID", "17"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "2"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_STEP_TASKS_PER_NODE", "1(x2),2"),
        ("SLURM_NODEID", "2"),
    ];

    fn step() -> Launch {
        Launch::Slurm(Step {
            rank: 2,
            size: 4,
            job: "17".into(),
            name: "17.0.0".into(),
            cores: None,
            allocated: None,
            neighbours: 2,
        })
    }

    #[test]
    fn a_process_of_nobody_is_alone() {
        assert_eq!(detect(&[], true, true).unwrap(), Launch::Alone);
        // A batch script has a number, and is no step.
        let script = [("SLURM_JOB_ID", "17"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert_eq!(detect(&script, true, true).unwrap(), Launch::Alone);
        assert_eq!(detect(&[("OMPI_COMM_WORLD_SIZE", "1")], false, true).unwrap(), Launch::Alone);
        let one = STEP.map(|(name, value)| (name, if name == "SLURM_STEP_NUM_TASKS" { "1" } else { value }));
        assert_eq!(detect(&one, true, true).unwrap(), Launch::Alone);
    }

    #[test]
    fn an_mpi_launcher_makes_ranks() {
        for size in SIZES {
            assert_eq!(detect(&[(size, "4")], true, true).unwrap(), Launch::Mpi);
            let error = detect(&[(size, "4")], false, true).unwrap_err().to_string();
            assert!(error.contains("4 ranks") && error.contains("feature `mpi`"), "{error}");
        }
        // mpirun reaches other nodes by srun: its own word counts.
        let nested = [&STEP[..], &[("PMIX_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8")]].concat();
        assert_eq!(detect(&nested, true, true).unwrap(), Launch::Mpi);
        assert_eq!(detect(&nested, true, false).unwrap(), Launch::Mpi);
        assert!(detect(&nested, false, true).is_err());
    }

    #[test]
    fn srun_makes_ranks_with_mpi_and_tasks_without() {
        assert_eq!(detect(&STEP, true, true).unwrap(), step());
        assert_eq!(detect(&STEP, false, true).unwrap(), step());
        for plugin in [&[("PMIX_RANK", "2")][..], &[("PMI_RANK", "2"), ("PMI_SIZE", "4")]] {
            let variables = [&STEP[..], plugin].concat();
            assert_eq!(detect(&variables, true, true).unwrap(), Launch::Mpi);
            // Where sockets do, one task's death is not that of all.
            assert_eq!(detect(&variables, true, false).unwrap(), step());
            assert_eq!(detect(&variables, false, true).unwrap(), step());
        }
    }

    #[test]
    fn a_job_begun_anew_is_another() {
        let again = [&STEP[..], &[("SLURM_RESTART_COUNT", "1"), ("SLURM_CPUS_PER_TASK", "8")]].concat();
        let Launch::Slurm(step) = detect(&again, true, true).unwrap() else { panic!("it is a step") };
        assert_eq!((&*step.name, step.cores), ("17.0.1", Some(8)));
    }

    #[test]
    fn a_task_has_its_share_of_the_jobs_cores() {
        let threads = |bound: &str, allocated, neighbours, cores| {
            let step = Step {
                rank: 0,
                size: 8,
                job: String::new(),
                name: String::new(),
                cores,
                allocated,
                neighbours,
            };
            step.threads(&Cores(bound.into()))
        };
        // Bound to its own.
        assert_eq!(threads("0-3", Some(16), 4, None), 4);
        // Bound to those of the job, or to nothing in particular.
        assert_eq!(threads("0-15", Some(16), 4, None), 4);
        assert_eq!(threads("0-63", Some(16), 4, None), 4);
        assert_eq!(threads("0-63", Some(16), 32, None), 1);
        assert_eq!(threads("0-7", None, 2, None), 4);
        // As the user said, but no more than there are.
        assert_eq!(threads("0-15", Some(16), 1, Some(8)), 8);
        assert_eq!(threads("0-1", Some(16), 1, Some(8)), 2);
    }

    #[test]
    fn tasks_are_counted_by_node() {
        let nodes = |text| (0..4).map(|node| tasks_of_node(text, node)).collect::<Vec<_>>();
        assert_eq!(nodes("2(x3),1"), [Some(2), Some(2), Some(2), Some(1)]);
        assert_eq!(nodes("4"), [Some(4), None, None, None]);
        assert_eq!(nodes("?"), [None; 4]);
    }
}
