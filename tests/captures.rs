//! A task function that captures is refused when it is compiled, with a message that says what to do.
//!
//! Compiled by rustc itself against the library that this test was built with: whether it compiles is
//! not enough, the message matters.

use std::{env, fs, path::PathBuf, process::Command, time::SystemTime};

/// Compiles the body of a function that has a client; gives what rustc said, if it refused.
fn compile(body: &str) -> Option<String> {
    let executable = env::current_exe().expect("this test has a file");
    let libraries = executable.parent().expect("it lies in a directory");
    let built = fs::read_dir(libraries).expect("the directory can be read").flatten();
    let rlibs = built.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("librankine-") && name.ends_with(".rlib")
    });
    let age =
        |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let newest = rlibs.map(|entry| entry.path()).max_by_key(age).expect("the library was built");
    let directory = tempfile::tempdir().expect("a directory can be made");
    let source = directory.path().join("program.rs");
    let program = format!(
        "pub fn program(client: &rankine::Client) {{\n{body}\n}}\nfn main() {{ std::hint::black_box(program as fn(&rankine::Client)); }}\n"
    );
    fs::write(&source, program).expect("the source can be written");
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition=2024", "--emit=obj", "--out-dir"])
        .arg(directory.path())
        .arg("--extern")
        .arg(format!("rankine={}", newest.display()))
        .arg("-L")
        .arg(format!("dependency={}", libraries.display()))
        .arg(&source)
        .output()
        .expect("rustc runs");
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn functions_and_closures_that_capture_nothing_compile() {
    let refused = compile(
        "fn inc(x: i64) -> i64 { x + 1 }
         let one = client.submit(inc, (1,));
         client.submit(|x: i64, y: i64| x + y, (&one, 2));
         client.map(inc, 0..10);",
    );
    assert_eq!(refused, None);
}

#[test]
fn a_closure_that_captures_is_refused_and_told_what_to_do() {
    for body in [
        "let step = 2i64; client.submit(move |x: i64| x + step, (1,));",
        "let step = 2i64; client.map(move |x: i64| x + step, 0..10);",
        "let name = String::from(\"a\"); client.submit(move || name.len() as i64, ());",
    ] {
        let refused = compile(body).expect("it must not compile");
        assert!(
            refused.contains("a task function cannot capture variables: pass them as arguments"),
            "{refused}"
        );
    }
}

#[test]
fn what_cannot_travel_is_refused() {
    let refused = compile("client.submit(|x: std::rc::Rc<i64>| *x, (std::rc::Rc::new(1i64),));");
    assert!(refused.is_some_and(|refused| refused.contains("Rc<i64>")));
}
