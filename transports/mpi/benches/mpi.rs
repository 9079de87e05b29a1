//! What this transport costs over bare MPI, between ranks 0 and 1 of one run:
//!
//! ```text
//! cargo bench -p rankine-transport-mpi --features mpi --no-run
//! mpirun -n 2 target/release/deps/mpi-... [latency] [bandwidth] [rate]
//! ```
//!
//! Each figure is the median of rounds in which both take turns, so that what else the machine does
//! meanwhile concerns both.

use std::{
    future::poll_fn,
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{
    Connection, Limits, Message, Transport,
    bare::{Bare, Control},
};
use rankine_transport_mpi::{Membership, Mpi};
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 7;
/// Messages of a batch that are started before a flush.
const BATCH: usize = 1000;

fn main() {
    let membership = match Mpi::join() {
        Ok(membership) if membership.size() == 2 => membership,
        Ok(membership) => return eprintln!("this needs 2 ranks, not {}", membership.size()),
        Err(error) => return println!("SKIPPED the benchmark of mpi://: {error}"),
    };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut pair = Pair::meet(&membership, &runtime);
    if pair.leads {
        println!("{}", Mpi::default().survey().unwrap_or_default().join("; "));
        println!("{:<34} {:>12} {:>12}", "", "mpi://", "bare MPI");
    }
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let asked = |what: &str| only.is_empty() || only.iter().any(|only| only == what);
    for size in [8, 1 << 10, 16 << 10, 256 << 10].into_iter().filter(|_| asked("latency")) {
        pair.latency(size);
    }
    for size in [64 << 10, 1 << 20, 4 << 20, 64 << 20].into_iter().filter(|_| asked("bandwidth")) {
        pair.bandwidth(size);
    }
    if asked("rate") {
        pair.rate();
    }
    drop(pair);
    membership.leave().expect("it leaves");
}

/// One end of a connection, and of the fabric below it.
struct Pair<'a> {
    runtime: &'a Runtime,
    connection: Connection,
    bare: Box<dyn Bare>,
    leads: bool,
}

impl<'a> Pair<'a> {
    fn meet(membership: &Membership, runtime: &'a Runtime) -> Self {
        let leads = membership.rank() == 0;
        let mut connection = runtime.block_on(async {
            if leads {
                let mut listener =
                    Mpi::default().listen(&"mpi://*:1".parse().unwrap()).await.expect("it listens");
                membership.broadcast(b"listening").expect("all are told");
                return listener.accept().await.expect("it accepts");
            }
            membership.broadcast(b"listening").expect("all are told");
            Mpi::default().connect(&membership.address(0, 1)).await.expect("it connects")
        });
        connection.receiver.set_limits(Limits::PEER);
        let bare = Mpi::default().bare(&mut Over { runtime, connection: &mut connection }, leads);
        Self { runtime, connection, bare: bare.expect("bare MPI"), leads }
    }

    /// One way, which is half a round trip.
    fn latency(&mut self, size: usize) {
        let rounds = if size <= 1 << 10 { 20_000 } else { 2_000 };
        let half = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() / 2.0 * 1e6
        };
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(half(self.bare.ping_pong(size, rounds).expect("bare MPI")));
            ours.push(half(self.ping_pong(size, rounds)));
        }
        self.tell(format_args!("one way, {} (µs)", bytes(size)), ours, bare);
    }

    fn ping_pong(&mut self, size: usize, rounds: usize) -> Vec<Duration> {
        let Connection { sender, receiver, .. } = &mut self.connection;
        // Like a request: a small one is a head, a big one a head and a frame.
        let chunk = Bytes::from(vec![1; size]);
        let message = || match size {
            0..256 => Message::new(chunk.clone(), vec![]),
            _ => Message::new("chunk", vec![chunk.clone()]),
        };
        self.runtime.block_on(async {
            let mut times = Vec::with_capacity(rounds);
            for _ in 0..rounds {
                let start = Instant::now();
                if self.leads {
                    sender.send(message()).await.expect("it sends");
                    receiver.recv().await.expect("it receives").expect("a message");
                } else {
                    let got = receiver.recv().await.expect("it receives").expect("a message");
                    sender.send(Message::new(got.head, got.frames)).await.expect("it sends");
                }
                times.push(start.elapsed());
            }
            times
        })
    }

    /// A stream of frames, each its own message.
    fn bandwidth(&mut self, size: usize) {
        let count = ((1 << 30) / size).clamp(8, 1024);
        let rate = |time: Duration| (size * count) as f64 / time.as_secs_f64() / 1e9;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(rate(self.bare.stream(size, count).expect("bare MPI")));
            ours.push(rate(self.stream(count, BATCH.min(8), || Message::new("", vec![chunk(size)]))));
        }
        self.tell(format_args!("stream of {} frames (GB/s)", bytes(size)), ours, bare);
    }

    /// Messages of 8 bytes a second over one connection.
    fn rate(&mut self) {
        let count = 500_000;
        let rate = |time: Duration| count as f64 / time.as_secs_f64() / 1e6;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        let head = Bytes::from_static(b"8 bytes.");
        for _ in 0..ROUNDS {
            bare.push(rate(self.bare.stream(8, count).expect("bare MPI")));
            ours.push(rate(self.stream(count, BATCH, || Message::new(head.clone(), vec![]))));
        }
        self.tell(format_args!("stream of 8 B messages (M/s)"), ours, bare);
    }

    fn stream(&mut self, count: usize, batch: usize, message: impl Fn() -> Message) -> Duration {
        let Connection { sender, receiver, .. } = &mut self.connection;
        self.runtime.block_on(async {
            let start = Instant::now();
            if self.leads {
                for i in 1..=count {
                    poll_fn(|cx| sender.poll_ready(cx)).await.expect("it is ready");
                    sender.start_send(message()).expect("it takes a message");
                    if i % batch == 0 || i == count {
                        poll_fn(|cx| sender.poll_flush(cx)).await.expect("it flushes");
                    }
                }
                receiver.recv().await.expect("it receives").expect("an answer");
            } else {
                for _ in 0..count {
                    receiver.recv().await.expect("it receives").expect("a message");
                }
                sender.send(Message::new("all", vec![])).await.expect("it sends");
            }
            start.elapsed()
        })
    }

    fn tell(&self, what: std::fmt::Arguments<'_>, ours: Vec<f64>, bare: Vec<f64>) {
        let median = |mut figures: Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        let (ours, bare) = (median(ours), median(bare));
        if self.leads {
            println!("{:<34} {ours:>12.2} {bare:>12.2} {:>9.0} %", what.to_string(), 100.0 * ours / bare);
        }
    }
}

/// A chunk that all messages of its size share, like one that is sent to many.
fn chunk(size: usize) -> Bytes {
    use std::{cell::RefCell, collections::HashMap};
    thread_local! { static CHUNKS: RefCell<HashMap<usize, Bytes>> = RefCell::default(); }
    CHUNKS.with_borrow_mut(|chunks| chunks.entry(size).or_insert_with(|| vec![1; size].into()).clone())
}

fn bytes(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

/// Tells the other side over the connection.
struct Over<'a> {
    runtime: &'a Runtime,
    connection: &'a mut Connection,
}

impl Control for Over<'_> {
    fn exchange(&mut self, mine: &[u8]) -> io::Result<Vec<u8>> {
        let Connection { sender, receiver, .. } = &mut *self.connection;
        let exchanged = self.runtime.block_on(async {
            sender.send(Message::new(mine.to_vec(), vec![])).await?;
            receiver.recv().await
        });
        let theirs = exchanged.map_err(io::Error::other)?;
        Ok(theirs.ok_or_else(|| io::Error::other("it closed"))?.head.to_vec())
    }
}
