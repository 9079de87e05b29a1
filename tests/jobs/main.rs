//! Programs of Rankine's as jobs of a real Slurm, as `tests/slurm/tier` brings one up: how they begin, what they
//! bear, and how they end.
//!
//! This binary is the program as well: with `JOBS_PROGRAM` set its `main` is what a user would write.

mod clusters;

use std::{
    env, fs,
    num::NonZeroU32,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use clusters::*;
use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{
    Client,
    slurm::{Job, JobId, JobState, Launcher, Script, Slurm, Variable},
};

type Outcome = Result<(), Failed>;

/// A job that takes longer does not end.
const BOUND: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    // As a worker job of the clusters below.
    rankine::init();
    if env::var_os("JOBS_PROGRAM").is_some() {
        return rankine::run(program);
    }
    let arguments = Arguments::from_args();
    if env::var_os("SLURM_CONF").is_none() {
        println!("SKIPPED jobs: no Slurm here; tests/slurm/tier brings one up");
        return ExitCode::SUCCESS;
    }
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {$(trials.push(Trial::test(stringify!($name), $name));)*};
    }
    #[cfg(feature = "mpi")]
    trials!(ranks_by_mpirun, ranks_by_srun, a_rank_that_dies_under_mpi_ends_the_job);
    trials!(
        tasks_without_mpi,
        workers_have_their_part_of_a_jobs_memory,
        a_node_that_fails_costs_its_tasks_alone,
        the_programs_status_is_the_jobs,
        another_task_cannot_run_the_program,
        an_array_of_jobs,
        a_cancelled_job_leaves_no_process,
        a_job_that_runs_out_of_time_ends_in_order,
        a_job_that_is_queued_again_begins_anew,
        a_program_that_is_not_there_is_named,
        a_program_that_crashes_is_seen,
        another_executable_on_a_node_is_refused,
        a_cluster_of_jobs_grows_and_shrinks_and_loses_nothing,
        workers_at_their_time_limit_hand_over_and_are_replaced,
        workers_that_are_preempted_are_not_their_tasks_fault,
        a_cluster_follows_its_load,
        a_cluster_within_a_job_has_jobs_of_its_own,
        a_cluster_whose_jobs_are_refused_says_so,
        a_signal_to_a_program_with_a_cluster_ends_its_jobs,
        a_cluster_whose_jobs_fail_says_so,
        a_cluster_leaves_no_job_however_it_ends,
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn sum(numbers: Vec<i64>) -> i64 {
    numbers.iter().sum()
}

/// Takes some time, and counts.
fn slow(x: i64) -> i64 {
    thread::sleep(Duration::from_millis(200));
    x
}

/// `sum` prints a sum of squares and how many workers there were; `memory` the MiB that each worker may use; `slow N` a
/// sum after N tasks of 0.2 s; `exit` ends with a status; `die` kills a worker; `wait` waits.
async fn program(client: Client) -> rankine::Result<ExitCode> {
    let words = rankine::args();
    let number = words.get(1).and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
    match words.first().map_or("sum", String::as_str) {
        "sum" => {
            let workers = client.scheduler_info().await?.workers.len();
            let squares = client.map(|x: i64| x * x, 0..100);
            println!("{} on {workers}", client.submit(sum, (squares,)).await?);
        }
        "memory" => {
            let workers = client.scheduler_info().await?.workers;
            let limits: Vec<_> = workers.iter().map(|w| (w.info.memory_limit >> 20).to_string()).collect();
            println!("{}", limits.join(" "));
        }
        "slow" => {
            println!("begins");
            let slow = client.map(slow, 0..number);
            println!("{}", client.submit(sum, (slow,)).await?);
        }
        "exit" => return Ok(ExitCode::from(number as u8)),
        "die" => {
            let die = || drop(Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status());
            client.submit(die, ()).await?;
        }
        _ => {
            println!("waits");
            client.submit(|| thread::sleep(Duration::from_secs(600)), ()).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A directory that all nodes share, with what jobs write.
struct Place {
    directory: tempfile::TempDir,
    slurm: Slurm,
}

/// How a job ended.
struct Ended {
    state: JobState,
    /// Its script's status.
    status: i32,
    said: String,
    took: Duration,
}

impl Ended {
    fn all(&self) -> String {
        format!("{} with {} after {:.1?}\n{}", self.state, self.status, self.took, self.said)
    }
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("it is not zero")
}

impl Drop for Place {
    /// A job that was cancelled may still write its last words: what is removed meanwhile is there again.
    fn drop(&mut self) {
        let started = Instant::now();
        while fs::remove_dir_all(self.directory.path())
            .is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
            && started.elapsed() < Duration::from_secs(5)
        {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Place {
    fn new() -> Result<Self, Failed> {
        Ok(Self { directory: tempfile::tempdir()?, slurm: Slurm::default() })
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    /// This program on three nodes.
    fn job(&self, launcher: Launcher, words: &[&str]) -> Result<Job, Failed> {
        let mut job = Job::new(env::current_exe()?.to_string_lossy());
        job.arguments = words.iter().map(|word| (*word).to_owned()).collect();
        job.nodes = count(3);
        job.launcher = launcher;
        job.output = Some(self.output().to_string_lossy().parse()?);
        job.environment = vec![
            Variable::new("JOBS_PROGRAM", "1")?,
            Variable::new("RANKINE_HOME", &self.directory.path().join("home").to_string_lossy())?,
        ];
        // Ranks give way to each other on a machine with fewer cores.
        for name in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_mpi_yield_when_idle"] {
            job.environment.push(Variable::new(&format!("OMPI_{name}"), "1")?);
        }
        job.environment.push(Variable::new("OMPI_MCA_hwloc_base_binding_policy", "none")?);
        // The nodes share this machine's /dev/shm, where the segments of one would be those of another.
        job.environment.push(Variable::new("OMPI_MCA_btl", "self,tcp")?);
        Ok(job)
    }

    fn submit(&self, job: &Job) -> Result<JobId, Failed> {
        self.slurm.check(job)?;
        Ok(self.slurm.submit(&Script::new(job)?)?)
    }

    fn run(&self, job: &Job) -> Result<Ended, Failed> {
        let id = self.submit(job)?;
        self.end(&id)
    }

    fn state(&self, id: &JobId) -> Result<JobState, Failed> {
        Ok(self.slurm.job(id)?.first().ok_or("Slurm knows nothing of it")?.state.clone())
    }

    fn end(&self, id: &JobId) -> Result<Ended, Failed> {
        let start = Instant::now();
        loop {
            let state = self.state(id)?;
            if state.is_over() {
                let record = self.slurm.record(id)?;
                let status = record.first().and_then(|record| record.exit).map_or(-1, |(status, _)| status);
                let said = fs::read_to_string(self.output()).unwrap_or_default();
                return Ok(Ended { state, status, said, took: start.elapsed() });
            }
            if start.elapsed() > BOUND {
                self.slurm.cancel(std::slice::from_ref(id))?;
                let said = fs::read_to_string(self.output()).unwrap_or_default();
                return Err(format!("job {id} does not end ({state}): {said}").into());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the job has written this.
    fn wrote(&self, text: &str) -> Outcome {
        until(&format!("the job writes {text}"), || {
            fs::read_to_string(self.output()).is_ok_and(|said| said.contains(text))
        })
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > BOUND {
            return Err(format!("{what}: that did not come true").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn well(ended: &Ended, said: &str) -> Outcome {
    if (&ended.state, ended.status, &*ended.said) != (&JobState::Completed, 0, said) {
        return Err(ended.all().into());
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn ranks_by_mpirun() -> Outcome {
    let place = Place::new()?;
    well(&place.run(&place.job(Launcher::Mpirun, &["sum"])?)?, "328350 on 2\n")
}

#[cfg(feature = "mpi")]
fn ranks_by_srun() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::Srun(rankine::slurm::Pmi::Pmix), &["sum"])?;
    job.tasks_per_node = count(2);
    well(&place.run(&job)?, "328350 on 5\n")
}

#[cfg(feature = "mpi")]
fn a_rank_that_dies_under_mpi_ends_the_job() -> Outcome {
    let place = Place::new()?;
    let ended = place.run(&place.job(Launcher::Srun(rankine::slurm::Pmi::Pmix), &["die"])?)?;
    assert!(ended.state == JobState::Failed && ended.took < Duration::from_secs(30), "{}", ended.all());
    // Where srun lets the others go on, the scheduler misses the dead one, and says what could be done.
    let wrapped = format!("srun --mpi=pmix {} die", env::current_exe()?.display());
    let output = place.output();
    let submitted = Command::new("sbatch")
        .args(["--parsable", "--nodes=3", "--ntasks-per-node=1", "--wrap", &wrapped, "--output"])
        .arg(&output)
        .env("JOBS_PROGRAM", "1")
        .env("OMPI_MCA_btl", "self,tcp")
        .output()?;
    let id: JobId = String::from_utf8(submitted.stdout)?.trim().parse()?;
    let ended = place.end(&id)?;
    assert!(ended.said.contains("rank-") && ended.said.contains("srun --mpi=none"), "{}", ended.all());
    Ok(())
}

fn tasks_without_mpi() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["sum"])?;
    well(&place.run(&job)?, "328350 on 2\n")?;
    (job.nodes, job.tasks_per_node) = (count(2), count(4));
    well(&place.run(&job)?, "328350 on 7\n")?;
    // The scheduler file and the status went with them.
    let left: Vec<_> = fs::read_dir(place.directory.path().join("home"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

fn workers_have_their_part_of_a_jobs_memory() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["memory"])?;
    job.memory = Some("1200M".parse()?);
    well(&place.run(&job)?, "1200 1200\n")?;
    // Of what the tasks of a node share, each has as much.
    (job.nodes, job.tasks_per_node) = (count(2), count(3));
    well(&place.run(&job)?, "400 400 400 400 400\n")?;
    // Where a job asks for none it has so much for each of its CPUs.
    (job.tasks_per_node, job.memory) = (count(2), None);
    well(&place.run(&job)?, "500 500 500\n")
}

fn a_node_that_fails_costs_its_tasks_alone() -> Outcome {
    let place = Place::new()?;
    let directory = env::var("RANKINE_SLURM")?;
    let mut job = place.job(Launcher::FaultTolerant, &["slow", "60"])?;
    job.nodes = count(3);
    job.directives = vec!["--nodelist=node1,node2,node4".parse()?];
    let id = place.submit(&job)?;
    place.wrote("begins")?;
    thread::sleep(Duration::from_secs(1));
    let cluster =
        |action: &str| Command::new("tests/slurm/cluster").args([action, &directory, "node4"]).status();
    assert!(cluster("crash")?.success());
    let ended = place.end(&id);
    assert!(cluster("restore")?.success());
    let ended = ended?;
    assert_eq!((&ended.state, ended.status), (&JobState::Completed, 0), "{}", ended.all());
    assert!(ended.said.contains("begins\n") && ended.said.contains("\n1770\n"), "{}", ended.all());
    until("the node is back", || {
        let states = Command::new("sinfo").args(["--noheader", "--nodes=node4", "--format=%T"]).output();
        states.is_ok_and(|output| output.stdout.starts_with(b"idle"))
    })
}

fn the_programs_status_is_the_jobs() -> Outcome {
    let place = Place::new()?;
    let ended = place.run(&place.job(Launcher::FaultTolerant, &["exit", "3"])?)?;
    assert_eq!((&ended.state, ended.status), (&JobState::Failed, 3), "{}", ended.all());
    // What srun says of it.
    assert!(ended.said.lines().all(|line| line.starts_with("srun: ")), "{}", ended.all());
    Ok(())
}

fn another_task_cannot_run_the_program() -> Outcome {
    let place = Place::new()?;
    let ended = place.run(&place.job(Launcher::FaultTolerant, &["exit", "3", "--client-rank", "1"])?)?;
    assert_eq!((&ended.state, ended.status), (&JobState::Failed, 1), "{}", ended.all());
    assert_eq!(ended.said.matches("--client-rank is for ranks of MPI").count(), 1, "{}", ended.all());
    Ok(())
}

fn an_array_of_jobs() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["sum"])?;
    (job.nodes, job.tasks_per_node, job.array) = (count(1), count(2), Some("0-2".parse()?));
    job.output = Some(place.directory.path().join("out-%a").to_string_lossy().parse()?);
    let id = place.submit(&job)?;
    until("all elements end", || {
        place.slurm.job(&id).is_ok_and(|jobs| jobs.iter().all(|job| job.state.is_over()))
    })?;
    for element in 0..3 {
        let said = fs::read_to_string(place.directory.path().join(format!("out-{element}")))?;
        assert_eq!(said, "328350 on 1\n", "element {element}");
    }
    Ok(())
}

/// The processes of a job.
fn processes(id: &JobId) -> Vec<u32> {
    let (number, marked) = (format!("SLURM_JOB_ID={id}"), "JOBS_PROGRAM=1");
    let is_of = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variables: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
        variables.contains(&number.as_bytes()) && variables.contains(&marked.as_bytes())
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_of).collect()
}

fn a_cancelled_job_leaves_no_process() -> Outcome {
    let place = Place::new()?;
    let id = place.submit(&place.job(Launcher::FaultTolerant, &["wait"])?)?;
    place.wrote("waits")?;
    assert!(processes(&id).len() >= 3, "{:?}", processes(&id));
    place.slurm.cancel(std::slice::from_ref(&id))?;
    let ended = place.end(&id)?;
    assert_eq!(ended.state, JobState::Cancelled, "{}", ended.all());
    assert!(ended.took < Duration::from_secs(15), "{}", ended.all());
    until("its processes end", || processes(&id).is_empty())?;
    assert!(!ended.said.contains("panicked"), "{}", ended.all());
    Ok(())
}

/// Slurm sends the signal up to a minute early, so of a minute's job at once.
fn a_job_that_runs_out_of_time_ends_in_order() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["wait"])?;
    (job.time, job.signal) = (Some("1".parse()?), NonZeroU32::new(50));
    let id = place.submit(&job)?;
    let ended = place.end(&id)?;
    // 128 and SIGUSR1.
    assert_eq!((&ended.state, ended.status), (&JobState::Failed, 138), "{}", ended.all());
    assert!(ended.said.starts_with("waits\n") && !ended.said.contains("Error"), "{}", ended.all());
    until("its processes end", || processes(&id).is_empty())
}

fn a_job_that_is_queued_again_begins_anew() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["slow", "40"])?;
    job.directives = vec!["--open-mode=append".parse()?, "--requeue".parse()?];
    let id = place.submit(&job)?;
    place.wrote("begins")?;
    let scontrol = |words: &[&str]| Command::new("scontrol").args(words).status();
    assert!(scontrol(&["requeue", &id.to_string()])?.success());
    until("it waits again", || place.state(&id).is_ok_and(|state| state.is_waiting()))?;
    // Slurm holds it for two minutes otherwise, in which its nodes clear up after the first run.
    until("its processes end", || processes(&id).is_empty())?;
    thread::sleep(Duration::from_secs(2));
    until("it may begin", || {
        scontrol(&["update", &format!("JobId={id}"), "StartTime=now"]).is_ok_and(|status| status.success())
    })?;
    let ended = place.end(&id)?;
    assert_eq!((&ended.state, ended.status), (&JobState::Completed, 0), "{}", ended.all());
    assert_eq!(ended.said.matches("begins").count(), 2, "{}", ended.all());
    assert!(ended.said.ends_with("\n780\n"), "{}", ended.all());
    Ok(())
}

fn a_program_that_is_not_there_is_named() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &[])?;
    job.program = "/nowhere/program".into();
    // Mostly that is seen before.
    let refused = place.submit(&job).expect_err("it is not there");
    assert!(refused.message().is_some_and(|said| said.contains("--program cannot be /nowhere/program")));
    let id = place.slurm.submit(&Script::new(&job)?)?;
    let ended = place.end(&id)?;
    assert_eq!(ended.state, JobState::Failed, "{}", ended.all());
    assert!(ended.said.contains("/nowhere/program: No such file"), "{}", ended.all());
    Ok(())
}

fn a_program_that_crashes_is_seen() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["-c", "kill -SEGV $$"])?;
    job.program = "/bin/sh".into();
    let ended = place.run(&job)?;
    assert_eq!(ended.state, JobState::Failed, "{}", ended.all());
    assert!(ended.said.contains("Segmentation fault"), "{}", ended.all());
    Ok(())
}

/// The same program of another build, on one node: told by the build id that the linker left in it.
fn another_executable_on_a_node_is_refused() -> Outcome {
    let place = Place::new()?;
    let (mine, other) = (env::current_exe()?, place.directory.path().join("other"));
    let mut bytes = fs::read(&mine)?;
    let id = (0..20).map(|i| u8::from_str_radix(&rankine::task::build_id()[2 * i..2 * i + 2], 16));
    let id: Vec<u8> = id.collect::<Result<_, _>>()?;
    let at = bytes.windows(20).position(|window| window == id).ok_or("the build id is not in the file")?;
    bytes[at] ^= 1;
    fs::write(&other, bytes)?;
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755))?;
    let script =
        format!("[ $SLURM_PROCID = 2 ] && exec {} sum; exec {} sum", other.display(), mine.display());
    let mut job = place.job(Launcher::FaultTolerant, &["-c", &script])?;
    job.program = "/bin/sh".into();
    let id = place.submit(&job)?;
    place.wrote("rank 2 runs another executable")?;
    // The others would wait for it for a minute.
    place.slurm.cancel(std::slice::from_ref(&id))?;
    place.end(&id).map(drop)
}
