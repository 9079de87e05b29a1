//! What another executable, the command `rankine`, tells of a cluster.

use std::{
    hint::black_box,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{Ending, Outcome, counted, end, joined, scheduler, signal, start, text, until};

/// What one of the command's words prints of a cluster of this program's.
fn asked(words: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_rankine")).args(words).output()?;
    assert!(output.status.success(), "{}", text(&output));
    Ok(String::from_utf8(output.stdout)?)
}

pub fn another_executable_may_ask_why() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let _worker = Ending(start(&["worker", "--scheduler-file", &file, "--threads", "1", "--name", "alone"]));
    let client = joined(&file)?;
    client.wait_for_workers(1)?;
    assert_eq!(asked(&["explain", "--scheduler-file", &file])?, "No task waits for anything.\n");
    let [done, stuck] = ["done", "stuck"].map(|name| client.options().key(name).pure(false));
    let done = done.submit(counted, (1,));
    done.result()?;
    let stuck = stuck.resource("gpu", 1.0).submit(counted, (2,));
    let why = "It needs 1 of gpu, and none of the 1 worker supplies so much.";
    until("the scheduler knows it", || client.explain(&stuck).is_ok_and(|told| told.why == [why]));
    let told = asked(&["explain", "--scheduler-file", &file])?;
    assert!(told.contains("counted") && told.contains(why), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    // By name, by key; without the file's name it is looked for.
    assert_eq!(asked(&["explain", "--scheduler-file", &file, "stuck"])?, told);
    let key = stuck.key().to_string();
    let told = asked(&["explain", "--scheduler-file", &file, "done", &key])?;
    assert!(
        told.lines().count() == 2 && told.contains("alone was given it: it would start there first"),
        "{told}"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_rankine"))
        .arg("explain")
        .env("RANKINE_HOME", directory.path())
        .output()?;
    assert!(text(&output).contains(why), "{}", text(&output));
    let nowhere = Command::new(env!("CARGO_BIN_EXE_rankine"))
        .arg("explain")
        .env("RANKINE_HOME", directory.path().join("none"))
        .output()?;
    assert!(!nowhere.status.success() && text(&nowhere).contains("is the scheduler running?"));
    signal(&scheduler, "-TERM");
    end(scheduler);
    Ok(())
}

/// Memory of the program's own, in MiB.
const BALLAST: usize = 200;

fn ballast() -> usize {
    Box::leak(vec![black_box(1u8); BALLAST << 20].into_boxed_slice()).len()
}

pub fn another_executable_may_ask_who_works() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let limits = ["--memory-limit", "2GiB", "--memory-target", "0.05"];
    let words = ["worker", "--scheduler-file", &file, "--threads", "1", "--name", "alone"];
    let _worker = Ending(start(&[&words[..], &limits].concat()));
    let client = joined(&file)?;
    client.wait_for_workers(1)?;
    client.submit(ballast, ()).result()?;
    // Six results of 32 MiB, none of them zeros, which take no memory: three of them are about a twentieth of the limit.
    let held = client.map(|i: u8| vec![i; 32 << 20], 1..7);
    client.wait(&held, rankine::ReturnWhen::AllCompleted, None)?;
    let mib = |cell: &str| cell.parse::<f64>().expect("it is a number") as usize;
    let is_right = |told: &str| {
        let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
        let [heads, worker] = &lines[..] else { panic!("{told}") };
        assert_eq!(heads[5..], ["limit", "results", "other", "spilled"], "{told}");
        assert_eq!((worker[0], worker[2], worker[5], worker[6]), ("alone", "1", "2.0", "GiB"), "{told}");
        let [results, "MiB", other, "MiB", spilled, "MiB"] = worker[7..] else { return false };
        let (results, other, spilled) = (mib(results), mib(other), mib(spilled));
        results <= 102 && results + spilled == 192 && (BALLAST..BALLAST + 150).contains(&other)
    };
    let begun = Instant::now();
    loop {
        let told = asked(&["workers", "--scheduler-file", &file])?;
        if is_right(&told) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "memory is not told of as it is:\n{told}");
        thread::sleep(Duration::from_millis(50));
    }
    signal(&scheduler, "-TERM");
    end(scheduler);
    Ok(())
}
