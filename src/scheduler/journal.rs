//! The journal: all that a scheduler acted on, so that it can be taken up again after a crash.
//!
//! The scheduler's state machine has no clock and no chance in it: given the same stimuli at the same times, it comes
//! to the same state and says the same. So the journal holds stimuli and nothing else, each batch written before what
//! follows from it is told to anybody, and a scheduler is restored by handling them once more. What it then says is
//! what it said before its death; of that, each worker and client is sent what it has not received
//! (`link::session`).
//!
//! Small results that travel with reports are left out, since workers have them, and so are heartbeats: what they
//! lead to, that a worker was silent, is noted. Records bear a checksum: a crash in the midst of writing one leaves a
//! tail that is cut off.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{Config, Stimulus};
use crate::{
    Error, Result,
    link::VERSION,
    protocol::{FromWorker, WorkerId, WorkerInfo},
    serialize::{from_frames, to_frames},
    task::{Value, build_id},
};

/// What every journal begins with.
const MAGIC: &[u8; 16] = b"rankine journal\n";
/// Bytes of a record before its contents: the length of its head, how many frames follow, the checksum.
const PREFIX: usize = 24;
/// Frames of a record at most: more are no record of ours.
const FRAMES: u64 = 1 << 24;

/// What a restored scheduler has to know before the first stimulus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    version: String,
    build: String,
    /// Where it listened, with spaces between.
    pub(crate) contact: String,
    /// The cluster's secret, in hexadecimal digits.
    pub(crate) secret: String,
    /// What it was told at its start: with other rules it would not come to the same state.
    pub(crate) config: Config,
}

/// What happened at once.
#[derive(Debug, Clone, Deserialize)]
pub(crate) enum Entry {
    /// A worker was taken in.
    Worker(WorkerInfo),
    /// A client was taken in.
    Client,
    /// These were handled together.
    Stimuli(Vec<Stimulus>),
    /// Time passed, and these workers had been silent for too long.
    Tick(Vec<WorkerId>),
}

/// An [`Entry`] to be written.
#[derive(Debug, Serialize)]
pub(crate) enum Noted<'a> {
    Worker(&'a WorkerInfo),
    Client,
    Stimuli(&'a [Stimulus]),
    Tick(&'a [WorkerId]),
}

/// A journal of a scheduler that died.
pub(crate) struct Written {
    pub(crate) header: Header,
    /// What it holds, and when each was.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// Where what happens from now on is noted.
    pub(crate) journal: Journal,
}

/// A journal that is being written.
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    record: Vec<u8>,
}

impl Journal {
    /// Begins one; mode 0600, since it holds the secret.
    ///
    /// # Errors
    /// If the file is there already, or cannot be written.
    pub(crate) fn create(path: &Path, contact: &str, secret: &str, config: &Config) -> Result<Self> {
        let failed = Error::io(format!(
            "begin the journal {} (a journal that is there is restored with --restore, or removed)",
            path.display()
        ));
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let mut journal = Self { file, path: path.into(), record: Vec::new() };
        journal.file.write_all(MAGIC).map_err(Error::io("begin the journal"))?;
        let (version, build) = (VERSION.to_owned(), build_id().to_owned());
        let (contact, secret, config) = (contact.into(), secret.into(), config.clone());
        let header = Header { version, build, contact, secret, config };
        journal.append(&header)?;
        Ok(journal)
    }

    /// Takes up one that is there.
    ///
    /// # Errors
    /// If it cannot be read or written, is no journal, or is one of another program.
    pub(crate) fn restore(path: &Path) -> Result<Written> {
        let shown = path.display();
        let failed = |what: &str| Error::io(format!("{what} the journal {shown}"));
        let file = OpenOptions::new().read(true).append(true).open(path).map_err(failed("open"))?;
        let length = file.metadata().map_err(failed("look at"))?.len();
        let mut reader = Reader { file: BufReader::with_capacity(1 << 20, &file), left: length };
        let mut magic = [0; MAGIC.len()];
        let known = reader.file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        reader.left = reader.left.saturating_sub(MAGIC.len() as u64);
        let header = match reader.next::<Header>() {
            Ok(Some(header)) if known => header,
            _ => return Err(Error::Usage(format!("{shown} is no journal of a scheduler's"))),
        };
        if (&*header.version, &*header.build) != (VERSION, build_id()) {
            return Err(Error::Usage(format!(
                "the journal {shown} is of another executable (Rankine {}, build {}; this is {VERSION}, {}): \
                 restore it with the one that wrote it",
                header.version,
                header.build,
                build_id()
            )));
        }
        let mut entries = Vec::new();
        let mut whole = length - reader.left;
        while let Some(entry) = reader.next::<(u64, Entry)>().map_err(failed("read"))? {
            entries.push(entry);
            whole = length - reader.left;
        }
        if whole < length {
            tracing::warn!(
                bytes = length - whole,
                "the end of the journal {shown} is no whole record: it is cut off"
            );
            file.set_len(whole).map_err(failed("cut the end off"))?;
        }
        let mut journal = Self { file, path: path.into(), record: Vec::new() };
        journal.file.seek(std::io::SeekFrom::End(0)).map_err(failed("read"))?;
        Ok(Written { header, entries, journal })
    }

    /// Notes what happens, before it is acted on.
    ///
    /// # Errors
    /// If it cannot be written: the disk is full, say.
    pub(crate) fn note(&mut self, now: u64, noted: &Noted<'_>) -> Result<()> {
        self.append(&(now, noted))
    }

    /// Notes stimuli that are about to be handled together.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub(crate) fn note_stimuli(&mut self, now: u64, stimuli: &mut [Stimulus]) -> Result<()> {
        // What is not written is put aside meanwhile.
        let mut aside: Vec<(usize, Option<Value>)> = Vec::new();
        for (place, stimulus) in stimuli.iter_mut().enumerate() {
            if let Stimulus::Worker(_, FromWorker::Finished(finished)) = stimulus
                && finished.value.is_some()
            {
                aside.push((place, finished.value.take()));
            }
        }
        let noted = self.note(now, &Noted::Stimuli(stimuli));
        for (place, value) in aside {
            if let Some(Stimulus::Worker(_, FromWorker::Finished(finished))) = stimuli.get_mut(place) {
                finished.value = value;
            }
        }
        noted
    }

    fn append<T: Serialize>(&mut self, what: &T) -> Result<()> {
        let unwritable = |source| Error::Message { peer: "the journal".into(), source };
        let (head, frames) = to_frames(what).map_err(unwritable)?;
        let record = &mut self.record;
        record.clear();
        record.extend((head.len() as u64).to_le_bytes());
        record.extend((frames.len() as u64).to_le_bytes());
        record.extend([0; 8]);
        frames.iter().for_each(|frame| record.extend((frame.len() as u64).to_le_bytes()));
        record.extend_from_slice(&head);
        frames.iter().for_each(|frame| record.extend_from_slice(frame));
        let sum = checksum(&record[..16], &record[PREFIX..]);
        record[16..PREFIX].copy_from_slice(&sum.to_le_bytes());
        let failed = Error::io(format!("write the journal {}", self.path.display()));
        let written = self.file.write_all(record).map_err(failed);
        // Big arguments need not stay in memory.
        if record.capacity() > 16 << 20 {
            *record = Vec::new();
        }
        written
    }

    /// Nothing can be written any more: what is there would restore a past that nobody shares.
    pub(crate) fn discard(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn checksum(lengths: &[u8], contents: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(lengths);
    sum.update(contents);
    sum.digest()
}

struct Reader<'a> {
    file: BufReader<&'a File>,
    left: u64,
}

impl Reader<'_> {
    /// The next record; `None` where none is whole.
    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> std::io::Result<Option<T>> {
        let mut prefix = [0; PREFIX];
        if self.left < PREFIX as u64 {
            return Ok(None);
        }
        self.file.read_exact(&mut prefix)?;
        let word = |place: usize| u64::from_le_bytes(prefix[place..place + 8].try_into().unwrap_or_default());
        let (head, frames, sum) = (word(0), word(8), word(16));
        let left = self.left - PREFIX as u64;
        if frames > FRAMES || head > left || head + 8 * frames > left {
            return Ok(None);
        }
        let mut contents = vec![0; 8 * frames as usize];
        self.file.read_exact(&mut contents)?;
        let lengths: Vec<u64> = contents
            .chunks_exact(8)
            .map(|length| u64::from_le_bytes(length.try_into().unwrap_or_default()))
            .collect();
        let start = contents.len();
        let all = lengths.iter().try_fold(start as u64 + head, |sum, length| sum.checked_add(*length));
        let Some(all) = all.filter(|all| *all <= left) else { return Ok(None) };
        contents.resize(all as usize, 0);
        self.file.read_exact(&mut contents[start..])?;
        if checksum(&prefix[..16], &contents) != sum {
            return Ok(None);
        }
        let contents = Bytes::from(contents);
        let mut at = start + head as usize;
        let head = contents.slice(start..at);
        let mut pieces = Vec::with_capacity(lengths.len());
        for length in lengths {
            pieces.push(contents.slice(at..at + length as usize));
            at += length as usize;
        }
        self.left = left - at as u64;
        let Ok(record) = from_frames(head, pieces) else {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a record means nothing"));
        };
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Arguments, Function, Graph, GraphTask, Key},
        protocol::{ClientId, Finished, FromClient, TaskId},
        serialize::Frame,
        task::EntryRef,
    };

    /// A submission whose argument is `size` bytes out of band.
    fn submission(size: usize) -> Stimulus {
        let entry = EntryRef { module: 0, offset: 8, name: 1 };
        let arguments = Arguments::new(Bytes::new(), vec![Frame(vec![7; size].into())]);
        let task = GraphTask {
            key: Key(size as u128),
            function: 0,
            options: u32::MAX,
            dependencies: Default::default(),
            arguments,
        };
        let functions = vec![Function { entry, name: "f".into() }];
        let graph = Graph { functions, options: vec![], tasks: vec![task] };
        Stimulus::Client(ClientId(0), FromClient::Submit { graph, wants: vec![] })
    }

    fn finished(value: Option<Value>) -> Stimulus {
        let finished = Finished { id: TaskId::new(1, 0), nbytes: 8, duration: 5, value };
        Stimulus::Worker(WorkerId(0), FromWorker::Finished(finished))
    }

    /// A journal of three turns; gives its file, and how long it was after each.
    fn written(directory: &Path) -> (PathBuf, Vec<u64>) {
        let path = directory.join("journal");
        let mut journal = Journal::create(&path, "tcp://a:1", "5ec2e7", &Config::default()).unwrap();
        let mut lengths = vec![];
        for now in 0..3 {
            let value = Value::new(7i64);
            let mut stimuli = [submission(100_000 * now as usize), finished(Some(value))];
            journal.note_stimuli(now, &mut stimuli).unwrap();
            let Stimulus::Worker(_, FromWorker::Finished(finished)) = &stimuli[1] else {
                panic!("as before")
            };
            assert!(finished.value.is_some(), "what is not written is still handled");
            journal.note(now, &Noted::Tick(&[WorkerId(3)])).unwrap();
            lengths.push(std::fs::metadata(&path).unwrap().len());
        }
        (path, lengths)
    }

    #[test]
    fn what_was_noted_is_read_back_without_values() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = written(directory.path());
        let Written { header, mut journal, entries } = Journal::restore(&path).unwrap();
        assert_eq!((&*header.contact, &*header.secret), ("tcp://a:1", "5ec2e7"));
        let expected: Vec<String> = (0..3)
            .flat_map(|now| {
                let stimuli = Entry::Stimuli(vec![submission(100_000 * now as usize), finished(None)]);
                [(now, stimuli), (now, Entry::Tick(vec![WorkerId(3)]))]
            })
            .map(|entry: (u64, Entry)| format!("{entry:?}"))
            .collect();
        assert_eq!(entries.iter().map(|entry| format!("{entry:?}")).collect::<Vec<_>>(), expected);
        // It goes on where it ended.
        journal.note(9, &Noted::Client).unwrap();
        drop(journal);
        let entries = Journal::restore(&path).unwrap().entries;
        assert!(entries.len() == 7 && matches!(entries[6], (9, Entry::Client)));
    }

    #[test]
    fn a_torn_or_damaged_end_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let (path, lengths) = written(directory.path());
        let whole = std::fs::read(&path).unwrap();
        for missing in [1, 7, 8, 30, 60, 1000, 100_000, 200_100] {
            let length = whole.len() - missing;
            std::fs::write(&path, &whole[..length]).unwrap();
            let entries = Journal::restore(&path).unwrap().entries;
            let expected = lengths.iter().filter(|end| **end <= length as u64).count() * 2;
            assert!(entries.len() == expected || entries.len() == expected + 1, "{missing}");
            assert!(std::fs::metadata(&path).unwrap().len() <= length as u64);
            // What is left is whole.
            assert_eq!(Journal::restore(&path).unwrap().entries.len(), entries.len());
        }
        let mut damaged = whole.clone();
        let place = lengths[1] as usize + 40;
        damaged[place] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(Journal::restore(&path).unwrap().entries.len(), 4);
        // Lengths beyond reason allocate nothing.
        let mut forged = whole[..lengths[0] as usize].to_vec();
        forged.extend([0xff; 64]);
        std::fs::write(&path, forged).unwrap();
        assert_eq!(Journal::restore(&path).unwrap().entries.len(), 2);
    }

    #[test]
    fn a_journal_of_another_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = written(directory.path());
        let mut journal = Journal { file: File::create(&path).unwrap(), path: path.clone(), record: vec![] };
        journal.file.write_all(MAGIC).unwrap();
        let (version, build) = (VERSION.to_owned(), "f00dfeed".to_owned());
        let (contact, secret, config) = (String::new(), String::new(), Config::default());
        journal.append(&Header { version, build, contact, secret, config }).unwrap();
        let refused = Journal::restore(&path).err().unwrap().to_string();
        assert!(refused.contains("f00dfeed") && refused.contains("restore it with the one that wrote it"));
    }
}
