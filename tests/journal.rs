//! A scheduler that dies is restored from its journal, and its cluster goes on: real processes, killed at any moment.
//!
//! The binary is its own cluster, so `main` begins as a program of Rankine's does.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if env::var_os("JOURNAL_PROGRAM").is_some() {
        return rankine::run(program);
    }
    let trials = vec![
        Trial::test(
            "a_restored_scheduler_goes_on_where_it_stood",
            a_restored_scheduler_goes_on_where_it_stood,
        ),
        Trial::test(
            "workers_that_died_meanwhile_are_made_up_for",
            workers_that_died_meanwhile_are_made_up_for,
        ),
        Trial::test("clients_that_are_gone_are_forgotten", clients_that_are_gone_are_forgotten),
        Trial::test("a_journal_ends_with_its_cluster", a_journal_ends_with_its_cluster),
        Trial::test(
            "a_journal_that_finds_no_place_ends_and_the_cluster_goes_on",
            a_journal_that_finds_no_place_ends_and_the_cluster_goes_on,
        ),
        Trial::test("what_is_no_journal_of_ours_is_refused", what_is_no_journal_of_ours_is_refused),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Leaves of the tree that the program computes.
const LEAVES: u64 = 256;

/// Notes in a file that it ran.
fn note(file: &str, what: &str) -> std::io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(format!("{what}\n").as_bytes())
}

fn leaf(file: String, n: u64) -> std::io::Result<Vec<u64>> {
    note(&file, &format!("leaf {n}"))?;
    thread::sleep(Duration::from_millis(15));
    // Too big to travel with the report: workers hold it.
    Ok(vec![n; 2000])
}

fn add(file: String, x: Vec<u64>, y: Vec<u64>) -> std::io::Result<Vec<u64>> {
    note(&file, &format!("add {}", x[0] + y[0]))?;
    Ok(x.iter().zip(&y).map(|(x, y)| x + y).collect())
}

/// Adds up a tree of vectors, submitted little by little, and prints what comes out.
async fn program(client: rankine::Client) -> rankine::Result<()> {
    let file = rankine::args().remove(0);
    println!("begun");
    let mut level = Vec::new();
    for n in 0..LEAVES {
        level.push(client.submit(leaf, (file.clone(), n)));
        thread::sleep(Duration::from_millis(2));
    }
    while level.len() > 1 {
        level = level.chunks(2).map(|two| client.submit(add, (file.clone(), &two[0], &two[1]))).collect();
    }
    let total = level.remove(0).await?;
    assert!(total.iter().all(|one| *one == total[0]));
    println!("{}", total[0]);
    Ok(())
}

/// A process of this program that ends with the test, however that goes.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(words: &[&str]) -> Result<Command, Failed> {
    let mut command = Command::new(env::current_exe()?);
    command.args(words).env("JOURNAL_PROGRAM", "1").stdout(Stdio::piped());
    Ok(command)
}

fn start(words: &[&str]) -> Result<Process, Failed> {
    Ok(Process(command(words)?.spawn()?))
}

fn until(what: &str, holds: impl Fn() -> bool) -> Outcome {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("{what} did not come true").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Where the test's files lie.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self, Failed> {
        Ok(Self { directory: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// Starts a scheduler with a journal, or one from it.
    fn scheduler(&self, how: &str) -> Result<Process, Failed> {
        let (file, journal) = (self.shown("scheduler.json"), self.shown("journal"));
        self.begin(command(&["scheduler", "--scheduler-file", &file, how, &journal])?)
    }

    fn begin(&self, mut scheduler: Command) -> Result<Process, Failed> {
        let file = self.path("scheduler.json");
        // What another one wrote is not to be taken for this one's.
        let _ = fs::remove_file(&file);
        let scheduler = Process(scheduler.args(["--listen", "tcp://127.0.0.1:0"]).spawn()?);
        until("the scheduler file is there", || file.exists())?;
        Ok(scheduler)
    }

    fn worker(&self) -> Result<Process, Failed> {
        start(&["worker", "--scheduler-file", &self.shown("scheduler.json"), "--threads", "1"])
    }

    fn client(&self) -> Result<(Process, impl Iterator<Item = std::io::Result<String>> + use<>), Failed> {
        let mut client =
            start(&["client", "--scheduler-file", &self.shown("scheduler.json"), &self.shown("ran")])?;
        let mut lines = BufReader::new(client.0.stdout.take().ok_or("its output")?).lines();
        assert_eq!(lines.next().ok_or("a line")??, "begun");
        Ok((client, lines))
    }

    /// What ran, in order.
    fn ran(&self) -> Vec<String> {
        fs::read_to_string(self.path("ran")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

const TOTAL: u64 = LEAVES * (LEAVES - 1) / 2;

fn a_restored_scheduler_goes_on_where_it_stood() -> Outcome {
    let place = Place::new()?;
    let mut scheduler = place.scheduler("--journal")?;
    let _workers = [place.worker()?, place.worker()?, place.worker()?];
    let (mut client, mut lines) = place.client()?;
    // While tasks are submitted, while they run, and twice at once.
    for share in [1, 3, 5, 6] {
        until("a part has run", || place.ran().len() as u64 > share * LEAVES / 8)?;
        scheduler.0.kill()?;
        scheduler.0.wait()?;
        thread::sleep(Duration::from_millis(100 * share));
        scheduler = place.scheduler("--restore")?;
    }
    assert_eq!(lines.next().ok_or("the result")??, TOTAL.to_string());
    assert!(client.0.wait()?.success());
    // No worker died: nothing was lost, and nothing ran twice.
    let ran = place.ran();
    let again = |(place, what): &(usize, &String)| ran[..*place].contains(what);
    let twice: Vec<_> = ran.iter().enumerate().filter(again).collect();
    assert!(twice.is_empty(), "{twice:?} of {ran:?}");
    assert_eq!(ran.len() as u64, 2 * LEAVES - 1);
    Ok(())
}

fn workers_that_died_meanwhile_are_made_up_for() -> Outcome {
    let place = Place::new()?;
    let mut scheduler = place.scheduler("--journal")?;
    let mut workers = vec![place.worker()?, place.worker()?, place.worker()?];
    let (mut client, mut lines) = place.client()?;
    until("a part has run", || place.ran().len() as u64 > LEAVES / 4)?;
    scheduler.0.kill()?;
    scheduler.0.wait()?;
    // With the results that only it held, and the task that it ran.
    drop(workers.pop());
    let _scheduler = place.scheduler("--restore")?;
    assert_eq!(lines.next().ok_or("the result")??, TOTAL.to_string());
    assert!(client.0.wait()?.success());
    assert!(place.ran().len() as u64 > 2 * LEAVES - 1);
    Ok(())
}

fn clients_that_are_gone_are_forgotten() -> Outcome {
    let place = Place::new()?;
    let mut scheduler = place.scheduler("--journal")?;
    let _worker = place.worker()?;
    let (client, _) = place.client()?;
    until("something has run", || place.ran().len() > 5)?;
    scheduler.0.kill()?;
    scheduler.0.wait()?;
    drop(client);
    let _scheduler = place.scheduler("--restore")?;
    let file = rankine::SchedulerFile::read(&place.path("scheduler.json"))?;
    let other = rankine::blocking::Client::from(rankine::Client::connect(&file)?);
    until("its tasks are gone with it", || other.scheduler_info().is_ok_and(|info| info.tasks.is_empty()))?;
    assert_eq!(other.submit(|x: u64| x + 1, (1,)).result()?, 2);
    Ok(())
}

fn a_journal_ends_with_its_cluster() -> Outcome {
    let place = Place::new()?;
    let mut scheduler = place.scheduler("--journal")?;
    assert!(place.path("journal").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(place.path("journal"))?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut worker = place.worker()?;
    let file = rankine::SchedulerFile::read(&place.path("scheduler.json"))?;
    let client = rankine::blocking::Client::from(rankine::Client::connect(&file)?);
    client.wait_for_workers(1)?;
    client.shutdown()?;
    assert!(scheduler.0.wait()?.success() && worker.0.wait()?.success());
    assert!(!place.path("journal").exists());
    Ok(())
}

fn a_journal_that_finds_no_place_ends_and_the_cluster_goes_on() -> Outcome {
    let place = Place::new()?;
    // No file may become bigger than some kilobytes, which the scheduler's file is not, and the journal soon is.
    let limited = "ulimit -f 32; trap '' XFSZ; exec \"$@\"";
    let (file, journal) = (place.shown("scheduler.json"), place.shown("journal"));
    let inner = command(&["scheduler", "--scheduler-file", &file, "--journal", &journal])?;
    let mut shell = Command::new("sh");
    shell.args(["-c", limited, "sh"]).arg(inner.get_program()).args(inner.get_args());
    shell.env("JOURNAL_PROGRAM", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut scheduler = place.begin(shell)?;
    let _workers = [place.worker()?, place.worker()?];
    let (mut client, mut lines) = place.client()?;
    assert_eq!(lines.next().ok_or("the result")??, TOTAL.to_string());
    assert!(client.0.wait()?.success());
    assert!(!place.path("journal").exists(), "half a past is of no use");
    scheduler.0.kill()?;
    let mut said = String::new();
    scheduler.0.stderr.take().ok_or("its errors")?.read_to_string(&mut said)?;
    assert_eq!(said.matches("there is no journal any more").count(), 1, "{said}");
    assert!(said.contains(&journal) && said.contains("File too large"), "{said}");
    Ok(())
}

fn what_is_no_journal_of_ours_is_refused() -> Outcome {
    let place = Place::new()?;
    let refusal = |words: &[&str]| -> Result<String, Failed> {
        let output = command(&[&["scheduler", "--listen", "tcp://127.0.0.1:0"], words].concat())?
            .stderr(Stdio::piped())
            .output()?;
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr)?;
        assert!(!said.contains("panicked"), "{said}");
        Ok(said)
    };
    let journal = place.shown("journal");
    assert!(refusal(&["--restore", &journal])?.contains("No such file"));
    assert!(refusal(&["--restore", &journal, "--journal", &journal])?.contains("leave --journal out"));
    fs::write(
        &journal,
        "some notes of mine, longer than any header of a journal's, and of no use to anybody",
    )?;
    assert!(refusal(&["--restore", &journal])?.contains("is no journal of a scheduler's"));
    let there = refusal(&["--journal", &journal])?;
    assert!(there.contains("exists") && there.contains("--restore"), "{there}");
    Ok(())
}
