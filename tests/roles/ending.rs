//! Whatever ends a program, nothing of it is left.

use std::{fs, path::Path, process::Child, thread, time::Duration};

use crate::{Outcome, children, command, end, signal, start, text, until};

/// A program that waits, and its two workers.
fn waiting() -> (Child, Vec<String>) {
    let child = start(&["wait", "--processes", "2"]);
    let pid = child.id();
    until("both workers run", || children(pid).len() == 2);
    thread::sleep(Duration::from_millis(300));
    (child, children(pid))
}

pub fn ctrl_c_leaves_nothing_behind() -> Outcome {
    let (child, workers) = waiting();
    signal(&child, "-INT");
    let output = end(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    for worker in workers {
        assert!(!fs::exists(format!("/proc/{worker}"))?, "{worker} is still there");
    }
    Ok(())
}

/// Waits until these processes are gone.
fn until_gone(pids: Vec<String>) {
    for pid in pids {
        until("a worker's end", || !Path::new("/proc").join(&pid).exists());
    }
}

pub fn a_panic_leaves_nothing_behind() -> Outcome {
    let temporary = tempfile::tempdir()?;
    let mut command = command(&["panic", "--processes", "2"]);
    let child = command.env("TMPDIR", temporary.path()).env("HOME", temporary.path()).spawn()?;
    let pid = child.id();
    until("both workers run", || children(pid).len() == 2);
    let workers = children(pid);
    let output = end(child);
    assert_eq!(output.status.code(), Some(101));
    assert!(text(&output).contains("the program's own mistake"), "{}", text(&output));
    for worker in workers {
        assert!(!fs::exists(format!("/proc/{worker}"))?, "{worker} is still there");
    }
    let left: Vec<_> = fs::read_dir(temporary.path())?.collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

pub fn a_killed_program_takes_its_workers_along() -> Outcome {
    let (child, workers) = waiting();
    signal(&child, "-KILL");
    end(child);
    until_gone(workers);
    Ok(())
}

/// Holds results on disk, and ends only as its second word says.
pub async fn spill(client: rankine::Client) -> rankine::Result<()> {
    let held = client.map(|i: u8| vec![i; 4 << 20], 0..8);
    client.gather(&held).await?;
    while client.scheduler_info().await?.workers.iter().all(|worker| worker.metrics.spilled == 0) {
        thread::sleep(Duration::from_millis(10));
    }
    println!("spilled");
    match rankine::args().get(1).map(String::as_str) {
        Some("panic") => panic!("the program's own mistake"),
        Some("end") => Ok(()),
        _ => client.submit(|| thread::sleep(Duration::from_secs(600)), ()).await,
    }
}

pub fn results_on_disk_go_with_the_program() -> Outcome {
    for processes in [&[][..], &["--processes", "2"]] {
        for (way, status) in [("end", 0), ("panic", 101), ("-INT", 130), ("-TERM", 143)] {
            let place = tempfile::tempdir()?;
            let limits = ["--memory-limit", "16MiB", "--memory-spill", "off", "--memory-pause", "off"];
            let others = ["--memory-terminate", "off", "--local-directory", &place.path().to_string_lossy()];
            let mut child = start(&[&["spill", way], processes, &limits, &others].concat());
            let mut said = String::new();
            let output = child.stdout.as_mut().expect("it is a pipe");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said).expect("it is text");
            assert_eq!(said, "spilled\n", "{way}: {}", text(&end(child)));
            if way.starts_with('-') {
                assert!(
                    fs::read_dir(place.path()).is_ok_and(|files| files.count() > 0),
                    "{way}: its files are there"
                );
                signal(&child, way);
            }
            let output = end(child);
            assert_eq!(output.status.code(), Some(status), "{way}: {}", text(&output));
            let left: Vec<_> = fs::read_dir(place.path())?.collect();
            assert!(left.is_empty(), "{way} {processes:?}: {left:?}");
        }
    }
    Ok(())
}
