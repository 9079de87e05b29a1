//! Verbs alone, for a benchmark to compare with: inline SENDs that are polled for, WRITEs for what is longer.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{
    AlignedBuffer,
    bare::{Bare, Control},
};

use crate::{
    completion::Completion,
    exchange::{Endpoint, HELLO},
    queue_pair::{QueuePair, Shape},
    region::{self, Access, Region},
    registrations::Registrations,
    wire::{DESCRIPTOR, Descriptor},
};

/// A message up to this length is one SEND.
const SEGMENT: usize = 1 << 20;
const SHAPE: Shape = Shape { receives: 4, sends: 4, signals: 1, transfers: 16, segment: SEGMENT };
/// The other side is gone if it does nothing for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Looks between two at the clock.
const LOOKS: u32 = 4096;

/// One end of a queue pair.
pub(crate) struct BareVerbs {
    pair: QueuePair,
    registrations: Arc<Registrations>,
    leads: bool,
    max_write: usize,
}

/// Memory that the other side writes to. Nobody reads it.
struct Target {
    region: Region,
    memory: AlignedBuffer,
}

/// What is written to the other side's target.
struct Source {
    region: Arc<Region>,
    bytes: Bytes,
    to: Descriptor,
}

impl BareVerbs {
    pub(crate) fn new(
        registrations: Arc<Registrations>,
        control: &mut dyn Control,
        leads: bool,
    ) -> io::Result<Self> {
        let device = registrations.device();
        let mut pair = QueuePair::new(device, None, 0, SHAPE)?;
        let mine = Endpoint::new(device, pair.number());
        let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let theirs = control.exchange(&mine.encode())?;
        let theirs: [u8; HELLO] =
            theirs.try_into().map_err(|_| wrong("the other side is not a queue pair".into()))?;
        let theirs = Endpoint::decode(&theirs).map_err(wrong)?;
        theirs.check(device).map_err(wrong)?;
        pair.connect(&mine, &theirs)?;
        // Nothing is sent before both are connected.
        control.exchange(b"ready")?;
        let max_write = mine.max_message.min(theirs.max_message).min(1 << 30) as usize;
        Ok(Self { pair, registrations, leads, max_write })
    }

    /// Waits until a message comes, or until `done`.
    fn wait(&mut self, mut done: impl FnMut(&QueuePair) -> bool) -> io::Result<Option<Vec<u8>>> {
        let (mut looks, mut since) = (0u32, None);
        loop {
            match self.pair.poll()? {
                Some(Completion::Received { slot, length, .. }) => {
                    // What says where memory lies is looked at; longer messages are not.
                    let received = self.pair.received(slot, length.min(DESCRIPTOR)).to_vec();
                    self.pair.post_receive(slot)?;
                    return Ok(Some(received));
                }
                Some(Completion::Failed(failure)) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, failure.to_string()));
                }
                Some(_) => looks = 0,
                None if done(&self.pair) => return Ok(None),
                None => {
                    thread::yield_now();
                    looks += 1;
                    if looks.is_multiple_of(LOOKS)
                        && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE
                    {
                        let reason = format!("nothing came for {PATIENCE:?}");
                        return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
                    }
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.wait(|_| false).map(Option::unwrap_or_default)
    }

    fn send(&mut self, length: usize) -> io::Result<()> {
        if self.pair.free_segments() == 0 {
            self.wait(|pair| pair.free_segments() > 0)?;
        }
        self.pair.post_send(length, 0)
    }

    /// Room for the other side to write to, of which it is told.
    fn offer(&mut self, size: usize) -> io::Result<Target> {
        let mut memory = AlignedBuffer::new(size.max(1) as u64)?;
        let start = memory.spare().as_mut_ptr() as usize;
        let device = self.registrations.device();
        let region = Region::register(device, &(start..start + memory.capacity()), Access::Open)
            .map_err(|error| region::explain(device, size, &error))?;
        let target = Target { region, memory };
        let descriptor = Descriptor { address: start as u64, key: target.region.remote_key() };
        if let Some((_, space)) = self.pair.segment() {
            space[..DESCRIPTOR].copy_from_slice(&descriptor.encode());
        }
        self.send(DESCRIPTOR)?;
        Ok(target)
    }

    /// What the other side offered, and something to write there.
    fn accept(&mut self, size: usize) -> io::Result<Source> {
        let told = self.receive()?;
        let told: [u8; DESCRIPTOR] = told.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        let mut buffer = AlignedBuffer::new(size.max(1) as u64)?;
        let zeros = [0; 4096];
        while !buffer.is_full() {
            buffer.extend(&zeros);
        }
        let bytes = buffer.freeze();
        let region = self.registrations.cover(&region::addresses(&bytes), Access::Lend)?;
        Ok(Source { region, bytes, to: Descriptor::decode(&told) })
    }

    fn write(&mut self, source: &Source) -> io::Result<()> {
        for start in (0..source.bytes.len()).step_by(self.max_write) {
            if !self.pair.may_transfer() {
                self.wait(QueuePair::may_transfer)?;
            }
            let piece = source.bytes.slice(start..source.bytes.len().min(start + self.max_write));
            self.pair.post_write(
                &piece,
                &source.region,
                (source.to.address + start as u64, source.to.key),
            )?;
        }
        Ok(())
    }
}

impl Bare for BareVerbs {
    fn name(&self) -> &'static str {
        "ibv_post_send"
    }

    fn ping_pong(&mut self, size: usize, rounds: usize) -> io::Result<Vec<Duration>> {
        // What does not fit into a segment is written, and a short message tells of it.
        let long = if size > SEGMENT {
            let target = self.offer(size)?;
            Some((self.accept(size)?, target))
        } else {
            None
        };
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            for turn in [true, false] {
                if turn != self.leads {
                    self.receive()?;
                } else if let Some((source, _target)) = &long {
                    self.write(source)?;
                    self.send(1)?;
                } else {
                    self.send(size)?;
                }
            }
            times.push(start.elapsed());
        }
        Ok(times)
    }

    fn stream(&mut self, size: usize, count: usize) -> io::Result<Duration> {
        if !self.leads {
            let start = Instant::now();
            let target = self.offer(size)?;
            self.receive()?;
            self.send(1)?;
            self.wait(QueuePair::is_idle)?;
            drop(target);
            return Ok(start.elapsed());
        }
        let source = self.accept(size)?;
        let start = Instant::now();
        for _ in 0..count {
            self.write(&source)?;
        }
        self.send(1)?;
        self.receive()?;
        Ok(start.elapsed())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        debug_assert!(self.memory.as_ref().is_empty(), "nobody reads what the other side writes");
    }
}
