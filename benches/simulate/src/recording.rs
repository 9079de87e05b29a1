//! All that a scheduler heard in a run, to be heard again by itself: what it costs where nothing else shares its memory and the
//! processor's caches, as in a process of its own, and mostly where it has that much to do that it never waits.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write},
    time::Duration,
};

use bytes::Bytes;
use rankine::{
    protocol::WorkerInfo,
    scheduler::Stimulus,
    serialize::{from_frames, to_frames},
};
use serde::{Deserialize, Serialize};

use crate::Policy;

/// Turns that are read before they are heard: so few that they are in the processor's caches, as what has just arrived is, and
/// so many that looking at the clock costs nothing.
const TOGETHER: usize = 64;

/// What a scheduler hears, written down turn by turn.
#[derive(Debug)]
pub struct Recording {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

/// What is heard at once.
#[derive(Debug, Deserialize)]
enum Turn {
    Client,
    Join(WorkerInfo),
    Stimuli(Vec<Stimulus>),
}

impl Turn {
    fn stimuli(&self) -> &[Stimulus] {
        match self {
            Self::Stimuli(stimuli) => stimuli,
            Self::Client | Self::Join(_) => &[],
        }
    }
}

/// A [`Turn`] to be written.
#[derive(Debug, Serialize)]
pub(crate) enum Noted<'a> {
    Client,
    Join(&'a WorkerInfo),
    Stimuli(&'a [Stimulus]),
}

impl Recording {
    /// Writes to a file from where that stands.
    pub fn new(file: File) -> Self {
        Self { file: BufWriter::with_capacity(1 << 20, file), failed: None }
    }

    pub(crate) fn note(&mut self, now: u64, noted: &Noted<'_>) {
        if self.failed.is_none() {
            self.failed = self.write(now, noted).err();
        }
    }

    fn write(&mut self, now: u64, noted: &Noted<'_>) -> io::Result<()> {
        let (head, frames) = to_frames(&(now, noted)).map_err(io::Error::other)?;
        self.file.write_all(&(frames.len() as u64).to_le_bytes())?;
        for part in std::iter::once(&head).chain(&frames) {
            self.file.write_all(&(part.len() as u64).to_le_bytes())?;
            self.file.write_all(part)?;
        }
        Ok(())
    }

    /// The file, to be read from its beginning.
    ///
    /// # Errors
    /// If not all could be written.
    pub fn finish(self) -> io::Result<File> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut file = self.file.into_inner()?;
        file.rewind()?;
        Ok(file)
    }
}

/// Has a new scheduler hear all that a [`Recording`] wrote; gives the processor's time that this took, and the number of
/// instructions that came of it. One that `pauses` between two turns does not know what comes next.
///
/// # Errors
/// If what is read is no recording.
pub fn replay(recording: impl Read, mut policy: impl Policy, pauses: bool) -> io::Result<(Duration, u64)> {
    let mut recording = BufReader::with_capacity(1 << 20, recording);
    let (mut took, mut instructions) = (Duration::ZERO, 0);
    loop {
        let turns = (0..TOGETHER).map_while(|_| read(&mut recording).transpose());
        let turns = turns.collect::<io::Result<Vec<(u64, Turn)>>>()?;
        if turns.is_empty() {
            return Ok((took, instructions));
        }
        let start = processor_time();
        let mut turns = turns.into_iter();
        while let Some((now, turn)) = turns.next() {
            // What has come meanwhile, as in the server of a scheduler.
            let known = if pauses { 0 } else { 3 };
            for (others, (_, later)) in turns.as_slice().iter().take(known).enumerate() {
                later.stimuli().iter().for_each(|stimulus| policy.expect(stimulus, others));
            }
            instructions += hear(&mut policy, turn, now) as u64;
        }
        took += processor_time().saturating_sub(start);
    }
}

/// Has a scheduler hear a turn; gives the number of instructions that come of it.
#[inline(never)] // So that what it takes can be counted.
fn hear(policy: &mut impl Policy, turn: Turn, now: u64) -> usize {
    match turn {
        Turn::Client => {
            policy.add_client();
            0
        }
        Turn::Join(info) => policy.add_worker(info, now).1.len(),
        Turn::Stimuli(stimuli) => policy.handle_many(stimuli, now).len(),
    }
}

fn read(recording: &mut impl BufRead) -> io::Result<Option<(u64, Turn)>> {
    // One that was cut off amid a turn has no end of its own.
    if recording.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut number = [0; 8];
    recording.read_exact(&mut number)?;
    let mut part = || -> io::Result<Bytes> {
        let (mut length, mut part) = ([0; 8], Vec::new());
        recording.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        match recording.take(length).read_to_end(&mut part)? as u64 == length {
            true => Ok(Bytes::from(part)),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    let head = part()?;
    let frames = (0..u64::from_le_bytes(number)).map(|_| part()).collect::<io::Result<_>>()?;
    from_frames(head, frames).map(Some).map_err(io::Error::other)
}

/// Time that the processor gave this thread: what others take of it does not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
