//! Looking ahead: PostgreSQL asks for one segment after the other, and those that wait behind are archived at the same time.
//!
//! What became durable that way is remembered in a folder of ours in `pg_wal`, one small file for each, so that the next call can answer at
//! once. A mark is only ever a hint: it says which repository, which bytes and which object, and all of that is compared before it is
//! believed. So it does not matter who wrote it, when, or whether it survived a crash.

use std::ffi::OsStr;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::OWN_FOLDER;
use super::archiver::{Archiver, Missed, Stored};
use super::local_file::{Digested, LocalFile};
use super::prefetched;
use crate::encrypt::random;
use crate::error::Result;
use crate::format::Plaintext;
use crate::postgres::wal::WalFile;
use crate::repository::Repository;
use crate::repository::layout::WalPath;

/// The folder of marks.
const MARKS: &str = "archived";
/// Where PostgreSQL says what is to be archived, beside the files.
const STATUS: &str = "archive_status";
/// How long the files behind may take when the one that was asked for is durable.
const GRACE: Duration = Duration::from_secs(5);
/// The longest mark that is read.
const MARK_LEN_MAX: u64 = 4096;

/// The folder of a file that PostgreSQL wants to be archived.
#[derive(Debug, Clone)]
pub(super) struct Ahead {
    pg_wal: PathBuf,
}

/// What was stored before it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    format: u32,
    archive: String,
    file: String,
    plaintext: Plaintext,
    copies: Vec<Copy>,
    /// The optional repositories that miss it: whoever asks for it is to be told.
    pub(super) missed: Vec<Missed>,
}

/// Where it is, in one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Copy {
    repository: String,
    object: String,
    object_bytes: u64,
}

/// The format of marks. One of another is not believed.
const FORMAT: u32 = 2;

impl Mark {
    pub(super) fn new(archive: &WalPath, file: WalFile, digested: &Digested, stored: &Stored) -> Self {
        let copies = stored.copies.iter().map(|(repository, written)| Copy {
            repository: repository.clone(),
            object: written.path.filename().unwrap_or_default().to_owned(),
            object_bytes: written.bytes,
        });
        Self {
            format: FORMAT,
            archive: archive.prefix().to_string(),
            file: file.to_string(),
            plaintext: digested.plaintext,
            copies: copies.collect(),
            missed: stored.missed.clone(),
        }
    }

    /// Whether it says that these bytes are stored as `file` in this archive.
    pub(super) fn is_of(&self, archive: &WalPath, file: WalFile, digested: &Digested) -> bool {
        self.format == FORMAT
            && self.archive == archive.prefix().as_ref()
            && self.file == file.to_string()
            && self.plaintext == digested.plaintext
    }

    /// The object in that very repository, which must be one of the file's own, and its size.
    pub(super) fn object_in(&self, repository: &Repository, archive: &WalPath, file: WalFile) -> Option<(Path, u64)> {
        let copy = self.copies.iter().find(|copy| copy.repository == repository.id())?;
        let own = copy.object.starts_with(&format!("{file}.")) && !copy.object.contains('/');
        own.then(|| (archive.timeline(file.timeline()).join(copy.object.as_str()), copy.object_bytes))
    }
}

impl Ahead {
    /// For a segment in a `pg_wal` whose archiving PostgreSQL keeps track of.
    pub(super) fn beside(file: &LocalFile) -> Option<Self> {
        let pg_wal = match file.path.parent()? {
            here if here.as_os_str().is_empty() => FilePath::new("."),
            pg_wal => pg_wal,
        };
        let followed = matches!(file.name, WalFile::Segment(_)) && pg_wal.join(STATUS).is_dir();
        followed.then(|| Self { pg_wal: pg_wal.to_owned() })
    }

    fn marks(&self) -> PathBuf {
        self.pg_wal.join(OWN_FOLDER).join(MARKS)
    }

    /// The mark of a file, if there is one that can be read.
    pub(super) async fn mark_of(&self, file: WalFile) -> Option<Mark> {
        let path = self.marks().join(file.to_string());
        let read = tokio::task::spawn_blocking(move || {
            let short = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MARK_LEN_MAX);
            short.then(|| std::fs::read(&path).ok()).flatten()
        });
        serde_json::from_slice(&read.await.ok()??).ok()
    }

    /// Removes marks that nobody will ask for any more, and what recovery left behind before this cluster began to archive.
    pub(super) async fn tidy(&self, now: Timestamp, asked: &LocalFile) {
        let (this, asked) = (self.clone(), asked.name.to_string());
        let tidied = tokio::task::spawn_blocking(move || {
            prefetched::tidy(&this.pg_wal, now);
            let Ok(marks) = std::fs::read_dir(this.marks()) else { return };
            for mark in marks.flatten() {
                let waits = mark.file_name() == OsStr::new(&asked) || this.is_ready(&mark.file_name());
                if !waits {
                    // What cannot be removed is not believed either.
                    let _ = std::fs::remove_file(mark.path());
                }
            }
        });
        let _ = tidied.await;
    }

    fn is_ready(&self, file: &OsStr) -> bool {
        let mut ready = file.to_owned();
        ready.push(".ready");
        self.pg_wal.join(STATUS).join(ready).exists()
    }

    /// Stores `file`, and at the same time up to `count` segments that wait behind it. Only what becomes of `file` matters.
    pub(super) async fn while_pushing(
        &self,
        archiver: &Archiver,
        file: &LocalFile,
        digested: &Digested,
        count: usize,
    ) -> Result<Stored> {
        let stop = archiver.stop().child_token();
        let slots = Arc::new(Semaphore::new(archiver.parallel().saturating_sub(1).max(1)));
        let mut others = JoinSet::new();
        for name in self.waiting_behind(file, count).await {
            let (this, archiver, stop, slots) = (self.clone(), archiver.clone(), stop.clone(), Arc::clone(&slots));
            others.spawn(async move {
                let Ok(_slot) = slots.acquire_owned().await else { return };
                if stop.is_cancelled() || this.mark_of(name).await.is_some() {
                    return;
                }
                match archiver.store_ahead(&this.pg_wal.join(name.to_string()), &stop).await {
                    Ok(mark) => this.remember(name, mark).await,
                    // PostgreSQL will ask for it, and then be told.
                    Err(error) => tracing::debug!(%error, file = %name, "not archived ahead"),
                }
            });
        }
        let pushed = archiver.store(file, digested, archiver.stop()).await;
        if pushed.is_err() {
            stop.cancel();
        }
        let rest = async { while others.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, rest).await.is_err() {
            stop.cancel();
            while others.join_next().await.is_some() {}
        }
        pushed
    }

    /// The segments that wait behind `file`, the oldest first.
    async fn waiting_behind(&self, file: &LocalFile, count: usize) -> Vec<WalFile> {
        let (status, asked) = (self.pg_wal.join(STATUS), file.name);
        if count == 0 {
            return Vec::new();
        }
        let read = tokio::task::spawn_blocking(move || {
            let mut waiting: Vec<WalFile> = std::fs::read_dir(status)?
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok())
                .filter(|name| matches!(name, WalFile::Segment(_)) && *name > asked)
                .collect();
            waiting.sort_unstable();
            waiting.truncate(count);
            Ok::<_, io::Error>(waiting)
        });
        read.await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Writes a mark, if it can be written: in a `pg_wal` that is read-only or full, the next call stores the file again and finds it there.
    async fn remember(&self, file: WalFile, mark: Mark) {
        let marks = self.marks();
        let written = tokio::task::spawn_blocking(move || {
            crate::durable::create_private_dir(&marks)?;
            let json = serde_json::to_vec(&mark)?;
            let temporary = marks.join(format!("{file}.{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>())));
            std::fs::write(&temporary, json)
                .and_then(|()| std::fs::rename(&temporary, marks.join(file.to_string())))
                .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        });
        if let Ok(Err(error)) = written.await {
            tracing::debug!(%error, %file, "cannot remember what was archived ahead");
        }
    }
}
