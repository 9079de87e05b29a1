//! Worker processes that are bound to cores of their own.

use std::{
    fs,
    process::{self, Command},
    thread,
    time::Duration,
};

use crate::{Outcome, end, joined, scheduler, signal, start, text};

/// Says what two workers are bound to, and again once one of them had to be replaced.
pub async fn of_workers(client: rankine::Client) -> rankine::Result<()> {
    let mut killed = None;
    for _ in 0..2 {
        let pids = loop {
            let pids = client.run(process::id, ()).await.unwrap_or_default();
            let mut pids: Vec<u32> = pids.into_values().collect();
            pids.sort_unstable();
            if pids.len() == 2 && killed.is_none_or(|killed| !pids.contains(&killed)) {
                break pids;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let mut bound: Vec<String> = client.run(bound_to, ()).await?.into_values().collect();
        bound.sort_unstable();
        println!("{}", bound.join(" "));
        if killed.replace(pids[0]).is_none() {
            let status = Command::new("kill").args(["-9", &pids[0].to_string()]).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
    }
    Ok(())
}

/// The cores that this process may use.
fn bound_to() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap_or_default().trim().to_owned()
}

pub fn worker_processes_are_bound_to_cores() -> Outcome {
    let here = bound_to();
    let output = end(start(&["cores", "--processes", "2", "--bind-cores"]));
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout)?;
    let (first, again) = said.trim_end().split_once('\n').ok_or("two lines are expected")?;
    assert_eq!(first, again, "who takes a dead one's place takes its cores");
    let (one, other) = first.split_once(' ').ok_or("two workers are bound")?;
    assert!(one != here && other != here && one != other || !here.contains(['-', ',']), "{said} of {here}");

    // A worker that is started by hand.
    let directory = tempfile::tempdir()?;
    let (scheduler, file) = scheduler(directory.path());
    let worker = |more: &[&str]| start(&[&["worker", "--scheduler-file", &file], more].concat());
    for (more, expected) in [
        (&["--cores", "x"][..], "cores are written as 0-3,8, and not as `x`"),
        (&["--cores", "1001"], "run on the cores 1001 (this process may use"),
        (&["--bind-cores"], "not by --bind-cores"),
    ] {
        let refused = end(worker(more));
        assert!(!refused.status.success() && text(&refused).contains(expected), "{}", text(&refused));
    }
    let (bound, client) = (worker(&["--cores", one]), joined(&file)?);
    client.wait_for_workers(1)?;
    assert_eq!(client.run(bound_to, ())?.into_values().collect::<Vec<_>>(), [one]);
    if !one.contains(['-', ',']) {
        assert_eq!(client.scheduler_info()?.workers[0].info.nthreads, 1, "a thread for each core");
    }
    signal(&scheduler, "-TERM");
    end(scheduler);
    end(bound);
    Ok(())
}
