//! The command `rankine` as an administrator runs it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

fn rankine(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rankine"));
    // Whatever settings the user has are none of these tests'.
    command.args(words).env("XDG_CONFIG_HOME", "/nowhere").env_remove("RANKINE_CONFIG");
    command
}

fn run(words: &[&str]) -> Output {
    rankine(words).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refusal(words: &[&str]) -> String {
    let output = run(words);
    assert!(!output.status.success(), "{words:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn config_shows_each_setting_and_where_it_comes_from() {
    let shown =
        text(&rankine(&["config", "--transport", "tcp"]).env("RANKINE_DEAD_AFTER", "9").output().unwrap());
    let row = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("transport").contains("tcp") && row("transport").contains("--transport"));
    assert!(row("dead-after").contains("9") && row("dead-after").contains("RANKINE_DEAD_AFTER"));
    assert!(row("compression").contains("auto") && row("compression").contains("default"));
    assert!(refusal(&["config", "--compression", "sometimes"]).contains("sometimes"));
}

/// As `| head` does.
#[test]
fn who_has_read_enough_may_close_the_pipe() {
    for words in [&["config"][..], &["info"], &["info", "--format", "json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = rankine(words).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{words:?}: {said}");
    }
}

#[test]
fn info_tells_what_works_here_and_why_the_rest_does_not() {
    let shown = text(&run(&["info"]));
    for transport in ["inproc", "shm", "verbs", "mpi", "tcp"] {
        assert!(shown.lines().any(|line| line.starts_with(transport)), "{shown}");
    }
    assert!(shown.contains("lo 127.0.0.1") && shown.contains("Peers talk over"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&text(&run(&["info", "--format", "json"]))).unwrap();
    let all = json["transports"].as_array().unwrap();
    for found in all {
        let says = found["says"].as_array().unwrap();
        assert!(!says.is_empty() && says[0].as_str().unwrap().len() > 3, "{found}");
    }
    let tcp = all.iter().find(|found| found["transport"] == "tcp").unwrap();
    assert_eq!((&tcp["works"], &json["between_hosts"]), (&true.into(), &"tcp".into()));
    // What is ruled out is said to be so, and auto does without it.
    let only = text(&run(&["info", "--transport", "inproc,tcp"]));
    assert!(only.contains("ruled out by the setting transport = inproc,tcp"), "{only}");
    assert!(refusal(&["info", "--interface", "ib7", "--transport", "smoke"]).contains("smoke"));
}

#[test]
fn transports_are_measured_beside_the_bare_fabric() {
    let csv = text(&run(&[
        "bench",
        "transport",
        "--transport",
        "inproc,tcp",
        "--test",
        "latency,bandwidth,bibandwidth,rate,pairs,alltoall",
        "--sizes",
        "8,4KiB,1MiB",
        "--seconds",
        "0.02",
        "--format",
        "csv",
    ]));
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let head = &rows[0];
    let column = |name: &str| head.iter().position(|title| *title == name).unwrap();
    let of = |transport: &str, test: &str| {
        rows.iter().filter(|row| row[0] == transport && row[1] == test).cloned().collect::<Vec<_>>()
    };
    for test in ["latency", "bandwidth", "bibandwidth", "rate", "pairs", "alltoall"] {
        let sizes: Vec<&str> = of("tcp", test).iter().map(|row| row[2]).collect();
        assert_eq!(sizes, ["8", "4096", "1048576"], "{test}");
    }
    assert_eq!((of("inproc", "latency").len(), of("inproc", "pairs").len()), (3, 0));
    for row in &rows[1..] {
        let figure = |name: &str| row[column(name)].parse::<f64>().unwrap();
        assert!(figure("p50") > 0.0 && figure("count") >= 1.0, "{row:?}");
        let (better, worse) =
            if matches!(row[1], "latency" | "alltoall") { ("p50", "worst") } else { ("worst", "p50") };
        assert!(figure(better) <= figure(worse), "{row:?}");
        if row[0] == "tcp" && matches!(row[1], "latency" | "bandwidth" | "rate") {
            assert_eq!(row[column("baseline")], "bare socket");
            assert!((figure("ratio") - figure("p50") / figure("bare_p50")).abs() < 1e-6);
        }
    }
}

#[test]
fn two_hosts_measure_what_is_between_them() {
    let options = ["--transport", "tcp", "--sizes", "8", "--seconds", "0.02", "--format", "json"];
    let mut leads = rankine(&["bench", "transport", "--listen", "tcp://127.0.0.1:0"]);
    let mut leads = leads.args(options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(leads.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.next().unwrap().starts_with("on the other host"));
    let line = told.next().unwrap();
    let (token, address) = line.trim().split_once(' ').unwrap();
    let address = address.rsplit(' ').next().unwrap();
    // Without the token nobody gets in, and the one who waits goes on waiting.
    let join = ["bench", "transport", "--transport", "tcp", "--connect", address];
    assert!(refusal(&join).contains("RANKINE_BENCH_TOKEN"));
    let forged = rankine(&join).env("RANKINE_BENCH_TOKEN", "0".repeat(64)).output().unwrap();
    assert!(!forged.status.success() && String::from_utf8_lossy(&forged.stderr).contains("secret"));
    let (name, value) = token.split_once('=').unwrap();
    assert!(rankine(&join).env(name, value).status().unwrap().success());
    let output = leads.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 3);
    assert!(
        figures.iter().all(|row| row["rankine"]["p50"].as_f64().unwrap() > 0.0 && row["ratio"].is_number())
    );
}

#[test]
fn a_leader_that_vanishes_is_no_success_for_who_follows() {
    let options = ["--transport", "tcp", "--sizes", "8", "--seconds", "30"];
    let mut leads = rankine(&["bench", "transport", "--listen", "tcp://127.0.0.1:0"]);
    let mut leads = leads.args(options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(leads.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = told.nth(1).unwrap();
    let (token, command) = line.trim().split_once(' ').unwrap();
    let address = command.rsplit(' ').next().unwrap();
    let (name, value) = token.split_once('=').unwrap();
    let mut follows = rankine(&["bench", "transport", "--transport", "tcp", "--connect", address]);
    let follows = follows.env(name, value).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    leads.kill().unwrap();
    leads.wait().unwrap();
    let output = follows.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("lost the connection"), "{said}");
}

#[test]
fn workloads_run_over_each_transport_and_say_what_moved() {
    let json = text(&run(&[
        "bench",
        "workload",
        "--transport",
        "inproc,tcp",
        "--chunk",
        "64KiB",
        "--chunks",
        "4",
        "--steps",
        "2",
        "--repetitions",
        "1",
        "--format",
        "json",
    ]));
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 10);
    let moved = |pattern: &str| {
        let over = |row: &&serde_json::Value| row["pattern"] == pattern && row["transport"] == "tcp";
        rows.iter().find(over).unwrap()["moved"].as_u64().unwrap()
    };
    assert!(moved("shuffle") >= 64 << 10, "halves of four chunks change workers");
    for row in rows {
        assert!(
            (0.0..=1.0).contains(&row["computing"].as_f64().unwrap())
                && row["seconds"].as_f64().unwrap() > 0.0
        );
    }
}

#[test]
fn mistakes_are_explained() {
    let bench = |words: &[&str]| refusal(&[&["bench", "transport", "--transport", "tcp"], words].concat());
    assert!(bench(&["--sizes", "8..1"]).contains("8..1"));
    assert!(bench(&["--sizes", "much"]).contains("no amount of bytes"));
    assert!(bench(&["--processes", "1"]).contains("2 or more"));
    assert!(bench(&["--connect", "tcp://127.0.0.1:1"]).contains("RANKINE_BENCH_TOKEN"));
    assert!(bench(&["--listen", "nowhere"]).contains("scheme"));
    assert!(bench(&["--test", "speed"]).contains("latency"));
    assert!(refusal(&["bench", "workload", "--chunk", "1"]).contains("64 bytes"));
}

/// Where a browser is: the report is read by one, all by itself.
#[test]
fn the_report_is_read_by_a_browser() {
    let Some(browser) = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        println!("SKIPPED: there is no chromium");
        assert!(std::env::var_os("CI").is_none(), "CI has a browser");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.html");
    text(&run(&[
        "bench",
        "transport",
        "--transport",
        "inproc,tcp",
        "--test",
        "latency,bandwidth",
        "--sizes",
        "8..64KiB",
        "--seconds",
        "0.01",
        "--html",
        file.to_str().unwrap(),
    ]));
    let page = fs::read_to_string(&file).unwrap();
    for outside in ["http://", "https://", "<script", "<link", "url("] {
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(outside), "the report needs {outside}");
    }
    let browse = |words: &[&str]| {
        let profile = tempfile::tempdir().unwrap();
        let output = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .args(["--disable-component-update", "--disable-sync", "--disable-quic"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(words)
            .arg(format!("file://{}", file.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    // What the browser made of it: two plots with a line a transport, their figures, in the page's width.
    let dom = String::from_utf8(browse(&["--dump-dom"])).unwrap();
    assert_eq!(dom.matches("<svg").count(), 2);
    assert!(dom.matches("<polyline").count() + dom.matches("<path").count() >= 3, "{dom}");
    assert!(dom.contains("64 KiB") && dom.contains("bare socket") && dom.contains("µs one way"));
    // Wide and narrow screens, and paper: nothing hangs over, something is drawn in each plot's colour.
    for width in [1200, 420] {
        let shot = directory.path().join("shot.png");
        browse(&[&format!("--window-size={width},1600"), &format!("--screenshot={}", shot.display())]);
        assert!(fs::metadata(&shot).unwrap().len() > 20_000, "an empty page");
    }
    let paper = directory.path().join("report.pdf");
    browse(&["--no-pdf-header-footer", &format!("--print-to-pdf={}", paper.display())]);
    let pdf = fs::read(&paper).unwrap();
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 10_000);
}
