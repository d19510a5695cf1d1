//! Walks a tree in the order of names, holding only the names of the directories on the way down.
//!
//! Everything is opened relative to its directory's descriptor and without following links, so a tree that changes meanwhile cannot
//! lead out of itself, and no path is too long.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

use crate::error::Result;
use crate::source::reader::source_error;

/// A tree, from which [`next`](Self::next) takes one name after the other.
pub(super) struct Walk {
    levels: Vec<Level>,
    /// The path of the current entry, relative to the root.
    path: PathBuf,
    /// Whether `path` ends with the name of an entry that is no directory, or of one that was not entered.
    at_leaf: bool,
}

struct Level {
    directory: OwnedFd,
    names: Names,
}

/// An entry of the walk.
pub(super) struct Found {
    pub(super) name: CString,
    pub(super) stat: Stat,
}

impl Walk {
    pub(super) fn new(root: OwnedFd) -> Result<Self> {
        let names = Names::read(&root).map_err(|e| source_error("cannot read the directory", e.into()))?;
        Ok(Self { levels: vec![Level { directory: root, names }], path: PathBuf::new(), at_leaf: false })
    }

    /// What the root directory itself is.
    pub(super) fn root(&self) -> rustix::io::Result<Stat> {
        fstat(&self.levels[0].directory)
    }

    /// The path of the entry that [`next`](Self::next) gave last.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the entry that [`next`](Self::next) gave last, unless it was entered.
    pub(super) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.levels.last().map(|level| level.directory.as_fd())
    }

    /// The next name and what it stands for; a name that is gone gives `NOENT`.
    pub(super) fn next(&mut self) -> Option<rustix::io::Result<Found>> {
        loop {
            if std::mem::take(&mut self.at_leaf) {
                self.path.pop();
            }
            let level = self.levels.last_mut()?;
            let Some(name) = level.names.next() else {
                self.levels.pop();
                // Now the path ends with the name of the directory that is done.
                self.at_leaf = !self.levels.is_empty();
                continue;
            };
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.at_leaf = true;
            let stat = statat(&level.directory, &*name, AtFlags::SYMLINK_NOFOLLOW);
            return Some(stat.map(|stat| Found { name, stat }));
        }
    }

    /// Opens an entry of the current directory.
    pub(super) fn open(&self, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let directory = self.directory().ok_or(Errno::NOENT)?;
        openat(directory, name, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    /// Goes down into a directory that [`next`](Self::next) gave last, and that [`open`](Self::open) opened.
    pub(super) fn enter(&mut self, directory: OwnedFd) -> rustix::io::Result<()> {
        let names = Names::read(&directory)?;
        self.levels.push(Level { directory, names });
        self.at_leaf = false;
        Ok(())
    }
}

/// The names in one directory, sorted; all in one allocation, as there may be millions.
struct Names {
    bytes: Vec<u8>,
    starts: std::vec::IntoIter<u32>,
}

impl Names {
    fn read(directory: &OwnedFd) -> rustix::io::Result<Self> {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if matches!(name, b".\0" | b"..\0") {
                continue;
            }
            starts.push(u32::try_from(bytes.len()).map_err(|_| Errno::OVERFLOW)?);
            bytes.extend_from_slice(name);
        }
        let name = |start: u32| name_at(&bytes, start);
        starts.sort_unstable_by(|&a, &b| name(a).cmp(name(b)));
        Ok(Self { bytes, starts: starts.into_iter() })
    }

    fn next(&mut self) -> Option<CString> {
        self.starts.next().map(|start| name_at(&self.bytes, start).to_owned())
    }
}

fn name_at(bytes: &[u8], start: u32) -> &CStr {
    CStr::from_bytes_until_nul(&bytes[start as usize..]).unwrap_or_default()
}

/// The kind of file that a mode tells.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
