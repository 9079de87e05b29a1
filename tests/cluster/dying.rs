//! Workers and whole clusters that end, asked to or not.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rankine::{Error, FailureKind, LocalCluster, ReturnWhen, Status, blocking::Client};

use super::{Outcome, inc, slow_inc, until};

fn kill(pid: u32) {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
}

pub fn a_killed_worker_is_made_up_for() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).start()?;
    let client = Client::from(cluster.client()?);
    let done = client.map(|x: i64| vec![x; 2000], 0..20);
    client.wait(&done, ReturnWhen::AllCompleted, None)?;
    let running = client.map(slow_inc, 0..20);
    thread::sleep(Duration::from_millis(60));
    let before = cluster.pids();
    kill(before[0]);
    // What only the dead one held is computed again, what it ran runs elsewhere.
    assert_eq!(client.gather(&done)?, (0..20).map(|x| vec![x; 2000]).collect::<Vec<_>>());
    assert_eq!(client.gather(&running)?, (1..21).collect::<Vec<_>>());
    until("another takes its place", || Ok(client.scheduler_info()?.workers.len() == 2))?;
    let after = cluster.pids();
    assert!(after[0] != before[0] && after[1] == before[1], "{before:?} {after:?}");
    Ok(())
}

pub fn all_workers_may_die() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).start()?;
    let client = Client::from(cluster.client()?);
    let done = client.map(|x: i64| vec![x; 2000], 0..20);
    client.wait(&done, ReturnWhen::AllCompleted, None)?;
    cluster.pids().into_iter().for_each(kill);
    assert_eq!(client.gather(&done)?, (0..20).map(|x| vec![x; 2000]).collect::<Vec<_>>());
    Ok(())
}

pub fn a_task_that_kills_workers_errs() -> Outcome {
    let cluster = LocalCluster::builder().workers(1).threads(1).processes(true).start()?;
    let client = Client::from(cluster.client()?);
    let deadly = client.submit(|| -> i64 { std::process::abort() }, ());
    let Err(Error::Task(error)) = deadly.result() else { return Err("it should err".into()) };
    assert_eq!(error.kind, FailureKind::KilledWorkers);
    assert!(error.message.contains("4 workers died"), "{error}");
    assert_eq!(client.submit(inc, (1,)).result()?, 2, "the next worker goes on");
    Ok(())
}

pub fn scattered_data_that_dies_says_so() -> Outcome {
    let cluster = LocalCluster::builder().workers(1).threads(1).processes(true).start()?;
    let client = Client::from(cluster.client()?);
    let data = client.scatter([vec![1i64; 10_000]])?.remove(0);
    kill(cluster.pids()[0]);
    until("it is known to be lost", || Ok(data.status() == Status::Erred))?;
    let Err(Error::Task(error)) = data.result() else { return Err("it should err".into()) };
    assert_eq!(error.kind, FailureKind::DataLost);
    assert!(error.message.contains("scatter it again"), "{error}");
    Ok(())
}

pub fn processes_end_with_the_cluster() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).start()?;
    let pids = cluster.pids();
    let client = Client::from(cluster.client()?);
    let _busy = client.submit(|| thread::sleep(Duration::from_secs(60)), ());
    let start = Instant::now();
    drop(cluster);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for pid in pids {
        assert!(!fs::exists(format!("/proc/{pid}"))?, "{pid} is still there");
    }
    assert!(matches!(client.submit(inc, (1,)).result(), Err(Error::Closed { .. })));
    Ok(())
}

pub fn a_cluster_that_ends_at_once_tells_its_clients() -> Outcome {
    for i in 0..50 {
        let cluster = LocalCluster::builder().threads(1).start()?;
        let client = Client::from(cluster.client()?);
        let future = client.submit(inc, (i,));
        drop(cluster);
        assert!(matches!(future.result(), Ok(_) | Err(Error::Closed { .. })), "{future:?}");
        assert!(matches!(client.submit(inc, (i,)).result(), Ok(_) | Err(Error::Closed { .. })));
    }
    Ok(())
}
