//! The first page of a segment: it says whose log it is, and which part. No I/O.
//!
//! `XLogLongPageHeaderData` in PostgreSQL's `src/include/access/xlog_internal.h`, in the byte order of the machine that wrote it:
//!
//! ```text
//! magic u16 | info u16 | timeline u32 | address u64 | rem_len u32 | pad u32 | system identifier u64 | segment size u32 | block size u32
//! ```

use super::{Lsn, SegmentName, SegmentSize, SystemIdentifier};

/// Bytes at the beginning of a segment that tell what it is.
pub const FIRST_PAGE_HEADER_LEN: usize = 40;

/// The high byte of `XLOG_PAGE_MAGIC`, which every major version since 10 shares; the low byte counts versions.
const MAGIC_HIGH: u16 = 0xD1;
/// The flag `XLP_LONG_HEADER`: only a segment's first page has it.
const LONG_HEADER: u16 = 0x0002;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPage {
    /// The timeline of the page. The first segment of a timeline begins with what it shares with its ancestor, so this is it or an ancestor.
    pub timeline: u32,
    /// The position of its first byte.
    pub address: Lsn,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
}

/// Why bytes are not the segment that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTheSegment {
    /// Too short for a page.
    #[error("it has {0} bytes, fewer than a page's header")]
    Short(u64),
    /// No page of PostgreSQL's log.
    #[error("it does not begin with the first page of a segment (magic number {magic:#06x}, flags {info:#06x})")]
    NotFirstPage {
        /// `xlp_magic`.
        magic: u16,
        /// `xlp_info`.
        info: u16,
    },
    /// A segment size that no cluster has.
    #[error("it says that segments have {0} bytes")]
    SegmentSize(u32),
    /// A file that is longer or shorter than a segment.
    #[error("it has {len} bytes, and segments of its cluster have {size}")]
    Length {
        /// Of the file.
        len: u64,
        /// Of a segment.
        size: u64,
    },
    /// Another part of the log.
    #[error("it is the log from {0} on")]
    Address(Lsn),
    /// A timeline that came later.
    #[error("it was written on timeline {0}")]
    Timeline(u32),
}

impl FirstPage {
    /// Reads the header at the beginning of a segment, in this machine's byte order.
    pub fn parse(bytes: &[u8; FIRST_PAGE_HEADER_LEN]) -> Result<Self, NotTheSegment> {
        fn field<const N: usize>(bytes: &[u8; FIRST_PAGE_HEADER_LEN], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("the range has N bytes")
        }
        let (magic, info) = (u16::from_ne_bytes(field(bytes, 0)), u16::from_ne_bytes(field(bytes, 2)));
        if magic >> 8 != MAGIC_HIGH || info & LONG_HEADER == 0 {
            return Err(NotTheSegment::NotFirstPage { magic, info });
        }
        let size = u32::from_ne_bytes(field(bytes, 32));
        Ok(Self {
            timeline: u32::from_ne_bytes(field(bytes, 4)),
            address: Lsn(u64::from_ne_bytes(field(bytes, 8))),
            system_identifier: SystemIdentifier(u64::from_ne_bytes(field(bytes, 24))),
            segment_size: SegmentSize::new(size).ok_or(NotTheSegment::SegmentSize(size))?,
        })
    }

    /// Whether this page begins the segment `name`, in a file of `len` bytes.
    pub fn check(&self, name: SegmentName, len: u64) -> Result<(), NotTheSegment> {
        let size = self.segment_size.bytes();
        if len != size {
            return Err(NotTheSegment::Length { len, size });
        }
        if name.start(self.segment_size) != Some(self.address) {
            return Err(NotTheSegment::Address(self.address));
        }
        if self.timeline > name.timeline.get() {
            return Err(NotTheSegment::Timeline(self.timeline));
        }
        Ok(())
    }

    /// The header as PostgreSQL writes it, for tests that need no server.
    #[cfg(test)]
    pub(crate) fn encode(&self) -> [u8; FIRST_PAGE_HEADER_LEN] {
        let mut bytes = [0; FIRST_PAGE_HEADER_LEN];
        bytes[..2].copy_from_slice(&0xD110u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&LONG_HEADER.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.timeline.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.address.0.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.system_identifier.0.to_ne_bytes());
        bytes[32..36].copy_from_slice(&u32::from(self.segment_size).to_ne_bytes());
        bytes[36..].copy_from_slice(&8192u32.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::postgres::wal::Timeline;

    fn page() -> FirstPage {
        FirstPage {
            timeline: 2,
            address: Lsn(0x3_0400_0000),
            system_identifier: SystemIdentifier(7_412_345_678_901_234_567),
            segment_size: SegmentSize::DEFAULT,
        }
    }

    #[test]
    fn a_segment_must_be_the_one_that_its_name_says() {
        let page = page();
        assert_eq!(FirstPage::parse(&page.encode()), Ok(page));
        let name = |timeline, log, segment| SegmentName { timeline: Timeline::new(timeline).unwrap(), log, segment };
        assert_eq!(page.check(name(2, 3, 4), 16 << 20), Ok(()));
        assert_eq!(page.check(name(3, 3, 4), 16 << 20), Ok(()), "what a timeline shares with its ancestor");
        assert_eq!(page.check(name(1, 3, 4), 16 << 20), Err(NotTheSegment::Timeline(2)));
        assert_eq!(page.check(name(2, 3, 5), 16 << 20), Err(NotTheSegment::Address(page.address)));
        let short = NotTheSegment::Length { len: 1 << 20, size: 16 << 20 };
        assert_eq!(page.check(name(2, 3, 4), 1 << 20), Err(short));
    }

    #[test]
    fn what_is_no_first_page_is_refused() {
        let good = page().encode();
        for (at, byte) in [(1, 0), (2, 0), (33, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(FirstPage::parse(&bad).is_err(), "byte {at}");
        }
        assert!(FirstPage::parse(&[0; FIRST_PAGE_HEADER_LEN]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: [u8; 32], more: [u8; 8], log: u32, segment: u32) {
            let bytes: [u8; FIRST_PAGE_HEADER_LEN] = [&bytes[..], &more[..]].concat().try_into().unwrap();
            if let Ok(page) = FirstPage::parse(&bytes) {
                let _ = page.check(SegmentName { timeline: Timeline::FIRST, log, segment }, 16 << 20);
            }
        }
    }
}
