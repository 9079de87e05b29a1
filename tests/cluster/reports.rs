//! When the scheduler hears of what is done.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rankine::{Error, LocalCluster, blocking::Client};

use super::{Outcome, sum, until};

/// How many gates are open.
static OPEN: AtomicU32 = AtomicU32::new(0);

/// Comes back once so many gates are open.
fn pass(gate: u32) -> i64 {
    let start = Instant::now();
    while OPEN.load(Ordering::SeqCst) < gate && start.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(1));
    }
    gate.into()
}

fn briefly(_: i64, gate: u32) -> i64 {
    pass(gate)
}

/// Reports of brief tasks wait for others: not for as long as the next one takes, though nothing else happens on the worker.
pub fn a_brief_task_is_told_of_while_the_next_one_takes_its_time() -> Outcome {
    let cluster = LocalCluster::builder().workers(1).threads(1).memory_limit(0).start()?;
    let client = Client::from(cluster.client()?);
    // It is known to be brief.
    client.gather(client.starmap(briefly, (0..4).map(|n| (n, 0))))?;
    let count = |state: &str| -> Result<u64, Error> {
        let tasks = client.scheduler_info()?.tasks;
        Ok(tasks.iter().find(|(name, _)| name == state).map_or(0, |(_, count)| *count))
    };
    until("nothing is kept", || Ok(client.scheduler_info()?.tasks.is_empty()))?;
    let first = client.submit(pass, (1,));
    let row: Vec<_> = [0, 2, 1].map(|gate| client.submit(briefly, (&first, gate))).into();
    let total = client.submit(sum, (&row,));
    // What a client waits for is told at once: nobody waits for these.
    drop(row);
    // The question takes along that they were dropped.
    until("all wait for the first", || Ok(count("waiting")? == 4))?;
    OPEN.store(1, Ordering::SeqCst);
    let told = until("the first of them is told of", || Ok(count("memory")? >= 2));
    OPEN.store(2, Ordering::SeqCst);
    told?;
    assert_eq!(total.result()?, 3);
    Ok(())
}
