//! What there is of a target's log in a repository, for the choice of a backup.

use std::sync::Arc;

use futures::TryStreamExt;

use crate::error::Result;
use crate::format::ClusterEntry;
use crate::keys::Identity;
use crate::postgres::choose::{Archives, Inventory};
use crate::postgres::wal::WalFile;
use crate::repository::Repository;
use crate::repository::layout::{TargetName, WalPath};

/// Lists the archives of `clusters`, and reads the histories of their timelines. Cancel safe.
///
/// # Errors
/// Those of the store; `Key` and `Integrity` when a history cannot be read: without it a timeline could be mistaken for another.
pub async fn archives(
    repository: &Repository,
    target: &TargetName,
    _identities: &[Arc<dyn Identity>],
    clusters: impl Iterator<Item = &ClusterEntry>,
) -> Result<Archives> {
    let mut archives = Archives::new();
    for cluster in clusters {
        if archives.contains_key(&cluster.system_identifier) {
            continue;
        }
        let mut inventory = Inventory::default();
        let prefix = target.wal_of(cluster.system_identifier).prefix();
        let mut objects = repository.store().list(Some(&prefix));
        while let Some(object) = objects.try_next().await.map_err(|e| repository.error(e, "list", &prefix))? {
            if let Some(WalFile::Segment(name)) = object.location.filename().and_then(WalPath::parse_file) {
                let archived =
                    jiff::Timestamp::from_nanosecond(object.last_modified.timestamp_nanos_opt().unwrap_or(0).into());
                inventory.add_segment(name, cluster.wal_segment_bytes, archived.unwrap_or_default());
            }
        }
        archives.insert(cluster.system_identifier, inventory);
    }
    Ok(archives)
}
