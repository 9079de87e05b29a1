//! Against a real Slurm: `tests/slurm/tier` brings one up and runs these.

use std::{
    env,
    num::NonZeroU32,
    path::Path,
    process::Command,
    slice,
    thread::sleep,
    time::{Duration, Instant},
};

use rankine_slurm::{Error, Job, JobId, JobState, Launcher, Pmi, Queued, Script, Slurm};

fn slurm() -> Slurm {
    Slurm::default()
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// `sh -c COMMANDS` on one node for at most five minutes, its output in `directory`.
fn shell(commands: &str, directory: &Path) -> Job {
    let mut job = Job::new("sh");
    job.arguments = vec!["-c".into(), commands.into()];
    job.time = Some("5".parse().unwrap());
    job.output = Some(format!("{}/%x %j.out", directory.display()).parse().unwrap());
    // It starts one process without any MPI.
    job.launcher = Launcher::Srun(Pmi::Pmix);
    job
}

fn submit(job: &Job) -> JobId {
    slurm().check(job).unwrap();
    slurm().submit(&Script::new(job).unwrap()).unwrap()
}

/// Waits for a job to be as it should be; what it never becomes is told.
fn wait(id: &JobId, what: impl Fn(&Queued) -> bool) -> Queued {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let job = slurm().job(id).unwrap().remove(0);
        if what(&job) {
            return job;
        }
        assert!(Instant::now() < end && !job.state.is_over(), "{job:?}\n{}", output(id));
        sleep(Duration::from_millis(100));
    }
}

fn end(id: &JobId) -> Queued {
    wait(id, |job| job.state.is_over())
}

fn output(id: &JobId) -> String {
    let mut text = Vec::new();
    slurm().log(id).unwrap().copy(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn a_job_runs_with_its_arguments_and_environment_and_its_output_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let mut job = shell(
        "printf '%s|' \"$GREETING\" \"$RANKINE_TRANSPORT\" \"$SLURM_JOB_NUM_NODES\" \"$@\"",
        directory.path(),
    );
    job.arguments.extend(["name", "it's", "two  words", "$HOME", "*", ""].map(String::from));
    job.environment = vec!["GREETING=good\nmorning".parse().unwrap()];
    job.set("transport", "tcp,shm").unwrap();
    let id = submit(&job);
    assert_eq!(end(&id).state, JobState::Completed, "{}", output(&id));
    assert_eq!(output(&id), "good\nmorning|tcp,shm|1|it's|two  words|$HOME|*||");
    let log = slurm().log(&id).unwrap();
    assert_eq!(log.path(), directory.path().join(format!("sh {id}.out")));
    assert_eq!(slurm().record(&id).unwrap()[0].exit, Some((0, 0)));
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn tasks_and_cpus_are_those_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut job = shell("echo \"$(hostname) $SLURM_NTASKS $SLURM_CPUS_PER_TASK\"", directory.path());
    (job.nodes, job.tasks_per_node, job.cpus_per_task) = (count(2), count(2), Some(count(2)));
    for launcher in [Launcher::Srun(Pmi::Pmix), Launcher::Srun(Pmi::Pmi2), Launcher::FaultTolerant] {
        job.launcher = launcher;
        let id = submit(&job);
        assert_eq!(end(&id).state, JobState::Completed, "{}", output(&id));
        let output = output(&id);
        let mut lines: Vec<&str> = output.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!((lines.len(), output.lines().count()), (2, 4), "{output}");
        assert!(lines.iter().all(|line| line.starts_with("node") && line.ends_with(" 4 2")), "{output}");
    }
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn failures_time_limits_and_cancellations_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let failed = submit(&shell("exit 7", directory.path()));
    // The shortest limit there is. The signal goes to all processes of the job.
    let mut late = shell("trap 'echo warned' USR1; while :; do sleep 1; done", directory.path());
    late.time = Some("1".parse().unwrap());
    late.signal = Some(count(1));
    let late = submit(&late);
    let cancelled = submit(&shell("echo begun; sleep 200", directory.path()));
    // Slurm is slow to end a job that is just being started.
    wait(&cancelled, |_| output(&cancelled) == "begun\n");
    slurm().cancel(slice::from_ref(&cancelled)).unwrap();
    assert_eq!(end(&cancelled).state, JobState::Cancelled);
    let ended = end(&failed);
    assert_eq!((&ended.state, ended.reason.as_str()), (&JobState::Failed, "NonZeroExitCode"));
    assert_eq!(slurm().record(&failed).unwrap()[0].exit, Some((7, 0)));
    let running = wait(&late, |job| job.state == JobState::Running);
    assert!(running.left.is_some_and(|left| left <= Duration::from_secs(60)), "{running:?}");
    let end = Instant::now() + Duration::from_secs(100);
    while !slurm().job(&late).unwrap()[0].state.is_over() {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(500));
    }
    assert_eq!(slurm().job(&late).unwrap()[0].state, JobState::TimedOut);
    assert!(output(&late).contains("warned"), "{}", output(&late));
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn a_fault_tolerant_job_ends_with_its_programs_status() {
    let directory = tempfile::tempdir().unwrap();
    let status = |commands: &str| {
        let mut job = shell(commands, directory.path());
        (job.nodes, job.launcher) = (count(3), Launcher::FaultTolerant);
        let id = submit(&job);
        let ended = end(&id);
        (ended.state, slurm().record(&id).unwrap()[0].exit)
    };
    // Workers die; the first task tells of its own end.
    let dying = |own: &str| format!("[ \"$SLURM_PROCID\" = 0 ] || kill -9 $$; sleep 1; {own}");
    let told = |own: u8| format!("echo {own} >\"$RANKINE_STATUS\"; exit {own}");
    assert_eq!(status(&dying(&told(0))), (JobState::Completed, Some((0, 0))));
    assert_eq!(status(&dying(&told(5))), (JobState::Failed, Some((5, 0))));
    // Without its word srun's is all there is.
    let (state, exit) = status(&dying("exit 0"));
    assert_eq!(state, JobState::Failed, "{exit:?}");
    // A program that is cancelled may tell as late as it likes: nothing is left of it.
    let late = "trap 'sleep 1; echo 143 >\"$RANKINE_STATUS\"; exit 143' TERM; echo \"$RANKINE_STATUS\"; sleep 200 & wait";
    let mut job = shell(late, directory.path());
    job.launcher = Launcher::FaultTolerant;
    let id = submit(&job);
    wait(&id, |_| output(&id).ends_with('\n'));
    let file = output(&id).lines().next().unwrap().to_owned();
    let place = Path::new(&file).parent().unwrap();
    assert!(place.is_dir(), "{file}");
    slurm().cancel(slice::from_ref(&id)).unwrap();
    assert_eq!(end(&id).state, JobState::Cancelled);
    let end = Instant::now() + Duration::from_secs(20);
    while place.exists() {
        assert!(Instant::now() < end, "{file} is left");
        sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn elements_of_an_array_run_a_few_at_a_time_each_with_its_own_output() {
    let directory = tempfile::tempdir().unwrap();
    let mut job = shell("echo element $SLURM_ARRAY_TASK_ID; sleep 1", directory.path());
    job.output = Some(format!("{}/%A_%a.out", directory.path().display()).parse().unwrap());
    job.array = Some("1,3-5%2".parse().unwrap());
    let id = submit(&job);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let elements = slurm().job(&id).unwrap();
        let running = elements.iter().filter(|element| element.state == JobState::Running).count();
        assert!(running <= 2 && Instant::now() < end, "{elements:?}");
        if elements.len() == 4 && elements.iter().all(|element| element.state == JobState::Completed) {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    for element in [1, 3, 4, 5] {
        assert_eq!(output(&format!("{id}_{element}").parse().unwrap()), format!("element {element}\n"));
    }
    let told = slurm().log(&id).unwrap_err().to_string();
    assert!(told.ends_with(&format!("name one of {id}_1, {id}_3, {id}_4, {id}_5")), "{told}");
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn a_job_waits_for_another_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let first = submit(&shell("sleep 2", directory.path()));
    let mut second = shell("true", directory.path());
    second.dependency = Some(format!("afterok:{first}").parse().unwrap());
    let second = submit(&second);
    let waiting = slurm().job(&second).unwrap().remove(0);
    assert!(
        waiting.state.is_waiting() && waiting.reason.explained().contains("it depends on"),
        "{waiting:?}"
    );
    let mine: Vec<JobId> = slurm().my_jobs().unwrap().into_iter().map(|job| job.id).collect();
    assert!(mine.contains(&first) && mine.contains(&second));
    assert_eq!(end(&second).state, JobState::Completed);
    assert_eq!(end(&first).state, JobState::Completed);
    let both = slurm().jobs(&[first, second, 999_999.into()]).unwrap();
    assert_eq!(both.len(), 2);
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn what_cannot_run_is_refused_before_it_is_submitted() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |change: fn(&mut Job)| {
        let mut job = shell("true", directory.path());
        change(&mut job);
        slurm().check(&job).unwrap_err().to_string()
    };
    assert!(refused(|job| job.nodes = count(5)).contains("the partition debug has 4"));
    assert!(refused(|job| job.tasks_per_node = count(5)).starts_with("--tasks-per-node cannot be 5"));
    assert!(refused(|job| job.memory = Some("5G".parse().unwrap())).starts_with("--mem cannot be 5G"));
    let short = |job: &mut Job| {
        (job.partition, job.time) = (Some("short".parse().unwrap()), Some("11".parse().unwrap()))
    };
    assert!(refused(short).contains("allows 00:10:00"));
    assert!(refused(|job| job.partition = Some("nowhere".parse().unwrap())).contains("debug, short, urgent"));
    assert!(
        refused(|job| job.program = "./nothing".into()).starts_with("--program cannot be ./nothing: no such")
    );
    assert!(refused(|job| job.program = "./Cargo.toml".into()).contains("no such program"));
    assert!(
        refused(|job| job.output = Some("logs/%j".parse().unwrap()))
            .contains("no directory logs: make it first")
    );
    // What only Slurm itself knows, it says, and what to do.
    let mut job = shell("true", directory.path());
    job.constraint = Some("quantum".parse().unwrap());
    let script = Script::new(&job).unwrap();
    for refusal in [slurm().submit(&script).map(|id| id.to_string()), slurm().test(&script)] {
        let told = refusal.unwrap_err().to_string();
        assert!(told.contains("nvalid feature") && told.contains("sinfo -o '%P %f'"), "{told}");
    }
    job.constraint = None;
    let told = slurm().test(&Script::new(&job).unwrap()).unwrap();
    assert!(told.contains("to start at"), "{told}");
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn jobs_that_nobody_knows_are_said_to_be_unknown() {
    let nobody: JobId = 999_999.into();
    let unknown = |error: Error| assert!(matches!(error, Error::UnknownJob(_)), "{error}");
    unknown(slurm().job(&nobody).unwrap_err());
    unknown(slurm().record(&nobody).unwrap_err());
    unknown(slurm().log(&nobody).unwrap_err());
    assert_eq!(slurm().jobs(slice::from_ref(&nobody)).unwrap(), []);
    slurm().cancel(&[nobody]).unwrap();
}

/// A controller that hangs is stopped, so no other test runs beside it: the tier runs it alone.
#[test]
#[ignore = "wants a Slurm to itself: tests/slurm/tier"]
fn a_controller_that_hangs_is_given_up() {
    let conf = env::var("SLURM_CONF").unwrap();
    let signal = |signal: &str| {
        let pattern = format!("^slurmctld .*{conf}");
        assert!(Command::new("pkill").args([signal, "-f", &pattern]).status().unwrap().success());
    };
    signal("-STOP");
    let begun = Instant::now();
    let told = slurm().limit(Duration::from_secs(1)).my_jobs().unwrap_err();
    signal("-CONT");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(
        told.to_string().starts_with("`squeue --me --noheader") && told.to_string().contains("within 1 s"),
        "{told}"
    );
    assert_eq!(slurm().my_jobs().unwrap(), []);
}
