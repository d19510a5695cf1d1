//! From when to when a target's clusters can be recovered.

use std::collections::BTreeMap;

use backup_core::Result;
use backup_core::format::{Condition, Kind};
use backup_core::jiff::Timestamp;
use backup_core::postgres::wal::SystemIdentifier;
use backup_core::repository::layout::TargetName;
use backup_core::repository::verify::continuity;
use backup_core::repository::{Listed, Repository};
use backup_core::wal_archive::Inventory;
use futures::TryStreamExt;
use serde::Serialize;

/// From the end of the oldest base backup that is good, and whose log is there, to when the newest segment was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Window {
    pub(super) oldest: Timestamp,
    pub(super) newest: Timestamp,
}

/// The windows of the clusters of which something can be recovered. What lies in a gap between is told as a gap. Needs no key.
pub(super) async fn windows(
    repository: &Repository,
    target: &TargetName,
    inventory: &Inventory,
) -> Result<BTreeMap<SystemIdentifier, Window>> {
    let mut windows: BTreeMap<SystemIdentifier, Window> = BTreeMap::new();
    let mut listing = repository.list(Some(target));
    while let Some(listed) = listing.try_next().await? {
        let Listed::Backup(backup) = listed else { continue };
        let manifest = backup.manifest;
        let (Kind::BaseBackup, Condition::Good, Some(cluster)) = (manifest.kind, manifest.condition, manifest.cluster)
        else {
            continue;
        };
        if !continuity(inventory, &cluster).consistent {
            continue;
        }
        let stopped = cluster.stopped;
        let window = windows.entry(cluster.system_identifier).or_insert(Window { oldest: stopped, newest: stopped });
        (window.oldest, window.newest) = (window.oldest.min(stopped), window.newest.max(stopped));
    }
    for cluster in &inventory.clusters {
        if let Some(window) = windows.get_mut(&cluster.system_identifier) {
            let archived = cluster.timelines.iter().filter_map(|timeline| timeline.archived);
            window.newest = archived.fold(window.newest, Timestamp::max);
        }
    }
    Ok(windows)
}
