//! A network of the test's own: each worker on a host of its own, as far as it can tell, joined by a bridge.
//!
//! Everything lies in namespaces that go with the processes in them; nothing of the machine's network is touched.

use std::{
    env,
    ffi::OsStr,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;

/// Set where this process has a network of its own.
const ALONE: &str = "CHAOS_ALONE";
/// Where the test and the scheduler are.
pub const HOME: &str = "10.77.0.1";

fn run(program: impl AsRef<OsStr>, words: &[&str]) -> Result<(), Failed> {
    let program = program.as_ref();
    let output = Command::new(program).args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{} {words:?}: {said}", program.to_string_lossy()).into())
}

fn ip(words: &str) -> Result<(), Failed> {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

/// Where it may, begins this process anew with a network of its own; gives how that ended.
pub fn alone() -> Option<ExitCode> {
    if is_alone() {
        return None;
    }
    let may =
        Command::new("unshare").args(["--net", "ip", "link", "add", "probe", "type", "bridge"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut again = Command::new("unshare");
    again
        .args(["--net", "--kill-child", "--fork"])
        .arg(env::current_exe().ok()?)
        .args(env::args_os().skip(1));
    let status = again.env(ALONE, "1").status().ok()?;
    Some(ExitCode::from(status.code().map_or(1, |code| code as u8)))
}

/// Whether this process has a network of its own.
pub fn is_alone() -> bool {
    env::var_os(ALONE).is_some()
}

/// Makes the bridge.
pub fn begin() -> Result<(), Failed> {
    ip("link set lo up")?;
    ip("link add bridge0 type bridge")?;
    ip(&format!("addr add {HOME}/16 dev bridge0"))?;
    ip("link set bridge0 up")
}

/// Where the `number`th host is.
pub fn address(number: u64) -> String {
    format!("10.77.{}.{}", 1 + number / 250, 1 + number % 250)
}

/// Starts a program on a host of its own, the `number`th.
pub fn start(number: u64, program: &Command) -> Result<Child, Failed> {
    // It waits at the door until its network is there.
    let mut door = Command::new("unshare");
    door.args(["--net", "sh", "-c", "read go; exec \"$@\" </dev/null", "sh"]);
    door.arg(program.get_program())
        .args(program.get_args())
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = door.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let (pid, near, far) = (child.id(), format!("near{number}"), format!("far{number}"));
    // A namespace of its own, which it has a moment after its start.
    let mine = std::fs::read_link("/proc/self/ns/net")?;
    let begun = Instant::now();
    while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == mine) {
        if begun.elapsed() > Duration::from_secs(5) {
            return Err("a worker gets no network of its own".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    let address = address(number);
    ip(&format!("link add {near} type veth peer name {far}"))?;
    ip(&format!("link set {near} master bridge0 up"))?;
    ip(&format!("link set {far} netns {pid}"))?;
    let within = format!("ip addr add {address}/16 dev {far} && ip link set {far} up && ip link set lo up");
    run("nsenter", &["-t", &pid.to_string(), "-n", "sh", "-c", &within])?;
    drop(child.stdin.take().map(|mut stdin| std::io::Write::write_all(&mut stdin, b"\n")));
    Ok(child)
}

/// Cuts a host off, or joins it again.
pub fn cut(number: u64, off: bool) {
    // Its link goes with it if it is gone.
    let _ = ip(&format!("link set near{number} {}", if off { "down" } else { "up" }));
}

/// Makes the link of the `number`th host, on which a process runs, slow in both directions, or as it was.
pub fn slow(number: u64, pid: u32, slow: bool) -> Result<(), Failed> {
    let words = |end: &str| {
        if slow {
            format!("qdisc replace dev {end}{number} root tbf rate 20mbit burst 32kbit latency 400ms")
        } else {
            format!("qdisc replace dev {end}{number} root pfifo_fast")
        }
    };
    run("tc", &words("near").split(' ').collect::<Vec<_>>())?;
    run("nsenter", &["-t", &pid.to_string(), "-n", "sh", "-c", &format!("tc {}", words("far"))])
}
