//! What a user can do, on workers in this process and on workers that are processes of their own.
//!
//! The binary is its own worker, so `main` begins with `rankine::init()`.

mod dying;
mod managing;
mod reports;
mod transports;
mod working;

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{Error, FailureKind, Local, LocalCluster, ReturnWhen, Status, blocking::Client};

use dying::*;
use managing::*;
use reports::*;
use transports::*;
use working::*;

type Outcome = Result<(), Failed>;

fn main() {
    rankine::init();
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    macro_rules! both {
        ($($name:ident),* $(,)?) => {$(
            for processes in [false, true] {
                let place = if processes { "processes" } else { "inproc" };
                trials.push(Trial::test(format!("{}::{place}", stringify!($name)), move || {
                    let cluster = LocalCluster::builder().workers(2).threads(1).processes(processes).start()?;
                    let client = Client::from(cluster.client()?);
                    $name(&cluster, &client)
                }));
            }
        )*};
    }
    both!(
        results_come_back,
        futures_are_arguments_at_any_position,
        a_map_of_many_tasks_is_gathered,
        an_error_errs_its_future_and_dependents,
        a_panic_brings_message_place_and_stack,
        as_completed_takes_new_futures,
        equal_pure_calls_share_a_key,
        data_is_scattered_and_broadcast,
        cancelled_futures_say_so,
        dropped_futures_are_released,
        what_a_silent_client_drops_is_released,
        small_results_that_are_read_and_dropped_are_released_soon,
        questions_are_answered,
        functions_run_on_every_worker,
        retired_workers_leave_their_results,
        waiting_work_is_taken_over,
        options_are_honoured,
        retries_try_again,
        waiting_ends_in_time,
        big_results_travel_between_workers,
        a_long_chain_ends,
        a_tree_is_reduced,
        a_client_that_closes_releases_what_it_held,
        the_story_is_told,
        a_map_is_submitted_in_one_message,
        a_shutdown_ends_everything,
        a_seceded_task_makes_room,
        what_waits_for_a_seceded_task_runs_after_it,
        fired_tasks_run_though_their_client_is_gone,
        as_many_tasks_of_a_name_run_as_its_limit_says,
        results_are_copied_where_that_is_asked_for,
        copies_that_served_their_purpose_go,
        a_rebalance_evens_out_what_workers_hold,
        a_task_is_explained,
    );
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {$(trials.push(Trial::test(stringify!($name), || $name()));)*};
    }
    tests!(
        what_cannot_be_serialized_is_used_within_a_process,
        nothing_is_copied_within_a_process,
        what_cannot_be_serialized_does_not_leave,
        a_killed_worker_is_made_up_for,
        all_workers_may_die,
        a_task_that_kills_workers_errs,
        a_worker_may_be_added,
        scattered_data_that_dies_says_so,
        chunks_are_compressed_where_that_is_asked_for,
        shared_chunks_count_once,
        the_transport_asked_for_is_taken,
        processes_end_with_the_cluster,
        a_cluster_that_ends_at_once_tells_its_clients,
        resources_keep_tasks_apart,
        as_much_is_assigned_ahead_as_is_said,
        a_reduction_of_a_thousand_chunks_holds_tens,
        a_brief_task_is_told_of_while_the_next_one_takes_its_time,
    );
    libtest_mimic::run(&arguments, trials).exit();
}

fn inc(x: i64) -> i64 {
    x + 1
}

fn add(x: i64, y: i64) -> i64 {
    x + y
}

fn sum(xs: Vec<i64>) -> i64 {
    xs.iter().sum()
}

fn slow_inc(x: i64) -> i64 {
    thread::sleep(Duration::from_millis(50));
    x + 1
}

fn parse(text: String) -> Result<i64, std::num::ParseIntError> {
    text.parse()
}

fn me() -> String {
    rankine::worker_name().map(|name| name.to_string()).unwrap_or_default()
}

fn results_come_back(_: &LocalCluster, client: &Client) -> Outcome {
    assert_eq!(client.submit(inc, (1,)).result()?, 2);
    assert_eq!(client.submit(|| 7i64, ()).result()?, 7);
    assert_eq!(client.submit(|s: String| s.len(), ("four",)).result()?, 4);
    let future = client.submit(add, (1, 2));
    assert_eq!((future.result()?, future.clone().result()?), (3, 3));
    Ok(())
}

fn futures_are_arguments_at_any_position(_: &LocalCluster, client: &Client) -> Outcome {
    let a = client.submit(inc, (1,));
    let b = client.submit(add, (&a, 2));
    let c = client.submit(add, (10, &b));
    let d =
        client.submit(|x: i64, all: Vec<i64>, y: i64| x + all.iter().sum::<i64>() * y, (&c, vec![a, b], 100));
    assert_eq!(d.result()?, 14 + 600);
    let shared =
        client.submit(|x: Arc<Vec<u8>>, n: usize| x.len() + n, (client.submit(|| vec![1u8; 10], ()), 5));
    assert_eq!(shared.result()?, 15);
    Ok(())
}

fn a_map_of_many_tasks_is_gathered(_: &LocalCluster, client: &Client) -> Outcome {
    let squares = client.map(|x: i64| x * x, 0..5000);
    let total = client.submit(sum, (&squares,));
    assert_eq!(client.gather(&squares)?, (0..5000).map(|x| x * x).collect::<Vec<i64>>());
    assert_eq!(total.result()?, (0..5000).map(|x| x * x).sum::<i64>());
    let sums = client.starmap(add, (0..10).map(|i| (i, 2 * i)));
    assert_eq!(client.gather(sums)?, (0..10).map(|i| 3 * i).collect::<Vec<_>>());
    Ok(())
}

fn an_error_errs_its_future_and_dependents(_: &LocalCluster, client: &Client) -> Outcome {
    assert_eq!(client.submit(parse, ("5",)).result()?, 5);
    let bad = client.submit(parse, ("five",));
    let dependent = client.submit(inc, (client.submit(inc, (&bad,)),));
    for future in [bad, dependent] {
        let Err(Error::Task(error)) = future.result() else { return Err("it should err".into()) };
        assert_eq!(error.kind, FailureKind::Failed);
        assert!(error.function.ends_with("parse") && error.message.contains("invalid digit"), "{error}");
        assert_eq!(future.status(), Status::Erred);
    }
    let text = client.try_submit(|| -> Result<i64, String> { Err("as text".into()) }, ());
    assert!(text.result().unwrap_err().to_string().contains("as text"));
    assert_eq!(client.submit(inc, (1,)).result()?, 2, "the workers live on");
    Ok(())
}

fn a_panic_brings_message_place_and_stack(_: &LocalCluster, client: &Client) -> Outcome {
    let future = client.submit(|x: i64| -> i64 { panic!("no {x}") }, (5,));
    let Err(Error::Task(error)) = future.result() else { return Err("it should err".into()) };
    assert_eq!((error.kind, &*error.message), (FailureKind::Panicked, "no 5"));
    assert!(error.location.as_ref().unwrap().contains("tests/cluster/main.rs"), "{error}");
    assert!(error.backtrace.as_ref().unwrap().contains("cluster"), "{error:?}");
    assert!(!error.worker.is_empty() && error.key == future.key().to_string());
    Ok(())
}

fn as_completed_takes_new_futures(_: &LocalCluster, client: &Client) -> Outcome {
    let mut completed = client.as_completed(client.map(inc, 0..10));
    let (mut count, mut total) = (0, 0);
    while let Some(future) = completed.next() {
        count += 1;
        let x = future.result()?;
        total += x;
        if x <= 10 {
            completed.add(client.submit(add, (&future, 100)));
        }
    }
    assert_eq!((count, total), (20, 55 + 1055));
    Ok(())
}

fn equal_pure_calls_share_a_key(_: &LocalCluster, client: &Client) -> Outcome {
    let random = || rand_like();
    let (a, b) = (client.submit(random, ()), client.submit(random, ()));
    assert_eq!((a.key(), a.result()?), (b.key(), b.result()?), "it ran once");
    let (x, y) = (client.submit(add, (1, 2)), client.submit(add, (1, 2)));
    assert_eq!(x.key(), y.key());
    assert_ne!(x.key(), client.submit(add, (2, 1)).key());
    let fresh = client.options().pure(false).submit(add, (1, 2));
    assert_ne!(fresh.key(), x.key());
    assert_eq!(fresh.result()?, 3);
    Ok(())
}

fn rand_like() -> u64 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    u64::from(COUNT.fetch_add(1, Ordering::Relaxed))
}

fn data_is_scattered_and_broadcast(_: &LocalCluster, client: &Client) -> Outcome {
    let data = client.scatter(vec![vec![1i64, 2], vec![3, 4], vec![5]])?;
    assert_eq!(client.gather(client.map(sum, &data))?, [3, 7, 5]);
    assert_eq!(data[1].result()?, [3, 4]);
    let everywhere = client.broadcast(vec![9i64])?;
    assert_eq!(client.who_has(std::slice::from_ref(&everywhere))?[&everywhere.key()].len(), 2);
    assert_eq!(client.submit(sum, (&everywhere,)).result()?, 9);
    Ok(())
}

fn cancelled_futures_say_so(_: &LocalCluster, client: &Client) -> Outcome {
    let slow = client.map(slow_inc, 0..20);
    let dependent = client.submit(sum, (&slow,));
    client.cancel(&slow);
    assert!(matches!(slow[19].result(), Err(Error::Cancelled { .. })));
    assert!(matches!(dependent.result(), Err(Error::Cancelled { .. })));
    assert_eq!(client.submit(inc, (1,)).result()?, 2);
    // Asked for again, it is computed.
    assert_eq!(client.submit(slow_inc, (19,)).result()?, 20);
    Ok(())
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool, Error>) -> Outcome {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("{what} did not come true").into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn dropped_futures_are_released(_: &LocalCluster, client: &Client) -> Outcome {
    let futures = client.map(inc, 0..100);
    client.wait(&futures, ReturnWhen::AllCompleted, None)?;
    drop(futures);
    until("no task is left", || Ok(client.scheduler_info()?.tasks.is_empty()))?;
    until("no worker holds anything", || Ok(client.has_what()?.values().all(Vec::is_empty)))
}

/// Nothing else that it says takes the word along.
fn what_a_silent_client_drops_is_released(cluster: &LocalCluster, client: &Client) -> Outcome {
    let silent = Client::from(cluster.client()?);
    let gone = || Ok(client.scheduler_info()?.tasks.is_empty());
    let small = silent.submit(inc, (1,));
    small.result()?;
    drop(small);
    until("a small result is released", gone)?;
    let big = silent.submit(|| vec![0u8; 1 << 20], ());
    big.result()?;
    drop(big);
    until("a big result is released", gone)
}

/// Some milliseconds after they came, not with the heartbeat, twice a second.
fn small_results_that_are_read_and_dropped_are_released_soon(
    cluster: &LocalCluster,
    client: &Client,
) -> Outcome {
    let silent = Client::from(cluster.client()?);
    let start = Instant::now();
    for round in 0..8 {
        silent.submit(inc, (round,)).result()?;
        until("it is released", || Ok(client.scheduler_info()?.tasks.is_empty()))?;
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    Ok(())
}

fn questions_are_answered(_: &LocalCluster, client: &Client) -> Outcome {
    let future = client.submit(inc, (1,));
    future.result()?;
    let who = client.who_has(std::slice::from_ref(&future))?;
    let holder = &who[&future.key()][0];
    assert!(client.has_what()?[holder].contains(&future.key()));
    assert_eq!(client.nthreads()?.values().sum::<u32>(), 2);
    let info = client.scheduler_info()?;
    assert_eq!((info.workers.len(), info.clients), (2, 1));
    assert!(info.address.contains("://"));
    Ok(())
}

fn functions_run_on_every_worker(cluster: &LocalCluster, client: &Client) -> Outcome {
    let pids = client.run(std::process::id, ())?;
    assert_eq!(pids.len(), 2);
    for pid in cluster.pids() {
        assert!(pids.values().any(|p| *p == pid));
    }
    assert_eq!(client.run_on_scheduler(std::process::id, ())?, std::process::id());
    let failed = client.run(parse, ("x",));
    assert!(failed.unwrap_err().to_string().contains("invalid digit"));
    Ok(())
}

fn options_are_honoured(_: &LocalCluster, client: &Client) -> Outcome {
    let named = client.options().key("my answer").submit(|| 42i64, ());
    assert_eq!((named.result()?, named.key()), (42, rankine::graph::Key::named("my answer")));
    let names: Vec<String> =
        client.scheduler_info()?.workers.iter().map(|w| w.info.name.to_string()).collect();
    for name in &names {
        for _ in 0..3 {
            assert_eq!(&client.options().workers([name]).pure(false).submit(me, ()).result()?, name);
        }
    }
    let nowhere = client.options().workers(["nowhere"]).allow_other_workers().submit(me, ());
    assert!(names.contains(&nowhere.result()?));
    let never = client.options().workers(["nowhere"]).pure(false).submit(me, ());
    assert!(client.wait(&[never], ReturnWhen::AllCompleted, Some(Duration::from_millis(50))).is_err());
    Ok(())
}

fn flaky(path: String) -> Result<i64, std::io::Error> {
    let count = fs::read_to_string(&path).unwrap_or_default().len();
    fs::write(&path, "x".repeat(count + 1))?;
    if count < 2 { Err(std::io::Error::other("not yet")) } else { Ok(count as i64) }
}

fn retries_try_again(_: &LocalCluster, client: &Client) -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    assert_eq!(client.options().retries(2).submit(flaky, (path("a"),)).result()?, 2);
    assert!(client.options().retries(1).submit(flaky, (path("b"),)).result().is_err());
    Ok(())
}

fn waiting_ends_in_time(_: &LocalCluster, client: &Client) -> Outcome {
    let futures = client.map(slow_inc, 0..8);
    let late = client.wait(&futures, ReturnWhen::AllCompleted, Some(Duration::from_millis(10)));
    assert!(late.unwrap_err().to_string().contains("were not done within"));
    client.wait(&futures, ReturnWhen::FirstCompleted, None)?;
    assert!(futures.iter().any(|f| f.is_done()));
    client.wait(&futures, ReturnWhen::AllCompleted, None)?;
    assert!(futures.iter().all(|f| f.status() == Status::Finished));
    Ok(())
}

fn big(seed: u64) -> Vec<f64> {
    (0..1_000_000).map(|i| (i as u64 ^ seed) as f64).collect()
}

fn big_results_travel_between_workers(_: &LocalCluster, client: &Client) -> Outcome {
    let parts: Vec<_> = client
        .scheduler_info()?
        .workers
        .iter()
        .enumerate()
        .map(|(i, w)| client.options().workers([&*w.info.name]).submit(big, (i as u64,)))
        .collect();
    let dot = client.submit(
        |a: Arc<Vec<f64>>, b: Arc<Vec<f64>>| a.iter().zip(&*b).map(|(x, y)| x * y).sum::<f64>(),
        (&parts[0], &parts[1]),
    );
    let expected: f64 = big(0).iter().zip(big(1)).map(|(x, y)| x * y).sum();
    assert_eq!(dot.result()?, expected);
    assert_eq!(parts[1].result()?, big(1));
    // One of them went from worker to worker, once; workers say so with their next heartbeat.
    let fetched = || -> Result<u64, Error> {
        Ok(client.scheduler_info()?.workers.iter().map(|worker| worker.metrics.fetched).sum())
    };
    until("it was fetched from a peer", || Ok(fetched()? > 0))?;
    assert_eq!(fetched()? / 8_000_000, 1);
    Ok(())
}

fn a_long_chain_ends(_: &LocalCluster, client: &Client) -> Outcome {
    let mut future = client.submit(inc, (0,));
    for _ in 1..1000 {
        future = client.submit(inc, (future,));
    }
    assert_eq!(future.result()?, 1000);
    Ok(())
}

fn a_tree_is_reduced(_: &LocalCluster, client: &Client) -> Outcome {
    let mut level = client.map(|x: i64| x, 0..1024);
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| client.submit(add, (&pair[0], &pair[1]))).collect();
    }
    assert_eq!(level[0].result()?, 1023 * 512);
    Ok(())
}

fn a_client_that_closes_releases_what_it_held(cluster: &LocalCluster, client: &Client) -> Outcome {
    let other = Client::from(cluster.client()?);
    let futures = other.map(inc, 0..10);
    other.wait(&futures, ReturnWhen::AllCompleted, None)?;
    other.close();
    assert_eq!(futures[0].result()?, 1, "small results that are here stay readable");
    assert!(matches!(other.submit(inc, (77,)).result(), Err(Error::Closed { .. })));
    until("nothing is held", || Ok(client.scheduler_info()?.tasks.is_empty()))
}

fn the_story_is_told(_: &LocalCluster, client: &Client) -> Outcome {
    let future = client.submit(inc, (1,));
    future.result()?;
    let story = client.story(future.key())?;
    let states: Vec<&str> = story.iter().map(|event| &*event.finish).collect();
    assert_eq!(states, ["waiting", "processing", "memory"]);
    Ok(())
}

fn a_map_is_submitted_in_one_message(_: &LocalCluster, client: &Client) -> Outcome {
    let futures = client.map(|x: i64| x - 1, 0..1000);
    client.gather(&futures)?;
    // The scheduler numbers what happens to it: all tasks came with the same number.
    let mut stimuli = Vec::new();
    for future in [&futures[0], &futures[500], &futures[999]] {
        stimuli.push(client.story(future.key())?[0].stimulus);
    }
    assert!(stimuli.iter().all(|stimulus| *stimulus == stimuli[0]), "{stimuli:?}");
    Ok(())
}

fn a_shutdown_ends_everything(cluster: &LocalCluster, client: &Client) -> Outcome {
    let future = client.submit(|| thread::sleep(Duration::from_secs(1)), ());
    client.shutdown()?;
    let start = Instant::now();
    assert!(matches!(future.result(), Err(Error::Closed { .. })));
    for pid in cluster.pids() {
        until("the process is gone", || {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            Ok(status.is_empty() || status.contains(") Z "))
        })?;
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    Ok(())
}

fn what_cannot_be_serialized_is_used_within_a_process() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).start()?;
    let client = Client::from(cluster.client()?);
    let lock = client.scatter([Local::new(Mutex::new(1))])?.remove(0);
    let touched = client.submit(
        |lock: Local<Mutex<i32>>| {
            *lock.lock().unwrap() += 1;
            lock
        },
        (&lock,),
    );
    assert_eq!(*touched.result()?.lock().unwrap(), 2);
    assert_eq!(*lock.result()?.lock().unwrap(), 2, "it is the very same lock");
    Ok(())
}

fn nothing_is_copied_within_a_process() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).start()?;
    let client = Client::from(cluster.client()?);
    let data = Arc::new(vec![1.5f64; 100_000]);
    let place = data.as_ptr() as usize;
    let future = client.scatter([data])?.remove(0);
    // On each worker, so that at least one had to fetch it.
    for worker in client.scheduler_info()?.workers {
        let seen = client
            .options()
            .workers([&*worker.info.name])
            .pure(false)
            .submit(|data: Arc<Vec<f64>>| data.as_ptr() as usize, (&future,));
        assert_eq!(seen.result()?, place);
    }
    assert_eq!(future.result()?.as_ptr() as usize, place);
    Ok(())
}

fn what_cannot_be_serialized_does_not_leave() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).start()?;
    let client = Client::from(cluster.client()?);
    let refused = client.scatter([Local::new(Mutex::new(1))]).err().ok_or("it should be refused")?;
    assert!(refused.to_string().contains("lives only within its process"), "{refused}");
    let result = client.submit(|| Local::new(Mutex::new(5i32)), ());
    let error = result.result().err().ok_or("it should be refused")?;
    assert!(error.to_string().contains("Mutex<i32>"), "{error}");
    let other = client.submit(|lock: Local<Mutex<i32>>| *lock.lock().unwrap(), (&result,));
    assert_eq!(other.result()?, 5, "where it was made it can be used");
    Ok(())
}
