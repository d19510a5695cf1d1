//! A base backup restored to nowhere: every file compared with PostgreSQL's own manifest, and all that differs told, not only the first.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, stream};
use tar::{Archive, Entry, EntryType};
use tokio_util::sync::CancellationToken;

use super::check::{Checker, Filter, WrongFile};
use super::decode::decode;
use super::extract::{is_wal, path_in_manifest};
use super::layout::{BACKUP_MANIFEST, Layout, Part, Root};
use super::wal::Segments;
use super::{ClusterRestore, manifest, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::Limits;
use crate::postgres::backup_manifest::{self, Summary};
use crate::restore::OpenBackup;
use crate::restore::inspect::WorkerSink;
use crate::restore::stream::Share;
use crate::restore::tree::{COPY_BYTES, EndWatch, names, no_tar};
use crate::restore::worker::Worker;

/// Streams at once: each has a thread, and more of them than a few gain nothing.
const STREAMS_MAX: usize = 3;
/// The most files that are named; all are counted.
const NAMED_MAX: usize = 1000;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    /// Streams that were read, and how that went.
    pub(crate) streams: Vec<(String, Result<()>)>,
    /// What is wrong with the cluster that they would make.
    pub(crate) findings: Vec<String>,
}

/// Reads the tar streams of a base backup, and its manifest.
///
/// # Errors
/// What keeps it from being done, such as a store that cannot be reached; damage is in what is returned.
pub(crate) async fn cluster(backup: &OpenBackup, limits: Limits, cancel: &CancellationToken) -> Result<Inspected> {
    let mut found = Inspected::default();
    let layout = match layout(backup).await {
        Ok(layout) => layout,
        // The streams are read like any other then.
        Err(e) if e.kind() == ErrorKind::Integrity => {
            found.findings.push(e.in_one_line());
            return Ok(found);
        }
        Err(e) => return Err(e),
    };
    let run = backup.restore_cluster(PathBuf::new()).limits(limits).cancel_on(cancel);
    let share = Arc::new(Share::new(limits, None));
    let (checker, summary) = match expected(&run, &share).await {
        Ok(expected) => expected,
        Err(e) if e.kind() == ErrorKind::Integrity => {
            found.streams.push((BACKUP_MANIFEST.to_owned(), Err(e)));
            return Ok(found);
        }
        Err(e) => return Err(e),
    };
    found.streams.push((BACKUP_MANIFEST.to_owned(), Ok(())));
    let manifest_bytes = backup.manifest().stream(BACKUP_MANIFEST).map_or(0, |stream| stream.bytes);
    let seen = Arc::new(Files::new(checker, manifest_bytes));
    let parts = stream::iter(&layout.parts).map(|part| one(&run, &share, &layout, part, &seen));
    let results: Vec<Result<()>> = parts.buffered(STREAMS_MAX).collect().await;
    let all_read = results.iter().all(Result::is_ok);
    found.streams.extend(layout.parts.iter().map(|part| part.stream.clone()).zip(results));
    if cancel.is_cancelled() {
        return Ok(found);
    }
    if let Err(e) = manifest::check_ranges(&summary, &layout.cluster) {
        found.findings.push(e.in_one_line());
    }
    if all_read && layout.cluster.wal_included {
        let log = seen.segments.check(&summary.wal_ranges, layout.cluster.wal_segment_bytes);
        found.findings.extend(log.err().map(|e| e.in_one_line()));
    }
    found.findings.extend(seen.differences(&run, all_read).await?);
    Ok(found)
}

async fn layout(backup: &OpenBackup) -> Result<Layout> {
    Layout::of(backup.manifest(), &backup.details().await?)
}

/// What PostgreSQL's manifest says that there should be.
async fn expected(run: &ClusterRestore, share: &Arc<Share>) -> Result<(Checker, Summary)> {
    let bytes = run.backup.manifest().stream(BACKUP_MANIFEST).map_or(0, |stream| stream.bytes);
    let read = manifest::pass(run, Some(share), move |incoming| {
        let mut checker = Checker::new(bytes);
        let summary = backup_manifest::read(incoming, |entry| checker.expect(&entry))?;
        Ok((checker, summary))
    });
    read.await
}

async fn one(run: &ClusterRestore, share: &Arc<Share>, layout: &Layout, part: &Part, seen: &Arc<Files>) -> Result<()> {
    let (root, compression, to) = (part.root, layout.compression, Arc::clone(seen));
    let worker = Worker::spawn(move |incoming| examine(decode(incoming, compression), root, &to))?;
    let restore = run.backup.restore(&part.stream)?.cancel_on(&run.cancel).sharing(share, &run.counters);
    restore.into(WorkerSink(worker)).wait().await.map(drop)
}

/// The files that came by.
#[derive(Debug)]
struct Files {
    checker: Checker,
    segments: Segments,
    /// Their paths.
    paths: Mutex<Filter>,
    wrong: Mutex<Vec<WrongFile>>,
    manifest_bytes: u64,
}

/// Goes through a tar stream to its end.
fn examine(stream: impl Read, root: Root, seen: &Files) -> Result<()> {
    let mut archive = Archive::new(EndWatch::new(stream));
    let mut buffer = vec![0; COPY_BYTES];
    for entry in archive.entries().map_err(no_tar)? {
        let mut entry = entry.map_err(no_tar)?;
        let path = entry.path().map_err(no_tar)?.into_owned();
        names(&path)?;
        if entry.header().entry_type() == EntryType::Regular {
            seen.file(&mut entry, root, &path, &mut buffer)?;
        }
    }
    archive.into_inner().finish(&mut buffer)
}

impl Files {
    fn new(checker: Checker, manifest_bytes: u64) -> Self {
        let paths = Mutex::new(Filter::new(manifest_bytes));
        Self { checker, segments: Segments::default(), paths, wrong: Mutex::default(), manifest_bytes }
    }

    fn file<R: Read>(&self, entry: &mut Entry<'_, R>, root: Root, path: &Path, buffer: &mut [u8]) -> Result<()> {
        let is_wal = is_wal(root, path);
        let algorithm = self.checker.algorithm();
        let mut hasher = if is_wal { crate::postgres::backup_manifest::Algorithm::None } else { algorithm }.hasher();
        let mut size = 0;
        loop {
            let n = entry.read(buffer).map_err(no_tar)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            size += n as u64;
        }
        if is_wal {
            self.segments.add(path, size);
            return Ok(());
        }
        let (path, checksum) = (path_in_manifest(root, path), hasher.finish());
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).add(&blake3::hash(&path).into());
        if self.checker.restored(&path, size, checksum.clone()).is_err() {
            let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            if wrong.len() < NAMED_MAX {
                wrong.push(WrongFile { path, size, checksum });
            }
        }
        Ok(())
    }

    /// What is wrong with which files, in words. Missing ones are told if `all_read`.
    async fn differences(self: Arc<Self>, run: &ClusterRestore, all_read: bool) -> Result<Vec<String>> {
        let wrong = std::mem::take(&mut *self.wrong.lock().unwrap_or_else(PoisonError::into_inner));
        if wrong.is_empty() && (self.checker.is_complete() || !all_read) {
            return Ok(Vec::new());
        }
        let paths = {
            let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *paths, Filter::new(self.manifest_bytes))
        };
        let told = manifest::pass(run, None, move |incoming| {
            let (mut found, mut known) = (Vec::new(), vec![false; wrong.len()]);
            backup_manifest::read(incoming, |file| {
                if let Some(i) = wrong.iter().position(|wrong| wrong.path == file.path) {
                    known[i] = true;
                    found.push(words(&file.path, &manifest::difference(&wrong[i], &file)));
                } else if all_read && found.len() < NAMED_MAX && !paths.has(&blake3::hash(&file.path).into()) {
                    found.push(words(&file.path, "it is missing from the backup"));
                }
                Ok(())
            })?;
            let strangers = wrong.iter().zip(known).filter(|(_, known)| !known);
            found.extend(strangers.map(|(wrong, _)| words(&wrong.path, "it is not in the manifest")));
            Ok::<Vec<String>, Error>(found)
        });
        let mut told = told.await?;
        if told.is_empty() {
            told.push("the files are not those of the backup's own manifest".to_owned());
        }
        Ok(told)
    }
}

fn words(path: &[u8], problem: &str) -> String {
    format!("{} is not as the backup's own manifest says: {problem}", shown(path))
}
