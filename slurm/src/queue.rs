//! Jobs as Slurm's commands tell of them.

use std::time::Duration;

use crate::{JobId, JobState, Reason, values::seconds};

/// A job in the queue, or not long out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its number.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: JobState,
    /// Why.
    pub reason: Reason,
    /// Its partition.
    pub partition: String,
    /// How many nodes it has or wants.
    pub nodes: u32,
    /// The names of those it has, in Slurm's short form.
    pub node_list: String,
    /// How long it has run.
    pub elapsed: Option<Duration>,
    /// How long it may still run, if there is a limit.
    pub left: Option<Duration>,
}

/// What `squeue` is to write of each job. Names may have anything in them, so the name comes last.
pub(crate) const FORMAT: &str = "%i|%T|%r|%P|%D|%N|%M|%L|%j";

/// What Slurm keeps of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub state: JobState,
    /// Why.
    pub reason: Reason,
    /// The file of its output, if it has one.
    pub output: Option<String>,
    /// The status that its script ended with, or the number of the signal that ended it.
    pub exit: Option<(i32, i32)>,
}

/// Reads what `squeue` writes in [`FORMAT`]; the line that cannot be read is the error.
pub(crate) fn parse(text: &str) -> Result<Vec<Queued>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| parse_line(line).ok_or_else(|| line.to_owned())).collect()
}

fn parse_line(line: &str) -> Option<Queued> {
    let fields: Vec<&str> = line.splitn(9, '|').collect();
    let &[id, state, reason, partition, nodes, node_list, elapsed, left, name] = &*fields else {
        return None;
    };
    // `UNLIMITED`, `NOT_SET` and `INVALID` are no times.
    let time = |text: &str| seconds(text).map(Duration::from_secs);
    Some(Queued {
        id: id.trim().parse().ok()?,
        name: name.to_owned(),
        state: JobState::from_word(state),
        reason: Reason::new(reason),
        partition: partition.to_owned(),
        nodes: nodes.parse().ok()?,
        node_list: node_list.to_owned(),
        elapsed: time(elapsed),
        left: time(left),
    })
}

/// Reads what `scontrol show job` writes.
pub(crate) fn parse_records(text: &str) -> Option<Vec<Record>> {
    // A job begins at the margin; its other lines do not.
    let starts = text.match_indices("JobId=").map(|(at, _)| at);
    let starts: Vec<usize> = starts.filter(|&at| at == 0 || text[..at].ends_with('\n')).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(&start, end)| parse_record(&text[start..end])).collect()
}

fn parse_record(text: &str) -> Option<Record> {
    // A job's name may be anything.
    let (numbers, rest) = text.split_once(" JobName=")?;
    let (_, rest) = rest.split_once("\n")?;
    let word = |text: &str, key: &str| {
        let mut words = text.split_whitespace().filter_map(|word| word.split_once('='));
        words.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
    };
    let id = match (word(numbers, "ArrayJobId"), word(numbers, "ArrayTaskId")) {
        (Some(array), Some(element)) if element.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{array}_{element}")
        }
        // Those that have not begun.
        (Some(array), Some(elements)) => format!("{array}_[{elements}]"),
        _ => word(numbers, "JobId")?,
    };
    // A path may have spaces in it, and is alone on its line.
    let output = rest.lines().find_map(|line| line.trim_start().strip_prefix("StdOut="));
    let exit = word(rest, "ExitCode");
    let exit = exit.as_deref().and_then(|text| text.split_once(':'));
    Some(Record {
        id: id.parse().ok()?,
        state: JobState::from_word(&word(rest, "JobState")?),
        reason: Reason::new(&word(rest, "Reason").unwrap_or_default()),
        output: output.filter(|path| !path.is_empty() && *path != "(null)").map(str::to_owned),
        exit: exit.and_then(|(status, signal)| Some((status.parse().ok()?, signal.parse().ok()?))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_squeue_writes_is_read() {
        let jobs = parse(include_str!("../tests/captured/squeue.txt")).unwrap();
        let job = |name: &str| jobs.iter().find(|job| job.name == name).unwrap();
        assert_eq!(jobs.len(), 13);
        let odd = job("odd | name");
        assert_eq!((&odd.state, odd.nodes, &*odd.node_list), (&JobState::Running, 2, "node[2-3]"));
        assert_eq!((odd.elapsed, odd.left), (Some(Duration::from_secs(3)), Some(Duration::from_secs(297))));
        assert_eq!(odd.reason.explained(), "");
        assert_eq!(job("gone").state, JobState::Cancelled);
        assert_eq!((&job("bad").state, job("bad").reason.as_str()), (&JobState::Failed, "NonZeroExitCode"));
        assert!(job("toolong").reason.explained().contains("never run"));
        let elements: Vec<String> =
            jobs.iter().filter(|j| j.name == "arr").map(|j| j.id.to_string()).collect();
        assert_eq!(elements, ["1_[2-5%2]", "1_0", "1_1"]);
        let unlimited = parse("7|RUNNING|None|debug|1|node1|2-00:00:01|UNLIMITED|x").unwrap();
        assert_eq!((unlimited[0].elapsed, unlimited[0].left), (Some(Duration::from_secs(172_801)), None));
        assert_eq!(parse("7|RUNNING|None").unwrap_err(), "7|RUNNING|None");
        assert!(parse("slurm_load_jobs error: Socket timed out").is_err());
    }

    #[test]
    fn what_scontrol_shows_is_read() {
        let one = |text| -> Record { parse_records(text).unwrap().pop().unwrap() };
        let running = one(include_str!("../tests/captured/running.txt"));
        assert_eq!((running.id, running.state), (JobId::from(4), JobState::Running));
        assert_eq!(running.output.as_deref(), Some("/tmp/my runs/slurm-4.out"));
        let failed = one(include_str!("../tests/captured/failed.txt"));
        assert_eq!((failed.state, failed.exit), (JobState::Failed, Some((3, 0))));
        assert_eq!(one(include_str!("../tests/captured/killed.txt")).exit, Some((0, 9)));
        let array = parse_records(include_str!("../tests/captured/array.txt")).unwrap();
        let elements: Vec<_> =
            array.iter().map(|r| (r.id.to_string(), r.output.as_deref().unwrap())).collect();
        assert_eq!(elements[0].0, "1_[2-5%2]");
        assert_eq!(elements[1], ("1_1".into(), "/tmp/my runs/out 1_1.txt"));
        assert_eq!(parse_records("").unwrap(), []);
        assert!(parse_records("JobId=1 JobName=x\n").is_none());
    }

    #[test]
    fn a_name_does_not_pass_for_a_state() {
        let text = "JobId=4 JobName=x JobState=COMPLETED\n   JobState=FAILED Reason=None\n   StdOut=(null)\n";
        let record = &parse_records(text).unwrap()[0];
        assert_eq!((&record.state, &record.output), (&JobState::Failed, &None));
    }
}
