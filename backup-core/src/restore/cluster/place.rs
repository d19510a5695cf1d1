//! The directories that a cluster is restored into: taken, marked, and given up again.
//!
//! A directory is ours from the moment that our marker stands in it, until the marker is removed: whatever is beside the marker came from
//! an unfinished restore. A restore holds a lock on its markers, so one that was killed can be told from one that runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::durable;
use crate::error::{Error, Result};
use crate::restore::directory::MARKER;
use crate::restore::tree;
use crate::restore::worker::sink_error;

/// How our markers begin.
const MARKER_TEXT: &str = "A restore of a PostgreSQL cluster into this directory has begun and has not been completed.\n\
    What is here is not whole. The same restore can be started again: it begins by removing everything here.\n";

/// What the first restore of a directory may read of a marker that it finds.
const MARKER_LEN_MAX: u64 = 4096;

/// A directory that a part of the cluster is restored into.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// The directories that were made for it, the outermost first; it may be the last of them.
    made: Vec<PathBuf>,
    /// Locked as long as this lives.
    _marker: File,
    fd: OwnedFd,
}

impl Place {
    /// Refuses a directory that cannot be taken, before anything is written.
    ///
    /// # Errors
    /// `Config` when it is not empty, unless all in it is left from a restore that was killed.
    pub(super) fn check(path: &Path, hint: &str) -> Result<()> {
        let mut entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(sink_error(format!("cannot read {}", path.display()), e)),
        };
        match entries.next() {
            None => Ok(()),
            Some(_) if lock_marker(path)?.is_some() => Ok(()),
            Some(_) => Err(Error::config(format!("{} is not empty", path.display())).with_hint(hint)),
        }
    }

    /// Takes the directory, made if it is missing, emptied if an unfinished restore left something in it. Checked before.
    pub(super) fn take(path: &Path) -> Result<Self> {
        let cannot = |e: io::Error| sink_error(format!("cannot create {}", path.display()), e);
        let made = create_missing(path).map_err(cannot)?;
        let marker = match lock_marker(path)? {
            Some(marker) => {
                remove_contents(path).map_err(|e| sink_error(format!("cannot empty {}", path.display()), e))?;
                marker
            }
            None => new_marker(path).map_err(cannot)?,
        };
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { path: path.to_owned(), made, _marker: marker, fd: fd.map_err(|e| cannot(e.into()))? })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The directories that were made above it.
    pub(super) fn made_above(&self) -> impl Iterator<Item = &Path> {
        self.made.iter().map(PathBuf::as_path).filter(|path| *path != self.path)
    }

    /// The file system it is on.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.dev())
    }

    /// Removes the marker: what is here is whole, and on disk.
    pub(super) fn complete(&self) -> io::Result<()> {
        fs::remove_file(self.path.join(MARKER))?;
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Removes what was restored, the marker last, and the directories that were made.
    pub(super) fn give_up(&self) -> io::Result<()> {
        remove_contents(&self.path)?;
        match fs::remove_file(self.path.join(MARKER)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        for directory in self.made.iter().rev() {
            match fs::remove_dir(directory) {
                // Somebody put something there meanwhile.
                Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => break,
                removed => removed?,
            }
        }
        Ok(())
    }

    /// The error of a place that could not be emptied.
    pub(super) fn stays(&self, error: io::Error) -> Error {
        sink_error(format!("cannot remove all of what was restored to {}", self.path.display()), error)
            .with_hint(format!("it is incomplete, as {MARKER} says there: remove it, or start the same restore again"))
    }
}

/// Makes a directory and what is missing above it, for the owner only; returns which, the outermost first.
fn create_missing(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> = path.ancestors().take_while(|p| !p.exists()).map(Path::to_owned).collect();
    let mut made = Vec::new();
    for directory in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {
                durable::sync_parent(&directory)?;
                made.push(directory);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(made)
}

fn new_marker(directory: &Path) -> io::Result<File> {
    let path = directory.join(MARKER);
    let mut marker = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    flock(&marker, FlockOperation::NonBlockingLockExclusive)?;
    marker.write_all(MARKER_TEXT.as_bytes())?;
    Ok(marker)
}

/// The marker of an unfinished restore of a cluster, locked; `None` when there is no such marker.
fn lock_marker(directory: &Path) -> Result<Option<File>> {
    let path = directory.join(MARKER);
    let failed = |e: io::Error| sink_error(format!("cannot read {}", path.display()), e);
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut marker = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
        Err(e) => return Err(failed(e.into())),
    };
    match flock(&marker, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(Error::config(format!("another restore into {} is running", directory.display())));
        }
        Err(e) => return Err(failed(e.into())),
    }
    let mut text = String::new();
    if Read::by_ref(&mut marker).take(MARKER_LEN_MAX).read_to_string(&mut text).is_err() {
        return Ok(None);
    }
    // A restore that was killed at its very beginning may not have written all of it.
    Ok(MARKER_TEXT.starts_with(&text).then_some(marker))
}

/// Removes all but the marker.
fn remove_contents(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes all that was written to the file systems of `places` durable.
pub(super) fn sync<'a>(places: impl Iterator<Item = &'a Place>) -> io::Result<()> {
    let mut devices = Vec::new();
    for place in places {
        let device = place.device()?;
        if !devices.contains(&device) {
            tree::sync(place.fd())?;
            devices.push(device);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_with_anything_in_it_is_refused_and_not_touched() {
        let temp = tempfile::tempdir().unwrap();
        for marker in ["", "A restore into this directory has begun and has not been completed.\n"] {
            fs::write(temp.path().join("theirs"), "x").unwrap();
            if !marker.is_empty() {
                // Of a restore of another kind.
                fs::write(temp.path().join(MARKER), marker).unwrap();
            }
            let error = Place::check(temp.path(), "a hint").unwrap_err();
            assert_eq!((error.to_string().ends_with("is not empty"), error.hint()), (true, Some("a hint")));
            assert_eq!(fs::read(temp.path().join("theirs")).unwrap(), b"x");
        }
        let file = temp.path().join("theirs");
        Place::check(&file, "").unwrap_err();
    }

    #[test]
    fn what_a_killed_restore_left_is_removed_and_a_running_one_is_not_disturbed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/data");
        let place = Place::take(&path).unwrap();
        fs::create_dir(path.join("base")).unwrap();
        fs::write(path.join("base/1"), "x").unwrap();
        assert!(Place::check(&path, "").unwrap_err().to_string().ends_with("is running"));
        Place::take(&path).unwrap_err();
        assert_eq!(names(&path.join("base")), ["1"]);

        // Killed: nobody holds the lock any more.
        drop(place);
        Place::check(&path, "").unwrap();
        let place = Place::take(&path).unwrap();
        assert_eq!(names(&path), [MARKER]);
        place.complete().unwrap();
        assert!(names(&path).is_empty());
    }

    #[test]
    fn what_is_given_up_leaves_no_directory_that_was_not_there() {
        let temp = tempfile::tempdir().unwrap();
        let place = Place::take(&temp.path().join("a/b")).unwrap();
        fs::write(temp.path().join("a/b/1"), "x").unwrap();
        place.give_up().unwrap();
        assert!(names(temp.path()).is_empty());
        let there = temp.path().join("there");
        fs::create_dir(&there).unwrap();
        let place = Place::take(&there).unwrap();
        fs::write(there.join("1"), "x").unwrap();
        place.give_up().unwrap();
        assert!(names(&there).is_empty());
    }
}
