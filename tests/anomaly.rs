//! The example `anomaly`: against NumPy, on files bigger than memory, and refusing what is wrong.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ndarray::{Array3, ArrayD, IxDyn};
use rankine::array::{NpyFile, Order, create_npy, write_npy};

/// `cargo test` builds examples beside the tests.
fn program() -> PathBuf {
    let test = env::current_exe().expect("this test has a file");
    let profile = test.ancestors().nth(2).expect("it lies in target/PROFILE/deps");
    let program = profile.join("examples/anomaly");
    assert!(program.exists(), "there is no {}: cargo build --example anomaly", program.display());
    program
}

fn run(words: &[&str]) -> Output {
    Command::new(program()).args(words).output().expect("it starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command; what it says, if it failed.
fn attempt(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{shown}: {}", text(&output).trim())) }
}

/// A Python that has NumPy: in a virtual environment in the user's cache, made by whoever is first.
fn python_with_numpy() -> Result<PathBuf, String> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .ok_or("there is no home directory")?;
    let environment = cache.join("rankine/numpy-venv");
    let python = environment.join("bin/python");
    if attempt(Command::new(&python).args(["-c", "import numpy"])).is_err() {
        attempt(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        attempt(Command::new(&python).args(["-m", "pip", "install", "--quiet", "numpy"]))?;
    }
    Ok(python)
}

#[test]
fn it_agrees_with_numpy() {
    let python = match python_with_numpy() {
        Ok(python) => python,
        Err(reason) if env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no NumPy: {reason}"),
        Err(reason) => {
            // Past the capture of what passing tests print.
            let _ = writeln!(io::stderr(), "SKIPPED numpy comparison: {reason}");
            return;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/anomaly/check.py");
    let output = Command::new(python).arg(check).arg(program()).arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    println!("{}", text(&output));
}

/// Times, rows and columns of a file of 96 MiB.
const SHAPE: [usize; 3] = [768, 128, 128];

fn number(time: usize, row: usize, column: usize) -> f64 {
    let mixed = (time * 7919 + row * 104_729 + column * 1_299_709) % 1009;
    270.0 + mixed as f64 / 16.0
}

fn write_big(path: &Path) {
    create_npy::<f64>(path, &SHAPE, Order::C).unwrap();
    for start in (0..SHAPE[0]).step_by(32) {
        let shape = (32, SHAPE[1], SHAPE[2]);
        let part = Array3::from_shape_fn(shape, |(time, row, column)| number(start + time, row, column));
        write_npy(path, &[start, 0, 0], part.view().into_dyn()).unwrap();
    }
}

/// With `limit` bytes of anonymous memory for each process; what is mapped from files is not
/// counted, as it would not be where memory is short.
fn run_within(limit: u64, words: &[&str]) -> Output {
    let script = format!("ulimit -d {} && exec \"$0\" \"$@\"", limit / 1024);
    Command::new("sh").args(["-c", &script]).arg(program()).args(words).output().expect("it starts")
}

#[test]
fn a_file_bigger_than_memory_is_no_trouble() {
    const LIMIT: u64 = 40 << 20;
    let directory = tempfile::tempdir().unwrap();
    let named = |name| directory.path().join(name).to_string_lossy().into_owned();
    let (input, output) = (named("big.npy"), named("anomaly.npy"));
    write_big(Path::new(&input));
    let words = ["-o", &output, "--force", "--threads", "2", "--memory-limit", "16MB", &input];
    for cluster in [&[][..], &["--processes", "2"]] {
        let ran = run_within(LIMIT, &[&words, cluster].concat());
        assert!(ran.status.success(), "{}", text(&ran));
        let result = NpyFile::open(&output).unwrap();
        assert_eq!(result.shape(), SHAPE);
        for (row, column) in [(0, 0), (5, 100), (64, 64), (127, 0), (127, 127)] {
            let times: Vec<f64> = (0..SHAPE[0]).map(|time| number(time, row, column)).collect();
            // Sixteenths are added up exactly.
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let squares: f64 = times.iter().map(|x| (x - mean) * (x - mean)).sum();
            let std = (squares / times.len() as f64).sqrt();
            let place = [0..SHAPE[0], row..row + 1, column..column + 1];
            let found = result.block::<f64>(&place).unwrap();
            for (found, x) in found.view().iter().zip(&times) {
                assert!((found - (x - mean) / std).abs() < 1e-13, "{found} at {row}, {column}");
            }
        }
        fs::remove_file(&output).unwrap();
    }
    // The limit is one: in a single block, the result does not fit.
    let ran = run_within(LIMIT, &[&words[..], &["--chunk", "1GB"]].concat());
    assert!(!ran.status.success() && text(&ran).contains("memory allocation"), "{}", text(&ran));
}

#[test]
fn what_is_wrong_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let named = |name| directory.path().join(name).to_string_lossy().into_owned();
    let (input, output, link) = (named("in.npy"), named("out.npy"), named("link.npy"));
    create_npy::<f32>(Path::new(&input), &[5, 3], Order::C).unwrap();
    write_npy(Path::new(&input), &[2, 1], ArrayD::<f32>::ones(IxDyn(&[1, 1])).view()).unwrap();
    fs::hard_link(&input, &link).unwrap();
    let before = fs::read(&input).unwrap();
    let fails = |words: &[&str], expected: &str| {
        let ran = run(words);
        assert!(!ran.status.success() && text(&ran).contains(expected), "{words:?}: {}", text(&ran));
    };
    fails(&[&input, "-o", &link, "--force"], "is what is read");
    fails(&[&input, "-o", &output, "--mean", &input, "--force"], "is what is read");
    fails(&["/nowhere/in.npy"], "/nowhere/in.npy");
    fails(&[&input, "-o", "/nowhere/out.npy"], "/nowhere/out.npy");
    fails(&["--shape", "0,3"], "no times");
    fails(&["--shape", "three"], "--shape takes");
    fails(&["--dtype", "int8"], "float32 or float64");
    fails(&["--frobnicate"], "anomaly does not know");
    fails(&["-o"], "needs a value");
    let ran = run(&[&input]);
    assert!(ran.status.success() && text(&ran).contains("in_anomaly.npy"), "{}", text(&ran));
    fails(&[&input], "--force");
    assert!(run(&[&input, "--force"]).status.success());
    assert_eq!(fs::read(&input).unwrap(), before);
    // Nothing unfinished is left.
    let mut left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["in.npy", "in_anomaly.npy", "link.npy"]);
    assert!(text(&run(&["--help"])).contains("(x - mean) / std"));
}
