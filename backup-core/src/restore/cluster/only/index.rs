//! The index of a backup's files: which of its entries are wanted, and whether they can be what it says.
//!
//! It is authentic like all of a backup, which proves who wrote it and not that it makes sense: nothing of it is followed unchecked.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::super::layout::{Root, root_of};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Manifest;
use crate::restore::worker::sink_error;
use crate::source::files_index::{EntryKind, FileEntry};

/// The stream that says where files are.
pub(super) const FILES: &str = "files";
/// The log is a stream of its own, without an index.
const PG_WAL: &str = "pg_wal";
/// The longest line of the index.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A file that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) mode: u32,
}

/// What is wanted of a backup.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) directories: Vec<PathBuf>,
    /// By stream, in its order; none of them overlap, and all are within it.
    pub(super) files: Vec<(String, Vec<Chosen>)>,
}

/// The length of each stream.
pub(super) type Lengths = HashMap<String, u64>;

/// The lengths of a backup's streams.
pub(super) fn lengths(manifest: &Manifest) -> Lengths {
    manifest.streams.iter().map(|stream| (stream.name.clone(), stream.bytes)).collect()
}

/// A path below a data directory, without anything that is not a name.
pub(super) fn plain(path: &Path) -> Result<PathBuf> {
    let path = path.components().filter(|component| *component != Component::CurDir).collect::<PathBuf>();
    if is_plain(&path) && !path.as_os_str().is_empty() {
        return Ok(path);
    }
    Err(Error::config(format!("'{}' is no path in a data directory", path.display()))
        .with_hint("paths are relative to the data directory: global/1262, base/16384, pg_tblspc/16385"))
}

/// Whether a path is all names, so that it cannot lead anywhere but below.
fn is_plain(path: &Path) -> bool {
    path.components().all(|component| matches!(component, Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0)
}

/// What of an index is wanted.
pub(super) fn read_index(mut index: impl BufRead, wanted: &[PathBuf], lengths: &Lengths) -> Result<Choice> {
    let (mut choice, mut found) = (Choice::default(), vec![false; wanted.len()]);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = index.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(ours)?;
        if n == 0 {
            break;
        }
        let entry: FileEntry = serde_json::from_slice(&line).map_err(malformed)?;
        let (stream, path) = place_of(&entry)?;
        let mut is_wanted = false;
        for (wanted, found) in wanted.iter().zip(&mut found) {
            // The directories for the log are in the archives, the log itself is not.
            if path.starts_with(wanted) && entry.kind != EntryKind::Symlink && !path.starts_with(PG_WAL) {
                (is_wanted, *found) = (true, true);
            }
        }
        match entry.kind {
            _ if !is_wanted => {}
            EntryKind::File => {
                let end = entry.offset.checked_add(entry.size);
                if end.zip(lengths.get(&stream)).is_none_or(|(end, length)| end > *length) {
                    return Err(malformed(format!("{} lies beyond the end of its stream", path.display())));
                }
                choice.add(stream, Chosen { path, offset: entry.offset, size: entry.size, mode: entry.mode });
            }
            EntryKind::Directory => choice.directories.push(path),
            _ => {}
        }
    }
    match wanted.iter().zip(found).find(|(_, found)| !found) {
        None => choice.in_order(),
        Some((path, _)) => Err(missing(path)),
    }
}

/// The stream that an entry is in, and its path in the data directory.
fn place_of(entry: &FileEntry) -> Result<(String, PathBuf)> {
    let stream = entry.stream.clone().ok_or_else(|| malformed("an entry is of no stream"))?;
    let bytes = entry.path_bytes().ok_or_else(|| malformed("a path is not base64"))?;
    let path: PathBuf = Path::new(OsStr::from_bytes(&bytes)).components().filter(|c| *c != Component::CurDir).collect();
    if !is_plain(&path) {
        return Err(malformed(format!("it names a path outside of the backup: {}", path.display())));
    }
    let prefix = match root_of(&stream) {
        Some(Root::Data) => PathBuf::new(),
        Some(Root::Tablespace(oid)) => Path::new("pg_tblspc").join(oid.to_string()),
        _ => return Err(malformed(format!("an entry is of the stream {stream}"))),
    };
    Ok((stream, prefix.join(path)))
}

fn missing(path: &Path) -> Error {
    let error = Error::new(ErrorKind::NotFound, Stage::Catalog, format!("the backup has no {}", path.display()));
    if path.starts_with(PG_WAL) { error.with_hint("its log is the stream pg_wal: --stream pg_wal") } else { error }
}

fn malformed(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let error = Error::integrity("the index of the backup's files is malformed").at(Stage::Catalog);
    error.with_source(io::Error::other(reason))
}

/// What the other thread said travels inside an I/O error.
pub(super) fn ours(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|e| sink_error("the index of the backup's files cannot be read", e))
}

impl Choice {
    fn add(&mut self, stream: String, file: Chosen) {
        match self.files.iter_mut().find(|(other, _)| *other == stream) {
            Some((_, files)) => files.push(file),
            None => self.files.push((stream, vec![file])),
        }
    }

    /// Sorts the files of each stream. Each must end before the next begins: or one would be restored with the bytes of another.
    fn in_order(mut self) -> Result<Self> {
        for (_, files) in &mut self.files {
            files.sort_by_key(|file| file.offset);
            if let Some([one, other]) = files.array_windows().find(|[one, next]| one.offset + one.size > next.offset) {
                return Err(malformed(format!("{} and {} overlap", one.path.display(), other.path.display())));
            }
        }
        Ok(self)
    }

    /// How many files there are, and their bytes.
    pub(super) fn total(&self) -> (u64, u64) {
        let files = || self.files.iter().flat_map(|(_, files)| files);
        (files().count() as u64, files().fold(0, |sum, file| sum.saturating_add(file.size)))
    }
}

#[cfg(test)]
mod tests;
