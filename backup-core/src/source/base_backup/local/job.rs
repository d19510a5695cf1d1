//! What the lanes of one local copy share, once the backup has begun.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustix::io::Errno;
use tokio_util::task::TaskTracker;

use super::super::Facts;
use super::blocking;
use super::damage::{Looked, Pages};
use super::queue::{Begun, Failed, Queue};
use super::rate::Rate;
use super::tree::{Item, Root};
use crate::error::{Error, Result};
use crate::postgres::backup_manifest::{Algorithm, ManifestFile, ManifestWriter, WalRange};
use crate::postgres::wire::WalPosition;
use crate::source::files_index::IndexWriter;
use crate::source::lines::LineWriter;
use crate::source::reader::source_error;

/// What can be done about a file that may not be read.
pub(super) const UNREADABLE: &str =
    "run this as the user who runs the server, or as root; or copy over the replication protocol (--method stream)";

/// A local copy that has begun.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) facts: Arc<Facts>,
    pub(super) start: WalPosition,
    /// Holds the blocking threads' locks for moments only, but for when the store is slower than the disk.
    pub(super) index: tokio::sync::Mutex<IndexWriter>,
    pub(super) manifest: tokio::sync::Mutex<ManifestLines>,
    pub(super) algorithm: Algorithm,
    /// `None` when pages have no checksums, or nobody wants them looked at.
    pub(super) pages: Option<Arc<Pages>>,
    pub(super) segment_pages: u32,
    pub(super) rate: Rate,
    /// Has a token for each stream whose files are being read, and for each chunk that is not looked at yet.
    pub(super) tracker: TaskTracker,
    pub(super) queue: Mutex<Queue>,
}

impl Job {
    /// The next stream of a lane, as [`Queue::begin`]. Blocks, as all that follows here but [`copied`](Self::copied).
    pub(super) fn begin(&self, from: usize, main: bool) -> Result<Option<Begun>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).begin(from, main).map_err(no_copy)
    }

    /// What to copy next of a root.
    pub(super) fn next(&self, of: usize) -> Result<Option<Item>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).next(of).map_err(no_copy)
    }

    /// Waits until every lane has copied what it took, and every page was looked at, the wrong ones twice.
    pub(super) async fn copied(&self) -> Result<Looked> {
        self.tracker.close();
        self.tracker.wait().await;
        match self.pages.clone() {
            Some(pages) => blocking(move || Ok(pages.look_again())).await,
            None => Ok(Looked::default()),
        }
    }
}

pub(super) fn no_copy((root, path, errno): Failed) -> Error {
    cannot("read", &root, &path, errno)
}

pub(super) fn cannot(verb: &str, root: &Root, path: &[u8], errno: Errno) -> Error {
    let error = source_error(format!("cannot {verb} {}", root.located(path).display()), io::Error::from(errno));
    if errno == Errno::ACCESS { error.with_hint(UNREADABLE) } else { error }
}

/// PostgreSQL's manifest, written while files are copied.
#[derive(Debug)]
pub(super) struct ManifestLines {
    writer: ManifestWriter,
    lines: LineWriter,
}

impl ManifestLines {
    pub(super) fn new(writer: ManifestWriter, lines: LineWriter) -> Self {
        Self { writer, lines }
    }

    /// Adds a file, from a thread of its own.
    pub(super) fn file_blocking(&mut self, file: &ManifestFile, modified: Timestamp) {
        self.lines.push_blocking(|lines| self.writer.file(file, modified, lines));
    }

    /// The same from a task.
    pub(super) async fn file(&mut self, file: &ManifestFile, modified: Timestamp) {
        self.lines.push(|lines| self.writer.file(file, modified, lines)).await;
    }

    /// The log that a restore needs, and the end.
    pub(super) async fn finish(&mut self, range: WalRange) {
        let writer = self.writer.clone();
        self.lines.push(|lines| writer.finish(&[range], lines)).await;
        self.lines.finish().await;
    }
}
