//! The scheduler file: where a cluster's scheduler is, and the secret to get in.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rankine_transport::Secret;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, task::build_id};

/// What a cluster's members need to know, as JSON in a file that only its owner reads.
#[derive(Clone, Serialize, Deserialize)]
pub struct SchedulerFile {
    /// Where the scheduler listens, over the most general of its transports.
    pub address: String,
    /// All its addresses, the preferred first, with spaces between.
    contact: String,
    /// The executable that all members run.
    pub build_id: String,
    secret: String,
}

impl SchedulerFile {
    pub(super) fn new(address: &str, contact: &str, secret: &Secret) -> Self {
        let (address, contact) = (address.to_owned(), contact.to_owned());
        Self { address, contact, build_id: build_id().to_owned(), secret: secret.to_hex() }
    }

    /// Where the file of the scheduler at `address` is by default: in `~/.rankine` (or
    /// `$RANKINE_HOME`), a directory that only its owner enters.
    ///
    /// # Errors
    /// If there is no home directory.
    pub fn default_path(address: &str) -> Result<PathBuf> {
        let name: String =
            address.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        Ok(Self::directory()?.join(format!("scheduler-{name}.json")))
    }

    /// The directory of scheduler files: `~/.rankine`, or `$RANKINE_HOME`.
    pub(super) fn directory() -> Result<PathBuf> {
        let home = std::env::var_os("RANKINE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rankine")));
        home.ok_or_else(|| {
            Error::Usage(
                "there is no HOME for the scheduler file: name a directory with RANKINE_HOME, or the file with \
                 --scheduler-file"
                    .into(),
            )
        })
    }

    /// The file in that directory that was written last.
    ///
    /// # Errors
    /// If there is none.
    #[cfg(feature = "cli")]
    pub(crate) fn latest() -> Result<PathBuf> {
        let directory = Self::directory()?;
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "json"));
        let latest = files.max_by_key(|file| file.metadata().and_then(|about| about.modified()).ok());
        latest.map(|file| file.path()).ok_or_else(|| {
            Error::Usage(format!(
                "there is no scheduler file in {}: is the scheduler running? If its file is elsewhere, name it \
                 with --scheduler-file",
                directory.display()
            ))
        })
    }

    /// Reads a scheduler file.
    ///
    /// # Errors
    /// If it is not there, others may read it, or it is no scheduler file.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let metadata = fs::metadata(path)
            .map_err(Error::io(format!("read the scheduler file {shown} (is the scheduler running?)")))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(Error::Usage(format!(
                "the scheduler file {shown} can be read by others, so its secret is none; \
                 run chmod 600 on it, or start the scheduler anew"
            )));
        }
        let text = fs::read_to_string(path).map_err(Error::io(format!("read the scheduler file {shown}")))?;
        serde_json::from_str(&text).map_err(|e| Error::Usage(format!("{shown} is no scheduler file: {e}")))
    }

    /// Writes it: whole or not at all, mode 0600.
    ///
    /// # Errors
    /// If the directory cannot be written to.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = || Error::io(format!("write the scheduler file {}", path.display()));
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed())?;
        // A temporary file is made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed())?;
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Usage(e.to_string()))?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed())?;
        file.persist(path).map_err(|e| failed()(e.error))?;
        Ok(())
    }

    /// The addresses to try, with spaces between: all of the scheduler's, or the one that somebody put in
    /// their place.
    pub(super) fn contact(&self) -> &str {
        let known = self.contact.split(' ').any(|address| address == self.address);
        if known { &self.contact } else { &self.address }
    }

    pub(super) fn secret(&self) -> Result<Secret> {
        Secret::from_hex(&self.secret)
            .ok_or_else(|| Error::Usage("the scheduler file's secret is not 64 hexadecimal digits".into()))
    }
}
