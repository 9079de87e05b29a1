//! Clusters whose workers are jobs: they grow, shrink, follow their load, and lose nothing.

use std::{
    env,
    io::Read,
    panic::{self, AssertUnwindSafe},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rankine::{
    SlurmCluster, blocking,
    slurm::{Job, JobId, JobState, Launcher, adaptive::Policy},
};

use crate::{BOUND, Failed, Outcome, Place, count, slow, until, well};

/// A cluster whose workers are jobs, with what it needs here.
fn cluster(place: &Place, change: impl FnOnce(&mut Job) -> Outcome) -> Result<SlurmCluster, Failed> {
    let mut job = SlurmCluster::worker_job()?;
    job.cpus_per_task = Some(count(1));
    change(&mut job)?;
    let builder = SlurmCluster::builder().job(job).directory(place.directory.path());
    Ok(builder.look_every(Duration::from_millis(300)).start()?)
}

fn workers(client: &blocking::Client) -> usize {
    client.scheduler_info().map_or(0, |info| info.workers.len())
}

static RUNS: AtomicUsize = AtomicUsize::new(0);

/// How often this worker's process ran a task of the test's.
fn counted(x: i64) -> i64 {
    RUNS.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(30));
    x
}

pub(crate) fn a_cluster_of_jobs_grows_and_shrinks_and_loses_nothing() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |_| Ok(()))?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(3);
    client.wait_for_workers(3)?;
    let held = client.map(counted, 0..60);
    client.wait(&held, rankine::ReturnWhen::AllCompleted, Some(BOUND))?;
    let before: usize = client.run(|| RUNS.load(Ordering::Relaxed), ())?.values().sum();
    assert_eq!(before, 60);
    cluster.scale(1);
    until("two jobs go", || workers(&client) == 1 && cluster.jobs().len() == 1)?;
    // All results are there, and none had to be computed again.
    assert_eq!(client.gather(&held)?, (0..60).collect::<Vec<i64>>());
    let held_here: usize = client.run(|| RUNS.load(Ordering::Relaxed), ())?.values().sum();
    assert!(held_here < 60, "one worker ran {held_here} of the tasks; the others' results moved to it");
    Ok(())
}

pub(crate) fn workers_at_their_time_limit_hand_over_and_are_replaced() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |job| {
        job.time = Some("1".parse()?);
        Ok(())
    })?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(2);
    client.wait_for_workers(2)?;
    let first = cluster.jobs();
    // The second job begins later, and so ends later.
    let held = client.map(counted, 0..20);
    client.wait(&held, rankine::ReturnWhen::AllCompleted, Some(BOUND))?;
    until("the jobs are others", || {
        let now = cluster.jobs();
        now.len() == 2 && first.iter().all(|job| !now.contains(job)) && workers(&client) == 2
    })?;
    assert_eq!(client.gather(&held)?, (0..20).collect::<Vec<i64>>());
    let again: usize = client.run(|| RUNS.load(Ordering::Relaxed), ())?.values().sum();
    assert_eq!(again, 0, "no result was computed again");
    Ok(())
}

pub(crate) fn workers_that_are_preempted_are_not_their_tasks_fault() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |job| {
        job.cpus_per_task = Some(count(4));
        Ok(())
    })?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(4);
    client.wait_for_workers(4)?;
    let slow = client.map(
        |x: i64| {
            thread::sleep(Duration::from_millis(400));
            x
        },
        0..60,
    );
    // Whoever comes first takes whole nodes.
    let mut urgent = place.job(Launcher::FaultTolerant, &["sum"])?;
    (urgent.nodes, urgent.cpus_per_task) = (count(2), Some(count(4)));
    urgent.partition = Some("urgent".parse()?);
    well(&place.run(&urgent)?, "328350 on 1\n")?;
    assert_eq!(client.gather(&slow)?, (0..60).collect::<Vec<i64>>());
    Ok(())
}

pub(crate) fn a_cluster_follows_its_load() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |_| Ok(()))?;
    let client = blocking::Client::from(cluster.client()?);
    let mut policy = Policy::new(0, 3, cluster.threads_per_job());
    (policy.target, policy.pace) = (Duration::from_secs(1), count(3));
    cluster.adapt_by(policy)?;
    thread::sleep(Duration::from_secs(2));
    assert!(cluster.jobs().is_empty(), "nobody wants a worker");
    let slow = client.map(slow, 0..100);
    until("there are three", || workers(&client) == 3)?;
    assert_eq!(client.gather(&slow)?, (0..100).collect::<Vec<i64>>());
    drop(slow);
    until("all go", || workers(&client) == 0 && cluster.jobs().is_empty())
}

/// What the job that it runs in asked for is not what its worker jobs ask for.
pub(crate) fn a_cluster_within_a_job_has_jobs_of_its_own() -> Outcome {
    let place = Place::new()?;
    let mut job = place.job(Launcher::FaultTolerant, &["a_cluster_of_jobs_grows"])?;
    job.environment.retain(|variable| variable.name() != "JOBS_PROGRAM");
    (job.nodes, job.memory) = (count(1), Some("600M".parse()?));
    let ended = place.run(&job)?;
    assert!(ended.status == 0 && ended.said.contains("1 passed"), "{}", ended.all());
    Ok(())
}

pub(crate) fn a_cluster_whose_jobs_are_refused_says_so() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |job| {
        job.directives = vec!["--reservation=nobodys".parse()?];
        Ok(())
    })?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(1);
    let error = client.submit(slow, (1,)).result().expect_err("nobody can run it").to_string();
    assert!(error.contains("3 submissions") && error.contains("eservation"), "{error}");
    Ok(())
}

/// With a plain `main`, which knows nothing of signals.
pub(crate) fn a_signal_to_a_program_with_a_cluster_ends_its_jobs() -> Outcome {
    let place = Place::new()?;
    let program = env::current_exe()?;
    let mut child = Command::new(program)
        .args(["a_cluster_of_jobs_grows", "--test-threads", "1"])
        .env("RANKINE_LOG", "rankine=info")
        // What it leaves there, since it has no time to clear up, goes with this test's directory.
        .env("TMPDIR", place.directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mine =
        |jobs: Vec<rankine::slurm::Queued>| jobs.into_iter().filter(|job| job.state == JobState::Running);
    let running = || place.slurm.my_jobs().map_or(0, |jobs| mine(jobs).count());
    let started = until("its jobs run", || running() == 3);
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success();
    let status = child.wait()?;
    started?;
    assert!(signalled && status.code() == Some(130), "{status}");
    let mut said = String::new();
    child.stderr.take().ok_or("no standard error")?.read_to_string(&mut said)?;
    assert!(said.contains("submit 3: 0 jobs, 3 wanted"), "it says why: {said}");
    // Nor one that is completing: where a step of it starts late, Slurm makes the job's TMPDIR, if it is not there.
    until("no job is left", || place.slurm.my_jobs().is_ok_and(|jobs| jobs.is_empty()))
}

pub(crate) fn a_cluster_whose_jobs_fail_says_so() -> Outcome {
    let place = Place::new()?;
    let cluster = cluster(&place, |job| {
        // It has nothing to do with Rankine, and does not want the arguments.
        job.program = "/bin/sleep".into();
        Ok(())
    })?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(1);
    let error = client.submit(slow, (1,)).result().expect_err("nobody can run it").to_string();
    assert!(error.contains("3 worker jobs in a row") && error.contains("sleep: "), "{error}");
    Ok(())
}

pub(crate) fn a_cluster_leaves_no_job_however_it_ends() -> Outcome {
    let place = Place::new()?;
    let none_left = |jobs: &[JobId]| {
        until("no job is left", || {
            place.slurm.jobs(jobs).is_ok_and(|jobs| jobs.iter().all(|job| job.state.is_over()))
        })
    };
    let cluster = cluster(&place, |_| Ok(()))?;
    let client = blocking::Client::from(cluster.client()?);
    cluster.scale(2);
    client.wait_for_workers(2)?;
    cluster.scale(40);
    until("some wait for room", || cluster.jobs().len() > 20)?;
    let jobs = cluster.jobs();
    let (start, file) = (Instant::now(), cluster.scheduler_file().to_owned());
    assert!(file.exists());
    drop(cluster);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    none_left(&jobs)?;
    assert!(!file.exists());
    // The same where the program panics.
    let jobs = Mutex::new(Vec::new());
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
        let cluster = self::cluster(&place, |_| Ok(())).expect("it starts");
        cluster.scale(2);
        let client = blocking::Client::from(cluster.client().expect("it is there"));
        client.wait_for_workers(2).expect("they come");
        *jobs.lock().expect("nobody panicked with it") = cluster.jobs();
        panic!("the program's own mistake");
    }));
    assert!(panicked.is_err());
    let jobs = jobs.into_inner()?;
    assert_eq!(jobs.len(), 2);
    none_left(&jobs)
}
