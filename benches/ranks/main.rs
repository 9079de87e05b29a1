//! What it costs to run as ranks under mpirun: one measurement a job, told in JSON lines by the rank that runs
//! the program. `benches/ranks/run` starts the jobs beside those they are compared with, and
//! `benches/README.md` keeps the figures.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use rankine::{Client, Result, array::Chunk};
use serde_json::json;
use tokio::time::sleep;

const ROUND_TRIPS: usize = 10_000;
const TASKS: i64 = 100_000;
/// As in `bare.c`.
const CHUNK: usize = 256 << 20;
const CHUNKS: usize = 12;
/// How long nothing is asked of the workers.
const IDLE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    rankine::run(program)
}

/// `empty` does nothing; `round-trip` wants one worker, `map` and `chunk` want two, `idle` one or more.
async fn program(client: Client) -> Result<()> {
    match rankine::args().first().map(String::as_str) {
        Some("empty") => Ok(()),
        Some("round-trip") => round_trip(&client).await,
        Some("map") => map(&client).await,
        Some("chunk") => chunk(&client).await,
        Some("idle") => idle(&client).await,
        word => {
            let said = word.unwrap_or("nothing");
            Err(rankine::Error::Usage(format!("say empty, round-trip, map, chunk or idle, not {said}")))
        }
    }
}

fn inc(x: i64) -> i64 {
    x + 1
}

async fn round_trip(client: &Client) -> Result<()> {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for i in 0..(ROUND_TRIPS + ROUND_TRIPS / 5) as i64 {
        let start = Instant::now();
        assert_eq!(client.submit(inc, (i,)).await?, i + 1);
        times.push(start.elapsed().as_secs_f64());
    }
    // The first ones warm up.
    times.drain(..ROUND_TRIPS / 5);
    times.sort_unstable_by(f64::total_cmp);
    println!("{}", json!({"what": "round trip", "seconds": times}));
    Ok(())
}

async fn map(client: &Client) -> Result<()> {
    for _ in 0..3 {
        let start = Instant::now();
        let results = client.gather(client.map(|x: i64| x * 3, 0..TASKS)).await?;
        assert_eq!(results.last(), Some(&(3 * (TASKS - 1))));
        println!("{}", json!({"what": "map", "tasks": TASKS, "seconds": start.elapsed().as_secs_f64()}));
    }
    Ok(())
}

fn numbers(round: usize) -> Chunk<f64> {
    let count = CHUNK / size_of::<f64>();
    Chunk::from_vec(vec![round as f64; count], &[count]).expect("the shape is the vector's length")
}

fn last(chunk: Chunk<f64>) -> Option<f64> {
    chunk.as_slice()?.last().copied()
}

/// From submitting a task on one worker, whose argument lies on the other, to its result.
async fn chunk(client: &Client) -> Result<()> {
    let workers = client.scheduler_info().await?.workers;
    let on = |i: usize| client.options().pure(false).workers([&*workers[i].info.name]);
    let mut times = Vec::with_capacity(CHUNKS);
    for round in 0..CHUNKS {
        let chunk = on(round % 2).submit(numbers, (round,));
        chunk.done().await;
        let start = Instant::now();
        assert_eq!(on(1 - round % 2).submit(last, (&chunk,)).await?, Some(round as f64));
        times.push(start.elapsed().as_secs_f64());
        drop(chunk);
        // What this round leaves behind has time to go.
        sleep(Duration::from_millis(50)).await;
    }
    // The first one on either side receives into memory that nobody has used.
    times.drain(..2);
    times.sort_unstable_by(f64::total_cmp);
    println!("{}", json!({"what": "chunk", "seconds": times}));
    Ok(())
}

/// The share of a core that the busiest of the workers takes while it has nothing to do.
async fn idle(client: &Client) -> Result<()> {
    client.gather(client.map(inc, 0..1000)).await?;
    sleep(Duration::from_millis(500)).await;
    let before = client.run(processor_time, ()).await?;
    let start = Instant::now();
    sleep(IDLE).await;
    let after = client.run(processor_time, ()).await?;
    let span = start.elapsed().as_secs_f64();
    let busiest = after.iter().map(|(worker, time)| (time - before[worker]) / span).fold(0.0, f64::max);
    println!("{}", json!({"what": "idle", "share": busiest}));
    Ok(())
}

/// Seconds that this process has computed for, which the system tells to a hundredth.
fn processor_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux tells of each process");
    // The name in parentheses may hold spaces. Then the 14th and 15th field of all are ticks.
    let fields = stat.rsplit(") ").next().expect("something follows the name").split(' ');
    let ticks: u32 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("a number")).sum();
    f64::from(ticks) / 100.0
}
