//! A place where backups are kept: an object store with a `repository.json` in it.
//!
//! The object store is the only server. There is no catalogue beside what is stored, and no lock: names cannot be guessed, and
//! the commit point is one object that is created once.

mod aws_profile;
mod azure;
mod budget;
mod catalog;
pub mod census;
pub mod copy;
mod document;
mod endpoint;
pub(crate) mod environment;
mod failure;
mod fall_over;
mod gcs;
pub mod layout;
mod local;
mod location;
pub mod pins;
pub mod prune;
mod put;
mod remote;
pub mod retention;
pub mod rewrap;
pub(crate) mod rewraps;
pub(crate) mod running;
pub mod runs;
pub(crate) mod s3;
mod sealed;
mod several;
mod trust;
mod uploads;
pub mod usage;
pub mod verify;

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use crate::clock::{Clock, SystemClock};
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};
use document::Document;
use location::Connection;
use uploads::Uploads;

pub use azure::AzureOptions;
pub(crate) use budget::ByteBudget;
pub use catalog::{Found, Listed};
pub(crate) use catalog::{no_backup, unreadable};
pub use failure::storage_error;
pub use fall_over::{FallOver, FallOverCallback};
pub use gcs::GcsOptions;
pub use location::{LOCAL_PART_BYTES, Location, REMOTE_PART_BYTES};
pub(crate) use put::is_taken;
pub use s3::{S3Checksum, S3Encryption, S3Options};
pub use several::{LAG_DEFAULT, Member, Repositories};
pub(crate) use several::{no_required, too_late};
pub use trust::is_untrusted;

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    id: Arc<str>,
    name: Arc<str>,
    part_bytes: usize,
    conditional_put: bool,
    publishes_once: bool,
    directory: Option<Arc<FilePath>>,
    uploads: Option<Arc<Uploads>>,
    trusted: Arc<[Signer]>,
    /// All that are read through `store`, where it reads from several.
    sources: Option<Arc<fall_over::Sources>>,
}

/// What [`Repository::init`] found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Init {
    /// Whether the repository is new. Otherwise it was there already, and is as it was.
    pub created: bool,
    /// What the user should know about this store.
    pub warning: Option<String>,
}

impl Repository {
    /// Makes a repository, or opens the one that is there.
    ///
    /// A directory is made if it is missing; a bucket is not. The store is asked whether it honours create-only requests, by
    /// creating `repository.json` twice: that leaves nothing else behind and needs no permission to delete.
    ///
    /// Cancel safety: not cancelled half way, but what was done stays; call it again.
    pub async fn init(location: &Location, clock: &dyn Clock) -> Result<(Self, Init)> {
        let connection = location.create()?;
        let (found, created) = match Self::read_document(&connection, location).await? {
            Some(bytes) => (bytes, false),
            None => Self::create_document(&connection, location, clock).await?,
        };
        let mut document = Document::decode(&found, location)?;
        if !document.conditional_put() && honours_create(&connection, location, &found).await? {
            let honest = document.with_conditional_put(&found)?;
            overwrite(&connection, location, honest).await?;
            document.set_conditional_put();
        }
        let warning = (!document.conditional_put()).then(|| {
            format!(
                "{location} replaces objects even when asked not to (it ignores If-None-Match); backups are kept apart by their \
                 unguessable names alone"
            )
        });
        Ok((Self::new(connection, location, &document), Init { created, warning }))
    }

    /// A new repository in memory: for tests, and for embedders who bring no store.
    pub async fn in_memory() -> Result<Self> {
        Self::init(&Location::memory(), &SystemClock).await.map(|(repository, _)| repository)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Config`] when it needs a newer release, and those of [`storage_error`].
    pub async fn open(location: &Location) -> Result<Self> {
        let connection = location.connect()?;
        let Some(bytes) = Self::read_document(&connection, location).await? else {
            return Err(Error::new(ErrorKind::NotFound, Stage::Setup, format!("there is no repository at {location}"))
                .with_hint("check the address; to make a new repository there, run 'backup init'"));
        };
        let document = Document::decode(&bytes, location)?;
        Ok(Self::new(connection, location, &document))
    }

    fn new(connection: Connection, location: &Location, document: &Document) -> Self {
        Self {
            store: connection.store,
            id: document.id().into(),
            name: location.to_string().into(),
            part_bytes: connection.part_bytes,
            conditional_put: document.conditional_put(),
            publishes_once: connection.publishes_once,
            directory: location.as_directory().map(Arc::from),
            uploads: connection.uploads.map(Arc::new),
            trusted: location.trusted().into(),
            sources: None,
        }
    }

    /// The store; paths in it are those of [`layout`].
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The repository's own random id, which tells it from another at the same address.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address, for people. Holds no secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size in which this store likes its parts.
    pub fn part_bytes(&self) -> usize {
        self.part_bytes
    }

    /// Whether the store refuses to replace an object when asked to. `false` means that names alone keep objects apart.
    pub fn conditional_put(&self) -> bool {
        self.conditional_put
    }

    /// Whether a multipart upload never replaces an object that came to be meanwhile: so in a local directory, and in no other store.
    pub(crate) fn publishes_once(&self) -> bool {
        self.publishes_once
    }

    /// Reads `repository.json` again, to learn whether this place still is what it was when it was opened. After "not found" this tells an
    /// object that does not exist from a bucket that is gone, a directory that is not mounted any more and a prefix that is another's.
    ///
    /// # Errors
    /// `Unavailable` when it is not there, or is another repository's, and those of [`storage_error`]. Cancel safe.
    pub async fn confirm(&self) -> Result<()> {
        let path = layout::repository();
        let found = self.read_small(&path, document::LEN_MAX).await?;
        if found.as_deref().is_some_and(|bytes| Document::has_id(bytes, &self.id)) {
            return Ok(());
        }
        let what = if found.is_some() { "is now that of another repository" } else { "is gone" };
        Err(Error::new(ErrorKind::Unavailable, Stage::Catalog, format!("{} {what}", self.address(&path)))
            .with_hint("is the directory still mounted, and the bucket still there?"))
    }

    /// Whether an object is there still, of which something was wrong: what a prune removed meanwhile is not damaged. That it is gone is believed
    /// only of a repository that is not gone itself. Cancel safe.
    pub(crate) async fn still_has(&self, path: &Path) -> Result<bool> {
        match self.store.head(path).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => self.confirm().await.map(|()| false),
            Err(e) => Err(self.error(e, "read", path).at(Stage::Fetch)),
        }
    }

    /// The address of an object, for people: of several repositories, where it was last read.
    pub fn address(&self, path: &Path) -> String {
        if let Some(elsewhere) = self.sources.as_ref().and_then(|sources| sources.address(path)) {
            return elsewhere;
        }
        format!("{}/{path}", self.name.trim_end_matches('/'))
    }

    /// [`storage_error`] about an object of this repository; `verb` as in "read".
    pub fn error(&self, error: StoreError, verb: &str, path: &Path) -> Error {
        storage_error(error, format!("cannot {verb} {}", self.address(path)))
    }

    /// Reads a whole object of at most `bytes_max` bytes; `None` when it does not exist.
    ///
    /// Cancel safe.
    pub async fn read_small(&self, path: &Path, bytes_max: usize) -> Result<Option<Bytes>> {
        read_small(&*self.store, path, bytes_max, || self.address(path)).await
    }

    /// Creates an object once and for all.
    ///
    /// An ambiguous answer (a time-out, "already exists") is resolved by reading back: the same bytes are success, none are tried
    /// again, others are an error and stay untouched. A store that ignores conditions is looked at before it is written to, which is all that can
    /// be done there.
    ///
    /// Cancel safety: the object may or may not have been created; call it again with the same bytes.
    pub async fn put_once(&self, path: &Path, payload: PutPayload) -> Result<()> {
        let address = self.address(path);
        if !self.conditional_put {
            match put::holds(&*self.store, path, &address, &payload).await? {
                Some(true) => return Ok(()),
                Some(false) => return Err(put::taken(&address)),
                None => {}
            }
        }
        put::put_once(&*self.store, path, &address, payload).await
    }

    /// The directory that it is in, if it is in one.
    fn directory(&self) -> Option<&FilePath> {
        self.directory.as_deref()
    }

    /// Makes durable that an object was removed, where the store does not do so by itself.
    pub(crate) async fn settle(&self, path: &Path) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let synced = local::settle(directory, path).await;
        synced.map_err(|e| self.error(e, "remove", path))
    }

    /// Removes files of uploads into a local directory that were never completed, and not written to since `old_before`. Returns also what could not
    /// be looked at or removed.
    pub(crate) async fn sweep_staging(
        &self,
        old_before: Timestamp,
        dry_run: bool,
    ) -> Result<(prune::Removed, Vec<prune::Problem>)> {
        let Some(directory) = &self.directory else { return Ok(Default::default()) };
        let failed = |e| storage_error(e, format!("cannot look for unfinished uploads in {self}"));
        let swept = local::sweep_staging(directory, old_before, dry_run).await.map_err(failed)?;
        let problem = |(path, error): (PathBuf, std::io::Error)| {
            let object = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
            prune::Problem { object, problem: format!("cannot sweep {}: {error}", path.display()) }
        };
        Ok((swept.removed, swept.problems.into_iter().map(problem).collect()))
    }

    async fn read_document(connection: &Connection, location: &Location) -> Result<Option<Bytes>> {
        let path = layout::repository();
        let address = || format!("{location}/{path}");
        read_small(&*connection.store, &path, document::LEN_MAX, address).await.map_err(|e| e.at(Stage::Setup))
    }

    /// Creates `repository.json`; returns what is there now and whether it is ours.
    ///
    /// It says at first that conditions are not honoured: should this end half way, nothing is trusted that was not seen.
    async fn create_document(connection: &Connection, location: &Location, clock: &dyn Clock) -> Result<(Bytes, bool)> {
        let ours = Document::generate(clock).encode()?;
        let refusal = match create(connection, &ours).await {
            Ok(()) => return Ok((ours, true)),
            Err(e) if failure::is_not_implemented(&e) => {
                overwrite(connection, location, ours.clone()).await?;
                return Ok((ours, true));
            }
            Err(e) => e,
        };
        let exists = matches!(refusal, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. });
        let error = storage_error(refusal, format!("cannot create a repository at {location}")).at(Stage::Setup);
        // Another `init` may have been faster, or the answer to this one was lost.
        if !exists && !error.is_retryable() {
            return Err(error);
        }
        match Self::read_document(connection, location).await? {
            Some(found) => Ok((found.clone(), found == ours)),
            None if !exists => Err(error),
            None => Err(Error::new(ErrorKind::Unavailable, Stage::Setup, format!("{location} contradicts itself"))
                .with_hint("the store says that repository.json exists and that it does not; try again")),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether a second create of the same bytes is refused. Harmless where it is not: the bytes are the same.
async fn honours_create(connection: &Connection, location: &Location, bytes: &Bytes) -> Result<bool> {
    match create(connection, bytes).await {
        Ok(()) => Ok(false),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(true),
        Err(e) if failure::is_not_implemented(&e) => Ok(false),
        Err(e) => Err(storage_error(e, format!("cannot probe {location}")).at(Stage::Setup)),
    }
}

async fn create(connection: &Connection, bytes: &Bytes) -> Result<(), StoreError> {
    let payload = PutPayload::from_bytes(bytes.clone());
    connection.store.put_opts(&layout::repository(), payload, PutMode::Create.into()).await.map(drop)
}

async fn overwrite(connection: &Connection, location: &Location, bytes: Bytes) -> Result<()> {
    let failed = |e| storage_error(e, format!("cannot write {location}/{}", layout::REPOSITORY)).at(Stage::Setup);
    connection.store.put(&layout::repository(), PutPayload::from_bytes(bytes)).await.map(drop).map_err(failed)
}

/// `address` tells where the object is, when it is known which store answered.
async fn read_small(
    store: &dyn ObjectStore,
    path: &Path,
    bytes_max: usize,
    address: impl Fn() -> String + Send + Sync,
) -> Result<Option<Bytes>> {
    let failed = |e| storage_error(e, format!("cannot read {}", address()));
    let result = match store.get(path).await {
        Ok(result) => result,
        Err(e @ StoreError::NotFound { .. }) => {
            let error = failed(e);
            // A missing bucket says "not found" too.
            return if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) };
        }
        Err(e) => return Err(failed(e)),
    };
    // Counted as it comes: the length is what the store says, and a store may lie.
    let mut bytes = BytesMut::new();
    let mut stream = result.into_stream();
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        if bytes.len() + piece.len() > bytes_max {
            let message = format!("{} is longer than {bytes_max} bytes", address());
            return Err(Error::new(ErrorKind::Integrity, Stage::Catalog, message));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.freeze()))
}

#[cfg(test)]
mod tests;
