//! `rankine slurm` as a scientist runs it. What wants a Slurm is run by `tests/slurm/tier`, which brings one up.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

fn slurm(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rankine"));
    // Whatever settings the user has are none of these tests'.
    command.arg("slurm").args(words).env("XDG_CONFIG_HOME", "/nowhere").env_remove("RANKINE_CONFIG");
    command
}

fn run(words: &[&str]) -> Output {
    slurm(words).output().unwrap()
}

fn succeeds(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(words: &[&str]) -> String {
    let output = run(words);
    assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_script_says_what_was_asked_for() {
    let script = succeeds(&[
        "script",
        "--nodes",
        "4",
        "--tasks-per-node",
        "2",
        "-c",
        "8",
        "--mem",
        "16G",
        "-t",
        "1-12",
        "-p",
        "short,debug",
        "-A",
        "physics",
        "--qos",
        "high",
        "--constraint",
        "ib",
        "--gres",
        "gpu:1",
        "-J",
        "cfd",
        "--array",
        "0-15%4",
        "--dependency",
        "afterok:12",
        "--module",
        "openmpi/4.1",
        "--module",
        "hdf5",
        "--env",
        "A=b c",
        "--home",
        "/scratch/me",
        "--transport",
        "mpi,tcp",
        "--directive=--reservation=ours",
        "-o",
        "logs/%A.out",
        "./prog",
        "-N",
        "7",
        "--nodes=3",
        "it's",
    ]);
    for line in [
        "#SBATCH --job-name=cfd",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=16G",
        "#SBATCH --time=1-12:00:00",
        "#SBATCH --partition=short,debug",
        "#SBATCH --account=physics",
        "#SBATCH --qos=high",
        "#SBATCH --constraint=ib",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --array=0-15%4",
        "#SBATCH --dependency=afterok:12",
        "#SBATCH --reservation=ours",
        "#SBATCH --output=logs/%A.out",
        "module load openmpi/4.1 || exit",
        "module load hdf5 || exit",
        "export A='b c'",
        "export RANKINE_HOME=/scratch/me",
        "export RANKINE_TRANSPORT='mpi,tcp'",
        // What follows the program is the program's.
        "exec mpirun ./prog -N 7 '--nodes=3' \"it's\"",
    ] {
        assert!(script.lines().any(|found| found == line), "{line}: {script}");
    }
}

#[test]
fn launchers_are_chosen_by_name() {
    let line = |words: &[&str]| {
        let script = succeeds(&[&["script"], words, &["./prog"]].concat());
        script.lines().rfind(|line| line.contains("./prog")).unwrap().to_owned()
    };
    assert_eq!(line(&[]), "exec mpirun ./prog");
    assert_eq!(line(&["--launcher", "srun"]), "exec srun --mpi=pmix --kill-on-bad-exit=1 ./prog");
    assert_eq!(line(&["--mpi", "pmi2"]), "exec srun --mpi=pmi2 --kill-on-bad-exit=1 ./prog");
    let tolerant = line(&["--fault-tolerant"]);
    assert_eq!(tolerant, "srun --mpi=none --no-kill --kill-on-bad-exit=0 --wait=0 ./prog || status=$?");
    assert!(
        refusal(&["script", "--fault-tolerant", "--mpi", "pmix", "./prog"]).contains("cannot be used with")
    );
    assert!(
        refusal(&["script", "--launcher", "mpirun", "--mpi", "pmix", "./prog"]).contains("--launcher srun")
    );
}

#[test]
fn values_that_cannot_be_are_refused_by_their_option() {
    for (option, value, instead) in [
        ("--time", "25:99:99", "HH:MM:SS"),
        ("--mem", "4Q", "K, M, G or T"),
        ("--nodes", "0", "from 1 up"),
        ("--tasks-per-node", "two", "from 1 up"),
        ("--cpus-per-task", "-1", "from 1 up"),
        ("--job-name", "two words", "without spaces"),
        ("--job-name", "two\nlines", "without spaces"),
        ("--partition", "a b", "without spaces"),
        ("--array", "5-1", "0-15"),
        ("--dependency", "123", "afterok:123"),
        ("--env", "A-B=1", "NAME=VALUE"),
        ("--module", "a b", "without spaces"),
        ("--output", "a\nb", "line ends"),
        ("--directive", "nodes=3", "--reservation=NAME"),
        ("--signal", "0", "from 1 up"),
        ("--mpi", "pmi1", "pmix, pmi2"),
    ] {
        let told = refusal(&["script", &format!("{option}={value}"), "./prog"]);
        assert!(told.contains(option) && told.contains(instead), "{option}: {told}");
    }
    let late = refusal(&["script", "--time", "5", "--signal", "300", "./prog"]);
    assert!(late.contains("--signal cannot be 300"), "{late}");
    let smoke = refusal(&["script", "--transport", "smoke", "./prog"]);
    assert!(smoke.contains("smoke"), "{smoke}");
    assert!(refusal(&["script"]).contains("PROGRAM"));
    for words in [["cancel", "12x"], ["logs", "--all"], ["status", "-1"]] {
        assert!(refusal(&words).contains(words[1]), "{words:?}");
    }
}

#[test]
fn without_slurm_it_says_where_to_go() {
    for words in [&["status"][..], &["cancel", "1"], &["logs", "1"], &["submit", "sh"]] {
        let output = slurm(words).env("PATH", "/nowhere").output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && told.contains("is this a login node"), "{words:?}: {told}");
    }
}

/// Submits `sh -c COMMANDS`.
fn submit(options: &[&str], commands: &str, directory: &Path) -> String {
    let output = format!("{}/%A_%j.out", directory.display());
    let words =
        [&["submit", "--launcher", "srun", "-t", "5", "-o", &output], options, &["sh", "-c", commands]]
            .concat();
    succeeds(&words).trim().to_owned()
}

/// Waits until the row of a job has a word in it.
fn wait(job: &str, word: &str) -> String {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let table = succeeds(&["status", job]);
        let row = table.lines().nth(1).unwrap().to_owned();
        if row.contains(word) {
            return row;
        }
        assert!(Instant::now() < end, "{table}");
        sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn a_job_is_submitted_seen_followed_and_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let talks = submit(&["-N", "2", "-J", "talks"], "echo begins; sleep 3; echo ends", directory.path());
    let row = wait(&talks, "RUNNING");
    assert!(row.contains("talks") && row.contains("node"), "{row}");
    assert!(row.contains("00:05:00") || row.contains("00:04:5"), "of five minutes: {row}");
    assert!(succeeds(&["status"]).contains("talks"));
    // What is there, and then all of it.
    let end = Instant::now() + Duration::from_secs(20);
    while succeeds(&["logs", &talks]) != "begins\nbegins\n" {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(100));
    }
    let followed = run(&["logs", "--follow", &talks]);
    assert_eq!(String::from_utf8_lossy(&followed.stdout), "begins\nbegins\nends\nends\n");
    assert!(String::from_utf8_lossy(&followed.stderr).contains("COMPLETED"));

    // Slurm is slow to end a job that is just being started.
    let begun = directory.path().join("begun");
    let sleeps = submit(&[], &format!("touch {}; sleep 200", begun.display()), directory.path());
    let end = Instant::now() + Duration::from_secs(20);
    while !begun.exists() {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(100));
    }
    let quiet = run(&["logs", &sleeps]);
    assert!(quiet.status.success() && String::from_utf8_lossy(&quiet.stderr).contains("nothing is in /"));
    assert_eq!(succeeds(&["cancel", &sleeps]), format!("{sleeps} is cancelled\n"));
    wait(&sleeps, "CANCELLED");
    assert_eq!(succeeds(&["cancel", &talks]), format!("{talks} has ended already: COMPLETED\n"));
    for words in [&["cancel", "999999"][..], &["status", "999999"], &["logs", "999999"]] {
        assert!(refusal(words).contains("knows no job 999999"), "{words:?}");
    }
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn why_a_job_waits_is_told_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let first = submit(&[], "sleep 200", directory.path());
    let second = submit(&["--dependency", &format!("afterok:{first}")], "true", directory.path());
    let row = wait(&second, "PENDING");
    assert!(row.ends_with("waits for the jobs it depends on (Dependency)"), "{row}");
    let array = submit(&["--array", "0-2%1"], "echo $SLURM_ARRAY_TASK_ID; sleep 0.2", directory.path());
    let end = Instant::now() + Duration::from_secs(60);
    while succeeds(&["status", &array]).matches("COMPLETED").count() < 3 {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(200));
    }
    assert_eq!(succeeds(&["logs", &format!("{array}_2")]), "2\n");
    assert!(refusal(&["logs", &array]).contains(&format!("name one of {array}_0, {array}_1, {array}_2")));
    succeeds(&["cancel", &first, &second]);
}

#[test]
#[ignore = "wants a Slurm: tests/slurm/tier"]
fn what_can_never_run_is_not_submitted() {
    let refused = |options: &[&str]| refusal(&[&["submit"], options, &["sh"]].concat());
    assert!(refused(&["--tasks-per-node", "5"]).contains("--tasks-per-node cannot be 5"));
    assert!(refused(&["--nodes", "5"]).contains("--nodes cannot be 5: the partition debug has 4"));
    assert!(refused(&["-p", "short", "-t", "11"]).contains("--time cannot be 00:11:00"));
    assert!(refused(&["-p", "nowhere"]).contains("it has debug, short, urgent"));
    assert!(refused(&["--dry-run", "--mem", "1T"]).contains("--mem cannot be 1T"));
    assert!(refusal(&["submit", "./nothing"]).contains("no such program"));
    let script = succeeds(&["submit", "--dry-run", "-N", "4", "--tasks-per-node", "4", "sh"]);
    assert!(script.starts_with("#!/usr/bin/env bash\n"));
    // Whoever reads only its beginning gets that.
    let mut command = slurm(&["script", "sh"]);
    let mut writes = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(writes.stdout.take());
    let output = writes.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
