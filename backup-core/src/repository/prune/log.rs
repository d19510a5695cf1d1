//! Removing write-ahead log: one walk over the archive, which holds nothing of it, and another where there are large objects.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore};

use super::Prune;
use super::clocks::modified;
use super::gather::Holdings;
use super::remove::Remover;
use super::report::{Removed, WalFate, WalReport};
use crate::error::{Result, Stage};
use crate::postgres::wal::{SystemIdentifier, Timeline, WalFile};
use crate::repository::layout::TargetName;
use crate::repository::retention::wal::Plan;
use crate::wal_archive::kept::{ArchiveObject, parse_object, reference_to};

/// Files that are looked at and deleted at once.
const DELETES: usize = 16;

/// Decides about the log of a target, file by file, and removes what goes.
pub(super) async fn prune(
    prune: &Prune,
    target: &TargetName,
    plan: &Plan,
    holdings: &Holdings,
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Vec<WalReport>> {
    let (seen, has_large) = (Mutex::default(), AtomicBool::new(false));
    let walk = &Walk { prune, target, plan, holdings, old_before, remover, seen, has_large };
    walk.objects().try_for_each_concurrent(DELETES, |object| walk.look(object)).await?;
    // What refers to them has gone by now, if it was to go.
    if walk.has_large.load(Ordering::Relaxed) {
        walk.objects().try_for_each_concurrent(DELETES, |object| walk.look_at_large(object)).await?;
    }
    Ok(walk.reports())
}

type Group = (SystemIdentifier, Timeline, WalFate);

#[derive(Debug, Default)]
struct Files {
    first: String,
    last: String,
    size: Removed,
}

struct Walk<'a> {
    prune: &'a Prune,
    target: &'a TargetName,
    plan: &'a Plan,
    holdings: &'a Holdings,
    old_before: Timestamp,
    remover: &'a Remover<'a>,
    seen: Mutex<BTreeMap<Group, Files>>,
    has_large: AtomicBool,
}

impl Walk<'_> {
    /// The whole archive.
    fn objects(&self) -> BoxStream<'_, Result<ObjectMeta>> {
        let (repository, prefix) = (&self.prune.repository, self.target.wal());
        let listing = repository.store().list(Some(&prefix));
        listing.map_err(move |e| repository.error(e, "list", &prefix).at(Stage::Catalog)).boxed()
    }

    /// All but large objects.
    async fn look(&self, object: ObjectMeta) -> Result<()> {
        // What this release does not know stays.
        let Some((cluster, what)) = parse_object(self.target, &object.location) else { return Ok(()) };
        let written = modified(&object);
        let (file, fate) = match what {
            ArchiveObject::File(file) => (file, self.by_plan(cluster, file, written)),
            ArchiveObject::Piece(segment) => {
                let superseded = written <= self.old_before && self.holdings.superseded.contains(&(cluster, segment));
                let file = WalFile::Segment(segment);
                (file, if superseded { WalFate::Superseded } else { self.by_plan(cluster, file, written) })
            }
            ArchiveObject::Large(_) => {
                self.has_large.store(true, Ordering::Relaxed);
                return Ok(());
            }
        };
        if !matches!(fate, WalFate::Kept(_)) {
            self.remover.remove(&object.location, object.size).await?;
        }
        self.note((cluster, file.timeline(), fate), file, object.size);
        Ok(())
    }

    /// A large object has the fate of what refers to it. One that nothing refers to goes when it is old.
    async fn look_at_large(&self, object: ObjectMeta) -> Result<()> {
        let Some((cluster, ArchiveObject::Large(file))) = parse_object(self.target, &object.location) else {
            return Ok(());
        };
        let (repository, archive) = (&self.prune.repository, self.target.wal_of(cluster));
        let own = self.by_plan(cluster, file, modified(&object));
        let fate = if modified(&object) > self.old_before {
            own
        } else {
            let name = object.location.filename().unwrap_or_default();
            match reference_to(repository, &archive, file, name).await? {
                Some(reference) => match self.by_plan(cluster, file, modified(&reference)) {
                    // It was to go, and is there.
                    WalFate::Expired if !self.prune.dry_run => return Ok(()),
                    fate => fate,
                },
                None if own == WalFate::Expired => own,
                None => WalFate::Orphaned,
            }
        };
        if !matches!(fate, WalFate::Kept(_)) {
            // Or a crash might bring back what refers to it.
            repository.settle(&archive.file(file)).await?;
            self.remover.remove(&object.location, object.size).await?;
        }
        self.note((cluster, file.timeline(), fate), file, object.size);
        Ok(())
    }

    fn by_plan(&self, cluster: SystemIdentifier, file: WalFile, written: Timestamp) -> WalFate {
        self.plan.reason(cluster, file, written).map_or(WalFate::Expired, WalFate::Kept)
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

    fn reports(&self) -> Vec<WalReport> {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
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
