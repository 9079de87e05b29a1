//! Whether a launcher that MPI understands started this process, told from the environment: a library that
//! is initialised without one waits for nobody and is alone.

/// What the launcher says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// How many ranks it started, where it tells.
    pub(crate) ranks: Option<usize>,
}

/// Variables that hold the number of ranks, as launchers set them for their own library.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
/// Variables that show a launcher which does not tell the number.
const RANKS: [&str; 3] = ["PMIX_RANK", "PMI_RANK", "PALS_RANKID"];

impl Launch {
    /// Reads the environment.
    ///
    /// # Errors
    /// Why there is no world to join, and what to do.
    pub(crate) fn detect(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &&str| variable(name).and_then(|value| value.trim().parse::<usize>().ok());
        // Within a batch script, which is no step, this is not set.
        let tasks = number(&"SLURM_STEP_NUM_TASKS");
        if let Some(ranks) = SIZES.iter().find_map(number) {
            return Ok(Self { ranks: Some(ranks) });
        }
        if RANKS.iter().any(|name| variable(name).is_some()) {
            return Ok(Self { ranks: tasks });
        }
        Err(match tasks {
            Some(tasks) if variable("SLURM_PROCID").is_some() => format!(
                "srun started {tasks} task(s) without MPI: use srun --mpi=pmix for Open MPI, \
                 srun --mpi=pmi2 for MPICH (srun --mpi=list shows what there is), or tcp://"
            ),
            _ => {
                "not started by mpirun or srun: start the program with mpirun -n RANKS, or use tcp://".into()
            }
        })
    }

    /// Whether the world has as many ranks as the launcher started.
    ///
    /// # Errors
    /// If each process is alone: the library does not understand the launcher.
    pub(crate) fn agrees(&self, world: usize, library: &str) -> Result<(), String> {
        match self.ranks {
            Some(ranks) if world == 1 && ranks > 1 => Err(format!(
                "the launcher started {ranks} ranks but each is alone in its world: {library} does not understand \
                 it; use the mpirun of that very library, or srun --mpi=pmix for Open MPI, srun --mpi=pmi2 \
                 for MPICH"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(variables: &[(&str, &str)]) -> Result<Launch, String> {
        Launch::detect(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        for size in SIZES {
            assert_eq!(detect(&[(size, "4")]), Ok(Launch { ranks: Some(4) }));
        }
        assert_eq!(detect(&[("PMIX_RANK", "0")]), Ok(Launch { ranks: None }));
        let pmix = [("PMIX_RANK", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "3")];
        assert_eq!(detect(&pmix), Ok(Launch { ranks: Some(3) }));
        // mpirun within a Slurm step of one daemon a node: its own word counts.
        let nested = [("OMPI_COMM_WORLD_SIZE", "8"), ("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(detect(&nested), Ok(Launch { ranks: Some(8) }));
    }

    #[test]
    fn a_process_of_nobody_is_told_how_to_start() {
        assert!(detect(&[]).unwrap_err().contains("mpirun -n RANKS"));
        assert!(detect(&[("SLURM_NTASKS", "4")]).unwrap_err().contains("mpirun -n RANKS"));
        let srun = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4")];
        assert!(detect(&srun).unwrap_err().contains("--mpi=pmix"));
    }

    #[test]
    fn ranks_that_are_alone_although_many_were_started_are_noticed() {
        let launch = Launch { ranks: Some(4) };
        assert!(launch.agrees(1, "MPICH 4").unwrap_err().contains("MPICH 4"));
        assert_eq!(launch.agrees(4, "MPICH 4"), Ok(()));
        assert_eq!(Launch { ranks: None }.agrees(1, "MPICH 4"), Ok(()));
        assert_eq!(Launch { ranks: Some(1) }.agrees(1, "MPICH 4"), Ok(()));
    }
}
