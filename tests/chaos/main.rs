//! Random graphs, while everything that can go wrong does: workers are killed, stopped, cut off and slowed down, join
//! late, and the scheduler dies and is restored. Every result must be what a sequential run gives.
//!
//! Real processes, each worker on a network of its own where the test may have such (as root), else behind a proxy.
//! The faults come from a seed, which is printed: `CHAOS_SEED=7` plans the same again, `CHAOS_FAULTS=2000` more of them,
//! `CHAOS_NETWORK=proxy` does without root.

mod faults;
mod network;
mod proxy;

use std::{
    env,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use faults::World;
use libtest_mimic::{Arguments, Failed, Trial};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine::{SchedulerFile, Settings, TaskFuture, array::Chunk, blocking::Client};

/// A graph that has lasted this long is left in peace until it ends. Faults come by the clock and work gets done by the
/// processor: where that is short, more would be lost for ever than is done.
const TROUBLED: Duration = Duration::from_secs(15);
/// A graph that was left in peace for this long and is not done never will be.
const STUCK: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    if env::var_os("CHAOS_PROGRAM").is_some() {
        return rankine::run(|_| async {});
    }
    if let Some(code) = network::alone() {
        return code;
    }
    let trial = Trial::test("results_are_right_whatever_goes_wrong", results_are_right_whatever_goes_wrong);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A task of a graph: its number, how long it takes, how many numbers it gives, and what it depends on.
struct Call {
    number: u64,
    micros: u64,
    width: usize,
    dependencies: Vec<usize>,
}

/// What it computes: its number and the first numbers of what it depends on, added up, counted on from there.
fn compute(number: u64, micros: u64, width: usize, inputs: Vec<Chunk<u64>>) -> Chunk<u64> {
    thread::sleep(Duration::from_micros(micros));
    // Each input is what its first number says: what arrived is what was sent.
    let whole = inputs.iter().all(|input| {
        let input = input.as_slice().unwrap_or_default();
        input.iter().zip(input[0]..).all(|(there, expected)| *there == expected)
    });
    assert!(whole, "an input was damaged on its way");
    let first =
        inputs.iter().filter_map(|input| Some(input.as_slice()?[0])).fold(number, u64::wrapping_add) >> 1;
    counted(first, width)
}

fn counted(first: u64, width: usize) -> Chunk<u64> {
    let numbers = (first..).take(width).collect();
    Chunk::from_vec(numbers, &[width]).expect("as many as there are")
}

/// A graph of some hundred tasks: short ones and long ones, small results and big ones, deep and wide.
fn graph(random: &mut SmallRng) -> Vec<Call> {
    let tasks = random.random_range(60..200);
    let reach = random.random_range(1..80usize);
    (0..tasks)
        .map(|place: usize| {
            let most = random.random_range(0..4usize).min(place);
            let mut dependencies: Vec<usize> =
                (0..most).map(|_| random.random_range(place.saturating_sub(reach)..place)).collect();
            dependencies.sort_unstable();
            dependencies.dedup();
            let width = if random.random_range(0..5) == 0 { random.random_range(1..40_000) } else { 8 };
            Call {
                number: u64::from(random.random::<u32>()),
                micros: random.random_range(0..20_000),
                width,
                dependencies,
            }
        })
        .collect()
}

fn sequential(graph: &[Call]) -> Vec<u64> {
    let mut firsts: Vec<u64> = Vec::new();
    for Call { number, dependencies, .. } in graph {
        let first = dependencies.iter().map(|d| firsts[*d]).fold(*number, u64::wrapping_add) >> 1;
        firsts.push(first);
    }
    firsts
}

/// Runs a graph, keeping the futures of some tasks alone, and compares what they give.
fn round(client: &Client, random: &mut SmallRng) -> Result<usize, Failed> {
    let graph = graph(random);
    let expected = sequential(&graph);
    let mut futures: Vec<TaskFuture<Chunk<u64>>> = Vec::new();
    for call in &graph {
        let inputs: Vec<_> = call.dependencies.iter().map(|d| futures[*d].clone()).collect();
        let options = client.options().pure(false).retries(0);
        futures.push(options.submit(compute, (call.number, call.micros, call.width, inputs)));
    }
    let share = random.random_range(1..6);
    let kept: Vec<usize> = (0..graph.len()).filter(|place| place % share == 0).collect();
    let wanted: Vec<_> = kept.iter().map(|place| futures[*place].clone()).collect();
    drop(futures);
    let results = client.gather(&wanted)?;
    for (place, result) in kept.into_iter().zip(results) {
        let (call, first) = (&graph[place], expected[place]);
        let right = result.as_slice() == counted(first, call.width).as_slice();
        if !right {
            return Err(format!("task {place} gave something else than {first} and so on").into());
        }
    }
    Ok(graph.len())
}

fn results_are_right_whatever_goes_wrong() -> Result<(), Failed> {
    let (seed, wanted) = (number("CHAOS_SEED", rand::random()), number("CHAOS_FAULTS", 200));
    println!("CHAOS_SEED={seed}: the same faults again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::new(SmallRng::seed_from_u64(random.random()))?;
    // The test itself is never taken for dead.
    let file = SchedulerFile::read(&world.scheduler_file())?;
    let client = Client::from(rankine::Client::connect_with(&file, &Settings::default())?);
    client.wait_for_workers(2)?;
    let (rounds, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let observer = client.clone();
    // Its graphs run while faults come, until there were enough.
    let mut tasks = 0;
    let begun = Instant::now();
    let outcome = thread::scope(|scope| -> Result<(), Failed> {
        let worker = scope.spawn(|| -> Result<usize, Failed> {
            let mut tasks = 0;
            while !enough.load(Ordering::SeqCst) {
                tasks += round(&client, &mut random)?;
                rounds.fetch_add(1, Ordering::SeqCst);
            }
            Ok(tasks)
        });
        let (mut last, mut since) = (0, Instant::now());
        while !worker.is_finished() {
            // The round that runs when there were enough is the last.
            enough.store(world.count() >= wanted, Ordering::SeqCst);
            if world.count() < wanted && since.elapsed() < TROUBLED {
                world.next_fault()?;
            } else {
                world.tend()?;
                thread::sleep(Duration::from_millis(20));
            }
            let now = rounds.load(Ordering::SeqCst);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > TROUBLED + STUCK {
                eprintln!("{}\nthe cluster is stuck:", world.chronicle());
                match observer.scheduler_info() {
                    Ok(info) => eprintln!("{:?}\n{:#?}", info.tasks, info.workers),
                    Err(error) => eprintln!("{error}"),
                }
                let file = world.scheduler_file();
                let explain = std::process::Command::new(env!("CARGO_BIN_EXE_rankine"))
                    .args(["explain", "--scheduler-file"])
                    .arg(file)
                    .output()?;
                eprintln!("{}", String::from_utf8_lossy(&explain.stdout));
                // Whoever waits for results waits for ever.
                std::process::exit(1);
            }
        }
        tasks = worker.join().map_err(|_| "the client panicked")??;
        Ok(())
    });
    let count = rounds.load(Ordering::SeqCst);
    println!(
        "{} faults ({}) in {:.0?}, {count} graphs of {tasks} tasks, over {}",
        world.count(),
        world.kinds(),
        begun.elapsed(),
        world.network()
    );
    if outcome.is_err() {
        eprintln!("{}", world.chronicle());
    }
    outcome
}
