//! Results on disk: a file each, whose frames are read back as views of the map.
//!
//! A file holds the head of a result's encoding and its frames, each from a multiple of 64 bytes on. Frames are
//! compressed where samples of them say that they are written and read sooner for it at the rate at which the disk takes
//! bytes. Everything here blocks: it is called on the blocking pool.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use memmap2::{Advice, Mmap};
use rankine_transport::compression::{Compression, LinkRate, compress, decompress};

use super::{FileId, SpillError, directory::Directory};
use crate::{
    map::map,
    serialize::Frame,
    task::{Serialized, TaskError, Value},
};

/// Where frames begin, so that they are viewed as numbers of any type.
const ALIGN: u64 = 64;
/// Files from this size on are waited for until the disk has them: only then is their memory free, is it known that
/// there was room for them, and how fast the disk is.
const AWAITED: u64 = 1 << 20;

/// The results that one worker has on disk.
pub(crate) struct Store {
    parent: PathBuf,
    /// Tells the files of the workers of one process apart.
    worker: u64,
    directory: Mutex<Option<Arc<Directory>>>,
    files: Mutex<HashMap<FileId, Arc<Layout>>>,
    rate: Mutex<LinkRate>,
}

/// What lies where in a file.
struct Layout {
    type_hash: u64,
    /// The head, then the frames.
    parts: Vec<Part>,
    length: u64,
}

struct Part {
    offset: u64,
    stored: u64,
    /// Bytes it had before it was compressed, if it was.
    compressed: Option<u64>,
}

/// A result read back.
pub(crate) struct Read {
    pub(crate) value: Value,
    /// Bytes of memory that it takes beside the map.
    pub(crate) occupied: u64,
}

impl Store {
    /// A store below `parent`, where nothing is made before it is needed.
    pub(crate) fn new(parent: PathBuf) -> Self {
        static WORKERS: AtomicU64 = AtomicU64::new(0);
        Self {
            parent,
            worker: WORKERS.fetch_add(1, Ordering::Relaxed),
            directory: Mutex::default(),
            files: Mutex::default(),
            rate: Mutex::default(),
        }
    }

    /// Writes results; gives the bytes that each takes on disk. Of one that fails, since it cannot be serialized or the
    /// disk does not take it, nothing is left.
    ///
    /// All are written before the first is waited for: then the disk has them all to write, and a journal commits once
    /// for all of them.
    pub(crate) fn write(&self, batch: Vec<(FileId, Value)>) -> Vec<(FileId, Result<u64, SpillError>)> {
        let (mut bytes, mut elapsed) = (0, Duration::ZERO);
        let begun: Vec<_> =
            batch.into_iter().map(|(file, value)| (file, self.begin(file, value, &mut elapsed))).collect();
        let mut end = |file, (awaited, layout): (Option<File>, Layout)| {
            let length = layout.length;
            if let Some(out) = awaited {
                let start = Instant::now();
                out.sync_data().map_err(|error| self.failed(file, length, error))?;
                elapsed += start.elapsed();
                bytes += length;
            }
            lock(&self.files).insert(file, Arc::new(layout));
            Ok(length)
        };
        let written = begun.into_iter().map(|(file, begun)| (file, begun.and_then(|begun| end(file, begun))));
        let written = written.collect();
        if bytes > 0 {
            lock(&self.rate).sent(bytes, elapsed);
        }
        written
    }

    /// Hands a result to the system. One that is to be waited for, whose file is given, the disk begins to write.
    fn begin(
        &self,
        file: FileId,
        value: Value,
        elapsed: &mut Duration,
    ) -> Result<(Option<File>, Layout), SpillError> {
        // What its type does there is the user's, and must not take others of the batch with it.
        let serialized = panic::catch_unwind(AssertUnwindSafe(|| value.serialized()));
        let panicked = |_| Err(TaskError::refused("it panicked while it was serialized"));
        let serialized = serialized.unwrap_or_else(panicked).map_err(SpillError::Value)?;
        let (parts, layout) = self.lay_out(&serialized);
        let write = || {
            let out = self.directory()?.create(&self.name(file))?;
            for (bytes, part) in parts.iter().zip(&layout.parts) {
                out.write_all_at(bytes, part.offset)?;
            }
            let awaited = layout.length >= AWAITED;
            if awaited {
                // Nobody will need these pages, so they are written now. Where that is no help, waiting will do.
                let _ = rustix::fs::fadvise(&out, 0, None, rustix::fs::Advice::DontNeed);
            }
            Ok(awaited.then_some(out))
        };
        let start = Instant::now();
        let awaited = write().map_err(|error| self.failed(file, layout.length, error))?;
        if awaited.is_some() {
            *elapsed += start.elapsed();
        }
        Ok((awaited, layout))
    }

    /// Removes what there is of a result that could not be written.
    fn failed(&self, file: FileId, length: u64, error: io::Error) -> SpillError {
        let directory = lock(&self.directory).clone();
        if let Some(directory) = &directory {
            directory.remove(&self.name(file));
        }
        let place = directory.as_ref().map_or(&*self.parent, |directory| directory.path());
        SpillError::Disk(format!("{length} bytes cannot be written to {}: {error}", place.display()))
    }

    /// Reads a result; `touch` waits until its bytes are in memory, for a thread that must not wait for the disk.
    ///
    /// # Errors
    /// If the file is gone, or is not what was written.
    pub(crate) fn read(&self, file: FileId, touch: bool) -> io::Result<Read> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "there is no such file");
        let layout = lock(&self.files).get(&file).cloned().ok_or_else(gone)?;
        let opened = self.directory()?.open(&self.name(file))?;
        if opened.metadata()?.len() != layout.length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not as long as it was written"));
        }
        let map = map(&opened)?;
        fetch(&map, touch);
        let map = Bytes::from_owner(map);
        let mut occupied = 0;
        let mut parts = layout.parts.iter().map(|part| {
            let bytes = map.slice(part.offset as usize..(part.offset + part.stored) as usize);
            let Some(length) = part.compressed else { return Ok(Frame(bytes)) };
            occupied += length;
            decompress(&bytes, length).map(Frame)
        });
        let head = parts.next().ok_or_else(gone)??;
        let frames = parts.collect::<io::Result<_>>()?;
        let value = Value::Serialized(Arc::new(Serialized { type_hash: layout.type_hash, head, frames }));
        Ok(Read { value, occupied })
    }

    /// Removes a result. Who reads it goes on.
    pub(crate) fn discard(&self, file: FileId) {
        let known = lock(&self.files).remove(&file).is_some();
        if let Some(directory) = lock(&self.directory).clone().filter(|_| known) {
            directory.remove(&self.name(file));
        }
    }

    fn name(&self, FileId(file): FileId) -> String {
        format!("{}-{file}", self.worker)
    }

    fn directory(&self) -> io::Result<Arc<Directory>> {
        let mut directory = lock(&self.directory);
        match &*directory {
            Some(directory) => Ok(directory.clone()),
            None => Ok(directory.insert(Directory::of_this_process(&self.parent)?).clone()),
        }
    }

    /// What is to be written, compressed where that is sooner, and where each part of it goes.
    fn lay_out(&self, value: &Serialized) -> (Vec<Bytes>, Layout) {
        let rate = *lock(&self.rate);
        let (mut parts, mut bytes, mut end) = (Vec::new(), Vec::new(), 0u64);
        for Frame(part) in std::iter::once(&value.head).chain(&value.frames) {
            let packed = Compression::Auto.wants(part, rate).then(|| compress(part)).flatten();
            let compressed = packed.is_some().then_some(part.len() as u64);
            let stored = packed.unwrap_or_else(|| part.clone());
            let offset = end.next_multiple_of(ALIGN);
            end = offset + stored.len() as u64;
            parts.push(Part { offset, stored: stored.len() as u64, compressed });
            bytes.push(stored);
        }
        (bytes, Layout { type_hash: value.type_hash, parts, length: end })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let files: Vec<FileId> = lock(&self.files).keys().copied().collect();
        files.into_iter().for_each(|file| self.discard(file));
    }
}

/// Has the bytes of a map brought into memory, and where it is to `touch` them, waits for it.
fn fetch(map: &Mmap, touch: bool) {
    // Advice is no more than that: where it is not taken, the bytes come when they are looked at.
    if !touch || map.advise(Advice::PopulateRead).is_err() {
        let _ = map.advise(Advice::WillNeed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;
    use crate::{Local, array::Chunk};

    fn store() -> (tempfile::TempDir, Store) {
        let parent = tempfile::tempdir().unwrap();
        let store = Store::new(parent.path().to_owned());
        (parent, store)
    }

    fn write(store: &Store, file: u64, value: &Value) -> Result<u64, SpillError> {
        store.write(vec![(FileId(file), value.clone())]).remove(0).1
    }

    fn files(parent: &Path) -> Vec<PathBuf> {
        let inside = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let all = inside(parent.to_owned()).flat_map(inside);
        all.filter(|path| !path.ends_with("lock")).collect()
    }

    fn noise(length: usize) -> Vec<f64> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state as f64
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_written_is_read_as_views_of_the_file_and_takes_no_memory() {
        let (parent, store) = store();
        let numbers = noise(1 << 18);
        let chunks: Vec<Chunk<f64>> =
            (0..3).map(|i| Chunk::from_vec(numbers[i..].to_vec(), &[numbers.len() - i]).unwrap()).collect();
        let value = Value::new((chunks, "and words".to_owned()));
        let on_disk = write(&store, 0, &value).unwrap();
        assert_eq!(files(parent.path()).len(), 1);
        let Read { value, occupied } = store.read(FileId(0), true).unwrap();
        assert_eq!(occupied, 0);
        let Value::Serialized(serialized) = &value else { panic!("it comes as its bytes") };
        let (chunks, words) = &*value.get::<(Vec<Chunk<f64>>, String)>().unwrap();
        assert_eq!(words, "and words");
        assert_eq!(on_disk.div_ceil(4096), (value.nbytes() + 2 * ALIGN).div_ceil(4096));
        for (i, chunk) in chunks.iter().enumerate() {
            assert_eq!(chunk.as_slice().unwrap(), &numbers[i..]);
            let place = chunk.as_slice().unwrap().as_ptr();
            assert_eq!(place.cast(), serialized.frames[i].0.as_ptr(), "it is not copied");
            assert_eq!(place.align_offset(64), 0);
        }
        // Whoever has it in hand goes on when it is freed; its place on disk is free at once.
        store.discard(FileId(0));
        assert_eq!(files(parent.path()).len(), 0);
        assert_eq!(chunks[2].as_slice().unwrap(), &numbers[2..]);
        assert!(store.read(FileId(0), false).is_err());
        drop(store);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "the directory goes with the last store");
    }

    #[test]
    fn what_gets_much_smaller_is_compressed_once_the_disk_is_known_to_be_slow() {
        let (_parent, store) = store();
        let value = Value::new(vec![7i64; 1 << 18]);
        // So slow that samples say so even where others take the cores.
        let slow = |rate: &mut LinkRate| rate.sent(1 << 20, Duration::from_secs(10_000));
        slow(&mut lock(&store.rate));
        let on_disk = write(&store, 0, &value).unwrap();
        assert!(on_disk < 100_000, "{on_disk}");
        let Read { value, occupied } = store.read(FileId(0), false).unwrap();
        assert_eq!((occupied, &*value.get::<Vec<i64>>().unwrap()), (8 << 18, &vec![7i64; 1 << 18]));
        let noise = Value::new(noise(1 << 18));
        let on_disk = write(&store, 1, &noise).unwrap();
        assert!(on_disk >= 8 << 18, "samples say that it stays as big");
    }

    #[derive(Clone)]
    struct Panics;

    impl serde::Serialize for Panics {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("it cannot be written down");
        }
    }

    impl<'de> serde::Deserialize<'de> for Panics {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Ok(Self)
        }
    }

    #[test]
    fn of_a_batch_each_is_written_or_says_why_not() {
        let (parent, store) = store();
        let big = Value::new(noise(1 << 17));
        let stuck = Value::new(Local::new(std::sync::Mutex::new(1)));
        let batch = [big.clone(), Value::new(1i64), stuck, big, Value::new(Panics)].into_iter().enumerate();
        let written = store.write(batch.map(|(i, value)| (FileId(i as u64), value)).collect());
        assert_eq!(written.iter().map(|(file, _)| file.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        for stays in [2, 4] {
            assert!(matches!(written[stays].1, Err(SpillError::Value(_))), "{written:?}");
        }
        assert_eq!(files(parent.path()).len(), 3);
        for i in [0, 3] {
            assert!(written[i].1.as_ref().is_ok_and(|length| *length >= 1 << 20));
            let back = store.read(FileId(i as u64), false).unwrap().value;
            assert_eq!(*back.get::<Vec<f64>>().unwrap(), noise(1 << 17));
        }
        // The directory takes nothing more: all of a batch fail.
        let directory = lock(&store.directory).clone().unwrap();
        fs::remove_dir_all(directory.path()).unwrap();
        let written = store.write((4..6).map(|file| (FileId(file), Value::new(2i64))).collect());
        assert!(
            written.iter().all(|(_, written)| matches!(written, Err(SpillError::Disk(_)))),
            "{written:?}"
        );
    }

    #[test]
    fn a_value_of_any_type_comes_back() {
        let (_parent, store) = store();
        let mut map = BTreeMap::new();
        map.insert("key".to_owned(), vec![Some(1u8), None]);
        write(&store, 3, &Value::new(map.clone())).unwrap();
        let back = store.read(FileId(3), false).unwrap().value;
        assert_eq!(*back.get::<BTreeMap<String, Vec<Option<u8>>>>().unwrap(), map);
        assert!(back.get::<i64>().is_err());
    }

    #[test]
    fn what_cannot_be_written_says_why_and_leaves_nothing() {
        let (parent, store) = store();
        let stuck = Value::new(Local::new(std::sync::Mutex::new(1)));
        assert!(matches!(write(&store, 0, &stuck), Err(SpillError::Value(_))));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        let nowhere = Store::new(parent.path().join("not/there"));
        let Err(SpillError::Disk(reason)) = write(&nowhere, 0, &Value::new(1i64)) else { panic!() };
        assert!(reason.contains("not/there") && reason.contains("No such file"), "{reason}");
    }

    #[test]
    fn a_file_that_is_gone_or_cut_is_an_error() {
        let (parent, store) = store();
        let value = Value::new(noise(1 << 12));
        for file in [0, 1] {
            write(&store, file, &value).unwrap();
        }
        let mut all = files(parent.path());
        all.sort();
        fs::remove_file(&all[0]).unwrap();
        fs::File::options().write(true).open(&all[1]).unwrap().set_len(100).unwrap();
        for file in [0, 1] {
            assert!(store.read(FileId(file), false).is_err(), "{file}");
        }
    }
}
