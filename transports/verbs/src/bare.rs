//! Verbs alone, for a benchmark to compare with: SENDs that are polled for, inline where they are small; READs of streams.

use std::{
    collections::VecDeque,
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
    region::{self, Access, Landing, Region},
    registrations::Registrations,
    wire::{DESCRIPTOR, Descriptor},
};

/// A message up to this length is one SEND.
const SEGMENT: usize = 1 << 20;
const SHAPE: Shape = Shape { receives: 4, sends: 4, signals: 1, transfers: 16, segment: SEGMENT };
/// The other side is gone if it does nothing for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const AHEAD: usize = 32 << 20;
/// Looks between two at the clock.
const LOOKS: u32 = 4096;
/// Looks before it sleeps in between.
const PATIENT_LOOKS: u32 = 256;

/// One end of a queue pair.
pub(crate) struct BareVerbs {
    pair: QueuePair,
    /// Messages that nobody has asked for yet.
    received: VecDeque<Vec<u8>>,
    registrations: Arc<Registrations>,
    leads: bool,
    /// Bytes of the longest READ or WRITE.
    most: u32,
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
        let most = mine.max_message.min(theirs.max_message).min(1 << 30);
        Ok(Self { pair, received: VecDeque::new(), registrations, leads, most })
    }

    /// Waits until `done`. Messages that come meanwhile are kept for who asks for them: the other side may have gone
    /// on to what is next before this side hears that it has all.
    fn wait(&mut self, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        let (mut looks, mut since) = (0u32, None);
        while !done(self) {
            match self.pair.poll()? {
                Some(Completion::Received { slot, length, .. }) => {
                    // What says where memory lies is looked at; longer messages are not.
                    self.received.push_back(self.pair.received(slot, length.min(DESCRIPTOR)).to_vec());
                    self.pair.post_receive(slot)?;
                }
                Some(Completion::Failed(failure)) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, failure.to_string()));
                }
                Some(_) => looks = 0,
                None => {
                    // Whoever waits for a whole stream takes no time from the one who reads it.
                    match looks {
                        ..PATIENT_LOOKS => thread::yield_now(),
                        PATIENT_LOOKS.. => thread::sleep(Duration::from_micros(50)),
                    }
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
        Ok(())
    }

    /// Waits until all that was posted is done.
    pub(crate) fn wait_until_idle(&mut self) -> io::Result<()> {
        self.wait(|bare| bare.pair.is_idle())
    }

    /// The next message.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.wait(|bare| !bare.received.is_empty())?;
        Ok(self.received.pop_front().unwrap_or_default())
    }

    /// Sends so many bytes of a segment.
    pub(crate) fn send(&mut self, length: usize) -> io::Result<()> {
        if self.pair.free_segments() == 0 {
            self.wait(|bare| bare.pair.free_segments() > 0)?;
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
        self.describe(start, target.region.remote_key())?;
        Ok(target)
    }

    /// Tells the other side where memory lies.
    fn describe(&mut self, start: usize, key: u32) -> io::Result<()> {
        let descriptor = Descriptor { address: start as u64, key };
        if let Some((_, space)) = self.pair.segment() {
            space[..DESCRIPTOR].copy_from_slice(&descriptor.encode());
        }
        self.send(DESCRIPTOR)
    }

    /// Where the other side's memory lies.
    fn told(&mut self) -> io::Result<Descriptor> {
        let told: [u8; DESCRIPTOR] = self.receive()?.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Descriptor::decode(&told))
    }

    /// Something to send.
    fn source(&self, size: usize) -> io::Result<(Bytes, Arc<Region>)> {
        let mut buffer = AlignedBuffer::new(size.max(1) as u64)?;
        let zeros = [0; 4096];
        while !buffer.is_full() {
            buffer.extend(&zeros);
        }
        let bytes = buffer.freeze();
        let region = self.registrations.cover(&region::addresses(&bytes), Access::Lend)?;
        Ok((bytes, region))
    }

    /// What the other side offered, and something to write there.
    fn accept(&mut self, size: usize) -> io::Result<Source> {
        let to = self.told()?;
        let (bytes, region) = self.source(size)?;
        Ok(Source { region, bytes, to })
    }

    fn write(&mut self, source: &Source) -> io::Result<()> {
        for start in (0..source.bytes.len()).step_by(self.most as usize) {
            if !self.pair.may_transfer() {
                self.wait(|bare| bare.pair.may_transfer())?;
            }
            let piece = source.bytes.slice(start..source.bytes.len().min(start + self.most as usize));
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
        // What does not fit into a segment is written, and a short message tells of that.
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
        let start = Instant::now();
        if self.leads {
            let (source, region) = self.source(size)?;
            self.describe(region::addresses(&source).start, region.remote_key())?;
            self.receive()?;
            return Ok(start.elapsed());
        }
        let told = self.told()?;
        // Some frames are read at once, and their memory is used again and again.
        let frames = (AHEAD / size.max(1)).clamp(2, usize::from(SHAPE.transfers)).min(count.max(1));
        let landings: Vec<(Arc<Landing>, Arc<Region>)> = (0..frames)
            .map(|_| {
                let landing = Landing::new(size.max(1) as u64)?;
                let memory = landing.addresses(0, landing.capacity());
                Ok((landing, self.registrations.cover(&memory, Access::Both)?))
            })
            .collect::<io::Result<_>>()?;
        for i in 0..count {
            let (landing, region) = &landings[i % frames];
            if i >= frames {
                self.wait(|_| landing.is_full())?;
                landing.clear();
            }
            let mut at = told.address;
            while at < told.address + landing.capacity() {
                if !self.pair.may_transfer() {
                    self.wait(|bare| bare.pair.may_transfer())?;
                }
                at += u64::from(self.pair.post_read(landing, region, self.most, (at, told.key))?);
            }
        }
        self.wait(|_| landings.iter().take(count).all(|(landing, _)| landing.is_full()))?;
        self.send(1)?;
        self.wait_until_idle()?;
        Ok(start.elapsed())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        debug_assert!(self.memory.as_ref().is_empty(), "nobody reads what the other side writes");
    }
}
