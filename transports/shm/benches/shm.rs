//! Figures of shm between two processes of this host, beside tcp in the same run; `cargo bench -p
//! rankine-transport-shm` takes them. TCP is measured twice, first with blocks on the heap and then, once shm is
//! in use, in segments: it should not be slower for that.
//!
//! A figure is the median of several batches; the best batch is in brackets.

use std::{
    env, error,
    future::poll_fn,
    io::{BufRead, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{Address, AlignedBuffer, Connection, Limits, Message, Transport};
use rankine_transport_shm::Shm;
use rankine_transport_tcp::Tcp;

type Outcome<T = ()> = Result<T, Box<dyn error::Error>>;

const OTHER: &str = "other";
const BATCHES: usize = 7;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What both processes do at the same time.
#[derive(Clone, Copy)]
enum Test {
    /// Time one way of a message that holds a frame of so many bytes, half of a round trip.
    PingPong(usize),
    /// Messages of 8 bytes handed over as fast as they are taken.
    Small,
    /// Frames of so many bytes, each dropped when it has come.
    Stream(usize),
    /// The same of a vector, which lies in no segment.
    StreamOfVector(usize),
}

const LATENCIES: &[Test] = &[
    Test::PingPong(0),
    Test::PingPong(4 * KIB),
    Test::PingPong(16 * KIB),
    Test::PingPong(32 * KIB),
    Test::PingPong(64 * KIB),
    Test::PingPong(256 * KIB),
    Test::PingPong(MIB),
    Test::PingPong(64 * MIB),
];
const RATES: &[Test] = &[
    Test::Small,
    Test::Stream(MIB),
    Test::Stream(16 * MIB),
    Test::Stream(64 * MIB),
    Test::Stream(300 * MIB),
];
const COPIES: &[Test] = &[
    Test::StreamOfVector(64 * KIB),
    Test::StreamOfVector(256 * KIB),
    Test::StreamOfVector(MIB),
    Test::StreamOfVector(16 * MIB),
    Test::StreamOfVector(64 * MIB),
    Test::StreamOfVector(300 * MIB),
];

fn phases() -> Vec<(&'static str, Box<dyn Transport>, Vec<Test>)> {
    let (most, all) = ([LATENCIES, RATES].concat(), [LATENCIES, RATES, COPIES].concat());
    let huge = vec![Test::PingPong(1024 * MIB)];
    vec![
        ("tcp, heap", Box::new(Tcp::default()), most.clone()),
        ("shm", Box::new(Shm), [all, huge].concat()),
        ("tcp, segments", Box::new(Tcp::default()), most),
    ]
}

fn main() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(7).build()?;
    if env::args().any(|argument| argument == OTHER) {
        let mut lines = std::io::stdin().lock().lines();
        for (_, transport, tests) in phases() {
            let address: Address = lines.next().ok_or("an address")??.parse()?;
            let mut connection = runtime.block_on(transport.connect(&address))?;
            connection.receiver.set_limits(Limits::PEER);
            for test in tests {
                runtime.block_on(run(test, &mut connection, false))?;
            }
        }
        return Ok(());
    }
    let mut other = Command::new(env::current_exe()?).arg(OTHER).stdin(Stdio::piped()).spawn()?;
    let mut stdin = other.stdin.take().ok_or("no stdin")?;
    for (name, transport, tests) in phases() {
        let any = if transport.scheme() == "tcp" { "127.0.0.1:0" } else { "*" };
        let address = Address::new(transport.scheme(), any);
        let mut connection = runtime.block_on(async {
            let mut listener = transport.listen(&address).await?;
            writeln!(stdin, "{}", listener.address())?;
            Outcome::Ok(listener.accept().await?)
        })?;
        connection.receiver.set_limits(Limits::PEER);
        for test in tests {
            let (best, median) = runtime.block_on(run(test, &mut connection, true))?;
            println!("{name:14} {}", told(test, best, median));
        }
    }
    other.wait()?;
    Ok(())
}

fn size(bytes: usize) -> String {
    match bytes {
        0 => "8 B".into(),
        1..MIB => format!("{} KiB", bytes / KIB),
        _ => format!("{} MiB", bytes / MIB),
    }
}

/// How often in a batch.
fn count(test: Test) -> usize {
    match test {
        Test::PingPong(bytes) => (64 * MIB / (bytes + 40 * KIB)).clamp(5, 1000),
        Test::Small => 100_000,
        Test::Stream(bytes) | Test::StreamOfVector(bytes) => (256 * MIB / bytes).clamp(3, 1000),
    }
}

fn told(test: Test, best: Duration, median: Duration) -> String {
    let each = |time: Duration| time.as_secs_f64() / count(test) as f64;
    let rate = |bytes: usize, time| bytes as f64 / each(time) / 1e9;
    match test {
        Test::PingPong(bytes) => {
            let micros = |time| each(time) / 2.0 * 1e6;
            format!("{:>8} one way      {:10.1} us   ({:.1})", size(bytes), micros(median), micros(best))
        }
        Test::Small => {
            format!("     8 B messages     {:10.0} /s   ({:.0})", 1.0 / each(median), 1.0 / each(best))
        }
        Test::Stream(bytes) => {
            format!(
                "{:>8} stream       {:10.2} GB/s ({:.2})",
                size(bytes),
                rate(bytes, median),
                rate(bytes, best)
            )
        }
        Test::StreamOfVector(bytes) => {
            format!(
                "{:>8} of a vector  {:10.2} GB/s ({:.2})",
                size(bytes),
                rate(bytes, median),
                rate(bytes, best)
            )
        }
    }
}

/// Gives the best and the median batch's time.
async fn run(test: Test, connection: &mut Connection, leads: bool) -> Outcome<(Duration, Duration)> {
    let frames = match test {
        Test::Small | Test::PingPong(0) => vec![],
        Test::StreamOfVector(bytes) => vec![Bytes::from(vec![1; bytes])],
        Test::PingPong(bytes) | Test::Stream(bytes) => vec![chunk(bytes)?],
    };
    let message = || Message::new(&b"8 bytes."[..], frames.clone());
    let mut times = Vec::new();
    for batch in 0..=BATCHES {
        let start = Instant::now();
        match test {
            Test::PingPong(_) => {
                for _ in 0..count(test) {
                    if leads {
                        connection.sender.send(message()).await?;
                        receive(connection).await?;
                    } else {
                        receive(connection).await?;
                        connection.sender.send(message()).await?;
                    }
                }
            }
            _ if leads => {
                for _ in 0..count(test) {
                    poll_fn(|cx| connection.sender.poll_ready(cx)).await?;
                    connection.sender.start_send(message())?;
                }
                poll_fn(|cx| connection.sender.poll_flush(cx)).await?;
                receive(connection).await?;
            }
            _ => {
                for _ in 0..count(test) {
                    receive(connection).await?;
                }
                connection.sender.send(Message::new("all", vec![])).await?;
            }
        }
        // The first warms up.
        if batch > 0 {
            times.push(start.elapsed());
        }
    }
    times.sort();
    Ok((times[0], times[BATCHES / 2]))
}

async fn receive(connection: &mut Connection) -> Outcome<Message> {
    Ok(connection.receiver.recv().await?.ok_or("the other process went")?)
}

fn chunk(bytes: usize) -> Outcome<Bytes> {
    let mut buffer = AlignedBuffer::new(bytes as u64)?;
    buffer.zeroed().fill(1);
    Ok(buffer.freeze())
}
