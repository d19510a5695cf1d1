//! PostgreSQL's manifest on its way from the repository: what to check against, and afterwards the words for what was wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::HEXLOWER;

use super::check::{Checker, WrongFile, not_as_the_manifest_says};
use super::destination::Destination;
use super::layout::BACKUP_MANIFEST;
use super::{ClusterRestore, shown};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::ClusterEntry;
use crate::postgres::backup_manifest::{self, ManifestFile, Summary};
use crate::restore::Restore;
use crate::restore::inspect::WorkerSink;
use crate::restore::stream::Share;
use crate::restore::worker::{Incoming, Worker, sink_error};

/// How many files an error names.
const NAMED_MAX: usize = 5;

/// Reads the manifest, and leaves it in the data directory, where PostgreSQL's own tools look for it.
pub(super) async fn read(
    run: &ClusterRestore,
    share: &Arc<Share>,
    destination: &Destination,
) -> Result<(Checker, Summary)> {
    let path = destination.data().join(BACKUP_MANIFEST);
    let failed = |e| sink_error(format!("cannot write {}", path.display()), e);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let bytes = run.backup.manifest().stream(BACKUP_MANIFEST).map_or(0, |stream| stream.bytes);
    pass(run, Some(share), move |incoming| {
        let mut checker = Checker::new(bytes);
        let summary = backup_manifest::read(Tee { incoming, file }, |entry| checker.expect(&entry))?;
        Ok((checker, summary))
    })
    .await
}

/// What the log's ranges must be, by what the backup says of itself.
pub(super) fn check_ranges(summary: &Summary, cluster: &ClusterEntry) -> Result<()> {
    let (first, last) =
        (summary.wal_ranges.iter().map(|r| r.start).min(), summary.wal_ranges.iter().map(|r| r.end).max());
    if (first, last) == (Some(cluster.start_lsn), Some(cluster.stop_lsn)) {
        return Ok(());
    }
    let message = "the backup's own manifest names other log than the backup itself does";
    Err(Error::new(ErrorKind::Integrity, Stage::Catalog, message))
}

/// What is wrong with a file, in words.
pub(super) async fn explain_wrong(run: &ClusterRestore, wrong: WrongFile) -> Error {
    let path = wrong.path.clone();
    let found = find(run, move |file| file.path == path).await;
    let reason = match found.as_deref() {
        Ok([file, ..]) => difference(&wrong, file),
        Ok([]) => "it is not in the manifest".to_owned(),
        Err(error) => format!("the manifest could not be read again: {error}"),
    };
    not_as_the_manifest_says(&shown(&wrong.path)).with_source(io::Error::other(reason))
}

/// How a file differs from the one in the manifest.
pub(super) fn difference(wrong: &WrongFile, file: &ManifestFile) -> String {
    if file.size != wrong.size {
        return format!("it has {} bytes and should have {}", wrong.size, file.size);
    }
    let (is, should) = (HEXLOWER.encode(&wrong.checksum), HEXLOWER.encode(&file.checksum));
    format!("its checksum is {is} and should be {should}")
}

/// Which files are missing, in words.
pub(super) async fn explain_incomplete(run: &ClusterRestore, destination: &Arc<Destination>) -> Error {
    let of = Arc::clone(destination);
    let missing = find(run, move |file| !is_there(&of, file)).await.unwrap_or_default();
    let names: Vec<String> = missing.iter().take(NAMED_MAX).map(|file| shown(&file.path)).collect();
    let message = match names.is_empty() {
        true => "the restored files are not those of the backup's own manifest".to_owned(),
        false => format!("files of the backup's own manifest are missing from the backup: {}", names.join(", ")),
    };
    let more = if missing.len() > NAMED_MAX { ", …" } else { "" };
    Error::new(ErrorKind::Integrity, Stage::Sink, message + more)
}

fn is_there(destination: &Destination, file: &ManifestFile) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(&file.path));
    let path =
        if path == Path::new(super::extract::PG_CONTROL) { Path::new(super::extract::PG_CONTROL_ASIDE) } else { path };
    fs::symlink_metadata(destination.locate(path)).is_ok_and(|metadata| metadata.len() == file.size)
}

/// The files of the manifest that are `wanted`; no more than can be named.
async fn find(
    run: &ClusterRestore,
    wanted: impl Fn(&ManifestFile) -> bool + Send + 'static,
) -> Result<Vec<ManifestFile>> {
    pass(run, None, move |incoming| {
        let mut found = Vec::new();
        backup_manifest::read(incoming, |file| {
            if found.len() <= NAMED_MAX && wanted(&file) {
                found.push(file);
            }
            Ok(())
        })?;
        Ok(found)
    })
    .await
}

/// Has a thread read the manifest's stream.
pub(super) async fn pass<T: Send + 'static>(
    run: &ClusterRestore,
    share: Option<&Arc<Share>>,
    read: impl FnOnce(Incoming) -> Result<T> + Send + 'static,
) -> Result<T> {
    let restore = run.backup.restore(BACKUP_MANIFEST)?.limits(run.limits).cancel_on(&run.cancel);
    let restore = match share {
        Some(share) => restore.sharing(share, &Arc::default()),
        None => restore,
    };
    read_by_thread(restore, read).await
}

/// Has a thread read what is restored; returns what that makes of it.
pub(super) async fn read_by_thread<T: Send + 'static>(
    restore: Restore,
    read: impl FnOnce(Incoming) -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    let worker = Worker::spawn(move |incoming| {
        let read = read(incoming)?;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        Ok(())
    })?;
    restore.into(WorkerSink(worker)).wait().await?;
    let read = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    read.ok_or_else(|| Error::internal(Stage::Sink, "the stream's reader ended early"))
}

/// Writes what is read to a file too.
struct Tee {
    incoming: Incoming,
    file: File,
}

impl Read for Tee {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.incoming.read(room)?;
        self.file.write_all(&room[..n]).map_err(|e| io::Error::other(sink_error("cannot write backup_manifest", e)))?;
        Ok(n)
    }
}
