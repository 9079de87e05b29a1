//! What workers do with what they are given: they run it, leave it to others, or take it over.

use super::*;

pub fn a_seceded_task_makes_room(_: &LocalCluster, client: &Client) -> Outcome {
    // Each of the two workers has one thread, and both are taken by tasks that secede.
    let long = client.map(
        |_: i64| {
            rankine::secede();
            thread::sleep(Duration::from_secs(3));
            1i64
        },
        0..2,
    );
    let start = Instant::now();
    assert_eq!(client.gather(client.map(inc, 100..110))?.len(), 10);
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    assert_eq!(client.gather(long)?, [1, 1]);
    Ok(())
}

pub fn what_waits_for_a_seceded_task_runs_after_it(_: &LocalCluster, client: &Client) -> Outcome {
    fn maybe_long(millis: u64) -> u64 {
        if millis > 0 {
            rankine::secede();
            thread::sleep(Duration::from_millis(millis));
        }
        millis
    }
    fn plus(x: u64, y: u64) -> u64 {
        x + y
    }
    // They are known to be short, and what waits for them goes to their worker ahead of time.
    for _ in 0..8 {
        let first = client.submit(maybe_long, (0,));
        assert_eq!(client.submit(plus, (&first, 1)).result()?, 1);
    }
    let start = Instant::now();
    let long = client.submit(maybe_long, (300,));
    assert_eq!(client.submit(plus, (client.submit(plus, (&long, 1)), 1)).result()?, 302);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    Ok(())
}

pub fn a_worker_may_be_added() -> Outcome {
    for processes in [false, true] {
        let builder = LocalCluster::builder().workers(1).threads(1).processes(processes);
        let mut cluster = builder.start()?;
        let client = Client::from(cluster.client()?);
        cluster.add_worker(&builder)?;
        until("it is there", || Ok(client.scheduler_info()?.workers.len() == 2))?;
    }
    Ok(())
}

pub fn resources_keep_tasks_apart() -> Outcome {
    static RUNNING: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    let cluster = LocalCluster::builder().workers(1).threads(4).resource("gpu", 1.0).start()?;
    let client = Client::from(cluster.client()?);
    let train = |_: i64| {
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(10));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    };
    client.gather(client.options().resource("gpu", 1.0).map(train, 0..8))?;
    assert_eq!(MOST.load(Ordering::SeqCst), 1);
    client.gather(client.options().resource("gpu", 0.5).map(train, 10..18))?;
    assert_eq!(MOST.load(Ordering::SeqCst), 2);
    let never = client.options().resource("gpu", 2.0).submit(inc, (1,));
    assert!(client.wait(&[never], ReturnWhen::AllCompleted, Some(Duration::from_millis(50))).is_err());
    Ok(())
}

pub fn retired_workers_leave_their_results(_: &LocalCluster, client: &Client) -> Outcome {
    let results = client.map(|x: i64| vec![x; 1000], 0..40);
    client.wait(&results, ReturnWhen::AllCompleted, None)?;
    let before = client.scheduler_info()?.workers;
    assert!(before.iter().all(|worker| worker.in_memory > 0 && !worker.retiring));
    let address = before[0].info.address.to_string();
    let left = client.retire_workers(["nobody", &address])?;
    assert_eq!(left.iter().map(|left| &**left).collect::<Vec<_>>(), [&*address]);
    let after = client.scheduler_info()?.workers;
    assert_eq!((after.len(), after[0].in_memory), (1, 40));
    for (x, result) in (0..).zip(client.gather(&results)?) {
        assert_eq!(result, vec![x; 1000]);
    }
    assert_eq!(client.retire_workers([""; 0])?, []);
    Ok(())
}

thread_local! {
    static RAN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// All tasks are assigned to the worker that holds what they need; they take longer than anybody knew.
pub fn waiting_work_is_taken_over(_: &LocalCluster, client: &Client) -> Outcome {
    let holder = client.scheduler_info()?.workers[0].info.name.to_string();
    let big = client.options().workers([holder.clone()]).submit(|| vec![7u8; 50_000_000], ());
    client.wait(std::slice::from_ref(&big), ReturnWhen::AllCompleted, None)?;
    // One thread a worker: each counts for itself.
    fn slow(big: Arc<Vec<u8>>, x: u32) -> (u32, u32, String) {
        thread::sleep(Duration::from_millis(30));
        let ran = RAN.get() + u32::from(big[0] == 7);
        RAN.set(ran);
        (x, ran, rankine::worker_name().map_or(String::new(), |name| name.to_string()))
    }
    let tasks: Vec<_> = (0..30).map(|x| client.submit(slow, (&big, x))).collect();
    let results = client.gather(&tasks)?;
    assert!(results.iter().map(|(x, ..)| *x).eq(0..30));
    let most = |here: bool| {
        let ran = results.iter().filter(|(.., name)| (*name == holder) == here).map(|(_, ran, _)| *ran);
        ran.max().unwrap_or(0)
    };
    // Each ran once, and the other worker some of them.
    assert_eq!(most(true) + most(false), 30);
    assert!(most(false) >= 3, "{} of 30", most(false));
    Ok(())
}
