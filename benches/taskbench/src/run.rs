//! Running graphs: the program that a user of Rankine would write for them.

use std::time::{Duration, Instant};

use rankine::{Client, TaskFuture, serialize::Frame};

use crate::{Call, Error, Graph, point};

/// What running some graphs came to.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Tasks of all graphs.
    pub tasks: u64,
    /// From the first submission until the last result is here.
    pub wall: Duration,
}

/// Runs graphs at the same time, row by row, and checks what the tasks give that no other task checks.
///
/// # Errors
/// If a task found a wrong input, a result is wrong, or the cluster fails.
pub async fn run(client: &Client, graphs: &[Graph]) -> Result<Run, Error> {
    for graph in graphs {
        graph.check()?;
    }
    let start = Instant::now();
    let mut submissions: Vec<Submission<'_>> = graphs.iter().map(Submission::new).collect();
    for step in 0..graphs.iter().map(|graph| graph.shape.steps).max().unwrap_or(0) {
        for submission in &mut submissions {
            submission.submit_row(client, step);
        }
    }
    for submission in submissions {
        let Submission { graph, sinks, places, .. } = submission;
        for (output, (step, column)) in client.gather(&sinks).await?.iter().zip(places) {
            graph.check_output(step, column, &output.0)?;
        }
    }
    Ok(Run { tasks: graphs.iter().map(|graph| graph.shape.tasks()).sum(), wall: start.elapsed() })
}

/// A graph, as far as it is submitted.
struct Submission<'a> {
    graph: &'a Graph,
    /// The row that was submitted last; its columns, and a future of each.
    columns: std::ops::Range<u64>,
    row: Vec<TaskFuture<Frame>>,
    /// Outputs that no task needs, and whose they are. They are held, or nobody would want them.
    sinks: Vec<TaskFuture<Frame>>,
    places: Vec<(u64, u64)>,
}

impl<'a> Submission<'a> {
    fn new(graph: &'a Graph) -> Self {
        Self { graph, columns: 0..0, row: Vec::new(), sinks: Vec::new(), places: Vec::new() }
    }

    fn submit_row(&mut self, client: &Client, step: u64) {
        let shape = &self.graph.shape;
        let columns = shape.columns(step);
        let calls = columns.clone().map(|column| {
            let inputs = shape.inputs(step, column);
            let inputs = inputs.into_iter().map(|input| &self.row[(input - self.columns.start) as usize]);
            (Call { graph: *self.graph, step, column }, inputs.collect::<Vec<_>>())
        });
        // Each run is to do the work anew.
        let row = client.options().pure(false).starmap(point, calls);
        for (column, future) in columns.clone().zip(&row) {
            if shape.users(step, column).is_empty() {
                self.sinks.push(future.clone());
                self.places.push((step, column));
            }
        }
        (self.columns, self.row) = (columns, row);
    }
}
