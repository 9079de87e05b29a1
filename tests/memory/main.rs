//! What happens when memory is short: results go to disk and come back, workers pause and end, disks are full.
//!
//! The binary plays the programs that run within real limits itself, so `main` looks for its part first.

mod cage;

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, exit},
    thread,
    time::{Duration, Instant},
};

use cage::{Cage, wait};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rankine::{
    Error, FailureKind, LocalCluster, ReturnWhen, Settings, TaskFuture,
    array::Chunk,
    blocking::Client,
    protocol::Metrics,
    settings::{MemoryLimit, Threshold},
};

type Outcome = Result<(), Failed>;

/// Names the part that this process plays.
const PART: &str = "RANKINE_TEST_PART";
/// Numbers of a chunk: 2 MiB, few beside what the tightest limit leaves to a process.
const NUMBERS: usize = 1 << 18;
const CHUNK: u64 = NUMBERS as u64 * 8;

fn main() {
    rankine::init();
    if let Ok(part) = env::var(PART) {
        let played = match &*part {
            "working-set" => working_set(),
            "full-disk" => full_disk(),
            "endless" => endless(),
            other => panic!("there is no part {other}"),
        };
        if let Err(error) = played {
            eprintln!("{error}");
            exit(1);
        }
        return;
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![
        Trial::ignorable_test("ten_times_the_memory_of_a_control_group", ten_times_a_control_group),
        Trial::test("ten_times_the_memory_that_ulimit_leaves", ten_times_ulimit),
    ];
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {$(trials.push(Trial::test(stringify!($name), || $name()));)*};
    }
    tests!(
        peers_and_clients_are_given_what_is_on_disk,
        a_result_whose_file_is_gone_is_computed_again,
        a_full_disk_errs_the_tasks_whose_results_find_no_place,
        a_worker_that_runs_out_of_memory_is_replaced,
        inputs_beyond_the_limit_are_read_all_the_same,
        a_paused_worker_leaves_the_work_to_others,
        what_was_freed_takes_no_place_on_disk,
        directories_are_private_and_go_with_their_process,
        what_a_killed_process_left_is_removed_by_the_next,
    );
    libtest_mimic::run(&arguments, trials).exit();
}

/// The `j`th number of chunk `i`: noise, which no compression makes smaller.
fn number(i: u64, j: u64) -> u64 {
    let mut z = (i << 32 | j).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}

fn chunk(i: u64) -> Chunk<u64> {
    Chunk::from_vec((0..NUMBERS as u64).map(|j| number(i, j)).collect(), &[NUMBERS]).unwrap()
}

/// How many numbers of a chunk are not what they were.
fn wrong(chunk: Chunk<u64>, i: u64) -> u64 {
    let numbers = chunk.as_slice().expect("it has no gaps");
    assert_eq!(numbers.len(), NUMBERS);
    numbers.iter().zip(0..).filter(|(number, j)| **number != self::number(i, *j)).count() as u64
}

/// Holds chunks that take a multiple of the memory, then looks at every byte of each, twice.
fn working_set() -> rankine::Result<()> {
    let chunks: u64 = env::var("CHUNKS").unwrap().parse().unwrap();
    let cluster = LocalCluster::builder().workers(1).threads(2).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..chunks);
    for _ in 0..2 {
        let looked: Vec<TaskFuture<u64>> = held
            .iter()
            .zip(0..chunks)
            .map(|(chunk, i)| client.options().pure(false).submit(wrong, (chunk, i)))
            .collect::<Vec<_>>();
        assert_eq!(client.gather(&looked)?, vec![0; chunks as usize]);
    }
    let limit = client.scheduler_info()?.workers[0].info.memory_limit;
    println!("{chunks} chunks are right, with {} MiB", limit >> 20);
    Ok(())
}

const MINUTES: Duration = Duration::from_secs(240);

/// A working set of ten times `size`, which is what the cage leaves, finishes with `limit` bytes of memory, and without
/// spilling it does not.
fn finishes_only_by_spilling(cage: &Cage, size: u64, limit: u64) {
    let place = tempfile::tempdir().unwrap();
    let chunks = (10 * size / CHUNK).to_string();
    let directory = place.path().to_str().unwrap();
    let variables = [("CHUNKS", &*chunks), ("RANKINE_LOCAL_DIRECTORY", directory)];
    let spilling = cage.run("working-set", &variables, MINUTES);
    assert!(spilling.status.success(), "{}: {}", spilling.status, spilling.output);
    let told = format!("{chunks} chunks are right, with {} MiB", limit >> 20);
    assert!(spilling.output.contains(&told), "{}", spilling.output);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left on disk");
    let without = [&variables[..], &[("RANKINE_MEMORY_LIMIT", "none")]].concat();
    let control = cage.run("working-set", &without, MINUTES);
    assert!(!control.status.success(), "the limit is none: {}", control.output);
}

/// In CI a system that lets nobody make a group fails this: else nothing would say that it never ran.
fn ten_times_a_control_group() -> Result<Completion, Failed> {
    let limit = 128 << 20;
    let Some(cage) = Cage::group(limit) else {
        return match env::var("CI").as_deref() {
            Ok("true") => Err("no control group may be made here: run it as root".into()),
            _ => Ok(Completion::ignored_with("this user can make no control group here")),
        };
    };
    finishes_only_by_spilling(&cage, limit, limit);
    Ok(Completion::Completed)
}

/// By `ulimit -d`, since `-v` counts what is only reserved, 64 MiB of the heap for each thread with glibc, and the files that are
/// mapped, results read back among them: little would be left for results.
fn ten_times_ulimit() -> Outcome {
    let limit = 256 << 20;
    finishes_only_by_spilling(&Cage::Data(limit), limit, limit / 4 * 3);
    Ok(())
}

/// Settings by which results beyond `bytes` go to disk at `place`, whatever else the process occupies.
fn tight(bytes: u64, place: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.memory_limit = MemoryLimit::Bytes(bytes);
    settings.memory_spill = Threshold(None);
    settings.memory_pause = Threshold(None);
    settings.memory_terminate = Threshold(None);
    settings.local_directory = Some(place.to_owned());
    settings
}

fn metrics(client: &Client) -> rankine::Result<Metrics> {
    Ok(client.scheduler_info()?.workers[0].metrics)
}

fn until(what: &str, mut holds: impl FnMut() -> rankine::Result<bool>) -> Outcome {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("this did not come about: {what}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The files of results below a local directory.
fn files(place: &Path) -> Vec<PathBuf> {
    let inside = |path: PathBuf| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    inside(place.to_owned()).flat_map(inside).filter(|path| !path.ends_with("lock")).collect()
}

fn peers_and_clients_are_given_what_is_on_disk() -> Outcome {
    let place = tempfile::tempdir()?;
    let cluster = LocalCluster::builder()
        .workers(2)
        .threads(1)
        .processes(true)
        .settings(tight(6 * CHUNK, place.path()))
        .start()?;
    let client = Client::from(cluster.client()?);
    let names: Vec<String> =
        client.scheduler_info()?.workers.iter().map(|w| w.info.name.to_string()).collect();
    let held: Vec<_> =
        (0..12u64).map(|i| client.options().workers([&*names[0]]).submit(chunk, (i,))).collect();
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    let on_disk = || Ok::<_, Error>(metrics(&client)?.spilled);
    until("most of it is on disk", || Ok(on_disk()? >= 8 * CHUNK))?;
    // To a client, and to the other worker.
    for (chunk, i) in client.gather(&held)?.into_iter().zip(0..) {
        assert_eq!(wrong(chunk, i), 0);
    }
    let looked: Vec<_> = held
        .iter()
        .zip(0u64..)
        .map(|(chunk, i)| client.options().workers([&*names[1]]).submit(wrong, (chunk, i)))
        .collect();
    assert_eq!(client.gather(&looked)?, [0; 12]);
    thread::sleep(Duration::from_secs(1));
    assert!(on_disk()? >= 8 * CHUNK, "they stayed where they were");
    let Metrics { managed, spilled, on_disk, .. } = metrics(&client)?;
    assert!(managed <= 4 * CHUNK && managed + spilled >= 12 * CHUNK, "{managed} + {spilled}");
    assert!(on_disk >= spilled, "noise does not get smaller");
    Ok(())
}

fn a_result_whose_file_is_gone_is_computed_again() -> Outcome {
    let place = tempfile::tempdir()?;
    let cluster =
        LocalCluster::builder().workers(1).threads(1).settings(tight(2 * CHUNK, place.path())).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..6u64);
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    until("they are on disk", || Ok(metrics(&client)?.spilled >= 4 * CHUNK))?;
    let lost = files(place.path());
    assert!(lost.len() >= 4);
    lost.iter().for_each(|file| fs::remove_file(file).unwrap());
    let looked: Vec<_> = held.iter().zip(0u64..).map(|(chunk, i)| client.submit(wrong, (chunk, i))).collect();
    assert_eq!(client.gather(&looked)?, [0; 6]);
    for (chunk, i) in client.gather(&held)?.into_iter().zip(0..) {
        assert_eq!(wrong(chunk, i), 0);
    }
    Ok(())
}

/// Results of 160 MiB with 64 MiB of memory, and next to no disk.
fn full_disk() -> rankine::Result<()> {
    let place: PathBuf = env::var_os("RANKINE_LOCAL_DIRECTORY").unwrap().into();
    let mut settings = tight(64 << 20, &place);
    settings.memory_pause = Threshold(Some(0.8));
    let cluster = LocalCluster::builder().workers(1).threads(2).settings(settings).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..80u64);
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    let (mut kept, mut refused) = (Vec::new(), 0);
    for (future, i) in held.iter().zip(0..) {
        match future.result() {
            Ok(chunk) => {
                assert_eq!(wrong(chunk, i), 0);
                kept.push(i);
            }
            Err(Error::Task(error)) => {
                assert_eq!(error.kind, FailureKind::OutOfMemory, "{error}");
                assert!(error.message.contains("local-directory"), "{error}");
                refused += 1;
                if refused == 1 {
                    println!("{error}");
                }
            }
            Err(other) => return Err(other),
        }
    }
    println!("{} kept, {refused} refused", kept.len());
    // The worker lives, and what is small has room.
    assert_eq!(client.gather(client.map(|x: i64| x + 1, 0..100))?, (1..101).collect::<Vec<_>>());
    drop(held);
    let again = client.options().pure(false).submit(chunk, (3u64,));
    assert_eq!(wrong(again.result()?, 3), 0, "room that is there again is used");
    Ok(())
}

fn a_full_disk_errs_the_tasks_whose_results_find_no_place() -> Outcome {
    let place = tempfile::tempdir()?;
    let cage = Cage::small_disk(16 << 20, place.path());
    let variables = [("RANKINE_LOCAL_DIRECTORY", place.path().to_str().unwrap())];
    let end = cage.run("full-disk", &variables, Duration::from_secs(90));
    assert!(end.status.success(), "{}: {}", end.status, end.output);
    let reason = if matches!(cage, Cage::FileSystem(..)) { "No space left" } else { "File too large" };
    assert!(end.output.contains(reason), "{}", end.output);
    let told = end.output.lines().find(|line| line.ends_with("refused")).unwrap();
    let (kept, refused) = told.split_once(" kept, ").unwrap();
    let refused: u32 = refused.trim_end_matches(" refused").parse()?;
    let kept: u32 = kept.parse()?;
    // What memory and disk hold is kept, the rest is not.
    assert!(kept >= 20 && refused >= 30 && kept + refused == 80, "{told}");
    Ok(())
}

/// Takes ever more memory that is no result.
fn hog() -> u64 {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 8 << 20]);
        thread::sleep(Duration::from_millis(10));
        if taken.len() > 500 {
            return 0;
        }
    }
}

/// A cluster of one worker process whose task takes ever more memory.
fn endless() -> rankine::Result<()> {
    let mut settings = Settings::default();
    settings.memory_limit = MemoryLimit::Bytes(200 << 20);
    settings.log = "warn".into();
    let cluster = LocalCluster::builder().workers(1).threads(1).processes(true).settings(settings).start()?;
    let client = Client::from(cluster.client()?);
    let Err(Error::Task(error)) = client.submit(hog, ()).result() else { panic!("it should err") };
    assert_eq!(error.kind, FailureKind::KilledWorkers, "{error}");
    assert_eq!(client.submit(|x: i64| x + 1, (1,)).result()?, 2, "the next worker goes on");
    Ok(())
}

fn a_worker_that_runs_out_of_memory_is_replaced() -> Outcome {
    let mut command = Command::new(env::current_exe()?);
    command.env(PART, "endless");
    let end = wait(command, Duration::from_secs(90));
    assert!(end.status.success(), "{}: {}", end.status, end.output);
    assert!(end.output.matches("its memory runs out").count() >= 4, "{}", end.output);
    Ok(())
}

fn inputs_beyond_the_limit_are_read_all_the_same() -> Outcome {
    let place = tempfile::tempdir()?;
    let cluster =
        LocalCluster::builder().workers(1).threads(2).settings(tight(3 * CHUNK, place.path())).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..10u64);
    let all = |chunks: Vec<Chunk<u64>>| chunks.into_iter().zip(0..).map(|(c, i)| wrong(c, i)).sum::<u64>();
    let looked: Vec<TaskFuture<u64>> =
        (0..4).map(|_| client.options().pure(false).submit(all, (&held,))).collect();
    assert_eq!(client.gather(&looked)?, [0; 4]);
    Ok(())
}

fn a_paused_worker_leaves_the_work_to_others() -> Outcome {
    let place = tempfile::tempdir()?;
    let mut settings = tight(200 << 20, place.path());
    settings.memory_pause = Threshold(Some(0.8));
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).settings(settings).start()?;
    let client = Client::from(cluster.client()?);
    let names: Vec<String> =
        client.scheduler_info()?.workers.iter().map(|w| w.info.name.to_string()).collect();
    let hungry = |seconds: u64| {
        let taken = vec![1u8; 190 << 20];
        thread::sleep(Duration::from_secs(seconds));
        taken.len() as u64
    };
    let taken = client.options().workers([&*names[0]]).submit(hungry, (4u64,));
    until("it is paused", || Ok(client.scheduler_info()?.workers[0].paused))?;
    let where_run = |x: i64| {
        thread::sleep(Duration::from_millis(5));
        (x, rankine::worker_name().unwrap().to_string())
    };
    for (i, name) in client.gather(client.map(where_run, 0..100))?.into_iter() {
        assert_eq!(name, names[1], "task {i}");
    }
    assert_eq!(taken.result()?, 190 << 20);
    until("it goes on", || Ok(!client.scheduler_info()?.workers[0].paused))?;
    assert_eq!(client.options().workers([&*names[0]]).submit(|x: i64| x, (7,)).result()?, 7);
    Ok(())
}

fn what_was_freed_takes_no_place_on_disk() -> Outcome {
    let place = tempfile::tempdir()?;
    let cluster =
        LocalCluster::builder().workers(1).threads(1).settings(tight(2 * CHUNK, place.path())).start()?;
    let client = Client::from(cluster.client()?);
    let mut held = client.map(chunk, 0..8u64);
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    until("they are on disk", || Ok(metrics(&client)?.spilled >= 6 * CHUNK))?;
    let on_disk =
        || files(place.path()).iter().map(|file| fs::metadata(file).map_or(0, |m| m.len())).sum::<u64>();
    assert!(on_disk() >= 6 * CHUNK);
    held.truncate(1);
    until("their files are gone", || Ok(on_disk() <= CHUNK + 4096))?;
    assert_eq!(wrong(held[0].result()?, 0), 0);
    Ok(())
}

fn directories_are_private_and_go_with_their_process() -> Outcome {
    let place = tempfile::tempdir()?;
    let cluster =
        LocalCluster::builder().workers(2).threads(1).settings(tight(CHUNK, place.path())).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..6u64);
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    until("they are on disk", || Ok(files(place.path()).len() >= 4))?;
    let directories: Vec<_> = fs::read_dir(place.path())?.collect::<Result<_, _>>()?;
    assert_eq!(directories.len(), 1, "workers of one process share it");
    assert_eq!(directories[0].metadata()?.mode() & 0o7777, 0o700);
    assert!(files(place.path()).iter().all(|file| fs::metadata(file).unwrap().mode() & 0o7777 == 0o600));
    drop((held, client, cluster));
    assert_eq!(fs::read_dir(place.path())?.count(), 0);
    Ok(())
}

fn what_a_killed_process_left_is_removed_by_the_next() -> Outcome {
    let place = tempfile::tempdir()?;
    let settings = tight(CHUNK, place.path());
    let cluster = LocalCluster::builder().workers(1).threads(1).processes(true).settings(settings).start()?;
    let client = Client::from(cluster.client()?);
    let held = client.map(chunk, 0..4u64);
    client.wait(&held, ReturnWhen::AllCompleted, None)?;
    until("they are on disk", || Ok(files(place.path()).len() >= 3))?;
    let before: Vec<_> = fs::read_dir(place.path())?.map(|entry| entry.unwrap().file_name()).collect();
    Command::new("kill").args(["-9", &cluster.pids()[0].to_string()]).status()?;
    // Another takes its place, removes what it left, and computes its results again.
    let looked: Vec<_> = held.iter().zip(0u64..).map(|(chunk, i)| client.submit(wrong, (chunk, i))).collect();
    assert_eq!(client.gather(&looked)?, [0; 4]);
    until("what it left is gone", || Ok(!place.path().join(&before[0]).exists()))?;
    drop((held, looked, client, cluster));
    assert_eq!(fs::read_dir(place.path())?.count(), 0);
    Ok(())
}
