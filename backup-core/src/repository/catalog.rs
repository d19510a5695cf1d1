//! Which backups a repository holds: listings, and in `resolve` what a name given by a person means.
//!
//! There is no index to fall out of step: ids come from a listing of folders, everything else from the manifests. In memory are the ids of
//! one target (some 50 bytes each) and a few manifests at a time.

mod resolve;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::Repository;
use super::layout::{BackupId, BackupPath, TargetName, parse_volume_name};
use super::storage_error;
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, MAGIC, Manifest};

/// Manifests on their way at once. They are small; what takes time is asking.
const FETCHES: usize = 8;

/// The error of a backup that is not there.
pub(crate) fn no_backup(path: &BackupPath) -> Error {
    Error::new(ErrorKind::NotFound, Stage::Catalog, format!("there is no backup {path}"))
        .with_hint("'backup list' shows what there is")
}

/// The error of a manifest that cannot be read.
///
/// One of a later release is not damaged; but beside volumes of this release, a manifest that claims to be of another is.
pub(crate) async fn unreadable(repository: &Repository, path: &BackupPath, error: FormatError) -> Error {
    let later = matches!(error, FormatError::Version(_) | FormatError::Critical(_));
    let (kind, what) = if later && !has_volume_of_this_release(repository, path).await {
        (ErrorKind::Config, "needs a newer release of this program")
    } else {
        (ErrorKind::Integrity, "is damaged at offset 0")
    };
    let manifest = repository.address(&path.manifest());
    Error::new(kind, Stage::Catalog, format!("{manifest} {what}")).with_source(error)
}

/// `false` too when it cannot be found out.
async fn has_volume_of_this_release(repository: &Repository, path: &BackupPath) -> bool {
    let mut listing = repository.store().list(Some(&path.prefix()));
    while let Ok(Some(object)) = listing.try_next().await {
        if object.location.filename().is_some_and(|name| parse_volume_name(name).is_some()) {
            let magic = repository.store().get_range(&object.location, 0..MAGIC.len() as u64).await;
            return magic.is_ok_and(|magic| *magic == MAGIC);
        }
    }
    false
}

/// A backup that is complete: its manifest is there.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it is.
    pub path: BackupPath,
    /// What its manifest says. Not proved: that takes the data key and [`Manifest::open`].
    pub manifest: Manifest,
    /// Who signed the manifest. That the signature is theirs is proved; whether they may write here, [`Repository::trusting`] says.
    pub signer: Option<Signer>,
    /// The manifest as stored.
    pub raw: Bytes,
    /// Why newer ones, or others of that name, were not taken: they are signed by nobody who is trusted. Only from [`Repository::resolve`]. Whoever
    /// asked should be told.
    pub passed_over: Vec<String>,
}

/// One folder of a listing.
#[derive(Debug)]
pub enum Listed {
    /// A complete backup.
    Backup(Box<Found>),
    /// No manifest: a run in progress, or what an interrupted one left.
    Unfinished(BackupPath),
    /// A manifest that cannot be read; one such must not hide all others.
    Unreadable(BackupPath, Error),
    /// A target that the store does not let this host list: another's folder, or not even a target.
    UnreadableTarget(TargetName, Error),
}

impl Repository {
    /// All targets, by name.
    ///
    /// Cancel safe, as everything that lists or reads.
    pub async fn targets(&self) -> Result<Vec<TargetName>> {
        Ok(self.folders(None).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Whether there is anything of a target. Lists nothing but its folder, so this host need not be allowed to see what others there are; what the
    /// store refuses to list is there, as far as anybody knows.
    ///
    /// # Errors
    /// When the store cannot be asked. Cancel safe.
    pub async fn has_target(&self, target: &TargetName) -> Result<bool> {
        let folder = Path::from(target.as_str());
        let first = self.store().list(Some(&folder)).try_next().await;
        match first.map_err(|e| self.error(e, "list", &folder)) {
            Ok(object) => Ok(object.is_some()),
            Err(e) if concerns_one_target(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// The ids of a target's backups, unfinished ones included, the oldest first.
    pub async fn backup_ids(&self, target: &TargetName) -> Result<Vec<BackupId>> {
        let names = self.folders(Some(&target.backups())).await?;
        let mut ids: Vec<BackupId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// What one target holds, or all: by target, the oldest first. An item is an error only when the store failed; the one target that was
    /// asked for must be readable.
    pub fn list(&self, target: Option<&TargetName>) -> BoxStream<'_, Result<Listed>> {
        let one = target.cloned();
        let only = one.is_some();
        let targets = async move {
            match one {
                Some(target) => Ok(vec![target]),
                None => self.targets().await,
            }
        };
        let targets = stream::once(targets).map_ok(|targets| stream::iter(targets).map(Ok)).try_flatten();
        let entries = targets.and_then(move |target| async move {
            let entries = match self.backup_ids(&target).await {
                Ok(ids) => ids.iter().map(|id| Entry::Backup(target.backup(id))).collect(),
                Err(error) if !only && concerns_one_target(&error) => vec![Entry::Refused(target, error)],
                Err(error) => return Err(error),
            };
            Ok(stream::iter(entries).map(Ok::<_, Error>))
        });
        let look = move |entry| async move {
            match entry {
                Entry::Backup(path) => self.look(path).await,
                Entry::Refused(target, error) => Ok(Some(Listed::UnreadableTarget(target, error))),
            }
        };
        let listed = entries.try_flatten().map_ok(look).try_buffered(FETCHES);
        listed.try_filter_map(|listed| async move { Ok(listed) }).boxed()
    }

    /// Reads a manifest; `None` when the backup is unfinished or does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] when it is damaged, answers to another name or [is not trusted](super::is_untrusted), [`ErrorKind::Config`] when it needs a newer release.
    pub async fn manifest(&self, path: &BackupPath) -> Result<Option<Found>> {
        let Some(raw) = self.read_manifest(path).await? else { return Ok(None) };
        let read = Manifest::signed_by(&raw).and_then(|signer| Ok((Manifest::decode(&raw)?, signer)));
        let (manifest, signer) = match read {
            Ok(read) => read,
            Err(e) => return Err(unreadable(self, path, e).await),
        };
        if manifest.id != path.id.as_str() || manifest.target != path.target.as_str() {
            return Err(self.moved(path, &manifest));
        }
        Ok(Some(Found { path: path.clone(), manifest, signer, raw, passed_over: Vec::new() }))
    }

    async fn look(&self, path: BackupPath) -> Result<Option<Listed>> {
        match self.manifest(&path).await {
            Ok(Some(found)) => Ok(Some(Listed::Backup(Box::new(found)))),
            // A local directory may keep an empty folder.
            Ok(None) => Ok(self.holds_anything(&path).await?.then_some(Listed::Unfinished(path))),
            // A newer format, damage, or not for this host.
            Err(e) if e.kind() == ErrorKind::Integrity || is_newer(&e) || concerns_one_target(&e) => {
                Ok(Some(Listed::Unreadable(path, e)))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether there is any object of a backup.
    pub(super) async fn holds_anything(&self, path: &BackupPath) -> Result<bool> {
        let mut objects = self.store().list(Some(&path.prefix()));
        let first = objects.try_next().await;
        first.map(|object| object.is_some()).map_err(|e| self.error(e, "list", &path.prefix()))
    }

    /// The names of the folders directly below `prefix`.
    async fn folders(&self, prefix: Option<&Path>) -> Result<Vec<String>> {
        let listing = self.store().list_with_delimiter(prefix).await;
        let listing = listing.map_err(|e| match prefix {
            Some(prefix) => self.error(e, "list", prefix),
            None => storage_error(e, format!("cannot list {self}")),
        })?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listing.common_prefixes.iter().filter_map(name).collect())
    }
}

/// What is to be looked at for a listing.
enum Entry {
    Backup(BackupPath),
    Refused(TargetName, Error),
}

/// Whether the store answered and refused: others may fare better. One that cannot be reached would refuse them all.
pub(super) fn concerns_one_target(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Config | ErrorKind::Storage) && !is_newer(error)
}

/// Whether a manifest cannot be read since a later release wrote it.
pub(super) fn is_newer(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<FormatError>())
}

#[cfg(test)]
mod tests;
