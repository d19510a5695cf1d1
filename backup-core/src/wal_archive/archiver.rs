//! Archiving: what `archive_command` does.

use std::fmt;
use std::num::NonZero;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Mark};
use super::epoch::Epochs;
use super::local_file::{Digested, LocalFile};
use super::reference::Reference;
use super::seal::{Sealing, Unsealed, Written};
use super::stored::StoredFile;
use super::{CHUNK_SIZE, Tools};
use crate::clock::{Clock, SystemClock};
use crate::compress::Compression;
use crate::encrypt::Suite;
use crate::encrypt::signature::SigningKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::Repository;
use crate::repository::layout::{TailPiece, TargetName, WalPath};

/// The level of compression unless asked otherwise. Measured on segments of a busy cluster: see `docs/ARCHIVING.md`.
const COMPRESSION: Compression = Compression::Zstd(1);

/// Stores WAL files in a repository. Cheap to clone; clones share keys and threads.
#[derive(Clone)]
pub struct Archiver(Arc<Inner>);

struct Inner {
    repository: Repository,
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

/// How an [`Archiver`] works; all have defaults.
#[derive(Debug, Clone)]
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
    /// Archives files of `target` into `repository`.
    ///
    /// # Errors
    /// `Internal` when no threads can be started.
    pub fn new(repository: Repository, target: TargetName, epochs: Epochs, options: ArchiverOptions) -> Result<Self> {
        let ArchiverOptions {
            system_identifier,
            compression,
            suite,
            signing_key,
            look_ahead,
            workers,
            clock,
            cancel: stop,
        } = options;
        let tools = Tools::new(workers, CHUNK_SIZE)?;
        let inner = Inner {
            repository,
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

    /// Archives the file at `path`, whose last part is its name. `Ok` if and only if it is durable in the repository.
    ///
    /// The same file again is `Ok`; a different one of that name is an error of kind `Storage`, and the stored one stays. What waits behind a
    /// segment ([`ArchiverOptions::look_ahead`]) may be archived with it; nothing about that makes this call fail.
    ///
    /// Not cancel safe: cancel with the token, and wait.
    pub async fn push(&self, path: &FilePath) -> Result<Pushed> {
        let file = LocalFile::open(path, self.0.system_identifier).await?;
        let digested = file.digest(&self.0.tools).await?;
        let Some(ahead) = Ahead::beside(&file) else {
            return self.store(&file, &digested, &self.0.stop).await.map(|(pushed, _)| pushed);
        };
        if self.is_durable(&file, &digested, ahead.mark_of(file.name).await).await {
            return Ok(Pushed::Ahead);
        }
        ahead.tidy(self.0.clock.now(), &file).await;
        ahead.while_pushing(self, &file, &digested, self.0.look_ahead).await
    }

    /// Whether an earlier call has stored this very file in this very repository, and it still is there.
    async fn is_durable(&self, file: &LocalFile, digested: &Digested, mark: Option<Mark>) -> bool {
        let Some(mark) = mark else { return false };
        let archive = self.archive_of(file);
        if !mark.is_of(&self.0.repository, &archive, file.name, digested) {
            return false;
        }
        let Some(object) = mark.object_path(&archive, file.name) else { return false };
        let exists = |path: Path| async move { self.0.repository.store().head(&path).await.map(|meta| meta.size) };
        let Ok(size) = exists(object.clone()).await else { return false };
        // A large object is nothing without what refers to it.
        size == mark.object_bytes
            && (object == archive.file(file.name) || exists(archive.file(file.name)).await.is_ok())
    }

    /// The mark that says that `file` was stored as `written`.
    pub(super) fn mark(&self, file: &LocalFile, digested: &Digested, written: &Written) -> Mark {
        Mark::new(&self.0.repository, &self.archive_of(file), file.name, digested, written)
    }

    /// Opens and stores a file that nobody asked for yet.
    pub(super) async fn store_ahead(&self, path: &FilePath, stop: &CancellationToken) -> Result<Mark> {
        let file = LocalFile::open(path, self.0.system_identifier).await?;
        let digested = file.digest(&self.0.tools).await?;
        let (_, written) = self.store(&file, &digested, stop).await?;
        Ok(self.mark(&file, &digested, &written))
    }

    /// How many files are stored at once: a disk is kept busy by few, and what goes over a network waits most of the time.
    pub(super) fn parallel(&self) -> usize {
        if self.0.repository.publishes_once() { 2 } else { 4 }
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Stores a file that was received. As with [`push`](Self::push), the same one again is `Ok`.
    pub(super) async fn store_received(&self, cluster: SystemIdentifier, name: WalFile, bytes: Bytes) -> Result<()> {
        let file = LocalFile::received(name, cluster, bytes);
        let digested = file.digest(&self.0.tools).await?;
        self.store(&file, &digested, &self.0.stop).await.map(drop)
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
        let epoch = self.0.epochs.next().await?;
        let name = archive.tail_piece_name(segment, piece);
        let path = archive.tail_piece(segment, piece);
        let unsealed = Unsealed { file: &file, digested: &digested, name, epoch: &epoch };
        let paths = (path.clone(), path);
        self.sealing().write(&self.0.repository, paths, &unsealed, self.0.stop.cancelled()).await.map(drop)
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.0.repository
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

    /// Stores a file, unless it is there.
    pub(super) async fn store(
        &self,
        file: &LocalFile,
        digested: &Digested,
        stop: &CancellationToken,
    ) -> Result<(Pushed, Written)> {
        let archive = self.archive_of(file);
        let repository = &self.0.repository;
        // Looking is cheap in a directory, and all that can be done where conditions are ignored. Elsewhere the create tells.
        if (repository.publishes_once() || !repository.conditional_put())
            && let Some(found) = StoredFile::find(repository, &archive, file.name).await?
        {
            return compare(found, file, digested).await;
        }
        let error = match self.create(&archive, file, digested, stop).await {
            Ok(written) => return Ok((Pushed::Stored, written)),
            Err(error) => error,
        };
        if !matches!(error.kind(), ErrorKind::Storage | ErrorKind::Unavailable) {
            return Err(error);
        }
        // Somebody was faster, an answer was lost, or it failed.
        match StoredFile::find(repository, &archive, file.name).await {
            Ok(Some(found)) => compare(found, file, digested).await,
            Ok(None) | Err(_) => Err(error),
        }
    }

    async fn create(
        &self,
        archive: &WalPath,
        file: &LocalFile,
        digested: &Digested,
        stop: &CancellationToken,
    ) -> Result<Written> {
        let epoch = self.0.epochs.next().await?;
        let unsealed = Unsealed { file, digested, name: archive.name(file.name), epoch: &epoch };
        let paths = (archive.file(file.name), archive.large_file(file.name));
        let written = self.sealing().write(&self.0.repository, paths, &unsealed, stop.cancelled()).await?;
        if written.path != archive.file(file.name) {
            self.refer(archive, file.name, &written).await?;
        }
        Ok(written)
    }

    /// Makes a large object that of `file`; removes it when another is that already.
    async fn refer(&self, archive: &WalPath, file: WalFile, written: &Written) -> Result<()> {
        let object = written.path.filename().unwrap_or_default().to_owned();
        let reference = Reference { object, bytes: written.bytes, critical: Vec::new() };
        let payload = PutPayload::from(reference.encode());
        let Err(error) = self.0.repository.put_once(&archive.file(file), payload).await else { return Ok(()) };
        // Only when the answer is certain: one that was lost may have made it the file's.
        let taken = StoredFile::find(&self.0.repository, archive, file).await;
        if matches!(&taken, Ok(Some(found)) if *found.path() != written.path)
            && let Err(cleanup) = self.0.repository.store().delete(&written.path).await
        {
            return Err(error.with_cleanup(self.0.repository.error(cleanup, "remove", &written.path)));
        }
        Err(error.at(Stage::Upload))
    }
}

/// Whether what is stored is the file at hand.
async fn compare(found: StoredFile, file: &LocalFile, digested: &Digested) -> Result<(Pushed, Written)> {
    if found.plaintext != digested.plaintext {
        return Err(different(&found, file));
    }
    if let Some(problem) = found.wrong().await? {
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
            .field("repository", &self.0.repository)
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}
