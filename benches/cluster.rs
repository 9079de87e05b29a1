//! What a task costs from end to end, and the machines of scheduler and worker alone.
//! `cargo bench --bench cluster` runs it, and `benches/README.md` keeps its figures.

use std::{
    alloc::{GlobalAlloc, Layout},
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use mimalloc::MiMalloc;
use rankine::{
    Client as AsyncClient, LocalCluster, Result,
    blocking::Client,
    graph::{Arguments, Function, Graph, GraphTask, Key},
    protocol::{
        ComputeTask, Dependency, Finished, FromClient, FromWorker, Priority, TaskId, ToWorker, WorkerId,
        WorkerInfo,
    },
    scheduler::{Config, Instruction, State, Stimulus},
    task::{EntryRef, Value},
    worker,
};

/// Counts what is allocated while that is wanted, to tell the bytes of a task. As in Task Bench, not the system's allocator:
/// what one thread allocates is mostly given back by another, which takes that one twice the time.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// A counter that all threads share would slow them down.
static COUNTS: AtomicBool = AtomicBool::new(false);

fn count(change: impl FnOnce(&AtomicUsize)) {
    if COUNTS.load(Ordering::Relaxed) {
        change(&ALLOCATED);
    }
}

// SAFETY: all is handed on to mimalloc; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|allocated| _ = allocated.fetch_add(layout.size(), Ordering::Relaxed));
        // SAFETY: the caller's promise is mimalloc's.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(|allocated| _ = allocated.fetch_sub(layout.size(), Ordering::Relaxed));
        // SAFETY: the caller's promise is mimalloc's.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(|allocated| _ = allocated.fetch_add(layout.size(), Ordering::Relaxed));
        // SAFETY: the caller's promise is mimalloc's.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // What becomes less wraps around, and comes out right.
        count(|allocated| _ = allocated.fetch_add(size.wrapping_sub(layout.size()), Ordering::Relaxed));
        // SAFETY: the caller's promise is mimalloc's.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn inc(x: i64) -> i64 {
    x + 1
}

fn add(x: i64, y: i64) -> i64 {
    x + y
}

fn main() -> Result<()> {
    rankine::init();
    // Cargo says `--bench` to every bench.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            end_to_end()?;
            scheduler_alone(1_000_000);
            worker_alone(1_000_000);
        }
        ["scheduler", tasks] => scheduler_alone(tasks.parse().expect("a number of tasks")),
        ["worker", tasks] => worker_alone(tasks.parse().expect("a number of tasks")),
        ["peers"] => beside_peers(true)?,
        ["throughput"] => beside_peers(false)?,
        _ => panic!(
            "say nothing, `scheduler TASKS`, `worker TASKS`, `peers` or `throughput`, not {arguments:?}"
        ),
    }
    Ok(())
}

fn start(processes: bool) -> Result<LocalCluster> {
    LocalCluster::builder().workers(2).threads(1).processes(processes).start()
}

fn end_to_end() -> Result<()> {
    for processes in [false, true] {
        let place = if processes { "2 worker processes, tcp" } else { "2 workers in process" };
        let cluster = start(processes)?;
        let mut clients = vec![("client in process", Client::from(cluster.client()?))];
        if processes {
            let remote = AsyncClient::connect(cluster.scheduler_file())?;
            clients.push(("client over tcp", Client::from(remote)));
        }
        for (which, client) in clients {
            let place = format!("{place}, {which}");
            let times = round_trips(&client)?;
            let at = |share: usize| times[times.len() * share / 100] * 1e6;
            println!("round trip, {place}: p50 {:.1} µs, p90 {:.1} µs, p99 {:.1} µs", at(50), at(90), at(99));
            for (what, tasks, seconds) in throughput(&client)? {
                let rate = tasks as f64 / seconds;
                println!("{what}, {place}: {rate:.0} tasks/s ({tasks} in {seconds:.3} s)");
            }
        }
    }
    Ok(())
}

/// What `peers/run` sets beside other task systems: two worker processes, all over TCP; JSON lines. `throughput` leaves
/// the round trips out, for a profiler.
fn beside_peers(all: bool) -> Result<()> {
    let cluster = start(true)?;
    let client = Client::from(AsyncClient::connect(cluster.scheduler_file())?);
    if all {
        let times = round_trips(&client)?;
        println!("{}", serde_json::json!({"what": "round trip", "seconds": times}));
    }
    for (what, tasks, seconds) in throughput(&client)? {
        println!("{}", serde_json::json!({"what": what, "tasks": tasks, "seconds": seconds}));
    }
    Ok(())
}

/// The seconds of each, sorted.
fn round_trips(client: &Client) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for i in 0..12_000 {
        let start = Instant::now();
        assert_eq!(client.submit(inc, (i,)).result()?, i + 1);
        if i >= 2_000 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times)
}

/// What was run, how many tasks it was, and how many seconds it took.
fn throughput(client: &Client) -> Result<Vec<(&'static str, usize, f64)>> {
    let mut figures = Vec::new();
    for _ in 0..3 {
        let start = Instant::now();
        let results = client.gather(client.map(|x: i64| x * 3, 0..100_000))?;
        assert_eq!(results[99_999], 299_997);
        figures.push(("map", 100_000, start.elapsed().as_secs_f64()));
    }
    let start = Instant::now();
    let mut future = client.submit(inc, (0,));
    for _ in 1..1000 {
        future = client.submit(inc, (future,));
    }
    assert_eq!(future.result()?, 1000);
    figures.push(("chain", 1000, start.elapsed().as_secs_f64()));
    let start = Instant::now();
    let mut level = client.map(|x: i64| x, 0..1 << 15);
    while level.len() > 1 {
        let pairs = level.chunks(2).map(|pair| (&pair[0], &pair[1]));
        level = client.starmap(add, pairs);
    }
    assert_eq!(level[0].result()?, (1 << 14) * ((1 << 15) - 1));
    figures.push(("tree", (1 << 16) - 1, start.elapsed().as_secs_f64()));
    Ok(figures)
}

/// Tasks each of which needs one or two earlier ones, on 16 workers that answer at once.
fn scheduler_alone(tasks: usize) {
    const BATCH: usize = 10_000;
    /// Tasks that can run at the same time.
    const WIDTH: usize = 64;
    assert!(tasks.is_multiple_of(BATCH), "tasks come in batches of {BATCH}");
    let key = |i: usize| Key((i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    COUNTS.store(true, Ordering::Relaxed);
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut state = State::new(Config::default());
    let client = state.add_client();
    for i in 0..16 {
        let info = WorkerInfo {
            name: format!("w{i}").into(),
            address: format!("tcp://w{i}").into(),
            contact: format!("tcp://w{i}").into(),
            nthreads: 1,
            memory_limit: 0,
            resources: vec![],
            pid: 0,
            host: "here".into(),
            lifetime: None,
        };
        state.add_worker(info, 0);
    }
    let entry = EntryRef { module: 0, offset: 8, name: 1 };
    // Within the machine: what stands for workers and client is not counted.
    let mut seconds = 0.0;
    for batch in 0..tasks / BATCH {
        let batch = (batch * BATCH..(batch + 1) * BATCH).map(|i| GraphTask {
            key: key(i),
            function: 0,
            options: u32::MAX,
            dependencies: [i / 2, i.saturating_sub(WIDTH)].into_iter().filter(|d| *d < i).map(key).collect(),
            arguments: Arguments::copied(b"12345678", vec![]),
        });
        let graph = Graph {
            functions: vec![Function { entry, name: "f".into() }],
            options: vec![],
            tasks: batch.collect(),
        };
        let wants = graph.tasks.iter().map(|task| task.key).collect();
        let submission = Stimulus::Client(client, FromClient::Submit { graph, wants });
        let start = Instant::now();
        let mut instructions = state.handle(submission, 0);
        seconds += start.elapsed().as_secs_f64();
        while !instructions.is_empty() {
            let mut assigned: Vec<(WorkerId, TaskId)> = instructions
                .iter()
                .filter_map(|instruction| match instruction {
                    Instruction::ToWorker(worker, ToWorker::Compute(task)) => Some((*worker, task.id)),
                    _ => None,
                })
                .collect();
            instructions.clear();
            // A worker's reports of one turn come together.
            assigned.sort_unstable();
            for reports in assigned.chunk_by(|one, other| one.0 == other.0) {
                let finished = |id| Finished { id, nbytes: 8, duration: 1000, value: None };
                let reports =
                    reports.iter().map(|(w, id)| Stimulus::Worker(*w, FromWorker::Finished(finished(*id))));
                let start = Instant::now();
                let told = state.handle_many(reports.collect(), 0);
                seconds += start.elapsed().as_secs_f64();
                instructions.extend(told);
            }
        }
    }
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("scheduler alone: {:.0} tasks/s, {} bytes a task", tasks as f64 / seconds, bytes / tasks);
    let start = Instant::now();
    let release = FromClient::Release((0..tasks).map(key).collect());
    state.handle(Stimulus::Client(client, release), 0);
    println!("and to forget them: {:.0} tasks/s", tasks as f64 / start.elapsed().as_secs_f64());
    assert_eq!(state.task_count(), 0);
}

/// Two columns of tasks that exchange their results, each given to a worker of two threads before those that it waits for are
/// done; they are done, and let go of, some at a time.
fn worker_alone(tasks: usize) {
    const GIVEN: usize = 500;
    const DONE: usize = 64;
    assert!(tasks.is_multiple_of(GIVEN), "tasks come in batches of {GIVEN}");
    let mut state = worker::State::new(worker::Config {
        nthreads: 2,
        memory_limit: 1 << 30,
        thresholds: Default::default(),
        resources: vec![],
        chains: true,
    });
    let id = |i: usize| TaskId::new(i as u32, 1);
    let (mut seconds, mut now, mut done) = (0.0, 0, 0);
    let mut handle = |stimuli: Vec<worker::Stimulus>, now: u64| {
        let start = Instant::now();
        let told = state.handle_many(stimuli, now);
        seconds += start.elapsed().as_secs_f64();
        told
    };
    let mut running = std::collections::VecDeque::new();
    let mut run = |told: Vec<worker::Instruction>| {
        running.extend(told.into_iter().filter_map(|instruction| match instruction {
            worker::Instruction::Execute(execution) => Some(execution.task.id),
            _ => None,
        }));
        running.drain(..running.len().min(DONE)).collect::<Vec<_>>()
    };
    for batch in 0..tasks / GIVEN {
        let given = (batch * GIVEN..(batch + 1) * GIVEN).map(|i| {
            let row = i & !1;
            let needed = row.saturating_sub(2)..row;
            let dependency =
                |i| Dependency { id: id(i), nbytes: 16, who_has: Default::default(), passing: true };
            worker::Stimulus::Compute(Arc::new(ComputeTask {
                id: id(i),
                key: Key(i as u128),
                entry: EntryRef { module: 0, offset: 8, name: 1 },
                arguments: Arguments::copied(b"12345678", vec![]),
                dependencies: needed.map(dependency).collect(),
                priority: Priority { order: i as u32, ..Priority::default() },
                resources: vec![],
                wanted: false,
                dependents: 2,
                height: 0,
                critical: u32::MAX,
            }))
        });
        let mut ended = run(handle(given.collect(), now));
        while !ended.is_empty() {
            now += 500_000;
            let stimuli = ended.iter().map(|id| worker::Stimulus::Executed {
                id: *id,
                result: Ok(Value::new(0u64)),
                nbytes: 16,
                duration: 8_000,
            });
            let told = handle(stimuli.collect(), now);
            // The last row is needed by the next.
            let free = ended.iter().map(|id| TaskId::new((id.index() as u32).wrapping_sub(2), 1));
            handle(vec![worker::Stimulus::Free(free.collect())], now);
            done += ended.len();
            ended = run(told);
        }
    }
    assert_eq!(done, tasks);
    println!("worker alone: {:.0} tasks/s", tasks as f64 / seconds);
}
