//! What a user says of tasks and results besides submitting and awaiting them.

use std::sync::atomic::AtomicUsize;

use rankine::{Settings, settings::Saturation};

use super::*;

fn touch(path: String) -> Result<(), std::io::Error> {
    thread::sleep(Duration::from_millis(100));
    fs::write(path, "done")
}

pub fn fired_tasks_run_though_their_client_is_gone(cluster: &LocalCluster, client: &Client) -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let other = Client::from(cluster.client()?);
    let [fired, dropped] =
        ["fired", "dropped"].map(|name| other.submit(touch, (path(name).to_string_lossy().into_owned(),)));
    other.fire_and_forget(&[fired]);
    other.close();
    drop(dropped);
    until("the fired task has run", || Ok(path("fired").exists()))?;
    until("nothing is kept", || Ok(client.scheduler_info()?.tasks.is_empty()))
}

/// How many run at once: each has a file in the directory for as long as it runs.
fn crowd(directory: String, me: u64) -> Result<usize, std::io::Error> {
    let mine = format!("{directory}/{me}");
    fs::create_dir_all(&directory)?;
    fs::write(&mine, "")?;
    let running = fs::read_dir(&directory)?.count();
    thread::sleep(Duration::from_millis(20));
    fs::remove_file(mine)?;
    Ok(running)
}

pub fn as_many_tasks_of_a_name_run_as_its_limit_says(_: &LocalCluster, client: &Client) -> Outcome {
    let directory = tempfile::tempdir()?;
    // How many ran at once at most.
    let most = |name: &str| -> Result<usize, Error> {
        let path = directory.path().join(name).to_string_lossy().into_owned();
        let ran = client.options().key(name).starmap(crowd, (0..12u64).map(|me| (path.clone(), me)));
        Ok(client.gather(&ran)?.into_iter().max().unwrap_or_default())
    };
    assert_eq!(most("free")?, 2);
    client.limit("crowd", Some(1))?;
    assert_eq!(most("limited by their function")?, 1);
    client.limit("crowd", None)?;
    assert_eq!(most("free again")?, 2);
    client.limit("database", Some(1))?;
    assert_eq!(most("database")?, 1);
    Ok(())
}

fn chunk(seed: u8) -> Vec<u8> {
    vec![seed; 100_000]
}

fn holders<T>(client: &Client, future: &rankine::TaskFuture<T>) -> Result<usize, Error> {
    Ok(client.who_has(std::slice::from_ref(future))?[&future.key()].len())
}

pub fn results_are_copied_where_that_is_asked_for(_: &LocalCluster, client: &Client) -> Outcome {
    let results = client.map(chunk, 0..4);
    client.replicate(&results, None, &[])?;
    for future in &results {
        assert_eq!(holders(client, future)?, 2);
    }
    // They stay for as long as the results do.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(holders(client, &results[0])?, 2);
    let failed = client.submit(parse, ("five",));
    assert!(client.replicate(&[failed], None, &[]).unwrap_err().to_string().contains("invalid digit"));
    Ok(())
}

pub fn copies_that_served_their_purpose_go(_: &LocalCluster, client: &Client) -> Outcome {
    let names: Vec<String> =
        client.scheduler_info()?.workers.iter().map(|w| w.info.name.to_string()).collect();
    let result = client.options().workers([&names[0]]).submit(chunk, (9,));
    let used = client.options().workers([&names[1]]).submit(|x: Vec<u8>| x.len(), (&result,));
    assert_eq!(used.result()?, 100_000);
    until("one of two copies goes", || Ok(holders(client, &result)? == 1))?;
    assert_eq!(result.result()?, chunk(9));
    Ok(())
}

pub fn a_rebalance_evens_out_what_workers_hold(_: &LocalCluster, client: &Client) -> Outcome {
    let first = client.scheduler_info()?.workers[0].info.name.to_string();
    let results = client.options().workers([first]).map(chunk, 0..8);
    client.wait(&results, ReturnWhen::AllCompleted, None)?;
    client.rebalance()?;
    let held: Vec<usize> = client.has_what()?.values().map(Vec::len).collect();
    assert_eq!(held, [4, 4]);
    let expected: Vec<Vec<u8>> = (0..8).map(chunk).collect();
    assert_eq!(client.gather(&results)?, expected);
    Ok(())
}

pub fn a_task_is_explained(_: &LocalCluster, client: &Client) -> Outcome {
    let (a, b) = (client.submit(inc, (1,)), client.options().resource("gpu", 2.0).submit(inc, (5,)));
    a.result()?;
    let told = client.explain(&a)?;
    assert_eq!(told.state, "memory");
    assert!(told.function.ends_with("inc") && told.why[0].contains("it would start there first"), "{told}");
    let told = client.explain(&b)?;
    assert_eq!(told.why, ["It needs 2 of gpu, and none of the 2 workers supplies so much."]);
    Ok(())
}

pub fn as_much_is_assigned_ahead_as_is_said() -> Outcome {
    for (saturation, queued) in [(1.1, true), (f64::INFINITY, false)] {
        let mut settings = Settings::default();
        settings.worker_saturation = Saturation::new(saturation)?;
        let cluster = LocalCluster::builder().workers(1).threads(1).settings(settings).start()?;
        let client = Client::from(cluster.client()?);
        let tasks = client.map(slow_inc, 0..10);
        // The scheduler answers after it has taken the tasks in, and all of them take longer than that.
        let info = client.scheduler_info()?;
        let is_queued = info.tasks.iter().any(|(state, _)| state == "queued");
        assert_eq!(is_queued, queued, "{saturation}: {:?}", info.tasks);
        assert!(!queued || info.workers[0].processing <= 2, "{:?}", info.workers);
        client.gather(&tasks)?;
    }
    Ok(())
}

/// A chunk of which the process counts how many it has.
struct Held;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST_HELD: AtomicUsize = AtomicUsize::new(0);

impl Held {
    fn new() -> Local<Self> {
        MOST_HELD.fetch_max(HELD.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Local::new(Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::SeqCst);
    }
}

fn load(_: u32) -> Local<Held> {
    thread::sleep(Duration::from_micros(500));
    Held::new()
}

fn merge(_: Vec<Local<Held>>) -> Local<Held> {
    Held::new()
}

pub fn a_reduction_of_a_thousand_chunks_holds_tens() -> Outcome {
    for (saturation, held) in [(1.1, 0..250), (f64::INFINITY, 500..1144)] {
        let mut settings = Settings::default();
        settings.worker_saturation = Saturation::new(saturation)?;
        let cluster = LocalCluster::builder().workers(4).threads(1).settings(settings).start()?;
        let client = Client::from(cluster.client()?);
        let mut level = client.map(load, 0..1000);
        while level.len() > 1 {
            level = level.chunks(8).map(|some| client.submit(merge, (some.to_vec(),))).collect();
        }
        client.wait(&level, ReturnWhen::AllCompleted, None)?;
        let most = MOST_HELD.swap(0, Ordering::SeqCst);
        println!("with a saturation of {saturation} at most {most} chunks were held");
        assert!(held.contains(&most), "{most} chunks were held");
    }
    Ok(())
}
