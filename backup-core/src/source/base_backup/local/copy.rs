//! One tar stream of a local copy: the files that are handed out to it, read into the pipeline's buffers on a thread of its own.
//!
//! A file keeps the size that it had when it was opened. What it has grown by meanwhile is in the log, and so is what was cut off it, in place of
//! which there are zeros: recovery does both again. A file that has gone is left out, as recovery would remove it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{FileType, Stat, fstat};
use rustix::io::Errno;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::cache::Window;
use super::damage::{Extent, Pages, Relation, written};
use super::job::{Job, cannot};
use super::queue::Begun;
use super::tree::{Item, Root};
use crate::error::Result;
use crate::pipeline::Buffer;
use crate::postgres::backup_manifest::{Hasher, ManifestFile};
use crate::postgres::data_directory::Place;
use crate::source::files_index::{EntryKind, FileEntry};
use crate::source::reader::{Input, source_error};
use crate::source::tar_header::Headers;

pub(super) const BLOCK: usize = 512;
/// As much of a file is read at once: what is read is hashed while it is in the processor's cache.
const READ_BYTES: usize = 256 << 10;

/// What a thread does for one stream.
pub(super) struct CopyInput {
    job: Arc<Job>,
    of: usize,
    root: Arc<Root>,
    stream: String,
    /// Whether the archive ends when there is nothing more to copy.
    closed: bool,
    first: Option<Item>,
    /// Headers and padding that are to be delivered before anything else.
    pending: Vec<u8>,
    delivered: usize,
    file: Option<Open>,
    /// Bytes of the stream up to the end of `pending`.
    offset: u64,
    over: bool,
    sight: Option<Sight>,
    /// The others wait for the files that this one has.
    token: Option<TaskTrackerToken>,
}

/// A file that is being read.
struct Open {
    fd: OwnedFd,
    path: Vec<u8>,
    size: u64,
    at: u64,
    /// It ended early, and zeros take its place.
    ended: bool,
    hasher: Hasher,
    modified: i64,
    window: Window,
    /// Where the next page belongs, if it has pages.
    page: Option<(Arc<Relation>, u32)>,
}

/// The pages that pass by.
struct Sight {
    pages: Arc<Pages>,
    /// Bytes in the current buffer.
    filled: usize,
    extents: Vec<Extent>,
    /// The beginning of a page whose end comes with the next buffer.
    carry: Vec<u8>,
}

impl CopyInput {
    /// For a stream called `stream`; unless it is `closed`, something is appended to it at the end.
    /// `token` is one of the job's tracker, from before the stream was begun.
    pub(super) fn new(job: Arc<Job>, begun: Begun, stream: &str, closed: bool, token: TaskTrackerToken) -> Self {
        let sight = job.pages.clone();
        Self {
            of: begun.of,
            root: begun.root,
            first: begun.first,
            stream: stream.to_owned(),
            closed,
            pending: Vec::new(),
            delivered: 0,
            file: None,
            offset: 0,
            over: false,
            sight: sight.map(|pages| Sight { pages, filled: 0, extents: Vec::new(), carry: Vec::new() }),
            token: Some(token),
            job,
        }
    }

    /// Puts something into `pending` or opens a file, or ends the stream.
    fn advance(&mut self) -> Result<()> {
        self.pending.clear();
        self.delivered = 0;
        let next = match self.first.take() {
            Some(item) => Some(item),
            None => self.job.next(self.of)?,
        };
        match next {
            Some(Item::File(path)) => self.open(path),
            Some(Item::Directory(path)) => match self.root.stat(&path, true) {
                Ok(stat) => self.emit(&[&path[..], b"/"].concat(), &stat, EntryKind::Directory, 0, &[]),
                Err(errno) => self.unless_gone(&path, errno),
            },
            Some(Item::Link(path)) => self.link(&path),
            Some(Item::Special(path)) => {
                let what = format!("{}: neither a file nor a directory: left out", self.root.shown(&path));
                self.job.facts.warnings.push(what);
                Ok(())
            }
            None => {
                self.over = true;
                if self.closed {
                    self.pending.resize(2 * BLOCK, 0);
                }
                Ok(())
            }
        }
    }

    fn open(&mut self, path: Vec<u8>) -> Result<()> {
        let opened = self.root.open_file(&path).and_then(|fd| Ok((fstat(&fd)?, fd)));
        let (stat, fd) = match opened {
            Ok(opened) => opened,
            Err(errno) => return self.unless_gone(&path, errno),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        self.emit(&path, &stat, EntryKind::File, size, &[])?;
        let mut window = Window::new(fd.as_fd(), size);
        window.advance(fd.as_fd(), 0);
        let page = self.sight.as_ref().and_then(|_| self.relation(&path, &stat));
        self.offset += size.next_multiple_of(BLOCK as u64);
        let (hasher, modified) = (self.job.algorithm.hasher(), stat.st_mtime);
        self.file = Some(Open { fd, path, size, at: 0, ended: false, hasher, modified, window, page });
        if size == 0 {
            self.close()?;
        }
        Ok(())
    }

    /// The relation that a file belongs to, if it has pages.
    fn relation(&self, path: &[u8], stat: &Stat) -> Option<(Arc<Relation>, u32)> {
        let mut place = if self.root.oid.is_some() { Place::Tablespaces } else { Place::Data };
        let mut names = path.split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                let segment = place.has_pages(name)?.segment;
                let block = segment.checked_mul(self.job.segment_pages)?;
                let (root, path) = (Arc::clone(&self.root), path.to_vec());
                let relation = Relation { root, path, first_block: block, written: written(stat) };
                return Some((Arc::new(relation), block));
            }
            place = if place == Place::Tablespaces { Place::Version } else { place.child(name) };
        }
        None
    }

    fn link(&mut self, path: &[u8]) -> Result<()> {
        let found = self.root.stat(path, false).and_then(|stat| Ok((self.root.read_link(path)?, stat)));
        match found {
            Ok((target, stat)) => self.emit(path, &stat, EntryKind::Symlink, 0, target.to_bytes()),
            Err(errno) => self.unless_gone(path, errno),
        }
    }

    fn unless_gone(&self, path: &[u8], errno: Errno) -> Result<()> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Ok(()),
            errno => Err(cannot("read", &self.root, path, errno)),
        }
    }

    /// Writes headers for one entry to `pending`, and its line to the index.
    fn emit(&mut self, path: &[u8], stat: &Stat, kind: EntryKind, size: u64, link: &[u8]) -> Result<()> {
        let header = Headers { path, link, kind, size, stat };
        let from = self.pending.len();
        header.write(&mut self.pending).map_err(|e| source_error("cannot write a tar header", e))?;
        self.offset += (self.pending.len() - from) as u64;
        self.job.index.blocking_lock().push_blocking(&FileEntry::of(&header, Some(&self.stream), self.offset));
        Ok(())
    }

    /// Reads contents, or gives zeros in their place.
    fn contents(&mut self, room: &mut [u8]) -> Result<usize> {
        let Some(open) = &mut self.file else { return Ok(0) };
        let left = usize::try_from(open.size - open.at).unwrap_or(usize::MAX);
        // In step with pages, also where a buffer ended in the middle of one.
        let step = READ_BYTES - usize::try_from(open.at % READ_BYTES as u64).unwrap_or_default();
        let n = room.len().min(left).min(step);
        let room = &mut room[..n];
        let n = if open.ended {
            room.fill(0);
            n
        } else {
            open.window.advance(open.fd.as_fd(), open.at);
            match rustix::io::pread(&open.fd, &mut *room, open.at) {
                Ok(0) => {
                    open.ended = true;
                    return Ok(0);
                }
                Ok(n) => n,
                Err(Errno::INTR) => return Ok(0),
                Err(errno) => return Err(cannot("read", &self.root, &open.path, errno)),
            }
        };
        let data = &room[..n];
        open.at += n as u64;
        open.hasher.update(data);
        if let (Some(sight), Some((relation, block))) = (&mut self.sight, &mut open.page) {
            sight.pass(relation, block, data);
        }
        if open.at == open.size {
            self.close()?;
        }
        Ok(n)
    }

    /// The end of a file: its line in PostgreSQL's manifest, and padding.
    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.file.take() else { return Ok(()) };
        open.window.advance(open.fd.as_fd(), open.size);
        if let (Some(sight), Some((relation, block))) = (&mut self.sight, &open.page) {
            sight.end(relation, *block);
        }
        let file = ManifestFile {
            path: self.root.full_path(&open.path),
            size: open.size,
            algorithm: self.job.algorithm,
            checksum: open.hasher.finish(),
        };
        let modified = Timestamp::from_second(open.modified).unwrap_or_default();
        self.job.manifest.blocking_lock().file_blocking(&file, modified);
        // What is in front of it may not have been delivered, if it is empty.
        let padding = open.size.next_multiple_of(BLOCK as u64) - open.size;
        self.pending.resize(self.pending.len() + usize::try_from(padding).unwrap_or_default(), 0);
        Ok(())
    }
}

impl Input for CopyInput {
    fn read(&mut self, room: &mut [u8], _wanted: &dyn Fn() -> bool) -> Result<usize> {
        loop {
            let pending = &self.pending[self.delivered..];
            let n = if !pending.is_empty() {
                let n = pending.len().min(room.len());
                room[..n].copy_from_slice(&pending[..n]);
                self.delivered += n;
                n
            } else if self.file.is_some() {
                self.contents(room)?
            } else if self.over {
                return Ok(0);
            } else {
                self.advance()?;
                0
            };
            if n > 0 {
                if let Some(sight) = &mut self.sight {
                    sight.filled += n;
                }
                return Ok(n);
            }
        }
    }

    fn filled(&mut self, buffer: &mut Buffer) {
        // The last buffer is waited for by its own token, if it has anything to look at.
        let done = if self.over { self.token.take() } else { None };
        let Some(sight) = &mut self.sight else { return };
        sight.filled = 0;
        if sight.extents.is_empty() {
            return;
        }
        let (pages, extents) = (Arc::clone(&sight.pages), std::mem::take(&mut sight.extents));
        let token = self.job.tracker.token();
        buffer.inspect_with(Box::new(move |chunk| {
            pages.inspect(&extents, chunk);
            drop(token);
        }));
        drop(done);
    }
}

impl Sight {
    /// Takes account of the contents of a relation that come next in the buffer. Whole pages are left to a compute thread.
    fn pass(&mut self, relation: &Arc<Relation>, block: &mut u32, data: &[u8]) {
        let (page_bytes, mut at, mut data) = (self.pages.page_bytes, self.filled, data);
        if !self.carry.is_empty() {
            let (of_page, rest) = data.split_at(data.len().min(page_bytes - self.carry.len()));
            self.carry.extend_from_slice(of_page);
            (at, data) = (at + of_page.len(), rest);
            if self.carry.len() < page_bytes {
                return;
            }
            self.pages.look_at(relation, &self.carry, *block);
            self.carry.clear();
            *block += 1;
        }
        let pages = data.len() / page_bytes;
        self.carry.extend_from_slice(&data[pages * page_bytes..]);
        let Ok(count) = u32::try_from(pages) else { return };
        if count == 0 {
            return;
        }
        match self.extents.last_mut() {
            Some(last) if Arc::ptr_eq(&last.relation, relation) && last.at + last.pages * page_bytes == at => {
                last.pages += pages;
            }
            _ => self.extents.push(Extent { at, pages, relation: Arc::clone(relation), block: *block }),
        }
        *block += count;
    }

    /// The end of a relation's file. It may be in the middle of a page, if the file is just being extended.
    fn end(&mut self, relation: &Arc<Relation>, block: u32) {
        if !std::mem::take(&mut self.carry).is_empty() {
            self.pages.ended_within(relation, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::postgres::wal::Lsn;

    proptest! {
        #[test]
        fn every_page_is_looked_at_once_however_it_is_read(
            pages in 1usize..20, before in 0usize..3000, cuts in prop::collection::vec(1usize..9000, 1..40), buffer in 3000usize..40_000,
        ) {
            let temp = tempfile::tempdir().unwrap();
            let root = Arc::new(Root::open(None, temp.path()).unwrap());
            let relation = Arc::new(Relation { root, path: b"1".to_vec(), first_block: 7, written: (0, 0) });
            // Each is as wrong as a page can be, and its file is not there: so it is a suspect, once.
            let data: Vec<u8> = (0..pages * 1024).map(|i| u8::try_from(i % 251).unwrap() | 1).collect();
            let looked = Arc::new(Pages::new(Lsn(u64::MAX), 1024));
            let mut sight = Sight { pages: Arc::clone(&looked), filled: before, extents: Vec::new(), carry: Vec::new() };
            let (mut block, mut rest, mut cuts) = (7, &data[..], cuts.into_iter().cycle());
            let mut chunk = vec![0; before];
            while !rest.is_empty() {
                let n = cuts.next().unwrap().min(rest.len()).min(buffer.max(before + 1) - sight.filled);
                sight.pass(&relation, &mut block, &rest[..n]);
                chunk.extend_from_slice(&rest[..n]);
                sight.filled += n;
                rest = &rest[n..];
                if sight.filled >= buffer || rest.is_empty() {
                    looked.inspect(&std::mem::take(&mut sight.extents), &chunk);
                    (sight.filled, chunk) = (0, Vec::new());
                }
            }
            prop_assert_eq!(block as usize, 7 + pages);
            let mut blocks: Vec<u32> = looked.suspects().into_iter().map(|(_, block)| block).collect();
            blocks.sort_unstable();
            prop_assert_eq!(blocks, (7..block).collect::<Vec<_>>());
        }
    }
}
