//! What a cluster takes at its limits: many connections, many tasks at once, big results, wide and deep graphs.
//!
//! The binary is its own cluster, so `main` begins as a program of Rankine's does.

use std::{
    env, fs,
    path::Path,
    process::{self, Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{LocalCluster, SchedulerFile, Settings, array::Chunk, blocking::Client};

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if env::var_os("LIMITS_PROGRAM").is_some() {
        return rankine::run(program);
    }
    rankine::init();
    let trials = vec![
        Trial::test("a_thousand_clients_are_served", a_thousand_clients_are_served),
        Trial::test(
            "who_submits_faster_than_the_scheduler_takes_in_waits",
            who_submits_faster_than_the_scheduler_takes_in_waits,
        ),
        Trial::test("a_result_of_more_than_4_gib_arrives_whole", a_result_of_more_than_4_gib_arrives_whole),
        Trial::test("a_task_may_have_ten_thousand_dependencies", a_task_may_have_ten_thousand_dependencies),
        Trial::test("a_chain_of_100_000_tasks_ends", a_chain_of_100_000_tasks_ends),
        Trial::test("the_first_of_equal_keys_stands", the_first_of_equal_keys_stands),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A process of this program that ends with the test, however that goes.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.signal("-CONT");
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(words: &[&str]) -> Result<Self, Failed> {
        Self::submitting(tasks(), words)
    }

    /// One that submits so many tasks, if it is a client.
    fn submitting(tasks: u64, words: &[&str]) -> Result<Self, Failed> {
        // As many systems have it: a thousand connections are more than that allows.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n 512; exec \"$@\"", "sh"]).arg(env::current_exe()?);
        command.args(words).env("LIMITS_PROGRAM", "1").env("LIMITS_TASKS", tasks.to_string());
        command.stdout(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    fn signal(&self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
    }

    /// Of its memory, in MiB: what it occupies now (`VmRSS`), or did at most (`VmHWM`).
    fn memory(&self, which: &str) -> Result<u64, Failed> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with(which)).ok_or("no such line")?;
        let kib = line.split_whitespace().nth(1).ok_or("no figure")?;
        Ok(kib.parse::<u64>()? / 1024)
    }
}

/// A scheduler of its own, with workers, all processes.
fn cluster(directory: &Path, workers: usize) -> Result<(Process, Vec<Process>, String), Failed> {
    let file = directory.join("scheduler.json");
    let shown = file.to_string_lossy().into_owned();
    let scheduler =
        Process::start(&["scheduler", "--listen", "tcp://127.0.0.1:0", "--scheduler-file", &shown])?;
    until("the scheduler file is there", || file.exists())?;
    let worker = |_| Process::start(&["worker", "--scheduler-file", &shown, "--threads", "1"]);
    let workers = (0..workers).map(worker).collect::<Result<Vec<_>, _>>()?;
    Ok((scheduler, workers, shown))
}

fn until(what: &str, holds: impl Fn() -> bool) -> Outcome {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("{what} did not come true").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn inc(x: u64) -> u64 {
    x + 1
}

fn a_thousand_clients_are_served() -> Outcome {
    const CLIENTS: u64 = 1000;
    let directory = tempfile::tempdir()?;
    let (scheduler, _workers, file) = cluster(directory.path(), 2)?;
    let file = SchedulerFile::read(Path::new(&file))?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::from(rankine::Client::connect(&file)?));
    }
    clients[0].wait_for_workers(2)?;
    assert_eq!(clients[0].scheduler_info()?.clients as u64, CLIENTS);
    let futures: Vec<_> = clients.iter().zip(0..).map(|(client, n)| client.submit(inc, (n,))).collect();
    for (future, n) in futures.iter().zip(0..) {
        assert_eq!(future.result()?, n + 1);
    }
    // Each connection costs the scheduler little.
    let memory = scheduler.memory("VmRSS")?;
    assert!(memory < 500, "{memory} MiB");
    drop((futures, clients));
    let client = Client::from(rankine::Client::connect(&file)?);
    until("all are gone", || client.scheduler_info().is_ok_and(|info| info.clients == 1))?;
    assert_eq!(client.submit(inc, (1,)).result()?, 2);
    Ok(())
}

/// Tasks submitted at once: `LIMITS_TASKS`, or as many as a slow build runs in seconds.
fn tasks() -> u64 {
    env::var("LIMITS_TASKS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
}

/// What each of them carries.
const BALLAST: usize = 8192;

/// Submits tasks, each with KiB of its own, as fast as it can, and says how many came back right.
async fn program(client: rankine::Client) -> rankine::Result<()> {
    let futures: Vec<_> = (0..tasks())
        .map(|n| {
            let mut ballast = [0u8; BALLAST];
            ballast[..8].copy_from_slice(&n.to_le_bytes());
            // No other client's calls are equal.
            ballast[8..12].copy_from_slice(&process::id().to_le_bytes());
            client.submit(
                |ballast: Vec<u8>| u64::from_le_bytes(ballast[..8].try_into().unwrap_or_default()),
                (ballast.to_vec(),),
            )
        })
        .collect();
    println!("submitted");
    let right = client.gather(&futures).await?.into_iter().zip(0..).filter(|(result, n)| result == n).count();
    println!("{right}");
    Ok(())
}

fn who_submits_faster_than_the_scheduler_takes_in_waits() -> Outcome {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir()?;
    let (scheduler, _workers, file) = cluster(directory.path(), 2)?;
    let mut client = Process::start(&["client", "--scheduler-file", &file])?;
    // The scheduler takes nothing for a while: the client waits, and its memory is bounded.
    thread::sleep(Duration::from_millis(500));
    scheduler.signal("-STOP");
    thread::sleep(Duration::from_secs(4));
    let stopped = client.memory("VmRSS")?;
    assert!(stopped < 400, "{stopped} MiB");
    scheduler.signal("-CONT");
    let mut lines = BufReader::new(client.0.stdout.take().ok_or("its output")?).lines();
    assert_eq!(lines.next().ok_or("a line")??, "submitted");
    let most = client.memory("VmHWM")?;
    // But for what its futures take, which are the program's own, it is far from what all arguments together are.
    let all = (tasks() * BALLAST as u64) >> 20;
    assert!(most < 400 + tasks() / 1000 && most < all, "{most} of {all} MiB");
    assert_eq!(lines.next().ok_or("a line")??, tasks().to_string());
    // The scheduler keeps the arguments of all tasks that somebody wants, since it may have to have them computed
    // again: once, and with each less than a KiB of its own.
    let kept = scheduler.memory("VmHWM")?;
    assert!(kept < 100 + all + tasks() / 1024, "{kept} MiB for {all} MiB of arguments");
    // With their client it lets go of them: the next one's take their place.
    drop(client);
    let few = tasks() / 4;
    let mut client = Process::submitting(few, &["client", "--scheduler-file", &file])?;
    let mut lines = BufReader::new(client.0.stdout.take().ok_or("its output")?).lines();
    assert_eq!(lines.nth(1).ok_or("two lines")??, few.to_string());
    let after = scheduler.memory("VmHWM")?;
    assert!(after < kept + all / 16 + 10, "{kept} MiB, and {after} MiB after another client");
    println!(
        "the client's memory: {stopped} MiB while the scheduler was stopped, {most} MiB at most; the scheduler's: {kept} MiB"
    );
    Ok(())
}

/// More than 4 GiB, and no multiple of anything.
const BIG: usize = (4 << 30) + 12_345;
/// Bytes that are written and compared at once, since a slow build does well with each.
const PIECE: usize = 4096;

/// Bytes that nothing makes smaller, of which each piece of a result is another part.
fn noise() -> Vec<u8> {
    let number = |n: u64| (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_mul(n | 1);
    (0..1 << 14).flat_map(|n| number(n).to_le_bytes()).collect()
}

/// What the piece of that number is: the number, and noise.
fn piece(noise: &[u8], number: usize) -> ([u8; 8], &[u8]) {
    let from = number.wrapping_mul(40_503) % (noise.len() - PIECE);
    (number.to_le_bytes(), &noise[from..from + PIECE - 8])
}

fn big() -> Chunk<u8> {
    let noise = noise();
    let mut bytes = vec![0; BIG];
    for (number, at) in (0..BIG).step_by(PIECE).enumerate() {
        let (name, rest) = piece(&noise, number);
        let end = BIG.min(at + PIECE);
        bytes[at..at + 8].copy_from_slice(&name);
        bytes[at + 8..end].copy_from_slice(&rest[..end - at - 8]);
    }
    Chunk::from_vec(bytes, &[BIG]).expect("so many there are")
}

/// Where it is not what was made, piece by piece; `None` if it is, all of it.
fn differs(bytes: &[u8]) -> Option<usize> {
    let noise = noise();
    let is_right = |(number, bytes): (usize, &[u8])| {
        let (name, rest) = piece(&noise, number);
        bytes[..8] == name && bytes[8..] == rest[..bytes.len() - 8]
    };
    if bytes.len() != BIG {
        return Some(bytes.len());
    }
    bytes.chunks(PIECE).enumerate().position(|piece| !is_right(piece))
}

/// From a worker to the client, and to another worker: one after the other, since each is another 4 GiB.
fn a_result_of_more_than_4_gib_arrives_whole() -> Outcome {
    for transport in ["shm", "tcp"] {
        let mut settings = Settings::default();
        settings.transport = transport.into();
        let builder = LocalCluster::builder().workers(2).threads(1).processes(true).settings(settings);
        let cluster = builder.start()?;
        let client = Client::from(cluster.client()?);
        let workers = client.scheduler_info()?.workers;
        for worker in &workers {
            assert!(worker.info.contact.starts_with(transport), "{}", worker.info.contact);
        }
        let at = |worker: usize| client.options().workers([&*workers[worker].info.name]);
        let made = at(0).submit(big, ());
        let here: Chunk<u8> = made.result()?;
        assert_eq!(differs(here.as_slice().ok_or("it lies in one piece")?), None, "over {transport}");
        drop(here);
        let look = |there: Chunk<u8>| (differs(there.as_slice().unwrap_or_default()), process::id());
        let (different, looker) = at(1).submit(look, (&made,)).result()?;
        assert_eq!(different, None, "over {transport}");
        assert_eq!(looker, workers[1].info.pid, "it went to the other process");
    }
    Ok(())
}

fn a_task_may_have_ten_thousand_dependencies() -> Outcome {
    for processes in [false, true] {
        let cluster = LocalCluster::builder().workers(2).threads(1).processes(processes).start()?;
        let client = Client::from(cluster.client()?);
        let parts = client.map(inc, 0..10_000);
        let total = client.submit(|parts: Vec<u64>| parts.iter().sum::<u64>(), (&parts,));
        assert_eq!(total.result()?, (1..=10_000).sum::<u64>());
    }
    Ok(())
}

fn a_chain_of_100_000_tasks_ends() -> Outcome {
    let cluster = LocalCluster::builder().workers(2).threads(1).start()?;
    let client = Client::from(cluster.client()?);
    let mut last = client.submit(inc, (0,));
    for _ in 1..100_000 {
        last = client.submit(inc, (last,));
    }
    assert_eq!(last.result()?, 100_000);
    Ok(())
}

/// As in Dask: who asks for a key that is there already gets what it stands for.
fn the_first_of_equal_keys_stands() -> Outcome {
    let cluster = LocalCluster::builder().workers(1).threads(1).start()?;
    let (client, other) = (Client::from(cluster.client()?), Client::from(cluster.client()?));
    let first = client.options().key("one").submit(inc, (1,));
    assert_eq!(first.result()?, 2);
    let second = client.options().key("one").submit(inc, (10,));
    let elsewhere = other.options().key("one").submit(inc, (100,));
    assert_eq!((second.result()?, elsewhere.result()?), (2, 2));
    drop((first, second, elsewhere));
    until("it is forgotten", || client.scheduler_info().is_ok_and(|info| info.tasks.is_empty()))?;
    assert_eq!(client.options().key("one").submit(inc, (10,)).result()?, 11);
    Ok(())
}
