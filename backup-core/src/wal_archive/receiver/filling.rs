//! The segment that is being received. No I/O.

use bytes::{Bytes, BytesMut};

use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, Timeline};
use crate::repository::layout::TailPiece;

/// What is to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// A whole segment.
    Segment(SegmentName, Bytes),
    /// What is new of one that is not full.
    Piece(SegmentName, TailPiece, Bytes),
}

impl Job {
    /// Bytes that it holds on to.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Segment(_, bytes) | Self::Piece(_, _, bytes) => bytes.len(),
        }
    }
}

/// Gathers the log until a segment is full.
#[derive(Debug)]
pub(super) struct Filling {
    size: SegmentSize,
    timeline: Timeline,
    /// Where the segment begins.
    start: Lsn,
    bytes: BytesMut,
    /// As many of them were handed out as pieces.
    handed_out: usize,
    /// Of this receiver.
    run: String,
}

impl Filling {
    /// Begins at `start`, which is the beginning of a segment.
    pub(super) fn new(size: SegmentSize, timeline: Timeline, start: Lsn, run: String) -> Self {
        debug_assert_eq!(size.offset_of(start), 0);
        Self { size, timeline, start, bytes: BytesMut::new(), handed_out: 0, run }
    }

    /// The position behind the last byte.
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// The cluster's.
    pub(super) fn size(&self) -> SegmentSize {
        self.size
    }

    /// Bytes in memory.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the next bytes of the log; returns the segments that became full.
    pub(super) fn add(&mut self, mut data: &[u8]) -> Vec<Job> {
        let mut full = Vec::new();
        let size = usize::try_from(self.size.bytes()).expect("at most 1 GiB");
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(size - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            data = later;
            if self.bytes.len() == size {
                full.push(Job::Segment(self.name(), std::mem::take(&mut self.bytes).freeze()));
                self.start = Lsn(self.start.0 + size as u64);
                self.handed_out = 0;
            }
        }
        full
    }

    /// What was not handed out yet of the segment that is not full.
    pub(super) fn piece(&mut self) -> Option<Job> {
        if self.bytes.len() == self.handed_out {
            return None;
        }
        let offset = |at: usize| u32::try_from(at).expect("within a segment");
        let piece = TailPiece { start: offset(self.handed_out), end: offset(self.bytes.len()), run: self.run.clone() };
        let bytes = Bytes::copy_from_slice(&self.bytes[self.handed_out..]);
        self.handed_out = self.bytes.len();
        Some(Job::Piece(self.name(), piece, bytes))
    }

    fn name(&self) -> SegmentName {
        self.size.segment_at(self.timeline, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_one_segment_and_at_most_one_piece() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let log: Vec<u8> = (0..3_500_000u32).map(|i| (i / 7) as u8).collect();
        let mut filling = Filling::new(size, Timeline::FIRST, Lsn(5 << 20), "0".repeat(16));
        let (mut segments, mut pieces) = (Vec::new(), Vec::new());
        assert_eq!(filling.piece(), None);
        for (i, data) in log.chunks(99_999).enumerate() {
            segments.extend(filling.add(data));
            if i % 3 == 0 {
                pieces.extend(filling.piece());
            }
        }
        assert_eq!(filling.end(), Lsn((5 << 20) + 3_500_000));
        let names: Vec<u32> = segments
            .iter()
            .map(|job| match job {
                Job::Segment(name, _) => name.segment,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, [5, 6, 7]);
        let whole: Vec<u8> = segments
            .iter()
            .flat_map(|job| match job {
                Job::Segment(_, bytes) => bytes.to_vec(),
                _ => vec![],
            })
            .collect();
        assert!(whole == log[..3 << 20]);
        for job in pieces {
            let Job::Piece(name, piece, bytes) = job else { panic!("{job:?}") };
            let at = ((name.segment as usize - 5) << 20) + piece.start as usize;
            assert!(bytes == log[at..at + bytes.len()] && piece.end as usize - piece.start as usize == bytes.len());
        }
        let Some(Job::Piece(..)) = filling.piece() else { panic!() };
        assert_eq!((filling.piece(), filling.len()), (None, 3_500_000 - (3 << 20)));
    }
}
