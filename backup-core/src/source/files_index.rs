//! The index of tar streams: where each file's contents lie. A stream of its own, written while the tar streams are.

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Piece, Source, consequence};
use crate::error::Result;
use crate::pipeline::Buffer;

/// Lines are sent on in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait to be read.
const PIECES: usize = 2;

/// What an entry of a tar stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A further name of a file that came before.
    HardLink,
}

/// One line of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileEntry {
    /// Path relative to the directory; invalid UTF-8 is replaced, and `path_base64` given.
    pub path: String,
    /// The path's bytes, if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// The tar stream that it is in, where a backup has several; `data` where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Where its contents begin in the tar stream.
    pub offset: u64,
    /// Length of its contents.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of its last change, in nanoseconds since 1970.
    pub mtime_ns: i128,
}

impl FileEntry {
    pub(super) fn set_path(&mut self, path: &Path) {
        use std::os::unix::ffi::OsStrExt;
        self.path = path.to_string_lossy().into_owned();
        let is_utf8 = path.to_str().is_some();
        self.path_base64 = (!is_utf8).then(|| data_encoding::BASE64.encode(path.as_os_str().as_bytes()));
    }
}

/// An index that is written at one end and read at the other.
pub(super) fn channel() -> (IndexWriter, FilesIndexSource) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (IndexWriter { sender: Some(sender), lines: Vec::new() }, FilesIndexSource { pieces, ended: false })
}

enum IndexPiece {
    Lines(Bytes),
    /// The index is complete. A channel that closes without it belongs to tar streams that failed.
    End,
}

/// The index of a backup's tar streams: a [`FileEntry`] in JSON per line, in the order in which they are read.
///
/// Read it while they are read. If it is dropped, they go on without.
pub struct FilesIndexSource {
    pieces: mpsc::Receiver<IndexPiece>,
    ended: bool,
}

impl FilesIndexSource {
    async fn pull(&mut self) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        match self.pieces.recv().await {
            Some(IndexPiece::Lines(lines)) => Ok(Some(Piece::Bytes(lines))),
            Some(IndexPiece::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(consequence("what is indexed was not read to its end").await),
        }
    }
}

impl Source for FilesIndexSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        drop(buffer);
        self.pull().boxed()
    }
}

impl fmt::Debug for FilesIndexSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesIndexSource").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// Collects lines and sends them on, from a thread or from a task.
#[derive(Debug)]
pub(super) struct IndexWriter {
    /// `None` once nobody reads any more.
    sender: Option<mpsc::Sender<IndexPiece>>,
    lines: Vec<u8>,
}

impl IndexWriter {
    /// Adds a line, and from a thread of its own waits until there is room for it.
    pub(super) fn push_blocking(&mut self, entry: &FileEntry) {
        if let Some(piece) = self.collect(entry) {
            self.send_blocking(piece);
        }
    }

    pub(super) fn finish_blocking(&mut self) {
        let rest = self.take();
        self.send_blocking(rest);
        self.send_blocking(IndexPiece::End);
    }

    /// Adds a line. Not cancel safe: a piece may be lost, and with it the index.
    pub(super) async fn push(&mut self, entry: &FileEntry) {
        if let Some(piece) = self.collect(entry) {
            self.send(piece).await;
        }
    }

    pub(super) async fn finish(&mut self) {
        let rest = self.take();
        self.send(rest).await;
        self.send(IndexPiece::End).await;
    }

    /// A piece, when enough lines have come together for one.
    fn collect(&mut self, entry: &FileEntry) -> Option<IndexPiece> {
        self.sender.as_ref()?;
        if serde_json::to_writer(&mut self.lines, entry).is_ok() {
            self.lines.push(b'\n');
        }
        (self.lines.len() >= PIECE_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> IndexPiece {
        IndexPiece::Lines(std::mem::take(&mut self.lines).into())
    }

    fn send_blocking(&mut self, piece: IndexPiece) {
        if !is_empty(&piece) && self.sender.as_ref().is_some_and(|sender| sender.blocking_send(piece).is_err()) {
            self.sender = None;
        }
    }

    async fn send(&mut self, piece: IndexPiece) {
        let Some(sender) = self.sender.as_ref().filter(|_| !is_empty(&piece)) else { return };
        if sender.send(piece).await.is_err() {
            self.sender = None;
        }
    }
}

/// Pieces of a stream have bytes.
fn is_empty(piece: &IndexPiece) -> bool {
    matches!(piece, IndexPiece::Lines(lines) if lines.is_empty())
}
