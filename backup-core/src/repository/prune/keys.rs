//! Removing rewraps of data keys that nothing has any more.
//!
//! Whether a backup has a data key, its manifest says. Whether a file of log has one, only its header does, so those of log stay: they cost
//! a few kilobytes, and looking costs a request for each file.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore};

use super::Prune;
use super::clocks::modified;
use super::gather::Holdings;
use super::remove::Remover;
use super::report::{Removed, UnfinishedReport};
use crate::error::{ErrorKind, Result, Stage};
use crate::format::{Purpose, REWRAP_LEN_MAX, Rewrap};
use crate::repository::Repository;
use crate::repository::layout::{BackupId, KeyPath, TargetName};
use crate::repository::retention::Verdict;

/// Removes the rewraps of backups that are gone, if the newest of a data key is older than `old_before`. None while there is a backup of which
/// nobody knows yet which data key it has: a copy brings rewraps first and manifests last.
pub(super) async fn sweep(
    prune: &Prune,
    target: &TargetName,
    holdings: &Holdings,
    verdicts: &[Verdict],
    unfinished: &[UnfinishedReport],
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Removed> {
    let (repository, mut removed) = (&prune.repository, Removed::default());
    if unfinished.iter().any(|run| run.kept) {
        return Ok(removed);
    }
    let kept = holdings.data_keys.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_kept());
    let Some(in_use) = kept.map(|(key, _)| key.as_deref()).collect::<Option<BTreeSet<&str>>>() else {
        // Which data key a backup has that cannot be read, nobody can tell.
        return Ok(removed);
    };
    // What a dry run would remove is still there.
    let is_known = |verdict: &&Verdict| verdict.is_kept() || prune.dry_run;
    let mut known: BTreeSet<&BackupId> = verdicts.iter().filter(is_known).map(|verdict| &verdict.id).collect();
    if prune.dry_run {
        known.extend(unfinished.iter().map(|run| &run.id));
    }
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
        if has_others(repository, target, &known).await? {
            break;
        }
        for object in objects {
            if remover.remove(&object.location, object.size).await? {
                removed += Removed { objects: 1, bytes: object.size };
            }
        }
    }
    Ok(removed)
}

/// Whether there is anything of a backup that is none of these: it came after everything was looked at.
async fn has_others(repository: &Repository, target: &TargetName, known: &BTreeSet<&BackupId>) -> Result<bool> {
    for id in repository.backup_ids(target).await?.iter().filter(|id| !known.contains(id)) {
        if repository.holds_anything(&target.backup(id)).await? {
            return Ok(true);
        }
    }
    Ok(false)
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
