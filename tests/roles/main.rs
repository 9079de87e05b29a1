//! One executable in all its roles: alone, with worker processes, as scheduler, worker and client.
//!
//! This binary is the program as well: with `ROLES_PROGRAM` set its `main` is what a user would write.

mod asking;
mod cores;
mod ending;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, ExitCode, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use libtest_mimic::{Arguments, Failed, Trial};
use rankine::blocking::Client;

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if env::var_os("ROLES_PROGRAM").is_some() {
        return rankine::run(program);
    }
    let arguments = Arguments::from_args();
    let trials = vec![
        Trial::test("the_program_runs_alone", the_program_runs_alone),
        Trial::test("the_program_runs_on_processes_of_itself", the_program_runs_on_processes_of_itself),
        Trial::test("worker_processes_are_bound_to_cores", cores::worker_processes_are_bound_to_cores),
        Trial::test("separate_roles_work_together", separate_roles_work_together),
        Trial::test("another_executable_may_ask_why", asking::another_executable_may_ask_why),
        Trial::test("another_executable_may_ask_who_works", asking::another_executable_may_ask_who_works),
        Trial::test(
            "each_pair_of_peers_says_once_what_it_talks_over",
            each_pair_of_peers_says_once_what_it_talks_over,
        ),
        Trial::test("peers_on_another_host_take_the_next_best", peers_on_another_host_take_the_next_best),
        Trial::test(
            "a_worker_that_peers_cannot_reach_is_told_of",
            a_worker_that_peers_cannot_reach_is_told_of,
        ),
        Trial::test(
            "a_vanished_scheduler_ends_workers_and_clients",
            a_vanished_scheduler_ends_workers_and_clients,
        ),
        Trial::test("a_worker_that_is_told_to_go_hands_over", a_worker_that_is_told_to_go_hands_over),
        Trial::test("a_worker_whose_time_is_up_hands_over", a_worker_whose_time_is_up_hands_over),
        Trial::test(
            "a_worker_that_cannot_hand_over_goes_in_time",
            a_worker_that_cannot_hand_over_goes_in_time,
        ),
        Trial::test(
            "processes_of_a_task_of_slurms_are_not_tasks",
            processes_of_a_task_of_slurms_are_not_tasks,
        ),
        Trial::test("ctrl_c_leaves_nothing_behind", ending::ctrl_c_leaves_nothing_behind),
        Trial::test("a_panic_leaves_nothing_behind", ending::a_panic_leaves_nothing_behind),
        Trial::test(
            "a_killed_program_takes_its_workers_along",
            ending::a_killed_program_takes_its_workers_along,
        ),
        Trial::test("results_on_disk_go_with_the_program", ending::results_on_disk_go_with_the_program),
        Trial::test("the_default_scheduler_file_is_found", the_default_scheduler_file_is_found),
        Trial::test("a_scheduler_goes_on_when_nobody_reads_it", a_scheduler_goes_on_when_nobody_reads_it),
        Trial::test("wrong_command_lines_are_explained", wrong_command_lines_are_explained),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn sum(numbers: Vec<i64>) -> i64 {
    numbers.iter().sum()
}

/// `sum N` prints a sum of squares and how many workers there were; `fetch` fetches a result that is too big to come by
/// way of the scheduler; `wait` waits for ever; `panic` does; others are told of where they are.
async fn program(client: rankine::Client) -> rankine::Result<()> {
    let words = rankine::args();
    if words.first().is_some_and(|word| word == "wait") {
        println!("waiting");
        let long = client.submit(|| thread::sleep(Duration::from_secs(600)), ());
        return long.await;
    }
    if words.first().is_some_and(|word| word == "names") {
        thread::sleep(Duration::from_secs(3));
        for worker in client.scheduler_info().await?.workers {
            println!("{}", worker.info.name);
        }
        return Ok(());
    }
    if words.first().is_some_and(|word| word == "spill") {
        return ending::spill(client).await;
    }
    if words.first().is_some_and(|word| word == "cores") {
        return cores::of_workers(client).await;
    }
    if words.first().is_some_and(|word| word == "panic") {
        client.submit(|| (), ()).await?;
        thread::sleep(Duration::from_millis(300));
        panic!("the program's own mistake");
    }
    if words.first().is_some_and(|word| word == "fetch") {
        println!("{} bytes", client.submit(|| vec![1u8; 1 << 20], ()).await?.len());
        return Ok(());
    }
    let workers = words.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    client.wait_for_workers(workers).await?;
    let squares = client.map(|x: i64| x * x, 0..100);
    let total = client.submit(sum, (squares,));
    println!("{} on {workers}", total.await?);
    Ok(())
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program has a file"));
    command.env("ROLES_PROGRAM", "1").args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(words: &[&str]) -> Child {
    command(words).spawn().expect("it starts")
}

/// Waits for a process to end; one that does not is killed, and the test fails.
fn end(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output can be read")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come true");
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().expect("kill runs").success());
}

fn children(pid: u32) -> Vec<String> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let listed = fs::read_to_string(path).unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

fn the_program_runs_alone() -> Outcome {
    let output = end(start(&["--threads", "2", "sum"]));
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), "328350 on 1\n"));
    Ok(())
}

fn the_program_runs_on_processes_of_itself() -> Outcome {
    let output = end(start(&["sum", "2", "--processes", "2", "--threads=1"]));
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), "328350 on 2\n"));
    Ok(())
}

fn each_pair_of_peers_says_once_what_it_talks_over() -> Outcome {
    let output =
        end(start(&["sum", "2", "--processes", "2", "--threads=1", "--transport=tcp", "--log=info"]));
    let log = String::from_utf8(output.stderr.clone())?;
    let pairs: Vec<&str> = log.lines().filter_map(|line| line.split("talks over tcp peer=").nth(1)).collect();
    let said = |peer: &str| pairs.iter().filter(|pair| **pair == peer).count();
    // To the scheduler: two workers, the client, and who waited for the workers to come.
    assert_eq!(said(pairs[0]), 4, "{log}");
    // To a worker: the other worker and the client, if they want something.
    assert!(pairs.iter().all(|peer| *peer == pairs[0] || said(peer) <= 2), "{log}");
    let quiet = end(start(&["sum", "2", "--processes", "2", "--threads=1", "--transport=tcp"]));
    assert_eq!(String::from_utf8(quiet.stderr)?, "");
    Ok(())
}

/// A scheduler on loopback and its file.
fn scheduler(directory: &Path) -> (Child, String) {
    let file = directory.join("scheduler.json");
    let shown = file.to_string_lossy().into_owned();
    let child = start(&["scheduler", "--listen", "tcp://127.0.0.1:0", "--scheduler-file", &shown]);
    until("the scheduler file is there", || file.exists());
    (child, shown)
}

fn separate_roles_work_together() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let worker = || start(&["worker", "--scheduler-file", &file, "--threads", "1"]);
    let workers = [worker(), worker()];
    let output = end(start(&["client", "--scheduler-file", &file, "sum", "2"]));
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), "328350 on 2\n"));
    // Another secret is not let in.
    let forged = directory.path().join("forged.json");
    let mut told: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    told["secret"] = "0".repeat(64).into();
    fs::write(&forged, told.to_string())?;
    fs::set_permissions(&forged, fs::Permissions::from_mode(0o600))?;
    let refused = end(start(&["client", "--scheduler-file", &forged.to_string_lossy(), "sum"]));
    assert!(!refused.status.success() && text(&refused).contains("secret"), "{}", text(&refused));
    fs::set_permissions(&forged, fs::Permissions::from_mode(0o644))?;
    let refused = end(start(&["client", "--scheduler-file", &forged.to_string_lossy(), "sum"]));
    assert!(text(&refused).contains("can be read by others"), "{}", text(&refused));
    // The scheduler ends in order, takes its workers with it, and its file is gone.
    signal(&scheduler, "-TERM");
    end(scheduler);
    for worker in workers {
        let output = end(worker);
        assert!(output.status.success(), "{}", text(&output));
    }
    assert!(!fs::exists(&file)?);
    Ok(())
}

/// How often this process ran [`counted`].
static RUNS: AtomicU64 = AtomicU64::new(0);

fn counted(x: u64) -> u64 {
    RUNS.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(5));
    x
}

fn runs(client: &Client) -> rankine::Result<u64> {
    Ok(client.run(|| RUNS.load(Ordering::Relaxed), ())?.values().sum())
}

fn joined(file: &str) -> rankine::Result<Client> {
    let file = rankine::SchedulerFile::read(Path::new(file))?;
    Ok(Client::from(rankine::Client::connect(&file)?))
}

/// Twenty results on two workers; one of them `leaves`, with all its results handed to the other.
fn one_of_two_leaves(more: &[&str], leaves: impl Fn(&Child)) -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let worker =
        |more: &[&str]| start(&[&["worker", "--scheduler-file", &file, "--threads", "1"], more].concat());
    let (going, stays) = (worker(more), worker(&[]));
    let client = joined(&file)?;
    client.wait_for_workers(2)?;
    let results = client.map(counted, 0..20);
    client.wait(&results, rankine::ReturnWhen::AllCompleted, None)?;
    assert_eq!(runs(&client)?, 20);
    leaves(&going);
    let output = end(going);
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), ""));
    until("one worker is left", || client.scheduler_info().is_ok_and(|info| info.workers.len() == 1));
    assert!(runs(&client)? < 20, "the other ran some of them");
    assert_eq!(client.gather(&results)?, (0..20).collect::<Vec<u64>>());
    // Had a result been lost, it would have been computed again.
    let again = runs(&client)?;
    assert!(again < 20, "{again}");
    signal(&scheduler, "-TERM");
    end(scheduler);
    end(stays);
    Ok(())
}

fn a_worker_that_is_told_to_go_hands_over() -> Outcome {
    one_of_two_leaves(&[], |worker| signal(worker, "-TERM"))?;
    one_of_two_leaves(&[], |worker| signal(worker, "-USR1"))
}

fn a_worker_whose_time_is_up_hands_over() -> Outcome {
    one_of_two_leaves(&["--lifetime", "2"], |_| {})
}

/// Nobody is there to take its results.
fn a_worker_that_cannot_hand_over_goes_in_time() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let client = joined(&file)?;
    let worker = start(&["worker", "--scheduler-file", &file, "--handover", "1"]);
    let result = client.submit(counted, (7,));
    until("the result is there", || result.is_done());
    signal(&worker, "-TERM");
    let output = end(worker);
    assert!(output.status.success() && text(&output).contains("not all results could be handed over"));
    // What it took along is computed again.
    let other = start(&["worker", "--scheduler-file", &file]);
    let result = result.result();
    signal(&scheduler, "-TERM");
    end(scheduler);
    end(other);
    assert_eq!(result?, 7);
    Ok(())
}

/// How this user starts a process with mounts of its own, if at all.
fn unshare() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(*way).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// A process on another host, as far as shared memory can tell: of another boot of the system.
fn elsewhere(unshare: &[&str], boot: &Path, words: &[&str]) -> Command {
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let here = command(words);
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", script]).arg(boot).arg(here.get_program()).args(here.get_args());
    command.env("ROLES_PROGRAM", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process that ends with the test, however that goes.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where there is RDMA that is verbs, and `ROLES_NEXT_BEST` says so; otherwise tcp.
fn peers_on_another_host_take_the_next_best() -> Outcome {
    let next_best = env::var("ROLES_NEXT_BEST").unwrap_or_else(|_| "tcp".into());
    let Some(unshare) = unshare() else {
        println!("SKIPPED: this user may not have mounts of its own (unshare --mount)");
        return if env::var_os("CI").is_some() { Err("nothing is skipped in CI".into()) } else { Ok(()) };
    };
    let directory = tempfile::tempdir()?;
    let boot = directory.path().join("boot_id");
    fs::write(&boot, "00000000-0000-4000-8000-000000000000\n")?;
    let file = directory.path().join("scheduler.json");
    let shown = file.to_string_lossy();
    // On all transports there are.
    let _scheduler = Ending(start(&["scheduler", "--scheduler-file", &shown]));
    until("the scheduler file is there", || file.exists());
    let _worker = Ending(start(&["worker", "--scheduler-file", &shown, "--threads", "1"]));
    let words = ["client", "--scheduler-file", &shown, "--log=info", "fetch"];
    for (expected, mut client) in [("shm", command(&words)), (&*next_best, elsewhere(unshare, &boot, &words))]
    {
        let output = end(client.spawn().expect("it starts"));
        let log = text(&output);
        assert!(output.status.success() && log.starts_with("1048576 bytes\n"), "{log}");
        let pairs: Vec<&str> =
            log.lines().filter_map(|line| line.split_once(" talks over ")).map(|(_, pair)| pair).collect();
        // To the scheduler and to the worker.
        assert_eq!(pairs.len(), 2, "{log}");
        for pair in pairs {
            assert!(pair.starts_with(&format!("{expected} peer={expected}://")), "{log}");
            // Whom it reaches says where, the best first.
            let (_, contact) = pair.split_once("of=").expect("a contact");
            let schemes: Vec<&str> =
                contact.trim_matches('"').split(' ').filter_map(|at| at.split("://").next()).collect();
            let mut all = vec!["inproc", "shm", &next_best, "tcp"];
            all.dedup();
            assert_eq!(schemes, all, "{log}");
        }
    }
    Ok(())
}

fn a_worker_that_peers_cannot_reach_is_told_of() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let _scheduler = Ending(scheduler);
    let worker = |more: &[&str]| {
        let words = ["worker", "--scheduler-file", &file, "--threads", "1"];
        Ending(start(&[&words, more].concat()))
    };
    // One talks over TCP alone, and the other listens on shared memory alone.
    let _hidden = worker(&["--name", "hidden", "--listen", "shm://*"]);
    let mut asks = worker(&["--name", "asks", "--transport", "tcp"]);
    let (said, log) = (asks.0.stderr.take().ok_or("it is captured")?, Arc::new(Mutex::new(String::new())));
    let heard = log.clone();
    thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            *heard.lock().unwrap() += &(line + "\n");
        }
    });
    let client = joined(&file)?;
    client.wait_for_workers(2)?;
    let there = client.options().workers(["hidden"]).submit(|| vec![1i64; 1 << 17], ());
    let total = client.options().workers(["asks"]).submit(sum, (&there,));
    let warning = "a worker that lives cannot be reached from here";
    until("the warning", || log.lock().unwrap().contains(warning));
    let before = client.story(there.key())?.len();
    // It goes on trying, and says it once.
    until("it is tried again", || client.story(there.key()).is_ok_and(|story| story.len() > before + 20));
    let log = log.lock().unwrap().clone();
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert!(
        log.contains("shm://") && log.contains("--interface"),
        "where it was looked for, and what to do: {log}"
    );
    // Who can be reached gets both.
    client.cancel(&[total]);
    assert_eq!(client.options().pure(false).submit(sum, (there,)).result()?, 1 << 17);
    Ok(())
}

fn a_vanished_scheduler_ends_workers_and_clients() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let worker = start(&["worker", "--scheduler-file", &file, "--threads", "1"]);
    let client = start(&["client", "--scheduler-file", &file, "sum", "99"]);
    thread::sleep(Duration::from_millis(300));
    signal(&scheduler, "-KILL");
    let killed = Instant::now();
    end(scheduler);
    for orphan in [worker, client] {
        let output = end(orphan);
        let text = text(&output);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains("lost the connection") || text.contains("cluster is gone"), "{text}");
    }
    assert!(killed.elapsed() < Duration::from_secs(10));
    Ok(())
}

/// They have names of their own, and do not leave at the job's end by themselves.
fn processes_of_a_task_of_slurms_are_not_tasks() -> Outcome {
    let end_time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 2;
    let mut command = command(&["names", "--processes", "2", "--threads", "1", "--handover", "1"]);
    for (name, value) in
        [("JOB_ID", 7), ("STEP_ID", 0), ("PROCID", 0), ("STEP_NUM_TASKS", 1), ("JOB_END_TIME", end_time)]
    {
        command.env(format!("SLURM_{name}"), value.to_string());
    }
    let output = end(command.spawn()?);
    let text = text(&output);
    let mut names: Vec<&str> = text.lines().collect();
    names.dedup();
    assert!(output.status.success() && names.len() == 2 && !text.contains("slurm-"), "{text}");
    Ok(())
}

fn the_default_scheduler_file_is_found() -> Outcome {
    let home = tempfile::tempdir()?;
    let at_home = |words: &[&str]| command(words).env("RANKINE_HOME", home.path()).spawn();
    let scheduler = at_home(&["scheduler", "--listen", "tcp://127.0.0.1:0"])?;
    let found = || fs::read_dir(home.path()).ok()?.next()?.ok().map(|entry| entry.path());
    until("the scheduler file is there", || {
        found().is_some_and(|path| path.extension().is_some_and(|e| e == "json"))
    });
    let file = found().ok_or("it is gone")?;
    let told: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let address = told["address"].as_str().ok_or("no address")?;
    assert_eq!(told["build_id"].as_str(), Some(rankine::task::build_id()));
    let worker = at_home(&["worker", address, "--threads", "1"])?;
    let output = end(at_home(&["client", address, "sum"])?);
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), "328350 on 1\n"));
    signal(&scheduler, "-INT");
    end(scheduler);
    end(worker);
    assert!(!file.exists());
    Ok(())
}

/// As in `program scheduler | head -1`.
fn a_scheduler_goes_on_when_nobody_reads_it() -> Outcome {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("scheduler.json").to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let words = ["scheduler", "--listen", "tcp://127.0.0.1:0", "--scheduler-file", &file];
    let scheduler = command(&words).stdout(writer).spawn()?;
    until("the scheduler file is there", || Path::new(&file).exists());
    let worker = start(&["worker", "--scheduler-file", &file, "--threads", "1"]);
    let output = end(start(&["client", "--scheduler-file", &file, "sum"]));
    assert_eq!((output.status.code(), &*text(&output)), (Some(0), "328350 on 1\n"));
    signal(&scheduler, "-TERM");
    let output = end(scheduler);
    assert!(!text(&output).contains("panicked"), "{}", text(&output));
    end(worker);
    Ok(())
}

fn wrong_command_lines_are_explained() -> Outcome {
    for (words, expected) in [
        (&["worker"][..], "name the scheduler"),
        (&["worker", "--scheduler-file", "/nowhere/s.json"], "is the scheduler running?"),
        (&["--threads", "none"], "takes a whole number"),
        (&["--memory-limit", "much"], "no amount of bytes"),
        (&["scheduler", "--colour"], "does not know `--colour`"),
        (&["scheduler", "--listen", "here"], "it has no scheme"),
        (&["--handover", "-1"], "from 0 up"),
        (&["sum", "--bind-cores"], "threads of this process cannot"),
    ] {
        let output = end(start(words));
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(expected), "{words:?}: {}", text(&output));
    }
    let help = end(start(&["worker", "--help"]));
    assert!(help.status.success() && text(&help).contains("PROGRAM scheduler"));
    Ok(())
}
