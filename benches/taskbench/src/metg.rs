//! The minimum effective task granularity.
//!
//! Tasks are made ever shorter. Of each length is known how much useful work was done a second, as a share of
//! what the cores do without any runtime (the *efficiency*), and how long a task took on average, from all
//! cores' time (the *granularity*: wall time x cores / tasks). METG(50 %) is the smallest granularity at which
//! the efficiency is still one half.

use std::{
    thread,
    time::{Duration, Instant},
};

use rankine::Client;

use crate::{ByHand, Error, Graph, Kernel, Run, Work, report::label, run};

/// The efficiency down to which tasks count as effective.
pub const EFFECTIVE: f64 = 0.5;
/// Below this nothing is to be learned.
const HOPELESS: f64 = 0.2;
/// Seconds that a task takes at the beginning, unless somebody says otherwise.
const LONGEST: f64 = 2e-3;
/// Rows that are run at least, however long they take.
const LEAST_STEPS: u64 = 20;
/// How long the cores alone are watched.
const BARE: Duration = Duration::from_millis(20);

/// How a sweep is done.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// Cores that run tasks.
    pub cores: u64,
    /// Runs of each length.
    pub repetitions: usize,
    /// Seconds that a run may take where that needs fewer rows.
    pub seconds: f64,
}

/// What came of tasks of one length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Iterations of a task.
    pub iterations: u64,
    /// Tasks of a run.
    pub tasks: u64,
    /// Seconds of a run.
    pub wall: f64,
    /// Seconds of a core for a task.
    pub granularity: f64,
    /// Iterations a second of all cores.
    pub rate: f64,
    /// Its share of what the cores do alone.
    pub efficiency: f64,
}

/// Who runs graphs.
#[derive(Clone, Copy)]
pub enum Runner<'a> {
    /// Rankine.
    Rankine(&'a Client),
    /// Threads that know what comes when.
    ByHand(&'a ByHand),
}

impl Runner<'_> {
    async fn run(self, graphs: &[Graph]) -> Result<Run, Error> {
        match self {
            Self::Rankine(client) => run(client, graphs).await,
            Self::ByHand(by_hand) => by_hand.run(graphs),
        }
    }
}

/// A sweep that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Swept {
    /// What ran at the same time, as it was asked for.
    pub graphs: Vec<Graph>,
    /// Whether it ran without Rankine.
    pub by_hand: bool,
    /// A point for each length of tasks, the longest first.
    pub points: Vec<Point>,
}

impl Swept {
    /// The patterns, and who ran them.
    pub fn label(&self) -> String {
        format!("{}{}", label(&self.graphs), if self.by_hand { " by hand" } else { "" })
    }
}

/// The rate of cores that do nothing but the work, in iterations a second.
pub fn bare_rate(work: &Work, cores: u64) -> f64 {
    // Of ranks on other machines the cores are taken to be like ours.
    let here = (thread::available_parallelism().map_or(1, usize::from) as u64).min(cores).max(1);
    // So many that looking at the clock costs nothing.
    let together = match work.kernel {
        Kernel::MemoryBound => 1 + (1 << 16) / work.scratch.max(1),
        _ => 1000,
    };
    let alone = || {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < BARE {
            work.execute(together);
            done += together;
        }
        done as f64 / start.elapsed().as_secs_f64()
    };
    let of_all: f64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..here).map(|_| scope.spawn(alone)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    });
    of_all * cores as f64 / here as f64
}

impl Sweep {
    /// Runs graphs with ever shorter tasks, for as long as there is something to be learned of a runner. Where there are
    /// several they take turns, so that the noise of the machine hits all alike.
    ///
    /// # Errors
    /// If the kernel is empty, or the graphs do not run.
    pub async fn run(&self, runners: &[Runner<'_>], graphs: &[Graph]) -> Result<Vec<Swept>, Error> {
        let Some(first) = graphs.first().filter(|graph| graph.work.kernel != Kernel::Empty) else {
            return Err(Error::Usage("-metg wants a kernel that does something: compute_bound, say".into()));
        };
        if graphs
            .iter()
            .any(|graph| graph.work.kernel != first.work.kernel || graph.work.scratch != first.work.scratch)
        {
            return Err(Error::Usage(
                "-metg compares the rate of one kernel: all graphs need the same one".into(),
            ));
        }
        let rate_of_one = bare_rate(&first.work, self.cores) / self.cores as f64;
        let mut iterations = match first.work.iterations {
            0 => ((LONGEST * rate_of_one) as u64).max(1),
            given => given,
        };
        // Functions and connections are warm before anything is measured.
        for runner in runners {
            runner.run(&self.shaped(graphs, 1, 1.0)).await?;
        }
        let begun = |runner: Runner<'_>| {
            let (graphs, by_hand) = (graphs.to_vec(), matches!(runner, Runner::ByHand(_)));
            Swept { graphs, by_hand, points: Vec::new() }
        };
        let mut sweeps: Vec<_> = runners.iter().map(|runner| (*runner, begun(*runner))).collect();
        loop {
            let graphs = self.shaped(graphs, iterations, rate_of_one);
            let hopeless = |point: &Point| point.efficiency < HOPELESS || point.iterations == 1;
            let mut left: Vec<_> = sweeps
                .iter_mut()
                .filter(|(_, swept)| !swept.points.last().is_some_and(hopeless))
                .map(|(runner, swept)| (*runner, &mut swept.points, Vec::new()))
                .collect();
            if left.is_empty() {
                break;
            }
            for _ in 0..self.repetitions.max(1) {
                for (runner, _, seen) in &mut left {
                    seen.push(self.point(*runner, &graphs, iterations).await?);
                }
            }
            left.into_iter().for_each(|(_, points, seen)| points.push(Self::median(&seen)));
            iterations = iterations.div_ceil(2);
        }
        Ok(sweeps.into_iter().map(|(_, swept)| swept).collect())
    }

    async fn point(&self, runner: Runner<'_>, graphs: &[Graph], iterations: u64) -> Result<Point, Error> {
        let all: u64 = graphs.iter().map(Graph::iterations).sum();
        // Before and after each run: whoever else uses the machine takes from all three.
        let before = self.quiet_rate(graphs);
        let Run { tasks, wall } = runner.run(graphs).await?;
        let bare = f64::midpoint(before, self.quiet_rate(graphs));
        let wall = wall.as_secs_f64();
        let rate = all as f64 / wall;
        let granularity = wall * self.cores as f64 / tasks as f64;
        Ok(Point { iterations, tasks, wall, granularity, rate, efficiency: rate / bare })
    }

    fn quiet_rate(&self, graphs: &[Graph]) -> f64 {
        // Of the run before there may be something to be cleared up.
        thread::sleep(BARE);
        bare_rate(&graphs[0].work, self.cores)
    }

    fn median(seen: &[Point]) -> Point {
        let median = |of: fn(&Point) -> f64| {
            let mut figures: Vec<f64> = seen.iter().map(of).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Point {
            wall: median(|p| p.wall),
            granularity: median(|p| p.granularity),
            rate: median(|p| p.rate),
            efficiency: median(|p| p.efficiency),
            ..seen[0]
        }
    }

    /// The same graphs with other tasks, and no more rows than there is time for.
    fn shaped(&self, graphs: &[Graph], iterations: u64, rate_of_one: f64) -> Vec<Graph> {
        let width: u64 = graphs.iter().map(|graph| graph.shape.width).sum();
        let row = iterations as f64 / rate_of_one * width.max(self.cores) as f64 / self.cores as f64;
        let steps = ((self.seconds / row) as u64).max(LEAST_STEPS);
        graphs
            .iter()
            .map(|graph| {
                let mut graph = *graph;
                graph.work.iterations = iterations;
                graph.shape.steps = graph.shape.steps.min(steps);
                graph
            })
            .collect()
    }
}

/// The smallest granularity, in seconds, at which the efficiency is at least one half: between two points, where the line
/// between them over the logarithm of the granularity says so. `None` where no point is effective. Where all are, what
/// is looked for lies below the smallest, which is given.
pub fn metg(points: &[Point]) -> Option<f64> {
    let mut points = points.to_vec();
    points.sort_unstable_by(|one, other| one.granularity.total_cmp(&other.granularity));
    let effective = points.iter().position(|point| point.efficiency >= EFFECTIVE)?;
    let above = points[effective];
    let Some(below) = effective.checked_sub(1).map(|place| points[place]) else {
        return Some(above.granularity);
    };
    let share = (EFFECTIVE - below.efficiency) / (above.efficiency - below.efficiency);
    let [from, to] = [below.granularity.ln(), above.granularity.ln()];
    Some((from + share * (to - from)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(granularity: f64, efficiency: f64) -> Point {
        Point { iterations: 1, tasks: 1, wall: 1.0, granularity, rate: 1.0, efficiency }
    }

    #[test]
    fn metg_is_where_the_line_crosses_one_half() {
        let points =
            [point(1e-2, 0.99), point(1e-3, 0.9), point(1e-4, 0.6), point(1e-5, 0.4), point(1e-6, 0.1)];
        let metg = metg(&points).expect("some are effective");
        assert!((metg / 10f64.powf(-4.5) - 1.0).abs() < 1e-9, "{metg}");
    }

    #[test]
    fn metg_is_none_where_no_task_is_effective_and_the_smallest_where_all_are() {
        assert_eq!(metg(&[point(1e-2, 0.49), point(1e-3, 0.3)]), None);
        assert_eq!(metg(&[point(1e-2, 0.9), point(1e-3, 0.7)]), Some(1e-3));
        assert_eq!(metg(&[]), None);
    }

    #[test]
    fn more_cores_do_more() {
        let work = Work { kernel: Kernel::ComputeBound, iterations: 0, imbalance: 0.0, scratch: 0 };
        assert!(bare_rate(&work, 1) > 0.0);
        // Cores that are not here count like ours.
        assert!(bare_rate(&work, 1024) > 100.0 * bare_rate(&work, 1));
    }
}
