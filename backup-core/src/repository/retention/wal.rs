//! Which files of write-ahead log are kept, and why. No I/O.
//!
//! Kept is what leads from a backup of the window of point-in-time recovery, or from the newest one, to anywhere; what makes a backup consistent
//! that does not hold it itself; what is younger than the window; what a running backup may need; and the last file of each timeline, so
//! that an archive never seems to end before it ends. An archive of which no backup is known is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::{Facts, Reason, Standing, Verdict};
use crate::format::ClusterEntry;
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, Timeline, WalFile};
use crate::repository::layout::BackupId;

/// What the archive of one cluster holds, as far as names tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Archive {
    /// Timelines of which there is log.
    pub timelines: BTreeMap<Timeline, TimelineArchive>,
}

/// The same of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineArchive {
    /// The first segment, or part of one.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// When the newest came, by the store's clock.
    pub written: Timestamp,
}

/// A run that has not ended: it may become a backup that needs log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningBackup {
    /// Its id.
    pub id: BackupId,
    /// What it needs of the log.
    pub needs: RunningNeeds,
}

/// What a run that has not ended may need of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningNeeds {
    /// Nothing: it is not of a cluster.
    Nothing,
    /// All from here on.
    From {
        /// Of this cluster.
        cluster: SystemIdentifier,
        /// On this timeline and those behind it.
        timeline: Timeline,
        /// Where recovery will begin.
        start: Lsn,
    },
    /// It does not say yet.
    Unknown,
}

/// Why a file of the log is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WalReason {
    /// No backup of its cluster is known.
    NoBackup,
    /// There is no good backup of its cluster.
    NoGoodBackup,
    /// Backups of its cluster tell of segments of several sizes.
    SegmentSizes,
    /// A backup of its target needs a later release, and may need this.
    Held {
        /// Which.
        by: BackupId,
    },
    /// It leads from a backup on.
    From {
        /// Which.
        id: BackupId,
    },
    /// It makes a backup consistent.
    NeededBy {
        /// Which.
        id: BackupId,
    },
    /// A run that has not ended may need it.
    Running {
        /// Which.
        id: BackupId,
    },
    /// It says where a timeline comes from.
    History,
    /// It says where the log of its timeline ends.
    Last,
    /// It is younger than the window, by the store's own clock.
    Young,
}

/// What is kept of the log of a target.
#[derive(Debug, Clone)]
pub struct Plan {
    clusters: BTreeMap<SystemIdentifier, ClusterPlan>,
    young_since: Timestamp,
}

#[derive(Debug, Clone)]
enum ClusterPlan {
    All(WalReason),
    Ranges(Vec<Range>),
}

/// Segments of a timeline, from one to another; all behind it, and on all later timelines, when there is no other.
#[derive(Debug, Clone)]
struct Range {
    timeline: Timeline,
    first: (u32, u32),
    last: Option<(u32, u32)>,
    reason: WalReason,
}

impl Archive {
    /// Notes a segment, or a part of one, that came when `written` says.
    pub fn add(&mut self, segment: SegmentName, written: Timestamp) {
        let new = TimelineArchive { first: segment, last: segment, written };
        let log = self.timelines.entry(segment.timeline).or_insert(new);
        log.first = log.first.min(segment);
        log.last = log.last.max(segment);
        log.written = log.written.max(written);
    }
}

impl Plan {
    /// What of `archives` is kept for the sake of the backups that `verdicts` keep, of runs that have not ended, and since when what came is young.
    pub fn new(
        facts: &[Facts],
        verdicts: &[Verdict],
        archives: &BTreeMap<SystemIdentifier, Archive>,
        running: &[RunningBackup],
        young_since: Timestamp,
    ) -> Self {
        let held = facts.iter().find(|f| f.standing == Standing::Newer).map(|f| f.id.clone());
        let unknown = running.iter().find(|r| r.needs == RunningNeeds::Unknown).map(|r| r.id.clone());
        let plan = |cluster: SystemIdentifier, archive: &Archive| {
            let known: Vec<Known<'_>> = Known::all(facts, verdicts, cluster).collect();
            if let Some(by) = &held {
                return ClusterPlan::All(WalReason::Held { by: by.clone() });
            }
            if let Some(id) = &unknown {
                return ClusterPlan::All(WalReason::Running { id: id.clone() });
            }
            ranges(&known, archive, cluster, running).map_or_else(ClusterPlan::All, ClusterPlan::Ranges)
        };
        let clusters = archives.iter().map(|(cluster, archive)| (*cluster, plan(*cluster, archive))).collect();
        Self { clusters, young_since }
    }

    /// Why a file of `cluster` that came when `written` says is kept; it goes when there is no reason.
    pub fn reason(&self, cluster: SystemIdentifier, file: WalFile, written: Timestamp) -> Option<WalReason> {
        let segment = match file {
            WalFile::History(_) => return Some(WalReason::History),
            WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::BackupLabel(segment, _) => segment,
        };
        let ranges = match self.clusters.get(&cluster) {
            // It came after everything was looked at.
            None => return Some(WalReason::NoBackup),
            Some(ClusterPlan::All(reason)) => return Some(reason.clone()),
            Some(ClusterPlan::Ranges(ranges)) => ranges,
        };
        let found = ranges.iter().find(|range| range.holds(segment)).map(|range| range.reason.clone());
        found.or_else(|| (written >= self.young_since).then_some(WalReason::Young))
    }

    /// Whether any segment from `first` to `last`, of one timeline, is kept, whenever it came.
    pub fn keeps_any(&self, cluster: SystemIdentifier, first: SegmentName, last: SegmentName) -> bool {
        match self.clusters.get(&cluster) {
            Some(ClusterPlan::Ranges(ranges)) => ranges.iter().any(|range| range.meets(first, last)),
            None | Some(ClusterPlan::All(_)) => true,
        }
    }
}

impl Range {
    fn holds(&self, segment: SegmentName) -> bool {
        self.meets(segment, segment)
    }

    /// Whether it holds any segment from `first` to `last`, of one timeline.
    fn meets(&self, first: SegmentName, last: SegmentName) -> bool {
        let number = |segment: SegmentName| (segment.log, segment.segment);
        match self.last {
            Some(end) => first.timeline == self.timeline && number(first) <= end && number(last) >= self.first,
            None => first.timeline >= self.timeline && number(last) >= self.first,
        }
    }
}

/// A base backup of a cluster.
struct Known<'a> {
    facts: &'a Facts,
    entry: &'a ClusterEntry,
    verdict: &'a Verdict,
}

impl<'a> Known<'a> {
    fn all(facts: &'a [Facts], verdicts: &'a [Verdict], cluster: SystemIdentifier) -> impl Iterator<Item = Self> {
        facts.iter().zip(verdicts).filter_map(move |(facts, verdict)| {
            let entry = facts.cluster.as_ref().filter(|entry| entry.system_identifier == cluster)?;
            Some(Self { facts, entry, verdict })
        })
    }

    fn is_good(&self) -> bool {
        self.facts.standing == Standing::Good && self.verdict.is_kept()
    }

    fn is_of_the_window(&self) -> bool {
        self.verdict.reasons.iter().any(|reason| matches!(reason, Reason::Window | Reason::WindowStart))
    }

    fn number(&self, lsn: Lsn) -> (u32, u32) {
        number(self.entry.wal_segment_bytes, self.entry.timeline, lsn)
    }

    /// From its start on, for ever.
    fn onward(&self) -> Range {
        let reason = WalReason::From { id: self.facts.id.clone() };
        Range { timeline: self.entry.timeline, first: self.number(self.entry.start_lsn), last: None, reason }
    }

    /// What makes it consistent, if it does not hold that itself.
    fn own(&self) -> Option<Range> {
        let understood = !matches!(self.facts.standing, Standing::UnknownKind(_));
        if self.entry.wal_included && understood {
            return None;
        }
        let reason = WalReason::NeededBy { id: self.facts.id.clone() };
        let (first, last) = (self.number(self.entry.start_lsn), self.number(self.entry.stop_lsn));
        Some(Range { timeline: self.entry.timeline, first, last: Some(last), reason })
    }
}

fn number(size: SegmentSize, timeline: Timeline, lsn: Lsn) -> (u32, u32) {
    let segment = size.segment_at(timeline, lsn);
    (segment.log, segment.segment)
}

/// What is kept of an archive; all of it for the reason that comes back as an error.
fn ranges(
    known: &[Known<'_>],
    archive: &Archive,
    cluster: SystemIdentifier,
    running: &[RunningBackup],
) -> Result<Vec<Range>, WalReason> {
    let sizes: BTreeSet<u32> = known.iter().map(|k| k.entry.wal_segment_bytes.into()).collect();
    let size = match sizes.first().copied().and_then(SegmentSize::new) {
        None => return Err(WalReason::NoBackup),
        Some(_) if sizes.len() > 1 => return Err(WalReason::SegmentSizes),
        Some(size) => size,
    };
    let newest = known.iter().filter(|k| k.is_good()).max_by_key(|k| (k.facts.started, &k.facts.id));
    let newest = newest.ok_or(WalReason::NoGoodBackup)?;
    let mut ranges: Vec<Range> = known.iter().filter(|k| k.is_of_the_window()).map(Known::onward).collect();
    ranges.push(newest.onward());
    ranges.sort_by_key(|range| (range.first, range.timeline));
    ranges.extend(known.iter().filter(|k| k.verdict.is_kept()).filter_map(Known::own));
    ranges.extend(running.iter().filter_map(|run| match run.needs {
        RunningNeeds::From { cluster: of, timeline, start } if of == cluster => Some(Range {
            timeline,
            first: number(size, timeline, start),
            last: None,
            reason: WalReason::Running { id: run.id.clone() },
        }),
        _ => None,
    }));
    ranges.extend(archive.timelines.iter().map(|(timeline, log)| {
        let last = (log.last.log, log.last.segment);
        Range { timeline: *timeline, first: last, last: Some(last), reason: WalReason::Last }
    }));
    Ok(ranges)
}

impl fmt::Display for WalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBackup => f.write_str("no backup of this cluster is known"),
            Self::NoGoodBackup => f.write_str("there is no good backup of this cluster"),
            Self::SegmentSizes => f.write_str("backups of this cluster tell of several sizes of segments"),
            Self::Held { by } => write!(f, "may be needed by {by}, which needs a newer release"),
            Self::From { id } => write!(f, "leads from {id} on"),
            Self::NeededBy { id } => write!(f, "makes {id} consistent"),
            Self::Running { id } => write!(f, "may be needed by {id}, which is running"),
            Self::History => f.write_str("says where a timeline comes from"),
            Self::Last => f.write_str("the last of its timeline"),
            Self::Young => f.write_str("younger than the window"),
        }
    }
}
