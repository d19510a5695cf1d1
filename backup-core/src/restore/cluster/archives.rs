//! What there is of a target's log in a repository, for the choice of a backup.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use jiff::Timestamp;

use crate::error::{ErrorKind, Result};
use crate::format::ClusterEntry;
use crate::keys::Identity;
use crate::postgres::choose::{ArchivedRange, Archives, Inventory};
use crate::postgres::wal::{Lsn, SegmentName, Timeline, WalFile};
use crate::repository::Repository;
use crate::repository::layout::{TailPiece, TargetName, WalPath};
use crate::wal_archive::{Histories, archived_at};

/// Lists the archives of `clusters`, and reads the histories of their timelines. Cancel safe.
///
/// # Errors
/// Those of the store; `Key` and `Integrity` when a history cannot be read: without it a timeline could be mistaken for another.
pub async fn archives(
    repository: &Repository,
    target: &TargetName,
    identities: &[Arc<dyn Identity>],
    clusters: impl Iterator<Item = &ClusterEntry>,
) -> Result<Archives> {
    let mut archives = Archives::new();
    let histories = Histories::new(identities)?;
    for cluster in clusters {
        if archives.contains_key(&cluster.system_identifier) {
            continue;
        }
        let archive = target.wal_of(cluster.system_identifier);
        let inventory = inventory(repository, &archive, cluster, &histories).await?;
        archives.insert(cluster.system_identifier, inventory);
    }
    Ok(archives)
}

async fn inventory(
    repository: &Repository,
    archive: &WalPath,
    cluster: &ClusterEntry,
    histories: &Histories,
) -> Result<Inventory> {
    let mut inventory = Inventory::default();
    let mut timelines = Vec::new();
    // The last of each timeline, and where it ends.
    let mut newest: BTreeMap<Timeline, (Lsn, SegmentName, Option<TailPiece>)> = BTreeMap::new();
    let mut see = |end: Lsn, segment: SegmentName, piece: Option<TailPiece>| {
        if newest.get(&segment.timeline).is_none_or(|(last, ..)| *last <= end) {
            newest.insert(segment.timeline, (end, segment, piece));
        }
    };
    let prefix = archive.prefix();
    let mut objects = repository.store().list(Some(&prefix));
    while let Some(object) = objects.try_next().await.map_err(|e| repository.error(e, "list", &prefix))? {
        let nanoseconds = object.last_modified.timestamp_nanos_opt().unwrap_or_default();
        let archived = Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
        // What is stored of a segment that was being received; the pieces join to what they are pieces of.
        if let Some((segment, piece)) = WalPath::parse_tail(&object.location) {
            if let Some(begin) = segment.start(cluster.wal_segment_bytes) {
                let at = |offset: u32| Lsn(begin.0 + u64::from(offset));
                let range = ArchivedRange { start: at(piece.start), end: at(piece.end), archived };
                see(range.end, segment, Some(piece));
                inventory.add_range(segment.timeline, range);
            }
            continue;
        }
        match object.location.filename().and_then(WalPath::parse_file) {
            Some(WalFile::Segment(name)) => {
                if let Some(end) = name.end(cluster.wal_segment_bytes) {
                    see(end, name, None);
                }
                inventory.add_segment(name, cluster.wal_segment_bytes, archived);
            }
            Some(WalFile::History(timeline)) => timelines.push(timeline),
            _ => {}
        }
    }
    for (timeline, (_, segment, piece)) in newest {
        match archived_at(repository, archive, segment, piece.as_ref()).await {
            Ok(Some(archived)) => inventory.end_was_archived(timeline, archived),
            Ok(None) => {}
            // Whoever needs it will be told.
            Err(e) if e.kind() == ErrorKind::Integrity => {
                tracing::debug!(error = %e, "when it was archived is not known")
            }
            Err(e) => return Err(e),
        }
    }
    for timeline in timelines {
        if let Some(history) = histories.read(repository, archive, timeline).await? {
            inventory.add_history(history);
        }
    }
    Ok(inventory)
}
