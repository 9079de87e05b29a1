//! One executable as the ranks of an MPI job: roles without configuration, and how a job ends.
//!
//! This binary is the program as well: with `RANKS_PROGRAM` set its `main` is what a user would write. The
//! launcher is `$RANKINE_MPIRUN`, or `mpirun`; it must be that of the MPI library that this was built with.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{Client, array::Chunk};

type Outcome = Result<(), Failed>;

/// A job that takes longer does not end.
const BOUND: Duration = Duration::from_secs(40);

fn main() -> ExitCode {
    if env::var_os("RANKS_PROGRAM").is_some() {
        return rankine::run(program);
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {$(trials.push(Trial::test(stringify!($name), $name));)*};
    }
    trials!(
        every_rank_but_the_first_is_a_worker,
        one_rank_alone_runs_everything,
        the_first_rank_computes_too_if_it_is_to,
        another_rank_runs_the_program_if_it_is_to,
        the_transport_asked_for_carries_it,
        results_that_do_not_fit_into_ranks_go_to_disk,
        processes_that_a_rank_starts_are_no_ranks,
        a_rank_has_a_thread_for_each_core_it_is_bound_to,
        the_programs_status_is_the_launchers,
        an_error_ends_the_job_and_is_told_once,
        a_panic_ends_the_job,
        a_worker_that_dies_ends_the_job,
        a_worker_that_stands_still_does_not_keep_the_others,
        a_task_that_never_ends_does_not_keep_the_job,
        a_worker_that_leaves_waits_for_the_others,
        signals_end_the_job,
        mistakes_are_told_once,
        another_executable_among_the_ranks_is_refused,
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn sum(numbers: Vec<i64>) -> i64 {
    numbers.iter().sum()
}

/// Numbers of a chunk: 4 MiB.
const NUMBERS: usize = 1 << 19;

/// The `j`th number of chunk `i`: noise, which no compression makes smaller.
fn number(i: u64, j: u64) -> u64 {
    let mixed = (i << 32 | j).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

fn chunk(i: u64) -> Chunk<u64> {
    Chunk::from_vec((0..NUMBERS as u64).map(|j| number(i, j)).collect(), &[NUMBERS]).expect("it has so many")
}

/// How many numbers of two chunks are not what they were.
fn wrong(chunks: Vec<Chunk<u64>>, first: u64) -> usize {
    let of = |(chunk, i): (&Chunk<u64>, u64)| {
        let numbers = chunk.as_slice().expect("it has no gaps");
        numbers.iter().zip(0..).filter(|(found, j)| **found != number(i, *j)).count()
    };
    chunks.iter().zip(first..).map(of).sum()
}

/// `sum` prints a sum of squares and how many workers there were, `places` who they are, `chunks` makes 160 MiB
/// and looks at them in pairs that lie on two workers, `exit` ends with a status, `error`, `panic` and `die` as they
/// say, `wait` never, `leave` with a task that never ends.
async fn program(client: Client) -> rankine::Result<ExitCode> {
    let words = rankine::args();
    let word = words.first().map_or("sum", String::as_str);
    let workers = client.scheduler_info().await?.workers;
    match word {
        "sum" => {
            let squares = client.map(|x: i64| x * x, 0..100);
            println!("{} on {}", client.submit(sum, (squares,)).await?, workers.len());
        }
        "places" => {
            for worker in workers {
                println!(
                    "{} of {} threads at {}",
                    worker.info.name, worker.info.nthreads, worker.info.contact
                );
            }
        }
        "chunks" => {
            let names: Vec<&str> = workers.iter().map(|worker| &*worker.info.name).collect();
            let on = |i: u64| client.options().workers([names[i as usize % names.len()]]);
            let held: Vec<_> = (0..40).map(|i| on(i).submit(chunk, (i,))).collect();
            client.wait(&held, Default::default(), None).await?;
            // What has gone is told by heartbeats.
            let (start, mut spilled) = (Instant::now(), 0);
            while spilled < 80 << 20 && start.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(100));
                let workers = client.scheduler_info().await?.workers;
                spilled = workers.iter().map(|worker| worker.metrics.spilled).sum::<u64>();
            }
            let pairs = held.chunks(2).zip((0..).step_by(2));
            let looked: Vec<_> = pairs.map(|(pair, first)| client.submit(wrong, (pair, first))).collect();
            let wrong: usize = client.gather(&looked).await?.into_iter().sum();
            println!("{wrong} wrong of {}, {} MiB spilled", held.len(), spilled >> 20);
        }
        "exit" => return Ok(ExitCode::from(words[1].parse::<u8>().unwrap_or(99))),
        "error" => drop(client.try_submit(|| Err::<(), _>("a mistake of the task's".to_owned()), ()).await?),
        "panic" => panic!("the program's own mistake"),
        "die" => {
            client
                .submit(
                    || drop(Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status()),
                    (),
                )
                .await?
        }
        "stop" => {
            let stop =
                || drop(Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status());
            let stopped = client.submit(stop, ());
            client.wait(&[stopped], Default::default(), Some(Duration::from_millis(500))).await.ok();
            println!("done");
        }
        "retire" => {
            // Longer than others are waited for at the end.
            println!("{} left", client.retire_workers(["rank-1"]).await?.len());
            client.submit(|| thread::sleep(Duration::from_secs(6)), ()).await?;
            println!("{} stayed", client.scheduler_info().await?.workers.len());
        }
        "leave" => {
            let endless = client.submit(|| thread::sleep(Duration::from_secs(600)), ());
            client.wait(&[endless], Default::default(), Some(Duration::from_millis(200))).await.ok();
            println!("done");
        }
        _ => {
            println!("waiting");
            client.submit(|| thread::sleep(Duration::from_secs(600)), ()).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A job of so many ranks.
fn job(ranks: usize, words: &[&str]) -> Command {
    launched(&["-n", &ranks.to_string()], words)
}

fn launched(launch: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(launcher());
    command.args(launch).arg(env::current_exe().expect("this program has a file")).args(words);
    command.env("RANKS_PROGRAM", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ranks beyond the cores give way to each other, and none is bound to the core of another.
    for name in [
        "ALLOW_RUN_AS_ROOT",
        "ALLOW_RUN_AS_ROOT_CONFIRM",
        "MCA_rmaps_base_oversubscribe",
        "MCA_mpi_yield_when_idle",
    ] {
        command.env(format!("OMPI_{name}"), "1");
    }
    command.env("OMPI_MCA_hwloc_base_binding_policy", "none");
    // So that nothing is left behind if a test fails.
    command.process_group(0);
    command
}

fn launcher() -> String {
    env::var("RANKINE_MPIRUN").unwrap_or_else(|_| "mpirun".into())
}

fn is_open_mpi() -> bool {
    let version = Command::new(launcher()).arg("--version").output().expect("the launcher starts");
    String::from_utf8_lossy(&version.stdout).contains("Open MPI")
}

fn run(mut command: Command) -> Ended {
    end(command.spawn().expect("the launcher starts"))
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
    took: Duration,
}

impl Ended {
    fn all(&self) -> String {
        format!("status {:?} after {:.1?}\n{}{}", self.code, self.took, self.out, self.err)
    }
}

/// Waits for a job's end; one that does not end is killed, and the test fails.
fn end(mut child: Child) -> Ended {
    let start = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if start.elapsed() > BOUND {
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let Output { stdout, stderr, .. } = child.wait_with_output().expect("its output can be read");
            panic!(
                "the job does not end: {}{}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its output can be read");
    let text = |bytes| String::from_utf8(bytes).expect("it is text");
    Ended { code: status.code(), out: text(stdout), err: text(stderr), took }
}

/// What a job says that ends well: nothing that is not the program's.
fn said(command: Command) -> Result<String, Failed> {
    let ended = run(command);
    if ended.code != Some(0) || !ended.err.is_empty() {
        return Err(ended.all().into());
    }
    Ok(ended.out)
}

fn every_rank_but_the_first_is_a_worker() -> Outcome {
    for ranks in [2, 4, 8] {
        assert_eq!(said(job(ranks, &["sum"]))?, format!("328350 on {}\n", ranks - 1));
    }
    let places = said(job(4, &["places", "--threads", "1"]))?;
    for rank in 1..4 {
        let line = places.lines().find(|line| line.starts_with(&format!("rank-{rank} ")));
        let line = line.ok_or_else(|| places.clone())?;
        assert!(line.contains(" 1 threads at ") && line.contains("mpi://"), "{line}");
    }
    Ok(())
}

fn one_rank_alone_runs_everything() -> Outcome {
    assert_eq!(said(job(1, &["sum"]))?, "328350 on 1\n");
    let places = said(job(1, &["places"]))?;
    assert!(places.contains("inproc://") && !places.contains("mpi://"), "{places}");
    Ok(())
}

fn the_first_rank_computes_too_if_it_is_to() -> Outcome {
    let places = said(job(3, &["places", "--worker-on-scheduler-rank"]))?;
    let names: Vec<&str> = places.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["rank-0", "rank-1", "rank-2"]);
    assert_eq!(said(job(3, &["sum", "--worker-on-scheduler-rank"]))?, "328350 on 3\n");
    Ok(())
}

fn another_rank_runs_the_program_if_it_is_to() -> Outcome {
    assert_eq!(said(job(4, &["sum", "--client-rank", "1"]))?, "328350 on 2\n");
    let ended = run(job(4, &["exit", "7", "--client-rank=1"]));
    assert_eq!(ended.code, Some(7), "{}", ended.all());
    let panicked = run(job(4, &["panic", "--client-rank=1"]));
    assert_eq!(panicked.code, Some(101), "{}", panicked.all());
    Ok(())
}

fn the_transport_asked_for_carries_it() -> Outcome {
    let places = said(job(3, &["places", "--transport", "tcp"]))?;
    assert!(places.contains("tcp://") && !places.contains("mpi://"), "{places}");
    assert_eq!(said(job(3, &["sum", "--transport", "tcp"]))?, "328350 on 2\n");
    let places = said(job(3, &["places", "--transport", "auto"]))?;
    // The preferred first.
    let order = ["shm://", "mpi://", "tcp://"].map(|scheme| places.find(scheme));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{places}");
    assert_eq!(said(job(3, &["sum", "--transport", "auto"]))?, "328350 on 2\n");
    Ok(())
}

fn results_that_do_not_fit_into_ranks_go_to_disk() -> Outcome {
    let place = tempfile::tempdir()?;
    let directory = place.path().to_string_lossy().into_owned();
    // Two workers hold 80 MiB each, and may hold 24.
    let words = ["chunks", "--memory-limit", "24MiB", "--local-directory", &directory, "--threads", "1"];
    let said = said(job(3, &words))?;
    let spilled = said.strip_prefix("0 wrong of 40, ").and_then(|said| said.split(' ').next());
    let spilled: u64 = spilled.and_then(|mib| mib.parse().ok()).ok_or_else(|| said.clone())?;
    assert!(spilled >= 80, "{said}");
    assert_eq!(fs::read_dir(&place)?.count(), 0, "nothing is left on disk");
    Ok(())
}

fn processes_that_a_rank_starts_are_no_ranks() -> Outcome {
    assert_eq!(said(job(1, &["sum", "--processes", "2", "--threads", "1"]))?, "328350 on 2\n");
    Ok(())
}

fn a_rank_has_a_thread_for_each_core_it_is_bound_to() -> Outcome {
    let cores = thread::available_parallelism()?.get();
    let threads = |command| -> Result<Vec<usize>, Failed> {
        let places = said(command)?;
        let threads = |line: &str| line.split(" of ").nth(1)?.split(' ').next()?.parse().ok();
        Ok(places.lines().filter_map(threads).collect())
    };
    // Bound to nothing in particular, the ranks of a host share its cores.
    assert_eq!(threads(job(2, &["places"]))?, [(cores / 2).max(1)]);
    assert_eq!(threads(job(8, &["places"]))?, [(cores / 8).max(1); 7]);
    if is_open_mpi() && cores > 1 {
        let bound = ["-n", "2", "--bind-to", "core", "--map-by", "core"];
        assert_eq!(threads(launched(&bound, &["places"]))?, [1]);
    }
    Ok(())
}

fn the_programs_status_is_the_launchers() -> Outcome {
    let ended = run(job(3, &["exit", "3"]));
    assert_eq!((ended.code, &*ended.out), (Some(3), ""), "{}", ended.all());
    assert!(ended.took < Duration::from_secs(10), "{}", ended.all());
    Ok(())
}

fn an_error_ends_the_job_and_is_told_once() -> Outcome {
    let ended = run(job(3, &["error"]));
    assert_eq!(ended.code, Some(1), "{}", ended.all());
    assert_eq!(ended.err.matches("a mistake of the task's").count(), 1, "{}", ended.all());
    Ok(())
}

fn a_panic_ends_the_job() -> Outcome {
    let ended = run(job(3, &["panic"]));
    assert_eq!(ended.code, Some(101), "{}", ended.all());
    assert_eq!(ended.err.matches("the program's own mistake").count(), 1, "{}", ended.all());
    assert!(ended.took < Duration::from_secs(10), "{}", ended.all());
    Ok(())
}

/// Under plain MPI a rank's death is the job's; the launcher says which it was.
fn a_worker_that_dies_ends_the_job() -> Outcome {
    let ended = run(job(3, &["die"]));
    assert!(ended.code != Some(0), "{}", ended.all());
    assert!(
        ended.all().contains("signal 9") || ended.all().contains("KILLED BY SIGNAL: 9"),
        "{}",
        ended.all()
    );
    assert!(ended.took < Duration::from_secs(15), "{}", ended.all());
    no_process_is_left();
    Ok(())
}

fn a_worker_that_stands_still_does_not_keep_the_others() -> Outcome {
    let ended = run(job(3, &["stop"]));
    assert!(ended.out.starts_with("done\n"), "{}", ended.all());
    assert!(ended.took < Duration::from_secs(20), "{}", ended.all());
    assert_eq!(ended.err.matches("not all ranks ended").count(), 1, "{}", ended.all());
    no_process_is_left();
    Ok(())
}

fn a_task_that_never_ends_does_not_keep_the_job() -> Outcome {
    let ended = run(job(3, &["leave"]));
    assert_eq!((ended.code, &*ended.out, &*ended.err), (Some(0), "done\n", ""), "{}", ended.all());
    assert!(ended.took < Duration::from_secs(8), "{}", ended.all());
    Ok(())
}

fn a_worker_that_leaves_waits_for_the_others() -> Outcome {
    assert_eq!(said(job(3, &["retire"]))?, "1 left\n1 stayed\n");
    Ok(())
}

fn signals_end_the_job() -> Outcome {
    for name in ["-INT", "-TERM"] {
        let child = job(3, &["wait"]).spawn()?;
        thread::sleep(Duration::from_secs(2));
        assert!(!pids().is_empty(), "it runs");
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status()?.success());
        let ended = end(child);
        // MPICH's launcher may have ended with 0 before it hears how its ranks did.
        assert!(ended.code != Some(0) || !is_open_mpi(), "{name}: {}", ended.all());
        assert!(ended.out.contains("waiting"), "{name}: {}", ended.all());
        assert!(ended.took < Duration::from_secs(10), "{name}: {}", ended.all());
        no_process_is_left();
    }
    Ok(())
}

fn mistakes_are_told_once() -> Outcome {
    for (words, told) in [
        (&["--processes", "2"][..], "leave them out"),
        (&["--client-rank", "3"], "none of the 3 ranks"),
        (&["--client-rank", "x"], "takes a whole number"),
        (&["--transport", "smoke"], "inproc, shm, verbs, mpi, tcp"),
        (&["--threads", "0"], "from 1 up"),
    ] {
        let ended = run(job(3, words));
        assert!(ended.code == Some(1), "{words:?}: {}", ended.all());
        assert_eq!(ended.err.matches(told).count(), 1, "{words:?}: {}", ended.all());
    }
    let nobody = run(job(2, &["--client-rank", "1"]));
    assert!(nobody.err.matches("would be a worker").count() == 1, "{}", nobody.all());
    Ok(())
}

/// The same program of another build: told by the build id that the linker left in it.
fn another_executable_among_the_ranks_is_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (mine, other) = (env::current_exe()?, directory.path().join("other"));
    let mut bytes = fs::read(&mine)?;
    let id: Vec<u8> = (0..20)
        .map(|i| u8::from_str_radix(&rankine::task::build_id()[2 * i..2 * i + 2], 16))
        .collect::<Result<_, _>>()?;
    let place = bytes.windows(20).position(|window| window == id).ok_or("the build id is not in the file")?;
    bytes[place] ^= 1;
    fs::write(&other, bytes)?;
    fs::set_permissions(&other, fs::metadata(&mine)?.permissions())?;
    let mut command = job(2, &["sum"]);
    command.args([":", "-n", "1"]).arg(&other).arg("sum");
    let ended = run(command);
    assert!(ended.code != Some(0), "{}", ended.all());
    assert!(ended.err.contains("runs another executable"), "{}", ended.all());
    Ok(())
}

/// The ranks that run now.
fn pids() -> Vec<u32> {
    let mine = env::current_exe().expect("this program has a file");
    let processes = fs::read_dir("/proc").expect("there are processes").flatten();
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    processes
        .filter_map(pid)
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == mine))
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(13).any(|window| window == b"RANKS_PROGRAM")
        })
        .collect()
}

fn no_process_is_left() {
    let start = Instant::now();
    while !pids().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?} are left", pids());
        thread::sleep(Duration::from_millis(20));
    }
}
