//! Unpacks one tar stream of a base backup: files and directories, each file checked while it is written.
//!
//! Nothing else is made from such a stream. The only links that a server sends are those to tablespaces, and these are made when all is
//! restored, to where the tablespaces are now.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::check::Checker;
use super::layout::Root;
use super::owner::Ownership;
use super::wal::Segments;
use crate::error::Result;
use crate::pipeline::Warnings;
use crate::postgres::backup_manifest::Algorithm;
use crate::restore::tree::{Attributes, COPY_BYTES, EndWatch, Tree, create_file, names, no_tar, unsafe_path};
use crate::restore::worker::sink_error;

/// Without this file no server starts; it has its name only when all is restored.
pub(super) const PG_CONTROL: &str = "global/pg_control";
/// Its name until then.
pub(super) const PG_CONTROL_ASIDE: &str = "global/pg_control.backup-restore-incomplete";
/// Where the links to tablespaces are.
pub(super) const PG_TBLSPC: &str = "pg_tblspc";
/// Whose permissions say whether a cluster is open to its group.
pub(super) const PG_VERSION: &str = "PG_VERSION";

/// So much of a file is written before it begins to go to disk: the rest of the restore then overlaps with the disk's work.
const WRITE_OUT_BYTES: u64 = 8 << 20;

/// What the streams of one restore share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) checker: Checker,
    pub(super) ownership: Ownership,
    pub(super) segments: Segments,
    warnings: Warnings,
    /// OIDs of the tablespaces that have directories of their own.
    linked: Vec<u32>,
    group_access: Mutex<bool>,
}

impl Shared {
    pub(super) fn new(checker: Checker, ownership: Ownership, warnings: Warnings, linked: Vec<u32>) -> Self {
        Self { checker, ownership, segments: Segments::default(), warnings, linked, group_access: Mutex::new(false) }
    }

    /// Whether the cluster is open to its group.
    pub(super) fn group_access(&self) -> bool {
        *self.group_access.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unpacks `stream` below the open directory of its root, and returns when its end was verified. Nothing is flushed to disk.
pub(super) fn unpack(stream: impl Read, root: Root, directory: OwnedFd, shared: &Arc<Shared>) -> Result<()> {
    let mut archive = Archive::new(EndWatch::new(stream));
    let algorithm = shared.checker.algorithm();
    let mut unpacker = Unpacker { root, tree: Tree::new(directory), shared: Arc::clone(shared), algorithm };
    let mut buffer = vec![0; COPY_BYTES];
    for entry in archive.entries().map_err(no_tar)? {
        unpacker.add(&mut entry.map_err(no_tar)?, &mut buffer)?;
    }
    archive.into_inner().finish(&mut buffer)?;
    let left = unpacker.tree.enter(&[]).map(drop);
    left.map_err(|errno| sink_error("cannot complete a restored directory", errno))
}

struct Unpacker {
    root: Root,
    tree: Tree,
    shared: Arc<Shared>,
    algorithm: Algorithm,
}

impl Unpacker {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, buffer: &mut [u8]) -> Result<()> {
        let path = entry.path().map_err(no_tar)?.into_owned();
        let failed = |errno: Errno| sink_error(format!("cannot write {}", path.display()), errno);
        let mut names = names(&path)?;
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().map_err(no_tar)?;
        let owner = self.owner(entry)?;
        match kind {
            EntryType::Directory => {
                let mode = Mode::from_raw_mode(mode & 0o750 | 0o700);
                let directory = self.tree.enter(&names).map_err(failed)?;
                directory.attributes = Some(Attributes { mode, times: None, owner });
                Ok(())
            }
            EntryType::Regular => {
                let name = names.pop().ok_or_else(|| unsafe_path(&path))?;
                let attributes = Attributes { mode: Mode::from_raw_mode(mode & 0o640 | 0o600), times: None, owner };
                self.file(entry, &path, &names, name, &attributes, buffer)
            }
            EntryType::Symlink if self.is_tablespace_link(&path) => Ok(()),
            EntryType::XGlobalHeader => Ok(()),
            other => {
                let what = format!("{}: no file and no directory ({:?}): left out", path.display(), other);
                self.shared.warnings.push(what);
                Ok(())
            }
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        parents: &[&OsStr],
        name: &OsStr,
        attributes: &Attributes,
        buffer: &mut [u8],
    ) -> Result<()> {
        let failed = |errno: Errno| sink_error(format!("cannot write {}", path.display()), errno);
        let is = |other: &str| self.root == Root::Data && path == Path::new(other);
        let (aside, version) = (is(PG_CONTROL), is(PG_VERSION));
        let is_wal = is_wal(self.root, path);
        let name = if aside { Path::new(PG_CONTROL_ASIDE).file_name().unwrap_or(name) } else { name };
        let directory = self.tree.enter(parents).map_err(failed)?;
        let file = File::from(create_file(&directory.fd, name).map_err(failed)?);
        let mut hasher = if is_wal { Algorithm::None } else { self.algorithm }.hasher();
        let (mut size, mut written) = (0, 0);
        loop {
            let n = entry.read(buffer).map_err(no_tar)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            (&file).write_all(&buffer[..n]).map_err(|e| sink_error(format!("cannot write {}", path.display()), e))?;
            size += n as u64;
            written += n as u64;
            if written >= WRITE_OUT_BYTES {
                start_writing(&file, size - written, written);
                written = 0;
            }
        }
        attributes.apply(&file.into()).map_err(failed)?;
        if version {
            let open = attributes.mode.contains(Mode::RGRP);
            *self.shared.group_access.lock().unwrap_or_else(PoisonError::into_inner) = open;
        }
        match is_wal {
            true => self.shared.segments.add(path, size),
            false => self.shared.checker.restored(&path_in_manifest(self.root, path), size, hasher.finish())?,
        }
        Ok(())
    }

    /// Owners as numbers, for root only; the server's own names for them are made up.
    fn owner<R: Read>(&self, entry: &Entry<'_, R>) -> Result<Option<(Uid, Gid)>> {
        let id = |id: std::io::Result<u64>| id.map_err(no_tar).map(|id| u32::try_from(id).unwrap_or(0));
        let header = entry.header();
        if self.root == Root::Wal {
            // Whoever collected the log made this stream, and not the server: its files are given away at the end.
            return Ok(None);
        }
        Ok(self.shared.ownership.of(id(header.uid())?, id(header.gid())?))
    }

    fn is_tablespace_link(&self, path: &Path) -> bool {
        let oid = path.strip_prefix(PG_TBLSPC).ok().and_then(Path::to_str);
        self.root == Root::Data && oid.is_some_and(|oid| self.shared.linked.iter().any(|o| o.to_string() == oid))
    }
}

/// As PostgreSQL's manifest calls a file.
pub(super) fn path_in_manifest(root: Root, path: &Path) -> Vec<u8> {
    let path: PathBuf = path.components().filter(|c| *c != std::path::Component::CurDir).collect();
    let prefix = match root {
        Root::Tablespace(oid) => format!("{PG_TBLSPC}/{oid}/"),
        Root::Data | Root::Wal => String::new(),
    };
    [prefix.as_bytes(), path.as_os_str().as_bytes()].concat()
}

/// Whether a file is one of the log, which is in no manifest.
pub(super) fn is_wal(root: Root, path: &Path) -> bool {
    root == Root::Wal || root == Root::Data && path.starts_with("pg_wal")
}

/// Has the system begin to write a range of a file to disk. It only may: what matters is the flush at the end.
fn start_writing(file: &File, offset: u64, len: u64) {
    // Linux writes out what it is told will not be needed; what is being written then, it keeps in memory all the same.
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZero::new(len), rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, len);
}
