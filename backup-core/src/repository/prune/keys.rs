//! Removing rewraps of data keys that nothing has any more.
//!
//! Whether a backup has a data key, its manifest says. Whether a file of log has one, only its header does, so those of log stay: they cost
//! a few kilobytes, and looking costs a request for each file.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore};

use super::clocks::modified;
use super::gather::Holdings;
use super::remove::Remover;
use super::report::Removed;
use crate::error::{ErrorKind, Result, Stage};
use crate::format::{Purpose, REWRAP_LEN_MAX, Rewrap};
use crate::repository::Repository;
use crate::repository::layout::{KeyPath, TargetName};
use crate::repository::retention::Verdict;

/// Removes the rewraps of backups that are gone, if the newest of a data key is older than `old_before`.
pub(super) async fn sweep(
    repository: &Repository,
    target: &TargetName,
    holdings: &Holdings,
    verdicts: &[Verdict],
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Removed> {
    let mut removed = Removed::default();
    let kept = holdings.data_keys.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_kept());
    let Some(in_use) = kept.map(|(key, _)| key.as_deref()).collect::<Option<BTreeSet<&str>>>() else {
        // Which data key a backup has that cannot be read, nobody can tell.
        return Ok(removed);
    };
    let mut candidates: BTreeMap<KeyPath, Vec<ObjectMeta>> = BTreeMap::new();
    let prefix = target.keys();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let mut listing = repository.store().list(Some(&prefix));
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        let Some((path, _)) = target.parse_rewrap(&object.location) else { continue };
        if !in_use.contains(path.data_key()) {
            candidates.entry(path).or_default().push(object);
        }
    }
    for objects in candidates.into_values() {
        let old = objects.iter().all(|object| modified(object) <= old_before);
        if !old || !are_of_backups(repository, &objects).await? {
            continue;
        }
        for object in objects {
            if remover.remove(&object.location, object.size).await? {
                removed += Removed { objects: 1, bytes: object.size };
            }
        }
    }
    Ok(removed)
}

/// Whether all of these are rewraps, and of a backup's data key.
async fn are_of_backups(repository: &Repository, objects: &[ObjectMeta]) -> Result<bool> {
    for object in objects {
        let bytes = match repository.read_small(&object.location, REWRAP_LEN_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(e) if e.kind() == ErrorKind::Integrity => return Ok(false),
            Err(e) => return Err(e),
        };
        if !Rewrap::decode(&bytes).is_ok_and(|rewrap| rewrap.purpose == Purpose::Backup) {
            return Ok(false);
        }
    }
    Ok(true)
}
