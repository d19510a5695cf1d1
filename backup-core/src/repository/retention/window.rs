//! The window of point-in-time recovery: which backups lead to its moments.
//!
//! All good base backups that ended within the window are kept, so a gap in the log costs no moment that could be reached before. And
//! moments right behind its start need one that ended before. The newest such on the timeline that the moments lie on does: whatever an older one
//! reaches, it reaches too. A timeline that is younger than the window's start may have no such backup, and goes on from one on an earlier
//! timeline. Which one that is, and where it was left, stands in histories, which are encrypted. What shows is where each timeline's first segment
//! begins, and that is at most one segment before the fork; so of every earlier timeline the newest backup is kept that ended before any of the younger
//! ones began.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::wal::{Archive, TimelineArchive};
use super::{Facts, Reason};
use crate::format::ClusterEntry;
use crate::postgres::wal::{SystemIdentifier, Timeline};

/// Log is stored some time after it was written, and by another clock.
const SKEW: SignedDuration = SignedDuration::from_hours(24);

/// Reasons that backups have for the sake of the window. `good` are those that count.
pub(super) fn reasons(
    facts: &[Facts],
    good: &[usize],
    archives: &BTreeMap<SystemIdentifier, Archive>,
    start: Timestamp,
) -> Vec<(usize, Reason)> {
    let (mut found, no_log) = (Vec::new(), Archive::default());
    let mut clusters: BTreeMap<SystemIdentifier, Vec<(usize, &ClusterEntry)>> = BTreeMap::new();
    for (i, entry) in good.iter().filter_map(|i| Some((*i, facts[*i].cluster.as_ref()?))) {
        clusters.entry(entry.system_identifier).or_default().push((i, entry));
    }
    for (cluster, backups) in clusters {
        // The log may be about to come, or somebody may have put it elsewhere.
        let archive = archives.get(&cluster).unwrap_or(&no_log);
        let (within, before): (Vec<_>, Vec<_>) = backups.into_iter().partition(|(_, entry)| entry.stopped > start);
        // A timeline lives in the window if log came of it, or a backup.
        let since = start.checked_sub(SKEW).unwrap_or(Timestamp::MIN);
        let came = archive.timelines.iter().filter(|(_, log)| log.written >= since).map(|(timeline, _)| *timeline);
        let live: BTreeSet<Timeline> = came.chain(within.iter().map(|(_, entry)| entry.timeline)).collect();
        found.extend(within.iter().map(|(i, _)| (*i, Reason::Window)));
        found.extend(anchors(&before, archive, &live).into_iter().map(|i| (i, Reason::WindowStart)));
    }
    found
}

/// The backups that lead into the window, of those that ended before it, for the timelines that live in it.
fn anchors(before: &[(usize, &ClusterEntry)], archive: &Archive, live: &BTreeSet<Timeline>) -> BTreeSet<usize> {
    let newest = |timeline: Timeline, fits: &dyn Fn(&ClusterEntry) -> bool| {
        let fitting = before.iter().filter(|(_, entry)| entry.timeline == timeline && fits(entry));
        fitting.max_by_key(|(_, entry)| (entry.stopped, entry.stop_lsn)).map(|(i, _)| *i)
    };
    let mut found = BTreeSet::new();
    for timeline in live {
        if let Some(own) = newest(*timeline, &|_| true) {
            found.insert(own);
            continue;
        }
        let earlier: BTreeSet<Timeline> = before.iter().map(|(_, entry)| entry.timeline).collect();
        for earlier in earlier.into_iter().filter(|earlier| earlier < timeline) {
            // The timeline may descend from any of those between, and that one from the earlier.
            let left_for = archive.timelines.iter().filter(|(other, _)| earlier < **other && **other <= *timeline);
            for log in left_for.map(|(_, log)| log) {
                found.extend(newest(earlier, &|entry| ends_before(entry, log)));
                let around = |entry: &ClusterEntry| entry.timeline == earlier && ends_within(entry, log);
                found.extend(before.iter().filter(|(_, entry)| around(entry)).map(|(i, _)| *i));
            }
        }
    }
    found
}

/// Whether a backup had certainly ended when a later timeline left its own.
fn ends_before(entry: &ClusterEntry, log: &TimelineArchive) -> bool {
    log.first.start(entry.wal_segment_bytes).is_some_and(|first| entry.stop_lsn <= first)
}

/// Whether a backup ended in the segment in which a later timeline left its own: before that or after.
fn ends_within(entry: &ClusterEntry, log: &TimelineArchive) -> bool {
    let end = log.first.end(entry.wal_segment_bytes);
    !ends_before(entry, log) && end.is_some_and(|end| entry.stop_lsn <= end)
}
