//! The index of a tar stream: where each file's contents lie.

use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::IndexPiece;

/// Lines are sent on in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;

/// What an entry of the tar stream is.
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

/// Collects lines and sends them on, from the reader thread.
pub(super) struct IndexWriter {
    /// `None` once nobody reads any more.
    sender: Option<mpsc::Sender<IndexPiece>>,
    lines: Vec<u8>,
}

impl IndexWriter {
    pub(super) fn new(sender: mpsc::Sender<IndexPiece>) -> Self {
        Self { sender: Some(sender), lines: Vec::new() }
    }

    pub(super) fn push(&mut self, entry: &FileEntry) {
        if self.sender.is_none() {
            return;
        }
        if serde_json::to_writer(&mut self.lines, entry).is_ok() {
            self.lines.push(b'\n');
        }
        if self.lines.len() >= PIECE_BYTES {
            self.flush();
        }
    }

    pub(super) fn finish(&mut self) {
        self.flush();
        self.send(IndexPiece::End);
    }

    fn flush(&mut self) {
        if !self.lines.is_empty() {
            let lines = Bytes::from(std::mem::take(&mut self.lines));
            self.send(IndexPiece::Lines(lines));
        }
    }

    fn send(&mut self, piece: IndexPiece) {
        if let Some(sender) = &self.sender
            && sender.blocking_send(piece).is_err()
        {
            self.sender = None;
        }
    }
}
