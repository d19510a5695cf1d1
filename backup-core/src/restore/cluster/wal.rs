//! The log that comes with a backup: whether it is all that the backup needs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::backup_manifest::WalRange;
use crate::postgres::wal::{SegmentName, SegmentSize, WalFile};

/// The restored segments, with their sizes. A backup's own log is short: this is some 50 bytes for each segment.
#[derive(Debug, Default)]
pub(super) struct Segments(Mutex<BTreeMap<SegmentName, u64>>);

impl Segments {
    /// Takes account of a file of `pg_wal`; what is no segment does not matter here.
    pub(super) fn add(&self, path: &Path, size: u64) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(WalFile::Segment(name)) = name {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, size);
        }
    }

    /// Their names.
    pub(super) fn names(&self) -> Vec<SegmentName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Whether all of `ranges` is there, in whole segments.
    pub(super) fn check(&self, ranges: &[WalRange], size: SegmentSize) -> Result<()> {
        let segments = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for range in ranges {
            let mut at = size.start_of(range.start);
            while at < range.end {
                let name = size.segment_at(range.timeline, at);
                match segments.get(&name) {
                    Some(bytes) if *bytes == size.bytes() => {}
                    Some(bytes) => return Err(incomplete(format!("{name} has {bytes} bytes"))),
                    None => return Err(incomplete(format!("{name} is missing"))),
                }
                let Some(end) = name.end(size) else { break };
                at = end;
            }
        }
        Ok(())
    }
}

fn incomplete(what: String) -> Error {
    Error::new(ErrorKind::Integrity, Stage::Sink, format!("the backup's own log is incomplete: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::wal::{Lsn, Timeline};

    #[test]
    fn a_segment_that_is_missing_or_short_is_named() {
        let segments = Segments::default();
        let size = SegmentSize::DEFAULT;
        let range = |start, end| WalRange { timeline: Timeline::FIRST, start: Lsn(start), end: Lsn(end) };
        let check = |end| segments.check(&[range(0x200_0028, end)], size).map_err(|e| e.to_string());
        segments.add(Path::new("000000010000000000000002"), 16 << 20);
        segments.add(Path::new("pg_wal/000000010000000000000003"), 1 << 20);
        segments.add(Path::new("archive_status/000000010000000000000004.done"), 0);
        check(0x300_0000).unwrap();
        assert!(check(0x300_0001).unwrap_err().ends_with("000000010000000000000003 has 1048576 bytes"));
        segments.add(Path::new("000000010000000000000003"), 16 << 20);
        assert!(check(0x400_0001).unwrap_err().ends_with("000000010000000000000004 is missing"));
    }
}
