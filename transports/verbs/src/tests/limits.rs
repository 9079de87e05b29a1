//! Processes that may lock little memory.

use std::process::Command;

use super::*;

/// Runs a test of this module in a process that may lock `kib` KiB.
fn with_locked_memory(kib: u32, test: &str) {
    let program = std::env::current_exe().unwrap();
    let test = format!("tests::limits::{test}");
    // The superuser's right to lock any amount is given up.
    let script = format!(
        "ulimit -l {kib} && exec setpriv --inh-caps=-ipc_lock --bounding-set=-ipc_lock \"$0\" --ignored --exact {test}"
    );
    let mut command = Command::new("sh");
    let output =
        command.args(["-c", &script]).arg(program).env("RANKINE_TEST_LIMITED", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn limited() -> bool {
    std::env::var("RANKINE_TEST_LIMITED").is_ok()
}

fn tells_what_to_do(text: &str) {
    for word in ["ulimit -l", "limits.conf", "PropagateResourceLimits", "register"] {
        assert!(text.contains(word), "{text}; without: {word}");
    }
}

#[test]
fn no_connection_without_locked_memory_but_a_reason() {
    with_locked_memory(64, "connecting_tells_of_the_limit");
}

#[test]
fn a_frame_that_cannot_be_registered_ends_its_connection_with_a_reason() {
    with_locked_memory(4096, "sending_tells_of_the_limit");
}

#[tokio::test]
#[ignore = "run with little locked memory by another test"]
async fn connecting_tells_of_the_limit() {
    if !limited() {
        return;
    }
    let mut listener = listen().await;
    let at = listener.address().clone();
    let connecting = verbs();
    let accept = async { tokio::time::timeout(Duration::from_millis(500), listener.accept()).await };
    let (connected, _) = tokio::join!(connecting.connect(&at), accept);
    let error = connected.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    tells_what_to_do(&error.to_string());
}

#[tokio::test]
#[ignore = "run with little locked memory by another test"]
async fn sending_tells_of_the_limit() {
    if !limited() {
        return;
    }
    let [mut ours, mut theirs] = pair().await;
    let [mut one, mut another] = pair().await;
    let error = ours.sender.send(Message::new("", vec![pattern(16 << 20, 0)])).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    tells_what_to_do(&error.to_string());
    drop(ours);
    expect_lost(&mut theirs, Duration::from_secs(5), "").await;
    // What fits still goes, as what was only kept makes room.
    for i in 0..20 {
        let frame = pattern(600_000, i);
        let send = async { one.sender.send(Message::new("", vec![frame.clone()])).await };
        let receive = async { another.receiver.recv().await };
        let (sent, got) = tokio::join!(send, receive);
        sent.unwrap();
        assert!(got.unwrap().unwrap().frames[0] == frame);
    }
}
