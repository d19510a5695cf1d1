//! What an archive holds: ranges of segments, the gaps between them, and how old it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path as FilePath;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::ObjectMeta;
use object_store::path::Path;

use super::stored::StoredFile;
use super::tail;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, Timeline, WalFile};
use crate::repository::Repository;
use crate::repository::layout::{TailPiece, TargetName, WalPath};

/// The WAL of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inventory {
    /// By system identifier.
    pub clusters: Vec<ClusterInventory>,
}

/// The WAL of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterInventory {
    /// Which cluster.
    pub system_identifier: SystemIdentifier,
    /// By number.
    pub timelines: Vec<TimelineInventory>,
}

/// The WAL of one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimelineInventory {
    /// Which timeline.
    pub timeline: Timeline,
    /// The cluster's segment size, as the newest segment has it; `None` without a segment.
    pub segment_size: Option<SegmentSize>,
    /// Segments without a gap, the oldest first. Between two of these something is missing.
    pub ranges: Vec<SegmentRange>,
    /// Whether its history file is there. The first timeline has none.
    pub has_history: bool,
    /// When the newest segment was archived.
    pub archived: Option<Timestamp>,
    /// How far the log reaches that was received of the segment behind the newest: what a restore puts together, and the end of the archive.
    pub tail: Option<Lsn>,
    /// The newest segment of which pieces were received, full meanwhile or not.
    pub tail_segment: Option<SegmentName>,
    /// Segments that are whole, and of which there are pieces all the same.
    pub leftovers: Vec<SegmentName>,
    /// When the newest object came, a piece of a segment too, by the clock of the store.
    pub written: Option<Timestamp>,
    /// Bytes in the repository.
    pub stored_bytes: u64,
}

/// Segments that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentRange {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// The position of the first byte.
    pub start: Lsn,
    /// The position behind the last byte.
    pub end: Lsn,
}

/// What PostgreSQL still wants to be archived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadyFiles {
    /// How many files.
    pub count: u64,
    /// The one that waits for the longest time, and for how long.
    pub oldest: Option<(WalFile, Duration)>,
}

impl Inventory {
    /// Lists the archive of `target`. Needs no key. Takes one bit of memory for each segment, so nothing to speak of.
    ///
    /// # Errors
    /// `Integrity` when the header of the newest segment of a timeline cannot be read, and those of the store. Cancel safe.
    pub async fn read(repository: &Repository, target: &TargetName) -> Result<Self> {
        let prefix = target.wal();
        let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
        let mut seen: BTreeMap<(SystemIdentifier, Timeline), Seen> = BTreeMap::new();
        let mut listing = repository.store().list(Some(&prefix));
        while let Some(object) = listing.try_next().await.map_err(failed)? {
            if let Some((cluster, timeline, segment, piece)) = parse_tail(&prefix, &object.location) {
                let seen = seen.entry((cluster, timeline)).or_default();
                seen.note(&object);
                seen.add_piece(segment, piece);
            } else if let Some((cluster, timeline, file)) = parse(&prefix, &object.location) {
                let seen = seen.entry((cluster, timeline)).or_default();
                seen.note(&object);
                seen.add(file);
            }
        }
        let mut clusters: Vec<ClusterInventory> = Vec::new();
        for ((cluster, timeline), seen) in seen {
            let found = seen.finish(repository, &target.wal_of(cluster), timeline).await?;
            match clusters.last_mut().filter(|last| last.system_identifier == cluster) {
                Some(last) => last.timelines.push(found),
                None => clusters.push(ClusterInventory { system_identifier: cluster, timelines: vec![found] }),
            }
        }
        Ok(Self { clusters })
    }
}

impl ClusterInventory {
    /// What is missing between segments, within timelines and before later ones: the first segment that is, and the last.
    pub fn gaps(&self) -> Vec<(SegmentName, SegmentName)> {
        let within = self.timelines.iter().flat_map(TimelineInventory::gaps);
        within.chain(self.timelines.iter().filter_map(|later| self.gap_before(later))).collect()
    }

    /// What is missing before a timeline, to which nothing that is archived of an older one leads. Which of them it left, and where, only its
    /// history tells, which is encrypted; that some of them has to lead there is certain.
    fn gap_before(&self, later: &TimelineInventory) -> Option<(SegmentName, SegmentName)> {
        let (start, size) = (later.ranges.first()?.start, later.segment_size?);
        let mut nearest: Option<(Lsn, Timeline)> = None;
        for older in self.timelines.iter().filter(|older| older.timeline < later.timeline) {
            let tail = older.tail_segment.and_then(|segment| Some((segment.start(size)?, older.end(size)?)));
            for (from, to) in older.ranges.iter().map(|range| (range.start, range.end)).chain(tail) {
                if from <= start && start <= to {
                    return None;
                }
                if to < start {
                    nearest = nearest.max(Some((to, older.timeline)));
                }
            }
        }
        let (end, timeline) = nearest?;
        Some((size.segment_at(timeline, end), size.segment_at(timeline, Lsn(start.0 - 1))))
    }
}

impl TimelineInventory {
    /// How far the archive reaches: to the end of its newest segment, or of what was received of the one behind it. `size` is that of the cluster's
    /// segments, for a timeline of which there is no whole one.
    pub fn end(&self, size: SegmentSize) -> Option<Lsn> {
        let whole = self.ranges.last().map(|range| range.end);
        self.tail.max(whole).or_else(|| self.tail_segment?.start(size))
    }

    /// What is missing between ranges: the first segment that is, and the last.
    pub fn gaps(&self) -> Vec<(SegmentName, SegmentName)> {
        let Some(size) = self.segment_size else { return Vec::new() };
        let before = |range: &SegmentRange| size.segment_at(self.timeline, Lsn(range.start.0.saturating_sub(1)));
        let gap = |pair: &[SegmentRange]| Some((pair[0].last.next(size)?, before(&pair[1])));
        self.ranges.windows(2).filter_map(gap).collect()
    }

    /// Whether recovery cannot choose this timeline: its history is missing.
    pub fn lacks_history(&self) -> bool {
        self.timeline != Timeline::FIRST && !self.has_history
    }
}

impl ReadyFiles {
    /// What waits in the cluster of `data_directory`. Blocks.
    pub fn read(data_directory: &FilePath, now: Timestamp) -> Result<Self> {
        let status = data_directory.join("pg_wal/archive_status");
        let failed = |e: io::Error| {
            Error::new(ErrorKind::Source, Stage::Source, format!("cannot read {}", status.display())).with_source(e)
        };
        let mut ready = Self::default();
        for entry in std::fs::read_dir(&status).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(file) = name.to_str().and_then(|name| name.strip_suffix(".ready")?.parse().ok()) else { continue };
            // It may have been archived a moment ago.
            let Ok(since) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
            let age = Timestamp::try_from(since)
                .map_or(Duration::ZERO, |since| now.duration_since(since).try_into().unwrap_or(Duration::ZERO));
            ready.count += 1;
            if ready.oldest.is_none_or(|(_, oldest)| oldest < age) {
                ready.oldest = Some((file, age));
            }
        }
        Ok(ready)
    }
}

/// Segments of one timeline, 256 of them in an entry: a bit each.
#[derive(Debug, Default)]
struct Seen {
    segments: BTreeMap<(u32, u32), [u64; 4]>,
    has_history: bool,
    bytes: u64,
    written: Option<Timestamp>,
    /// The newest segment of which there are pieces.
    tail: Option<(SegmentName, Vec<TailPiece>)>,
    /// All segments of which there are pieces.
    in_pieces: BTreeSet<SegmentName>,
}

impl Seen {
    fn note(&mut self, object: &ObjectMeta) {
        self.bytes += object.size;
        self.written = self.written.max(Timestamp::from_second(object.last_modified.timestamp()).ok());
    }

    fn add_piece(&mut self, segment: SegmentName, piece: TailPiece) {
        self.in_pieces.insert(segment);
        match &mut self.tail {
            Some((newest, _)) if *newest > segment => {}
            Some((newest, pieces)) if *newest == segment => pieces.push(piece),
            tail => *tail = Some((segment, vec![piece])),
        }
    }

    /// How far the tail reaches, if it belongs to a segment behind `newest`.
    fn tail(&mut self, newest: SegmentName, size: SegmentSize) -> Option<Lsn> {
        let (segment, mut pieces) = self.tail.take().filter(|(segment, _)| *segment > newest)?;
        pieces.sort_unstable();
        let end = tail::chain(&pieces).last()?.end;
        Some(Lsn(segment.start(size)?.0 + u64::from(end)))
    }

    fn add(&mut self, file: WalFile) {
        match file {
            WalFile::Segment(SegmentName { log, segment, .. }) => {
                let bits = self.segments.entry((log, segment / 256)).or_default();
                bits[segment as usize % 256 / 64] |= 1 << (segment % 64);
            }
            WalFile::History(_) => self.has_history = true,
            WalFile::Partial(_) | WalFile::BackupLabel(..) => {}
        }
    }

    fn is_whole(&self, segment: SegmentName) -> bool {
        let SegmentName { log, segment, .. } = segment;
        let bits = self.segments.get(&(log, segment / 256));
        bits.is_some_and(|bits| bits[segment as usize % 256 / 64] >> (segment % 64) & 1 == 1)
    }

    fn names(&self, timeline: Timeline) -> impl DoubleEndedIterator<Item = SegmentName> {
        self.segments.iter().flat_map(move |(&(log, block), bits)| {
            let bits = *bits;
            let set = (0..256u32).filter(move |bit| bits[*bit as usize / 64] >> (bit % 64) & 1 == 1);
            set.map(move |bit| SegmentName { timeline, log, segment: block * 256 + bit })
        })
    }

    async fn finish(
        mut self,
        repository: &Repository,
        archive: &WalPath,
        timeline: Timeline,
    ) -> Result<TimelineInventory> {
        let mut found = TimelineInventory {
            timeline,
            segment_size: None,
            ranges: Vec::new(),
            has_history: self.has_history,
            archived: None,
            tail: None,
            tail_segment: self.tail.as_ref().map(|(segment, _)| *segment),
            leftovers: self.in_pieces.iter().copied().filter(|segment| self.is_whole(*segment)).collect(),
            written: self.written,
            stored_bytes: self.bytes,
        };
        let Some(newest) = self.names(timeline).next_back() else { return Ok(found) };
        let file = WalFile::Segment(newest);
        let damaged = |what: String| Error::integrity(format!("{} {what} (offset 0)", archive.file(file)));
        let stored = StoredFile::find_listed(repository, archive, file).await?;
        let bytes = stored.plaintext.bytes;
        let size = u32::try_from(bytes).ok().and_then(SegmentSize::new);
        let size = size.ok_or_else(|| damaged(format!("holds {bytes} bytes, which is no segment size")))?;
        found.segment_size = Some(size);
        found.archived = Some(stored.header().created);
        found.tail = self.tail(newest, size);
        for name in self.names(timeline) {
            let (Some(start), Some(end)) = (name.start(size), name.end(size)) else {
                let message = format!(
                    "{} cannot be: segments of this cluster have {bytes} bytes",
                    archive.file(WalFile::Segment(name))
                );
                return Err(Error::integrity(message).at(Stage::Catalog));
            };
            match found.ranges.last_mut().filter(|range| range.end == start) {
                Some(range) => (range.last, range.end, range.segments) = (name, end, range.segments + 1),
                None => found.ranges.push(SegmentRange { first: name, last: name, segments: 1, start, end }),
            }
        }
        Ok(found)
    }
}

/// Which segment of which cluster an object holds a piece of; `None` when it is something else.
pub(super) fn parse_tail(prefix: &Path, object: &Path) -> Option<(SystemIdentifier, Timeline, SegmentName, TailPiece)> {
    let mut parts = object.prefix_match(prefix)?;
    let cluster = parts.next()?.as_ref().parse().ok()?;
    let (segment, piece) = WalPath::parse_tail(object)?;
    Some((cluster, segment.timeline, segment, piece))
}

/// Which file of which cluster an object holds; `None` when it is something else.
pub(super) fn parse(prefix: &Path, object: &Path) -> Option<(SystemIdentifier, Timeline, WalFile)> {
    let mut parts = object.prefix_match(prefix)?;
    let (cluster, timeline, name) = (parts.next()?, parts.next()?, parts.next()?);
    let file = WalPath::parse_file(name.as_ref())?;
    let timeline = Timeline::from_hex(timeline.as_ref())?;
    let whole = parts.next().is_none() && file.timeline() == timeline;
    whole.then_some((cluster.as_ref().parse().ok()?, timeline, file))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn segments_come_back_in_order_whatever_order_they_were_seen_in(names in proptest::collection::btree_set((0u32..3, 0u32..4096), 0..60)) {
            let timeline = Timeline::FIRST;
            let expected: Vec<SegmentName> =
                names.iter().map(|(log, segment)| SegmentName { timeline, log: *log, segment: *segment }).collect();
            let mut seen = Seen::default();
            for name in expected.iter().rev() {
                seen.add(WalFile::Segment(*name));
            }
            prop_assert_eq!(seen.names(timeline).next_back(), expected.last().copied());
            prop_assert_eq!(seen.names(timeline).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn objects_that_are_no_files_are_passed_over() {
        let prefix = Path::from("app/wal");
        let parsed = |path: &str| parse(&prefix, &Path::from(format!("app/wal/{path}"))).is_some();
        assert!(parsed("7/00000001/000000010000000000000001.vol"));
        assert!(parsed("7/00000002/00000002.history.vol"));
        for path in [
            "7/00000002/000000010000000000000001.vol",
            "7/00000001/000000010000000000000001.0123456789abcdef0123456789abcdef.vol",
            "7/00000001/000000010000000000000001.tail/0.vol",
            "x/00000001/000000010000000000000001.vol",
            "7/00000001",
        ] {
            assert!(!parsed(path), "{path}");
        }
    }
}
