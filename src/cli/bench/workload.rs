//! `rankine bench workload`: the same task graphs over each transport.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use ndarray::Ix2;
use serde::Serialize;

use super::{report::show, show_size, transport::Format};
use crate::{
    Error, LocalCluster, Result, TaskFuture, array::Chunk, blocking::Client, cli::columns,
    cluster::transports, output::print, parse_bytes, protocol::Metrics, settings::Settings,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Graphs to run
    #[arg(long, value_enum, value_delimiter = ',', default_value = "map,tree,shuffle,rechunk,stencil")]
    pattern: Vec<Pattern>,
    /// Chunks of the array
    #[arg(long, default_value_t = 16)]
    chunks: usize,
    /// Bytes of a chunk
    #[arg(long, default_value = "4MiB", value_name = "BYTES")]
    chunk: String,
    /// Steps of the stencil
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Worker processes (threads of this process for inproc)
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// Threads of a worker
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Times that each graph runs; the median counts
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// How to write the figures
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pattern {
    /// Every chunk by itself
    Map,
    /// Chunks added two by two until one is left
    Tree,
    /// A part of every chunk goes to every other
    Shuffle,
    /// Blocks of rows become blocks of columns
    Rechunk,
    /// Step after step, each chunk with the edges of its neighbours
    Stencil,
}

/// What one graph did over one transport.
#[derive(Serialize)]
struct Row {
    pattern: Pattern,
    transport: String,
    tasks: usize,
    /// From submission until the last result is there.
    seconds: f64,
    /// Bytes that workers fetched from each other.
    moved: u64,
    /// Of which compression spared the links.
    saved: u64,
    /// Part of the threads' time that ran tasks.
    computing: f64,
    /// Times the first transport's time.
    ratio: f64,
}

type Array = Chunk<f64>;

/// Rows of a block of rows.
const ROWS: usize = 8;

/// Runs the graphs.
pub(super) fn run(options: Options, settings: Settings) -> Result<()> {
    let length = usize::try_from(parse_bytes(&options.chunk)?).map_or(0, |nbytes| nbytes / size_of::<f64>());
    // Whole rows.
    let length = length / ROWS * ROWS;
    if options.chunks < 2 || length / ROWS < options.chunks || options.repetitions == 0 {
        return Err(Error::Usage(
            "a workload wants two chunks or more, each of 64 bytes for every chunk or more, and one repetition".into(),
        ));
    }
    let (mut rows, mut absent) = (Vec::new(), Vec::new());
    for transport in transports(&settings)?.transports() {
        let scheme = transport.scheme();
        if let Err(reason) = transport.survey() {
            absent.push((scheme, reason));
            continue;
        }
        let within = scheme == "inproc";
        let settings = Settings { transport: scheme.into(), ..settings.clone() };
        let builder = LocalCluster::builder().workers(options.processes).threads(options.threads);
        let cluster = builder.processes(!within).settings(settings).start()?;
        let client = Client::from(cluster.client()?);
        for &pattern in &options.pattern {
            eprint_progress(&format!("{pattern:?} over {scheme}"));
            let mut runs = Vec::new();
            for _ in 0..options.repetitions {
                runs.push(measure(&client, pattern, scheme, &options, length)?);
            }
            runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let mut row = runs.swap_remove(runs.len() / 2);
            let first = rows.iter().find(|first: &&Row| first.pattern == pattern);
            row.ratio = first.map_or(1.0, |first| row.seconds / first.seconds);
            rows.push(row);
        }
    }
    eprint_progress("");
    let text = match options.format {
        Format::Table => table(&rows, &absent, options.threads as usize * options.processes),
        Format::Csv => csv(&rows),
        Format::Json => serde_json::to_string_pretty(&rows).map_err(|e| Error::Usage(e.to_string()))? + "\n",
    };
    print(text)
}

/// Runs a graph once.
fn measure(client: &Client, pattern: Pattern, scheme: &str, options: &Options, length: usize) -> Result<Row> {
    let before = totals(client)?;
    let start = Instant::now();
    let (tasks, expected, results) = build(client, pattern, options.chunks, length, options.steps);
    let sum: f64 = client.gather(&results)?.into_iter().sum();
    let seconds = start.elapsed().as_secs_f64();
    drop(results);
    if (sum - expected).abs() > expected.abs() * 1e-9 {
        return Err(Error::Usage(format!(
            "{pattern:?} over {scheme} gave {sum} instead of {expected}: this is a fault of Rankine's; please report it"
        )));
    }
    let after = totals(client)?;
    let threads = f64::from(options.threads) * options.processes as f64;
    Ok(Row {
        pattern,
        transport: scheme.into(),
        tasks,
        seconds,
        moved: after.fetched - before.fetched,
        saved: after.saved - before.saved,
        computing: (after.busy - before.busy) as f64 / 1e9 / threads / seconds,
        ratio: 1.0,
    })
}

/// What all workers have done so far, once each has said so after all it did.
fn totals(client: &Client) -> Result<Metrics> {
    let sum = || -> Result<Metrics> {
        let mut sum = Metrics::default();
        for worker in client.scheduler_info()?.workers {
            sum.fetched += worker.metrics.fetched;
            sum.saved += worker.metrics.saved;
            sum.busy += worker.metrics.busy;
        }
        Ok(sum)
    };
    // Two heartbeats.
    thread::sleep(Duration::from_millis(1100));
    sum()
}

/// Submits a graph; gives its number of tasks, what its results add up to, and them.
fn build(
    client: &Client,
    pattern: Pattern,
    chunks: usize,
    length: usize,
    steps: usize,
) -> (usize, f64, Vec<TaskFuture<f64>>) {
    // Pure calls of another run would be the same tasks: none is.
    let options = || client.options().pure(false);
    let total = (0..chunks).map(|i| made_sum(i, length)).sum::<f64>();
    let block = |i: usize| match pattern {
        Pattern::Rechunk => options().submit(make_rows, (i, length)),
        _ => options().submit(make, (i, length)),
    };
    let made: Vec<TaskFuture<Array>> = (0..chunks).map(block).collect();
    match pattern {
        Pattern::Map => {
            let doubled: Vec<_> = made.iter().map(|chunk| options().submit(double, (chunk,))).collect();
            let sums = doubled.iter().map(|chunk| options().submit(sum, (chunk,))).collect();
            (3 * chunks, 2.0 * total, sums)
        }
        Pattern::Tree => {
            let mut level = made;
            let mut tasks = chunks + 1;
            while level.len() > 1 {
                let next = level.chunks(2).map(|pair| match pair {
                    [a, b] => {
                        tasks += 1;
                        options().submit(add, (a, b))
                    }
                    rest => rest[0].clone(),
                });
                level = next.collect();
            }
            (tasks, total, vec![options().submit(sum, (&level[0],))])
        }
        Pattern::Shuffle => {
            let parts: Vec<Vec<_>> = made
                .iter()
                .map(|chunk| (0..chunks).map(|k| options().submit(part, (chunk, k, chunks))).collect())
                .collect();
            let sums = (0..chunks).map(|k| {
                let column: Vec<TaskFuture<Array>> = parts.iter().map(|row| row[k].clone()).collect();
                options().submit(sum, (&options().submit(join, (&column,)),))
            });
            (chunks * (chunks + 3), total, sums.collect())
        }
        Pattern::Rechunk => {
            let pieces: Vec<Vec<_>> = made
                .iter()
                .map(|rows| (0..chunks).map(|k| options().submit(columns_of, (rows, k, chunks))).collect())
                .collect();
            let sums = (0..chunks).map(|k| {
                let column: Vec<TaskFuture<Array>> = pieces.iter().map(|row| row[k].clone()).collect();
                options().submit(sum, (&options().submit(stack, (&column,)),))
            });
            (chunks * (chunks + 3), total, sums.collect())
        }
        Pattern::Stencil => {
            let mut field = made;
            for _ in 0..steps {
                let edge = |at: usize, last: bool| options().submit(edge, (&field[at % chunks], last));
                let next = (0..chunks).map(|i| {
                    let (left, right) = (edge(i + chunks - 1, true), edge(i + 1, false));
                    options().submit(relax, (&left, &field[i], &right))
                });
                field = next.collect();
            }
            let sums = field.iter().map(|chunk| options().submit(sum, (chunk,))).collect();
            (chunks * (2 + 3 * steps), total, sums)
        }
    }
}

fn new(length: usize, number: impl Fn(usize) -> f64) -> Array {
    let fill = |numbers: &mut [f64]| numbers.iter_mut().enumerate().for_each(|(i, place)| *place = number(i));
    // A task's panic is its error.
    Chunk::write(&[length], fill).unwrap_or_else(|error| panic!("{error}"))
}

fn numbers(chunk: &Array) -> Vec<f64> {
    chunk.view().iter().copied().collect()
}

fn make(seed: usize, length: usize) -> Array {
    new(length, |i| (seed + i % 7) as f64)
}

/// The same as a block of rows.
fn make_rows(seed: usize, length: usize) -> Array {
    let fill = |numbers: &mut [f64]| {
        numbers.iter_mut().enumerate().for_each(|(i, place)| *place = (seed + i % 7) as f64);
    };
    Chunk::write(&[ROWS, length / ROWS], fill).unwrap_or_else(|error| panic!("{error}"))
}

/// What the numbers of [`make`] add up to.
fn made_sum(seed: usize, length: usize) -> f64 {
    let rest = length % 7;
    (seed * length + (length / 7) * 21 + rest * rest.saturating_sub(1) / 2) as f64
}

fn double(chunk: Array) -> Array {
    let view = chunk.view();
    let flat = view.as_slice().unwrap_or_default();
    new(flat.len(), |i| 2.0 * flat[i])
}

fn add(a: Array, b: Array) -> Array {
    let (a, b) = (a.as_slice().unwrap_or_default(), b.as_slice().unwrap_or_default());
    new(a.len(), |i| a[i] + b[i])
}

fn sum(chunk: Array) -> f64 {
    chunk.view().sum()
}

/// The `k`th of `count` parts, a view.
fn part(chunk: Array, k: usize, count: usize) -> Array {
    let length = chunk.len();
    chunk.slice(0, length * k / count..length * (k + 1) / count)
}

fn join(parts: Vec<Array>) -> Array {
    let length = parts.iter().map(Chunk::len).sum();
    let write = |all: &mut [f64]| {
        let mut rest = all;
        for part in &parts {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(part.len());
            place.copy_from_slice(part.as_slice().unwrap_or(&numbers(part)));
            rest = after;
        }
    };
    Chunk::write(&[length], write).unwrap_or_else(|error| panic!("{error}"))
}

/// The `k`th of `count` blocks of columns of a block of rows: a view with gaps.
fn columns_of(rows: Array, k: usize, count: usize) -> Array {
    let width = rows.shape()[1];
    rows.slice(1, width * k / count..width * (k + 1) / count)
}

/// Blocks below each other.
fn stack(blocks: Vec<Array>) -> Array {
    let (rows, width) = (blocks.iter().map(|block| block.shape()[0]).sum(), blocks[0].shape()[1]);
    let write = |all: &mut [f64]| {
        let lines = blocks.iter().flat_map(|block| block.view().into_dimensionality::<Ix2>());
        all.iter_mut()
            .zip(lines.flat_map(|block| block.into_iter()))
            .for_each(|(place, number)| *place = *number);
    };
    Chunk::write(&[rows, width], write).unwrap_or_else(|error| panic!("{error}"))
}

/// The first or last number of a chunk.
fn edge(chunk: Array, last: bool) -> f64 {
    let ends = chunk.as_slice().and_then(|numbers| Some((*numbers.first()?, *numbers.last()?)));
    ends.map_or(0.0, |(first, end)| if last { end } else { first })
}

/// The mean of each number and its neighbours; all together they stay the same.
fn relax(left: f64, chunk: Array, right: f64) -> Array {
    let old = chunk.as_slice().unwrap_or_default();
    let at = |i: usize| old.get(i).copied();
    new(old.len(), |i| {
        let before = if i == 0 { left } else { old[i - 1] };
        (before + old[i] + at(i + 1).unwrap_or(right)) / 3.0
    })
}

fn table(rows: &[Row], absent: &[(&str, String)], threads: usize) -> String {
    let head = [
        "pattern",
        "transport",
        "tasks",
        "seconds",
        "tasks/s",
        "moved",
        "MiB/s",
        "spared",
        "computing",
        "ratio",
    ];
    let mut lines = vec![head.map(String::from).to_vec()];
    for row in rows {
        let mib = |nbytes: u64| nbytes as f64 / f64::from(1 << 20);
        lines.push(vec![
            format!("{:?}", row.pattern).to_lowercase(),
            row.transport.clone(),
            row.tasks.to_string(),
            format!("{:.3}", row.seconds),
            show(row.tasks as f64 / row.seconds),
            show_size(row.moved >> 20 << 20),
            show(mib(row.moved) / row.seconds),
            show_size(row.saved >> 20 << 20),
            format!("{:.0}%", row.computing * 100.0),
            format!("{:.2}", row.ratio),
        ]);
    }
    let mut text = columns(&lines, |column| column > 1);
    text += &format!(
        "\ncomputing: the part of {threads} threads' time that ran tasks; ratio: times the first transport's time\n"
    );
    for (scheme, reason) in absent {
        text += &format!("{scheme}: not measured: {reason}\n");
    }
    text
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from("pattern,transport,tasks,seconds,moved,saved,computing,ratio\n");
    for row in rows {
        let Row { transport, tasks, seconds, moved, saved, computing, ratio, .. } = row;
        let pattern = format!("{:?}", row.pattern).to_lowercase();
        text += &format!("{pattern},{transport},{tasks},{seconds},{moved},{saved},{computing},{ratio}\n");
    }
    text
}

fn eprint_progress(what: &str) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_adds_up_to_what_is_said() {
        for length in [1, 6, 7, 8, 1000] {
            assert_eq!(sum(make(3, length)), made_sum(3, length));
        }
    }

    #[test]
    fn what_is_cut_is_joined_again() {
        let chunk = make(5, 103);
        let parts: Vec<Array> = (0..4).map(|k| part(chunk.clone(), k, 4)).collect();
        assert_eq!(numbers(&join(parts)), numbers(&chunk));
        let blocks = [make_rows(2, 80), make_rows(3, 80)];
        let columns: Vec<Array> = (0..3)
            .map(|k| stack(blocks.iter().map(|rows| columns_of(rows.clone(), k, 3)).collect()))
            .collect();
        assert_eq!(columns.iter().map(|c| c.shape()[1]).sum::<usize>(), 10);
        assert!(columns.iter().all(|c| c.shape()[0] == 2 * ROWS));
        assert_eq!(columns[1].view()[[ROWS, 0]], blocks[1].view()[[0, 3]]);
        assert_eq!(columns.into_iter().map(sum).sum::<f64>(), made_sum(2, 80) + made_sum(3, 80));
    }

    #[test]
    fn relaxing_keeps_the_sum_of_a_ring() {
        let (a, b) = (make(1, 10), make(9, 10));
        let (first, last) = (
            (edge(a.clone(), false), edge(b.clone(), false)),
            (edge(a.clone(), true), edge(b.clone(), true)),
        );
        let next = sum(relax(last.1, a.clone(), first.1)) + sum(relax(last.0, b.clone(), first.0));
        assert!((next - sum(a) - sum(b)).abs() < 1e-9);
    }
}
