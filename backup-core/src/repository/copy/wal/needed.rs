//! The log that a backup needs and does not hold itself.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::error::{Result, Stage};
use crate::format::ClusterEntry;
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, Timeline, WalFile};
use crate::repository::copy::{Held, OBJECTS, Run};
use crate::repository::layout::BackupPath;
use crate::wal_archive::kept::KeptName;

impl Run<'_> {
    /// All that there is of the log from where a backup begins to where it ends, pieces included, and the history of its timeline. A listing says what
    /// there is: of the manifest nothing is proved, and what it claims to need could be without end.
    pub(in crate::repository::copy) async fn wal_needed_by(
        &self,
        path: &BackupPath,
        cluster: &ClusterEntry,
    ) -> Result<()> {
        let (target, needed) = (&path.target, Needed::by(cluster));
        let archive = target.wal_of(cluster.system_identifier);
        let folder = archive.timeline(cluster.timeline);
        let held = &Held::list(self.to, &folder).await?;
        let seen: Mutex<BTreeSet<SegmentName>> = Mutex::default();
        let seen = || seen.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e| self.from.error(e, "list", &folder).at(Stage::Catalog);
        let begin = folder.clone().join(needed.first.to_string());
        let objects = self.from.store().list_with_offset(Some(&folder), &begin).map_err(failed);
        let objects = objects.try_filter(|object| {
            let segment = KeptName::parse(target, &object.location).and_then(|name| name.segment());
            let is_needed = segment.is_some_and(|segment| needed.contains(segment));
            if let Some(segment) = segment.filter(|_| is_needed) {
                seen().insert(segment);
            }
            std::future::ready(is_needed)
        });
        self.each(objects, OBJECTS, |object: ObjectMeta| self.wal_object(target, held, object)).await?;
        if cluster.timeline != Timeline::FIRST {
            let history = archive.file(WalFile::History(cluster.timeline));
            match self.from.store().head(&history).await {
                Ok(meta) => self.wal_object(target, held, meta).await?,
                // It need never have been archived.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.from.error(e, "read", &history).at(Stage::Fetch)),
            }
        }
        let gaps = needed.gaps(&seen());
        if gaps.is_empty() || !self.from.still_has(&path.manifest()).await? {
            return Ok(());
        }
        for (first, last) in gaps {
            let object = archive.file(WalFile::Segment(first));
            let which = if first == last { "it".to_owned() } else { format!("it and all others up to {last}") };
            self.problem(&object, format!("missing, and a backup cannot be restored without {which} (offset 0)"));
        }
        Ok(())
    }
}

/// The segments that a backup needs, by the word of its manifest.
struct Needed {
    size: SegmentSize,
    first: SegmentName,
    last: SegmentName,
}

impl Needed {
    fn by(cluster: &ClusterEntry) -> Self {
        let (size, timeline) = (cluster.wal_segment_bytes, cluster.timeline);
        let last = Lsn(cluster.stop_lsn.0.saturating_sub(1)).max(cluster.start_lsn);
        let at = |lsn| size.segment_at(timeline, lsn);
        Self { size, first: at(cluster.start_lsn), last: at(last) }
    }

    fn contains(&self, segment: SegmentName) -> bool {
        segment.start(self.size).is_some() && (self.first..=self.last).contains(&segment)
    }

    /// What is missing among those that are there: the first and the last of each gap.
    fn gaps(&self, there: &BTreeSet<SegmentName>) -> Vec<(SegmentName, SegmentName)> {
        let (mut gaps, mut next) = (Vec::new(), Some(self.first));
        for segment in there {
            if let Some(first) = next.filter(|next| next < segment) {
                gaps.extend(self.before(*segment).map(|last| (first, last)));
            }
            next = segment.next(self.size);
        }
        gaps.extend(next.filter(|next| *next <= self.last).map(|first| (first, self.last)));
        gaps
    }

    fn before(&self, segment: SegmentName) -> Option<SegmentName> {
        let end = segment.start(self.size)?.0.checked_sub(1)?;
        Some(self.size.segment_at(segment.timeline, Lsn(end)))
    }
}
