//! What the processes of a benchmark do over connections of one transport.

use std::{
    future::poll_fn,
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::{join_all, try_join, try_join_all};
use rankine_transport::{AlignedBuffer, Connection, Message, Receiver, Sender};
use serde::{Deserialize, Serialize};

use super::figures::Test;
use crate::{Error, Result};

/// Data of fewer bytes travels in the head of a message, as small values do, other as a frame.
const IN_FRAMES: u64 = 1024;

/// One batch of one test.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Batch {
    pub(super) test: Test,
    /// Bytes of a message.
    pub(super) size: u64,
    /// Messages, or rounds.
    pub(super) count: usize,
}

/// What a message of a benchmark carries: memory that is written once, as a chunk is.
pub(super) fn payload(size: u64) -> Result<Bytes> {
    let attempt = || Error::io(format!("take {size} bytes of memory for a message"));
    let mut buffer = AlignedBuffer::new(size).map_err(attempt())?;
    buffer.zeroed().fill(1);
    Ok(buffer.freeze())
}

fn message(payload: &Bytes) -> Message {
    if (payload.len() as u64) < IN_FRAMES {
        Message::new(payload.clone(), Vec::new())
    } else {
        Message::new(Bytes::new(), vec![payload.clone()])
    }
}

async fn receive(receiver: &mut dyn Receiver) -> Result<Message> {
    // The trait's own method is of objects that live for ever.
    let received = poll_fn(|cx| receiver.poll_recv(cx)).await?;
    received.ok_or_else(|| Error::closed("the other process of the benchmark left"))
}

async fn send(sender: &mut dyn Sender, message: Message) -> Result<()> {
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    sender.start_send(message)?;
    Ok(poll_fn(|cx| sender.poll_flush(cx)).await?)
}

/// Messages handed over as fast as they are taken.
async fn pour(sender: &mut dyn Sender, payload: &Bytes, count: usize) -> Result<()> {
    for _ in 0..count {
        poll_fn(|cx| sender.poll_ready(cx)).await?;
        sender.start_send(message(payload))?;
    }
    Ok(poll_fn(|cx| sender.poll_flush(cx)).await?)
}

async fn drain(receiver: &mut dyn Receiver, count: usize) -> Result<()> {
    for _ in 0..count {
        receive(receiver).await?;
    }
    Ok(())
}

/// One end of a pair. Gives the times that the leading side took: of each round where rounds are
/// what is measured, else of all together.
pub(super) async fn pair(
    batch: Batch,
    leads: bool,
    payload: &Bytes,
    connection: &mut Connection,
) -> Result<Vec<Duration>> {
    let (sender, receiver) = (&mut *connection.sender, &mut *connection.receiver);
    let start = Instant::now();
    match batch.test {
        Test::Latency => {
            let mut times = Vec::with_capacity(batch.count);
            for _ in 0..batch.count {
                let start = Instant::now();
                if leads {
                    send(sender, message(payload)).await?;
                    receive(receiver).await?;
                } else {
                    receive(receiver).await?;
                    send(sender, message(payload)).await?;
                }
                times.push(start.elapsed());
            }
            return Ok(times);
        }
        Test::Bibandwidth | Test::Alltoall => {
            try_join(pour(sender, payload, batch.count), drain(receiver, batch.count)).await?;
        }
        Test::Bandwidth | Test::Rate | Test::Pairs if leads => {
            pour(sender, payload, batch.count).await?;
            receive(receiver).await?;
        }
        Test::Bandwidth | Test::Rate | Test::Pairs => {
            drain(receiver, batch.count).await?;
            send(sender, Message::new("all is here", Vec::new())).await?;
        }
    }
    Ok(vec![start.elapsed()])
}

/// Every process with every other, round after round; gives the time of each round.
pub(super) async fn all_to_all(
    batch: Batch,
    payload: &Bytes,
    mut connections: Vec<&mut Connection>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(batch.count);
    for _ in 0..batch.count {
        let start = Instant::now();
        let round = connections.iter_mut().map(|connection| {
            let (sender, receiver) = (&mut *connection.sender, &mut *connection.receiver);
            try_join(send(sender, message(payload)), receive(receiver))
        });
        try_join_all(round).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Both ends in one process.
pub(super) async fn within(
    batch: Batch,
    payload: &Bytes,
    ends: &mut [Connection; 2],
) -> Result<Vec<Duration>> {
    let [ours, theirs] = ends;
    let both = [pair(batch, true, payload, ours), pair(batch, false, payload, theirs)];
    let mut done = join_all(both).await.into_iter();
    let times = done.next().unwrap_or_else(|| Ok(Vec::new()));
    done.try_for_each(|other| other.map(drop))?;
    times
}

/// Copies of `size` bytes from memory to memory, for transports below which there is nothing else.
pub(super) fn copies(size: u64, count: usize) -> Result<Duration> {
    let (from, mut to) =
        (payload(size)?, AlignedBuffer::new(size).map_err(Error::io("take memory for a copy"))?);
    let to = to.zeroed();
    let start = Instant::now();
    for _ in 0..count {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
    }
    Ok(start.elapsed())
}

/// What the calling thread uses of its core from a moment on.
pub(super) struct Used {
    cpu: Duration,
    start: Instant,
}

impl Used {
    pub(super) fn from_now() -> Self {
        Self { cpu: cpu_time(), start: Instant::now() }
    }

    /// The part of a core since then.
    pub(super) fn part_of_a_core(&self) -> f64 {
        let cpu = cpu_time().saturating_sub(self.cpu);
        cpu.as_secs_f64() / self.start.elapsed().as_secs_f64().max(1e-9)
    }
}

/// Processor time that the calling thread has used; none where the system does not tell.
fn cpu_time() -> Duration {
    let read = || -> io::Result<Option<u64>> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(text.split(' ').next().and_then(|number| number.parse().ok()))
    };
    Duration::from_nanos(read().ok().flatten().unwrap_or(0))
}
