//! A directory as a tar stream, and the index of that stream as another.
//!
//! Both come from one walk: the tar goes through a reader thread like any other input, and the index leaves the same thread by a
//! bounded channel. So the two streams must be read at the same time.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::files_index::{self, FilesIndexSource};
use super::reader::ReaderSource;
use super::{Piece, Source};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;

mod tar;
mod walk;

use tar::TarInput;
use walk::Walk;

/// What can be done about something in a directory that may not be read.
const UNREADABLE: &str =
    "a backup without it would not be whole: run as a user who may read it, or back up another directory";

/// Receives what went wrong with single files, of a backup or of a restore, that are left out or not quite what they were.
pub type WarningCallback = Box<dyn FnMut(DirectoryWarning) + Send>;

/// How a directory is read.
#[derive(Default)]
#[non_exhaustive]
pub struct DirectoryOptions {
    /// Receives warnings; they are logged by default.
    pub on_warning: Option<WarningCallback>,
}

/// One file that is not in the backup, or not restored, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryWarning {
    /// The file, relative to the directory.
    pub path: PathBuf,
    /// What happened, in words.
    pub what: String,
}

/// A directory as a tar stream, in the order of the names' bytes.
///
/// Holds regular files, directories, symbolic and hard links with their modes, numeric owners and times in seconds. Pipes, sockets
/// and devices are left out with a warning, and so is what vanishes while the directory is read. A file keeps the size that it had
/// when it was opened: if it shrinks meanwhile, zeros follow, with a warning. What cannot be read is an error. Extended attributes,
/// access lists and the fractions of seconds are not kept (the index has those), and holes become zeros.
///
/// Memory is needed for the names in the directories on the path to the current file, and for each file that has hard links not
/// seen yet; not for the tree.
pub struct DirectorySource(ReaderSource);

impl DirectorySource {
    /// Opens `path`, and makes the two streams.
    ///
    /// # Errors
    /// `Config` when there is no such directory, `Source` when it cannot be read.
    pub fn new(path: impl AsRef<Path>, options: DirectoryOptions) -> Result<(Self, FilesIndexSource)> {
        let path = path.as_ref();
        let root = open_directory(path).map_err(|e| cannot_open(path, e))?;
        let (index, index_source) = files_index::channel();
        let warn = options.on_warning.unwrap_or_else(|| {
            Box::new(|DirectoryWarning { path, what }| tracing::warn!(path = %path.display(), "{what}"))
        });
        let input = TarInput::new(path.to_owned(), Walk::new(root)?, index, warn);
        Ok((Self(ReaderSource::from_input(input)?), index_source))
    }
}

impl Source for DirectorySource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.0.next(buffer)
    }
}

impl fmt::Debug for DirectorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirectorySource").field(&self.0).finish()
    }
}

impl fmt::Debug for DirectoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryOptions").finish_non_exhaustive()
    }
}

impl fmt::Display for DirectoryWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

fn cannot_open(path: &Path, errno: Errno) -> Error {
    // As with a command that is missing: nothing was read.
    let kind = if matches!(errno, Errno::NOENT | Errno::NOTDIR) { ErrorKind::Config } else { ErrorKind::Source };
    let error = Error::new(kind, Stage::Source, format!("cannot open {}", path.display()))
        .with_source(std::io::Error::from(errno));
    if errno == Errno::ACCESS { error.with_hint(UNREADABLE) } else { error }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests;
