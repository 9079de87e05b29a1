//! The program: what it prints, and that the scheduler is measured in a process of its own.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rankine-simulate")).args(arguments).output().expect("the program starts")
}

#[test]
fn a_table_has_a_row_for_each_policy_with_what_came_of_it() {
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    let csv = file.path().to_str().expect("its name is text");
    let output = simulate(&[
        "--family",
        "map,stencil",
        "--workers",
        "2",
        "--tasks",
        "60",
        "--policy",
        "both",
        "--csv",
        csv,
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{error}");
    let table = std::fs::read_to_string(csv).expect("it was written");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    let named: Vec<_> = rows[1..].iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(named, [("map", "rankine"), ("map", "dask"), ("stencil", "rankine"), ("stencil", "dask")]);
    for row in &rows[1..] {
        let cell = |name: &str| -> f64 {
            let place = rows[0].iter().position(|column| *column == name).expect("there is such a column");
            row[place].parse().expect("it is a number")
        };
        let took = cell("scheduler_us");
        assert!(took > 0.0 && took < 1e5, "{row:?}");
        assert!((1.0..=1.15).contains(&cell("ratio")), "{row:?}");
        assert!((cell("makespan_s") / cell("bound_s") - cell("ratio")).abs() < 0.002, "{row:?}");
        // All chunks of a map, of a megabyte each, are wanted and stay where they are made.
        let (moved, peak) = (cell("moved_MB"), cell("peak_MB"));
        if row[0] == "map" {
            assert_eq!((moved, peak), (0.0, 60.0), "{row:?}");
        } else {
            assert!(moved > 0.0 && (1.0..60.0).contains(&peak), "{row:?}");
        }
    }
}

#[test]
fn instructions_are_not_counted_without_valgrind() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rankine-simulate"));
    command.args(["--family", "map", "--workers", "2", "--tasks", "60", "--instructions"]);
    let output = command.env("PATH", "/nowhere").output().expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("is valgrind installed"), "{error}");
}

#[test]
fn what_is_no_recording_is_refused() {
    let output = simulate(&["--replay"]);
    assert!(output.status.success(), "an empty one is one");
    // A number of frames that is cut off, and a length that nothing has.
    for wrong in [vec![1; 3], vec![1; 100]] {
        let mut replay = Command::new(env!("CARGO_BIN_EXE_rankine-simulate"));
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        std::fs::write(file.path(), &wrong).expect("it can be written");
        let output =
            replay.arg("--replay").stdin(file.reopen().expect("it can be read")).output().expect("it starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("cannot measure the scheduler alone"), "{error}");
    }
}
