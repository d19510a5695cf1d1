//! The index of tar streams: where each file's contents lie. A stream of its own, written while the tar streams are.

use std::path::Path;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::lines::{self, LineSource, LineWriter};
use super::tar_header::Headers;
use super::{Piece, Source};
use crate::error::Result;
use crate::pipeline::Buffer;

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
    /// What the index says of an entry whose headers end at `offset` of the tar stream.
    pub(super) fn of(header: &Headers<'_>, stream: Option<&str>, offset: u64) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let mut entry = Self {
            path: String::new(),
            path_base64: None,
            stream: stream.map(str::to_owned),
            kind: header.kind,
            offset,
            size: header.size,
            mode: header.stat.st_mode & 0o7777,
            mtime_ns: i128::from(header.stat.st_mtime) * 1_000_000_000 + i128::from(header.stat.st_mtime_nsec),
        };
        // Of a directory without its slash, and the root is the empty path.
        let path = header.path.strip_suffix(b"/").unwrap_or(header.path);
        entry.set_path(Path::new(std::ffi::OsStr::from_bytes(if path == b"." { b"" } else { path })));
        entry
    }

    pub(super) fn set_path(&mut self, path: &Path) {
        use std::os::unix::ffi::OsStrExt;
        self.path = path.to_string_lossy().into_owned();
        let is_utf8 = path.to_str().is_some();
        self.path_base64 = (!is_utf8).then(|| data_encoding::BASE64.encode(path.as_os_str().as_bytes()));
    }

    /// The path's bytes; `None` when what stands for them is malformed.
    pub fn path_bytes(&self) -> Option<Vec<u8>> {
        match &self.path_base64 {
            Some(text) => data_encoding::BASE64.decode(text.as_bytes()).ok(),
            None => Some(self.path.clone().into_bytes()),
        }
    }

    fn write(&self, lines: &mut Vec<u8>) {
        if serde_json::to_writer(&mut *lines, self).is_ok() {
            lines.push(b'\n');
        }
    }
}

/// An index that is written at one end and read at the other.
pub(super) fn channel() -> (IndexWriter, FilesIndexSource) {
    let (writer, source) = lines::channel("what is indexed was not read to its end");
    (IndexWriter(writer), FilesIndexSource(source))
}

/// The index of a backup's tar streams: a [`FileEntry`] in JSON per line, those of each stream in its order.
///
/// Read it while they are read. If it is dropped, they go on without.
#[derive(Debug)]
pub struct FilesIndexSource(LineSource);

impl Source for FilesIndexSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.0.next(buffer)
    }
}

/// Writes an index, from a thread or from a task.
#[derive(Debug)]
pub(super) struct IndexWriter(LineWriter);

impl IndexWriter {
    /// Adds a line, and from a thread of its own waits until there is room for it.
    pub(super) fn push_blocking(&mut self, entry: &FileEntry) {
        self.0.push_blocking(|lines| entry.write(lines));
    }

    pub(super) fn finish_blocking(&mut self) {
        self.0.finish_blocking();
    }

    /// Adds a line. Not cancel safe: a piece may be lost, and with it the index.
    pub(super) async fn push(&mut self, entry: &FileEntry) {
        self.0.push(|lines| entry.write(lines)).await;
    }

    pub(super) async fn finish(&mut self) {
        self.0.finish().await;
    }
}
