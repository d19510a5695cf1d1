//! Whether the log leads a base backup to where it is consistent, and how far it goes on from there. No I/O.

use object_store::path::Path;
use serde::Serialize;

use super::Finding;
use crate::format::ClusterEntry;
use crate::postgres::wal::{Lsn, Timeline};
use crate::repository::layout::TargetName;
use crate::wal_archive::{ClusterInventory, Inventory, TimelineInventory};

/// What the archive has of the log that follows a base backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Continuity {
    /// Whether all of the log is there that the backup needs to become consistent: in the backup itself, or in the archive.
    pub consistent: bool,
    /// How far the log leads on the backup's own timeline without a gap; `None` when not even to where it is consistent.
    pub reach: Option<Lsn>,
    /// What is missing behind the backup's beginning, on its own timeline and on later ones.
    pub gaps: Vec<Gap>,
    /// Later timelines whose history is missing: recovery cannot follow them.
    pub lacking_histories: Vec<Timeline>,
}

/// Segments that are missing, though there are later ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Gap {
    /// The first that is missing.
    pub first: String,
    /// The last.
    pub last: String,
}

/// What `inventory`, of the backup's target, has of the log of the backup of `cluster`. Needs no key, and so does not know where timelines branched
/// off: choosing a backup for a restore does.
pub fn continuity(inventory: &Inventory, cluster: &ClusterEntry) -> Continuity {
    let archive = inventory.clusters.iter().find(|c| c.system_identifier == cluster.system_identifier);
    let own = archive.and_then(|archive| timeline(archive, cluster.timeline));
    let from = if cluster.wal_included { cluster.stop_lsn } else { cluster.start_lsn };
    let archived = own.and_then(|own| reach(own, from));
    let reach = archived.max(cluster.wal_included.then_some(cluster.stop_lsn)).filter(|at| *at >= cluster.stop_lsn);
    let mut gaps: Vec<Gap> = own.map(|own| gaps_behind(own, cluster, from)).unwrap_or_default();
    let later = archive.into_iter().flat_map(|archive| &archive.timelines).filter(|t| t.timeline > cluster.timeline);
    gaps.extend(later.clone().flat_map(all_gaps));
    let lacking_histories = later.filter(|t| t.lacks_history()).map(|t| t.timeline).collect();
    Continuity { consistent: reach.is_some(), reach, gaps, lacking_histories }
}

impl Continuity {
    /// That the backup cannot be made consistent, if it cannot.
    pub fn finding(&self, target: &TargetName, cluster: &ClusterEntry) -> Option<Finding> {
        let ClusterEntry { start_lsn, stop_lsn, .. } = cluster;
        let object: Path = target.wal_of(cluster.system_identifier).timeline(cluster.timeline);
        let problem = || {
            format!(
                "the log from {start_lsn} to {stop_lsn} is not all there: the backup cannot be made consistent (offset 0)"
            )
        };
        (!self.consistent).then(|| Finding { object: object.to_string(), problem: problem() })
    }
}

fn timeline(archive: &ClusterInventory, timeline: Timeline) -> Option<&TimelineInventory> {
    archive.timelines.iter().find(|found| found.timeline == timeline)
}

/// How far the archive of a timeline leads from `from` without a gap.
fn reach(own: &TimelineInventory, from: Lsn) -> Option<Lsn> {
    let range = own.ranges.iter().find(|range| range.start <= from && from <= range.end)?;
    // What was received of the segment behind the newest goes on from there.
    let tail = own.tail.filter(|_| own.ranges.last() == Some(range));
    tail.max(Some(range.end))
}

fn all_gaps(timeline: &TimelineInventory) -> impl Iterator<Item = Gap> + '_ {
    timeline.gaps().into_iter().map(|(first, last)| Gap { first: first.to_string(), last: last.to_string() })
}

/// Gaps behind the beginning of a backup; and that between its own log and the archive, if that begins later.
fn gaps_behind(own: &TimelineInventory, cluster: &ClusterEntry, from: Lsn) -> Vec<Gap> {
    let size = cluster.wal_segment_bytes;
    let mut gaps = Vec::new();
    if let Some(first) = own.ranges.first().filter(|first| first.start > from) {
        let last = size.segment_at(own.timeline, Lsn(first.start.0.saturating_sub(1)));
        gaps.push(Gap { first: size.segment_at(own.timeline, from).to_string(), last: last.to_string() });
    }
    let behind = own.gaps().into_iter().filter(|(_, last)| last.end(size).is_some_and(|end| end > from));
    gaps.extend(behind.map(|(first, last)| Gap { first: first.to_string(), last: last.to_string() }));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal::{SegmentSize, SystemIdentifier};
    use crate::wal_archive::SegmentRange;

    const MIB: u64 = 1 << 20;

    fn cluster(start: u64, stop: u64, wal_included: bool) -> ClusterEntry {
        ClusterEntry {
            system_identifier: SystemIdentifier(7),
            server_version_num: 150_018,
            wal_segment_bytes: SegmentSize::new(1 << 20).unwrap(),
            timeline: Timeline::FIRST,
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            stopped: "2026-11-22T02:00:00Z".parse().unwrap(),
            wal_included,
        }
    }

    /// An archive of these segments of 1 MiB.
    fn archive(segments: &[(u64, u64)]) -> Inventory {
        let size = SegmentSize::new(1 << 20).unwrap();
        let name = |n: u64| size.segment_at(Timeline::FIRST, Lsn(n * MIB));
        let range = |&(start, end): &(u64, u64)| SegmentRange {
            first: name(start),
            last: name(end - 1),
            segments: end - start,
            start: Lsn(start * MIB),
            end: Lsn(end * MIB),
        };
        let timeline = TimelineInventory {
            timeline: Timeline::FIRST,
            segment_size: Some(size),
            ranges: segments.iter().map(range).collect(),
            has_history: false,
            archived: None,
            tail: None,
            tail_segment: None,
            leftovers: Vec::new(),
            written: None,
            stored_bytes: 0,
        };
        let cluster = ClusterInventory { system_identifier: SystemIdentifier(7), timelines: vec![timeline] };
        Inventory { clusters: vec![cluster] }
    }

    fn gaps(continuity: &Continuity) -> Vec<(&str, &str)> {
        continuity.gaps.iter().map(|gap| (&gap.first[16..], &gap.last[16..])).collect()
    }

    #[test]
    fn a_backup_without_its_log_needs_every_segment_of_it_in_the_archive() {
        let backup = cluster(3 * MIB + 40, 5 * MIB + 300, false);
        let whole = continuity(&archive(&[(1, 9)]), &backup);
        assert_eq!((whole.consistent, whole.reach, gaps(&whole)), (true, Some(Lsn(9 * MIB)), vec![]));
        for (segments, missing) in [
            (&[(1, 4), (5, 9)][..], vec![("00000004", "00000004")]),
            (&[(1, 5), (6, 9)], vec![("00000005", "00000005")]),
            (&[(4, 9)], vec![("00000003", "00000003")]),
            (&[(1, 5)], vec![]),
            (&[], vec![]),
        ] {
            let broken = continuity(&archive(segments), &backup);
            assert_eq!((broken.consistent, gaps(&broken)), (false, missing), "{segments:?}");
            assert!(broken.finding(&"app".parse().unwrap(), &backup).is_some());
        }
        assert!(!continuity(&Inventory { clusters: vec![] }, &backup).consistent);
    }

    #[test]
    fn gaps_are_told_where_they_matter_to_the_backup() {
        let backup = cluster(3 * MIB + 40, 3 * MIB + 300, true);
        let told = |segments: &[(u64, u64)]| {
            let found = continuity(&archive(segments), &backup);
            assert!(found.consistent && found.finding(&"app".parse().unwrap(), &backup).is_none());
            (found.reach.unwrap().0 / MIB, gaps(&found).len())
        };
        // Before it, behind it, between its own log and the archive.
        assert_eq!(told(&[(0, 1), (2, 9)]), (9, 0));
        assert_eq!(told(&[(0, 5), (7, 9)]), (5, 1));
        assert_eq!(told(&[(5, 9)]), (3, 1));
        assert_eq!(told(&[]), (3, 0));
    }

    #[test]
    fn what_was_received_of_the_next_segment_counts() {
        let backup = cluster(3 * MIB + 40, 5 * MIB + 300, false);
        let mut inventory = archive(&[(1, 5)]);
        assert!(!continuity(&inventory, &backup).consistent);
        inventory.clusters[0].timelines[0].tail = Some(Lsn(5 * MIB + 8192));
        assert_eq!(continuity(&inventory, &backup).reach, Some(Lsn(5 * MIB + 8192)));
    }
}
