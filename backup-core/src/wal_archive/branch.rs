//! Whether the log of a timeline is known to have gone on: the history of a later timeline says where it was left.

use futures::TryStreamExt;

use super::Tools;
use super::stored::StoredFile;
use super::text::read_history;
use super::unseal::DataKeys;
use crate::error::{Result, Stage};
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, Timeline, WalFile};
use crate::repository::Repository;
use crate::repository::layout::WalPath;

/// The later timeline that left the one of `segment` behind its end, if the archive has the history of one: then the segment was written, and its
/// absence is a hole, although nothing later is there on its own timeline.
///
/// # Errors
/// `Integrity`, `Key`, and those of the store. Cancel safe.
pub(super) async fn left_behind(
    repository: &Repository,
    archive: &WalPath,
    segment: SegmentName,
    (keys, tools): (&DataKeys, &Tools),
) -> Result<Option<(Timeline, Lsn)>> {
    let mut farthest: Option<(Timeline, Lsn)> = None;
    for timeline in later_timelines(repository, archive, segment.timeline).await? {
        let Some(history) = read_history(repository, archive, timeline, keys, tools).await? else { continue };
        let left = history.ancestors().iter().find(|(ancestor, _)| *ancestor == segment.timeline);
        if let Some((_, left_at)) = left.filter(|(_, left_at)| farthest.is_none_or(|(_, other)| *left_at > other)) {
            farthest = Some((timeline, *left_at));
        }
    }
    let Some((timeline, left_at)) = farthest else { return Ok(None) };
    let Some(size) = segment_size(repository, archive).await? else { return Ok(None) };
    Ok(segment.end(size).is_some_and(|end| end <= left_at).then_some((timeline, left_at)))
}

async fn later_timelines(repository: &Repository, archive: &WalPath, than: Timeline) -> Result<Vec<Timeline>> {
    let prefix = archive.prefix();
    let listed = repository.store().list_with_delimiter(Some(&prefix)).await;
    let listed = listed.map_err(|e| repository.error(e, "list", &prefix).at(Stage::Catalog))?;
    let number = |name: &str| u32::from_str_radix(name, 16).ok().and_then(Timeline::new);
    let timelines = listed.common_prefixes.iter().filter_map(|folder| number(folder.filename()?));
    Ok(timelines.filter(|timeline| *timeline > than).collect())
}

/// How long the cluster's segments are, as the first that is archived tells.
async fn segment_size(repository: &Repository, archive: &WalPath) -> Result<Option<SegmentSize>> {
    let prefix = archive.prefix();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let mut listing = repository.store().list(Some(&prefix));
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        let file = object.location.filename().and_then(WalPath::parse_file);
        if let Some(file @ WalFile::Segment(_)) = file
            && let Some(found) = StoredFile::find(repository, archive, file).await?
        {
            return Ok(u32::try_from(found.plaintext.bytes).ok().and_then(SegmentSize::new));
        }
    }
    Ok(None)
}
