//! The example `letters`: on files of its own making, on given ones, and on wrong words.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output},
};

/// `cargo test` builds examples beside the tests.
fn program() -> PathBuf {
    let test = env::current_exe().expect("this test has a file");
    let profile = test.ancestors().nth(2).expect("it lies in target/PROFILE/deps");
    let program = profile.join("examples/letters");
    assert!(program.exists(), "there is no {}: cargo build --example letters", program.display());
    program
}

fn run(words: &[&str], temporary: &tempfile::TempDir) -> Output {
    Command::new(program()).args(words).env("TMPDIR", temporary.path()).output().expect("it starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn files_of_its_own_are_counted_and_removed() {
    let temporary = tempfile::tempdir().unwrap();
    for place in [&["--workers", "2", "--threads", "1"][..], &["--processes", "2", "--threads", "1"]] {
        let output = run(&[&["--files", "5", "--size", "20kB"], place].concat(), &temporary);
        let told = text(&output);
        assert!(output.status.success(), "{told}");
        // 5 files of 20,000 letters, sorted and counted by both.
        assert!(told.contains("100000 letters, the same letter by letter"), "{told}");
        for part in ["plain loop", "on 2 threads", "times as fast", "reading", "sorting"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(
            !told.contains('\r') && !told.contains('\u{1b}'),
            "quiet where there is no terminal: {told:?}"
        );
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing is left");
    }
}

#[test]
fn given_files_are_counted_and_kept() {
    let (temporary, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(given.path().join("below")).unwrap();
    fs::write(given.path().join("a.txt"), "Hello, world").unwrap();
    fs::write(given.path().join("below/b.txt"), "12 monkeys\n").unwrap();
    fs::write(given.path().join("empty"), "").unwrap();
    let output = run(&[&given.path().to_string_lossy()], &temporary);
    let told = text(&output);
    assert!(told.contains("3 files") && told.contains("17 letters, the same"), "{told}");
    assert!(given.path().join("below/b.txt").exists());
}

#[test]
fn wrong_words_are_explained() {
    let temporary = tempfile::tempdir().unwrap();
    for (words, expected) in [
        (&["/no/such/place"][..], "/no/such/place"),
        (&["--files", "many"], "takes a whole number"),
        (&["--size", "big"], "no amount of bytes"),
        (&["--colour"], "does not know `--colour`"),
    ] {
        let output = run(words, &temporary);
        assert!(!output.status.success() && text(&output).contains(expected), "{words:?}: {}", text(&output));
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(text(&run(&[&empty.path().to_string_lossy()], &temporary)).contains("there are no files"));
    assert!(text(&run(&["--help"], &temporary)).contains("letters [DIR]"));
}
