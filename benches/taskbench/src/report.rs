//! The table, and all points as CSV.

use std::{
    fmt::Display,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use crate::{
    Error, Graph, Run,
    metg::{Point, Swept, bare_rate, metg},
};

/// Where points are written while they are printed.
pub struct Report {
    csv: Option<(String, BufWriter<File>)>,
    transport: &'static str,
}

const COLUMNS: &str =
    "transport,type,kernel,steps,width,iterations,tasks,wall_s,granularity_us,rate,unit,efficiency";

impl Report {
    /// Begins one, of figures over `transport`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn new(transport: &'static str, csv: Option<&Path>) -> Result<Self, Error> {
        let file = |path: &Path| {
            let name = path.display().to_string();
            match File::create(path) {
                Ok(file) => Ok((name, BufWriter::new(file))),
                Err(error) => Err(Error::Write { path: name, error }),
            }
        };
        let mut report = Self { csv: csv.map(file).transpose()?, transport };
        report.write(COLUMNS)?;
        Ok(report)
    }

    /// Prints what a run came to, as Task Bench does.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn run(&mut self, graphs: &[Graph], cores: u64, runs: &[Run]) -> Result<(), Error> {
        let mut runs = runs.to_vec();
        runs.sort_unstable_by_key(|run| run.wall);
        let Some(Run { tasks, wall }) = runs.get(runs.len() / 2).copied() else { return Ok(()) };
        let wall = wall.as_secs_f64();
        let all: u64 = graphs.iter().map(Graph::iterations).sum();
        let rate = all as f64 / wall;
        let (granularity, bare) = (wall * cores as f64 / tasks as f64, bare_rate(&graphs[0].work, cores));
        print(format_args!("{} over {}, {cores} cores", label(graphs), self.transport))?;
        print(format_args!("  total tasks {tasks}"))?;
        print(format_args!("  elapsed time {wall:.6e} seconds (median of {})", runs.len()))?;
        print(format_args!("  {:.0} tasks/s, granularity {:.2} us", tasks as f64 / wall, granularity * 1e6))?;
        let mut efficiency = 0.0;
        if all > 0 {
            let (amount, unit) = graphs[0].work.iteration();
            efficiency = rate / bare;
            print(format_args!(
                "  {:.3e} {unit}/s, {:.1} % of the cores alone",
                rate * amount,
                efficiency * 100.0
            ))?;
        }
        let iterations = graphs[0].work.iterations;
        self.point(graphs, &label(graphs), &Point { iterations, tasks, wall, granularity, rate, efficiency })
    }

    /// Prints the head of the table of sweeps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn head(&self, cores: u64) -> Result<(), Error> {
        print(format_args!("over {}, {cores} cores", self.transport))?;
        print(format_args!(
            "{:<28} {:>13} {:>15} {:>19} {:>16}",
            "type", "METG(50%) us", "best efficiency", "of granularity us", "most tasks/s"
        ))
    }

    /// Prints what a sweep came to, as a row of the table.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn sweep(&mut self, swept: &Swept) -> Result<(), Error> {
        let (points, label) = (&swept.points, swept.label());
        let best = points.iter().max_by(|one, other| one.efficiency.total_cmp(&other.efficiency));
        let metg = metg(points).map_or_else(|| "none".to_owned(), |metg| format!("{:.1}", metg * 1e6));
        let most = points.iter().map(|point| point.tasks as f64 / point.wall).fold(0.0, f64::max);
        if let Some(best) = best {
            print(format_args!(
                "{label:<28} {metg:>13} {:>13.1} % {:>19.1} {most:>16.0}",
                best.efficiency * 100.0,
                best.granularity * 1e6
            ))?;
        }
        points.iter().try_for_each(|point| self.point(&swept.graphs, &label, point))
    }

    fn point(&mut self, graphs: &[Graph], label: &str, point: &Point) -> Result<(), Error> {
        let Point { iterations, tasks, wall, granularity, rate, efficiency } = *point;
        let first = &graphs[0];
        let ((amount, unit), shape) = (first.work.iteration(), first.shape);
        let line = format!(
            "{},{label},{},{},{},{iterations},{tasks},{wall:.6},{:.3},{:.6e},{unit}/s,{efficiency:.4}",
            self.transport,
            first.work.kernel,
            shape.steps,
            shape.width,
            granularity * 1e6,
            rate * amount,
        );
        self.write(&line)
    }

    fn write(&mut self, line: &str) -> Result<(), Error> {
        let Some((path, file)) = &mut self.csv else { return Ok(()) };
        let written = writeln!(file, "{line}").and_then(|()| file.flush());
        written.map_err(|error| Error::Write { path: path.clone(), error })
    }
}

/// Prints a line. Who has read enough of them may be gone: the points may still be written.
fn print(line: impl Display) -> Result<(), Error> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "the standard output".into(), error })
        }
        _ => Ok(()),
    }
}

/// The patterns of graphs that run at the same time.
pub(crate) fn label(graphs: &[Graph]) -> String {
    graphs.iter().map(|graph| graph.shape.pattern.name()).collect::<Vec<_>>().join("+")
}
