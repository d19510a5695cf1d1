//! The tar stream of a walk: POSIX `ustar` headers, with PAX records where those do not reach.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, Stat, fstat, readlinkat};
use rustix::io::Errno;

use super::walk::{Found, Walk, file_type};
use super::{DirectoryWarning, UNREADABLE, WarningCallback};
use crate::error::Result;
use crate::restore::directory::MARKER;
use crate::source::files_index::{EntryKind, FileEntry, IndexWriter};
use crate::source::reader::{Input, source_error};
use crate::source::tar_header::Headers;

const BLOCK: u64 = 512;

/// Files from this size on are announced to the kernel's read-ahead.
const SEQUENTIAL_BYTES: u64 = 256 << 10;

pub(super) struct TarInput {
    /// The directory, as messages call it.
    root: PathBuf,
    walk: Walk,
    index: IndexWriter,
    warn: WarningCallback,
    /// First names of files with several, until all of them were seen.
    links: HashMap<(u64, u64), Linked>,
    /// Headers and padding that are to be delivered before anything else.
    pending: Vec<u8>,
    delivered: usize,
    contents: Option<Contents>,
    /// Bytes of the stream up to the end of `pending`.
    offset: u64,
    stage: Progress,
}

#[derive(PartialEq)]
enum Progress {
    Root,
    Entries,
    Done,
}

struct Contents {
    file: OwnedFd,
    left: u64,
    padding: u64,
    /// The file ended early, and zeros take its place.
    ended: bool,
}

struct Linked {
    first: PathBuf,
    names_left: u64,
}

impl TarInput {
    pub(super) fn new(root: PathBuf, walk: Walk, index: IndexWriter, warn: WarningCallback) -> Self {
        Self {
            root,
            walk,
            index,
            warn,
            links: HashMap::new(),
            pending: Vec::new(),
            delivered: 0,
            contents: None,
            offset: 0,
            stage: Progress::Root,
        }
    }

    /// Puts something into `pending` or `contents`, or ends the stream.
    fn advance(&mut self) -> Result<()> {
        self.pending.clear();
        self.delivered = 0;
        if self.stage == Progress::Root {
            self.stage = Progress::Entries;
            let stat = self.walk.root().map_err(|e| source_error("cannot read the directory", e.into()))?;
            return self.emit(b"./", &stat, EntryKind::Directory, 0, &[]);
        }
        match self.walk.next() {
            Some(Ok(found)) => self.add(found),
            Some(Err(Errno::NOENT)) => {
                self.warning("vanished while the directory was read: left out");
                Ok(())
            }
            Some(Err(errno)) => Err(self.cannot("look at", errno)),
            None => {
                self.stage = Progress::Done;
                self.pending.resize(2 * BLOCK as usize, 0);
                self.index.finish_blocking();
                Ok(())
            }
        }
    }

    fn add(&mut self, Found { name, stat }: Found) -> Result<()> {
        if self.walk.path() == Path::new(MARKER) {
            self.warning("the mark of an unfinished restore: this directory may be incomplete");
            return Ok(());
        }
        let left_out = match file_type(&stat) {
            FileType::RegularFile => return self.add_file(&name),
            FileType::Directory => return self.add_directory(&name),
            FileType::Symlink => return self.add_symlink(&name, &stat),
            FileType::Fifo => "is a pipe: left out",
            FileType::Socket => "is a socket: left out",
            _ => "is a device: left out",
        };
        self.warning(left_out);
        Ok(())
    }

    /// Opens the entry, or warns that it is not there any more.
    fn open(&mut self, name: &CStr, flags: OFlags) -> Result<Option<(OwnedFd, Stat)>> {
        match self.walk.open(name, flags).and_then(|file| Ok((fstat(&file)?, file))) {
            Ok((stat, file)) => Ok(Some((file, stat))),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                self.warning("vanished while the directory was read: left out");
                Ok(None)
            }
            Err(errno) => Err(self.cannot("open", errno)),
        }
    }

    fn add_file(&mut self, name: &CStr) -> Result<()> {
        // Non-blocking, in case it has become a pipe.
        let Some((file, stat)) = self.open(name, OFlags::NONBLOCK)? else { return Ok(()) };
        if file_type(&stat) != FileType::RegularFile {
            self.warning("is no file any more: left out");
            return Ok(());
        }
        let path = self.walk.path().to_owned();
        if let Some(first) = self.first_name(&stat, &path) {
            return self.emit(path.as_os_str().as_bytes(), &stat, EntryKind::HardLink, 0, first.as_os_str().as_bytes());
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        if size >= SEQUENTIAL_BYTES {
            #[cfg(target_os = "linux")]
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        }
        self.emit(path.as_os_str().as_bytes(), &stat, EntryKind::File, size, &[])?;
        let padding = size.next_multiple_of(BLOCK) - size;
        self.offset += size + padding;
        self.contents = Some(Contents { file, left: size, padding, ended: false });
        Ok(())
    }

    fn add_directory(&mut self, name: &CStr) -> Result<()> {
        let Some((directory, stat)) = self.open(name, OFlags::DIRECTORY)? else { return Ok(()) };
        let mut path = self.walk.path().as_os_str().as_bytes().to_vec();
        path.push(b'/');
        self.emit(&path, &stat, EntryKind::Directory, 0, &[])?;
        self.walk.enter(directory).map_err(|errno| self.cannot("read", errno))
    }

    fn add_symlink(&mut self, name: &CStr, stat: &Stat) -> Result<()> {
        let target = match self.walk.directory().ok_or(Errno::NOENT).and_then(|d| readlinkat(d, name, Vec::new())) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::INVAL) => {
                self.warning("vanished while the directory was read: left out");
                return Ok(());
            }
            Err(errno) => return Err(self.cannot("read", errno)),
        };
        let path = self.walk.path().as_os_str().as_bytes().to_vec();
        self.emit(&path, stat, EntryKind::Symlink, 0, target.to_bytes())
    }

    /// The name under which this file is in the stream already, if it is.
    fn first_name(&mut self, stat: &Stat, path: &Path) -> Option<PathBuf> {
        #[expect(clippy::unnecessary_cast, reason = "the width of these fields differs between systems")]
        let (key, names) = ((stat.st_dev as u64, stat.st_ino as u64), stat.st_nlink as u64);
        if let Some(linked) = self.links.get_mut(&key) {
            linked.names_left -= 1;
            let first = linked.first.clone();
            if linked.names_left == 0 {
                self.links.remove(&key);
            }
            return Some(first);
        }
        if names > 1 {
            self.links.insert(key, Linked { first: path.to_owned(), names_left: names - 1 });
        }
        None
    }

    /// Writes headers for one entry to `pending`, and its line to the index.
    fn emit(&mut self, path: &[u8], stat: &Stat, kind: EntryKind, size: u64, link: &[u8]) -> Result<()> {
        self.pending.clear();
        let header = Headers { path, link, kind, size, stat };
        header.write(&mut self.pending).map_err(|e| source_error("cannot write a tar header", e))?;
        self.offset += self.pending.len() as u64;
        self.index.push_blocking(&FileEntry::of(&header, None, self.offset));
        Ok(())
    }

    fn read_contents(&mut self, room: &mut [u8]) -> Result<usize> {
        let Some(contents) = &mut self.contents else { return Ok(0) };
        if contents.left == 0 || contents.ended {
            let left = contents.left + contents.padding;
            let n = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            room[..n].fill(0);
            let of_file = contents.left.min(n as u64);
            contents.left -= of_file;
            contents.padding -= n as u64 - of_file;
            if contents.left + contents.padding == 0 {
                self.contents = None;
            }
            return Ok(n);
        }
        let n = room.len().min(usize::try_from(contents.left).unwrap_or(usize::MAX));
        match rustix::io::read(&contents.file, &mut room[..n]) {
            Ok(0) => {
                contents.ended = true;
                let missing = contents.left;
                self.warning(&format!("shrank while it was read: {missing} bytes at its end are zeros"));
                Ok(0)
            }
            Ok(n) => {
                contents.left -= n as u64;
                Ok(n)
            }
            Err(Errno::INTR) => Ok(0),
            Err(errno) => Err(self.cannot("read", errno)),
        }
    }

    fn warning(&mut self, what: &str) {
        (self.warn)(DirectoryWarning { path: self.walk.path().to_owned(), what: what.to_owned() });
    }

    fn cannot(&self, verb: &str, errno: Errno) -> crate::Error {
        let path = self.root.join(self.walk.path());
        let error = source_error(format!("cannot {verb} {}", path.display()), errno.into());
        if errno == Errno::ACCESS { error.with_hint(UNREADABLE) } else { error }
    }
}

impl Input for TarInput {
    fn read(&mut self, room: &mut [u8], _wanted: &dyn Fn() -> bool) -> Result<usize> {
        loop {
            let pending = &self.pending[self.delivered..];
            if !pending.is_empty() {
                let n = pending.len().min(room.len());
                room[..n].copy_from_slice(&pending[..n]);
                self.delivered += n;
                return Ok(n);
            }
            if self.contents.is_some() {
                match self.read_contents(room)? {
                    0 => continue,
                    n => return Ok(n),
                }
            }
            if self.stage == Progress::Done {
                return Ok(0);
            }
            self.advance()?;
        }
    }
}
