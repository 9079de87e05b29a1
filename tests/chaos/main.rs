//! Random graphs, while everything that can go wrong does: workers are killed, stopped, cut off and slowed down, join
//! late, and the scheduler dies and is restored. Every result must be what a sequential run gives.
//!
//! Real processes, each worker on a network of its own, and once more behind proxies, where root is not needed.
//! The faults come from a seed, which is printed: `CHAOS_SEED=7` plans the same again, `CHAOS_FAULTS=2000` more of them,
//! `CHAOS_GRAPHS=100` more graphs.

mod faults;
mod network;
mod plan;
mod proxy;

use std::{
    env,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use faults::{Network, World};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rankine::{SchedulerFile, Settings, TaskFuture, array::Chunk, blocking::Client};

/// A graph that has lasted this long is left in peace until it ends. Faults come by the clock and work gets done by the
/// processor: where that is short, more would be lost for ever than is done.
const TROUBLED: Duration = Duration::from_secs(15);
/// Clients that submit graphs at the same time.
const CLIENTS: usize = 4;
/// A graph that was left in peace for this long and is not done never will be.
const STUCK: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    if env::var_os("CHAOS_PROGRAM").is_some() {
        return rankine::run(|_| async {});
    }
    if let Some(code) = network::alone() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // Whoever is waited for has the machine to himself.
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("a_seed_plans_the_same_again", plan::a_seed_plans_the_same_again),
        Trial::ignorable_test("results_are_right_whatever_goes_wrong", || {
            if !network::is_alone() {
                return match env::var("CI").as_deref() {
                    Ok("true") => Err("no networks may be made here: run it as root".into()),
                    _ => Ok(Completion::ignored_with("only root may make networks")),
                };
            }
            results_are_right(Network::Own, number("CHAOS_FAULTS", 200), number("CHAOS_GRAPHS", 40))
        }),
        Trial::ignorable_test("results_are_right_whatever_goes_wrong_behind_proxies", || {
            results_are_right(Network::Proxies, 100, 8)
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
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

/// What the clients are at.
struct Progress {
    /// Since when each of them waits for its graph.
    since: Vec<Mutex<Instant>>,
    graphs: AtomicU64,
    tasks: AtomicU64,
    /// There were faults and graphs enough.
    enough: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        let since = (0..CLIENTS).map(|_| Mutex::new(Instant::now())).collect();
        Self { since, graphs: AtomicU64::new(0), tasks: AtomicU64::new(0), enough: AtomicBool::new(false) }
    }

    /// Graph after graph until there were enough; the one that runs then is the last.
    fn rounds(&self, me: usize, client: &Client, mut random: SmallRng) -> Result<(), Failed> {
        while !self.enough.load(Ordering::SeqCst) {
            *self.since[me].lock().expect("nobody panics with it") = Instant::now();
            self.tasks.fetch_add(round(client, &mut random)? as u64, Ordering::SeqCst);
            self.graphs.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// How long a client's graph has lasted.
    fn lasted(&self, me: usize) -> Duration {
        self.since[me].lock().expect("nobody panics with it").elapsed()
    }
}

/// That many faults at least, and meanwhile that many graphs.
fn results_are_right(network: Network, faults: u64, graphs: u64) -> Result<Completion, Failed> {
    let seed = number("CHAOS_SEED", rand::random());
    println!("CHAOS_SEED={seed}: the same faults again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::new(SmallRng::seed_from_u64(random.random()), network)?;
    // The test itself is never taken for dead.
    let file = SchedulerFile::read(&world.scheduler_file())?;
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| Ok(Client::from(rankine::Client::connect_with(&file, &Settings::default())?)))
        .collect::<Result<_, Failed>>()?;
    clients[0].wait_for_workers(2)?;
    let progress = Progress::new();
    let begun = Instant::now();
    let outcome = thread::scope(|scope| -> Result<(), Failed> {
        let running: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(me, client)| {
                let (random, progress) = (SmallRng::seed_from_u64(random.random()), &progress);
                scope.spawn(move || progress.rounds(me, client, random))
            })
            .collect();
        let world = &mut world;
        let mut all_is_well = || -> Result<(), Failed> {
            while !running.iter().all(|client| client.is_finished()) {
                // Before there was enough they end by an error alone.
                let done = running.iter().any(|client| client.is_finished())
                    || progress.graphs.load(Ordering::SeqCst) >= graphs && world.count() >= faults;
                progress.enough.fetch_or(done, Ordering::SeqCst);
                let busy = (0..CLIENTS).filter(|me| !running[*me].is_finished());
                let lasted = busy.map(|me| progress.lasted(me)).max().unwrap_or_default();
                if !done && lasted < TROUBLED {
                    world.next_fault()?;
                } else {
                    world.tend()?;
                    thread::sleep(Duration::from_millis(20));
                }
                if lasted > TROUBLED + STUCK {
                    tell_why_it_is_stuck(world, &clients[0])?;
                    // Whoever waits for results waits for ever.
                    std::process::exit(1);
                }
            }
            Ok(())
        };
        let trouble = all_is_well();
        progress.enough.store(true, Ordering::SeqCst);
        if trouble.is_err() {
            // They may wait for what nobody sees to any more.
            clients.iter().for_each(|client| client.close());
        }
        for client in running {
            let round = client.join().map_err(|_| "a client panicked")?;
            trouble.clone().and(round)?;
        }
        trouble
    });
    let (count, tasks) = (progress.graphs.load(Ordering::SeqCst), progress.tasks.load(Ordering::SeqCst));
    println!(
        "{} faults ({}) in {:.0?}, {count} graphs of {tasks} tasks, {network:?}; {} found that they had been taken for dead",
        world.count(),
        world.kinds(),
        begun.elapsed(),
        world.left(),
    );
    if outcome.is_err() {
        eprintln!("{}", world.chronicle());
    }
    outcome?;
    assert!(world.count() >= faults && count >= graphs);
    // So far it may be that all who were silent for too long were killed before they found out.
    world.silence_one(|pid| {
        let info = clients[0].scheduler_info()?;
        Ok(info.workers.iter().any(|worker| worker.info.pid == pid))
    })?;
    Ok(Completion::Completed)
}

fn tell_why_it_is_stuck(world: &World, observer: &Client) -> Result<(), Failed> {
    eprintln!("{}\nthe cluster is stuck:", world.chronicle());
    match observer.scheduler_info() {
        Ok(info) => eprintln!("{:?}\n{:#?}", info.tasks, info.workers),
        Err(error) => eprintln!("{error}"),
    }
    let explain = std::process::Command::new(env!("CARGO_BIN_EXE_rankine"))
        .args(["explain", "--scheduler-file"])
        .arg(world.scheduler_file())
        .output()?;
    eprintln!("{}", String::from_utf8_lossy(&explain.stdout));
    Ok(())
}
