//! Archiving: what `archive_command` does.

use std::fmt;
use std::num::NonZero;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Mark};
use super::epoch::{Epoch, Epochs};
use super::local_file::{Digested, LocalFile, check_history};
use super::reference::Reference;
use super::seal::{Sealing, Written};
use super::stored::StoredFile;
use super::{CHUNK_SIZE, Tools};
use crate::clock::{Clock, SystemClock};
use crate::compress::Compression;
use crate::encrypt::Suite;
use crate::encrypt::signature::SigningKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::keys::EncryptionContext;
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::layout::{TailPiece, TargetName, WalPath};
use crate::repository::{ByteBudget, Repositories, Repository};

mod everywhere;

use everywhere::Away;
pub use everywhere::Missed;
pub(super) use everywhere::Stored;

/// The level of compression unless asked otherwise. Measured on segments of a busy cluster: see `docs/ARCHIVING.md`.
const COMPRESSION: Compression = Compression::Zstd(1);

/// What a check of one stored object may hold in memory.
const CHECK_BYTES: usize = 6 << 20;

/// How long an optional repository may keep the archiver waiting unless asked otherwise: PostgreSQL has more to archive.
const OPTIONAL_LAG: Duration = Duration::from_secs(10);

/// Stores WAL files in a repository, or in several at once. Cheap to clone; clones share keys and threads.
#[derive(Clone)]
pub struct Archiver(Arc<Inner>);

struct Inner {
    repositories: Repositories,
    /// Optional repositories that failed a moment ago.
    away: Mutex<Vec<Away>>,
    optional_lag: Duration,
    on_missed: Option<MissedCallback>,
    target: TargetName,
    epochs: Epochs,
    system_identifier: Option<SystemIdentifier>,
    compression: Compression,
    suite: Suite,
    signing_key: Option<SigningKey>,
    look_ahead: usize,
    tools: Tools,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
}

/// Is told that an optional repository misses a file. Called on the task that archives: return soon.
pub type MissedCallback = Arc<dyn Fn(&Missed) + Send + Sync>;

/// How an [`Archiver`] works; all have defaults.
#[derive(Clone)]
#[non_exhaustive]
pub struct ArchiverOptions {
    /// The cluster, where neither the file nor a data directory tells.
    pub system_identifier: Option<SystemIdentifier>,
    /// zstd level 1 unless set.
    pub compression: Compression,
    /// AES-256-GCM unless set.
    pub suite: Suite,
    /// Signs what is stored; nothing is signed unless set.
    pub signing_key: Option<SigningKey>,
    /// How long an optional repository may keep the others waiting; 10 s unless set.
    pub optional_lag: Duration,
    /// Is told which files an optional repository misses.
    pub on_missed: Option<MissedCallback>,
    /// How many of the segments that wait behind the one that is asked for are archived with it; 0 unless set.
    pub look_ahead: usize,
    /// Threads that compress and encrypt.
    pub workers: NonZero<usize>,
    /// The clock that times are taken from.
    pub clock: Arc<dyn Clock>,
    /// Ends uploads early when it is cancelled.
    pub cancel: CancellationToken,
}

impl Default for ArchiverOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            system_identifier: None,
            compression: COMPRESSION,
            suite: Suite::default(),
            signing_key: None,
            optional_lag: OPTIONAL_LAG,
            on_missed: None,
            look_ahead: 0,
            workers: NonZero::new(cores.min(4)).unwrap_or(NonZero::<usize>::MIN),
            clock: Arc::new(SystemClock),
            cancel: CancellationToken::new(),
        }
    }
}

/// How a file came to be durable in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pushed {
    /// It was stored now.
    Stored,
    /// The same file was there already.
    AlreadyThere,
    /// It had been stored when an earlier file was asked for.
    Ahead,
}

impl Archiver {
    /// Archives files of `target` into a repository, or into several at once, which are opened when they are needed.
    ///
    /// # Errors
    /// `Internal` when no threads can be started.
    pub fn new(
        repositories: impl Into<Repositories>,
        target: TargetName,
        epochs: Epochs,
        options: ArchiverOptions,
    ) -> Result<Self> {
        let ArchiverOptions {
            system_identifier,
            compression,
            suite,
            signing_key,
            optional_lag,
            on_missed,
            look_ahead,
            workers,
            clock,
            cancel: stop,
        } = options;
        let tools = Tools::new(workers, CHUNK_SIZE)?;
        let inner = Inner {
            repositories: repositories.into(),
            away: Mutex::default(),
            optional_lag,
            on_missed,
            target,
            epochs,
            system_identifier,
            compression,
            suite,
            signing_key,
            look_ahead,
            tools,
            clock,
            stop,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Archives the file at `path`, whose last part is its name. `Ok` if and only if it is durable in every required repository; which optional
    /// ones miss it, [`ArchiverOptions::on_missed`] is told.
    ///
    /// The same file again is `Ok`; a different one of that name is an error of kind `Storage`, and the stored one stays. What waits behind a
    /// segment ([`ArchiverOptions::look_ahead`]) may be archived with it; nothing about that makes this call fail.
    ///
    /// Not cancel safe: cancel with the token, and wait.
    pub async fn push(&self, path: &FilePath) -> Result<Pushed> {
        let file = LocalFile::open(path, self.0.system_identifier).await?;
        let digested = file.digest(&self.0.tools).await?;
        let ahead = Ahead::beside(&file);
        let mark = match &ahead {
            Some(ahead) => ahead.mark_of(file.name).await,
            None => None,
        };
        if let Some(mark) = mark {
            // What was archived ahead waits for no optional repository once more.
            self.unless_stopped(self.open_required()).await?;
            if self.is_durable(&file, &digested, &mark).await {
                self.tell_missed(&mark.missed);
                return Ok(Pushed::Ahead);
            }
        }
        self.unless_stopped(self.open()).await?;
        let Some(ahead) = ahead else {
            return self.store(&file, &digested, &self.0.stop).await.map(|stored| self.told(&stored));
        };
        ahead.tidy(self.0.clock.now(), &file).await;
        let stored = ahead.while_pushing(self, &file, &digested, self.0.look_ahead).await?;
        Ok(self.told(&stored))
    }

    async fn unless_stopped(&self, opening: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::select! {
            opened = opening => opened,
            () = self.0.stop.cancelled() => Err(Error::cancelled(Stage::Setup)),
        }
    }

    fn told(&self, stored: &Stored) -> Pushed {
        self.tell_missed(&stored.missed);
        stored.pushed
    }

    /// Whether an earlier call has stored this very file in all of these very repositories that are required, and it still is there.
    async fn is_durable(&self, file: &LocalFile, digested: &Digested, mark: &Mark) -> bool {
        let archive = self.archive_of(file);
        if !mark.is_of(&archive, file.name, digested) {
            return false;
        }
        for member in self.0.repositories.members().iter().filter(|member| member.is_required()) {
            let Some(repository) = member.repository() else { return false };
            let Some((object, bytes)) = mark.object_in(repository, &archive, file.name) else { return false };
            let exists = |path: Path| async move { repository.store().head(&path).await.map(|meta| meta.size) };
            let Ok(size) = exists(object.clone()).await else { return false };
            // A large object is nothing without what refers to it.
            let whole =
                size == bytes && (object == archive.file(file.name) || exists(archive.file(file.name)).await.is_ok());
            if !whole {
                return false;
            }
        }
        true
    }

    /// The mark that says that `file` was stored so.
    pub(super) fn mark(&self, file: &LocalFile, digested: &Digested, stored: &Stored) -> Mark {
        Mark::new(&self.archive_of(file), file.name, digested, stored)
    }

    /// Opens and stores a file that nobody asked for yet.
    pub(super) async fn store_ahead(&self, path: &FilePath, stop: &CancellationToken) -> Result<Mark> {
        let file = LocalFile::open(path, self.0.system_identifier).await?;
        let digested = file.digest(&self.0.tools).await?;
        let stored = self.store(&file, &digested, stop).await?;
        Ok(self.mark(&file, &digested, &stored))
    }

    /// How many files are stored at once: a disk is kept busy by few, and what goes over a network waits most of the time.
    pub(super) fn parallel(&self) -> usize {
        if self.0.repositories.open().all(Repository::publishes_once) { 2 } else { 4 }
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Stores a file that was received. As with [`push`](Self::push), the same one again is `Ok`. Returns the repositories that have it.
    pub(super) async fn store_received(
        &self,
        cluster: SystemIdentifier,
        name: WalFile,
        bytes: Bytes,
    ) -> Result<Vec<Repository>> {
        if let WalFile::History(timeline) = name {
            check_history(timeline, &bytes, FilePath::new(&name.to_string()))?;
        }
        let file = LocalFile::received(name, cluster, bytes);
        let digested = file.digest(&self.0.tools).await?;
        self.open().await?;
        let stored = self.store(&file, &digested, &self.0.stop).await?;
        self.tell_missed(&stored.missed);
        let has = |repository: &&Repository| stored.copies.iter().any(|(id, _)| id == repository.id());
        Ok(self.0.repositories.open().filter(has).cloned().collect())
    }

    /// Stores a piece of a segment that is still being received.
    pub(super) async fn store_piece(
        &self,
        cluster: SystemIdentifier,
        segment: SegmentName,
        piece: &TailPiece,
        bytes: Bytes,
    ) -> Result<()> {
        let archive = self.0.target.wal_of(cluster);
        let file = LocalFile::received(WalFile::Segment(segment), cluster, bytes);
        let digested = file.digest(&self.0.tools).await?;
        self.open().await?;
        let name = archive.tail_piece_name(segment, piece);
        self.store_object(&file, &digested, name, archive.tail_piece(segment, piece)).await
    }

    /// The data key for one more file.
    async fn epoch(&self) -> Result<Arc<Epoch>> {
        let context = EncryptionContext::of_wal(&self.0.target);
        tokio::select! {
            epoch = self.0.epochs.next(&context) => epoch,
            () = self.0.stop.cancelled() => Err(Error::cancelled(Stage::Keys)),
        }
    }

    pub(super) fn repositories(&self) -> &Repositories {
        &self.0.repositories
    }

    pub(super) fn target(&self) -> &TargetName {
        &self.0.target
    }

    fn sealing(&self) -> Sealing {
        Sealing {
            tools: self.0.tools.clone(),
            compression: self.0.compression,
            suite: self.0.suite,
            signing_key: self.0.signing_key.clone(),
            created: self.0.clock.now(),
        }
    }

    fn archive_of(&self, file: &LocalFile) -> WalPath {
        self.0.target.wal_of(file.system_identifier)
    }
}

/// Makes a large object that of `file`; removes it when another is that already.
async fn refer(repository: &Repository, archive: &WalPath, file: WalFile, written: &Written) -> Result<()> {
    let object = written.path.filename().unwrap_or_default().to_owned();
    let reference = Reference { object, bytes: written.bytes, critical: Vec::new() };
    let payload = PutPayload::from(reference.encode());
    let Err(error) = repository.put_once(&archive.file(file), payload).await else { return Ok(()) };
    // Only when the answer is certain: one that was lost may have made it the file's.
    let taken = StoredFile::find(repository, archive, file).await;
    if matches!(&taken, Ok(Some(found)) if *found.path() != written.path)
        && let Err(cleanup) = repository.store().delete(&written.path).await
    {
        return Err(error.with_cleanup(repository.error(cleanup, "remove", &written.path)));
    }
    Err(error.at(Stage::Upload))
}

/// Whether what is stored is the file at hand.
async fn compare(found: StoredFile, file: &LocalFile, digested: &Digested) -> Result<(Pushed, Written)> {
    if found.plaintext != digested.plaintext {
        return Err(different(&found, file).lasting());
    }
    if let Some(problem) = found.wrong(&ByteBudget::new(CHECK_BYTES)).await? {
        let message = format!("{} is archived already, but {}: {problem}", file.name, found.path());
        return Err(Error::new(ErrorKind::Integrity, Stage::Commit, message)
            .with_hint("move the damaged object away: the next attempt then stores the file again"));
    }
    Ok((Pushed::AlreadyThere, Written { path: found.path().clone(), bytes: found.bytes() }))
}

fn different(found: &StoredFile, file: &LocalFile) -> Error {
    let archived = found.header().created;
    let object = found.path();
    match file.name {
        WalFile::History(timeline) => {
            let message = format!(
                "timeline {timeline} is taken: {object}, archived at {archived}, is the history of another timeline {timeline}"
            );
            Error::new(ErrorKind::Storage, Stage::Commit, message).with_hint(
                "two servers of this cluster were promoted apart from each other. Decide which one lives on; let the other archive nothing, or \
                 elsewhere (--target); see 'When a timeline is taken' in docs/ARCHIVING.md",
            )
        }
        name => {
            let message =
                format!("another {name} is archived already: {object}, archived at {archived}; it was left as it is");
            Error::new(ErrorKind::Storage, Stage::Commit, message).with_hint(
                "do two servers archive to this target? A copy of a cluster must archive nothing, or elsewhere (--target)",
            )
        }
    }
}

impl fmt::Debug for Archiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archiver")
            .field("repositories", &self.0.repositories)
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ArchiverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiverOptions")
            .field("system_identifier", &self.system_identifier)
            .field("compression", &self.compression)
            .field("look_ahead", &self.look_ahead)
            .field("optional_lag", &self.optional_lag)
            .finish_non_exhaustive()
    }
}
