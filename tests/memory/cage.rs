//! Real limits, which end or refuse who goes beyond them.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A limit that the system enforces on a program.
pub enum Cage {
    /// A control group of its own with so many bytes of memory; removed when this is dropped.
    Group(PathBuf),
    /// `ulimit -d`: so many bytes of writable memory.
    Data(u64),
    /// A file system of so many bytes at this place, mounted for the program alone.
    FileSystem(u64, PathBuf),
    /// No file is bigger than so many bytes.
    FileSize(u64),
}

/// How a program ended, and what it said.
pub struct End {
    pub status: ExitStatus,
    pub output: String,
}

impl Cage {
    /// A control group with a limit, if this user may make one here.
    pub fn group(bytes: u64) -> Option<Self> {
        let name = format!("rankine-test-{}-{:?}", std::process::id(), thread::current().id());
        for (root, limit) in
            [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        {
            let group = Path::new(root).join(name.replace(['(', ')'], "-"));
            if fs::create_dir(&group).is_err() {
                continue;
            }
            if group.join(limit).exists() && fs::write(group.join(limit), bytes.to_string()).is_ok() {
                // Where there is swap, none of it is for the group.
                let _ = fs::write(group.join("memory.swap.max"), "0");
                let _ = fs::write(group.join("memory.swappiness"), "0");
                return Some(Self::Group(group));
            }
            let _ = fs::remove_dir(&group);
        }
        None
    }

    /// A file system of so many bytes, if this user may mount one, or else a bound on the size of files.
    pub fn small_disk(bytes: u64, at: &Path) -> Self {
        let may = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none"]).arg(at).output();
        if may.is_ok_and(|tried| tried.status.success()) {
            return Self::FileSystem(bytes, at.to_owned());
        }
        Self::FileSize(bytes / 16)
    }

    /// Runs this program again within the limit, to play the part that `part` names.
    pub fn run(&self, part: &str, variables: &[(&str, &str)], within: Duration) -> End {
        let (unshare, begin) = match self {
            Self::Group(group) => (false, format!("echo $$ > {}/cgroup.procs", group.display())),
            Self::Data(bytes) => (false, format!("ulimit -d {}", bytes >> 10)),
            Self::FileSystem(bytes, at) => {
                (true, format!("mount -t tmpfs -o size={bytes} none {}", at.display()))
            }
            // The program is to hear of it by an error, not by a signal.
            Self::FileSize(bytes) => (false, format!("trap '' XFSZ; ulimit -f {}", bytes / 512)),
        };
        let mut command = if unshare { Command::new("unshare") } else { Command::new("sh") };
        if unshare {
            command.args(["--mount", "sh"]);
        }
        command.args(["-c", &format!("{begin} && exec \"$0\"")]).arg(env::current_exe().unwrap());
        command.env(super::PART, part).envs(variables.iter().copied());
        wait(command, within)
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if let Self::Group(group) = self {
            // It is empty a moment after its last process ended.
            for _ in 0..100 {
                if fs::remove_dir(&*group).is_ok() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Runs a command to its end, which is to come in time.
pub fn wait(mut command: Command, within: Duration) -> End {
    let (mut reader, writer) = std::io::pipe().unwrap();
    command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer);
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    drop(command);
    let reading = thread::spawn(move || {
        let mut output = Vec::new();
        reader.read_to_end(&mut output).unwrap();
        String::from_utf8_lossy(&output).into_owned()
    });
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > within {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end within {within:?}: {}", reading.join().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    };
    End { status, output: reading.join().unwrap() }
}
