//! Single files out of a base backup: a file, a database, a tablespace, read from the chunks that hold them and no others.
//!
//! ```text
//! files ─▶ which entries are wanted ─▶ ranges of base, tablespace-… ─▶ files
//! ```
//!
//! What comes back is files and no cluster: they are as they were read while the server ran, and only a whole cluster with its log is consistent.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::fs::Mode;
use tokio_util::sync::CancellationToken;

use super::layout::{Root, root_of};
use super::manifest::WorkerSink;
use super::place::Place;
use super::{blocking, is_echo};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Kind;
use crate::pipeline::{Counters, Limits};
use crate::restore::stream::Share;
use crate::restore::tree::{Attributes, COPY_BYTES, Tree, create_file, names};
use crate::restore::worker::{Incoming, Worker, sink_error};
use crate::restore::{OpenBackup, RestoreHandle};
use crate::source::files_index::{EntryKind, FileEntry};

/// The stream that says where files are.
const FILES: &str = "files";
/// The log is a stream of its own, without an index.
const PG_WAL: &str = "pg_wal";
/// The longest line of the index.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Bytes between two wanted files that are read rather than begun anew behind: some chunks, against some requests.
const GAP_BYTES: u64 = 4 << 20;
/// Streams at once.
const STREAMS_MAX: usize = 3;

impl OpenBackup {
    /// The restore of single files or directories into `directory`, for backups of kind [`BaseBackup`](Kind::BaseBackup). Paths are those of the
    /// data directory, such as `global/1262`, `base/16384` or `pg_tblspc/16385`.
    pub fn restore_only(&self, paths: impl IntoIterator<Item = PathBuf>, directory: impl Into<PathBuf>) -> OnlyRestore {
        OnlyRestore {
            backup: self.clone(),
            paths: paths.into_iter().collect(),
            directory: directory.into(),
            limits: Limits::for_parts_of(self.0.repository.part_bytes()),
            counters: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }
}

/// The restore of single files: say how, then [`start`](Self::start).
#[derive(Debug)]
#[must_use]
pub struct OnlyRestore {
    backup: OpenBackup,
    paths: Vec<PathBuf>,
    directory: PathBuf,
    limits: Limits,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnlyRestored {
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A file that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chosen {
    path: PathBuf,
    offset: u64,
    size: u64,
    mode: u32,
}

/// What is wanted of a backup.
#[derive(Debug, Default)]
struct Choice {
    directories: Vec<PathBuf>,
    /// By stream, in the order of the archive.
    files: Vec<(String, Vec<Chosen>)>,
}

impl OnlyRestore {
    /// Memory and threads; of the sizes only those of the backup itself count. Besides, some 100 bytes are needed for each file.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Cancels the restore when it is cancelled.
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    /// Starts restoring on the current tokio runtime. The files are whole and on disk if and only if [`RestoreHandle::wait`] is `Ok`; else nothing of
    /// them is left, or a failed [clean-up](Error::cleanup) says what is.
    ///
    /// # Errors
    /// `Config` for paths that no data directory has, and for other kinds of backups. Of waiting: `NotFound` when the backup has no such file, `Config`
    /// for a directory that is not empty, `Integrity` when what is read is damaged, `Sink` when the files cannot be written.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(mut self) -> Result<RestoreHandle<OnlyRestored>> {
        let manifest = self.backup.manifest();
        if manifest.kind != Kind::BaseBackup || manifest.stream(FILES).is_none() {
            let message = format!("backup {} does not say where its files are", manifest.id);
            return Err(Error::config(message).with_hint("base backups do, unless the server compressed them"));
        }
        self.paths = self.paths.iter().map(|path| plain(path)).collect::<Result<_>>()?;
        let (counters, cancel) = (Arc::clone(&self.counters), self.cancel.clone());
        Ok(RestoreHandle { counters, cancel, task: tokio::spawn(self.run()) })
    }

    async fn run(self) -> Result<OnlyRestored> {
        let share = Arc::new(Share::new(self.limits, None));
        let choice = self.choose(&share).await?;
        let directory = std::path::absolute(&self.directory)
            .map_err(|e| Error::config(format!("{} is no path", self.directory.display())).with_source(e))?;
        let place = blocking(move || {
            Place::check(&directory, "restore into a new or an empty directory")?;
            Place::take(&directory)
        });
        let place = Arc::new(place.await?);
        let filled = async {
            let restored = self.fill(&share, choice, &place).await?;
            let of = Arc::clone(&place);
            blocking(move || {
                let synced = super::place::sync(std::iter::once(&*of)).and_then(|()| of.complete());
                synced.map_err(|e| sink_error("cannot write the restored files to disk", e))
            })
            .await?;
            Ok(restored)
        };
        match filled.await {
            Ok(restored) => Ok(restored),
            Err(error) => Err(match blocking(move || place.give_up().map_err(|e| place.stays(e))).await {
                Ok(()) => error,
                Err(cleanup) => error.with_cleanup(cleanup),
            }),
        }
    }

    /// Reads the index, and remembers what is wanted of it.
    async fn choose(&self, share: &Arc<Share>) -> Result<Choice> {
        let (result, paths) = (Arc::new(Mutex::new(None)), self.paths.clone());
        let slot = Arc::clone(&result);
        let worker = Worker::spawn(move |incoming| {
            let chosen = read_index(BufReader::new(incoming), &paths)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(chosen);
            Ok(())
        })?;
        let restore = self.backup.restore(FILES)?.cancel_on(&self.cancel).sharing(share, &Arc::default());
        restore.into(WorkerSink(worker)).wait().await?;
        let chosen = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        chosen.ok_or_else(|| Error::internal(Stage::Sink, "the index's reader ended early"))
    }

    async fn fill(&self, share: &Arc<Share>, choice: Choice, place: &Arc<Place>) -> Result<OnlyRestored> {
        let all = || choice.files.iter().flat_map(|(_, files)| files);
        let restored = OnlyRestored { files: all().count() as u64, bytes: all().map(|file| file.size).sum() };
        let (of, directories) = (Arc::clone(place), choice.directories);
        blocking(move || {
            let mut tree = Tree::new(root(&of)?);
            directories.iter().try_for_each(|path| {
                let entered = tree.enter(&names(path)?).map(drop);
                entered.map_err(|errno| sink_error(format!("cannot create {}", path.display()), errno))
            })
        })
        .await?;
        let stop = self.cancel.child_token();
        let mut waiting = choice.files.into_iter();
        let mut running = FuturesUnordered::new();
        let mut failure: Option<Error> = None;
        loop {
            while running.len() < STREAMS_MAX && failure.is_none() {
                let Some((stream, files)) = waiting.next() else { break };
                running.push(self.stream(share, stream, files, place, &stop));
            }
            let Some(done) = running.next().await else { break };
            if let Err(error) = done {
                stop.cancel();
                if failure.as_ref().is_none_or(is_echo) {
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(restored), Err)
    }

    /// Restores the files of one stream, run after run.
    async fn stream(
        &self,
        share: &Arc<Share>,
        stream: String,
        files: Vec<Chosen>,
        place: &Place,
        stop: &CancellationToken,
    ) -> Result<()> {
        for (range, files) in runs(files) {
            let root = root(place)?;
            let begin = range.start;
            let worker = Worker::spawn(move |incoming| pick(incoming, begin, &files, root))?;
            let restore = self.backup.restore(&stream)?.range(range).cancel_on(stop).sharing(share, &self.counters);
            restore.into(WorkerSink(worker)).wait().await?;
        }
        Ok(())
    }
}

fn root(place: &Place) -> Result<OwnedFd> {
    place.fd().try_clone().map_err(|e| sink_error(format!("cannot open {}", place.path().display()), e))
}

/// A path below a data directory, without anything that is not a name.
fn plain(path: &Path) -> Result<PathBuf> {
    let names: Option<PathBuf> = path
        .components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| matches!(component, Component::Normal(_)).then_some(component))
        .collect();
    names.filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| {
        Error::config(format!("'{}' is no path in a data directory", path.display()))
            .with_hint("paths are relative to the data directory: global/1262, base/16384, pg_tblspc/16385")
    })
}

/// What of an index is wanted.
fn read_index(mut index: impl BufRead, wanted: &[PathBuf]) -> Result<Choice> {
    let malformed = || Error::integrity("the index of the backup's files is malformed").at(Stage::Catalog);
    let (mut choice, mut found) = (Choice::default(), vec![false; wanted.len()]);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = index.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(ours)?;
        if n == 0 {
            break;
        }
        let entry: FileEntry = serde_json::from_slice(&line).map_err(|e| malformed().with_source(e))?;
        let stream = entry.stream.clone().ok_or_else(malformed)?;
        let path = entry.path_bytes().ok_or_else(malformed)?;
        let prefix = match root_of(&stream) {
            Some(Root::Data) => PathBuf::new(),
            Some(Root::Tablespace(oid)) => Path::new("pg_tblspc").join(oid.to_string()),
            _ => return Err(malformed()),
        };
        let path = prefix.join(std::ffi::OsStr::from_bytes(&path));
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
                choice.add(stream, Chosen { path, offset: entry.offset, size: entry.size, mode: entry.mode })
            }
            EntryKind::Directory => choice.directories.push(path),
            _ => {}
        }
    }
    match wanted.iter().zip(found).find(|(_, found)| !found) {
        None => Ok(choice),
        Some((path, _)) => {
            let message = format!("the backup has no {}", path.display());
            let error = Error::new(ErrorKind::NotFound, Stage::Catalog, message);
            Err(if path.starts_with(PG_WAL) {
                error.with_hint("its log is the stream pg_wal: --stream pg_wal")
            } else {
                error
            })
        }
    }
}

/// What the other thread said travels inside an I/O error.
fn ours(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|e| sink_error("the index of the backup's files cannot be read", e))
}

impl Choice {
    fn add(&mut self, stream: String, file: Chosen) {
        match self.files.iter_mut().find(|(other, _)| *other == stream) {
            Some((_, files)) => files.push(file),
            None => self.files.push((stream, vec![file])),
        }
    }
}

/// Files that are read at once, with the range of the stream that they lie in.
fn runs(mut files: Vec<Chosen>) -> Vec<(Range<u64>, Vec<Chosen>)> {
    files.sort_by_key(|file| file.offset);
    let mut runs: Vec<(Range<u64>, Vec<Chosen>)> = Vec::new();
    for file in files {
        let end = file.offset.saturating_add(file.size);
        match runs.last_mut() {
            Some((range, files)) if file.offset <= range.end.saturating_add(GAP_BYTES) => {
                range.end = range.end.max(end);
                files.push(file);
            }
            _ => runs.push((file.offset..end, vec![file])),
        }
    }
    runs
}

/// Writes `files` out of the bytes of a stream that begin at `at`.
fn pick(mut incoming: Incoming, mut at: u64, files: &[Chosen], root: OwnedFd) -> Result<()> {
    let mut tree = Tree::new(root);
    let mut buffer = vec![0; COPY_BYTES];
    let short = || Error::integrity("a file lies beyond the end of its stream").at(Stage::Sink);
    let mut next = |wanted: u64, buffer: &mut [u8]| {
        let room = usize::try_from(wanted).map_or(buffer.len(), |wanted| wanted.min(buffer.len()));
        match incoming.read(&mut buffer[..room]).map_err(ours)? {
            0 => Err(short()),
            n => Ok(n),
        }
    };
    for file in files {
        while at < file.offset {
            at += next(file.offset - at, &mut buffer)? as u64;
        }
        let failed = |e: io::Error| sink_error(format!("cannot write {}", file.path.display()), e);
        let mut parents = names(&file.path)?;
        let name = parents.pop().ok_or_else(short)?;
        let directory = tree.enter(&parents).map_err(|errno| failed(errno.into()))?;
        let out = File::from(create_file(&directory.fd, name).map_err(|errno| failed(errno.into()))?);
        let mut left = file.size;
        while left > 0 {
            let n = next(left, &mut buffer)?;
            (&out).write_all(&buffer[..n]).map_err(failed)?;
            left -= n as u64;
        }
        at += file.size;
        let attributes = Attributes { mode: Mode::from_raw_mode(file.mode & 0o640 | 0o600), times: None, owner: None };
        attributes.apply(&out.into()).map_err(|errno| failed(errno.into()))?;
    }
    while incoming.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = r#"{"path":"base","stream":"base","type":"directory","offset":512,"size":0,"mode":448,"mtime_ns":0}
{"path":"base/5/1","stream":"base-01","type":"file","offset":512,"size":8192,"mode":384,"mtime_ns":0}
{"path":"base/50/1","stream":"base","type":"file","offset":1536,"size":1,"mode":384,"mtime_ns":0}
{"path":"PG_15_1/5/1","stream":"tablespace-7-01","type":"file","offset":512,"size":2,"mode":384,"mtime_ns":0}
{"path":"pg_tblspc/7","stream":"base","type":"symlink","offset":2560,"size":0,"mode":511,"mtime_ns":0}
"#;

    fn chosen(wanted: &[&str]) -> Result<Vec<(String, String)>> {
        let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
        let choice = read_index(INDEX.as_bytes(), &wanted)?;
        let files = choice.files.iter().flat_map(|(stream, files)| files.iter().map(move |file| (stream, file)));
        Ok(files.map(|(stream, file)| (stream.clone(), file.path.display().to_string())).collect())
    }

    #[test]
    fn files_are_chosen_by_whole_names() {
        let pair = |stream: &str, path: &str| (stream.to_owned(), path.to_owned());
        assert_eq!(chosen(&["base/5"]).unwrap(), [pair("base-01", "base/5/1")]);
        assert_eq!(chosen(&["base"]).unwrap().len(), 2);
        assert_eq!(chosen(&["pg_tblspc/7"]).unwrap(), [pair("tablespace-7-01", "pg_tblspc/7/PG_15_1/5/1")]);
        let missing = chosen(&["base", "base/51"]).unwrap_err();
        assert_eq!((missing.kind(), missing.to_string().as_str()), (ErrorKind::NotFound, "the backup has no base/51"));
        assert!(chosen(&["pg_wal/0"]).unwrap_err().hint().unwrap().contains("--stream pg_wal"));
        assert_eq!(read_index(&b"{\n"[..], &[]).unwrap_err().kind(), ErrorKind::Integrity);
    }

    #[test]
    fn paths_are_those_of_a_data_directory() {
        assert_eq!(plain(Path::new("./base//5/")).unwrap(), Path::new("base/5"));
        for path in ["", ".", "/base", "../x", "base/../.."] {
            assert_eq!(plain(Path::new(path)).unwrap_err().kind(), ErrorKind::Config, "{path}");
        }
    }

    #[test]
    fn what_lies_far_apart_is_read_apart() {
        let file = |offset, size| Chosen { path: PathBuf::new(), offset, size, mode: 0 };
        let runs = runs(vec![file(1 << 30, 10), file(512, 1000), file(2048, 0), file(1 << 21, 5)]);
        let ranges: Vec<_> = runs.iter().map(|(range, files)| (range.clone(), files.len())).collect();
        assert_eq!(ranges, [(512..(1 << 21) + 5, 3), (1 << 30..(1 << 30) + 10, 1)]);
    }
}
