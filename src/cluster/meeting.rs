//! How the ranks of a job find each other: by MPI or, among the tasks of a Slurm step without MPI, by a
//! scheduler file in a directory that all nodes share.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{IoThread, SchedulerFile, cores::Binding, launch::Step};
#[cfg(feature = "mpi")]
use super::{cores, world};
use crate::{Error, Result, scheduler::server::Deaths, settings::Settings, task::build_id};

/// How long ranks wait for each other.
const COMING: Duration = Duration::from_secs(60);
/// How long a rank waits until it looks for the scheduler file again, at first and at most: hundreds of them
/// share the file system.
const LOOK: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(1000)];

/// How ranks meet.
pub(super) enum Meeting {
    /// By MPI.
    #[cfg(feature = "mpi")]
    Mpi,
    /// By a file.
    File(ByFile),
}

/// A meeting by the file of the first rank, which removes it when it is dropped.
pub(super) struct ByFile {
    step: Step,
    path: PathBuf,
    written: bool,
}

/// The ranks, seen from one of them.
pub(super) struct Ranks {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// Compute threads for this one.
    pub(super) threads: u32,
    /// Those of its host, itself included.
    pub(super) neighbours: usize,
}

impl Meeting {
    /// The meeting of a Slurm step's tasks.
    ///
    /// # Errors
    /// If there is no directory for the file.
    pub(super) fn of_step(step: Step) -> Result<Self> {
        let path = SchedulerFile::directory()?.join(format!("step-{}.json", step.name));
        Ok(Self::File(ByFile { step, path, written: false }))
    }

    /// What holds where users say nothing.
    pub(super) fn defaults(&self) -> Settings {
        match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => Settings { transport: "inproc,mpi".into(), ..Settings::default() },
            Self::File(_) => Settings::default(),
        }
    }

    /// What the death of a rank means.
    pub(super) fn deaths(&self) -> Deaths {
        match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => Deaths::EndAll(
                "under MPI a rank's death is that of the job; where it must not be, start the program with \
                 srun --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0",
            ),
            Self::File(_) => Deaths::CostTasks,
        }
    }

    /// Meets the others.
    ///
    /// # Errors
    /// If they do not come.
    pub(super) fn meet(&self, io: &IoThread) -> Result<Ranks> {
        let mine = Binding::of_this_process();
        match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => {
                let (rank, size) = world::join(io)?;
                let all = world::bindings(io, &mine)?;
                let threads = cores::threads(&mine.cores, mine.sharers(&all));
                Ok(Ranks { rank, size, threads, neighbours: mine.neighbours(&all) })
            }
            Self::File(ByFile { step, .. }) => {
                let _ = io;
                let (rank, size, threads) = (step.rank, step.size, step.threads(&mine.cores));
                Ok(Ranks { rank, size, threads, neighbours: step.neighbours })
            }
        }
    }

    /// The first rank tells the others where its scheduler is, or that there is none.
    ///
    /// # Errors
    /// If they cannot be told.
    pub(super) fn announce(&mut self, io: &IoThread, file: Option<&SchedulerFile>) -> Result<()> {
        match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => {
                let told = serde_json::to_vec(&file).map_err(|e| Error::Usage(e.to_string()))?;
                world::broadcast(io, told).map(drop)
            }
            Self::File(by_file) => {
                let _ = io;
                let Some(file) = file else { return Ok(()) };
                by_file.written = true;
                file.write(&by_file.path)
            }
        }
    }

    /// The other ranks are told where the scheduler is; `None` if there is none.
    ///
    /// # Errors
    /// If no word comes, or this rank runs another executable.
    pub(super) fn learn(&self, io: &IoThread, ranks: &Ranks) -> Result<Option<SchedulerFile>> {
        let file = match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => {
                let told = world::broadcast(io, Vec::new())?;
                serde_json::from_slice::<Option<SchedulerFile>>(&told)
                    .map_err(|e| Error::Usage(format!("what rank 0 said is no scheduler file: {e}")))?
            }
            Self::File(by_file) => {
                let _ = io;
                Some(by_file.wait()?)
            }
        };
        if let Some(file) = file.as_ref().filter(|file| file.build_id != build_id()) {
            return Err(Error::Usage(format!(
                "rank {} runs another executable (build {}) than rank 0 (build {}): start the very same \
                 program on all ranks",
                ranks.rank,
                build_id(),
                file.build_id
            )));
        }
        Ok(file)
    }
}

impl ByFile {
    fn wait(&self) -> Result<SchedulerFile> {
        let start = Instant::now();
        let (mut told, mut pause) = (false, LOOK[0]);
        while !self.path.exists() {
            if start.elapsed() > COMING {
                return Err(Error::Usage(format!(
                    "the first task of the step wrote no scheduler file {} within {COMING:?}: did it start, and \
                     do all nodes share that directory? RANKINE_HOME names another",
                    self.path.display()
                )));
            }
            if !told && start.elapsed() > COMING / 6 {
                told = true;
                tracing::warn!(file = %self.path.display(), "waits for the first task of the step");
            }
            thread::sleep(pause);
            pause = (pause * 5 / 4).min(LOOK[1]);
            // Network file systems look again when the directory is read.
            if let Some(directory) = self.path.parent() {
                let _ = fs::read_dir(directory).map(Iterator::count);
            }
        }
        SchedulerFile::read(&self.path)
    }
}

impl Drop for ByFile {
    fn drop(&mut self) {
        if self.written {
            let _ = fs::remove_file(&self.path);
        }
    }
}
