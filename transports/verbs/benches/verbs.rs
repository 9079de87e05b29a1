//! The transport beside bare verbs and beside perftest, in one run: latency of 8 B, and the rate of long frames.
//!
//! ```text
//! verbs                          both sides on this host (the second side is a process of its own)
//! verbs serve HOST:PORT          one side of two hosts
//! verbs to HOST:PORT             the other
//! ```
//!
//! Perftest (`ib_send_lat -e`, `ib_read_bw`) is measured beside it where both sides are on one host. The ratios are
//! printed, not asserted: they are those of the machine at that moment.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{AlignedBuffer, Connection, Limits, Message, Transport, bare::Control};
use rankine_transport_verbs::Verbs;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 2000;
/// Length of a frame, and how many are sent.
const STREAMS: [(usize, usize); 4] = [(64 << 10, 256), (1 << 20, 128), (8 << 20, 24), (64 << 20, 6)];
/// Each figure is the best of so many.
const REPEATS: usize = 3;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let at = listener.local_addr()?.to_string();
            let mut other = Command::new(std::env::current_exe()?).args(["to", &at]).spawn()?;
            let led = lead(listener.accept()?.0, perftest);
            let ended = other.wait()?;
            led.and_then(|()| if ended.success() { Ok(()) } else { Err("the other side failed".into()) })
        }
        ["serve", at] => lead(TcpListener::bind(at)?.accept()?.0, |_| None),
        ["to", at] => follow(TcpStream::connect(at)?),
        _ => Err("usage: verbs [serve HOST:PORT | to HOST:PORT]".into()),
    }
}

/// What the sides tell each other besides.
struct Side(TcpStream);

impl Control for Side {
    fn exchange(&mut self, mine: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(&(mine.len() as u32).to_le_bytes())?;
        self.0.write_all(mine)?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut theirs = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut theirs)?;
        Ok(theirs)
    }
}

/// A frame whose memory stays registered, as received ones do.
fn frame(size: usize) -> io::Result<Bytes> {
    let mut buffer = AlignedBuffer::new(size as u64)?;
    let ones = [1; 4096];
    while !buffer.is_full() {
        buffer.extend(&ones);
    }
    Ok(buffer.freeze())
}

fn best(mut measure: impl FnMut() -> Result<f64, Failure>) -> Result<f64, Failure> {
    let mut all = (0..REPEATS).map(|_| measure()).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[0])
}

/// Half of the median round, in µs.
fn one_way(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6 / 2.0
}

/// Runs a task as the servers do, and not as the root, which wakes itself by other means.
fn block_on<T: Send + 'static>(
    task: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::spawn(task).await? })
}

fn lead(stream: TcpStream, perftest: impl Fn(&str) -> Option<f64>) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let host = stream.local_addr()?.ip();
    let mut side = Side(stream);
    let verbs = Verbs::default();
    for line in verbs.survey()? {
        println!("{line}");
    }

    let mut bare = verbs.bare(&mut side, true)?;
    bare.ping_pong(8, ROUNDS / 10)?;
    let bare_latency = best(|| Ok(one_way(bare.ping_pong(8, ROUNDS)?)))?;
    let mut bare_rates = Vec::new();
    for (size, count) in STREAMS {
        bare_rates.push(best(|| Ok(bare.stream(size, count)?.as_secs_f64() / (size * count) as f64))?);
    }
    drop(bare);

    let (latency, rates) = block_on(async move {
        let mut listener = verbs.listen(&format!("verbs://{host}:0").parse()?).await?;
        side.exchange(listener.address().as_str().as_bytes())?;
        let mut connection = listener.accept().await?;
        connection.receiver.set_limits(Limits::PEER);
        let mut latency = f64::INFINITY;
        for _ in 0..REPEATS {
            let mut times = Vec::with_capacity(ROUNDS);
            for _ in 0..ROUNDS {
                let start = Instant::now();
                connection.sender.send(Message::new(&b"12345678"[..], Vec::new())).await?;
                connection.receiver.recv().await?.ok_or("the other side left")?;
                times.push(start.elapsed());
            }
            latency = latency.min(one_way(times));
        }
        let mut rates = Vec::new();
        for (size, count) in STREAMS {
            let owned = frame(size)?;
            let mut fastest = [f64::INFINITY; 2];
            for repeat in 0..2 * REPEATS {
                // A program's own memory every other time, which is registered for each transfer.
                let foreign = repeat % 2;
                let frame = if foreign == 1 { Bytes::from(vec![1; size]) } else { owned.clone() };
                let start = Instant::now();
                send_all(&mut connection, &frame, count).await?;
                let per_byte = start.elapsed().as_secs_f64() / (size * count) as f64;
                fastest[foreign] = fastest[foreign].min(per_byte);
            }
            rates.push(fastest);
        }
        connection.sender.close().await?;
        Ok((latency, rates))
    })?;

    let over = |other: Option<f64>, mine: f64| match other {
        Some(other) => format!("{other:8.1}   ratio {:5.2}", mine / other),
        None => "       -".into(),
    };
    println!("8 B one way, µs          transport {latency:8.1}");
    println!("                              bare {}", over(Some(bare_latency), latency));
    println!("                    ib_send_lat -e {}", over(perftest("latency"), latency));
    for (((size, _), [kept, foreign]), bare) in STREAMS.iter().zip(&rates).zip(&bare_rates) {
        let rate = |per_byte: f64| 1e-6 / per_byte;
        println!("{:>8} KiB, MB/s        transport {:8.1}", size >> 10, rate(*kept));
        println!("              from a program's own {}", over(Some(rate(*foreign)), rate(*kept)));
        println!("                        bare READs {}", over(Some(rate(*bare)), rate(*kept)));
        println!("                        ib_read_bw {}", over(perftest(&size.to_string()), rate(*kept)));
    }
    Ok(())
}

async fn send_all(connection: &mut Connection, frame: &Bytes, count: usize) -> Result<(), Failure> {
    for _ in 0..count {
        std::future::poll_fn(|cx| connection.sender.poll_ready(cx)).await?;
        connection.sender.start_send(Message::new("", vec![frame.clone()]))?;
    }
    std::future::poll_fn(|cx| connection.sender.poll_flush(cx)).await?;
    connection.receiver.recv().await?.ok_or("the other side left")?;
    Ok(())
}

fn follow(stream: TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut side = Side(stream);
    let verbs = Verbs::default();
    let mut bare = verbs.bare(&mut side, false)?;
    bare.ping_pong(8, ROUNDS / 10)?;
    for _ in 0..REPEATS {
        bare.ping_pong(8, ROUNDS)?;
    }
    for (size, count) in STREAMS {
        for _ in 0..REPEATS {
            bare.stream(size, count)?;
        }
    }
    drop(bare);
    block_on(async move {
        let at = String::from_utf8(side.exchange(b"")?)?;
        let mut connection = verbs.connect(&at.parse()?).await?;
        connection.receiver.set_limits(Limits::PEER);
        for _ in 0..REPEATS * ROUNDS {
            let message = connection.receiver.recv().await?.ok_or("the other side left")?;
            connection.sender.send(message).await?;
        }
        for (_, count) in STREAMS {
            for _ in 0..2 * REPEATS {
                for _ in 0..count {
                    connection.receiver.recv().await?.ok_or("the other side left")?;
                }
                connection.sender.send(Message::new("done", Vec::new())).await?;
            }
        }
        while connection.receiver.recv().await?.is_some() {}
        Ok(())
    })
}

/// Perftest's figure for the latency in µs, or for frames of a size in MB/s; the best of as many runs as the others have.
fn perftest(of: &str) -> Option<f64> {
    let figures = (0..REPEATS).filter_map(|_| perftest_once(of));
    if of == "latency" { figures.min_by(f64::total_cmp) } else { figures.max_by(f64::total_cmp) }
}

fn perftest_once(of: &str) -> Option<f64> {
    let rounds = (ROUNDS).to_string();
    let (program, arguments, column) = if of == "latency" {
        ("ib_send_lat", vec!["-e", "-F", "-s", "8", "-n", &rounds], 4)
    } else {
        // As many bytes as the transport's streams, but no fewer than perftest takes.
        let count = if of.parse::<usize>().ok()? > 4 << 20 { "16" } else { "128" };
        ("ib_read_bw", vec!["-F", "-s", of, "-n", count, "-t", "16"], 3)
    };
    let start = |more: &[&str]| {
        let mut command = Command::new(program);
        command.args(&arguments).args(more).stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(Stdio::piped()).spawn().ok()
    };
    let mut server = Ending(start(&[])?);
    std::thread::sleep(Duration::from_millis(500));
    let client = start(&["127.0.0.1"])?;
    let output = client.wait_with_output().ok()?;
    let _ = server.0.wait();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = text.lines().rfind(|line| {
        line.split_whitespace().next().is_some_and(|word| word.chars().all(|c| c.is_ascii_digit()))
    })?;
    let figure: f64 = row.split_whitespace().nth(column)?.parse().ok()?;
    // It prints `inf` where the clock it measured does not fit its ticks. Its MB are MiB.
    let figure = Some(figure).filter(|figure| figure.is_finite() && *figure > 0.0)?;
    Some(if of == "latency" { figure } else { figure * 1.048_576 })
}

/// Ends a process that was not waited for.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
