//! Removing write-ahead log: one walk over the archive, which holds nothing of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore};

use super::clocks::modified;
use super::gather::Holdings;
use super::remove::Remover;
use super::report::{Removed, WalFate, WalReport};
use crate::error::{Result, Stage};
use crate::postgres::wal::{SystemIdentifier, Timeline, WalFile};
use crate::repository::Repository;
use crate::repository::layout::{TargetName, WalPath};
use crate::repository::retention::wal::Plan;
use crate::wal_archive::kept::{ArchiveObject, parse_object, refers_to};

/// Files that are looked at and deleted at once.
const DELETES: usize = 16;

/// Decides about the log of a target, file by file, and removes what goes.
pub(super) async fn prune(
    repository: &Repository,
    target: &TargetName,
    plan: &Plan,
    holdings: &Holdings,
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Vec<WalReport>> {
    let prefix = target.wal();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let walk = Walk { repository, target, plan, holdings, old_before, remover, seen: Mutex::default() };
    let listing = repository.store().list(Some(&prefix)).map_err(failed);
    let walk_ref = &walk;
    listing.try_for_each_concurrent(DELETES, |object| async move { walk_ref.look(object).await }).await?;
    Ok(walk.into_reports())
}

type Group = (SystemIdentifier, Timeline, WalFate);

#[derive(Debug, Default)]
struct Files {
    first: String,
    last: String,
    size: Removed,
}

struct Walk<'a> {
    repository: &'a Repository,
    target: &'a TargetName,
    plan: &'a Plan,
    holdings: &'a Holdings,
    old_before: Timestamp,
    remover: &'a Remover<'a>,
    seen: Mutex<BTreeMap<Group, Files>>,
}

impl Walk<'_> {
    async fn look(&self, object: ObjectMeta) -> Result<()> {
        // What this release does not know stays.
        let Some((cluster, what)) = parse_object(self.target, &object.location) else { return Ok(()) };
        let archive = self.target.wal_of(cluster);
        let written = modified(&object);
        let by_plan = |file| self.plan.reason(cluster, file, written).map_or(WalFate::Expired, WalFate::Kept);
        let (file, fate) = match what {
            ArchiveObject::File(file) => (file, by_plan(file)),
            ArchiveObject::Large(file) => (file, self.fate_of_large(&archive, file, &object, by_plan(file)).await?),
            ArchiveObject::Piece(segment) => {
                let superseded = written <= self.old_before && self.holdings.superseded.contains(&(cluster, segment));
                let file = WalFile::Segment(segment);
                (file, if superseded { WalFate::Superseded } else { by_plan(file) })
            }
        };
        if !matches!(fate, WalFate::Kept(_)) {
            if fate == WalFate::Expired && matches!(what, ArchiveObject::Large(_)) {
                // What refers to it first, or that would refer to nothing. Listed by itself, too, so its size counts there.
                let reference = archive.file(file);
                if !self.remover.remove(&reference, 0).await? {
                    return Ok(());
                }
                self.repository.settle(&reference).await?;
            }
            self.remover.remove(&object.location, object.size).await?;
        }
        self.note((cluster, file.timeline(), fate), file, object.size);
        Ok(())
    }

    /// A large file that stays, stays if its reference leads to it.
    async fn fate_of_large(
        &self,
        archive: &WalPath,
        file: WalFile,
        object: &ObjectMeta,
        by_plan: WalFate,
    ) -> Result<WalFate> {
        if by_plan == WalFate::Expired || modified(object) > self.old_before {
            return Ok(by_plan);
        }
        let name = object.location.filename().unwrap_or_default();
        Ok(if refers_to(self.repository, archive, file, name).await? { by_plan } else { WalFate::Orphaned })
    }

    fn note(&self, group: Group, file: WalFile, bytes: u64) {
        let name = file.to_string();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let files = seen.entry(group).or_default();
        if files.first.is_empty() || name < files.first {
            files.first.clone_from(&name);
        }
        if name > files.last {
            files.last = name;
        }
        files.size += Removed { objects: 1, bytes };
    }

    fn into_reports(self) -> Vec<WalReport> {
        let seen = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let report = |((system_identifier, timeline, fate), files): (Group, Files)| WalReport {
            system_identifier,
            timeline,
            fate,
            first: files.first,
            last: files.last,
            size: files.size,
        };
        seen.into_iter().map(report).collect()
    }
}
