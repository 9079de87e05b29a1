//! The output of a job, as it grows.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The file that a job's output goes to, and how far it was read. [`Slurm::log`](crate::Slurm::log) finds it.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    position: u64,
}

impl Log {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, position: 0 }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies what came since the last time; gives how many bytes. Before the job has begun there is no file, and
    /// nothing comes.
    ///
    /// # Errors
    /// If the file cannot be read from here, or `to` cannot be written to.
    pub fn copy(&mut self, to: &mut impl Write) -> Result<u64> {
        let failed = || Error::io(format!("read the output {}", self.path.display()));
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            file => file.map_err(failed())?,
        };
        // A job that is queued again begins its file anew.
        let length = file.metadata().map_err(failed())?.len();
        if length < self.position {
            self.position = 0;
        }
        file.seek(SeekFrom::Start(self.position)).map_err(failed())?;
        let mut buffer = [0; 64 << 10];
        let mut copied = 0;
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.map_err(failed())?,
            };
            let written: io::Result<()> = to.write_all(&buffer[..count]);
            written.map_err(Error::io("write what the job wrote"))?;
            copied += count as u64;
            self.position += count as u64;
        }
        to.flush().map_err(Error::io("write what the job wrote"))?;
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_new_is_copied_and_a_file_that_begins_anew_is_read_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.out");
        let mut log = Log::new(path.clone());
        let mut next = || {
            let mut text = Vec::new();
            log.copy(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert_eq!(next(), "");
        fs::write(&path, "one\n").unwrap();
        assert_eq!((next(), next()), ("one\n".into(), String::new()));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all("two\n".repeat(50_000).as_bytes()).unwrap();
        assert_eq!(next().len(), 200_000);
        fs::write(&path, "anew\n").unwrap();
        assert_eq!(next(), "anew\n");
        let error = Log::new(directory.path().into()).copy(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the output /"), "{error}");
    }
}
