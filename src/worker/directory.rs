//! A directory of this process's own for what it writes to disk.
//!
//! It lies where everybody may write (`/tmp`), so nothing here follows a name that somebody else could have put
//! there: the directory is made anew (mode 0700) and from then on reached by its descriptor, never by its path. Its
//! file `lock` is locked as long as the process lives, however that ends, so that the next process on this host can tell
//! what the dead left behind, and removes it.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat},
    io::Errno,
    process::geteuid,
};

/// How the directories' names begin; the host's follows, since locks may be its own.
const PREFIX: &str = "rankine-spill-";
const LOCK: &CStr = c"lock";
/// Names that are tried until one is nobody else's.
const ATTEMPTS: u32 = 16;
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OWN: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

/// The directory. Dropping it removes it with all that is in it.
pub(crate) struct Directory {
    path: PathBuf,
    name: String,
    parent: OwnedFd,
    directory: OwnedFd,
    /// Held as long as the process lives.
    _lock: OwnedFd,
}

impl Directory {
    /// The one of this process in `parent`: made if it is not there.
    ///
    /// # Errors
    /// If none can be made there.
    pub(crate) fn of_this_process(parent: &Path) -> io::Result<Arc<Self>> {
        static ALL: Mutex<Vec<(PathBuf, Weak<Directory>)>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, directory)| directory.strong_count() > 0);
        let known = all.iter().find(|(known, _)| known == parent);
        if let Some(directory) = known.and_then(|(_, directory)| directory.upgrade()) {
            return Ok(directory);
        }
        let directory = Arc::new(Self::new(parent)?);
        all.push((parent.to_owned(), Arc::downgrade(&directory)));
        Ok(directory)
    }

    fn new(parent: &Path) -> io::Result<Self> {
        // The parent itself may well be a link: users name it.
        let above = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for _ in 0..ATTEMPTS {
            let name = format!("{}{}-{:016x}", prefix(), std::process::id(), rand::random::<u64>());
            match mkdirat(&above, &*name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made?,
            }
            let directory = openat(&above, &*name, DIRECTORY, Mode::empty())?;
            if !is_private(&directory) {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "somebody else interferes there",
                ));
            }
            let flags = OWN | OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
            let lock = match openat(&directory, LOCK, flags, Mode::RUSR | Mode::WUSR) {
                // Somebody who cleans up took it for one that was left behind.
                Err(Errno::NOENT) => continue,
                lock => lock?,
            };
            // On a file system without locks nobody takes what he cannot lock.
            let taken = flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK);
            if taken || fstat(&lock)?.st_nlink == 0 {
                continue;
            }
            return Ok(Self { path: parent.join(&name), name, parent: above, directory, _lock: lock });
        }
        Err(io::Error::other("no directory stayed this process's own"))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a file, to be written.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OWN | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        Ok(openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Opens a file, to be read.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.directory, name, OWN | OFlags::RDONLY, Mode::empty())?.into())
    }

    /// Removes a file; what is mapped of it stays until that goes.
    pub(crate) fn remove(&self, name: &str) {
        if let Err(error) = unlinkat(&self.directory, name, AtFlags::empty()) {
            tracing::debug!(name, %error, "a spilled result was gone before it was removed");
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) =
            empty(&self.directory).and_then(|()| Ok(unlinkat(&self.parent, &*self.name, AtFlags::REMOVEDIR)?))
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the directory of spilled results");
        }
    }
}

/// How the names of this host's directories begin.
fn prefix() -> String {
    let host = super::server::hostname();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("{PREFIX}{}-", host.chars().take(64).map(plain).collect::<String>())
}

/// Whether a directory is this user's, and nobody else's business.
fn is_private(directory: &OwnedFd) -> bool {
    fstat(directory).is_ok_and(|stat| stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0)
}

/// Removes all that is in a directory, the lock last.
fn empty(directory: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if ![c".", c"..", LOCK].contains(&entry.file_name()) {
            unlinkat(directory, entry.file_name(), AtFlags::empty())?;
        }
    }
    match unlinkat(directory, LOCK, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what processes of this user and host left in `parent` when they died.
///
/// # Errors
/// If it cannot be looked at.
pub(crate) fn remove_left_behind(parent: &Path) -> io::Result<()> {
    let above = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let prefix = prefix();
    for entry in Dir::read_from(&above)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let Ok(directory) = openat(&above, name, DIRECTORY, Mode::empty()) else { continue };
        if !is_private(&directory) {
            continue;
        }
        let removed = match openat(&directory, LOCK, OWN | OFlags::RDWR, Mode::empty()) {
            Ok(lock) => match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => empty(&directory),
                Err(_) => continue,
            },
            // Its process died before it had the lock, or is about to have it: then it notices.
            Err(_) => Ok(()),
        };
        let removed = removed.and_then(|()| Ok(unlinkat(&above, name, AtFlags::REMOVEDIR)?));
        tracing::info!(?name, ?removed, "removed what a dead process had spilled");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn it_is_private_shared_within_the_process_and_gone_at_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let one = Directory::of_this_process(parent.path()).unwrap();
        let same = Directory::of_this_process(parent.path()).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        let path = one.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        one.create("a").unwrap();
        assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o7777, 0o600);
        assert!(one.create("a").is_err(), "what is there is not written over");
        drop(one);
        assert!(path.exists());
        drop(same);
        assert!(!path.exists());
    }

    #[test]
    fn what_the_dead_left_is_removed_and_what_the_living_have_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let left = |name: &str, mode| {
            let path = parent.path().join(format!("{}{name}", prefix()));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("lock"), "").unwrap();
            fs::write(path.join("0-0"), "spilled").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (dead, open) = (left("1-0", 0o700), left("2-0", 0o755));
        let living = Directory::of_this_process(parent.path()).unwrap();
        living.create("mine").unwrap();
        // A link to a directory that looks like one left behind.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("precious"), "").unwrap();
        fs::write(elsewhere.path().join("lock"), "").unwrap();
        fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o700)).unwrap();
        symlink(elsewhere.path(), parent.path().join(format!("{}3-0", prefix()))).unwrap();
        remove_left_behind(parent.path()).unwrap();
        assert!(!dead.exists());
        assert!(open.join("0-0").exists(), "others may have written there: it is none of ours");
        assert!(living.path().join("mine").exists());
        assert!(elsewhere.path().join("precious").exists(), "links are not followed");
    }

    #[test]
    fn a_name_that_became_a_link_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let own = Directory::of_this_process(parent.path()).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = parent.path().join("moved");
        fs::rename(own.path(), &moved).unwrap();
        symlink(elsewhere.path(), own.path()).unwrap();
        own.create("result").unwrap();
        assert!(moved.join("result").exists() && !elsewhere.path().join("result").exists());
        symlink(elsewhere.path(), moved.join("link")).unwrap();
        assert!(own.create("link").is_err() && own.open("link").is_err());
    }

    #[test]
    fn where_nothing_can_be_made_is_an_error() {
        assert!(Directory::of_this_process(Path::new("/proc")).is_err());
        assert!(Directory::of_this_process(Path::new("/nowhere/at/all")).is_err());
        assert!(remove_left_behind(Path::new("/nowhere/at/all")).is_err());
    }
}
