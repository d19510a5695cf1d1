//! What an archive holds: ranges of log on each timeline, and the timelines' histories.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::postgres::wal::{History, Lsn, SegmentName, SegmentSize, Timeline};

/// The archive of one cluster. Takes memory for its gaps and timelines, not for its segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    timelines: BTreeMap<Timeline, ArchivedTimeline>,
}

/// What an archive holds of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ArchivedTimeline {
    /// What it descends from, if that is known.
    history: Option<History>,
    /// By their starts; they neither overlap nor touch.
    ranges: BTreeMap<Lsn, ArchivedRange>,
}

/// Log without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedRange {
    /// Its first byte.
    pub start: Lsn,
    /// Behind its last byte.
    pub end: Lsn,
    /// When the newest of it was archived, by the store's clock.
    pub archived: Timestamp,
}

impl Inventory {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.timelines.is_empty()
    }

    /// Adds a whole segment.
    pub fn add_segment(&mut self, name: SegmentName, size: SegmentSize, archived: Timestamp) {
        // One that the cluster could not have is none of its log.
        if let (Some(start), Some(end)) = (name.start(size), name.end(size)) {
            self.add_range(name.timeline, ArchivedRange { start, end, archived });
        }
    }

    /// Adds a range, which may touch others or overlap with them.
    pub fn add_range(&mut self, timeline: Timeline, range: ArchivedRange) {
        let ranges = &mut self.timelines.entry(timeline).or_default().ranges;
        let mut joined = range;
        // The nearest below may reach into it, and any number may begin in it.
        while let Some((&start, &other)) =
            ranges.range(..=joined.end).next_back().filter(|(_, r)| r.end >= joined.start)
        {
            ranges.remove(&start);
            joined.start = joined.start.min(other.start);
            joined.end = joined.end.max(other.end);
            joined.archived = joined.archived.max(other.archived);
        }
        ranges.insert(joined.start, joined);
    }

    /// Says when the end of a timeline's log was archived, for certain: the store's clock says when it came there, which for a copy is later.
    pub fn end_was_archived(&mut self, timeline: Timeline, archived: Timestamp) {
        let last = self.timelines.get_mut(&timeline).and_then(|archived| archived.ranges.values_mut().next_back());
        if let Some(range) = last {
            range.archived = range.archived.min(archived);
        }
    }

    /// Adds the history of a timeline.
    pub fn add_history(&mut self, history: History) {
        let timeline = history.timeline();
        self.timelines.entry(timeline).or_default().history = Some(history);
    }

    /// The history of a timeline, if the archive has it.
    pub fn history(&self, timeline: Timeline) -> Option<&History> {
        self.timelines.get(&timeline)?.history.as_ref()
    }

    /// The newest timeline of which there is log, but not from where it came.
    pub(super) fn newest_without_history(&self) -> Option<Timeline> {
        let without = |(timeline, archived): (&Timeline, &ArchivedTimeline)| {
            (*timeline > Timeline::FIRST && archived.history.is_none() && !archived.ranges.is_empty())
                .then_some(*timeline)
        };
        self.timelines.iter().rev().find_map(without)
    }

    /// The ranges of a timeline, in order.
    pub fn ranges(&self, timeline: Timeline) -> impl Iterator<Item = &ArchivedRange> {
        self.timelines.get(&timeline).into_iter().flat_map(|archived| archived.ranges.values())
    }

    /// The newest timeline that has all of `timeline` up to `end` in its history: `timeline` itself, if there is no other.
    pub fn newest_descendant(&self, timeline: Timeline, end: Lsn) -> Timeline {
        let histories = self.timelines.values().rev().filter_map(|archived| archived.history.as_ref());
        histories.filter(|h| h.contains(timeline, end)).map(History::timeline).next().unwrap_or(timeline)
    }

    /// How far the log leads from `from` along a history without a gap, and when the last of that was archived.
    ///
    /// The segment in which a timeline branched off holds a copy of what its ancestor wrote into it, so it does for both.
    pub(super) fn reach(&self, history: &History, from: Lsn) -> (Lsn, Option<Timestamp>) {
        let (mut at, mut archived) = (from, None);
        let step = |at: Lsn| {
            let ends = path(history).filter_map(|(timeline, left_at)| {
                let range = self.range_at(timeline, at)?;
                Some((left_at.map_or(range.end, |left_at| range.end.min(left_at)), range.archived))
            });
            ends.filter(|(end, _)| *end > at).max_by_key(|(end, _)| *end)
        };
        while let Some((end, newest)) = step(at) {
            (at, archived) = (end, Some(newest));
        }
        (at, archived)
    }

    /// Where the log goes on along a history, somewhere after `at`.
    pub(super) fn next_after(&self, history: &History, at: Lsn) -> Option<Lsn> {
        let starts = path(history).filter_map(|(timeline, left_at)| {
            let (start, _) = self.timelines.get(&timeline)?.ranges.range(Lsn(at.0.checked_add(1)?)..).next()?;
            Some(*start).filter(|start| left_at.is_none_or(|left_at| *start < left_at))
        });
        starts.min()
    }

    fn range_at(&self, timeline: Timeline, at: Lsn) -> Option<&ArchivedRange> {
        let (_, range) = self.timelines.get(&timeline)?.ranges.range(..=at).next_back()?;
        Some(range).filter(|range| at < range.end)
    }
}

/// The timelines of a history, each with where it was left; the newest was not.
fn path(history: &History) -> impl Iterator<Item = (Timeline, Option<Lsn>)> {
    let ancestors = history.ancestors().iter().rev().map(|(timeline, left_at)| (*timeline, Some(*left_at)));
    std::iter::once((history.timeline(), None)).chain(ancestors)
}
