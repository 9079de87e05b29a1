//! The table, and the same as CSV.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use rankine_simulate::{Error, Family, Outcome};

/// What came of one graph on one cluster.
pub(crate) struct Row {
    pub(crate) family: Family,
    pub(crate) policy: &'static str,
    pub(crate) workers: u32,
    /// Nanoseconds.
    pub(crate) lower_bound: u64,
    /// The processor's microseconds, or instructions.
    pub(crate) scheduler: f64,
    pub(crate) outcome: Outcome,
}

const COLUMNS: [&str; 12] = [
    "family",
    "policy",
    "workers",
    "tasks",
    "makespan_s",
    "bound_s",
    "ratio",
    "scheduler_us",
    "moved_MB",
    "peak_MB",
    "worst_MB",
    "steals",
];

impl Row {
    fn ratio(&self) -> f64 {
        self.outcome.makespan as f64 / self.lower_bound.max(1) as f64
    }

    /// What each task costs the scheduler.
    fn each(&self) -> f64 {
        self.scheduler / self.outcome.tasks.max(1) as f64
    }

    fn cells(&self) -> [String; 12] {
        let Outcome { tasks, makespan, moved, peak, worst, steals, .. } = self.outcome;
        let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        [
            self.family.name().to_owned(),
            self.policy.to_owned(),
            self.workers.to_string(),
            tasks.to_string(),
            format!("{:.3}", makespan as f64 / 1e9),
            format!("{:.3}", self.lower_bound as f64 / 1e9),
            format!("{:.3}", self.ratio()),
            format!("{:.2}", self.each()),
            megabytes(moved),
            megabytes(peak),
            megabytes(worst),
            steals.to_string(),
        ]
    }
}

/// What is printed so far.
pub(crate) struct Report {
    csv: Option<BufWriter<File>>,
    /// Of what the scheduler costs.
    unit: &'static str,
    /// Rows since the last mean.
    block: Vec<(&'static str, f64, f64)>,
}

impl Report {
    pub(crate) fn new(csv: Option<&Path>, instructions: bool) -> Result<Self, Error> {
        let file = |path: &Path| {
            let file = File::create(path);
            file.map_err(|error| {
                Error::Usage(format!("cannot write the table to {}: {error}", path.display()))
            })
        };
        let unit = if instructions { "instructions" } else { "us" };
        let csv = csv.map(file).transpose()?.map(BufWriter::new);
        let mut report = Self { csv, unit, block: Vec::new() };
        let columns = COLUMNS.map(|column| match column {
            "scheduler_us" if instructions => "instructions".to_owned(),
            column => column.to_owned(),
        });
        print(&line(&columns))?;
        report.write(&columns)?;
        Ok(report)
    }

    pub(crate) fn add(&mut self, row: Row) -> Result<(), Error> {
        print(&line(&row.cells()))?;
        self.block.push((row.policy, row.ratio(), row.each()));
        self.write(&row.cells())
    }

    /// Prints the means of the rows since the last end.
    pub(crate) fn end_of_block(&mut self) -> Result<(), Error> {
        let block = std::mem::take(&mut self.block);
        let mut policies: Vec<&str> = block.iter().map(|row| row.0).collect();
        policies.sort_unstable();
        policies.dedup();
        for policy in policies {
            let rows: Vec<_> = block.iter().filter(|row| row.0 == policy).collect();
            let mean = |of: fn(&(&str, f64, f64)) -> f64| {
                rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64
            };
            print(&format!(
                "mean of {policy}: ratio {:.3}, scheduler {:.2} {} a task",
                mean(|r| r.1),
                mean(|r| r.2),
                self.unit
            ))?;
        }
        Ok(())
    }

    fn write(&mut self, cells: &[String]) -> Result<(), Error> {
        let Some(file) = &mut self.csv else { return Ok(()) };
        // No cell has a comma in it.
        let written = writeln!(file, "{}", cells.join(",")).and_then(|()| file.flush());
        written.map_err(|error| Error::Usage(format!("cannot write the table: {error}")))
    }
}

/// Prints a line. Who has read enough of them may be gone: the table may still be written.
pub(crate) fn print(line: &str) -> Result<(), Error> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Usage(format!("cannot write to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn line(cells: &[String]) -> String {
    let width = |place| if place < 2 { 10 } else { 11 };
    let cells: Vec<String> =
        cells.iter().enumerate().map(|(place, cell)| format!("{cell:>w$}", w = width(place))).collect();
    cells.join(" ")
}
