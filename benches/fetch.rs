//! A chunk of 1 GiB from worker to worker over TCP, against what a bare socket moves in the same run.
//! `cargo bench --bench fetch` runs it, and `benches/README.md` keeps its figures.

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rankine::{Client as AsyncClient, LocalCluster, Result, array::Chunk, blocking::Client};

const BYTES: usize = 1 << 30;
const ROUNDS: usize = 9;
/// What makes the other process of the bare socket of this program.
const SINK: &str = "sink";

/// What the bare socket's reader does for memory.
#[derive(Clone, Copy)]
enum Memory {
    Fresh,
    Reused,
}

fn numbers(round: usize) -> Chunk<f64> {
    let count = BYTES / size_of::<f64>();
    Chunk::from_vec(vec![round as f64; count], &[count]).expect("the shape is the vector's length")
}

fn last(chunk: Chunk<f64>) -> Option<f64> {
    chunk.as_slice()?.last().copied()
}

fn main() -> Result<()> {
    if let [SINK, address] =
        env::args().skip(1).collect::<Vec<_>>().iter().map(|a| &**a).collect::<Vec<_>>()[..]
    {
        sink(address).expect("the bare socket works");
        return Ok(());
    }
    rankine::init();
    let cluster = LocalCluster::builder().workers(2).threads(1).processes(true).start()?;
    let client = Client::from(AsyncClient::connect(cluster.scheduler_file())?);
    let mut bare = Bare::start().expect("the bare socket works");
    println!("1 GiB, worker to worker | bare socket, fresh memory | re-used memory (GiB/s)");
    let mut rounds = vec![];
    for round in 0..=ROUNDS {
        let rates = [
            fetch(&client, round)?,
            bare.send(Memory::Fresh).expect("the bare socket works"),
            bare.send(Memory::Reused).expect("the bare socket works"),
        ];
        println!("{:.2} | {:.2} | {:.2}", rates[0], rates[1], rates[2]);
        // The first round warms up.
        if round > 0 {
            rounds.push(rates);
        }
    }
    let of = |what: fn(&[f64; 3]) -> f64| median(rounds.iter().map(what).collect());
    println!("medians: {:.2} | {:.2} | {:.2}", of(|r| r[0]), of(|r| r[1]), of(|r| r[2]));
    // Round by round, so that what disturbs the machine for a while hits both sides.
    println!(
        "of the bare socket's rate: {:.0} % (fresh memory), {:.0} % (re-used memory)",
        100.0 * of(|r| r[0] / r[1]),
        100.0 * of(|r| r[0] / r[2])
    );
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// GiB/s of something that moves the bytes; what it leaves behind has time to go.
fn rate<E>(moves: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<f64, E> {
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    moves()?;
    Ok(BYTES as f64 / f64::from(1 << 30) / start.elapsed().as_secs_f64())
}

/// From submitting a task on one worker, whose argument lies on the other, to its result.
fn fetch(client: &Client, round: usize) -> Result<f64> {
    let workers = client.scheduler_info()?.workers;
    let on = |i: usize| client.options().pure(false).workers([&*workers[i].info.name]);
    let chunk = on(round % 2).submit(numbers, (round,));
    client.wait(std::slice::from_ref(&chunk), Default::default(), None)?;
    rate(|| {
        let result = on(1 - round % 2).submit(last, (&chunk,)).result()?;
        assert_eq!(result, Some(round as f64));
        Ok(())
    })
}

struct Bare {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Bare {
    fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Command::new(env::current_exe()?).arg(SINK).arg(listener.local_addr()?.to_string()).spawn()?;
        let stream = listener.accept()?.0;
        stream.set_nodelay(true)?;
        Ok(Self { stream, bytes: vec![1; BYTES] })
    }

    fn send(&mut self, memory: Memory) -> std::io::Result<f64> {
        let Self { stream, bytes } = self;
        rate(|| {
            stream.write_all(&[memory as u8])?;
            stream.write_all(bytes)?;
            stream.read_exact(&mut [0])
        })
    }
}

/// Reads until the sender goes.
fn sink(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut kept = vec![1; BYTES];
    let mut memory = [0];
    while stream.read(&mut memory)? > 0 {
        if memory == [Memory::Reused as u8] {
            stream.read_exact(&mut kept)?;
            stream.write_all(&[0])?;
        } else {
            // The system gives pages of zeros as they are touched.
            let mut fresh = vec![0; BYTES];
            stream.read_exact(&mut fresh)?;
            stream.write_all(&[0])?;
        }
    }
    Ok(())
}
