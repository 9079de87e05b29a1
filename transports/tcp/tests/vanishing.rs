//! A peer whose host vanishes: no word of the end comes, and both a waiting reader and a writer hear of it
//! in bounded time. Runs in a network of its own, whose only interface it takes down.

use std::{
    env,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use rankine_transport::{Error, Limits, Message, Transport};
use rankine_transport_tcp::Tcp;

const INSIDE: &str = "RANKINE_TEST_IN_ITS_OWN_NETWORK";

fn main() -> ExitCode {
    if env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(vanish());
        return ExitCode::SUCCESS;
    }
    let possible =
        Command::new("unshare").args(["--user", "--map-root-user", "--net", "ip", "link"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED vanishing: no network namespace can be made here (unshare and ip are needed)");
        return if env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let this = env::current_exe().expect("this program's file");
    let ended = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--kill-child", "--fork"])
        .arg(this)
        .env(INSIDE, "1")
        .status();
    match ended {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        other => {
            eprintln!("{other:?}");
            ExitCode::FAILURE
        }
    }
}

fn link(state: &str) {
    assert!(Command::new("ip").args(["link", "set", "lo", state]).status().expect("ip runs").success());
}

async fn vanish() {
    link("up");
    let tcp = Tcp::default().dead_after(Duration::from_secs(3));
    let mut listener = tcp.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.address().clone();
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (ours, theirs) = tokio::join!(tcp.connect(&at), listener.accept());
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
        theirs.receiver.set_limits(Limits::PEER);
        ends.push((ours, theirs));
    }
    let (mut writing, _silent) = ends.pop().unwrap();
    let (_idle, mut reading) = ends.pop().unwrap();
    link("down");
    let start = Instant::now();
    let write = async {
        loop {
            if let Err(error) =
                writing.sender.send(Message::new(vec![1; 100], vec![vec![2; 1 << 20].into()])).await
            {
                return (error, start.elapsed());
            }
        }
    };
    let read = async { (reading.receiver.recv().await.unwrap_err(), start.elapsed()) };
    let both = async { tokio::join!(write, read) };
    let (write, read) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("in bounded time");
    for (what, (error, after)) in [("a writer", write), ("a reader", read)] {
        println!("{what} heard after {after:.1?}: {error}");
        assert!(matches!(error, Error::Lost { .. }) && after < Duration::from_secs(10));
    }
}
